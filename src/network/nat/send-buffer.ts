/**
 * Bytes on their way to the guest, kept until it has acknowledged them: a ring that doubles, within limits, when it is full.
 * Position 0 is the oldest byte kept.
 */

import { copyBytes } from '../frame.ts';

const FIRST_BYTES = 1 << 16;
/** A power of two times FIRST_BYTES: more than a fast guest has in flight. */
export const SEND_BUFFER_MAX = 1 << 20;

/** A stream of the host hands over at most this much at a time. */
export const SEND_ROOM_BYTES = 1 << 16;

/** What all buffers together may take. */
export class BufferBudget {
  left: number;

  constructor(bytes: number) {
    this.left = bytes;
  }
}

export class SendBuffer {
  bytes = new Uint8Array(0);
  /** Where position 0 lies in `bytes`. */
  #start = 0;
  length = 0;
  readonly #budget: BufferBudget;

  constructor(budget: BufferBudget) {
    this.#budget = budget;
  }

  /** Makes room for `count` more bytes if the limits allow; the first 64 KiB are always allowed. */
  reserve(count: number): boolean {
    const need = this.length + count;
    let size = Math.max(FIRST_BYTES, this.bytes.length);
    while (size < need && size < SEND_BUFFER_MAX) size *= 2;
    if (size < need) return false;
    if (size > this.bytes.length) {
      const more = size - this.bytes.length;
      if (size > FIRST_BYTES && more > this.#budget.left) return false;
      this.#budget.left -= more;
      const grown = new Uint8Array(size);
      const first = Math.min(this.length, this.bytes.length - this.#start);
      grown.set(this.bytes.subarray(this.#start, this.#start + first));
      grown.set(this.bytes.subarray(0, this.length - first), first);
      this.bytes = grown;
      this.#start = 0;
    }
    return true;
  }

  /** Adds bytes for which there is room. */
  push(source: Uint8Array): void {
    const mask = this.bytes.length - 1;
    const at = (this.#start + this.length) & mask;
    const first = Math.min(source.length, this.bytes.length - at);
    copyBytes(source, 0, this.bytes, at, first);
    if (first < source.length) copyBytes(source, first, this.bytes, 0, source.length - first);
    this.length += source.length;
  }

  /** Where the byte at a position lies in `bytes`. */
  index(position: number): number {
    return (this.#start + position) & (this.bytes.length - 1);
  }

  /** How many bytes from a position on lie in one piece. */
  contiguous(position: number): number {
    return Math.min(this.length - position, this.bytes.length - this.index(position));
  }

  /** Forgets the first `count` bytes. */
  consume(count: number): void {
    this.#start = this.length === count ? 0 : this.index(count);
    this.length -= count;
  }

  release(): void {
    this.#budget.left += this.bytes.length;
    this.bytes = new Uint8Array(0);
    this.#start = 0;
    this.length = 0;
  }
}
