/**
 * What an entry of the guest does with selectors that the hypervisor has set: code and stack must be ones that an IRET would take,
 * or the entry is #GP; what a MOV would refuse in DS, ES, FS and GS becomes the null selector, as in Xen. Bases stay as they are.
 *
 * Entries are many and such selectors few: those of the last exit are the guest's own work and are not looked at again.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { Descriptors, FLAT_CS64, FLAT_SS } from './descriptors.ts';
import type { Processor } from './processor.ts';

const CS = VCPU.cs / 4;
const SS = VCPU.ss / 4;
const DS = VCPU.ds / 4;
const ES = VCPU.es / 4;
const FS = VCPU.fs / 4;
const GS = VCPU.gs / 4;
const GENERAL_PROTECTION = 13;
const RPL = 3;

export class EntryCheck {
  readonly #p: Processor;
  readonly #descriptors: Descriptors;
  /** Size of the code that the guest is entered at, after `isRefused`. */
  bits: 32 | 64 = 64;
  #ds = 0;
  #es = 0;
  #fs = 0;
  #gs = 0;

  constructor(processor: Processor) {
    this.#p = processor;
    this.#descriptors = new Descriptors(processor);
  }

  /** True when the guest cannot be entered: #GP is in the block. */
  isRefused(): boolean {
    const { u32 } = this.#p;
    this.bits = 64;
    if (u32[CS] !== FLAT_CS64 && !this.#isCode((u32[CS] & 0xffff) | RPL)) return this.#refuse(u32[CS]);
    if (u32[SS] !== FLAT_SS && !this.#isStack((u32[SS] & 0xffff) | RPL)) return this.#refuse(u32[SS]);
    if (u32[DS] !== this.#ds) this.#check(DS);
    if (u32[ES] !== this.#es) this.#check(ES);
    if (u32[FS] !== this.#fs) this.#check(FS);
    if (u32[GS] !== this.#gs) this.#check(GS);
    return false;
  }

  /** The selectors in the block are those that the guest left. */
  keep(): void {
    const { u32 } = this.#p;
    this.#ds = u32[DS];
    this.#es = u32[ES];
    this.#fs = u32[FS];
    this.#gs = u32[GS];
  }

  /** 64-bit or flat 32-bit code: other code does not run here (docs/quirks.md). */
  #isCode(selector: number): boolean {
    const descriptors = this.#descriptors;
    if (descriptors.codeFault(selector) !== 0) return false;
    if (descriptors.isLong) return true;
    this.bits = 32;
    return descriptors.isFlat32;
  }

  /** A 64-bit kernel may believe that it runs at ring 0 with a null SS. */
  #isStack(selector: number): boolean {
    return (selector & 0xfffc) === 0 || this.#descriptors.stackFault(selector) === 0;
  }

  #refuse(selector: number): true {
    this.#p.raise(GENERAL_PROTECTION, selector & 0xfffc);
    return true;
  }

  #check(register: number): void {
    const { u32 } = this.#p;
    const selector = u32[register] & 0xffff;
    if (this.#descriptors.dataFault(selector) !== 0) u32[register] = 0;
  }
}
