/**
 * The translated regions of one vCPU: requests, modules, and what may be entered where.
 *
 * A region belongs to the frames that it was read from. It may be entered at any address that maps its entry's frame, if the pages
 * around it that it also has code of map the same frames there. Regions are translated several at a time: a module for each is
 * slow to make, and its code lies badly in the caches. Source: design measurements, modules of one function cost 45-75 us each.
 */

import { JUMP_MEMORY } from './handlers.ts';
import { FIRST_SLOT, HOT, WARM } from './interpreter.ts';
import { type KeptRegion, keyOfCode, piecesOf, rebuild, sizeOf } from './kept-regions.ts';
import { JUMP_USER_HI, STATE, TLB_SIZE } from './layout.ts';
import type { Compilation } from './module-builder.ts';
import type { NotedRegion } from './noted-code.ts';
import { type RegionToWrite, translateRegions } from './region.ts';
import { discover, type RegionGraph } from './region-graph.ts';
import { codeRuns, isSame, pagesOf, type RegionLibrary } from './region-library.ts';

/** The most regions that wait for a module. */
const BATCH = 64;
/**
 * Times that a group of accesses may be left to the interpreter because its bytes lie in two pages, before the region is translated
 * again: they cost as much as that does.
 */
const APART_MAX = 4096;
/** Regions of a module of those that are prepared. */
const BATCH_PREPARED = 16;
/** Regions that are kept for other domains. */
const MADE_MAX = 4096;
const MADE_BYTES_MAX = 1 << 20;
const LOOKED_MAX = 1 << 14;
/** The part of the time that may go into noting what only they will have something of. */
const KEEPING_PART = 0.03;
/** Slots before everything is dropped and starts anew. */
const SLOTS_MAX = 1 << 16;

interface Region {
  /** In the library; -1 = it has been translated here. */
  readonly stored: number;
  readonly key: number;
  /** Until it is translated. */
  graph: RegionGraph | null;
  /** Relative page -> frame that it was read from. */
  readonly pages: ReadonlyMap<number, number>;
  /** Pairs of start and end of its pieces of code, from the start of the entry's page. */
  pieces: Int32Array;
  readonly frame: number;
  readonly user: boolean;
  /** Low word of the address where it was wanted. */
  readonly lo: number;
  /** 0 = not translated yet. */
  slot: number;
  /** Times that the bytes of a group of accesses lay in two pages, by the position of the first of them. */
  readonly apart: Map<number, number>;
}

export interface RegionHost {
  readonly u8: Uint8Array;
  readonly guest: WebAssembly.Memory;
  readonly cpu: WebAssembly.Memory;
  readonly scratch: number;
  /** Instructions are counted (executed.ts). */
  readonly counting: boolean;
  /** What has been translated before. */
  readonly library: RegionLibrary | null;
  /** Frame of the page `relative` pages from an address's, or -1. Leaves the block's fault alone or not. */
  frame(lo: number, hi: number, relative: number): number;
  readonly isWarm: (frame: number, offset: number) => boolean;
  /** Stores into these granules of a frame must be seen. True when that is new. */
  watch(frame: number, bits: number): boolean;
  /** A region has been made of code that was wanted at an address (low word) in a frame. */
  ready(frame: number, lo: number): void;
  /** What `find` answers depends on the page `relative` pages from an address's. */
  depends(lo: number, relative: number): void;
  readonly divide: (signed: number, high: bigint, low: bigint, divisor: bigint) => number;
  readonly vector: (operation: number) => number;
  readonly rare: () => number;
}

const keyOf = (frame: number, offset: number, user: boolean): number => (frame * 4096 + offset) * 2 + (user ? 1 : 0);

export class RegionCache {
  readonly table: WebAssembly.Table;
  readonly #host: RegionHost;
  readonly #regions = new Map<number, Region>();
  readonly #large = new Set<number>();
  /** By frame: 1 = some region has been wanted that starts there. */
  readonly #starts: Uint8Array;
  /** Regions with code in a frame. */
  readonly #byFrame = new Map<number, Set<Region>>();
  /** By slot. */
  readonly #translated: (Region | null)[] = [];
  /** To be translated, or translated again. */
  #pending: Region[] = [];
  /** What has been translated, with its groups of accesses that lie apart. */
  readonly #made = new Map<Pick<Region, 'apart'>, KeptRegion>();
  #madeBytes = 0;
  /** Addresses that have been noted, or are not worth it, and what that took. */
  readonly #looked = new Set<number>();
  #keepingMs = 0;
  readonly #startMs = performance.now();
  #nextSlot: number;
  /** The first place of the table that the library has not taken. */
  readonly #firstSlot: number;
  /** For statistics. */
  translated = 0;
  stored = 0;
  instructions = 0;
  /** Reading the code and writing WebAssembly, and what V8 takes before a module can run (it optimizes later, in its own threads). */
  translationMs = 0;
  compilationMs = 0;

  constructor(host: RegionHost) {
    this.#host = host;
    this.#starts = new Uint8Array(host.u8.length >>> 12);
    const { library } = host;
    this.#firstSlot = FIRST_SLOT + (library?.regions.length ?? 0);
    this.#nextSlot = this.#firstSlot;
    this.table = new WebAssembly.Table({ element: 'anyfunc', initial: this.#firstSlot + 1024 });
    if (library !== null) for (const module of [library.kernel, library.user]) this.#instantiate(module);
  }

  get hasPending(): boolean {
    return this.#pending.length > 0;
  }

  get isFull(): boolean {
    return this.#nextSlot - this.#firstSlot + BATCH >= SLOTS_MAX;
  }

  clear(): void {
    for (let slot = this.#firstSlot; slot < this.#nextSlot; slot++) this.table.set(slot, null);
    this.#regions.clear();
    this.#starts.fill(0);
    this.#large.clear();
    this.#byFrame.clear();
    this.#translated.length = 0;
    this.#pending = [];
    this.#nextSlot = this.#firstSlot;
  }

  /** Slot of the region at an address whose page is `frame`, 0 = none. */
  find(frame: number, lo: number, hi: number, user: boolean): number {
    if (this.#starts[frame] === 0) return 0;
    const region = this.#regions.get(keyOf(frame, lo & 0xfff, user));
    if (region === undefined || region.slot === 0) return 0;
    for (const [relative, expected] of region.pages) {
      if (relative === 0) continue;
      this.#host.depends(lo, relative);
      if (this.#host.frame(lo, hi, relative) !== expected) return 0;
    }
    return region.slot;
  }

  /** An address whose page is `frame` has been entered so many times (interpreter.ts): wants a region there, made if need be when they are many. */
  request(frame: number, lo: number, hi: number, user: boolean, entries: number): void {
    const key = keyOf(frame, lo & 0xfff, user);
    if (this.#regions.has(key) || this.isFull) return;
    const frameOf = (relative: number): number => (relative === 0 ? frame : this.#host.frame(lo, hi, relative));
    const start = performance.now();
    if (!this.#takeStored(key, frame, lo, user, frameOf)) {
      if (entries >= HOT) this.#want(key, frame, lo, user, frameOf);
      else if (entries >= WARM) this.#keepForOthers(key, frame, lo, user, frameOf);
    }
    this.translationMs += performance.now() - start;
  }

  /** The region at an offset of a frame, if there is one. */
  region(frame: number, offset: number, user: boolean): NotedRegion | undefined {
    return this.#regions.get(keyOf(frame, offset, user));
  }

  /** Wants a region that another vCPU has had, and translates some when many wait. */
  prepare({ frame, lo, user, pages }: NotedRegion): void {
    const key = keyOf(frame, lo & 0xfff, user);
    if (this.#regions.has(key) || this.isFull) return;
    const frameOf = (relative: number): number => pages.get(relative) ?? -1;
    const start = performance.now();
    if (!this.#takeStored(key, frame, lo, user, frameOf)) this.#want(key, frame, lo, user, frameOf);
    this.translationMs += performance.now() - start;
    if (this.#pending.length >= BATCH_PREPARED) this.translate('optimized');
  }

  #want(key: number, frame: number, lo: number, user: boolean, frameOf: (relative: number) => number): void {
    const graph = this.#discover(lo & 0xfff, user, frameOf);
    if (graph === null) return;
    const { pages } = graph;
    const made = { stored: -1, graph, pieces: piecesOf(graph), slot: 0, apart: new Map() };
    const region: Region = { ...made, key, pages, frame, user, lo };
    this.#add(region);
    this.#pending.push(region);
  }

  /** Null if there is nothing at an offset of a page that is worth a region. */
  #discover(offset: number, user: boolean, frameOf: (relative: number) => number): RegionGraph | null {
    const source = {
      u8: this.#host.u8,
      frame: frameOf,
      isUser: user,
      isWarm: this.#host.isWarm,
      large: this.#large,
    };
    let graph = discover(source, offset);
    // Code must be watched before it is read.
    while (graph !== null && this.#watch(graph)) graph = discover(source, offset);
    return graph === null || isTrivial(graph) ? null : graph;
  }

  /** What is not worth to be translated in this domain may be later, when it has been done before: it is noted as long as that takes little time. */
  #keepForOthers(key: number, frame: number, lo: number, user: boolean, frameOf: (relative: number) => number): void {
    const start = performance.now();
    if (this.#looked.has(key) || this.#keepingMs > (start - this.#startMs) * KEEPING_PART) return;
    if (this.#looked.size === LOOKED_MAX) this.#looked.clear();
    this.#looked.add(key);
    const graph = this.#discover(lo & 0xfff, user, frameOf);
    if (graph !== null)
      this.#keep({ graph, pages: graph.pages, pieces: piecesOf(graph), frame, user, lo, apart: new Map() }, false);
    this.#keepingMs += performance.now() - start;
  }

  #add(region: Region): void {
    this.#regions.set(region.key, region);
    this.#starts[region.frame] = 1;
    for (const page of region.pages.values()) {
      const known = this.#byFrame.get(page);
      if (known === undefined) this.#byFrame.set(page, new Set([region]));
      else known.add(region);
    }
  }

  /** Looks for a region of the same code in the library. True: it is there. */
  #takeStored(key: number, frame: number, lo: number, user: boolean, frameOf: (relative: number) => number): boolean {
    const { library, u8 } = this.#host;
    if (library === null) return false;
    for (const stored of library.candidates(u8, frame, lo & 0xfff, user)) {
      const kept = library.regions[stored];
      const { pieces } = kept;
      const pages = pagesOf(kept, frameOf);
      if (pages === null || !isSame(u8, kept, pages)) continue;
      // Code must be watched before it is compared.
      if (this.#watchPieces(pieces, pages) && !isSame(u8, kept, pages)) continue;
      const slot = library.slotOf(stored);
      const taken = { stored, graph: null, pieces, slot, apart: new Map() };
      const region = { ...taken, key, pages, frame, user, lo };
      this.#add(region);
      this.#translated[slot] = region;
      library.used[stored] = 1;
      this.stored++;
      this.#host.ready(frame, lo);
      return true;
    }
    return false;
  }

  #watchPieces(pieces: Int32Array, pages: ReadonlyMap<number, number>): boolean {
    const bits = new Map<number, number>();
    codeRuns(pieces, pages, (at, _n, size) => {
      const frame = at >>> 12;
      let mask = 0;
      for (let granule = (at & 0xfff) >>> 7; granule <= ((at & 0xfff) + size - 1) >>> 7; granule++)
        mask |= 1 << granule;
      bits.set(frame, (bits.get(frame) ?? 0) | mask);
    });
    return this.#watchBits(bits);
  }

  #watch(graph: RegionGraph): boolean {
    const bits = new Map<number, number>();
    for (const block of graph.blocks)
      for (const { position, instruction } of block.instructions)
        for (const at of [position, position + instruction.length - 1]) {
          const frame = graph.pages.get(at >> 12);
          if (frame !== undefined) bits.set(frame, (bits.get(frame) ?? 0) | (1 << ((at & 0xfff) >>> 7)));
        }
    return this.#watchBits(bits);
  }

  /** Watches granules of frames: true when some were not before. */
  #watchBits(bits: ReadonlyMap<number, number>): boolean {
    let isNew = false;
    for (const [frame, mask] of bits) if (this.#host.watch(frame, mask)) isNew = true;
    return isNew;
  }

  /** Makes modules of what was requested. */
  translate(compilation: Compilation = 'when called'): void {
    const pending = this.#pending;
    this.#pending = [];
    for (const region of pending) if (region.slot !== 0) this.#translateAgain(region);
    for (const user of [false, true]) {
      const batch = pending.filter((region) => region.user === user && region.slot === 0);
      if (batch.length > 0) this.#translate(batch, user, compilation);
    }
  }

  #translate(batch: readonly Region[], user: boolean, compilation: Compilation): void {
    const first = this.#nextSlot;
    if (first + batch.length > this.table.length) this.table.grow(Math.max(1024, batch.length));
    const graphs = batch.flatMap(({ graph }) => (graph === null ? [] : { graph, apart: new Set<number>() }));
    this.#install(graphs, user, first, compilation);
    batch.forEach((region, i) => {
      region.slot = first + i;
      this.#translated[region.slot] = region;
      this.translated++;
      this.instructions += region.graph?.instructions ?? 0;
      this.#keep(region, true);
      region.graph = null;
      this.#host.ready(region.frame, region.lo);
    });
    this.#nextSlot = first + batch.length;
  }

  /** The same code, without the groups that have often lain in two pages. */
  #translateAgain(region: Region): void {
    const { stored, user, slot } = region;
    const { library } = this.#host;
    // Others may have the library's at other places, whatever is here by now.
    const kept = library?.regions[stored];
    const graph = kept === undefined ? this.#discoverAgain(region) : (rebuild(kept)?.graph ?? null);
    if (graph !== null) this.#install([{ graph, apart: new Set(oftenApart(region.apart)) }], user, slot);
  }

  #discoverAgain(region: Region): RegionGraph | null {
    const { pages, lo, user } = region;
    const source = {
      u8: this.#host.u8,
      frame: (relative: number) => pages.get(relative) ?? -1,
      isUser: user,
      large: this.#large,
      isWarm: (frame: number, offset: number) => touches(region, frame, offset, 1),
    };
    const graph = discover(source, lo & 0xfff);
    if (graph === null || this.#watch(graph)) return null;
    region.pieces = piecesOf(graph);
    return graph;
  }

  /** Makes a module of regions and puts it into the table's slots from `first` on. */
  #install(
    regions: readonly RegionToWrite[],
    user: boolean,
    first: number,
    compilation: Compilation = 'when called',
  ): void {
    const start = performance.now();
    const { counting } = this.#host;
    const target = { tlb: STATE.tlb + (user ? TLB_SIZE : 0), userBit: user ? JUMP_USER_HI : 0, counting };
    const bytes = translateRegions(regions, target, first, compilation);
    const compiling = performance.now();
    this.translationMs += compiling - start;
    this.#instantiate(new WebAssembly.Module(bytes));
    this.compilationMs += performance.now() - compiling;
  }

  #instantiate(module: WebAssembly.Module): void {
    const { guest, cpu, scratch, divide, vector, rare } = this.#host;
    const global = new WebAssembly.Global({ value: 'i32' }, scratch | 0);
    const imports = { guest, cpu, table: this.table, scratch: global, divide, vector, rare, apart: this.#liesApart };
    new WebAssembly.Instance(module, { e: imports });
  }

  /** Regions say so when a group of accesses lies in two pages. */
  readonly #liesApart = (slot: number, position: number): void => {
    const region = this.#translated[slot];
    if (region === null || region === undefined) return;
    const times = (region.apart.get(position) ?? 0) + 1;
    region.apart.set(position, times);
    if (times === APART_MAX && !this.#pending.includes(region)) this.#pending.push(region);
  };

  /** What was translated here, whether it still is or not, and the numbers of those of the library that were used, for domains that come later. */
  kept(): { readonly made: KeptRegion[]; readonly used: Uint8Array } {
    const made = [...this.#made].map(([{ apart }, kept]) => ({ ...kept, apart: Int32Array.from(oftenApart(apart)) }));
    const { library } = this.#host;
    return { made, used: library?.used ?? new Uint8Array(0) };
  }

  /** A copy of what a region is made of. */
  #keep(
    { graph, pages, pieces, frame, user, lo, apart }: Omit<Region, 'key' | 'slot' | 'stored'>,
    isHot: boolean,
  ): void {
    const size = sizeOf(pieces);
    if (this.#made.size === MADE_MAX || this.#madeBytes + size > MADE_BYTES_MAX || graph === null) return;
    this.#madeBytes += size;
    const { u8 } = this.#host;
    const code = new Uint8Array(size);
    codeRuns(pieces, pages, (at, n, size) => code.set(u8.subarray(at, at + size), n));
    const entry = lo & 0xfff;
    const starts = Int32Array.from(graph.blocks, ({ start }) => start);
    const key = keyOfCode(u8, frame, entry, user);
    const none = new Int32Array(0);
    this.#made.set({ apart }, { key, entry, user, isHot, unused: 0, pieces, starts, apart: none, code });
  }

  /** Code of a frame has changed somewhere in `offset` to `offset + size`. Calls `dropped` with the slots that are void now. */
  invalidate(frame: number, offset: number, size: number, dropped: (slot: number) => void): void {
    const regions = this.#byFrame.get(frame);
    if (regions === undefined) return;
    for (const region of regions) {
      if (!touches(region, frame, offset, size)) continue;
      this.#regions.delete(region.key);
      for (const page of region.pages.values()) this.#byFrame.get(page)?.delete(region);
      if (region.slot !== 0) {
        // The library's may be what others have elsewhere.
        if (region.stored < 0) this.table.set(region.slot, null);
        this.#translated[region.slot] = null;
        dropped(region.slot);
      }
      this.#pending = this.#pending.filter((other) => other !== region);
    }
  }
}

/**
 * One instruction: a return, which is no quicker in a region, or the call that begins an indirect branch of a kernel that
 * distrusts its CPU. Nobody comes back behind that one: whoever called from a region would wait for it, and all be interpreted. A jump by
 * way of memory is what calls of other libraries go by, from regions to regions.
 */
const isTrivial = ({ instructions, blocks }: RegionGraph): boolean =>
  instructions === 1 && !blocks[0].isLoop && blocks[0].instructions[0].handler !== JUMP_MEMORY;

const oftenApart = (apart: ReadonlyMap<number, number>): number[] =>
  [...apart].filter(([, times]) => times >= APART_MAX).map(([position]) => position);

function touches({ pages, pieces }: Region, frame: number, offset: number, size: number): boolean {
  for (const [relative, page] of pages) {
    if (page !== frame) continue;
    const start = relative * 4096 + offset;
    for (let i = 0; i < pieces.length; i += 2) if (pieces[i] < start + size && pieces[i + 1] > start) return true;
  }
  return false;
}
