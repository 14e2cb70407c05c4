/**
 * The breakpoints in DR0-DR3. Source: Intel SDM vol. 3, 18.2.
 *
 * While one is enabled the vCPU executes one instruction at a time, with a look at its address before and at the addresses of its
 * accesses behind it: slow, but exact, and nobody else pays. The hypervisor keeps I/O breakpoints away.
 */

import { VCPU } from '../../machine/vcpu-block.ts';

const DR = VCPU.dr >> 2;
const EXECUTE = 0;
const WRITE = 1;
/** Bytes by the LEN field. */
const LENGTHS = [1, 2, 8, 4] as const;

interface Breakpoint {
  /** Bit in DR6. */
  readonly bit: number;
  readonly lo: number;
  readonly hi: number;
  readonly length: number;
  readonly kind: number;
}

export class Breakpoints {
  #code: readonly Breakpoint[] = [];
  #data: readonly Breakpoint[] = [];
  /** Bits of DR6 for the data that has been touched since `forget`. */
  hits = 0;

  /** From the block's words. */
  read(u32: Uint32Array): void {
    const dr7 = u32[DR + 14];
    const all: Breakpoint[] = [];
    for (let i = 0; i < 4; i++) {
      if (((dr7 >>> (i * 2)) & 3) === 0) continue;
      const field = (dr7 >>> (16 + i * 4)) & 15;
      const length = LENGTHS[field >>> 2];
      const lo = (u32[DR + i * 2] & ~(length - 1)) >>> 0;
      all.push({ bit: 1 << i, lo, hi: u32[DR + i * 2 + 1], length, kind: field & 3 });
    }
    this.#code = all.filter(({ kind }) => kind === EXECUTE);
    this.#data = all.filter(({ kind }) => kind !== EXECUTE);
  }

  get any(): boolean {
    return this.#code.length + this.#data.length > 0;
  }

  /** Bits of DR6 for an instruction at an address. */
  at(lo: number, hi: number): number {
    let hits = 0;
    for (const { bit, lo: there, hi: thereHi } of this.#code) if (there === lo && thereHi === hi) hits |= bit;
    return hits;
  }

  forget(): void {
    this.hits = 0;
  }

  /** Notes an access to `size` bytes at an address. */
  touched(lo: number, hi: number, size: number, isWrite: boolean): void {
    for (const { bit, lo: there, hi: thereHi, length, kind } of this.#data) {
      if (kind === WRITE && !isWrite) continue;
      // From the breakpoint's first byte to the access's, exact as both are near or far.
      const distance = lo - there + (hi - thereHi) * 0x100000000;
      if (distance < length && distance > -size) this.hits |= bit;
    }
  }
}
