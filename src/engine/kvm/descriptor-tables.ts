/**
 * The guest's GDT and LDT: where their descriptors stand in memory 0, and what the CPU is shown of them.
 *
 * The GDT register always points at the vCPU's window (hypervisor-area.ts): first the guest's GDT frames, read-only, then Xen's own
 * descriptors. A change of the frames is a change of the window's page tables. The LDT register takes the guest's address as it is.
 */

import { MFN_BASE, PAGE_SHIFT } from '../../machine/memory.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { SEGMENT_UNUSABLE_W5, SREGS_LDT_W } from './abi.ts';
import { walk } from './guest-walk.ts';
import { AREA_GPA, FLAT_CS32, FLAT_CS64, GUEST_GDT_PAGES } from './hypervisor-area.ts';
import type { ResumeCode } from './resume-code.ts';
import type { VcpuViews } from './vcpu-views.ts';

// Word indexes of the vCPU block.
const KERNEL_ROOT = VCPU.kernelRoot / 4;
const LDT_BASE = VCPU.ldtBase / 4;
const LDT_ENTRIES = VCPU.ldtEntries / 4;
const GDT_ENTRIES = VCPU.gdtEntries / 4;
const GDT_FRAMES = VCPU.gdtFrames / 4;

/** Entries of a window's first pages: the frame read-only, accessed and dirty, or the page of zeros. Bit 63 is no-execute. */
const GDT_FRAME_FLAGS = 0x63;
const ZERO_PAGE_FLAGS = 0x61;
const NO_EXECUTE_HI = 0x80000000;
/** Type and presence of an LDT; the selector is never loaded, only what the CPU keeps of the descriptor counts. */
const NO_LDT_W3 = 0x00020000;
const LDT_W3 = 0x0102e050;
/** High word of a code descriptor: the L bit. */
const DESCRIPTOR_LONG = 0x200000;

export class DescriptorTables {
  readonly #views: VcpuViews;
  readonly #b: Uint32Array;
  readonly #mem: Uint32Array;
  readonly #framesMax: number;
  readonly #zeroPageGpa: number;
  readonly #resume: ResumeCode;

  /** `zeroPageOffset`: of the page in the hypervisor area that stands for GDT frames which the guest does not have. */
  constructor(views: VcpuViews, zeroPageOffset: number, resume: ResumeCode) {
    this.#views = views;
    this.#b = views.block;
    this.#mem = views.memory;
    this.#framesMax = views.framesMax;
    this.#zeroPageGpa = AREA_GPA + zeroPageOffset;
    this.#resume = resume;
  }

  /** Word index in memory 0 of the descriptor of a selector, or -1. */
  find(selector: number): number {
    const b = this.#b;
    const index = selector >> 3;
    if ((selector & 4) !== 0) return this.#findInLdt(index);
    if (index >= b[GDT_ENTRIES] || index >= GUEST_GDT_PAGES * 512) return -1;
    const frame = b[GDT_FRAMES + (index >> 9)];
    if (frame >= this.#framesMax) return -1;
    return frame * 1024 + (index & 511) * 2;
  }

  #findInLdt(index: number): number {
    const b = this.#b;
    if (index >= b[LDT_ENTRIES]) return -1;
    const lo = b[LDT_BASE] + index * 8;
    const vaLo = lo >>> 0;
    const vaHi = (b[LDT_BASE + 1] + (lo > 0xffffffff ? 1 : 0)) >>> 0;
    const frame = walk(this.#views, b[KERNEL_ROOT], vaLo, vaHi);
    return frame < 0 ? -1 : frame * 1024 + ((vaLo & 0xfff) >> 2);
  }

  /** The code segment is one of 64-bit code, as far as anyone knows. */
  isLongCode(selector: number): boolean {
    if (selector === FLAT_CS64) return true;
    if (selector === FLAT_CS32) return false;
    const at = this.find(selector);
    return at < 0 || (this.#mem[at + 1] & DESCRIPTOR_LONG) !== 0;
  }

  /** The block names other frames or another LDT. */
  changed(): void {
    const b = this.#b;
    const a = this.#views.area;
    const r = this.#views.run;
    const window = this.#views.window;
    const entries = b[GDT_ENTRIES];
    for (let i = 0; i < GUEST_GDT_PAGES; i++) {
      const frame = b[GDT_FRAMES + i];
      const mapped = i * 512 < entries && frame < this.#framesMax;
      const lo = mapped ? ((frame << PAGE_SHIFT) | GDT_FRAME_FLAGS) >>> 0 : this.#zeroPageGpa + ZERO_PAGE_FLAGS;
      const hi = (mapped ? (frame + MFN_BASE) >>> (32 - PAGE_SHIFT) : 0) + NO_EXECUTE_HI;
      const w = (window.gdtEntryOffset + i * 8) / 4;
      if (a[w] === lo && a[w + 1] === hi) continue;
      a[w] = lo;
      a[w + 1] = hi;
      this.#resume.areaStored(window.gdtEntryVaLo + i * 8);
    }
    const ldtEntries = b[LDT_ENTRIES];
    r[SREGS_LDT_W] = b[LDT_BASE];
    r[SREGS_LDT_W + 1] = b[LDT_BASE + 1];
    r[SREGS_LDT_W + 2] = ldtEntries === 0 ? 0 : ldtEntries * 8 - 1;
    r[SREGS_LDT_W + 3] = ldtEntries === 0 ? NO_LDT_W3 : LDT_W3;
    r[SREGS_LDT_W + 4] = 0;
    r[SREGS_LDT_W + 5] = ldtEntries === 0 ? SEGMENT_UNUSABLE_W5 : 0;
  }
}
