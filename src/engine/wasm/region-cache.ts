/**
 * The translated regions of one vCPU: requests, modules, and what may be entered where.
 *
 * A region belongs to the frames that it was read from. It may be entered at any address that maps its entry's frame, if the pages
 * around it that it also has code of map the same frames there. Regions are translated several at a time: a module for each is
 * slow to make, and its code lies badly in the caches. Source: design measurements, modules of one function cost 45-75 us each.
 */

import { CodeSnapshot } from './code-snapshot.ts';
import { FIRST_SLOT } from './interpreter.ts';
import { JUMP_USER_HI, STATE, TLB_SIZE } from './layout.ts';
import { linkRegions, writeRegion } from './region.ts';
import { discover, type RegionGraph } from './region-graph.ts';
import { keyOfCode, type RegionCode, RegionLibrary, type RegionStore } from './region-library.ts';

/** The most regions that wait for a module. */
const BATCH = 64;
/** Slots before everything is dropped and starts anew. */
const SLOTS_MAX = 1 << 16;
/** Counts of addresses that come to `enter`. */
const ENTERED = 1 << 14;
/** Addresses of a region that are remembered one by one. */
const FOUND_MAX = 8;
/** Part of the time that may go into regions which only others will have something of. */
const INVESTED = 0.06;

/** What the library wants to know of a region that is new. */
interface Made {
  readonly key: number;
  readonly code: RegionCode;
}

interface Region {
  readonly key: number;
  /** Until it is translated; null too if it comes from the library. */
  graph: RegionGraph | null;
  /** For the library: null if it comes from there, or nobody keeps it. */
  made: Made | null;
  /** Its number in the library, -1 = it does not come from there. */
  readonly stored: number;
  /** Relative page -> frame that it was read from. */
  readonly pages: ReadonlyMap<number, number>;
  /** Pairs of start and end of its pieces of code, from the start of the entry's page. */
  readonly pieces: Int32Array;
  readonly frame: number;
  readonly user: boolean;
  /** Low word of the address where it was wanted. */
  readonly lo: number;
  /** 0 = not translated yet. */
  slot: number;
  /** Low words of the addresses where it was found; null when they are many. */
  found: number[] | null;
}

export interface RegionHost {
  readonly u8: Uint8Array;
  readonly guest: WebAssembly.Memory;
  readonly cpu: WebAssembly.Memory;
  readonly scratch: number;
  /** Instructions are counted (executed.ts). */
  readonly counting: boolean;
  /** Where regions are kept that others have made; null = nowhere. */
  readonly store: RegionStore | null;
  /** How often an address is entered before its region is made here, in calls of `enter`. */
  readonly entriesToMake: number;
  /** Frame of the page `relative` pages from an address's, or -1. Leaves the block's fault alone or not. */
  frame(lo: number, hi: number, relative: number): number;
  readonly isWarm: (frame: number, offset: number) => boolean;
  /** Stores into these granules of a frame must be seen. True when that is new. */
  watch(frame: number, bits: number): boolean;
  /** A region has been made of code that was wanted at an address (low word) in a frame. */
  ready(frame: number, lo: number): void;
  /** A region that `find` has found at this address (low word), or all that have this slot, are void. */
  forget(lo: number): void;
  forgetSlot(slot: number): void;
  /** What `find` answers depends on the page `relative` pages from an address's. */
  depends(lo: number, relative: number): void;
  readonly divide: (signed: number, high: bigint, low: bigint, divisor: bigint) => number;
  readonly vector: (operation: number) => number;
  readonly rare: () => number;
}

/** By mode, a number that V8 can hash without a heap. */
const keyOf = (frame: number, offset: number): number => (frame * 4096 + offset) | 0;

export class RegionCache {
  readonly table: WebAssembly.Table;
  readonly #host: RegionHost;
  /** Of kernel and user mode. */
  readonly #regions: readonly Map<number, Region>[] = [new Map(), new Map()];
  /** Regions with code in a frame. */
  readonly #byFrame = new Map<number, Set<Region>>();
  #pending: Region[] = [];
  #nextSlot = FIRST_SLOT;
  readonly #library: RegionLibrary | null;
  /** Table places of the library's chunks that are in the table: where each begins. */
  readonly #chunks = new Map<number, number>();
  /** Times that addresses came to `enter`, by a hash. */
  readonly #entered = new Uint8Array(ENTERED);
  readonly #snapshot = new CodeSnapshot();
  readonly #startMs = performance.now();
  /** For statistics. */
  translated = 0;
  /** Taken from the library, and its chunks. */
  taken = 0;
  chunks = 0;
  instructions = 0;
  /** Reading the code and writing WebAssembly, and what V8 takes before a module can run (it optimizes later, in its own threads). */
  translationMs = 0;
  compilationMs = 0;

  constructor(host: RegionHost) {
    this.#host = host;
    this.table = new WebAssembly.Table({ element: 'anyfunc', initial: FIRST_SLOT + 1024 });
    // Regions that count are others.
    this.#library = host.store === null || host.counting ? null : new RegionLibrary(host.store);
  }

  get hasPending(): boolean {
    return this.#pending.length > 0;
  }

  get isFull(): boolean {
    return this.#nextSlot + BATCH >= SLOTS_MAX;
  }

  #of(user: boolean): Map<number, Region> {
    return this.#regions[user ? 1 : 0];
  }

  clear(): void {
    for (let slot = FIRST_SLOT; slot < this.#nextSlot; slot++) this.table.set(slot, null);
    this.#chunks.clear();
    for (const regions of this.#regions) regions.clear();
    this.#byFrame.clear();
    this.#pending = [];
    this.#nextSlot = FIRST_SLOT;
  }

  /** Slot of the region at an address whose page is `frame`, 0 = none. */
  find(frame: number, lo: number, hi: number, user: boolean): number {
    const region = this.#of(user).get(keyOf(frame, lo & 0xfff));
    if (region === undefined || region.slot === 0) return 0;
    for (const [relative, expected] of region.pages) {
      if (relative === 0) continue;
      this.#host.depends(lo, relative);
      if (this.#host.frame(lo, hi, relative) !== expected) return 0;
    }
    const { found } = region;
    if (found !== null && !found.includes(lo)) {
      if (found.length < FOUND_MAX) found.push(lo);
      else region.found = null;
    }
    return region.slot;
  }

  /** An address whose page is `frame` has been entered HOT times again. */
  enter(frame: number, lo: number, hi: number, user: boolean): void {
    if (this.#of(user).has(keyOf(frame, lo & 0xfff)) || this.isFull) return;
    const start = performance.now();
    const found = this.#library !== null && this.#findStored(this.#library, frame, lo, hi, user);
    const at = (lo ^ (lo >>> 12)) & (ENTERED - 1);
    if (found) this.#entered[at] = 0;
    else {
      const isHot = ++this.#entered[at] >= this.#host.entriesToMake;
      const isWorthIt = this.#library !== null && this.translationMs < (start - this.#startMs) * INVESTED;
      if (isHot || isWorthIt) {
        this.#entered[at] = 0;
        this.#request(frame, lo, hi, user);
      }
    }
    this.translationMs += performance.now() - start;
  }

  /** Looks for a region of the same code in the library. True: it is there, and waits to be installed. */
  #findStored(library: RegionLibrary, frame: number, lo: number, hi: number, user: boolean): boolean {
    const { u8 } = this.#host;
    const entry = lo & 0xfff;
    let pages = new Map<number, number>();
    let pieces: Int32Array = new Int32Array(0);
    const frameOf = (relative: number): number => (relative === 0 ? frame : this.#host.frame(lo, hi, relative));
    const accepts = (code: RegionCode): boolean => {
      if (code.entry !== entry || code.user !== user) return false;
      for (;;) {
        const there = pagesOf(code, frameOf);
        if (there === null || !isSame(u8, code, there)) return false;
        pages = there;
        pieces = code.pieces;
        // Code must be watched before it is compared.
        if (!this.#watch(there, code.pieces)) return true;
      }
    };
    const stored = library.find(keyOfCode(u8, frame, entry, user), accepts);
    if (stored < 0) return false;
    this.#add({
      key: keyOf(frame, entry),
      graph: null,
      made: null,
      stored,
      pages,
      pieces,
      frame,
      user,
      lo,
      slot: 0,
      found: [],
    });
    return true;
  }

  /** Wants a region made. */
  #request(frame: number, lo: number, hi: number, user: boolean): void {
    const offset = lo & 0xfff;
    const { u8, isWarm } = this.#host;
    const snapshot = this.#snapshot;
    const source = {
      u8: snapshot.u8,
      frame: (relative: number) =>
        snapshot.take(u8, relative, relative === 0 ? frame : this.#host.frame(lo, hi, relative)),
      isWarm: (place: number, at: number) => isWarm(snapshot.frames[place], at),
    };
    for (;;) {
      snapshot.clear();
      const graph = discover(source, offset);
      if (graph === null || isTrivial(graph)) return;
      const pages = new Map<number, number>();
      for (const [relative, place] of graph.pages) pages.set(relative, snapshot.frames[place]);
      const pieces = piecesOf(graph);
      // Code must be watched before it is read.
      if (this.#watch(pages, pieces)) continue;
      const key = keyOf(frame, offset);
      const code = this.#library === null ? null : codeOf(snapshot.u8, graph, pieces, user);
      const made = code === null ? null : { key: keyOfCode(snapshot.u8, graph.pages.get(0) ?? 0, offset, user), code };
      this.#add({ key, graph, made, stored: -1, pages, pieces, frame, user, lo, slot: 0, found: [] });
      return;
    }
  }

  #add(region: Region): void {
    this.#of(region.user).set(region.key, region);
    for (const page of region.pages.values()) {
      const known = this.#byFrame.get(page);
      if (known === undefined) this.#byFrame.set(page, new Set([region]));
      else known.add(region);
    }
    this.#pending.push(region);
  }

  #remove(region: Region): void {
    this.#of(region.user).delete(region.key);
    for (const page of region.pages.values()) this.#byFrame.get(page)?.delete(region);
  }

  /** True when it was not all watched before. */
  #watch(pages: ReadonlyMap<number, number>, pieces: Int32Array): boolean {
    const bits = new Map<number, number>();
    for (let i = 0; i < pieces.length; i += 2)
      for (let granule = pieces[i] >> 7; granule <= (pieces[i + 1] - 1) >> 7; granule++) {
        const frame = pages.get(granule >> 5);
        if (frame !== undefined) bits.set(frame, (bits.get(frame) ?? 0) | (1 << (granule & 31)));
      }
    let isNew = false;
    for (const [frame, mask] of bits) if (this.#host.watch(frame, mask)) isNew = true;
    return isNew;
  }

  /** Makes what was asked for ready to run. */
  translate(): void {
    const pending = this.#pending;
    this.#pending = [];
    for (const region of pending) if (region.stored >= 0) this.#install(region);
    const batch = pending.filter((region) => region.graph !== null);
    if (batch.length > 0) this.#translate(batch);
  }

  /** What has been made and not yet given to the store. */
  keepAll(): void {
    this.#library?.flush();
  }

  #install(region: Region): void {
    const { chunk, place } = (this.#library as RegionLibrary).placeOf(region.stored);
    const first = this.#chunks.get(chunk) ?? this.#openChunk(chunk);
    if (first < 0) {
      this.#remove(region);
      return;
    }
    region.slot = first + place;
    this.taken++;
    this.#host.ready(region.frame, region.lo);
  }

  /** A chunk's first place in the table, -1 = it is not to be had. */
  #openChunk(chunk: number): number {
    const start = performance.now();
    const bodies = (this.#library as RegionLibrary).bodies(chunk);
    if (bodies === null) return -1;
    const first = this.#link(bodies);
    this.#chunks.set(chunk, first);
    this.chunks++;
    this.compilationMs += performance.now() - start;
    return first;
  }

  /** Makes a module of bodies and gives it the next places of the table: the first of them. */
  #link(bodies: readonly Uint8Array[]): number {
    const { guest, cpu, scratch, divide, vector, rare } = this.#host;
    const first = this.#nextSlot;
    const pages = { guestPages: guest.buffer.byteLength / 65536, cpuPages: cpu.buffer.byteLength / 65536 };
    const bytes = linkRegions(bodies, pages, first);
    if (first + bodies.length > this.table.length) this.table.grow(Math.max(1024, bodies.length));
    const global = new WebAssembly.Global({ value: 'i32' }, scratch | 0);
    new WebAssembly.Instance(new WebAssembly.Module(bytes), {
      e: { guest, cpu, table: this.table, scratch: global, divide, vector, rare },
    });
    this.#nextSlot = first + bodies.length;
    return first;
  }

  #translate(batch: readonly Region[]): void {
    const start = performance.now();
    const { counting } = this.#host;
    const bodies = batch.map(({ graph, user }) => {
      const tlb = STATE.tlb + (user ? TLB_SIZE : 0);
      return writeRegion(graph as RegionGraph, { tlb, userBit: user ? JUMP_USER_HI : 0, counting });
    });
    const compiling = performance.now();
    this.translationMs += compiling - start;
    const first = this.#link(bodies);
    this.compilationMs += performance.now() - compiling;
    batch.forEach((region, i) => {
      region.slot = first + i;
      this.translated++;
      this.instructions += region.graph?.instructions ?? 0;
      if (region.made !== null) this.#library?.add(region.made.key, region.made.code, bodies[i]);
      region.graph = null;
      region.made = null;
      this.#host.ready(region.frame, region.lo);
    });
  }

  /** Code of a frame has changed somewhere in `offset` to `offset + size`. */
  invalidate(frame: number, offset: number, size: number): void {
    const regions = this.#byFrame.get(frame);
    if (regions === undefined) return;
    for (const region of regions) {
      if (!touches(region, frame, offset, size)) continue;
      this.#remove(region);
      if (region.slot !== 0) {
        // Those of a chunk may be in use for the same code elsewhere.
        if (region.stored < 0) this.table.set(region.slot, null);
        if (region.found === null) this.#host.forgetSlot(region.slot);
        else for (const lo of region.found) this.#host.forget(lo);
      } else this.#pending = this.#pending.filter((other) => other !== region);
    }
  }
}

/**
 * One instruction: a return or a jump, which are no quicker in a region, or the call that begins an indirect branch of a kernel that
 * distrusts its CPU. Nobody comes back behind that one: whoever called from a region would wait for it, and all be interpreted.
 */
const isTrivial = ({ instructions, blocks }: RegionGraph): boolean => instructions === 1 && !blocks[0].isLoop;

/** The runs of adjacent instructions. */
function piecesOf(graph: RegionGraph): Int32Array {
  const pieces: number[] = [];
  for (const block of graph.blocks)
    for (const { position, instruction } of block.instructions) {
      if (pieces[pieces.length - 1] === position) pieces[pieces.length - 1] += instruction.length;
      else pieces.push(position, position + instruction.length);
    }
  return Int32Array.from(pieces);
}

/** The code of a graph's pieces, where the graph's pages are. */
function codeOf(u8: Uint8Array, graph: RegionGraph, pieces: Int32Array, user: boolean): RegionCode {
  const code: number[] = [];
  for (let i = 0; i < pieces.length; i += 2)
    for (let at = pieces[i]; at < pieces[i + 1]; at++)
      code.push(u8[(graph.pages.get(at >> 12) as number) * 4096 + (at & 0xfff)]);
  const starts = Int32Array.from(graph.blocks, (block) => block.start);
  return { entry: graph.entry, user, instructions: graph.instructions, pieces, starts, code: Uint8Array.from(code) };
}

/** The pages that a region has code of, or null if one is not mapped. */
function pagesOf({ pieces }: RegionCode, frameOf: (relative: number) => number): Map<number, number> | null {
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

/** Whether the code of a region is what is in memory. */
function isSame(u8: Uint8Array, { pieces, code }: RegionCode, pages: ReadonlyMap<number, number>): boolean {
  let n = 0;
  for (let i = 0; i < pieces.length; i += 2) {
    const end = pieces[i + 1];
    for (let at = pieces[i]; at < end; ) {
      const base = (pages.get(at >> 12) as number) * 4096;
      const stop = Math.min(end, (at & ~0xfff) + 4096);
      for (; at < stop; at++, n++) if (u8[base + (at & 0xfff)] !== code[n]) return false;
    }
  }
  return true;
}

function touches({ pages, pieces }: Region, frame: number, offset: number, size: number): boolean {
  for (const [relative, page] of pages) {
    if (page !== frame) continue;
    const start = relative * 4096 + offset;
    for (let i = 0; i < pieces.length; i += 2) if (pieces[i] < start + size && pieces[i + 1] > start) return true;
  }
  return false;
}
