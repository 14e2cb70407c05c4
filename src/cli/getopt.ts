/**
 * Option parsing as getopt_long(3) of glibc does it: letters may be clustered (`-nq`), a value may follow its letter directly
 * (`-fFILE`) or as the next word, long options may be shortened as long as that is unambiguous, `--` ends the options, and
 * options may stand behind operands unless `inOrder` is set (getopt's leading `+`).
 *
 * The messages are glibc's; xl prints its own for the options of a command, which are in `letter`.
 *
 * Source: getopt(3); glibc 2.36 posix/getopt.c (read for behaviour).
 */

export interface LongOption {
  readonly name: string;
  readonly takesValue: boolean;
  /** What the option is reported as; usually the letter that means the same. */
  readonly key: string;
}

export interface OptionSyntax {
  /** For messages. */
  readonly program: string;
  /** Letters as in getopt: a `:` behind a letter that takes a value. */
  readonly letters: string;
  readonly long?: readonly LongOption[];
  /** Stop at the first operand. */
  readonly inOrder?: boolean;
}

export type OptionEvent =
  | { readonly kind: 'option'; readonly key: string; readonly value: string | null }
  /** `option` is what was written, without dashes: a letter, or a long name. */
  | { readonly kind: 'error'; readonly option: string; readonly message: string };

export interface ParsedWords {
  /** In the order of the command line. */
  readonly events: readonly OptionEvent[];
  readonly operands: readonly string[];
}

/** Splits `words` (without the program's name) into options and operands. Never throws. */
export function getopt(words: readonly string[], syntax: OptionSyntax): ParsedWords {
  const events: OptionEvent[] = [];
  const operands: string[] = [];
  let next = 0;
  while (next < words.length) {
    const word = words[next++];
    if (word === '--') {
      operands.push(...words.slice(next));
      break;
    }
    if (word.length < 2 || word[0] !== '-') {
      operands.push(word);
      if (!syntax.inOrder) continue;
      operands.push(...words.slice(next));
      break;
    }
    if (word.startsWith('--') && syntax.long !== undefined) {
      const event = longOption(word.slice(2), words[next], syntax.program, syntax.long);
      events.push(event.event);
      if (event.tookWord) next++;
      continue;
    }
    if (letterOptions([...word.slice(1)], words[next], syntax, events)) next++;
  }
  return { events, operands };
}

/** Returns whether `nextWord` was used as a value. */
function letterOptions(
  letters: readonly string[],
  nextWord: string | undefined,
  syntax: OptionSyntax,
  events: OptionEvent[],
): boolean {
  const { program } = syntax;
  for (let i = 0; i < letters.length; i++) {
    const letter = letters[i];
    const at = letter === ':' || letter === ';' ? -1 : syntax.letters.indexOf(letter);
    if (at < 0) {
      events.push({ kind: 'error', option: letter, message: `${program}: invalid option -- '${letter}'` });
    } else if (syntax.letters[at + 1] !== ':') {
      events.push({ kind: 'option', key: letter, value: null });
    } else if (i + 1 < letters.length) {
      events.push({ kind: 'option', key: letter, value: letters.slice(i + 1).join('') });
      return false;
    } else if (nextWord !== undefined) {
      events.push({ kind: 'option', key: letter, value: nextWord });
      return true;
    } else {
      const message = `${program}: option requires an argument -- '${letter}'`;
      events.push({ kind: 'error', option: letter, message });
    }
  }
  return false;
}

function longOption(
  text: string,
  nextWord: string | undefined,
  program: string,
  long: readonly LongOption[],
): { event: OptionEvent; tookWord: boolean } {
  const equals = text.indexOf('=');
  const name = equals < 0 ? text : text.slice(0, equals);
  const value = equals < 0 ? null : text.slice(equals + 1);
  const refuse = (what: string) => ({
    event: { kind: 'error' as const, option: name, message: `${program}: ${what}` },
    tookWord: false,
  });

  let option = long.find((candidate) => candidate.name === name);
  if (option === undefined) {
    const candidates = long.filter((candidate) => candidate.name.startsWith(name));
    if (candidates.length === 0) return refuse(`unrecognized option '--${text}'`);
    option = candidates[0];
    const { key, takesValue } = option;
    if (candidates.some((other) => other.key !== key || other.takesValue !== takesValue)) {
      const possibilities = candidates.map((candidate) => ` '--${candidate.name}'`).join('');
      return refuse(`option '--${text}' is ambiguous; possibilities:${possibilities}`);
    }
  }
  if (!option.takesValue) {
    if (value !== null) return refuse(`option '--${option.name}' doesn't allow an argument`);
    return { event: { kind: 'option', key: option.key, value: null }, tookWord: false };
  }
  if (value !== null) return { event: { kind: 'option', key: option.key, value }, tookWord: false };
  if (nextWord === undefined) return refuse(`option '--${option.name}' requires an argument`);
  return { event: { kind: 'option', key: option.key, value: nextWord }, tookWord: true };
}
