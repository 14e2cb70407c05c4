/** The last lines of a guest's console, for the log of a crash. */

const BYTES_MAX = 16384;
const LINES_MAX = 100;

export class ConsoleTail {
  #text = '';
  readonly #decoder = new TextDecoder('utf-8', { fatal: false });

  add(bytes: Uint8Array): void {
    this.#text = (this.#text + this.#decoder.decode(bytes, { stream: true })).slice(-BYTES_MAX);
  }

  /** The last lines, without control characters. */
  lines(): string[] {
    return this.#text
      .split('\n')
      .map((line) => Array.from(line, (char) => (char < ' ' || char === '\x7f' ? '' : char)).join(''))
      .filter((line) => line !== '')
      .slice(-LINES_MAX);
  }
}
