/**
 * Guest memory through the guest's own page tables, as hypercalls see it: always the current kernel root, R/W honoured, the U bit
 * ignored (Xen sets it on everything). Guest virtual addresses are two words, low first.
 *
 * Every walk is bounded: a frame that the guest may not name ends it. Values are read once into locals or into `words`/`bytes`,
 * checked there, then used. Source of the entry format: Intel SDM vol. 3, 4.5.
 */

import type { MachineMemory } from '../machine/memory.ts';
import { PTE_NX_HI, PTE_P, PTE_PSE, PTE_RW } from '../machine/page-table.ts';
import { NO_ROOT, VCPU, type VcpuBlock } from '../machine/vcpu-block.ts';

/** First L4 slot of Xen's hole and the first slot after it. Source: xen/include/public/arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START/END. */
export const HOLE_FIRST_SLOT = 256;
export const HOLE_END_SLOT = 272;

/** The largest copy in one piece. */
const BUFFER_SIZE = 8192;

/** Frame number that a page-table entry names, as a number up to 2^40. */
export function pteMfn(lo: number, hi: number): number {
  return (hi & 0xfffff) * 0x100000 + (lo >>> 12);
}

export class GuestAccess {
  readonly machine: MachineMemory;
  readonly block: VcpuBlock;
  /** Where `copyIn` puts what it read. */
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  readonly words64: BigUint64Array;
  /** The last `readU64`. */
  lo = 0;
  hi = 0;
  /** After `translate`: byte offset of the last-level entry in memory 0, and whether R/W held on all levels. */
  leafOffset = -1;
  writable = false;
  executable = false;

  readonly #stored: (offset: number, size: number) => void;

  /** `stored`: told of each store, by offset in memory 0; never across a page. */
  constructor(machine: MachineMemory, block: VcpuBlock, stored: (offset: number, size: number) => void) {
    this.machine = machine;
    this.block = block;
    this.#stored = stored;
    const buffer = new ArrayBuffer(BUFFER_SIZE);
    this.bytes = new Uint8Array(buffer);
    this.words = new Uint32Array(buffer);
    this.words64 = new BigUint64Array(buffer);
  }

  /** The root of the current mode. */
  currentRoot(): number {
    return this.block.u32[(this.block.u32[VCPU.userMode >> 2] !== 0 ? VCPU.userRoot : VCPU.kernelRoot) >> 2];
  }

  kernelRoot(): number {
    return this.block.u32[VCPU.kernelRoot >> 2];
  }

  /** Offset in memory 0 of the entry for a VA at `level` (1..4), or -1 when a table above is missing. */
  entryOffset(root: number, vaLo: number, vaHi: number, level: number): number {
    if (root === NO_ROOT) return -1;
    const u32 = this.machine.u32;
    let table = root * 4096;
    this.writable = true;
    this.executable = true;
    for (let l = 4; ; l--) {
      const index =
        l === 4
          ? (vaHi >>> 7) & 511
          : l === 3
            ? ((vaHi & 0x7f) << 2) | (vaLo >>> 30)
            : l === 2
              ? (vaLo >>> 21) & 511
              : (vaLo >>> 12) & 511;
      if (l === 4 && index >= HOLE_FIRST_SLOT && index < HOLE_END_SLOT) return -1;
      const offset = table + index * 8;
      if (l === level) return offset;
      const lo = u32[offset >>> 2];
      if ((lo & PTE_P) === 0 || (lo & PTE_PSE) !== 0) return -1;
      const hi = u32[(offset >>> 2) + 1];
      if ((lo & PTE_RW) === 0) this.writable = false;
      if ((hi & PTE_NX_HI) !== 0) this.executable = false;
      table = this.machine.mfnToOffset(pteMfn(lo, hi));
      if (table < 0) return -1;
    }
  }

  /** Offset in memory 0 that a VA maps to under `root`, or -1. Non-canonical addresses do not map. */
  translate(root: number, vaLo: number, vaHi: number, write: boolean): number {
    const top = vaHi >>> 15;
    if (top !== 0 && top !== 0x1ffff) return -1;
    const offset = this.entryOffset(root, vaLo, vaHi, 1);
    this.leafOffset = offset;
    if (offset < 0) return -1;
    const lo = this.machine.u32[offset >>> 2];
    if ((lo & PTE_P) === 0) return -1;
    const hi = this.machine.u32[(offset >>> 2) + 1];
    if ((lo & PTE_RW) === 0) this.writable = false;
    if ((hi & PTE_NX_HI) !== 0) this.executable = false;
    if (write && !this.writable) return -1;
    const page = this.machine.mfnToOffset(pteMfn(lo, hi));
    return page < 0 ? -1 : page + (vaLo & 0xfff);
  }

  /** Reads up to 8192 bytes at a kernel VA into `bytes`. False = a page fault. */
  copyIn(vaLo: number, vaHi: number, length: number, root = this.kernelRoot()): boolean {
    if (length > BUFFER_SIZE) return false;
    let done = 0;
    let lo = vaLo;
    let hi = vaHi;
    while (done < length) {
      const offset = this.translate(root, lo, hi, false);
      if (offset < 0) return false;
      const n = Math.min(length - done, 4096 - (lo & 0xfff));
      const u8 = this.machine.u8;
      if (n <= 64) for (let i = 0; i < n; i++) this.bytes[done + i] = u8[offset + i];
      else this.bytes.set(u8.subarray(offset, offset + n), done);
      done += n;
      lo = (lo + n) >>> 0;
      if (lo < n) hi = (hi + 1) >>> 0;
    }
    return true;
  }

  /** Writes `length` bytes of `source` (from `start`) at a kernel VA. False = a page fault (also for a read-only page). */
  copyOut(
    vaLo: number,
    vaHi: number,
    source: Uint8Array,
    start: number,
    length: number,
    root = this.kernelRoot(),
  ): boolean {
    let done = 0;
    let lo = vaLo;
    let hi = vaHi;
    while (done < length) {
      const offset = this.translate(root, lo, hi, true);
      if (offset < 0) return false;
      const n = Math.min(length - done, 4096 - (lo & 0xfff));
      const u8 = this.machine.u8;
      for (let i = 0; i < n; i++) u8[offset + i] = source[start + done + i];
      this.#stored(offset, n);
      done += n;
      lo = (lo + n) >>> 0;
      if (lo < n) hi = (hi + 1) >>> 0;
    }
    return true;
  }

  /** Reads an aligned or unaligned u64 into lo/hi. */
  readU64(vaLo: number, vaHi: number, root = this.kernelRoot()): boolean {
    if ((vaLo & 7) === 0) {
      const offset = this.translate(root, vaLo, vaHi, false);
      if (offset < 0) return false;
      this.lo = this.machine.u32[offset >>> 2];
      this.hi = this.machine.u32[(offset >>> 2) + 1];
      return true;
    }
    if (!this.copyIn(vaLo, vaHi, 8, root)) return false;
    this.lo = this.words[0];
    this.hi = this.words[1];
    return true;
  }

  /** Reads a u32 into `lo` (hi becomes 0). */
  readU32(vaLo: number, vaHi: number): boolean {
    if (!this.copyIn(vaLo, vaHi, 4)) return false;
    this.lo = this.words[0];
    this.hi = 0;
    return true;
  }

  writeU32(vaLo: number, vaHi: number, value: number): boolean {
    if ((vaLo & 3) !== 0) {
      this.words[0] = value;
      return this.copyOut(vaLo, vaHi, this.bytes, 0, 4);
    }
    const offset = this.translate(this.kernelRoot(), vaLo, vaHi, true);
    if (offset < 0) return false;
    this.machine.u32[offset >>> 2] = value;
    this.#stored(offset, 4);
    return true;
  }

  writeU64(vaLo: number, vaHi: number, lo: number, hi: number, root = this.kernelRoot()): boolean {
    if ((vaLo & 7) !== 0) {
      this.words[0] = lo;
      this.words[1] = hi;
      return this.copyOut(vaLo, vaHi, this.bytes, 0, 8, root);
    }
    const offset = this.translate(root, vaLo, vaHi, true);
    if (offset < 0) return false;
    this.machine.u32[offset >>> 2] = lo;
    this.machine.u32[(offset >>> 2) + 1] = hi;
    this.#stored(offset, 8);
    return true;
  }
}
