/** General registers, bases and data selectors: from the block into kvm_run on entry, and back after an exit. */

import { VCPU } from '../../machine/vcpu-block.ts';
import {
  KVM_REGS_SLOT,
  REGS_R11_W,
  REGS_RCX_W,
  REGS_RFLAGS_W,
  REGS_RIP_W,
  REGS_RSP_W,
  RUN_REGS_W,
  SREGS_CS_W,
  SREGS_FS_W,
  SREGS_GS_W,
  SREGS_SS_W,
} from './abi.ts';
import type { Segments } from './segments.ts';
import type { VcpuViews } from './vcpu-views.ts';

// Word indexes of the vCPU block.
const GPR = VCPU.gpr / 4;
const RSP_WORD = GPR + 4 * 2;
const RIP = VCPU.rip / 4;
const RFLAGS = VCPU.rflags / 4;
const FS_BASE = VCPU.fsBase / 4;
const GS_BASE = VCPU.gsBase / 4;
const CS = VCPU.cs / 4;
const SS = VCPU.ss / 4;

/** Word offsets in kvm_run of the general registers, in the block's order. */
const RUN_GPR_W = Int32Array.from(KVM_REGS_SLOT, (slot) => RUN_REGS_W + slot * 2);

export class Registers {
  readonly #b: Uint32Array;
  readonly #r: Uint32Array;
  readonly #segments: Segments;

  constructor(views: VcpuViews, segments: Segments) {
    this.#b = views.block;
    this.#r = views.run;
    this.#segments = segments;
  }

  /** All but rip and rflags; CS is loaded. */
  load(): void {
    const b = this.#b;
    const r = this.#r;
    for (let i = 0; i < 16; i++) {
      const w = RUN_GPR_W[i];
      r[w] = b[GPR + i * 2];
      r[w + 1] = b[GPR + i * 2 + 1];
    }
    this.#segments.loadData();
    r[SREGS_FS_W] = b[FS_BASE];
    r[SREGS_FS_W + 1] = b[FS_BASE + 1];
    r[SREGS_GS_W] = b[GS_BASE];
    r[SREGS_GS_W + 1] = b[GS_BASE + 1];
  }

  /** All but rsp, rip, rflags, cs and ss, which may stand in an exception frame. */
  save(): void {
    const b = this.#b;
    const r = this.#r;
    for (let i = 0; i < 16; i++) {
      if (i === 4) continue;
      const w = RUN_GPR_W[i];
      b[GPR + i * 2] = r[w];
      b[GPR + i * 2 + 1] = r[w + 1];
    }
    b[FS_BASE] = r[SREGS_FS_W];
    b[FS_BASE + 1] = r[SREGS_FS_W + 1];
    b[GS_BASE] = r[SREGS_GS_W];
    b[GS_BASE + 1] = r[SREGS_GS_W + 1];
    this.#segments.save();
  }

  /** All, of a guest that was interrupted at CPL 3. */
  saveAll(): void {
    const b = this.#b;
    const r = this.#r;
    this.save();
    this.saveStackPointer();
    b[RIP] = r[REGS_RIP_W];
    b[RIP + 1] = r[REGS_RIP_W + 1];
    b[RFLAGS] = r[REGS_RFLAGS_W];
    b[RFLAGS + 1] = 0;
    b[CS] = r[SREGS_CS_W + 3] & 0xffff;
    b[SS] = r[SREGS_SS_W + 3] & 0xffff;
  }

  saveStackPointer(): void {
    this.#b[RSP_WORD] = this.#r[REGS_RSP_W];
    this.#b[RSP_WORD + 1] = this.#r[REGS_RSP_W + 1];
  }

  /** rip and rflags as SYSCALL left them, in RCX and R11. */
  saveSyscallReturn(): void {
    const b = this.#b;
    const r = this.#r;
    b[RIP] = r[REGS_RCX_W];
    b[RIP + 1] = r[REGS_RCX_W + 1];
    b[RFLAGS] = r[REGS_R11_W];
    b[RFLAGS + 1] = 0;
  }
}
