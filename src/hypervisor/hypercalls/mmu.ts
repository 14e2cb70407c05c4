/** mmu_update, mmuext_op, update_va_mapping. Source: xen/include/public/xen.h; xen/arch/x86/mm.c (behaviour). */

import { EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH } from '../../abi/errno.ts';
import * as xen from '../../abi/xen.ts';
import { PAGE_SIZE } from '../../machine/memory.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import {
  allVcpus,
  flushVcpus,
  newBasePointer,
  newUserBasePointer,
  pinTable,
  ramFrame,
  storePte,
  unpinTable,
} from '../mmu.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay, stopRequested } from './guest-handle.ts';

/** Continuation mark of Xen's own; a guest that sets it gets the low bits. */
const MMU_UPDATE_PREEMPTED = 0x80000000;

/** Requests that one hypercall may carry: enough for any guest, and a bound on the work of one call. */
const REQUESTS_MAX = 0x100000;

/** 0, or the errno for a foreign domain: an unprivileged domain may only name itself. */
function checkForeignDomain(v: Vcpu, domid: number): number {
  if (domid === xen.DOMID_SELF || domid === v.domain.domid) return 0;
  return domid === xen.DOMID_IO || domid === xen.DOMID_XEN ? -EPERM : -ESRCH;
}

function endFlush(v: Vcpu): void {
  if (!v.flushAll) return;
  v.flushAll = false;
  flushVcpus(v, allVcpus(v.domain));
}

/** (mmu_update *, count, u32 *done, foreigndom) */
export function mmuUpdate(v: Vcpu): number {
  const args = v.args;
  let lo = args[0];
  let hi = args[1];
  const count = (args[2] & ~MMU_UPDATE_PREEMPTED) >>> 0;
  const doneLo = args[4];
  const doneHi = args[5];
  let rc = checkForeignDomain(v, args[6] & 0xffff);
  if (rc === 0 && args[6] >>> 16 !== 0) rc = checkForeignDomain(v, (args[6] >>> 16) - 1);
  if (rc !== 0) return rc;
  if (count > REQUESTS_MAX) return -EINVAL;
  const access = v.access;
  let done = 0;
  for (; done < count; done++) {
    if (!access.readU64(lo, hi)) {
      rc = -EFAULT;
      break;
    }
    const ptrLo = access.lo;
    const ptrHi = access.hi;
    if (!access.readU64((lo + 8) >>> 0, lo + 8 > 0xffffffff ? hi + 1 : hi)) {
      rc = -EFAULT;
      break;
    }
    const valLo = access.lo;
    const valHi = access.hi;
    const mfn = ptrHi * 0x100000 + (ptrLo >>> 12);
    const type = ptrLo & 3;
    if (type === xen.MMU_MACHPHYS_UPDATE) {
      const frame = ramFrame(v, mfn);
      if (frame < 0) {
        rc = -EINVAL;
        break;
      }
      const index = (v.machine.layout.m2pOffset >>> 2) + frame * 2;
      v.machine.u32[index] = valLo;
      v.machine.u32[index + 1] = valHi;
    } else {
      const frame = ramFrame(v, mfn);
      if (frame < 0 || (ptrLo & 4) !== 0) {
        rc = -EINVAL;
        break;
      }
      rc = storePte(v, frame * PAGE_SIZE + (ptrLo & 0xff8), valLo, valHi, type === xen.MMU_PT_UPDATE_PRESERVE_AD);
      if (rc !== 0) break;
    }
    lo = (lo + 16) >>> 0;
    if (lo < 16) hi = (hi + 1) >>> 0;
    if ((done & 0xff) === 0xff && stopRequested(v)) break;
  }
  if ((doneLo | doneHi) !== 0 && !access.writeU32(doneLo, doneHi, done) && rc === 0) rc = -EFAULT;
  endFlush(v);
  return rc;
}

/** (va, pte, flags): the L1 entry of a VA in the current kernel tables. */
export function updateVaMapping(v: Vcpu): number {
  const args = v.args;
  const vaLo = args[0];
  const vaHi = args[1];
  const flagsLo = args[4];
  const flagsHi = args[5];
  const offset = v.access.entryOffset(v.access.kernelRoot(), vaLo, vaHi, 1);
  if (offset < 0) return -EINVAL;
  const rc = storePte(v, offset, args[2], args[3]);
  endFlush(v);
  if (rc !== 0) return rc;
  const type = flagsLo & xen.UVMF_FLUSHTYPE_MASK;
  if (type === 0) return 0;
  const pointerLo = flagsLo & ~7;
  if ((flagsLo & xen.UVMF_ALL) !== 0) flush(v, allVcpus(v.domain), type === xen.UVMF_INVLPG, vaLo, vaHi);
  else if ((pointerLo | flagsHi) !== 0) {
    if (!v.access.readU64(pointerLo >>> 0, flagsHi)) return -EFAULT;
    flush(v, v.access.lo, type === xen.UVMF_INVLPG, vaLo, vaHi);
  } else flush(v, 1 << v.id, type === xen.UVMF_INVLPG, vaLo, vaHi);
  return 0;
}

export function updateVaMappingOtherdomain(v: Vcpu): number {
  const rc = checkForeignDomain(v, v.args[6] & 0xffff);
  return rc !== 0 ? rc : updateVaMapping(v);
}

/** Flushes one page or everything on the vCPUs of a mask; other vCPUs always flush everything. */
function flush(v: Vcpu, mask: number, onePage: boolean, vaLo: number, vaHi: number): void {
  if (onePage && (mask & (1 << v.id)) !== 0) {
    v.engine.invalidatePage(vaLo, vaHi);
    mask &= ~(1 << v.id);
  }
  if (mask !== 0) flushVcpus(v, mask & allVcpus(v.domain));
}

/** (mmuext_op *, count, u32 *done, foreigndom) */
export function mmuextOp(v: Vcpu): number {
  const args = v.args;
  let lo = args[0];
  let hi = args[1];
  const count = (args[2] & ~MMU_UPDATE_PREEMPTED) >>> 0;
  const doneLo = args[4];
  const doneHi = args[5];
  let rc = checkForeignDomain(v, args[6] & 0xffff);
  if (rc !== 0) return rc;
  if (count > REQUESTS_MAX) return -EINVAL;
  const access = v.access;
  let done = 0;
  for (; done < count; done++) {
    if (!access.copyIn(lo, hi, 24)) {
      rc = -EFAULT;
      break;
    }
    const words = access.words;
    rc = mmuextOne(v, words[0], words[2], words[3], words[4], words[5]);
    if (rc !== 0) break;
    lo = (lo + 24) >>> 0;
    if (lo < 24) hi = (hi + 1) >>> 0;
    if ((done & 0xff) === 0xff && stopRequested(v)) break;
  }
  if ((doneLo | doneHi) !== 0 && !access.writeU32(doneLo, doneHi, done) && rc === 0) rc = -EFAULT;
  endFlush(v);
  return rc;
}

function mmuextOne(v: Vcpu, cmd: number, a1Lo: number, a1Hi: number, a2Lo: number, a2Hi: number): number {
  const mfn = a1Hi * 0x100000000 + a1Lo;
  switch (cmd) {
    case xen.MMUEXT_PIN_L1_TABLE:
    case xen.MMUEXT_PIN_L1_TABLE + 1:
    case xen.MMUEXT_PIN_L1_TABLE + 2:
    case xen.MMUEXT_PIN_L4_TABLE:
      return pinTable(v, mfn, cmd + 1);
    case xen.MMUEXT_UNPIN_TABLE:
      return unpinTable(v, mfn);
    case xen.MMUEXT_NEW_BASEPTR: {
      const rc = newBasePointer(v, mfn);
      if (rc === 0) v.engine.descriptorTablesChanged();
      return rc;
    }
    case xen.MMUEXT_NEW_USER_BASEPTR:
      return newUserBasePointer(v, mfn);
    case xen.MMUEXT_TLB_FLUSH_LOCAL:
      v.engine.flushTlb();
      return 0;
    case xen.MMUEXT_INVLPG_LOCAL:
      v.engine.invalidatePage(a1Lo, a1Hi);
      return 0;
    case xen.MMUEXT_TLB_FLUSH_MULTI:
    case xen.MMUEXT_INVLPG_MULTI:
      if (!v.access.readU64(a2Lo, a2Hi)) return -EINVAL;
      flush(v, v.access.lo, cmd === xen.MMUEXT_INVLPG_MULTI, a1Lo, a1Hi);
      return 0;
    case xen.MMUEXT_TLB_FLUSH_ALL:
      flushVcpus(v, allVcpus(v.domain));
      return 0;
    case xen.MMUEXT_INVLPG_ALL:
      flush(v, allVcpus(v.domain), true, a1Lo, a1Hi);
      return 0;
    case xen.MMUEXT_FLUSH_CACHE:
    case xen.MMUEXT_FLUSH_CACHE_GLOBAL:
      return 0;
    case xen.MMUEXT_SET_LDT: {
      const entries = a2Lo;
      if (entries > 8192 || a2Hi !== 0 || (a1Lo & 0xfff) !== 0 || !addressOkay(a1Hi)) return -EINVAL;
      const block = v.block.u32;
      block[VCPU.ldtBase >> 2] = a1Lo;
      block[(VCPU.ldtBase >> 2) + 1] = a1Hi;
      block[VCPU.ldtEntries >> 2] = entries;
      v.engine.descriptorTablesChanged();
      return 0;
    }
    case xen.MMUEXT_CLEAR_PAGE: {
      const frame = plainFrame(v, mfn);
      if (frame < 0) return -EINVAL;
      v.machine.u8.fill(0, frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE);
      v.engine.memoryStored(frame * PAGE_SIZE, PAGE_SIZE);
      return 0;
    }
    case xen.MMUEXT_COPY_PAGE: {
      const to = plainFrame(v, mfn);
      const from = ramFrame(v, a2Hi * 0x100000000 + a2Lo);
      if (to < 0 || from < 0) return -EINVAL;
      v.machine.u8.copyWithin(to * PAGE_SIZE, from * PAGE_SIZE, (from + 1) * PAGE_SIZE);
      v.engine.memoryStored(to * PAGE_SIZE, PAGE_SIZE);
      return 0;
    }
    case xen.MMUEXT_MARK_SUPER:
    case xen.MMUEXT_UNMARK_SUPER:
      return -EOPNOTSUPP;
    default:
      return -ENOSYS;
  }
}

/** A RAM frame that is no page table. */
function plainFrame(v: Vcpu, mfn: number): number {
  const frame = ramFrame(v, mfn);
  return frame >= 0 && v.domain.frameTypes[frame] === 0 ? frame : -1;
}
