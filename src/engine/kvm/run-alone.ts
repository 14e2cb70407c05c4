/**
 * Runs code of the engine's own (already in the registers) on the idle root, until it writes to a port: stores that must be shown now
 * (resume-code.ts) and probes (probe.ts). The guest's state stands in the block and is not touched.
 *
 * It takes microseconds, but a guest that wrote to the engine's area by page tables of its own can make it last for ever. So kicks
 * count here as they do in the guest, though there is nothing for them to interrupt but that: FLAG_STOP ends the run, any other is
 * left for the next entry.
 */

import { FLAG_STOP } from '../../machine/vcpu-block.ts';
import { EINTR, KVM_EXIT_IO, RUN_DIRTY_REGS_W, RUN_EXIT_REASON_W, SREGS_CR3_W, SYNC_REGS_AND_SREGS } from './abi.ts';
import { AREA_GPA } from './hypervisor-area.ts';
import type { InternalError } from './internal-error.ts';
import { RERUNS_MAX, type VcpuFile } from './vcpu-file.ts';

export class AloneRunner {
  readonly #file: VcpuFile;
  readonly #r: Uint32Array;
  readonly #error: InternalError;
  readonly #idleRootLo: number;

  constructor(file: VcpuFile, idleRootOffset: number, error: InternalError) {
    this.#file = file;
    this.#r = file.run;
    this.#error = error;
    this.#idleRootLo = AREA_GPA + idleRootOffset;
  }

  /** False when it does not come to the port: with an error, or because of FLAG_STOP, after which nothing is run any more. */
  run(): boolean {
    const file = this.#file;
    const r = this.#r;
    r[SREGS_CR3_W] = this.#idleRootLo;
    r[SREGS_CR3_W + 1] = 0;
    r[RUN_DIRTY_REGS_W] = SYNC_REGS_AND_SREGS;
    let flags = file.entering();
    let errno = EINTR;
    for (let runs = 0; runs < RERUNS_MAX && errno === EINTR; runs++) {
      if ((flags & FLAG_STOP) !== 0) {
        file.leftAlone();
        return false;
      }
      errno = file.enter();
      if (errno === EINTR) flags = file.enteringAgain();
    }
    file.leftAlone();
    if (errno !== 0) this.#error.failByErrno(errno);
    else if (r[RUN_EXIT_REASON_W] === KVM_EXIT_IO) return true;
    else this.#error.failByExitReason();
    return false;
  }
}
