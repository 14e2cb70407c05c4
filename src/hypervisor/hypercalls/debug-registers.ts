/**
 * set_debugreg and get_debugreg. Source: Intel SDM vol. 3, 18.2; xen/arch/x86/pv/misc-hypercalls.c (behaviour).
 *
 * DR5 is a name of DR7, so its place in the block holds the enable bits of I/O breakpoints: the guest reads them back, but they
 * never reach the CPU.
 */

import { EINVAL, ENODEV, EPERM } from '../../abi/errno.ts';
import { RAX, VCPU } from '../../machine/vcpu-block.ts';
import { RESULT_IN_RAX, type Vcpu } from '../vcpu.ts';
import { addressOkay } from './guest-handle.ts';

const DR = VCPU.dr >> 2;
const RAX_WORD = (VCPU.gpr >> 2) + RAX * 2;
const CR4_DE = 8;
/** Bits 4-11 and 16-31 read 1, bit 12 reads 0. */
const DR6_ONES = 0xffff0ff0;
const DR6_ZEROS = 0x1000;
/** Bit 10 reads 1, bits 11, 12, 14 and 15 read 0. */
const DR7_ONES = 0x400;
const DR7_ZEROS = 0xd800;
const DR7_GENERAL_DETECT = 0x2000;
const DR7_ENABLES = 0xff;
/** R/W field of a breakpoint: I/O. */
const DR7_RW_IO = 2;

/** DR4 and DR5 are DR6 and DR7 while CR4.DE is clear. -1: there is no such register. */
function realRegister(v: Vcpu, reg: number): number {
  if (reg === 4 || reg === 5) return (v.block.u32[VCPU.cr4 >> 2] & CR4_DE) !== 0 ? -1 : reg + 2;
  return reg <= 7 ? reg : -1;
}

function store(v: Vcpu, reg: number, lo: number, hi: number): number {
  v.block.u32[DR + reg * 2] = lo;
  v.block.u32[DR + reg * 2 + 1] = hi;
  v.engine.debugRegistersChanged();
  return 0;
}

function setDr7(v: Vcpu, written: number): number {
  let value = ((written & ~DR7_ZEROS) | DR7_ONES) >>> 0;
  if ((value & DR7_GENERAL_DETECT) !== 0) return -EPERM;
  let ioEnables = 0;
  if ((value & DR7_ENABLES) !== 0) {
    for (let i = 0; i < 4; i++) {
      if (((value >>> (16 + i * 4)) & 3) !== DR7_RW_IO) continue;
      if ((v.block.u32[VCPU.cr4 >> 2] & CR4_DE) === 0) return -EPERM;
      ioEnables |= value & (3 << (i * 2));
    }
    value = (value & ~ioEnables) >>> 0;
  }
  v.block.u32[DR + 10] = ioEnables;
  v.block.u32[DR + 11] = 0;
  return store(v, 7, value, 0);
}

/** (reg, value) */
export function setDebugreg(v: Vcpu): number {
  const lo = v.args[2];
  const hi = v.args[3];
  const reg = realRegister(v, v.args[0]);
  switch (reg) {
    case 0:
    case 1:
    case 2:
    case 3:
      return addressOkay(hi) ? store(v, reg, lo, hi) : -EPERM;
    case 6:
      return hi === 0 ? store(v, 6, ((lo & ~DR6_ZEROS) | DR6_ONES) >>> 0, 0) : -EINVAL;
    case 7:
      return hi === 0 ? setDr7(v, lo) : -EINVAL;
    default:
      return -ENODEV;
  }
}

/** (reg). The value is the answer. */
export function getDebugreg(v: Vcpu): number {
  const reg = realRegister(v, v.args[0]);
  if (reg < 0) return -ENODEV;
  const u = v.block.u32;
  u[RAX_WORD] = reg === 7 ? u[DR + 14] | u[DR + 10] : u[DR + reg * 2];
  u[RAX_WORD + 1] = u[DR + reg * 2 + 1];
  return RESULT_IN_RAX;
}
