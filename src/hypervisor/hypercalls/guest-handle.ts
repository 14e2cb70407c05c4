/**
 * Guest handles, which is what Xen calls pointers in hypercall arguments: a VA in two words. What handlers share when they step
 * through arrays and structures behind one.
 *
 * Loops over guest arrays end early when the vCPU is asked to stop, so that a huge count cannot hold up the end of a domain.
 */

import { DOMID_SELF } from '../../abi/xen.ts';
import { FLAG_STOP, VCPU } from '../../machine/vcpu-block.ts';
import type { Vcpu } from '../vcpu.ts';

/** Low word of VA + n, for n < 2^32. */
export function handleLo(lo: number, n: number): number {
  return (lo + n) >>> 0;
}

/** High word of VA + n, for n < 2^32. */
export function handleHi(lo: number, hi: number, n: number): number {
  return (lo + n > 0xffffffff ? hi + 1 : hi) >>> 0;
}

export function isCanonical(hi: number): boolean {
  const top = hi >>> 15;
  return top === 0 || top === 0x1ffff;
}

/** The address may belong to a guest: canonical and not in Xen's hole. Source: asm/x86_64/uaccess.h, __addr_ok (behaviour). */
export function addressOkay(hi: number): boolean {
  return hi >>> 0 < 0x8000 || hi >>> 0 >= 0xffff8800;
}

/** True for the calling domain. */
export function isSelf(v: Vcpu, domid: number): boolean {
  return domid === DOMID_SELF || domid === v.domain.domid;
}

/** The low halfword of word `at >> 2` of what copyIn read. */
export function readU16(v: Vcpu, at: number): number {
  return v.access.bytes[at] | (v.access.bytes[at + 1] << 8);
}

export function writeS16(v: Vcpu, lo: number, hi: number, value: number): boolean {
  v.access.bytes[0] = value & 0xff;
  v.access.bytes[1] = (value >> 8) & 0xff;
  return v.access.copyOut(lo, hi, v.access.bytes, 0, 2);
}

/** Looked at now and then in long loops: the vCPU is to leave its run loop. */
export function stopRequested(v: Vcpu): boolean {
  return (Atomics.load(v.block.i32, VCPU.flags >> 2) & FLAG_STOP) !== 0 || v.domain.shutdownReason !== -1;
}
