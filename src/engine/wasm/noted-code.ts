/**
 * Which code a vCPU has run lately, told to a vCPU elsewhere that is to go on with it (docs/migration.md): that one decodes and translates it
 * before, from its own memory. Nothing breaks if it is wrong: what is found by an address is found by the page tables then.
 *
 *   u32 n, then n starts of runs: frame * 4096 + offset
 *   then regions, each u32 frame * 4096 + offset, u32 user, u32 low word of the address, u32 m, then m of i32 relative page, u32 frame
 */

import { REGION_PAGES_MAX } from './region-graph.ts';

/** What one vCPU tells, and believes, at most. */
export const STARTS_MAX = 1 << 16;
const REGIONS_MAX = 512;
const REGION_WORDS = 4;

export interface NotedRegion {
  readonly frame: number;
  readonly user: boolean;
  /** Low word of an address where it was. */
  readonly lo: number;
  /** Relative page -> frame. */
  readonly pages: ReadonlyMap<number, number>;
}

export interface CodeKnown {
  /** Calls `visit` with the offsets in a frame where runs of 64-bit code start. */
  startsIn(frame: number, visit: (offset: number) => void): void;
  region(frame: number, offset: number, user: boolean): NotedRegion | undefined;
}

/** What has been entered since the last look. */
export class NotedCode {
  readonly #frames = new Set<number>();
  readonly #regions: NotedRegion[] = [];
  readonly #places = new Set<number>();

  /** An address has been looked up. */
  note(frame: number, lo: number, user: boolean, isRegion: boolean, known: CodeKnown): void {
    this.#frames.add(frame);
    const place = (frame * 4096 + (lo & 0xfff)) * 2 + (user ? 1 : 0);
    if (!isRegion || this.#regions.length === REGIONS_MAX || this.#places.has(place)) return;
    this.#places.add(place);
    const region = known.region(frame, lo & 0xfff, user);
    if (region === undefined) return;
    this.#regions.push(region);
    for (const page of region.pages.values()) this.#frames.add(page);
  }

  encode(known: CodeKnown): Uint32Array {
    const starts: number[] = [];
    for (const frame of this.#frames)
      known.startsIn(frame, (offset) => {
        if (starts.length < STARTS_MAX) starts.push(frame * 4096 + offset);
      });
    const regions = this.#regions.flatMap(({ frame, user, lo, pages }) => [
      ...[frame * 4096 + (lo & 0xfff), user ? 1 : 0, lo, pages.size],
      ...[...pages].flat(),
    ]);
    return Uint32Array.from([starts.length, ...starts, ...regions]);
  }
}

/** What `encode` has told, as far as it can be in a memory of so many frames. */
export function decodeNoted(words: Uint32Array, frames: number): { starts: Uint32Array; regions: NotedRegion[] } {
  const count = words.length === 0 ? 0 : Math.min(words[0], words.length - 1, STARTS_MAX);
  const starts = words.subarray(1, 1 + count).filter((start) => start >>> 12 < frames);
  const regions: NotedRegion[] = [];
  for (let at = 1 + count; at + REGION_WORDS <= words.length && regions.length < REGIONS_MAX; ) {
    const [place, user, lo, size] = words.subarray(at, at + REGION_WORDS);
    at += REGION_WORDS;
    if (size > REGION_PAGES_MAX || at + size * 2 > words.length) break;
    const pages = new Map<number, number>();
    for (let i = 0; i < size; i++, at += 2) if (words[at + 1] < frames) pages.set(words[at] | 0, words[at + 1]);
    const frame = place >>> 12;
    if (frame < frames && pages.get(0) === frame && (lo & 0xfff) === (place & 0xfff))
      regions.push({ frame, user: user !== 0, lo, pages });
  }
  return { starts, regions };
}
