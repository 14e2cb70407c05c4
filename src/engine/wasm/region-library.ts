/**
 * Regions that were translated before the domain began (kept-regions.ts), as a module for each mode. Where a vCPU finds their code, it enters them:
 * nothing is left to do but to compare.
 */

import { FIRST_SLOT } from './interpreter.ts';
import { decodeKept, encodeKept, type KeptRegion, keyOfCode, rebuild } from './kept-regions.ts';
import { JUMP_USER_HI, STATE, TLB_SIZE } from './layout.ts';
import { translateRegions } from './region.ts';

/** What can be posted to vCPUs' threads. */
export interface RegionLibraryHandle {
  /** Records of kernel mode, then of user mode: the regions of the modules, in their order. */
  readonly records: Uint32Array;
  readonly kernel: WebAssembly.Module;
  readonly user: WebAssembly.Module;
}

/** What a library consists of before it is compiled. */
export interface WrittenLibrary {
  readonly records: Uint32Array<ArrayBuffer>;
  readonly kernel: Uint8Array<ArrayBuffer>;
  readonly user: Uint8Array<ArrayBuffer>;
}

/** Translates what has been kept. */
export function writeLibrary(kept: readonly KeptRegion[]): WrittenLibrary {
  const rebuilt = kept.flatMap((region) => rebuild(region) ?? []);
  const modes = [false, true].map((user) => rebuilt.filter((region) => region.kept.user === user));
  const [kernel, user] = modes.map((regions, mode) =>
    translateRegions(
      regions.map(({ graph, kept: { apart } }) => ({ graph, apart: new Set(apart) })),
      { tlb: STATE.tlb + mode * TLB_SIZE, userBit: mode === 0 ? 0 : JUMP_USER_HI, counting: false },
      FIRST_SLOT + (mode === 0 ? 0 : modes[0].length),
      'optimized',
    ),
  );
  return { records: encodeKept(modes.flat().map((region) => region.kept)), kernel, user };
}

export class RegionLibrary {
  readonly regions: readonly KeptRegion[];
  readonly kernel: WebAssembly.Module;
  readonly user: WebAssembly.Module;
  /** Numbers of regions, by key. */
  readonly #byKey = new Map<number, number[]>();
  /** Those that have been used, by number. */
  readonly used: Uint8Array;

  constructor({ records, kernel, user }: RegionLibraryHandle) {
    this.kernel = kernel;
    this.user = user;
    this.regions = decodeKept(records);
    this.used = new Uint8Array(this.regions.length);
    this.regions.forEach(({ key }, number) => {
      const others = this.#byKey.get(key);
      if (others === undefined) this.#byKey.set(key, [number]);
      else others.push(number);
    });
  }

  /** The table's place of a region. */
  slotOf(number: number): number {
    return FIRST_SLOT + number;
  }

  /** Numbers of the regions that may be what is at an offset of a frame. */
  candidates(u8: Uint8Array, frame: number, entry: number, user: boolean): readonly number[] {
    const numbers = this.#byKey.get(keyOfCode(u8, frame, entry, user)) ?? [];
    return numbers.filter((number) => this.regions[number].entry === entry && this.regions[number].user === user);
  }
}

/** The frames of a region's pages, by relative page; null when some are not there. */
export function pagesOf(
  { pieces }: KeptRegion,
  frameOf: (relative: number) => number,
): ReadonlyMap<number, number> | null {
  const pages = new Map<number, number>();
  for (let i = 0; i < pieces.length; i += 2)
    for (let relative = pieces[i] >> 12; relative <= (pieces[i + 1] - 1) >> 12; relative++) {
      if (pages.has(relative)) continue;
      const frame = frameOf(relative);
      if (frame < 0) return null;
      pages.set(relative, frame);
    }
  return pages;
}

/** Calls `visit` with each run of a region's code that lies in one page: where it is in memory 0, and its first byte's number. */
export function codeRuns(
  pieces: Int32Array,
  pages: ReadonlyMap<number, number>,
  visit: (at: number, n: number, size: number) => void,
): void {
  let n = 0;
  for (let i = 0; i < pieces.length; i += 2) {
    const end = pieces[i + 1];
    for (let position = pieces[i]; position < end; ) {
      const size = Math.min(end, (position & ~0xfff) + 4096) - position;
      const frame = pages.get(position >> 12);
      if (frame === undefined) throw new Error('bug: code of a region in a page that it does not have');
      visit(frame * 4096 + (position & 0xfff), n, size);
      position += size;
      n += size;
    }
  }
}

/** Whether the code of a region is what is in memory. */
export function isSame(u8: Uint8Array, { pieces, code }: KeptRegion, pages: ReadonlyMap<number, number>): boolean {
  let same = true;
  codeRuns(pieces, pages, (at, n, size) => {
    for (let i = 0; same && i < size; i++) same = u8[at + i] === code[n + i];
  });
  return same;
}
