/**
 * A copy of the pages that a region is read from. What is translated, and what is kept as the code that it was made of, are the same
 * bytes then, whoever stores into the pages meanwhile.
 */

import { PAGES_AROUND } from './region-graph.ts';

const PAGES = 2 * PAGES_AROUND + 3;

export class CodeSnapshot {
  readonly u8: Uint8Array = new Uint8Array(PAGES * 4096);
  /** By place in the snapshot: the frame that is copied there, -1 = none. */
  readonly frames: Int32Array = new Int32Array(PAGES).fill(-1);

  clear(): void {
    this.frames.fill(-1);
  }

  /** The place of a page that is some pages from the entry's, copied now if it has not been; -1 if it cannot be: no frame, or too far. */
  take(memory: Uint8Array, relative: number, frame: number): number {
    const place = relative + PAGES_AROUND;
    if (place < 0 || place >= PAGES || frame < 0) return -1;
    if (this.frames[place] < 0) {
      this.frames[place] = frame;
      this.u8.set(memory.subarray(frame * 4096, frame * 4096 + 4096), place * 4096);
    }
    return place;
  }
}
