/**
 * The software TLB of a vCPU in memory 1: what its entries are of, and which of them outlive a flush.
 *
 * Each mode (kernel, user) has a TLB of its own, because each has a root of its own. An entry gives reads and writes their own tag:
 * a write tag is there only when nothing is left to do for a store: the page is writable, its dirty bit is set, no code of it
 * has been decoded, and it has its mark if writes are tracked (dirty-frames.ts).
 *
 * In the kernel's half the pages behind the one that was missed are filled with it, as far as their table entries share a line of the
 * CPU's cache: a kernel that reads a disk takes page by page of its direct map. Never those before it: two pages of one group
 * and of the same place in the TLB as another two would drive each other out for ever.
 */

import type { MachineMemory } from '../../machine/memory.ts';
import { PTE_A, PTE_D, PTE_P, PTE_RW, PTE_US } from '../../machine/page-table.ts';
import { VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import { STATE, TLB_ADDEND, TLB_ENTRIES, TLB_ENTRY, TLB_FRAME, TLB_READ, TLB_SIZE, TLB_WRITE } from './layout.ts';

/** What an entry is of: it may outlive the others. */
const KERNEL_HALF = 0;
const LOW_HALF = 1;
const USER_MODE = 2;
/** First L4 slot behind Xen's hole. */
const HOLE_END_SLOT = 272;

/** More fills than this are flushed all at once. */
const FILLS_MAX = 1024;
/** Of `#storableEntries`. */
const SEVERAL = 0xffff;
/** Pages whose table entries share a line of the CPU's cache. */
const GROUP = 8;
/** What a fill of the kernel's half was found by, in words: index of its group's first level 1 entry, 0 = by no tables; that entry's two words and those of the others. */
const PATH_GROUP = 1;
/** Index of the table entry and its two words, for levels 2 to 4. */
const PATH_TABLES: number = PATH_GROUP + 2 * GROUP;
const PATH_WORDS: number = PATH_TABLES + 9;
const NOWHERE = 0xffffffff;

/** What the last walk went by, by level - 1: word indexes of the entries, and what it left in them. */
export interface Path {
  readonly at: Uint32Array;
  readonly lo: Uint32Array;
  readonly hi: Uint32Array;
  /** There are tables of the guest for it. */
  isKnown: boolean;
  /** All tables but the last let it store. */
  isWritable: boolean;
}

export class Tlb {
  readonly #machine: MachineMemory;
  readonly #block: VcpuBlock;
  /** Granules with code, by frame. */
  readonly #granules: Int32Array;
  readonly #path: Path;
  /** Entries filled since they were last forgotten, by KERNEL_HALF (the first of the group), LOW_HALF and USER_MODE. */
  readonly #fills = [new Uint16Array(FILLS_MAX + 1), new Uint16Array(FILLS_MAX), new Uint16Array(FILLS_MAX)];
  /** As if all had been filled: a new TLB's zeros would be page 0. */
  readonly #fillCounts = [FILLS_MAX, FILLS_MAX, FILLS_MAX];
  /** Of the fills of the kernel's half: how they were found, and which of the group they are. The place behind the last is for those that are not kept. */
  readonly #paths = new Uint32Array((FILLS_MAX + 1) * PATH_WORDS);
  readonly #masks = new Uint8Array(FILLS_MAX + 1);
  /** By entry: the flush that has looked at it. */
  readonly #seen = new Uint32Array(TLB_ENTRIES);
  #flushes = 0;
  /** By mode and frame: the one entry (+ 1) that stores into the frame may pass by, SEVERAL = look at all, 0 = there is none. */
  readonly #storableEntries: readonly Uint16Array[];

  constructor(machine: MachineMemory, block: VcpuBlock, granules: Int32Array, path: Path) {
    this.#machine = machine;
    this.#block = block;
    this.#granules = granules;
    this.#path = path;
    const frames = machine.u8.length >>> 12;
    this.#storableEntries = [new Uint16Array(frames), new Uint16Array(frames)];
  }

  /** Takes the page (an offset in memory 0) that the last walk found for an address. */
  fill(mode: number, lo: number, hi: number, page: number, isStorable: boolean): void {
    const index = (lo >>> 12) & (TLB_ENTRIES - 1);
    this.#set(mode, index, lo, hi, page, isStorable && this.#mayStore(page >>> 12));
    const kind = mode !== 0 ? USER_MODE : hi >>> 31 !== 0 ? KERNEL_HALF : LOW_HALF;
    const count = this.#fillCounts[kind];
    if (kind === KERNEL_HALF) this.#fillGroup(count, index, lo, hi);
    else if (count < FILLS_MAX) this.#fills[kind][count] = index;
    if (count < FILLS_MAX) this.#fillCounts[kind] = count + 1;
  }

  #mayStore(frame: number): boolean {
    return this.#granules[frame] === 0 && this.#machine.dirty.isKnown(frame);
  }

  #set(mode: number, index: number, lo: number, hi: number, page: number, isStorable: boolean): void {
    const { u32 } = this.#block;
    const entry = STATE.tlb + mode * TLB_SIZE + index * TLB_ENTRY;
    const tag = lo & ~0xfff;
    u32[(entry + TLB_READ) >>> 2] = tag;
    u32[(entry + TLB_READ + 4) >>> 2] = hi;
    u32[(entry + TLB_WRITE) >>> 2] = isStorable ? tag : NOWHERE;
    u32[(entry + TLB_WRITE + 4) >>> 2] = isStorable ? hi : NOWHERE;
    if (isStorable) this.#letStore(mode, index, page >>> 12);
    u32[(entry + TLB_ADDEND) >>> 2] = page - tag;
    u32[(entry + TLB_FRAME) >>> 2] = page >>> 12;
  }

  /** Keeps how a page of the kernel's half was found, and fills those behind it that the CPU has used before. */
  #fillGroup(fill: number, own: number, lo: number, hi: number): void {
    const paths = this.#paths;
    const path = fill * PATH_WORDS;
    this.#fills[KERNEL_HALF][fill] = own & -GROUP;
    paths[path] = 0;
    this.#masks[fill] = 1 << (own & (GROUP - 1));
    const { at, lo: pathLo, hi: pathHi, isKnown } = this.#path;
    if (!isKnown) return;
    paths[path] = (at[0] & -(2 * GROUP)) >>> 0;
    const known = path + PATH_GROUP + 2 * (own & (GROUP - 1));
    paths[known] = pathLo[0];
    paths[known + 1] = pathHi[0];
    for (let level = 1; level < 4; level++) {
      const table = path + PATH_TABLES + (level - 1) * 3;
      paths[table] = at[level];
      paths[table + 1] = pathLo[level];
      paths[table + 2] = pathHi[level];
    }
    for (let next = 1; ((own + next) & (GROUP - 1)) !== 0; next++)
      if (this.#fillBehind(own + next, (lo & ~0xfff) + next * 4096, hi, at[0] + 2 * next, known + 2 * next))
        this.#masks[fill] |= 1 << ((own + next) & (GROUP - 1));
  }

  /** What a table entry says, if the CPU has used it before and the place is free or of the same part of the address space. */
  #fillBehind(index: number, lo: number, hi: number, at: number, known: number): boolean {
    const { i32 } = this.#machine;
    const { u32 } = this.#block;
    const entry = i32[at];
    const entryHi = i32[at + 1];
    if ((entry & (PTE_P | PTE_US | PTE_A)) !== (PTE_P | PTE_US | PTE_A)) return false;
    const slot = (STATE.tlb + index * TLB_ENTRY) >>> 2;
    if (u32[slot] !== NOWHERE && (u32[slot] === lo >>> 0 || u32[slot + 1] !== hi)) return false;
    const page = this.#machine.mfnToOffset((entryHi & 0xfffff) * 0x100000 + (entry >>> 12));
    if (page < 0) return false;
    const isWritable = this.#path.isWritable && (entry & (PTE_RW | PTE_D)) === (PTE_RW | PTE_D);
    this.#set(0, index, lo, hi, page, isWritable && this.#mayStore(page >>> 12));
    this.#paths[known] = entry;
    this.#paths[known + 1] = entryHi;
    return true;
  }

  /** Forgets all translations but those of the kernel's half in kernel mode. */
  flushLowHalf(): void {
    this.#forget(LOW_HALF);
    this.#forget(USER_MODE);
  }

  /** Forgets those of the kernel's half too. */
  flushKernelHalf(): void {
    this.#forget(KERNEL_HALF);
  }

  #forget(kind: number): void {
    const count = this.#fillCounts[kind];
    const base = STATE.tlb + (kind === USER_MODE ? TLB_SIZE : 0);
    if (count === FILLS_MAX) this.#block.u32.fill(NOWHERE, base >>> 2, (base + TLB_SIZE) >>> 2);
    else {
      const fills = this.#fills[kind];
      for (let i = 0; i < count; i++)
        if (kind !== KERNEL_HALF) this.#drop(base + fills[i] * TLB_ENTRY);
        else
          for (let page = 0; page < GROUP; page++)
            if ((this.#masks[i] & (1 << page)) !== 0) this.#drop(base + (fills[i] + page) * TLB_ENTRY);
    }
    this.#fillCounts[kind] = 0;
  }

  /** Forgets those of the kernel's half that a walk would not find again: some hundred of them would cost a fork and exec, which flushes 12 times, 1100 misses. */
  checkKernelHalf(): void {
    const count = this.#fillCounts[KERNEL_HALF];
    const root = this.#block.u32[VCPU.kernelRoot >> 2];
    if (count === FILLS_MAX || root >= this.#machine.layout.nameableFrames) {
      this.#forget(KERNEL_HALF);
      return;
    }
    const fills = this.#fills[KERNEL_HALF];
    const paths = this.#paths;
    const masks = this.#masks;
    this.#flushes++;
    let kept = FILLS_MAX;
    // From the youngest: of an entry that was filled twice the older path says nothing any more.
    for (let i = count - 1; i >= 0; i--) {
      const mask = this.#check(fills[i], masks[i], i * PATH_WORDS, root);
      if (mask === 0) continue;
      kept--;
      fills[kept] = fills[i];
      masks[kept] = mask;
      paths.copyWithin(kept * PATH_WORDS, i * PATH_WORDS, (i + 1) * PATH_WORDS);
    }
    fills.copyWithin(0, kept, FILLS_MAX);
    masks.copyWithin(0, kept, FILLS_MAX);
    paths.copyWithin(0, kept * PATH_WORDS, FILLS_MAX * PATH_WORDS);
    this.#fillCounts[KERNEL_HALF] = FILLS_MAX - kept;
  }

  /** Drops those entries of a fill that a walk would not find again. Which ones stay. */
  #check(first: number, mask: number, path: number, root: number): number {
    const { u32 } = this.#machine;
    const paths = this.#paths;
    const stands = paths[path] !== 0 && this.#stands(path + PATH_TABLES, root);
    let stay = 0;
    for (let page = 0; page < GROUP; page++) {
      const index = first + page;
      if ((mask & (1 << page)) === 0 || this.#seen[index] === this.#flushes) continue;
      this.#seen[index] = this.#flushes;
      const entry = STATE.tlb + index * TLB_ENTRY;
      const at = paths[path] + 2 * page;
      const known = path + PATH_GROUP + 2 * page;
      if (stands && u32[at] === paths[known] && u32[at + 1] === paths[known + 1]) {
        stay |= 1 << page;
        this.#checkWrites(entry);
      } else this.#drop(entry);
    }
    return stay;
  }

  /** Whether the entries of tables above level 1 are what they were, from a root that may be another one with the same entry. */
  #stands(tables: number, root: number): boolean {
    const { u32 } = this.#machine;
    const paths = this.#paths;
    for (let level = 1; level < 4; level++) {
      const known = tables + (level - 1) * 3;
      const at = level === 3 ? root * 1024 + (paths[known] & 1023) : paths[known];
      if (u32[at] !== paths[known + 1] || u32[at + 1] !== paths[known + 2]) return false;
    }
    return true;
  }

  /** Whether two roots map the kernel's half alike, but for accessed bits. */
  sharesKernelHalf(root: number, other: number): boolean {
    const { u32, layout } = this.#machine;
    if (root >= layout.nameableFrames || other >= layout.nameableFrames) return false;
    for (let slot = HOLE_END_SLOT * 2; slot < 1024; slot += 2) {
      const a = root * 1024 + slot;
      const b = other * 1024 + slot;
      if (((u32[a] ^ u32[b]) & ~PTE_A) !== 0 || u32[a + 1] !== u32[b + 1]) return false;
    }
    return true;
  }

  /** Forgets the page of an address, in both modes. */
  flushPage(lo: number): void {
    const index = (lo >>> 12) & (TLB_ENTRIES - 1);
    this.#drop(STATE.tlb + index * TLB_ENTRY);
    this.#drop(STATE.tlb + TLB_SIZE + index * TLB_ENTRY);
  }

  #drop(entry: number): void {
    const { u32 } = this.#block;
    u32[(entry + TLB_READ) >>> 2] = NOWHERE;
    u32[(entry + TLB_READ + 4) >>> 2] = NOWHERE;
    this.#dropWrite(entry);
  }

  #dropWrite(entry: number): void {
    const { u32 } = this.#block;
    u32[(entry + TLB_WRITE) >>> 2] = NOWHERE;
    u32[(entry + TLB_WRITE + 4) >>> 2] = NOWHERE;
  }

  /** An entry stays, but stores into its frame may have to be seen now. */
  #checkWrites(entry: number): void {
    if (!this.#mayStore(this.#block.u32[(entry + TLB_FRAME) >>> 2])) this.#dropWrite(entry);
  }

  /** No store into a frame may pass any more. */
  dropWrites(frame: number): void {
    for (let mode = 0; mode < 2; mode++) {
      const entries = this.#storableEntries[mode];
      const known = entries[frame];
      const base = STATE.tlb + mode * TLB_SIZE;
      if (known === SEVERAL) for (let i = 0; i < TLB_ENTRIES; i++) this.#dropWriteTo(frame, base + i * TLB_ENTRY);
      else if (known !== 0) this.#dropWriteTo(frame, base + (known - 1) * TLB_ENTRY);
      entries[frame] = 0;
    }
  }

  #dropWriteTo(frame: number, entry: number): void {
    if (this.#block.u32[(entry + TLB_FRAME) >>> 2] === frame) this.#dropWrite(entry);
  }

  /** An entry is about to let stores into a frame pass. */
  #letStore(mode: number, index: number, frame: number): void {
    const entries = this.#storableEntries[mode];
    const known = entries[frame];
    if (known === SEVERAL || known === index + 1) return;
    const entry = STATE.tlb + mode * TLB_SIZE + (known - 1) * TLB_ENTRY;
    const { u32 } = this.#block;
    const isElsewhere =
      known !== 0 && u32[(entry + TLB_FRAME) >>> 2] === frame && u32[(entry + TLB_WRITE) >>> 2] !== NOWHERE;
    entries[frame] = isElsewhere ? SEVERAL : index + 1;
  }
}
