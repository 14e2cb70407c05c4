/**
 * Selectors and descriptors: what a segment load at CPL 3 does, from the guest's GDT and LDT and Xen's own entries.
 * Source: Intel SDM vol. 3, 3.4.5 and 5.5; Xen's selectors: xen/include/public/arch-x86/xen-x86_64.h.
 */

import { FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64 } from '../../abi/xen.ts';
import { PAGE_SIZE } from '../../machine/memory.ts';
import { NO_ROOT, VCPU } from '../../machine/vcpu-block.ts';
import { READ } from './guest-memory.ts';
import type { Processor } from './processor.ts';

const FLAT_CS32 = FLAT_RING3_CS32;
export const FLAT_SS = FLAT_RING3_SS64;
export const FLAT_CS64 = FLAT_RING3_CS64;
/** Entries of the GDT that belong to the guest. Source: FIRST_RESERVED_GDT_ENTRY. */
const GUEST_GDT_ENTRIES = 14 * 512;

const PRESENT = 0x8000;
const CODE_OR_DATA = 0x1000;
const CODE = 0x0800;
const CONFORMING = 0x0400;
/** Of code: readable; of data: writable. */
const READABLE_OR_WRITABLE = 0x0200;
const LONG = 0x200000;
const DEFAULT_32 = 0x400000;
const DPL_SHIFT = 13;

/** High words of Xen's own descriptors; the low ones are 0000ffff. */
const XEN_DESCRIPTORS: Readonly<Record<number, number>> = {
  [FLAT_CS32 >> 3]: 0x00cffb00,
  [FLAT_SS >> 3]: 0x00cff300,
  [FLAT_CS64 >> 3]: 0x00affb00,
};

/** The last descriptor that `find` found. */
export class Descriptors {
  readonly #p: Processor;
  lo = 0;
  hi = 0;

  constructor(processor: Processor) {
    this.#p = processor;
  }

  /** Fetches the descriptor of a selector; false when it is beyond its table. */
  find(selector: number): boolean {
    const u32 = this.#p.u32;
    const index = (selector & 0xffff) >>> 3;
    if ((selector & 4) !== 0) return this.#findInLdt(index);
    if (index >= GUEST_GDT_ENTRIES) {
      const hi = XEN_DESCRIPTORS[index];
      if (hi === undefined) return false;
      this.lo = 0xffff;
      this.hi = hi;
      return true;
    }
    const machine = this.#p.memory.machine;
    if (index >= u32[VCPU.gdtEntries / 4]) return false;
    const frame = u32[VCPU.gdtFrames / 4 + (index >>> 9)];
    if (frame >= machine.layout.nameableFrames) return false;
    const at = (frame * PAGE_SIZE) / 4 + (index & 511) * 2;
    this.lo = machine.u32[at];
    this.hi = machine.u32[at + 1];
    return true;
  }

  #findInLdt(index: number): boolean {
    const p = this.#p;
    const u32 = p.u32;
    if (index >= u32[VCPU.ldtEntries / 4]) return false;
    const lo = u32[VCPU.ldtBase / 4] + index * 8;
    const hi = u32[VCPU.ldtBase / 4 + 1] + (lo > 0xffffffff ? 1 : 0);
    // The LDT is a kernel address whatever the mode.
    const root = VCPU.userRoot / 4;
    const user = u32[root];
    u32[root] = NO_ROOT;
    const page = p.memory.walk(lo >>> 0, hi >>> 0, READ);
    u32[root] = user;
    if (page < 0) return false;
    const at = (page + (lo & 0xff8)) >>> 2;
    this.lo = p.memory.machine.u32[at];
    this.hi = p.memory.machine.u32[at + 1];
    return true;
  }

  /** Base of the descriptor found. */
  base(): number {
    return ((this.hi & 0xff000000) | ((this.hi & 0xff) << 16) | (this.lo >>> 16)) >>> 0;
  }

  limit(): number {
    const limit = (this.hi & 0xf0000) | (this.lo & 0xffff);
    return (this.hi & 0x800000) !== 0 ? ((limit << 12) | 0xfff) >>> 0 : limit;
  }

  #isCodeOrData(): boolean {
    return (this.hi & CODE_OR_DATA) !== 0;
  }

  #dpl(): number {
    return (this.hi >>> DPL_SHIFT) & 3;
  }

  /** The exception of loading a selector into a data segment register: 0 = none, else vector; the error code is the selector. */
  dataFault(selector: number): number {
    if ((selector & 0xfffc) === 0) return 0;
    if (!this.find(selector) || !this.#isCodeOrData()) return 13;
    const { hi } = this;
    if ((hi & CODE) !== 0 && (hi & READABLE_OR_WRITABLE) === 0) return 13;
    if (((hi & CODE) === 0 || (hi & CONFORMING) === 0) && this.#dpl() < 3) return 13;
    return (hi & PRESENT) === 0 ? 11 : 0;
  }

  stackFault(selector: number): number {
    if ((selector & 0xfffc) === 0 || (selector & 3) !== 3) return 13;
    if (!this.find(selector) || !this.#isCodeOrData()) return 13;
    if ((this.hi & CODE) !== 0 || (this.hi & READABLE_OR_WRITABLE) === 0 || this.#dpl() !== 3) return 13;
    return (this.hi & PRESENT) === 0 ? 12 : 0;
  }

  /** Of a far transfer that stays at CPL 3. */
  codeFault(selector: number): number {
    if ((selector & 0xfffc) === 0 || (selector & 3) !== 3) return 13;
    if (!this.find(selector) || !this.#isCodeOrData() || (this.hi & CODE) === 0) return 13;
    if ((this.hi & CONFORMING) === 0 && this.#dpl() !== 3) return 13;
    return (this.hi & PRESENT) === 0 ? 11 : 0;
  }

  /** The code segment found is one of 64-bit code. */
  get isLong(): boolean {
    return (this.hi & LONG) !== 0;
  }

  /** It is one of 32-bit code that this engine runs: the base must be 0, the limit does not count. */
  get isFlat32(): boolean {
    return (this.hi & (LONG | DEFAULT_32)) === DEFAULT_32 && this.base() === 0;
  }

  /** LAR: the access rights, or -1. */
  accessRights(selector: number): number {
    return this.#visible(selector, true) ? this.hi & 0x00ffff00 : -1;
  }

  /** LSL: true when `limit` is what it gives. */
  hasLimit(selector: number): boolean {
    return this.#visible(selector, false);
  }

  /** VERR and VERW. */
  verify(selector: number, write: boolean): boolean {
    if ((selector & 0xfffc) === 0 || !this.find(selector) || !this.#isCodeOrData()) return false;
    const { hi } = this;
    const code = (hi & CODE) !== 0;
    if (write ? code || (hi & READABLE_OR_WRITABLE) === 0 : code && (hi & READABLE_OR_WRITABLE) === 0) return false;
    return (code && (hi & CONFORMING) !== 0) || this.#dpl() === 3;
  }

  #visible(selector: number, gates: boolean): boolean {
    if ((selector & 0xfffc) === 0 || !this.find(selector)) return false;
    const type = (this.hi >>> 8) & 0x1f;
    if ((type & 0x10) === 0) {
      // LDT, TSS; call gates for LAR only.
      if (type !== 2 && type !== 9 && type !== 11 && !(gates && type === 12)) return false;
    } else if ((this.hi & CODE) !== 0 && (this.hi & CONFORMING) !== 0) return true;
    return this.#dpl() === 3;
  }
}
