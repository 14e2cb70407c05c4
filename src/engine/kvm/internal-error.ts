/** What EXIT_INTERNAL_ERROR says: a code in the block's exitDetail, and words for the log. */

import { VCPU } from '../../machine/vcpu-block.ts';
import type { ExitKind } from '../engine.ts';
import { EXIT_INTERNAL_ERROR } from '../engine.ts';
import {
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  REGS_RIP_W,
  RUN_EXIT_REASON_W,
  RUN_EXIT_W,
} from './abi.ts';
import type { VcpuViews } from './vcpu-views.ts';

// Word indexes of the vCPU block.
const EXIT_DETAIL = VCPU.exitDetail / 4;

/** exitDetail: one of these in the top byte, more in the rest. */
export const DETAIL_KVM_EXIT = 0x01000000;
export const DETAIL_ERRNO = 0x02000000;
export const DETAIL_RING0_FAULT = 0x03000000;
export const DETAIL_BAD_PORT = 0x04000000;
export const DETAIL_BAD_ROOT = 0x05000000;
export const DETAIL_MMIO = 0x06000000;
export const DETAIL_LIVELOCK = 0x07000000;
export const DETAIL_CLOSED = 0x08000000;

export class InternalError {
  readonly #b: Uint32Array;
  readonly #r: Uint32Array;
  #message = '';

  constructor(views: VcpuViews) {
    this.#b = views.block;
    this.#r = views.run;
  }

  /** The last error in words; empty when there was none. */
  get message(): string {
    return this.#message;
  }

  fail(detail: number, message: string): ExitKind {
    this.#b[EXIT_DETAIL] = detail;
    this.#message = message;
    return EXIT_INTERNAL_ERROR;
  }

  failByErrno(errno: number): ExitKind {
    return this.fail(DETAIL_ERRNO | errno, `KVM_RUN failed with errno ${errno}`);
  }

  /** For an exit of KVM that no code of the engine makes. */
  failByExitReason(): ExitKind {
    const r = this.#r;
    const reason = r[RUN_EXIT_REASON_W];
    const at = `rip ${hex(r[REGS_RIP_W + 1], r[REGS_RIP_W])}`;
    switch (reason) {
      case KVM_EXIT_MMIO:
        return this.fail(
          DETAIL_MMIO,
          `access to guest-physical ${hex(r[RUN_EXIT_W + 1], r[RUN_EXIT_W])}, which is no memory, ${at}`,
        );
      case KVM_EXIT_SHUTDOWN:
        return this.fail(DETAIL_KVM_EXIT | reason, `triple fault, ${at}`);
      case KVM_EXIT_FAIL_ENTRY:
        return this.fail(
          DETAIL_KVM_EXIT | reason,
          `the CPU refuses the guest state (${r[RUN_EXIT_W].toString(16)}), ${at}`,
        );
      case KVM_EXIT_INTERNAL_ERROR:
        return this.fail(DETAIL_KVM_EXIT | reason, `KVM internal error ${r[RUN_EXIT_W]}, ${at}`);
      default:
        return this.fail(DETAIL_KVM_EXIT | reason, `KVM exit ${reason}, ${at}`);
    }
  }
}

/** A 64-bit value as 16 digits. */
export function hex(hi: number, lo: number): string {
  return hi.toString(16).padStart(8, '0') + lo.toString(16).padStart(8, '0');
}
