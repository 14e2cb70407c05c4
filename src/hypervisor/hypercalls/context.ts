/** stack_switch, set_segment_base, iret: what a context switch of the guest calls. Source: xen/include/public/arch-x86/xen-x86_64.h. */

import { EINVAL, EPERM } from '../../abi/errno.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { guestIret } from '../traps.ts';
import { RESULT_IN_RAX, type Vcpu } from '../vcpu.ts';

const canonical = (hi: number): boolean => hi >>> 15 === 0 || hi >>> 15 === 0x1ffff;

/** (ss, sp): the kernel's stack for entries from user mode. */
export function stackSwitch(v: Vcpu): number {
  const u = v.block.u32;
  if (!canonical(v.args[3])) return -EPERM;
  u[VCPU.kernelSs >> 2] = (v.args[0] & 0xffff) | 3;
  u[VCPU.kernelSp >> 2] = v.args[2];
  u[(VCPU.kernelSp >> 2) + 1] = v.args[3];
  return 0;
}

const SEGBASE_FS = 0;
const SEGBASE_GS_USER = 1;
const SEGBASE_GS_KERNEL = 2;
const SEGBASE_GS_USER_SEL = 3;

/** (which, base) */
export function setSegmentBase(v: Vcpu): number {
  const u = v.block.u32;
  const lo = v.args[2];
  const hi = v.args[3];
  let at: number;
  switch (v.args[0]) {
    case SEGBASE_FS:
      at = VCPU.fsBase >> 2;
      break;
    case SEGBASE_GS_USER:
      at = VCPU.gsBaseInactive >> 2;
      break;
    case SEGBASE_GS_KERNEL:
      at = VCPU.gsBase >> 2;
      break;
    case SEGBASE_GS_USER_SEL: {
      // A 64-bit kernel sets the base right after; selectors of 64-bit programs are NUL, whose base is 0.
      u[VCPU.gs >> 2] = lo & 0xffff;
      if ((lo & 0xfffc) === 0) {
        u[VCPU.gsBaseInactive >> 2] = 0;
        u[(VCPU.gsBaseInactive >> 2) + 1] = 0;
      }
      return 0;
    }
    default:
      return -EINVAL;
  }
  if (!canonical(hi)) return -EINVAL;
  u[at] = lo;
  u[at + 1] = hi;
  return 0;
}

export function iret(v: Vcpu): number {
  guestIret(v);
  return RESULT_IN_RAX;
}
