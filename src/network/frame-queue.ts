/**
 * Frames that wait for room at a port, copied, in order: a ring of bytes of a fixed size, so that no sender can make it grow.
 * An entry is its length and offloads (12 bytes), then the frame, contiguous and aligned to 4.
 */

import { Frame } from './frame.ts';

const ENTRY_HEADER = 12;
/** In the place of a length: the rest of the ring up to its end is empty. */
const WRAP = 0xffffffff;

export class FrameQueue {
  readonly #bytes: Uint8Array;
  readonly #words: Uint32Array;
  readonly #out = new Frame();
  #head = 0;
  #tail = 0;
  #used = 0;
  frames = 0;

  /** `capacity` in bytes, a multiple of 4. */
  constructor(capacity: number) {
    this.#bytes = new Uint8Array(capacity);
    this.#words = new Uint32Array(this.#bytes.buffer);
  }

  /** False: it does not fit. */
  push(frame: Frame): boolean {
    const size = this.#bytes.length;
    const need = (ENTRY_HEADER + frame.length + 3) & ~3;
    const toEnd = size - this.#tail;
    const skip = toEnd < need ? toEnd : 0;
    if (this.#used + skip + need > size) return false;
    if (skip > 0) {
      this.#words[this.#tail >> 2] = WRAP;
      this.#used += skip;
      this.#tail = 0;
    }
    const at = this.#tail;
    const w = at >> 2;
    this.#words[w] = frame.length;
    this.#words[w + 1] = frame.checksum | (frame.gsoType << 8);
    this.#words[w + 2] = frame.gsoSize;
    frame.copyTo(this.#bytes, at + ENTRY_HEADER);
    this.#used += need;
    this.#tail = at + need === size ? 0 : at + need;
    this.frames++;
    return true;
  }

  /** The oldest frame, or null; it stays until `shift`, which takes away what `peek` has shown. */
  peek(): Frame | null {
    if (this.frames === 0) return null;
    if (this.#words[this.#head >> 2] === WRAP) {
      this.#used -= this.#bytes.length - this.#head;
      this.#head = 0;
    }
    const at = this.#head;
    const w = at >> 2;
    const start = at + ENTRY_HEADER;
    const length = this.#words[w];
    const out = this.#out.set(this.#bytes.subarray(start, start + length), length);
    out.checksum = this.#words[w + 1] & 0xff;
    out.gsoType = this.#words[w + 1] >>> 8;
    out.gsoSize = this.#words[w + 2];
    return out;
  }

  /** Takes away the frame that `peek` has shown. */
  shift(): void {
    const need = (ENTRY_HEADER + this.#words[this.#head >> 2] + 3) & ~3;
    this.#used -= need;
    this.#head = this.#head + need === this.#bytes.length ? 0 : this.#head + need;
    this.frames--;
    if (this.frames === 0) {
      this.#head = 0;
      this.#tail = 0;
      this.#used = 0;
    }
  }
}
