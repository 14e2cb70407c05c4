/** stack_switch, set_segment_base, iret: what a context switch of the guest calls. Source: xen/include/public/arch-x86/xen-x86_64.h. */

import { EINVAL, EPERM } from '../../abi/errno.ts';
import { FLAT_RING3_SS64 } from '../../abi/xen.ts';
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

/** Entries of the GDT that belong to the guest. Source: xen/include/public/arch-x86/xen.h, FIRST_RESERVED_GDT_ENTRY. */
const GUEST_GDT_ENTRIES = 14 * 512;
/** Of the high word of a descriptor: present, DPL, code or data, code, conforming, readable. Source: Intel SDM vol. 3, 3.4.5. */
const PRESENT = 0x8000;
const DPL_SHIFT = 13;
const CODE_OR_DATA = 0x1000;
const CODE = 0x800;
const CONFORMING = 0x400;
const READABLE = 0x200;

/** Base of the segment that CPL 3 would load into a data segment register; -1 = it cannot. */
function dataSegmentBase(v: Vcpu, selector: number): number {
  const u = v.block.u32;
  const { access, machine } = v;
  const index = selector >>> 3;
  if ((selector & 0xfffc) === 0) return 0;
  let lo = 0xffff;
  let hi = 0x00cff300;
  if ((selector & 4) !== 0) {
    if (index >= u[VCPU.ldtEntries >> 2]) return -1;
    const at = u[VCPU.ldtBase >> 2] + index * 8;
    if (!access.readU64(at >>> 0, (u[(VCPU.ldtBase >> 2) + 1] + (at > 0xffffffff ? 1 : 0)) >>> 0)) return -1;
    lo = access.lo;
    hi = access.hi;
  } else if (index < GUEST_GDT_ENTRIES) {
    const frame = u[(VCPU.gdtFrames >> 2) + (index >>> 9)];
    if (index >= u[VCPU.gdtEntries >> 2] || frame >= machine.layout.nameableFrames) return -1;
    const at = frame * 1024 + (index & 511) * 2;
    lo = machine.u32[at];
    hi = machine.u32[at + 1];
  } else if (selector !== FLAT_RING3_SS64) return -1;
  if ((hi & (PRESENT | CODE_OR_DATA)) !== (PRESENT | CODE_OR_DATA)) return -1;
  if ((hi & CODE) !== 0 && (hi & READABLE) === 0) return -1;
  const conforming = (hi & CODE) !== 0 && (hi & CONFORMING) !== 0;
  if (!conforming && ((hi >>> DPL_SHIFT) & 3) !== 3) return -1;
  return ((hi & 0xff000000) | ((hi & 0xff) << 16) | (lo >>> 16)) >>> 0;
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
      // What cannot be loaded becomes the NUL selector, whose base is 0.
      const selector = (lo & 0xfffc) === 0 ? lo & 3 : (lo & 0xffff) | 3;
      const base = dataSegmentBase(v, selector);
      u[VCPU.gs >> 2] = base < 0 ? 0 : selector;
      u[VCPU.gsBaseInactive >> 2] = Math.max(base, 0);
      u[(VCPU.gsBaseInactive >> 2) + 1] = 0;
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
