/**
 * grub.cfg: runs the script as GRUB on Xen would, as far as it makes a menu.
 *
 * Conditions on variables are evaluated; what only a running GRUB knows (files, keys, fonts) counts as false. A saved entry
 * counts as none, as in pygrub. `blscfg`, functions and loops are passed over. A menu entry runs on a copy of the variables.
 */
import { type BootEntry, type BootMenu, withoutDevice } from './boot-menu.ts';
import { parseGrubScript, type Statement, type Word } from './grub-script.ts';

type Variables = Map<string, string>;

const KERNEL_COMMANDS: readonly string[] = ['linux', 'linux16', 'linuxefi'];
const RAMDISK_COMMANDS: readonly string[] = ['initrd', 'initrd16', 'initrdefi'];
const ENTRIES_MAX = 10_000;

/** @param folder where the file is, which `$prefix` means */
export function parseGrub2Config(text: string, folder: string): BootMenu {
  const variables: Variables = new Map([
    ['prefix', folder],
    ['root', 'xen/xvda'],
    ['grub_platform', 'xen'],
    ['grub_cpu', 'x86_64'],
    ['feature_menuentry_id', 'y'],
    ['feature_default_font_path', 'y'],
    ['feature_platform_search_hint', 'y'],
    ['feature_timeout_style', 'y'],
    ['feature_all_video_module', 'y'],
  ]);
  const entries: BootEntry[] = [];
  runMenu(parseGrubScript(text), variables, [], entries);
  return { entries, defaultEntry: variables.get('default') || '0' };
}

function runMenu(
  statements: readonly Statement[],
  variables: Variables,
  submenus: readonly string[],
  entries: BootEntry[],
): void {
  for (const statement of statements) {
    if (statement.kind === 'if') {
      runMenu(chosenBranch(statement, variables), variables, submenus, entries);
      continue;
    }
    const words = expand(statement.words, variables);
    const [command] = words;
    if ((command === 'menuentry' || command === 'submenu') && statement.block !== undefined) {
      const { title, id } = namesOf(words);
      if (entries.length >= ENTRIES_MAX) return;
      if (command === 'submenu') runMenu(statement.block, new Map(variables), [...submenus, title], entries);
      else entries.push({ title, id, submenus, ...runEntry(statement.block, new Map(variables)) });
    } else assign(words, variables);
  }
}

interface Loaded {
  kernel: string | undefined;
  ramdisks: readonly string[];
  args: string;
}

function runEntry(statements: readonly Statement[], variables: Variables, loaded?: Loaded): Loaded {
  const result = loaded ?? { kernel: undefined, ramdisks: [], args: '' };
  for (const statement of statements) {
    if (statement.kind === 'if') {
      runEntry(chosenBranch(statement, variables), variables, result);
      continue;
    }
    const words = expand(statement.words, variables);
    const [command = '', path, ...rest] = words;
    if (KERNEL_COMMANDS.includes(command) && path !== undefined) {
      result.kernel = withoutDevice(path);
      result.args = rest.join(' ');
    } else if (RAMDISK_COMMANDS.includes(command)) result.ramdisks = words.slice(1).map(withoutDevice);
    else assign(words, variables);
  }
  return result;
}

/** `set name=value` and `name=value`. */
function assign(words: readonly string[], variables: Variables): void {
  const assignment = words[0] === 'set' ? words[1] : words.length === 1 ? words[0] : undefined;
  const match = /^([A-Za-z_][A-Za-z0-9_]*)=(.*)$/s.exec(assignment ?? '');
  if (match !== null) variables.set(match[1]!, match[2]!);
  else if (words[0] === 'unset' && words[1] !== undefined) variables.delete(words[1]);
}

/** The title is the first word that is no option and no option's value. */
function namesOf(words: readonly string[]): { title: string; id: string } {
  let title: string | undefined;
  let id = '';
  for (let index = 1; index < words.length; index++) {
    const word = words[index]!;
    if (word === '--id') id = words[++index] ?? '';
    else if (word.startsWith('--id=')) id = word.slice('--id='.length);
    else if (['--class', '--users', '--hotkey'].includes(word)) index++;
    else if (!word.startsWith('--')) title ??= word;
  }
  return { title: title ?? '', id };
}

function chosenBranch(statement: Statement & { readonly kind: 'if' }, variables: Variables): readonly Statement[] {
  for (const { condition, body } of statement.branches) {
    if (condition === undefined || isTrue(condition, variables)) return body;
  }
  return [];
}

/** The last command decides. */
function isTrue(condition: readonly Statement[], variables: Variables): boolean {
  const last = condition.at(-1);
  if (last?.kind !== 'command') return false;
  const words = expand(last.words, variables);
  const isNegated = words[0] === '!';
  if (isNegated) words.shift();
  return evaluate(words, variables) !== isNegated;
}

function evaluate(words: readonly string[], variables: Variables): boolean {
  const [command] = words;
  if (command === 'true') return true;
  if (command === '[' && words.at(-1) === ']') return test(words.slice(1, -1));
  if (command === 'test') return test(words.slice(1));
  if (command !== undefined && /^[A-Za-z_]\w*=/.test(command)) {
    assign(words, variables);
    return true;
  }
  return false;
}

/** test(1), as GRUB has it; -o binds weaker than -a. */
function test(words: readonly string[]): boolean {
  const or = words.indexOf('-o');
  if (or > 0) return test(words.slice(0, or)) || test(words.slice(or + 1));
  const and = words.indexOf('-a');
  if (and > 0) return test(words.slice(0, and)) && test(words.slice(and + 1));
  const [a = '', operator, b = ''] = words;
  if (a === '!' && words.length > 1) return !test(words.slice(1));
  if (words.length === 1) return a !== '';
  if (words.length === 2) return a === '-n' ? operator !== '' : a === '-z' ? operator === '' : false;
  switch (operator) {
    case '=':
    case '==':
      return a === b;
    case '!=':
      return a !== b;
    case '-eq':
      return Number(a) === Number(b);
    case '-ne':
      return Number(a) !== Number(b);
    case '-lt':
      return Number(a) < Number(b);
    case '-le':
      return Number(a) <= Number(b);
    case '-gt':
      return Number(a) > Number(b);
    case '-ge':
      return Number(a) >= Number(b);
    default:
      return false;
  }
}

/** Puts variables in. */
function expand(words: readonly Word[], variables: Variables): string[] {
  const expanded: string[] = [];
  for (const { pieces } of words) {
    let text: string | undefined;
    for (const piece of pieces) {
      if (piece.kind === 'text') {
        text = (text ?? '') + piece.text;
        continue;
      }
      const value = variables.get(piece.name) ?? '';
      if (piece.isQuoted) {
        text = (text ?? '') + value;
        continue;
      }
      const parts = value.split(/[ \t\n]+/);
      if (parts[0] !== '') text = (text ?? '') + parts[0];
      for (const part of parts.slice(1)) {
        if (text !== undefined) expanded.push(text);
        text = part === '' ? undefined : part;
      }
    }
    if (text !== undefined) expanded.push(text);
  }
  return expanded;
}
