/**
 * Frames over a stream of bytes, in one of two forms:
 *
 *   domus   length (4 bytes, little-endian), checksum (1), GSO type (1), GSO size (2), frame. Between Domus's processes.
 *   qemu    length (4 bytes, big-endian), frame. As passt(1) and QEMU's `-netdev stream` speak it; it knows no offloads, but
 *           passt takes large TCP segments as they are and looks at no checksum of them.
 */

import { CHECKSUM_VALID, ETHERNET_HEADER_BYTES, FRAME_BYTES_MAX, Frame, GSO_NONE, GSO_TCPV6 } from './frame.ts';

export interface FrameForm {
  readonly headerBytes: number;
  write(frame: Frame, to: Uint8Array, at: number): void;
  /** Sets the frame's offloads; its length. */
  read(from: Uint8Array, at: number, frame: Frame): number;
}

export const DOMUS_FORM: FrameForm = {
  headerBytes: 8,
  write(frame, to, at) {
    const length = frame.length;
    to[at] = length;
    to[at + 1] = length >>> 8;
    to[at + 2] = length >>> 16;
    to[at + 3] = 0;
    to[at + 4] = frame.checksum;
    to[at + 5] = frame.gsoType;
    to[at + 6] = frame.gsoSize;
    to[at + 7] = frame.gsoSize >>> 8;
  },
  read(from, at, frame) {
    frame.checksum = Math.min(from[at + 4], CHECKSUM_VALID);
    frame.gsoType = from[at + 5] <= GSO_TCPV6 ? from[at + 5] : GSO_NONE;
    frame.gsoSize = from[at + 6] | (from[at + 7] << 8);
    if (frame.gsoSize === 0) frame.gsoType = GSO_NONE;
    return (from[at] | (from[at + 1] << 8) | (from[at + 2] << 16) | (from[at + 3] << 24)) >>> 0;
  },
};

export const QEMU_FORM: FrameForm = {
  headerBytes: 4,
  write(frame, to, at) {
    const length = frame.length;
    to[at] = 0;
    to[at + 1] = length >>> 16;
    to[at + 2] = length >>> 8;
    to[at + 3] = length;
  },
  read: (from, at) => ((from[at] << 24) | (from[at + 1] << 16) | (from[at + 2] << 8) | from[at + 3]) >>> 0,
};

const CHUNK_BYTES = 1 << 17;
const SPARE_MAX = 8;
/** Written but not yet taken by the other side's socket: beyond this there is no room. */
const BACKLOG_MAX = 1 << 20;

export class FrameWriter {
  readonly #form: FrameForm;
  readonly #write: (bytes: Uint8Array, done: () => void) => void;
  readonly #room: () => void;
  readonly #spare: Uint8Array[] = [];
  #chunk: Uint8Array | null = null;
  #used = 0;
  #backlog = 0;
  #refused = false;

  /** `write` sends bytes and calls back when they are gone; `room` is called when a frame that was refused may be tried again. */
  constructor(form: FrameForm, write: (bytes: Uint8Array, done: () => void) => void, room: () => void) {
    this.#form = form;
    this.#write = write;
    this.#room = room;
  }

  /** False: too much waits already. */
  send(frame: Frame): boolean {
    const { headerBytes } = this.#form;
    const length = frame.length;
    if (length < ETHERNET_HEADER_BYTES || length > FRAME_BYTES_MAX) return true;
    if (this.#backlog > BACKLOG_MAX) {
      this.#refused = true;
      return false;
    }
    if (this.#chunk !== null && this.#used + headerBytes + length > CHUNK_BYTES) this.flush();
    this.#chunk ??= this.#spare.pop() ?? new Uint8Array(CHUNK_BYTES);
    this.#form.write(frame, this.#chunk, this.#used);
    frame.copyTo(this.#chunk, this.#used + headerBytes);
    this.#used += headerBytes + length;
    return true;
  }

  flush(): void {
    const chunk = this.#chunk;
    if (chunk === null) return;
    const count = this.#used;
    this.#chunk = null;
    this.#used = 0;
    this.#backlog += count;
    this.#write(chunk.subarray(0, count), () => {
      this.#backlog -= count;
      if (this.#spare.length < SPARE_MAX) this.#spare.push(chunk);
      if (this.#refused && this.#backlog <= BACKLOG_MAX / 2) {
        this.#refused = false;
        this.#room();
      }
    });
  }
}

export class FrameReader {
  readonly #form: FrameForm;
  readonly #take: (frame: Frame) => boolean;
  readonly #frame = new Frame();
  /** The beginning of a frame whose end has not come. */
  readonly #partial: Uint8Array;
  #partialBytes = 0;
  #rest: Uint8Array | null = null;

  /** `take` answers false when it has no room; then `resume` is wanted. */
  constructor(form: FrameForm, take: (frame: Frame) => boolean) {
    this.#form = form;
    this.#take = take;
    this.#partial = new Uint8Array(form.headerBytes + FRAME_BYTES_MAX);
  }

  /** True: a frame waits, and no more bytes may come before `resume` says otherwise. */
  get isStalled(): boolean {
    return this.#rest !== null;
  }

  /** Bytes that came, borrowed for the call. False: this is no stream of frames. */
  push(bytes: Uint8Array): boolean {
    return this.#read(bytes, true);
  }

  #read(bytes: Uint8Array, isBorrowed: boolean): boolean {
    const { headerBytes } = this.#form;
    let at = 0;
    while (at < bytes.length) {
      let from = bytes;
      let start = at;
      let next = at;
      if (this.#partialBytes > 0 || bytes.length - at < headerBytes) {
        next = this.#collect(bytes, at, headerBytes);
        if (this.#partialBytes < headerBytes) return true;
        from = this.#partial;
        start = 0;
      }
      const frame = this.#frame.set(from, 0);
      const length = this.#form.read(from, start, frame);
      if (length < ETHERNET_HEADER_BYTES || length > FRAME_BYTES_MAX) return false;
      const total = headerBytes + length;
      if (from === this.#partial || bytes.length - at < total) {
        next = this.#collect(bytes, next, total);
        if (this.#partialBytes < total) return true;
        from = this.#partial;
        start = 0;
      } else next = at + total;
      frame.head = from.subarray(start + headerBytes, start + total);
      frame.headLength = length;
      if (!this.#take(frame)) {
        // The frame at hand is kept whole, with all that came after it.
        if (from === this.#partial) this.#rest = joined(from.subarray(0, total), bytes.subarray(next));
        else this.#rest = isBorrowed ? bytes.slice(at) : bytes.subarray(at);
        this.#partialBytes = 0;
        return true;
      }
      this.#partialBytes = 0;
      at = next;
    }
    return true;
  }

  /** There is room again. False: this is no stream of frames. */
  resume(): boolean {
    const rest = this.#rest;
    if (rest === null) return true;
    this.#rest = null;
    return this.#read(rest, false);
  }

  /** Collects up to `wanted` bytes of the frame; where to go on. */
  #collect(bytes: Uint8Array, at: number, wanted: number): number {
    const count = Math.min(wanted - this.#partialBytes, bytes.length - at);
    if (count > 0) {
      this.#partial.set(bytes.subarray(at, at + count), this.#partialBytes);
      this.#partialBytes += count;
      return at + count;
    }
    return at;
  }
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array {
  const whole = new Uint8Array(a.length + b.length);
  whole.set(a);
  whole.set(b, a.length);
  return whole;
}
