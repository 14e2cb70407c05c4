/** Asks the CPU something by code that the engine runs at CPL 3: the probe page of hypervisor-area.ts. */

import type { CpuidResult } from '../engine.ts';
import {
  CR0_BASE,
  REGS_RAX_W,
  REGS_RBX_W,
  REGS_RCX_W,
  REGS_RDX_W,
  REGS_RFLAGS_W,
  REGS_RIP_W,
  RFLAGS_FORCED_ON,
  SREGS_CR0_W,
  SREGS_CR4_W,
  SREGS_SS_W,
} from './abi.ts';
import { writeFlatCode64, writeFlatData } from './flat-segments.ts';
import { monotonicNs } from './host.ts';
import { PROBE_CPUID, PROBE_RDTSC, PROBE_VA_HI, PROBE_VA_LO, STUBS_VA_LO } from './hypervisor-area.ts';
import type { AloneRunner } from './run-alone.ts';
import type { VcpuFile } from './vcpu-file.ts';

const TSC_PROBES = 5;
const VECTOR_BP = 3;

export class Probe {
  readonly #file: VcpuFile;
  readonly #r: Uint32Array;
  readonly #alone: AloneRunner;
  readonly #cr4: number;
  readonly #cpuidAnswers = new Map<number, CpuidResult>();

  constructor(file: VcpuFile, alone: AloneRunner, cr4: number) {
    this.#file = file;
    this.#r = file.run;
    this.#alone = alone;
    this.#cr4 = cr4;
  }

  /** Runs code of the probe page until its INT3. The results are in rax and rdx of kvm_run. */
  run(offset: number, eax = 0, ecx = 0): boolean {
    if (!this.#file.usable()) return false;
    const r = this.#r;
    r[REGS_RAX_W] = eax;
    r[REGS_RAX_W + 1] = 0;
    r[REGS_RCX_W] = ecx;
    r[REGS_RCX_W + 1] = 0;
    writeFlatCode64(r);
    writeFlatData(r, SREGS_SS_W);
    r[REGS_RIP_W] = PROBE_VA_LO + offset;
    r[REGS_RIP_W + 1] = PROBE_VA_HI;
    r[REGS_RFLAGS_W] = RFLAGS_FORCED_ON;
    r[REGS_RFLAGS_W + 1] = 0;
    r[SREGS_CR0_W] = CR0_BASE;
    r[SREGS_CR4_W] = this.#cr4;
    return this.#alone.run() && r[REGS_RIP_W] >> 4 === (STUBS_VA_LO >> 4) + VECTOR_BP;
  }

  eax(): number {
    return this.#r[REGS_RAX_W];
  }

  edx(): number {
    return this.#r[REGS_RDX_W];
  }

  /**
   * Asks the CPU by CPUID at CPL 3: one KVM does not intercept it there, and what guest code sees is what counts. Where KVM does
   * intercept it, its own list (KVM_GET_SUPPORTED_CPUID) answers. Asked once a leaf.
   */
  cpuid(leaf: number, subleaf: number): CpuidResult {
    const key = leaf * 2 ** 32 + subleaf;
    let result = this.#cpuidAnswers.get(key);
    if (result === undefined) {
      const r = this.#r;
      result = this.run(PROBE_CPUID, leaf, subleaf)
        ? { eax: r[REGS_RAX_W], ebx: r[REGS_RBX_W], ecx: r[REGS_RCX_W], edx: r[REGS_RDX_W] }
        : { eax: 0, ebx: 0, ecx: 0, edx: 0 };
      this.#cpuidAnswers.set(key, result);
    }
    return result;
  }

  /** Of several readings the one in the narrowest time counts, and its middle. Zero when none can be made. */
  readTsc(): { tscLo: number; tscHi: number; atNs: number } {
    let narrowest = Number.POSITIVE_INFINITY;
    const result = { tscLo: 0, tscHi: 0, atNs: monotonicNs() };
    for (let i = 0; i < TSC_PROBES; i++) {
      const before = monotonicNs();
      const read = this.run(PROBE_RDTSC);
      const after = monotonicNs();
      if (read && after - before < narrowest) {
        narrowest = after - before;
        result.tscLo = this.eax();
        result.tscHi = this.edx();
        result.atNs = before + narrowest / 2;
      }
    }
    return result;
  }
}
