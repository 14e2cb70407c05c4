/**
 * Which frames of memory 0 have been written to: what a copy of a running domain has to send again. A byte a frame, in memory that all
 * threads of the domain share.
 *
 * Who stores into guest memory marks the frame *after* the store; then a reader that takes the marks first and the pages afterwards
 * misses nothing. The one exception is guest code of the wasm engine, whose first store through a translation marks the frame before
 * it is made: whoever takes the marks makes all vCPUs forget their translations before it reads a page (host/dirty-tracker.ts).
 */

import type { MachineLayout } from './memory.ts';

const HEADER_BYTES = 64;
const CLEAN = 0;
const DIRTY = 1;
const PAGE_SHIFT = 12;

export class DirtyFrames {
  readonly shared: SharedArrayBuffer;
  /** Frames that somebody may store into at any time without a mark, as far as this thread knows. */
  readonly always = new Set<number>();
  /** 1: first writes have to be seen. */
  readonly #tracking: Uint8Array<SharedArrayBuffer>;
  readonly #marks: Uint8Array<SharedArrayBuffer>;

  /** `shared`: of the same domain in another thread. */
  constructor({ nameableFrames }: MachineLayout, shared?: SharedArrayBuffer) {
    this.shared = shared ?? new SharedArrayBuffer(HEADER_BYTES + nameableFrames);
    this.#tracking = new Uint8Array(this.shared, 0, 1);
    this.#marks = new Uint8Array(this.shared, HEADER_BYTES);
  }

  /** From now on, translations that allow stores are for frames with a mark only. Those that are there stay until they are forgotten. */
  set tracks(wanted: boolean) {
    Atomics.store(this.#tracking, 0, wanted ? 1 : 0);
  }

  mark(frame: number): void {
    this.#marks[frame] = DIRTY;
  }

  /** The same for bytes of memory 0, which may be in several frames. */
  markBytes(offset: number, size: number): void {
    const last = (offset + size - 1) >>> PAGE_SHIFT;
    for (let frame = offset >>> PAGE_SHIFT; frame <= last; frame++) this.#marks[frame] = DIRTY;
  }

  /** A store into the frame need not be seen. */
  isKnown(frame: number): boolean {
    return this.#tracking[0] === 0 || this.#marks[frame] !== CLEAN;
  }

  /** Takes all marks; `found` gets the frames that had one, in their order. */
  take(found: (frame: number) => void): void {
    const marks = this.#marks;
    for (let frame = 0; frame < marks.length; frame++)
      if (marks[frame] !== CLEAN && Atomics.exchange(marks, frame, CLEAN) !== CLEAN) found(frame);
  }
}
