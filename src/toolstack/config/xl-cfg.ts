/**
 * xl.cfg syntax: text to settings. What the settings mean is domain-config.ts's subject.
 *
 *   file       = { [ assignment ] end } [ assignment ]
 *   assignment = name ( "=" | "+=" ) value
 *   end        = newline | ";"
 *   value      = string | number | "[" { newline } [ value { newline } { "," { newline } value { newline } } [ "," ] ] "]"
 *
 * A name is `[a-z][._0-9a-z]*`, a number `[0-9][0-9a-fx]*`, a string is quoted by ' or " and ends on its line. A number is kept
 * as the text it is; `XlConfig.getLong` reads it the way strtol(3) does with base 0, from a quoted string too. Of two
 * settings with one name the last counts; `+=` joins strings and lists to the one before.
 *
 * Error texts, their order, and what is still read after an error are libxlu's (they were compared on random input with
 * libxlu's own parser, compiled). That parser is LALR(1), which shows in three places here: after a complete assignment
 * anything but a separator ends the parse ("expecting $end"); other errors skip to the next newline; and an error is told only
 * when three tokens were accepted since the last one.
 *
 * Deviations from libxlu:
 * - A comment may end at the end of the file; libxlu wants a newline and calls it a lexical error otherwise.
 * - An unexpected newline is reported with the line that it ends; libxlu prints the line before.
 * - Lists nest at most 1000 deep.
 * - A NUL byte is a lexical error; libxlu fails an assertion when it stands in a string.
 * Faithfully kept: in strings `\x..` is always refused, and `\1`..`\377` vanish (libxlu reads them, in base 10, and stores nothing).
 *
 * Source: xl.cfg(5), "SYNTAX DETAILS"; tools/libs/util/libxlu_cfg*.{l,y,c} of Xen 4.17 (read for behaviour).
 */

/** The config cannot be used. `message` is what xl prints, one or more lines without a final newline. xl exits with 1. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

export interface StringValue {
  readonly kind: 'string';
  readonly text: string;
}
export interface ListValue {
  readonly kind: 'list';
  readonly items: readonly ConfigValue[];
}
export type ConfigValue = StringValue | ListValue;

export interface Setting {
  readonly name: string;
  readonly value: ConfigValue;
  /** Line of the value, from 1. */
  readonly line: number;
  /** Written with `+=`. */
  readonly added: boolean;
}

const LONG_MIN = -(1n << 63n);
const LONG_MAX = (1n << 63n) - 1n;
const LIST_DEPTH_MAX = 1000;

/** Tokens are named as bison names them in its messages. */
type TokenKind = '$end' | 'IDENT' | 'STRING' | 'NUMBER' | 'NEWLINE' | '+=' | "'='" | "';'" | "'['" | "']'" | "','";

const PUNCTUATION: Readonly<Record<string, TokenKind>> = { ',': "','", '[': "'['", ']': "']'", '=': "'='", ';': "';'" };

/** Starts the parse again after the next newline. */
class Skip extends Error {}
/** Ends the parse. */
class Stop extends Error {}

class Parser {
  readonly settings = new Map<string, Setting>();
  readonly #source: string;
  readonly #text: string;
  /** Lines of error so far. */
  readonly #errors: string[] = [];
  #at = 0;
  #line = 1;
  /** The current token: its kind, its line, what it looks like, and for names and values what it says. */
  #kind: TokenKind = '$end';
  #tokenLine = 1;
  #tokenText = '';
  #tokenValue = '';
  /** A token is scanned only when it is asked for: errors of the grammar and of the scanner keep libxlu's order. */
  #ahead = false;
  #scannerErrorLine = -1;
  #likelyPython = false;
  /** Tokens that must be accepted until a syntax error is told again. */
  #muted = 0;

  constructor(source: string, text: string) {
    this.#source = source;
    this.#text = text;
  }

  parse(): Map<string, Setting> {
    try {
      let more = true;
      while (more) more = this.#statementOrSkip();
    } catch (stop) {
      if (!(stop instanceof Stop)) throw stop;
    }
    if (this.#errors.length > 0) {
      if (this.#likelyPython) {
        this.#errors.push(
          'warning: Config file looks like it contains Python code.',
          'warning:  Arbitrary Python is no longer supported.',
          'warning:  See https://wiki.xen.org/wiki/PythonInXlConfig',
        );
      }
      this.#errors.push('Failed to parse config: Invalid argument');
      throw new ConfigError(this.#errors.join('\n'));
    }
    return this.settings;
  }

  #statementOrSkip(): boolean {
    try {
      return this.#statement();
    } catch (skip) {
      if (!(skip instanceof Skip)) throw skip;
      for (;;) {
        const kind = this.#peek();
        if (kind === '$end') return false;
        this.#ahead = false;
        if (kind !== 'NEWLINE') continue;
        this.#muted = 2;
        return true;
      }
    }
  }

  /** Returns false at the end of the text. */
  #statement(): boolean {
    const kind = this.#peek();
    if (kind === '$end') return false;
    if (kind === 'NEWLINE' || kind === "';'") {
      this.#accept();
      return true;
    }
    if (kind !== 'IDENT') this.#syntaxError("$end or IDENT or NEWLINE or ';'");
    const name = this.#tokenValue;
    this.#accept();

    const operator = this.#peek();
    if (operator !== "'='" && operator !== '+=') this.#syntaxError("+= or '='");
    this.#accept();

    const first = this.#peek();
    if (first !== 'STRING' && first !== 'NUMBER' && first !== "'['") this.#syntaxError("STRING or NUMBER or '['");
    const line = this.#tokenLine;
    this.#store(name, this.#value(0), line, operator === '+=');

    const end = this.#peek();
    if (end === 'NEWLINE' || end === "';'") {
      this.#accept();
      return true;
    }
    if (end === '$end') return false;
    if (this.#muted === 0) this.#report(this.#tokenLine, `syntax error, unexpected ${end}, expecting $end`);
    throw new Stop();
  }

  /** The current token starts a value. */
  #value(depth: number): ConfigValue {
    if (this.#peek() !== "'['") {
      const text = this.#tokenValue;
      this.#accept();
      return { kind: 'string', text };
    }
    if (depth === LIST_DEPTH_MAX) {
      this.#report(this.#tokenLine, `lists are nested deeper than ${LIST_DEPTH_MAX}`);
      throw new Stop();
    }
    this.#accept();
    this.#newlines();
    const items: ConfigValue[] = [];
    let comma = true;
    while (comma) {
      const kind = this.#peek();
      if (kind !== 'STRING' && kind !== 'NUMBER' && kind !== "'['") break;
      items.push(this.#value(depth + 1));
      this.#newlines();
      comma = this.#peek() === "','";
      if (comma) {
        this.#accept();
        this.#newlines();
      }
    }
    if (this.#peek() !== "']'") this.#syntaxError("']'");
    this.#accept();
    return { kind: 'list', items };
  }

  #newlines(): void {
    while (this.#peek() === 'NEWLINE') this.#accept();
  }

  #store(name: string, value: ConfigValue, line: number, added: boolean): void {
    if (this.#errors.length > 0) return;
    const before = added ? this.settings.get(name)?.value : undefined;
    if (before === undefined) {
      this.settings.set(name, { name, value, line, added });
    } else if (before.kind === 'string' && value.kind === 'string') {
      this.settings.set(name, { name, value: { kind: 'string', text: before.text + value.text }, line, added });
    } else if (before.kind === 'list' && value.kind === 'list') {
      // The list before is reached by nobody else.
      const items = before.items as ConfigValue[];
      for (const item of value.items) items.push(item);
      this.settings.set(name, { name, value: before, line, added });
    } else {
      this.#scannerError('can\'t add [list] to "string" or vice versa');
    }
  }

  #accept(): void {
    this.#ahead = false;
    if (this.#muted > 0) this.#muted--;
  }

  #peek(): TokenKind {
    if (!this.#ahead) {
      this.#kind = this.#scan();
      this.#ahead = true;
    }
    return this.#kind;
  }

  #scan(): TokenKind {
    const text = this.#text;
    for (;;) {
      while (text[this.#at] === ' ' || text[this.#at] === '\t') this.#at++;
      const start = this.#at;
      if (start >= text.length) {
        // libxlu shows the NUL behind its buffer, and keeps the line of the token before.
        this.#tokenText = '\0';
        return '$end';
      }
      const char = text[start];
      if (char === '\n' || char === '#') {
        const newline = text.indexOf('\n', start);
        this.#at = newline < 0 ? text.length : newline + 1;
        if (newline < 0) continue;
        this.#tokenText = text.slice(start, this.#at);
        this.#tokenLine = this.#line++;
        return 'NEWLINE';
      }
      if (char >= 'a' && char <= 'z') return this.#word('IDENT', /[._0-9a-z]*/y);
      if (char >= '0' && char <= '9') return this.#word('NUMBER', /[0-9a-fx]*/y);
      if (char === '"' || char === "'") {
        const end = stringEnd(text, start);
        if (end > 0) {
          this.#token(start, end);
          this.#tokenValue = this.#unquote(this.#tokenText);
          return 'STRING';
        }
      }
      if (char === '+' && text[start + 1] === '=') {
        this.#token(start, start + 2);
        return '+=';
      }
      const punctuation = PUNCTUATION[char];
      if (punctuation !== undefined) {
        this.#token(start, start + 1);
        return punctuation;
      }
      if ('+-.():'.includes(char)) this.#likelyPython = true;
      // What follows up to white space belongs to the error; a newline right behind a single byte is eaten and returned with it.
      this.#at = start + 1 + matchLength(/[^ \t\n]*/y, text, start + 1);
      if (this.#at === start + 1 && char < '\x80' && text[this.#at] === '\n') {
        this.#at++;
        this.#tokenText = text.slice(start, this.#at);
        this.#tokenLine = ++this.#line;
        this.#scannerError('lexical error');
        return 'NEWLINE';
      }
      this.#tokenText = text.slice(start, this.#at);
      this.#scannerError('lexical error');
    }
  }

  #word(kind: 'IDENT' | 'NUMBER', rest: RegExp): TokenKind {
    this.#token(this.#at, this.#at + 1 + matchLength(rest, this.#text, this.#at + 1));
    this.#tokenValue = this.#tokenText;
    return kind;
  }

  #token(start: number, end: number): void {
    this.#tokenText = this.#text.slice(start, end);
    this.#tokenLine = this.#line;
    this.#at = end;
  }

  #unquote(quoted: string): string {
    if (this.#errors.length > 0) return '';
    const body = quoted.slice(1, -1);
    let text = '';
    for (let i = 0; i < body.length; i++) {
      if (body[i] !== '\\') {
        text += body[i];
        continue;
      }
      const letter = body[++i];
      const plain = ESCAPES[letter];
      if (plain !== undefined) {
        text += plain;
      } else if (letter === 'x') {
        this.#scannerError('invalid digit after backslash hexnumerical character escape in quoted string');
        return '';
      } else if (letter >= '0' && letter <= '7') {
        const digits = matchLength(/[0-9]{0,3}/y, body, i + 1);
        if (digits < 2) {
          this.#scannerError('invalid digit after backslash octalnumerical character escape in quoted string');
          return '';
        }
        i += digits;
      } else {
        this.#scannerError('invalid character after backlash in quoted string');
        return '';
      }
    }
    return text;
  }

  #syntaxError(expected: string): never {
    if (this.#muted === 0)
      this.#report(this.#tokenLine, `syntax error, unexpected ${this.#kind}, expecting ${expected}`);
    throw new Skip();
  }

  #scannerError(message: string): void {
    this.#report(this.#line, message);
    this.#scannerErrorLine = this.#line;
  }

  /** One message for a line that the scanner has complained about is enough. */
  #report(line: number, message: string): void {
    if (line <= this.#scannerErrorLine) return;
    let near = this.#tokenText;
    if (near.endsWith('\n')) {
      near = near.slice(0, -1);
      // The newline that ended a scanner's error has been counted already.
      if (this.#tokenLine === this.#line) line--;
    }
    near = near === '' ? '<newline>' : `\`${near.replace(/[ \t]*$/, '').replace(/\0.*$/s, '')}'`;
    this.#errors.push(`${this.#source}:${line}: config parsing error near ${near}: ${message}`);
  }
}

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
};

/** Where the string that starts at `start` has ended, or 0 when its line ends first. A loop: a long text overflows a pattern's stack. */
function stringEnd(text: string, start: number): number {
  for (let at = start + 1; at < text.length; at++) {
    let char = text[at];
    if (char === text[start]) return at + 1;
    if (char === '\\') char = text[++at];
    if (char === '\n' || char === '\0') return 0;
  }
  return 0;
}

/** Length of what the sticky `pattern` matches at `start`, 0 where it does not. */
function matchLength(pattern: RegExp, text: string, start: number): number {
  pattern.lastIndex = start;
  return pattern.exec(text)?.[0].length ?? 0;
}

/**
 * Settings by name, with xlu_cfg_get_*'s checks. Getters return `undefined` for a name that is not set, and for one of the
 * wrong type after a line of warning.
 */
export class XlConfig {
  /** File name as messages show it. */
  readonly source: string;
  readonly settings: ReadonlyMap<string, Setting>;
  readonly #warn: (line: string) => void;

  constructor(source: string, settings: ReadonlyMap<string, Setting>, warn: (line: string) => void) {
    this.source = source;
    this.settings = settings;
    this.#warn = warn;
  }

  /** Warns as xl does about a line of the config. */
  warnAt(setting: Setting, message: string): void {
    this.#warn(`${this.source}:${setting.line}: warning: ${message}`);
  }

  getString(name: string): string | undefined {
    const setting = this.settings.get(name);
    if (setting === undefined) return undefined;
    if (setting.value.kind === 'string') return setting.value.text;
    this.warnAt(setting, `parameter \`${name}' is a list but should be a single value`);
    return undefined;
  }

  /** A whole number from -2^63 to 2^63-1. */
  getLong(name: string): bigint | undefined {
    const text = this.getString(name);
    if (text === undefined) return undefined;
    const setting = this.settings.get(name)!;
    if (setting.added) {
      this.warnAt(setting, `can't use += with numbers for parameter \`${name}'`);
      return undefined;
    }
    const parsed = parseLong(text);
    if (parsed === 'range') {
      this.warnAt(setting, `parameter \`${name}' could not be parsed as a number: Numerical result out of range`);
      return undefined;
    }
    if (parsed === 'invalid') {
      this.warnAt(setting, `parameter \`${name}' is not a valid number`);
      return undefined;
    }
    return parsed;
  }

  getList(name: string): readonly ConfigValue[] | undefined {
    const setting = this.settings.get(name);
    if (setting === undefined) return undefined;
    if (setting.value.kind === 'list') return setting.value.items;
    this.warnAt(setting, `parameter \`${name}' is a single value but should be a list`);
    return undefined;
  }
}

/** strtol(text, &end, 0) with nothing left behind the number. 'range' wins over what follows, as errno is looked at first. */
function parseLong(text: string): bigint | 'invalid' | 'range' {
  const match = /^[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)/.exec(text);
  if (match === null) return 'invalid';
  const [whole, sign, digits] = match;
  const octal = /^0[0-7]/.test(digits);
  const magnitude = BigInt(octal ? `0o${digits}` : digits);
  const value = sign === '-' ? -magnitude : magnitude;
  if (value < LONG_MIN || value > LONG_MAX) return 'range';
  return whole.length === text.length ? value : 'invalid';
}

/**
 * Parses the text of a config file. `source` names it in messages; `warn` gets one line at a time, from the getters only.
 * Throws ConfigError, with all syntax errors, and nothing else.
 */
export function parseXlConfig(source: string, text: string, warn: (line: string) => void): XlConfig {
  return new XlConfig(source, new Parser(source, text).parse(), warn);
}

/** Words that were appended before, as `appendOverrides` puts them: none goes over several lines. */
const APPENDED = /(?<!\\)\n((?:[a-z]\w*=[^\n]*\n)+)\n$/;

/**
 * Config data with the command line's `key=value` words behind it, each a line, as xl joins them. Words that were appended before and mean nothing any more, because
 * one of these sets the same, are left out: what is saved and restored again and again does not grow.
 */
export function appendOverrides(text: string, overrides: readonly string[]): string {
  if (overrides.length === 0) return text;
  const keyOf = (word: string): string => word.slice(0, word.indexOf('=')).trim();
  const keys = new Set(overrides.map(keyOf));
  let before = text;
  let kept: string[] = [];
  for (let found = APPENDED.exec(before); found !== null; found = APPENDED.exec(before)) {
    before = before.slice(0, found.index);
    kept = [...found[1].split('\n').filter((word) => word !== '' && !keys.has(keyOf(word))), ...kept];
  }
  // Those of the text itself stay as they are, where nothing was left out.
  return `${before}\n${[...kept, ...overrides].map((word) => `${word}\n`).join('')}\n`;
}
