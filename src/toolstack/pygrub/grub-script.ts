/**
 * The syntax of grub.cfg: GRUB's shell, read into a tree.
 *
 * Words are kept as pieces, so that variables are put in when a command runs. Functions and loops are read and left out.
 * Source: GNU GRUB manual 2.06, "Shell-like scripting".
 */
import { BootDiskError } from './volume.ts';

/** A piece of a word. Variables outside of quotes split the word where their value has blanks. */
export type Piece =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'variable'; readonly name: string; readonly isQuoted: boolean };

export interface Word {
  readonly pieces: readonly Piece[];
}

export type Statement =
  | { readonly kind: 'command'; readonly words: readonly Word[]; readonly block: readonly Statement[] | undefined }
  | { readonly kind: 'if'; readonly branches: readonly Branch[] };

/** `else` has no condition. */
export interface Branch {
  readonly condition: readonly Statement[] | undefined;
  readonly body: readonly Statement[];
}

type Token = { readonly kind: 'word'; readonly word: Word } | { readonly kind: 'end' | '{' | '}' };

const DEPTH_MAX = 32;

/** @throws BootDiskError for text that is no such script */
export function parseGrubScript(text: string): Statement[] {
  return new Parser(tokenize(text)).parse();
}

function tokenize(text: string): Token[] {
  const tokens: Token[] = [];
  let pieces: Piece[] = [];
  let isWord = false;
  let at = 0;
  const addText = (part: string): void => {
    isWord = true;
    const last = pieces.at(-1);
    if (last?.kind === 'text') pieces[pieces.length - 1] = { kind: 'text', text: last.text + part };
    else pieces.push({ kind: 'text', text: part });
  };
  const addVariable = (isQuoted: boolean): void => {
    // Behind the dollar sign: a name, or one in braces.
    const match = /\$(?:\{([^}\n]*)\}|([A-Za-z_][A-Za-z0-9_]*|[0-9?#@*]))/y;
    match.lastIndex = at;
    const found = match.exec(text);
    if (found === null) {
      addText('$');
      at++;
      return;
    }
    isWord = true;
    pieces.push({ kind: 'variable', name: found[1] ?? found[2] ?? '', isQuoted });
    at += found[0].length;
  };
  const endWord = (): void => {
    if (!isWord) return;
    const only = pieces.length === 1 && pieces[0]!.kind === 'text' ? pieces[0]!.text : undefined;
    if (only === '{' || only === '}') tokens.push({ kind: only });
    else tokens.push({ kind: 'word', word: { pieces } });
    pieces = [];
    isWord = false;
  };
  while (at < text.length) {
    const char = text[at]!;
    if (char === '#' && !isWord) {
      const end = text.indexOf('\n', at);
      at = end < 0 ? text.length : end;
    } else if (char === '\n' || char === ';') {
      endWord();
      tokens.push({ kind: 'end' });
      at++;
    } else if (char === ' ' || char === '\t' || char === '\r') {
      endWord();
      at++;
    } else if (char === "'") {
      const end = text.indexOf("'", at + 1);
      addText(text.slice(at + 1, end < 0 ? text.length : end));
      at = end < 0 ? text.length : end + 1;
    } else if (char === '"') {
      addText('');
      for (at++; at < text.length && text[at] !== '"'; ) {
        if (text[at] === '\\' && '"\\$\n'.includes(text[at + 1] ?? '-')) {
          if (text[at + 1] !== '\n') addText(text[at + 1]!);
          at += 2;
        } else if (text[at] === '$') addVariable(true);
        else addText(text[at++]!);
      }
      at++;
    } else if (char === '\\') {
      if (text[at + 1] !== '\n') addText(text[at + 1] ?? '');
      at += 2;
    } else if (char === '$') addVariable(false);
    else {
      addText(char);
      at++;
    }
  }
  endWord();
  tokens.push({ kind: 'end' });
  return tokens;
}

/** The text of a word without variables. */
function plain(token: Token | undefined): string | undefined {
  if (token?.kind !== 'word') return undefined;
  const { pieces } = token.word;
  return pieces.length === 1 && pieces[0]!.kind === 'text' ? pieces[0]!.text : undefined;
}

class Parser {
  readonly #tokens: readonly Token[];
  #at = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  parse(): Statement[] {
    const statements: Statement[] = [];
    while (this.#at < this.#tokens.length) {
      statements.push(...this.#statements([], 0));
      // A brace or keyword that closes nothing.
      this.#at++;
    }
    return statements;
  }

  /** Statements up to a word of `until`, or a closing brace, which is left. */
  #statements(until: readonly string[], depth: number): Statement[] {
    if (depth > DEPTH_MAX) throw new BootDiskError(`grub.cfg: nested deeper than ${DEPTH_MAX}`);
    const statements: Statement[] = [];
    for (;;) {
      const token = this.#tokens[this.#at];
      if (token === undefined || token.kind === '}') return statements;
      if (token.kind === 'end') {
        this.#at++;
        continue;
      }
      const word = plain(token);
      if (word !== undefined && until.includes(word)) return statements;
      if (word === 'if') statements.push(this.#if(depth));
      else if (word === 'function') this.#function(depth);
      else if (word === 'for' || word === 'while' || word === 'until') this.#loop(depth);
      else if (token.kind === '{') {
        this.#at++;
        statements.push(...this.#statements([], depth + 1));
        this.#at++;
      } else statements.push(this.#command(depth));
    }
  }

  #if(depth: number): Statement {
    const branches: Branch[] = [];
    let keyword: string | undefined = 'if';
    while (keyword === 'if' || keyword === 'elif') {
      this.#at++;
      const condition = this.#statements(['then', 'fi'], depth + 1);
      this.#at++;
      const body = this.#statements(['elif', 'else', 'fi'], depth + 1);
      branches.push({ condition, body });
      keyword = plain(this.#tokens[this.#at]);
    }
    if (keyword === 'else') {
      this.#at++;
      branches.push({ condition: undefined, body: this.#statements(['fi'], depth + 1) });
    }
    if (plain(this.#tokens[this.#at]) === 'fi') this.#at++;
    return { kind: 'if', branches };
  }

  #function(depth: number): void {
    while (this.#at < this.#tokens.length && this.#tokens[this.#at]!.kind !== '{') this.#at++;
    this.#at++;
    this.#statements([], depth + 1);
    this.#at++;
  }

  #loop(depth: number): void {
    this.#at++;
    this.#statements(['done'], depth + 1);
    this.#at++;
  }

  #command(depth: number): Statement {
    const words: Word[] = [];
    let block: Statement[] | undefined;
    for (; this.#at < this.#tokens.length; this.#at++) {
      const token = this.#tokens[this.#at]!;
      if (token.kind === 'word') words.push(token.word);
      else if (token.kind === '{') {
        this.#at++;
        block = this.#statements([], depth + 1);
        // At the closing brace, which the loop passes.
      } else break;
    }
    return { kind: 'command', words, block };
  }
}
