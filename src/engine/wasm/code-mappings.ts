/**
 * Where code pages are mapped: what the walks of instruction fetches found, and whether it still stands after a flush.
 *
 * A flush forgets what data addresses mean. The targets of branches (the jump cache) are worth more: Linux flushes some ten times in
 * a fork and exec, and each time thousands of addresses of unchanged kernel code would have to be looked up anew. So the entries
 * of the tables that a walk went by are kept, and a flush compares them: a mapping whose entries are all unchanged is what a new
 * walk would find.
 */

import { NO_ROOT } from '../../machine/vcpu-block.ts';

/** Pages that are remembered, and 2 MiB regions that they lie in. */
const PAGES_MAX = 4096;
const REGIONS_MAX = 1024;
/** u32 words of a page: address of the page with its mode in bit 0, high word, frame, region, word index and two words of its entry. */
const PAGE_WORDS = 8;
const PAGE_LO = 0;
const PAGE_HI = 1;
const PAGE_FRAME = 2;
const PAGE_REGION = 3;
const PAGE_ENTRY = 4;
/** u32 words of a region: its mode, slot in the root, then for levels 4, 3 and 2 word index and two words of the entry. */
const REGION_WORDS = 11;
const REGION_MODE = 0;
const REGION_SLOT = 1;
const REGION_ENTRIES = 2;
/** A first look by the page's number. */
const RECENT = 1024;

/** Of an address's page and mode: a Map's key below 2 ** 53. */
const keyOf = (tag: number, hi: number): number => (hi & 0xffff) * 0x100000000 + tag;

export class CodeMappings {
  readonly #u32: Uint32Array;
  readonly #pages = new Uint32Array(PAGES_MAX * PAGE_WORDS);
  readonly #regions = new Uint32Array(REGIONS_MAX * REGION_WORDS);
  readonly #regionHolds = new Uint8Array(REGIONS_MAX);
  #pageCount = 0;
  #regionCount = 0;
  readonly #regionIndex = new Map<number, number>();
  /** Page number with its mode -> index; `#recent` is a first look. */
  readonly #pageIndex = new Map<number, number>();
  readonly #recent = new Int32Array(RECENT).fill(-1);
  readonly #path: Uint32Array;

  /** `u32`: memory 0. `path`: word indexes of the entries that the last walk went by, by level - 1. */
  constructor(u32: Uint32Array, path: Uint32Array) {
    this.#u32 = u32;
    this.#path = path;
  }

  /** Frame of the code page of an address, -1 = not known. `mode`: 0 kernel, 1 user. */
  find(lo: number, hi: number, mode: number): number {
    const slot = (lo >>> 12) & (RECENT - 1);
    let index = this.#recent[slot];
    const pages = this.#pages;
    const tag = ((lo & ~0xfff) | mode) >>> 0;
    let at = index * PAGE_WORDS;
    if (index < 0 || pages[at + PAGE_LO] !== tag || pages[at + PAGE_HI] !== hi) {
      index = this.#pageIndex.get(keyOf(tag, hi)) ?? -1;
      if (index < 0) return -1;
      this.#recent[slot] = index;
      at = index * PAGE_WORDS;
    }
    return pages[at + PAGE_FRAME];
  }

  get isFull(): boolean {
    return this.#pageCount === PAGES_MAX || this.#regionCount === REGIONS_MAX;
  }

  /** Takes what a walk to a code page found, with its path. There must be room. */
  add(lo: number, hi: number, mode: number, frame: number): void {
    const region = this.#regionOf(lo, hi, mode);
    const tag = ((lo & ~0xfff) | mode) >>> 0;
    const index = this.#pageCount++;
    const at = index * PAGE_WORDS;
    const pages = this.#pages;
    const entry = this.#path[0];
    pages[at + PAGE_LO] = tag;
    pages[at + PAGE_HI] = hi;
    pages[at + PAGE_FRAME] = frame;
    pages[at + PAGE_REGION] = region;
    pages[at + PAGE_ENTRY] = entry;
    pages[at + PAGE_ENTRY + 1] = this.#u32[entry];
    pages[at + PAGE_ENTRY + 2] = this.#u32[entry + 1];
    this.#pageIndex.set(keyOf(tag, hi), index);
  }

  #regionOf(lo: number, hi: number, mode: number): number {
    const key = ((hi & 0xffff) * 0x800 + (lo >>> 21)) * 2 + mode;
    const known = this.#regionIndex.get(key);
    // A region found anew by another way (its tables changed, but this vCPU has not flushed): the old way stands for its old pages.
    if (known !== undefined && this.#stands(known, this.#path[3] & ~1023)) return known;
    const index = this.#regionCount++;
    const at = index * REGION_WORDS;
    const regions = this.#regions;
    regions[at + REGION_MODE] = mode;
    regions[at + REGION_SLOT] = this.#path[3] & 1023;
    for (let level = 3; level >= 1; level--) {
      const to = at + REGION_ENTRIES + (3 - level) * 3;
      const entry = this.#path[level];
      regions[to] = entry;
      regions[to + 1] = this.#u32[entry];
      regions[to + 2] = this.#u32[entry + 1];
    }
    this.#regionIndex.set(key, index);
    return index;
  }

  /** Whether the entries above level 1 are what they were, from the root whose first word is `root`. */
  #stands(region: number, root: number): boolean {
    const at = region * REGION_WORDS;
    const regions = this.#regions;
    const u32 = this.#u32;
    for (let level = 3; level >= 1; level--) {
      const from = at + REGION_ENTRIES + (3 - level) * 3;
      // The root may be another one since, with the same entries.
      const entry = level === 3 ? root + regions[at + REGION_SLOT] : regions[from];
      if (u32[entry] !== regions[from + 1] || u32[entry + 1] !== regions[from + 2]) return false;
    }
    return true;
  }

  /**
   * Forgets the pages that are not mapped any more as they were, from roots (frames) that may be others, and calls `gone` with
   * the address of each.
   */
  check(kernelRoot: number, userRoot: number, gone: (lo: number, hi: number) => void): void {
    const roots = [kernelRoot * 1024, (userRoot === NO_ROOT ? kernelRoot : userRoot) * 1024];
    for (let region = 0; region < this.#regionCount; region++)
      this.#regionHolds[region] = this.#stands(region, roots[this.#regions[region * REGION_WORDS + REGION_MODE]])
        ? 1
        : 0;
    this.#keep((at) => {
      const pages = this.#pages;
      const entry = pages[at + PAGE_ENTRY];
      return (
        this.#regionHolds[pages[at + PAGE_REGION]] !== 0 &&
        this.#u32[entry] === pages[at + PAGE_ENTRY + 1] &&
        this.#u32[entry + 1] === pages[at + PAGE_ENTRY + 2]
      );
    }, gone);
  }

  #keep(holds: (at: number) => boolean, gone: (lo: number, hi: number) => void): void {
    const pages = this.#pages;
    let kept = 0;
    for (let page = 0; page < this.#pageCount; page++) {
      const at = page * PAGE_WORDS;
      if (holds(at)) {
        if (kept !== page) pages.copyWithin(kept * PAGE_WORDS, at, at + PAGE_WORDS);
        kept++;
      } else gone(pages[at + PAGE_LO] & ~1, pages[at + PAGE_HI]);
    }
    if (kept === this.#pageCount) return;
    if (kept === 0) {
      this.clear();
      return;
    }
    this.#pageCount = kept;
    this.#recent.fill(-1);
    this.#pageIndex.clear();
    for (let page = 0; page < kept; page++) {
      const at = page * PAGE_WORDS;
      this.#pageIndex.set(keyOf(pages[at + PAGE_LO], pages[at + PAGE_HI]), page);
    }
  }

  /** Forgets the page of an address in both modes. True when it was known. */
  forgetPage(lo: number, hi: number): boolean {
    const tag = (lo & ~0xfff) >>> 0;
    if (!this.#pageIndex.has(keyOf(tag, hi)) && !this.#pageIndex.has(keyOf((tag | 1) >>> 0, hi))) return false;
    const pages = this.#pages;
    this.#keep(
      (at) => (pages[at + PAGE_LO] & ~1) >>> 0 !== tag || pages[at + PAGE_HI] !== hi,
      () => undefined,
    );
    return true;
  }

  clear(): void {
    if (this.#pageCount === 0) return;
    this.#pageCount = 0;
    this.#regionCount = 0;
    this.#regionIndex.clear();
    this.#pageIndex.clear();
    this.#recent.fill(-1);
  }
}
