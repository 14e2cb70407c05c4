/**
 * The backend of a console ring: takes what the guest wrote to the ring in the console page, and puts in what somebody typed.
 * Indices run freely mod 2^32 and are the guest's to spoil: what lies outside the ring's size is dropped.
 * Source: xen/include/public/io/console.h.
 */

import { XENCONS, XENCONS_IN_SIZE, XENCONS_OUT_SIZE } from '../abi/io/console.ts';

export interface ConsoleBackendOptions {
  /** The console page: 4096 bytes of machine memory, shared with the guest. */
  readonly page: Uint8Array;
  /** Sends the guest the console's event. */
  readonly notify: () => void;
  /** Gets the guest's output; the bytes are its own. */
  readonly output: (bytes: Uint8Array) => void;
  /** False: output stays in the ring for now. Whoever says so calls `service` when there is room again. */
  readonly hasRoom?: () => boolean;
}

/** Typed bytes that wait for the guest; beyond this they are dropped. */
const INPUT_MAX = 1 << 20;
/** Rings of output taken in one call, so that a guest that never stops writing leaves room for others. */
const PASSES_PER_CALL = 16;

export class ConsoleBackend {
  readonly #page: Uint8Array;
  readonly #words: Int32Array;
  readonly #notify: () => void;
  readonly #output: (bytes: Uint8Array) => void;
  readonly #hasRoom: () => boolean;
  #input: Uint8Array[] = [];
  #inputBytes = 0;
  #isHeld = false;

  constructor(options: ConsoleBackendOptions) {
    this.#page = options.page;
    this.#words = new Int32Array(options.page.buffer, options.page.byteOffset, 1024);
    this.#notify = options.notify;
    this.#output = options.output;
    this.#hasRoom = options.hasRoom ?? (() => true);
    this.#page[XENCONS.connection] = 0;
  }

  /**
   * Called on the guest's event: takes its output, and gives it input that waited for room. True: the guest still writes; call
   * again in a later turn.
   */
  service(): boolean {
    if (this.#isHeld) return false;
    const words = this.#words;
    let cons = words[XENCONS.out_cons >> 2];
    let took = false;
    let passes = 0;
    for (; passes < PASSES_PER_CALL && this.#hasRoom(); passes++) {
      const prod = Atomics.load(words, XENCONS.out_prod >> 2);
      const length = (prod - cons) >>> 0;
      if (length === 0) break;
      if (length > XENCONS_OUT_SIZE) {
        cons = prod;
        Atomics.store(words, XENCONS.out_cons >> 2, cons);
        break;
      }
      const bytes = new Uint8Array(length);
      for (let i = 0; i < length; i++) bytes[i] = this.#page[XENCONS.out + ((cons + i) & (XENCONS_OUT_SIZE - 1))];
      cons = (cons + length) | 0;
      Atomics.store(words, XENCONS.out_cons >> 2, cons);
      took = true;
      this.#output(bytes);
    }
    if (took) this.#notify();
    this.#feed();
    return passes === PASSES_PER_CALL;
  }

  /** Typed bytes that the guest has had no room for. */
  get inputBytes(): number {
    return this.#inputBytes;
  }

  /** From here on the page is not touched, until `release`. */
  hold(): void {
    this.#isHeld = true;
  }

  release(): void {
    this.#isHeld = false;
    this.#feed();
  }

  /** What somebody typed. */
  input(bytes: Uint8Array): void {
    if (this.#inputBytes + bytes.length > INPUT_MAX) return;
    this.#input.push(bytes.slice());
    this.#inputBytes += bytes.length;
    this.#feed();
  }

  #feed(): void {
    if (this.#inputBytes === 0 || this.#isHeld) return;
    const words = this.#words;
    let prod = words[XENCONS.in_prod >> 2];
    let wrote = false;
    while (this.#input.length > 0) {
      const used = (prod - Atomics.load(words, XENCONS.in_cons >> 2)) >>> 0;
      if (used >= XENCONS_IN_SIZE) break;
      const chunk = this.#input[0];
      const n = Math.min(chunk.length, XENCONS_IN_SIZE - used);
      for (let i = 0; i < n; i++) this.#page[XENCONS.in + ((prod + i) & (XENCONS_IN_SIZE - 1))] = chunk[i];
      prod = (prod + n) | 0;
      Atomics.store(words, XENCONS.in_prod >> 2, prod);
      wrote = true;
      this.#inputBytes -= n;
      if (n === chunk.length) this.#input.shift();
      else this.#input[0] = chunk.subarray(n);
    }
    if (wrote) this.#notify();
  }
}
