/**
 * memory_op: how much memory the domain has, and which. Source: xen/include/public/memory.h; xen/common/memory.c, xen/arch/x86/mm.c
 * (behaviour).
 *
 * A frame keeps its place for good: PFN p is MFN MFN_BASE + p, whoever asks. owned-frames.ts knows which the domain owns.
 * The memory of a frame that was given back goes back to the host, where that can be done; it reads as zeros when it comes back.
 */

import { SHARED_INFO } from '../../abi/arch-x86/shared-info.ts';
import { EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH } from '../../abi/errno.ts';
import * as memory from '../../abi/memory.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { DOMAIN } from '../domain.ts';
import { addFrame, findFree, hasRoom, ownsFrame, removeFrame } from '../owned-frames.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay, handleHi, handleLo, isSelf, readU16, stopRequested } from './guest-handle.ts';

/** Largest extent of a domain without devices. Source: xen/include/asm-x86/config.h, CONFIG_DOMU_MAX_ORDER. */
const DOMU_MAX_ORDER = 9;
/** Most extents of one call. Source: xen/common/memory.c, UINT_MAX >> MEMOP_EXTENT_SHIFT. */
const EXTENTS_MAX = 0xffffffff >>> memory.MEMOP_EXTENT_SHIFT;
/** Entries that set_memory_map may have. Source: asm-x86/e820.h, E820MAX. */
const E820MAX = 1024;
const TWO_32 = 0x100000000;

const out = new Uint8Array(memory.XEN_MACHPHYS_MAPPING.SIZE);
const outWords = new Uint32Array(out.buffer);

/** Gives `count` frames from `first` to the domain, zeroed. False: one is the domain's already, or it would own too many. */
function populate(v: Vcpu, first: number, count: number): boolean {
  const d = v.domain;
  if (first + count > v.machine.layout.maxPages || !hasRoom(d, count)) return false;
  for (let frame = first; frame < first + count; frame++)
    if (d.frameTypes[frame] !== 0 || ownsFrame(d, frame)) return false;
  // What was given back is zeros already, but the guest or a backend may have written to it since.
  if (!v.host.discard(first * PAGE_SIZE, count * PAGE_SIZE))
    v.machine.u8.fill(0, first * PAGE_SIZE, (first + count) * PAGE_SIZE);
  for (let pfn = first; pfn < first + count; pfn++) v.engine.memoryStored(pfn * PAGE_SIZE, PAGE_SIZE);
  for (let frame = first; frame < first + count; frame++) addFrame(d, frame);
  return true;
}

/** Frames that are given back to the host together: a balloon gives them one by one, mostly in order. */
const run = { first: 0, count: 0 };

function giveBack(v: Vcpu, first: number, count: number): void {
  if (run.count > 0 && first === run.first + run.count) {
    run.count += count;
    return;
  }
  if (run.count > 0 && first + count === run.first) {
    run.first = first;
    run.count += count;
    return;
  }
  flushRun(v);
  run.first = first;
  run.count = count;
}

/** What another vCPU has got meanwhile stays as it is. */
function flushRun(v: Vcpu): void {
  const end = run.first + run.count;
  if (run.count === 0) return;
  run.count = 0;
  v.domain.lock();
  let first = run.first;
  for (let frame = run.first; frame <= end; frame++) {
    if (frame < end && !ownsFrame(v.domain, frame)) continue;
    if (frame > first) v.host.discard(first * PAGE_SIZE, (frame - first) * PAGE_SIZE);
    first = frame + 1;
  }
  v.domain.unlock();
}

/** increase_reservation, decrease_reservation, populate_physmap: returns how many extents are done, whatever was wrong with the next. */
function changeReservation(v: Vcpu, op: number, startExtent: number, argLo: number, argHi: number): number {
  const done = changeExtents(v, op, startExtent, argLo, argHi);
  flushRun(v);
  return done;
}

function changeExtents(v: Vcpu, op: number, startExtent: number, argLo: number, argHi: number): number {
  const R = memory.XEN_MEMORY_RESERVATION;
  const access = v.access;
  if (!access.copyIn(argLo, argHi, R.SIZE)) return startExtent;
  const listLo = access.words[R.extent_start >> 2];
  const listHi = access.words[(R.extent_start >> 2) + 1];
  const nrLo = access.words[R.nr_extents >> 2];
  const nrHi = access.words[(R.nr_extents >> 2) + 1];
  const order = access.words[R.extent_order >> 2];
  const flags = access.words[R.mem_flags >> 2];
  const domid = readU16(v, R.domid);
  if (nrHi !== 0 || nrLo > EXTENTS_MAX || startExtent >= nrLo) return startExtent;
  if (!isSelf(v, domid)) return startExtent;
  const addressBits = flags & memory.XENMEMF_ADDRESS_BITS_MASK;
  if (addressBits !== 0 && addressBits <= 12) return startExtent;
  const noList = op === memory.XENMEM_increase_reservation && (listLo | listHi) === 0;
  if (!noList && !addressOkay(listHi)) return startExtent;
  if (order > DOMU_MAX_ORDER) return startExtent;
  const pages = 1 << order;
  let searched = 0;
  for (let i = startExtent; i < nrLo; i++) {
    if ((i & 0xff) === 0xff && stopRequested(v)) return i;
    const lo = handleLo(listLo, i * 8);
    const hi = handleHi(listLo, listHi, i * 8);
    let frame = -1;
    if (op !== memory.XENMEM_increase_reservation) {
      if (!access.readU64(lo, hi)) return i;
      frame = access.hi * TWO_32 + access.lo;
    }
    v.domain.lock();
    let okay = true;
    let given = 0;
    if (op === memory.XENMEM_decrease_reservation) {
      for (let j = 0; j < pages && okay; j++) {
        okay = removeFrame(v.domain, frame + j - MFN_BASE);
        if (okay) given++;
      }
    } else {
      if (op === memory.XENMEM_increase_reservation) {
        frame = findFree(v.domain, searched, pages);
        searched = frame + pages;
      }
      okay = frame >= 0 && (flags & memory.XENMEMF_populate_on_demand) === 0 && populate(v, frame, pages);
    }
    v.domain.unlock();
    if (given > 0) giveBack(v, frame - MFN_BASE, given);
    if (!okay) return i;
    if (op !== memory.XENMEM_decrease_reservation && !noList && !access.writeU64(lo, hi, frame + MFN_BASE, 0)) return i;
  }
  return nrLo;
}

/** current_reservation, maximum_reservation, maximum_gpfn: (u16 domid *) */
function domainStatistic(v: Vcpu, op: number, argLo: number, argHi: number): number {
  if (!v.access.copyIn(argLo, argHi, 2)) return -EFAULT;
  if (!isSelf(v, readU16(v, 0))) return -ESRCH;
  if (op === memory.XENMEM_current_reservation) return Atomics.load(v.domain.i32, DOMAIN.totalPages >> 2);
  if (op === memory.XENMEM_maximum_reservation) return v.machine.layout.maxPages;
  const maxPfn = (v.machine.layout.sharedInfoOffset + SHARED_INFO.arch_max_pfn) >>> 2;
  const lo = Atomics.load(v.machine.u32, maxPfn);
  const hi = Atomics.load(v.machine.u32, maxPfn + 1);
  // The guest's own number: one that cannot be true counts as unset. Source: xen/arch/x86/domain.c, arch_get_max_pfn.
  return hi === 0 && lo !== 0 ? lo - 1 : v.machine.layout.maxPages - 1;
}

/** One entry of RAM: all that the domain may balloon up to. */
function memoryMap(v: Vcpu, argLo: number, argHi: number): number {
  const M = memory.XEN_MEMORY_MAP;
  const access = v.access;
  if (!access.copyIn(argLo, argHi, M.SIZE)) return -EFAULT;
  const count = Math.min(access.words[M.nr_entries >> 2], 1);
  const bufferLo = access.words[M.buffer >> 2];
  const bufferHi = access.words[(M.buffer >> 2) + 1];
  const size = v.machine.layout.maxPages * PAGE_SIZE;
  outWords[0] = 0;
  outWords[1] = 0;
  outWords[2] = size >>> 0;
  outWords[3] = Math.floor(size / TWO_32);
  outWords[4] = memory.E820_RAM;
  if (!access.copyOut(bufferLo, bufferHi, out, 0, count * memory.E820_ENTRY.SIZE)) return -EFAULT;
  return access.writeU32(argLo, argHi, count) ? 0 : -EFAULT;
}

/** The M2P as the engine shows it. It ends with the last frame that has an entry, not at the end of Xen's hole. */
function machphysMapping(v: Vcpu, argLo: number, argHi: number): number {
  const { m2pVaLo, m2pVaHi } = v.engine.facts;
  const end = MFN_BASE + v.machine.layout.m2pEntries;
  const bytes = Math.ceil((end * 8) / PAGE_SIZE) * PAGE_SIZE;
  outWords[0] = m2pVaLo;
  outWords[1] = m2pVaHi;
  outWords[2] = handleLo(m2pVaLo, bytes);
  outWords[3] = handleHi(m2pVaLo, m2pVaHi, bytes);
  outWords[4] = end - 1;
  outWords[5] = 0;
  return v.access.copyOut(argLo, argHi, out, 0, memory.XEN_MACHPHYS_MAPPING.SIZE) ? 0 : -EFAULT;
}

/** (cmd, argument *). cmd carries the extent to resume at above its low six bits. */
export function memoryOp(v: Vcpu): number {
  const access = v.access;
  const op = v.args[0] & memory.MEMOP_CMD_MASK;
  const startExtent = (v.args[0] >>> memory.MEMOP_EXTENT_SHIFT) + v.args[1] * 0x4000000;
  const argLo = v.args[2];
  const argHi = v.args[3];
  switch (op) {
    case memory.XENMEM_increase_reservation:
    case memory.XENMEM_decrease_reservation:
    case memory.XENMEM_populate_physmap:
      return changeReservation(v, op, startExtent, argLo, argHi);
    case memory.XENMEM_add_to_physmap: {
      if (!access.copyIn(argLo, argHi, memory.XEN_ADD_TO_PHYSMAP.SIZE)) return -EFAULT;
      if (access.words[memory.XEN_ADD_TO_PHYSMAP.space >> 2] === memory.XENMAPSPACE_gmfn_foreign) return -ENOSYS;
      return isSelf(v, readU16(v, memory.XEN_ADD_TO_PHYSMAP.domid)) ? -EACCES : -ESRCH;
    }
    case memory.XENMEM_add_to_physmap_batch: {
      if (!access.copyIn(argLo, argHi, memory.XEN_ADD_TO_PHYSMAP_BATCH.SIZE)) return -EFAULT;
      if (readU16(v, memory.XEN_ADD_TO_PHYSMAP_BATCH.space) === memory.XENMAPSPACE_gmfn_range) return -EOPNOTSUPP;
      return isSelf(v, readU16(v, memory.XEN_ADD_TO_PHYSMAP_BATCH.domid)) ? -EACCES : -ESRCH;
    }
    default:
      break;
  }
  // None of the others takes an extent.
  if (startExtent !== 0) {
    const knowsExtents =
      op === memory.XENMEM_exchange ||
      op === memory.XENMEM_maximum_ram_page ||
      op === memory.XENMEM_current_reservation ||
      op === memory.XENMEM_maximum_reservation ||
      op === memory.XENMEM_maximum_gpfn ||
      op === memory.XENMEM_remove_from_physmap ||
      op === memory.XENMEM_claim_pages ||
      op === memory.XENMEM_get_vnumainfo ||
      op === memory.XENMEM_reserved_device_memory_map;
    return knowsExtents ? -EINVAL : -ENOSYS;
  }
  switch (op) {
    case memory.XENMEM_maximum_ram_page:
      return MFN_BASE + v.machine.layout.nameableFrames;
    case memory.XENMEM_current_reservation:
    case memory.XENMEM_maximum_reservation:
    case memory.XENMEM_maximum_gpfn:
      return domainStatistic(v, op, argLo, argHi);
    case memory.XENMEM_memory_map:
      return memoryMap(v, argLo, argHi);
    case memory.XENMEM_machphys_mapping:
      return machphysMapping(v, argLo, argHi);
    case memory.XENMEM_remove_from_physmap:
      if (!access.copyIn(argLo, argHi, memory.XEN_REMOVE_FROM_PHYSMAP.SIZE)) return -EFAULT;
      return isSelf(v, readU16(v, memory.XEN_REMOVE_FROM_PHYSMAP.domid)) ? -EACCES : -ESRCH;
    case memory.XENMEM_set_memory_map:
      // struct xen_foreign_memory_map { u16 domid; struct xen_memory_map map (at 8); }
      if (!access.copyIn(argLo, argHi, 8 + memory.XEN_MEMORY_MAP.SIZE)) return -EFAULT;
      if (access.words[2] > E820MAX) return -EINVAL;
      return isSelf(v, readU16(v, 0)) ? -EPERM : -ESRCH;
    case memory.XENMEM_machine_memory_map:
      return -EPERM;
    case memory.XENMEM_set_pod_target:
    case memory.XENMEM_get_pod_target:
      if (!access.copyIn(argLo, argHi, memory.XEN_POD_TARGET.SIZE)) return -EFAULT;
      return isSelf(v, readU16(v, memory.XEN_POD_TARGET.domid)) ? -EINVAL : -ESRCH;
    case memory.XENMEM_get_sharing_freed_pages:
    case memory.XENMEM_get_sharing_shared_pages:
      return 0;
    case memory.XENMEM_claim_pages: {
      const R = memory.XEN_MEMORY_RESERVATION;
      if (!access.copyIn(argLo, argHi, R.SIZE)) return -EFAULT;
      const words = access.words;
      if ((words[R.extent_start >> 2] | words[(R.extent_start >> 2) + 1]) !== 0) return -EINVAL;
      if ((words[R.extent_order >> 2] | words[R.mem_flags >> 2]) !== 0) return -EINVAL;
      // By number only: DOMID_SELF names no domain here.
      return readU16(v, R.domid) === v.domain.domid ? -EPERM : -EINVAL;
    }
    case memory.XENMEM_machphys_compat_mfn_list:
      return -EOPNOTSUPP;
    case memory.XENMEM_get_vnumainfo:
      if (!access.copyIn(argLo, argHi, memory.XEN_VNUMA_TOPOLOGY_INFO.SIZE)) return -EFAULT;
      if (readU16(v, memory.XEN_VNUMA_TOPOLOGY_INFO.pad) !== 0) return -EINVAL;
      return isSelf(v, readU16(v, memory.XEN_VNUMA_TOPOLOGY_INFO.domid)) ? -EOPNOTSUPP : -ESRCH;
    case memory.XENMEM_reserved_device_memory_map: {
      const M = memory.XEN_RESERVED_DEVICE_MEMORY_MAP;
      if (!access.copyIn(argLo, argHi, M.SIZE)) return -EFAULT;
      if ((access.words[M.flags >> 2] & ~memory.XENMEM_RDM_ALL) !== 0) return -EINVAL;
      return access.writeU32(handleLo(argLo, M.nr_entries), handleHi(argLo, argHi, M.nr_entries), 0) ? 0 : -EFAULT;
    }
    case memory.XENMEM_acquire_resource:
      if (!access.copyIn(argLo, argHi, memory.XEN_MEM_ACQUIRE_RESOURCE.SIZE)) return -EFAULT;
      if (access.words[memory.XEN_MEM_ACQUIRE_RESOURCE.pad >> 2] !== 0) return -EINVAL;
      return isSelf(v, readU16(v, memory.XEN_MEM_ACQUIRE_RESOURCE.domid)) ? -EPERM : -ESRCH;
    default:
      // exchange, machphys_mfn_list, paging, access and sharing among them.
      return -ENOSYS;
  }
}
