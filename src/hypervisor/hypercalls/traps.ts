/**
 * set_trap_table and the older set_callbacks. Source: xen/include/public/arch-x86/xen.h, struct trap_info;
 * xen/arch/x86/pv/callback.c (behaviour).
 */

import { TRAP_INFO, X86_NR_VECTORS } from '../../abi/arch-x86/traps.ts';
import { CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall } from '../../abi/callback.ts';
import { EFAULT, EINVAL } from '../../abi/errno.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import type { Vcpu } from '../vcpu.ts';
import { registerCallback } from './callback.ts';
import { handleHi, handleLo, isCanonical, readU16, stopRequested } from './guest-handle.ts';

const TRAPS = VCPU.traps >> 2;

/** (trap_info *): entries are merged into this vCPU's table, up to the first with address 0. NULL clears the table. */
export function setTrapTable(v: Vcpu): number {
  const access = v.access;
  const block = v.block.u32;
  let lo = v.args[0];
  let hi = v.args[1];
  if ((lo | hi) === 0) {
    block.fill(0, TRAPS, TRAPS + X86_NR_VECTORS * 4);
    return 0;
  }
  for (let i = 0; ; i++) {
    if (!access.copyIn(lo, hi, TRAP_INFO.SIZE)) return -EFAULT;
    const addressLo = access.words[TRAP_INFO.address >> 2];
    const addressHi = access.words[(TRAP_INFO.address >> 2) + 1];
    if ((addressLo | addressHi) === 0) return 0;
    if (!isCanonical(addressHi)) return -EINVAL;
    const entry = TRAPS + access.bytes[TRAP_INFO.vector] * 4;
    block[entry] = addressLo;
    block[entry + 1] = addressHi;
    block[entry + 2] = access.bytes[TRAP_INFO.flags];
    block[entry + 3] = readU16(v, TRAP_INFO.cs) | 3;
    hi = handleHi(lo, hi, TRAP_INFO.SIZE);
    lo = handleLo(lo, TRAP_INFO.SIZE);
    // A table without an end.
    if ((i & 0xff) === 0xff && stopRequested(v)) return 0;
  }
}

/** (event, failsafe, syscall): addresses that are not canonical are passed over. */
export function setCallbacks(v: Vcpu): number {
  registerCallback(v, CALLBACKTYPE_event, 0, v.args[0], v.args[1]);
  registerCallback(v, CALLBACKTYPE_failsafe, 0, v.args[2], v.args[3]);
  registerCallback(v, CALLBACKTYPE_syscall, 0, v.args[4], v.args[5]);
  return 0;
}
