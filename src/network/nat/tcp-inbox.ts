/**
 * What a guest has sent on one connection, until the host has taken it: in order into buffers that are written at the end of a
 * batch, and a little of what comes too early, so that a lost segment does not cost all that follow it.
 *
 * The window that the guest is offered is what may still come, and never shrinks. Source: RFC 9293 (3.8.6), RFC 7323 (2.3).
 */

import { CHUNK_BYTES, type ChunkPool } from './chunk-pool.ts';
import type { HostStream } from './host-network.ts';
import type { BufferBudget } from './send-buffer.ts';
import { WINDOW_SCALE } from './tcp-segment.ts';

const WINDOW_MAX = 1 << 20;
/** A window this small is always offered, whatever the budget. */
const WINDOW_MIN = 16 * 1024;
/** Of segments that have come too early. */
const EARLY_SEGMENTS_MAX = 64;
const EARLY_BYTES_MAX = 1 << 18;

interface Early {
  readonly sequence: number;
  readonly bytes: Uint8Array;
  readonly fin: boolean;
}

export class Inbox {
  readonly #pool: ChunkPool;
  readonly #budget: BufferBudget;
  /** The host took bytes. */
  readonly #taken: () => void;
  /** Next sequence number expected. */
  next = 0;
  /** One past the last sequence number that the guest may send. */
  edge = 0;
  /** The guest has sent FIN, and all before it is here. */
  ended = false;
  #scale = 0;
  #endPending = false;
  #chunk: Uint8Array | null = null;
  #used = 0;
  /** Bytes that the host has not taken, those in the chunk included. */
  #pending = 0;
  #early: Early[] = [];
  #earlyBytes = 0;
  #open = true;

  constructor(pool: ChunkPool, budget: BufferBudget, taken: () => void) {
    this.#pool = pool;
    this.#budget = budget;
    this.#taken = taken;
  }

  /** The guest's SYN: data starts after `sequence`. */
  start(sequence: number, scaled: boolean): void {
    this.next = (sequence + 1) | 0;
    this.edge = (this.next + 0xffff) | 0;
    this.#scale = scaled ? WINDOW_SCALE : 0;
  }

  get room(): number {
    return (this.edge - this.next) | 0;
  }

  /** The window to offer, as the header has it. The edge moves along. */
  offer(): number {
    const offered = Math.max(this.room, this.#free);
    const value = Math.min(0xffff, (offered + (1 << this.#scale) - 1) >> this.#scale);
    const edge = (this.next + (value << this.#scale)) | 0;
    if (((edge - this.edge) | 0) > 0) this.edge = edge;
    return value;
  }

  /** The window could be offered much larger than it is. */
  get hasGrown(): boolean {
    return !this.ended && this.#free - this.room >= WINDOW_MAX / 4;
  }

  get #free(): number {
    return Math.max(0, Math.min(WINDOW_MAX - this.#pending, Math.max(WINDOW_MIN, this.#budget.left)));
  }

  /** Data that start `offset` from what is expected, and perhaps a FIN after them. False: they have come too early. */
  receive(
    b: Uint8Array,
    start: number,
    length: number,
    offset: number,
    fin: boolean,
    stream: HostStream | null,
  ): boolean {
    if (this.ended) return false;
    if (offset > 0) {
      this.#keep(b, start, length, offset, fin);
      return false;
    }
    this.#accept(b, start, length, -offset, fin, stream);
    while (this.#early.length > 0 && !this.ended) {
      const { sequence, bytes, fin: early } = this.#early[0];
      const skip = (this.next - sequence) | 0;
      if (skip < 0) break;
      this.#early.shift();
      this.#earlyBytes -= bytes.length;
      this.#accept(bytes, 0, bytes.length, skip, early, stream);
    }
    return true;
  }

  #accept(b: Uint8Array, start: number, length: number, skip: number, fin: boolean, stream: HostStream | null): void {
    const fresh = Math.min(length - skip, this.room);
    if (fresh > 0) {
      this.#take(b, start + skip, fresh, stream);
      this.next = (this.next + fresh) | 0;
    }
    if (fin && fresh === length - skip) {
      this.next = (this.next + 1) | 0;
      this.ended = true;
      this.#endPending = true;
    }
  }

  #keep(b: Uint8Array, start: number, length: number, offset: number, fin: boolean): void {
    const count = Math.min(length, this.room - offset);
    if (this.#early.length === EARLY_SEGMENTS_MAX || this.#earlyBytes + count > EARLY_BYTES_MAX || count < 0) return;
    const sequence = (this.next + offset) | 0;
    let at = this.#early.length;
    while (at > 0 && ((this.#early[at - 1].sequence - sequence) | 0) >= 0) at--;
    if (this.#early[at]?.sequence === sequence && this.#early[at].bytes.length >= count) return;
    const bytes = new Uint8Array(b.subarray(start, start + count));
    this.#early.splice(at, 0, { sequence, bytes, fin: fin && count === length });
    this.#earlyBytes += count;
  }

  #take(b: Uint8Array, start: number, count: number, stream: HostStream | null): void {
    this.#pending += count;
    this.#budget.left -= count;
    while (count > 0) {
      this.#chunk ??= this.#pool.take();
      const n = Math.min(count, CHUNK_BYTES - this.#used);
      this.#chunk.set(b.subarray(start, start + n), this.#used);
      this.#used += n;
      start += n;
      count -= n;
      if (this.#used === CHUNK_BYTES) this.#write(stream);
    }
  }

  #write(stream: HostStream | null): void {
    const chunk = this.#chunk;
    if (chunk === null || stream === null) return;
    const count = this.#used;
    this.#chunk = null;
    this.#used = 0;
    stream.write(count === CHUNK_BYTES ? chunk : chunk.subarray(0, count), () => {
      this.#pool.give(chunk);
      if (!this.#open) return;
      this.#pending -= count;
      this.#budget.left += count;
      this.#taken();
    });
  }

  /** Hands over all that is here, and the guest's end. */
  flush(stream: HostStream | null): void {
    if (this.#used > 0) this.#write(stream);
    if (this.#endPending) {
      this.#endPending = false;
      stream?.end();
    }
  }

  release(): void {
    this.#open = false;
    this.#budget.left += this.#pending;
    this.#pending = 0;
    if (this.#chunk !== null) this.#pool.give(this.#chunk);
    this.#chunk = null;
    this.#used = 0;
    this.#early = [];
    this.#earlyBytes = 0;
  }
}
