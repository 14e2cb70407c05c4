/**
 * The translated regions of one vCPU: requests, modules, and what may be entered where.
 *
 * A region belongs to the frames that it was read from. It may be entered at any address that maps its entry's frame, if the pages
 * around it that it also has code of map the same frames there. Regions are translated several at a time: a module for each is
 * slow to make, and its code lies badly in the caches. Source: design measurements, modules of one function cost 45-75 us each.
 */

import { JUMP_MEMORY } from './handlers.ts';
import { FIRST_SLOT } from './interpreter.ts';
import { JUMP_USER_HI, STATE, TLB_SIZE } from './layout.ts';
import type { NotedRegion } from './noted-code.ts';
import { translateRegions } from './region.ts';
import { discover, type RegionGraph } from './region-graph.ts';

/** The most regions that wait for a module. */
const BATCH = 64;
/**
 * Times that a group of accesses may be left to the interpreter because its bytes lie in two pages, before the region is translated
 * again: they cost as much as that does.
 */
const APART_MAX = 4096;
/** Regions of a module of those that are prepared. */
const BATCH_PREPARED = 16;
/** Slots before everything is dropped and starts anew. */
const SLOTS_MAX = 1 << 16;

interface Region {
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
  #nextSlot = FIRST_SLOT;
  /** For statistics. */
  translated = 0;
  instructions = 0;
  /** Reading the code and writing WebAssembly, and what V8 takes before a module can run (it optimizes later, in its own threads). */
  translationMs = 0;
  compilationMs = 0;

  constructor(host: RegionHost) {
    this.#host = host;
    this.#starts = new Uint8Array(host.u8.length >>> 12);
    this.table = new WebAssembly.Table({ element: 'anyfunc', initial: FIRST_SLOT + 1024 });
  }

  get hasPending(): boolean {
    return this.#pending.length > 0;
  }

  get isFull(): boolean {
    return this.#nextSlot + BATCH >= SLOTS_MAX;
  }

  clear(): void {
    for (const region of this.#regions.values()) if (region.slot !== 0) this.table.set(region.slot, null);
    this.#regions.clear();
    this.#starts.fill(0);
    this.#large.clear();
    this.#byFrame.clear();
    this.#translated.length = 0;
    this.#pending = [];
    this.#nextSlot = FIRST_SLOT;
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

  /** Wants a region at an address whose page is `frame`. */
  request(frame: number, lo: number, hi: number, user: boolean): void {
    this.#want(frame, lo, user, (relative) => (relative === 0 ? frame : this.#host.frame(lo, hi, relative)));
  }

  /** The region at an offset of a frame, if there is one. */
  region(frame: number, offset: number, user: boolean): NotedRegion | undefined {
    return this.#regions.get(keyOf(frame, offset, user));
  }

  /** Wants a region that another vCPU has had, and translates some when many wait. */
  prepare({ frame, lo, user, pages }: NotedRegion): void {
    this.#want(frame, lo, user, (relative) => pages.get(relative) ?? -1);
    if (this.#pending.length >= BATCH_PREPARED) this.translate();
  }

  #want(frame: number, lo: number, user: boolean, frameOf: (relative: number) => number): void {
    const offset = lo & 0xfff;
    const key = keyOf(frame, offset, user);
    if (this.#regions.has(key) || this.isFull) return;
    const start = performance.now();
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
    this.translationMs += performance.now() - start;
    if (graph === null || isTrivial(graph)) return;
    const { pages } = graph;
    const region: Region = { key, graph, pages, pieces: piecesOf(graph), frame, user, lo, slot: 0, apart: new Map() };
    this.#regions.set(key, region);
    this.#starts[frame] = 1;
    for (const page of graph.pages.values()) {
      const known = this.#byFrame.get(page);
      if (known === undefined) this.#byFrame.set(page, new Set([region]));
      else known.add(region);
    }
    this.#pending.push(region);
  }

  #watch(graph: RegionGraph): boolean {
    const bits = new Map<number, number>();
    for (const block of graph.blocks)
      for (const { position, instruction } of block.instructions)
        for (const at of [position, position + instruction.length - 1]) {
          const frame = graph.pages.get(at >> 12);
          if (frame !== undefined) bits.set(frame, (bits.get(frame) ?? 0) | (1 << ((at & 0xfff) >>> 7)));
        }
    let isNew = false;
    for (const [frame, mask] of bits) if (this.#host.watch(frame, mask)) isNew = true;
    return isNew;
  }

  /** Makes modules of what was requested. */
  translate(): void {
    const pending = this.#pending;
    this.#pending = [];
    for (const region of pending) if (region.slot !== 0) this.#translateAgain(region);
    for (const user of [false, true]) {
      const batch = pending.filter((region) => region.user === user && region.slot === 0);
      if (batch.length > 0) this.#translate(batch, user);
    }
  }

  #translate(batch: readonly Region[], user: boolean): void {
    const first = this.#nextSlot;
    if (first + batch.length > this.table.length) this.table.grow(Math.max(1024, batch.length));
    const graphs = batch.flatMap((region) => region.graph ?? []);
    this.#install(graphs, user, first, new Set());
    batch.forEach((region, i) => {
      region.slot = first + i;
      this.#translated[region.slot] = region;
      this.translated++;
      this.instructions += region.graph?.instructions ?? 0;
      region.graph = null;
      this.#host.ready(region.frame, region.lo);
    });
    this.#nextSlot = first + batch.length;
  }

  /** The same code, without the groups that have often lain in two pages. */
  #translateAgain(region: Region): void {
    const { pages, lo, user, slot } = region;
    const source = {
      u8: this.#host.u8,
      frame: (relative: number) => pages.get(relative) ?? -1,
      isUser: user,
      large: this.#large,
      isWarm: (frame: number, offset: number) => touches(region, frame, offset, 1),
    };
    const graph = discover(source, lo & 0xfff);
    if (graph === null || this.#watch(graph)) return;
    region.pieces = piecesOf(graph);
    const often = [...region.apart].filter(([, times]) => times >= APART_MAX);
    this.#install([graph], user, slot, new Set(often.map(([position]) => position)));
  }

  /** Makes a module of regions and puts it into the table's slots from `first` on. */
  #install(graphs: readonly RegionGraph[], user: boolean, first: number, apart: ReadonlySet<number>): void {
    const start = performance.now();
    const { guest, cpu, scratch, divide, vector, rare } = this.#host;
    const bytes = translateRegions(
      graphs,
      {
        guestPages: guest.buffer.byteLength / 65536,
        cpuPages: cpu.buffer.byteLength / 65536,
        tlb: STATE.tlb + (user ? TLB_SIZE : 0),
        userBit: user ? JUMP_USER_HI : 0,
        counting: this.#host.counting,
      },
      first,
      apart,
    );
    const compiling = performance.now();
    this.translationMs += compiling - start;
    const global = new WebAssembly.Global({ value: 'i32' }, scratch | 0);
    new WebAssembly.Instance(new WebAssembly.Module(bytes), {
      e: { guest, cpu, table: this.table, scratch: global, divide, vector, rare, apart: this.#liesApart },
    });
    this.compilationMs += performance.now() - compiling;
  }

  /** Regions say so when a group of accesses lies in two pages. */
  readonly #liesApart = (slot: number, position: number): void => {
    const region = this.#translated[slot];
    if (region === null || region === undefined) return;
    const times = (region.apart.get(position) ?? 0) + 1;
    region.apart.set(position, times);
    if (times === APART_MAX && !this.#pending.includes(region)) this.#pending.push(region);
  };

  /** Code of a frame has changed somewhere in `offset` to `offset + size`. Calls `dropped` with the slots that are void now. */
  invalidate(frame: number, offset: number, size: number, dropped: (slot: number) => void): void {
    const regions = this.#byFrame.get(frame);
    if (regions === undefined) return;
    for (const region of regions) {
      if (!touches(region, frame, offset, size)) continue;
      this.#regions.delete(region.key);
      for (const page of region.pages.values()) this.#byFrame.get(page)?.delete(region);
      if (region.slot !== 0) {
        this.table.set(region.slot, null);
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

function touches({ pages, pieces }: Region, frame: number, offset: number, size: number): boolean {
  for (const [relative, page] of pages) {
    if (page !== frame) continue;
    const start = relative * 4096 + offset;
    for (let i = 0; i < pieces.length; i += 2) if (pieces[i] < start + size && pieces[i + 1] > start) return true;
  }
  return false;
}
