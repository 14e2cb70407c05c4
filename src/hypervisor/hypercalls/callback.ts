/**
 * callback_op: where the guest kernel of this vCPU is entered for events, system calls and NMIs.
 * Source: xen/include/public/callback.h; xen/arch/x86/pv/callback.c (behaviour).
 */

import { TI_IF, TRAP_nmi } from '../../abi/arch-x86/traps.ts';
import * as callback from '../../abi/callback.ts';
import { EFAULT, EINVAL, ENOSYS } from '../../abi/errno.ts';
import { FLAT_KERNEL_CS64 } from '../../abi/xen.ts';
import {
  CALLBACK_MASKS_FAILSAFE,
  CALLBACK_MASKS_SYSCALL,
  CALLBACK_MASKS_SYSCALL32,
  CALLBACK_MASKS_SYSENTER,
  VCPU,
} from '../../machine/vcpu-block.ts';
import type { Vcpu } from '../vcpu.ts';
import { isCanonical, readU16 } from './guest-handle.ts';

const NMI_TRAP = (VCPU.traps >> 2) + TRAP_nmi * 4;

/** Sets the address words at `offset` of the block, and the bit that masks events; bit 0 = there is none. */
function setCallback(v: Vcpu, offset: number, bit: number, flags: number, lo: number, hi: number): number {
  const u = v.block.u32;
  u[offset >> 2] = lo;
  u[(offset >> 2) + 1] = hi;
  if ((flags & callback.CALLBACKF_mask_events) !== 0) u[VCPU.callbackFlags >> 2] |= bit;
  else u[VCPU.callbackFlags >> 2] &= ~bit;
  return 0;
}

export function registerNmiCallback(v: Vcpu, lo: number, hi: number): number {
  if (!isCanonical(hi)) return -EINVAL;
  const u = v.block.u32;
  u[NMI_TRAP] = lo;
  u[NMI_TRAP + 1] = hi;
  u[NMI_TRAP + 2] = TI_IF;
  u[NMI_TRAP + 3] = FLAT_KERNEL_CS64;
  return 0;
}

export function unregisterNmiCallback(v: Vcpu): number {
  v.block.u32.fill(0, NMI_TRAP, NMI_TRAP + 4);
  return 0;
}

/** CALLBACKOP_register. 0, -EINVAL for an address that is not canonical, -ENOSYS for an unknown type. */
export function registerCallback(v: Vcpu, type: number, flags: number, lo: number, hi: number): number {
  if (!isCanonical(hi)) return -EINVAL;
  switch (type) {
    case callback.CALLBACKTYPE_event:
      return setCallback(v, VCPU.eventCallback, 0, 0, lo, hi);
    case callback.CALLBACKTYPE_failsafe:
      return setCallback(v, VCPU.failsafeCallback, CALLBACK_MASKS_FAILSAFE, flags, lo, hi);
    case callback.CALLBACKTYPE_syscall:
      return setCallback(v, VCPU.syscallCallback, CALLBACK_MASKS_SYSCALL, flags, lo, hi);
    case callback.CALLBACKTYPE_syscall32:
      return setCallback(v, VCPU.syscall32Callback, CALLBACK_MASKS_SYSCALL32, flags, lo, hi);
    case callback.CALLBACKTYPE_sysenter:
      return setCallback(v, VCPU.sysenterCallback, CALLBACK_MASKS_SYSENTER, flags, lo, hi);
    case callback.CALLBACKTYPE_nmi:
      return registerNmiCallback(v, lo, hi);
    default:
      return -ENOSYS;
  }
}

/** (cmd, argument *) */
export function callbackOp(v: Vcpu): number {
  const access = v.access;
  switch (v.args[0]) {
    case callback.CALLBACKOP_register:
      if (!access.copyIn(v.args[2], v.args[3], callback.CALLBACK_REGISTER.SIZE)) return -EFAULT;
      return registerCallback(v, readU16(v, 0), readU16(v, 2), access.words[2], access.words[3]);
    case callback.CALLBACKOP_unregister:
      if (!access.copyIn(v.args[2], v.args[3], callback.CALLBACK_UNREGISTER.SIZE)) return -EFAULT;
      switch (readU16(v, 0)) {
        case callback.CALLBACKTYPE_event:
        case callback.CALLBACKTYPE_failsafe:
        case callback.CALLBACKTYPE_syscall:
        case callback.CALLBACKTYPE_syscall32:
        case callback.CALLBACKTYPE_sysenter:
          return -EINVAL;
        case callback.CALLBACKTYPE_nmi:
          return unregisterNmiCallback(v);
        default:
          return -ENOSYS;
      }
    default:
      return -ENOSYS;
  }
}
