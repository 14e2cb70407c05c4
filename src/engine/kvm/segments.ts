/**
 * Loads kvm_run's segment registers from the block's selectors: Xen's flat selectors by value, others from the guest's descriptor
 * tables. What the CPU would refuse in an IRET is refused here; what it would refuse in a MOV becomes the null selector, as in Xen.
 *
 * Reading descriptors costs more than the rest of an entry, so a data selector that did not change since the last exit is not
 * loaded again: kvm_run still has what the CPU made of it.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { SREGS_CS_W, SREGS_DS_W, SREGS_ES_W, SREGS_FS_W, SREGS_GS_W, SREGS_SS_W } from './abi.ts';
import type { DescriptorTables } from './descriptor-tables.ts';
import { writeFlatCode32, writeFlatCode64, writeFlatData, writeNullSegment } from './flat-segments.ts';
import { FLAT_CS32, FLAT_CS64, FLAT_SS } from './hypervisor-area.ts';
import type { VcpuViews } from './vcpu-views.ts';

// Word indexes of the vCPU block.
const DS = VCPU.ds / 4;
const ES = VCPU.es / 4;
const FS = VCPU.fs / 4;
const GS = VCPU.gs / 4;

/** Linux's user data selector, which a KVM without hardware virtualisation has in the host's GDT. */
const HOST_DATA_SELECTOR = 0x2b;

/** What a selector is loaded for. */
type SegmentKind = typeof KIND_READABLE | typeof KIND_CODE | typeof KIND_STACK;
const KIND_READABLE = 0;
const KIND_CODE = 1;
const KIND_STACK = 2;

export class Segments {
  readonly #b: Uint32Array;
  readonly #r: Uint32Array;
  readonly #mem: Uint32Array;
  readonly #tables: DescriptorTables;
  readonly #hostData: boolean;
  /** What stands in kvm_run's segment registers, as the block knew it last. */
  #ds = -1;
  #es = -1;
  #fs = -1;
  #gs = -1;

  /** `hostData`: see kvm-vcpu.ts, a KVM that does not learn of the data selectors that 64-bit code loads. */
  constructor(views: VcpuViews, tables: DescriptorTables, hostData: boolean) {
    this.#b = views.block;
    this.#r = views.run;
    this.#mem = views.memory;
    this.#tables = tables;
    this.#hostData = hostData;
  }

  /** Loads CS at CPL 3. False when it is no code segment. */
  loadCode(selector: number): boolean {
    if (selector === FLAT_CS64) {
      writeFlatCode64(this.#r);
      return true;
    }
    if (selector === FLAT_CS32) {
      writeFlatCode32(this.#r);
      return true;
    }
    return this.#load(SREGS_CS_W, selector, KIND_CODE);
  }

  /** Loads SS at CPL 3. False when it is no writable data segment. */
  loadStack(selector: number): boolean {
    if (selector === FLAT_SS || (selector & 0xfffc) === 0) {
      // A 64-bit PV kernel may believe that it runs at ring 0 with a null SS.
      writeFlatData(this.#r, SREGS_SS_W);
      return true;
    }
    return this.#load(SREGS_SS_W, selector, KIND_STACK);
  }

  /** Loads DS, ES, FS and GS, after CS; bases of FS and GS come later. */
  loadData(): void {
    const b = this.#b;
    if (this.#hostData && this.#r[SREGS_CS_W + 4] >>> 24 === 0) {
      if ((b[DS] & 0xfffc) === 0) b[DS] = HOST_DATA_SELECTOR;
      if ((b[ES] & 0xfffc) === 0) b[ES] = HOST_DATA_SELECTOR;
    }
    if (b[DS] !== this.#ds) this.#loadData(SREGS_DS_W, b[DS] & 0xffff);
    if (b[ES] !== this.#es) this.#loadData(SREGS_ES_W, b[ES] & 0xffff);
    if (b[FS] !== this.#fs) this.#loadData(SREGS_FS_W, b[FS] & 0xffff);
    if (b[GS] !== this.#gs) this.#loadData(SREGS_GS_W, b[GS] & 0xffff);
    this.forget();
  }

  /** The block's data selectors are those in kvm_run. */
  keep(): void {
    const b = this.#b;
    this.#ds = b[DS];
    this.#es = b[ES];
    this.#fs = b[FS];
    this.#gs = b[GS];
  }

  /** Nobody knows what is in kvm_run: the next entry loads all. */
  forget(): void {
    this.#ds = -1;
    this.#es = -1;
    this.#fs = -1;
    this.#gs = -1;
  }

  /** From the exit's registers into the block. */
  save(): void {
    const b = this.#b;
    const r = this.#r;
    b[DS] = r[SREGS_DS_W + 3] & 0xffff;
    b[ES] = r[SREGS_ES_W + 3] & 0xffff;
    b[FS] = r[SREGS_FS_W + 3] & 0xffff;
    b[GS] = r[SREGS_GS_W + 3] & 0xffff;
    this.keep();
  }

  #loadData(w: number, selector: number): void {
    if (selector === FLAT_SS) writeFlatData(this.#r, w);
    else if ((selector & 0xfffc) === 0) writeNullSegment(this.#r, w, selector);
    else if (!this.#load(w, selector, KIND_READABLE)) writeNullSegment(this.#r, w, 0);
  }

  /**
   * Loads kvm_run's segment from the descriptor tables, DPL 3. False when there is no such descriptor of the wanted kind.
   * Source: Intel SDM vol. 3, 3.4.5.
   */
  #load(w: number, selector: number, kind: SegmentKind): boolean {
    const at = this.#tables.find(selector);
    if (at < 0) return false;
    const lo = this.#mem[at];
    const hi = this.#mem[at + 1];
    if ((hi & 0x9000) !== 0x9000) return false; // present, not a system segment
    const type = (hi >>> 8) & 15;
    if (kind === KIND_CODE ? (type & 8) === 0 : kind === KIND_STACK ? (type & 10) !== 2 : (type & 10) === 8)
      return false;
    const limit = (lo & 0xffff) | (hi & 0xf0000);
    const r = this.#r;
    r[w] = (lo >>> 16) | ((hi & 0xff) << 16) | (hi & 0xff000000);
    r[w + 1] = 0;
    r[w + 2] = (hi & 0x800000) !== 0 ? (limit << 12) | 0xfff : limit;
    r[w + 3] = selector | ((type | 1) << 16) | 0x01000000;
    r[w + 4] = 0x00010003 | (((hi >>> 22) & 1) << 8) | (((hi >>> 21) & 1) << 24);
    r[w + 5] = ((hi >>> 23) & 1) | (((hi >>> 20) & 1) << 8);
    return true;
  }
}
