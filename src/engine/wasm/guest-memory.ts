/**
 * How a vCPU reaches memory 0: the page walk, accesses that the TLB (tlb.ts) does not let pass, those that cross pages, and stores into
 * pages with code.
 *
 * An access that crosses pages, or a store into a page with code, gets a place in the vCPU's scratch area in memory 0 instead; after
 * the store `commit` moves the bytes to where they belong. Faults are left in the block: vector, error code, CR2.
 * Source of walk and error codes: Intel SDM vol. 3, 4.5 and 4.7.
 */

import type { MachineMemory } from '../../machine/memory.ts';
import { MFN_BASE, SCRATCH_BYTES } from '../../machine/memory.ts';
import { PTE_A, PTE_D, PTE_P, PTE_PSE, PTE_RW, PTE_US } from '../../machine/page-table.ts';
import { NO_ROOT, VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import type { Breakpoints } from './breakpoints.ts';
import { CodeMappings } from './code-mappings.ts';
import { STATE, TLB_ADDEND, TLB_ENTRIES, TLB_ENTRY, TLB_READ, TLB_SIZE, TLB_WRITE } from './layout.ts';
import { type Path, Tlb } from './tlb.ts';

export const ERROR_P = 1;
export const ERROR_W = 2;
export const ERROR_U = 4;
export const ERROR_RSVD = 8;
export const ERROR_I = 16;

/** High word of the addresses where the M2P is shown: Xen's slot 256, and 257 as on KVM. */
export const M2P_VA_HI = 0xffff8000;
const M2P_VA_HI_KVM = 0xffff8080;
const M2P_FIRST = MFN_BASE * 8;

export const READ = 0;
export const WRITE = 1;
export const FETCH = 2;

/**
 * Stores beside the code of a frame, each of which comes here, until the frame counts as data and its code is forgotten: Linux gives the
 * memory of its __init functions away. Where there is code again, twice as many the next time: it may be both.
 */
const BESIDE_CODE = 16;
const TIMES_DATA_MAX = 16;
const SLOTS = 16;
const SLOT_BYTES = SCRATCH_BYTES / SLOTS;

/** Who must know of stores into code. */
export interface CodeWatcher {
  /** Pages with code have a bit for each 128 bytes that were decoded: one word a frame. */
  readonly granules: Int32Array;
  /** Bytes of a frame have changed. */
  changed(frame: number, offset: number, size: number): void;
  /** There are so many code pages that where they are mapped will be forgotten. */
  crowded(): void;
  /** Time has passed that no branch has counted. */
  look(): void;
}

const ALIGNMENT_CHECK = 17;
/** A mask: so many accesses miss the TLB between two looks. */
const MISSES_BETWEEN = 127;

/** Source: Intel SDM vol. 3, table 6-7; AMD APM vol. 2, 8.2.18, whose CPUs also check vectors, halves of 32 bytes; measured. */
function isMisaligned(lo: number, size: number): boolean {
  const wanted = size === 10 ? 8 : size === 32 ? 16 : size;
  return wanted <= 32 && (wanted & (wanted - 1)) === 0 && (lo & (wanted - 1)) !== 0;
}

export class GuestMemory {
  readonly machine: MachineMemory;
  readonly block: VcpuBlock;
  readonly #code: CodeWatcher;
  /** Code of the kernel's half in kernel mode; the rest, which another root maps otherwise. */
  readonly #kernelCode: CodeMappings;
  readonly #lowCode: CodeMappings;
  readonly #path: Path = {
    at: new Uint32Array(4),
    lo: new Uint32Array(4),
    hi: new Uint32Array(4),
    isKnown: false,
    isWritable: false,
  };
  readonly #tlb: Tlb;
  /** By frame: stores beside its code, and how often the code was forgotten for them. */
  readonly #besideCode: Uint32Array;
  readonly #timesData: Uint8Array;
  readonly scratch: number;
  #slot = 0;
  /** What a scratch slot stands for: two pieces, by offset in memory 0; the length of the first. */
  readonly #first = new Uint32Array(SLOTS);
  readonly #second = new Uint32Array(SLOTS);
  readonly #firstBytes = new Uint32Array(SLOTS);
  /** Sees all accesses: the TLB stays empty then. Set it between flushes of all. */
  watch: Breakpoints | null = null;
  /** RFLAGS.AC is set: a misaligned access is #AC, unless the instruction is exempt. The TLB stays empty then too. */
  checksAlignment = false;
  isExempt = false;
  /** Times that `miss` was called. */
  misses = 0;

  constructor(machine: MachineMemory, block: VcpuBlock, code: CodeWatcher) {
    this.machine = machine;
    this.block = block;
    this.#code = code;
    this.#besideCode = new Uint32Array(machine.u8.length >>> 12);
    this.#timesData = new Uint8Array(machine.u8.length >>> 12);
    this.#tlb = new Tlb(machine, block, code.granules, this.#path);
    this.#kernelCode = new CodeMappings(machine.u32, this.#path.at);
    this.#lowCode = new CodeMappings(machine.u32, this.#path.at);
    this.scratch = machine.layout.scratchOffset + block.vcpuId * SCRATCH_BYTES;
    this.flush(() => undefined);
  }

  /** 0 kernel, 1 user. */
  get mode(): number {
    return this.block.u32[VCPU.userMode >> 2] === 0 ? 0 : 1;
  }

  #root(): number {
    const u32 = this.block.u32;
    if (u32[VCPU.userMode >> 2] !== 0) {
      const user = u32[VCPU.userRoot >> 2];
      if (user !== NO_ROOT) return user;
    }
    return u32[VCPU.kernelRoot >> 2];
  }

  /**
   * Forgets translations of data, but those of the kernel's half that a walk would find again. `gone` gets the code pages that
   * are not mapped any more as they were.
   */
  flush(gone: (lo: number, hi: number) => void): void {
    if (this.#isShut) this.#tlb.flushKernelHalf();
    else this.#tlb.checkKernelHalf();
    this.#tlb.flushLowHalf();
    const { u32 } = this.block;
    const kernelRoot = u32[VCPU.kernelRoot >> 2];
    const userRoot = u32[VCPU.userRoot >> 2];
    this.#kernelCode.check(kernelRoot, userRoot, gone);
    this.#lowCode.check(kernelRoot, userRoot, gone);
  }

  /** Forgets all translations but those of the kernel's half in kernel mode. */
  flushLowHalf(): void {
    this.#tlb.flushLowHalf();
    this.#lowCode.clear();
  }

  /** Every access is to come here. */
  get #isShut(): boolean {
    return this.watch !== null || this.checksAlignment;
  }

  /** Whether two roots map the kernel's half alike, but for accessed bits. */
  sharesKernelHalf(root: number, other: number): boolean {
    return this.#tlb.sharesKernelHalf(root, other);
  }

  /** Frame of the code at an address, or -1 with a fault in the block. */
  codeFrame(lo: number, hi: number): number {
    const { mode } = this;
    const mappings = mode === 0 && hi >>> 31 !== 0 ? this.#kernelCode : this.#lowCode;
    const known = mappings.find(lo, hi, mode);
    if (known >= 0) return known;
    const page = this.walk(lo, hi, FETCH);
    if (page < 0) return -1;
    if (mappings.isFull) {
      mappings.clear();
      this.#code.crowded();
    }
    mappings.add(lo, hi, mode, page >>> 12);
    return page >>> 12;
  }

  /** Forgets the page of an address, in both modes. True when code has run there. */
  flushPage(lo: number, hi: number): boolean {
    this.#tlb.flushPage(lo);
    const kernelCode = this.#kernelCode.forgetPage(lo, hi);
    return this.#lowCode.forgetPage(lo, hi) || kernelCode;
  }

  /** Code of a frame is about to be decoded: stores into it must come here from now on. */
  dropWrites(frame: number): void {
    this.#tlb.dropWrites(frame);
  }

  #pageFault(lo: number, hi: number, error: number): -1 {
    const u32 = this.block.u32;
    u32[VCPU.cr2 >> 2] = lo;
    u32[(VCPU.cr2 >> 2) + 1] = hi;
    u32[VCPU.exitVector >> 2] = 14;
    u32[VCPU.exitErrorCode >> 2] = error;
    return -1;
  }

  fault(vector: number, error: number): -1 {
    this.block.u32[VCPU.exitVector >> 2] = vector;
    this.block.u32[VCPU.exitErrorCode >> 2] = error;
    return -1;
  }

  /** The last fault was a #GP for this address (its low word): it may have to be #SS (stack-fault.ts). */
  isNonCanonical = false;
  nonCanonicalLo = 0;

  /** Whether the last `walk` allows a store that needs nothing more. */
  #isStorable = false;

  /** Offset in memory 0 of the page of an address, or -1 with a fault in the block. Sets accessed and dirty bits. */
  walk(lo: number, hi: number, access: number): number {
    const error = ERROR_U | (access === WRITE ? ERROR_W : access === FETCH ? ERROR_I : 0);
    const top = hi >>> 15;
    if (top !== 0 && top !== 0x1ffff) {
      this.nonCanonicalLo = lo;
      this.isNonCanonical = access !== FETCH;
      return this.fault(13, 0);
    }
    const { machine } = this;
    const { i32, dirty } = machine;
    const path = this.#path;
    this.#isStorable = false;
    path.isKnown = false;
    const slot = (hi >>> 7) & 511;
    if (slot >= 256 && slot < 272) return this.#m2p(lo, hi, access, error);
    const root = this.#root();
    if (root >= machine.layout.nameableFrames) return this.#pageFault(lo, hi, error);
    let table = root * 4096;
    let writable = true;
    for (let level = 4; ; level--) {
      const index =
        level === 4
          ? slot
          : level === 3
            ? ((hi & 0x7f) << 2) | (lo >>> 30)
            : level === 2
              ? (lo >>> 21) & 511
              : (lo >>> 12) & 511;
      const at = (table + index * 8) >>> 2;
      path.at[level - 1] = at;
      const entry = i32[at];
      if ((entry & PTE_P) === 0) return this.#pageFault(lo, hi, error & ~ERROR_P);
      const entryHi = i32[at + 1];
      if (level === 1) path.isWritable = writable;
      if ((entry & PTE_RW) === 0) writable = false;
      if ((entry & PTE_US) === 0) return this.#pageFault(lo, hi, error | ERROR_P);
      if (access === FETCH && entryHi < 0) return this.#pageFault(lo, hi, error | ERROR_P);
      const page = machine.mfnToOffset((entryHi & 0xfffff) * 0x100000 + (entry >>> 12));
      if (page < 0 || (level > 1 && level < 4 && (entry & PTE_PSE) !== 0))
        return this.#pageFault(lo, hi, error | ERROR_P | ERROR_RSVD);
      if (level > 1) {
        if ((entry & PTE_A) === 0) {
          Atomics.or(i32, at, PTE_A);
          dirty.mark(table >>> 12);
        }
        path.lo[level - 1] = entry | PTE_A;
        path.hi[level - 1] = entryHi;
        table = page;
        continue;
      }
      if (access === WRITE && !writable) return this.#pageFault(lo, hi, error | ERROR_P);
      const wanted = access === WRITE ? PTE_A | PTE_D : PTE_A;
      if ((entry & wanted) !== wanted) {
        // The entry may have changed under us: what the guest sees must be one that was there.
        if (Atomics.compareExchange(i32, at, entry, entry | wanted) !== entry) {
          level++;
          continue;
        }
        dirty.mark(table >>> 12);
      }
      this.#isStorable = writable && ((entry | wanted) & PTE_D) !== 0;
      path.lo[0] = entry | wanted;
      path.hi[0] = entryHi;
      path.isKnown = true;
      return page;
    }
  }

  /** The machine-to-physical table, read-only. */
  #m2p(lo: number, hi: number, access: number, error: number): number {
    const layout = this.machine.layout;
    const offset = lo - M2P_FIRST;
    if (
      (hi === M2P_VA_HI || hi === M2P_VA_HI_KVM) &&
      offset >= 0 &&
      offset < Math.ceil((layout.m2pEntries * 8) / 4096) * 4096
    ) {
      if (access !== READ) return this.#pageFault(lo, hi, error | ERROR_P);
      return layout.m2pOffset + (offset & ~4095);
    }
    return this.#pageFault(lo, hi, error);
  }

  /**
   * A TLB miss: where `size` bytes at an address are in memory 0, or -1 with a fault in the block.
   * `request`: size | READ or WRITE << 8.
   */
  readonly miss = (lo: number, hi: number, request: number): number => {
    if ((++this.misses & MISSES_BETWEEN) === 0) this.#code.look();
    const size = request & 0xff;
    const access = request >> 8;
    const low = lo >>> 0;
    const high = hi >>> 0;
    this.watch?.touched(low, high, size, access === WRITE);
    if (this.checksAlignment && !this.isExempt && isMisaligned(low, size))
      return this.#alignmentFault(low, high, access);
    if ((low & 0xfff) + size > 4096) return this.#crossing(low, high, size, access);
    const page = this.walk(low, high, access);
    if (page < 0) return -1;
    const frame = page >>> 12;
    // Before the store: dirty-frames.ts says why that will do.
    if (access === WRITE) this.machine.dirty.mark(frame);
    if (!this.#isShut) this.#tlb.fill(this.mode, low, high, page, this.#isStorable);
    const at = page + (low & 0xfff);
    const isSeen =
      access === WRITE && this.#code.granules[frame] !== 0 && (this.#touchesCode(at, size) || this.#isDataNow(frame));
    return (isSeen ? this.#scratchFor(at, size, 0, size) : at) | 0;
  };

  /** #AC, unless the address is not canonical. */
  #alignmentFault(lo: number, hi: number, access: number): number {
    const top = hi >>> 15;
    return top === 0 || top === 0x1ffff ? this.fault(ALIGNMENT_CHECK, 0) : this.walk(lo, hi, access);
  }

  /** The same for instructions written in TypeScript, which have not looked into the TLB. */
  access(lo: number, hi: number, request: number): number {
    const { u32 } = this.block;
    const low = lo >>> 0;
    const entry = STATE.tlb + this.mode * TLB_SIZE + ((low >>> 12) & (TLB_ENTRIES - 1)) * TLB_ENTRY;
    const tag = (entry + (request >> 8 === READ ? TLB_READ : TLB_WRITE)) >>> 2;
    const isHere = u32[tag] === (low & ~0xfff) >>> 0 && u32[tag + 1] === hi >>> 0;
    if (!isHere || (low & 0xfff) + (request & 0xff) > 4096) return this.miss(lo, hi, request);
    return (u32[(entry + TLB_ADDEND) >>> 2] + low) | 0;
  }

  /** Some code of the page of an offset in memory 0 has been decoded. */
  hasCode(at: number): boolean {
    return this.#code.granules[at >>> 12] !== 0;
  }

  #touchesCode(at: number, size: number): boolean {
    const granules = this.#code.granules[at >>> 12];
    const first = (at & 0xfff) >>> 7;
    const last = ((at + size - 1) & 0xfff) >>> 7;
    for (let granule = first; granule <= last; granule++) if ((granules & (1 << granule)) !== 0) return true;
    return false;
  }

  /** A store beside the code of a frame has come here: whether there have been so many that the frame must be data. */
  #isDataNow(frame: number): boolean {
    this.#besideCode[frame]++;
    return this.#besideCode[frame] >= BESIDE_CODE << this.#timesData[frame];
  }

  #crossing(lo: number, hi: number, size: number, access: number): number {
    const firstBytes = 4096 - (lo & 0xfff);
    const nextLo = (lo + firstBytes) >>> 0;
    const nextHi = nextLo === 0 ? (hi + 1) >>> 0 : hi;
    const first = this.walk(lo, hi, access);
    if (first < 0) return -1;
    const second = this.walk(nextLo, nextHi, access);
    if (second < 0) return -1;
    return this.#scratchFor(first + (lo & 0xfff), firstBytes, second, size) | 0;
  }

  /** A slot that holds the bytes as they are now. */
  #scratchFor(first: number, firstBytes: number, second: number, size: number): number {
    const slot = this.#slot;
    this.#slot = (slot + 1) % SLOTS;
    this.#first[slot] = first;
    this.#second[slot] = second;
    this.#firstBytes[slot] = firstBytes;
    const at = this.scratch + slot * SLOT_BYTES;
    const u8 = this.machine.u8;
    for (let i = 0; i < size; i++) u8[at + i] = u8[i < firstBytes ? first + i : second + i - firstBytes];
    return at;
  }

  /** The bytes of a scratch slot go where they belong. */
  readonly commit = (at: number, size: number): void => {
    const offset = (at >>> 0) - this.scratch;
    const slot = Math.floor(offset / SLOT_BYTES);
    if (slot < 0 || slot >= SLOTS) return;
    const firstBytes = Math.min(size, this.#firstBytes[slot]);
    this.store(this.#first[slot], at >>> 0, firstBytes);
    if (firstBytes < size) this.store(this.#second[slot], (at >>> 0) + firstBytes, size - firstBytes);
  };

  /** Copies bytes of memory 0 to a place in one page that may hold code. */
  store(to: number, from: number, size: number): void {
    const u8 = this.machine.u8;
    for (let i = 0; i < size; i++) u8[to + i] = u8[from + i];
    const frame = to >>> 12;
    this.machine.dirty.mark(frame);
    if (this.#code.granules[frame] === 0) return;
    if (this.#besideCode[frame] < BESIDE_CODE << this.#timesData[frame]) {
      this.#code.changed(frame, to & 0xfff, size);
      return;
    }
    this.#besideCode[frame] = 0;
    if (this.#timesData[frame] < TIMES_DATA_MAX) this.#timesData[frame]++;
    this.#code.changed(frame, 0, 4096);
  }
}
