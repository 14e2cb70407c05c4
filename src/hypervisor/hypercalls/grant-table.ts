/**
 * grant_table_op. Source: xen/include/public/grant_table.h; xen/common/grant_table.c (behaviour).
 *
 * Version 1 of the table only. Its frames lie behind the RAM in machine memory and read zero until the guest fills them; the table
 * grows under the domain lock and never shrinks. Backends of this house live in the hypervisor's process and read the table
 * themselves (backends/), so that a domain meets no other domain here: mapping fails with the status that Xen gives for a domain
 * that does not exist, and GNTTABOP_copy copies between the domain's own frames and own grants.
 *
 * Status goes into each entry, as s16; the hypercall itself fails only for a bad array.
 */

import { EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, ESRCH } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { DOMID_SELF } from '../../abi/xen.ts';
import { GRANT_FRAMES_MAX, MFN_BASE, offsetToMfn, PAGE_SIZE } from '../../machine/memory.ts';
import { DOMAIN, FRAME_LEVEL_MASK } from '../domain.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay, handleHi, handleLo, isSelf, readU16, stopRequested, writeS16 } from './guest-handle.ts';

const ENTRIES_PER_FRAME = PAGE_SIZE / gnttab.GRANT_ENTRY_V1.SIZE;
const GRANT_FRAMES = DOMAIN.grantFrames >> 2;
/** Compare-exchanges on an entry that the guest keeps changing. Source: xen/common/grant_table.c, _set_status_v1. */
const ATTEMPTS_MAX = 5;
const TWO_32 = 0x100000000;

/** References that the table has now. */
function entryCount(v: Vcpu): number {
  return Atomics.load(v.domain.i32, GRANT_FRAMES) * ENTRIES_PER_FRAME;
}

/** Index in machine.u32 of an entry: flags | domid << 16, then frame. */
function entryIndex(v: Vcpu, ref: number): number {
  return (v.machine.layout.grantTableOffset + ref * gnttab.GRANT_ENTRY_V1.SIZE) >>> 2;
}

/** One entry of the array, already read into access.words. Returns its status. */
type EntryOperation = (v: Vcpu) => number;

/** Runs `operation` on each of `count` entries and stores its status. */
function forEach(v: Vcpu, size: number, statusAt: number, count: number, operation: EntryOperation): number {
  let lo = v.args[2];
  let hi = v.args[3];
  if (!addressOkay(hi)) return -EFAULT;
  for (let i = 0; i < count; i++) {
    if (!v.access.copyIn(lo, hi, size)) return -EFAULT;
    const status = operation(v);
    if (!writeS16(v, handleLo(lo, statusAt), handleHi(lo, hi, statusAt), status)) return -EFAULT;
    hi = handleHi(lo, hi, size);
    lo = handleLo(lo, size);
    if ((i & 0x3f) === 0x3f && stopRequested(v)) break;
  }
  return 0;
}

function mapOne(v: Vcpu): number {
  const M = gnttab.GNTTAB_MAP_GRANT_REF;
  const words = v.access.words;
  if ((words[M.flags >> 2] & (gnttab.GNTMAP_device_map | gnttab.GNTMAP_host_map)) === 0) return gnttab.GNTST_bad_gntref;
  // By number only: DOMID_SELF names no domain here.
  if (readU16(v, M.dom) !== v.domain.domid) return gnttab.GNTST_bad_domain;
  if (words[M.ref >> 2] >= entryCount(v)) return gnttab.GNTST_bad_gntref;
  // A grant to oneself: there are no mappings to make.
  return gnttab.GNTST_general_error;
}

/** Nothing was ever mapped, so no handle is good. */
function badHandle(): number {
  return gnttab.GNTST_bad_handle;
}

function setupTable(v: Vcpu, count: number): number {
  const S = gnttab.GNTTAB_SETUP_TABLE;
  const { access, domain } = v;
  const lo = v.args[2];
  const hi = v.args[3];
  if (count !== 1) return -EINVAL;
  if (!access.copyIn(lo, hi, S.SIZE)) return -EFAULT;
  const domid = readU16(v, S.dom);
  const frames = access.words[S.nr_frames >> 2];
  const listLo = access.words[S.frame_list >> 2];
  const listHi = access.words[(S.frame_list >> 2) + 1];
  if (!addressOkay(listHi)) return -EFAULT;
  let status = gnttab.GNTST_okay;
  if (!isSelf(v, domid)) status = gnttab.GNTST_bad_domain;
  else if (frames > GRANT_FRAMES_MAX) status = gnttab.GNTST_general_error;
  else {
    domain.lock();
    if (frames > domain.i32[GRANT_FRAMES]) Atomics.store(domain.i32, GRANT_FRAMES, frames);
    domain.unlock();
    for (let i = 0; i < frames; i++) {
      const mfn = offsetToMfn(v.machine.layout.grantTableOffset + i * PAGE_SIZE);
      const okay = access.writeU64(handleLo(listLo, i * 8), handleHi(listLo, listHi, i * 8), mfn, 0);
      if (!okay) status = gnttab.GNTST_bad_virt_addr;
    }
  }
  return writeS16(v, handleLo(lo, S.status), handleHi(lo, hi, S.status), status) ? 0 : -EFAULT;
}

const out = new Uint8Array(gnttab.GNTTAB_QUERY_SIZE.SIZE);
const outWords = new Uint32Array(out.buffer);

function querySize(v: Vcpu, count: number): number {
  const Q = gnttab.GNTTAB_QUERY_SIZE;
  if (count !== 1) return -EINVAL;
  if (!v.access.copyIn(v.args[2], v.args[3], Q.SIZE)) return -EFAULT;
  for (let i = 0; i < Q.SIZE >> 2; i++) outWords[i] = v.access.words[i];
  let status = gnttab.GNTST_bad_domain;
  if (isSelf(v, readU16(v, Q.dom))) {
    status = gnttab.GNTST_okay;
    outWords[Q.nr_frames >> 2] = Atomics.load(v.domain.i32, GRANT_FRAMES);
    outWords[Q.max_nr_frames >> 2] = GRANT_FRAMES_MAX;
  }
  outWords[Q.status >> 2] = (outWords[Q.status >> 2] & 0xffff0000) | (status & 0xffff);
  return v.access.copyOut(v.args[2], v.args[3], out, 0, Q.SIZE) ? 0 : -EFAULT;
}

function setVersion(v: Vcpu): number {
  if (!v.access.readU32(v.args[2], v.args[3])) return -EFAULT;
  const version = v.access.lo;
  const rc = version === 1 ? 0 : version === 2 ? -ENOSYS : -EINVAL;
  // The version in force comes back in any case.
  return v.access.writeU32(v.args[2], v.args[3], 1) ? rc : -EFAULT;
}

function getVersion(v: Vcpu): number {
  const G = gnttab.GNTTAB_GET_VERSION;
  if (!v.access.copyIn(v.args[2], v.args[3], G.SIZE)) return -EFAULT;
  if (!isSelf(v, readU16(v, G.dom))) return -ESRCH;
  return v.access.writeU32(handleLo(v.args[2], G.version), handleHi(v.args[2], v.args[3], G.version), 1) ? 0 : -EFAULT;
}

/** Version 1 has no status frames. */
function getStatusFrames(v: Vcpu, count: number): number {
  const G = gnttab.GNTTAB_GET_STATUS_FRAMES;
  const lo = v.args[2];
  const hi = v.args[3];
  if (count !== 1) return -EINVAL;
  if (!v.access.copyIn(lo, hi, G.SIZE)) return -EFAULT;
  if (!addressOkay(v.access.words[(G.frame_list >> 2) + 1])) return -EFAULT;
  let status = gnttab.GNTST_okay;
  if (!isSelf(v, readU16(v, G.dom))) status = gnttab.GNTST_bad_domain;
  else if (v.access.words[G.nr_frames >> 2] !== 0) status = gnttab.GNTST_general_error;
  return writeS16(v, handleLo(lo, G.status), handleHi(lo, hi, G.status), status) ? 0 : -EFAULT;
}

/** What a copy works on, on one side. Made once for each side. */
interface CopySide {
  /** Byte offset of the page in memory 0. */
  page: number;
  /** Entry whose in-use bits are ours, -1 = none; and those bits. */
  entry: number;
  bits: number;
}
const source: CopySide = { page: -1, entry: -1, bits: 0 };
const dest: CopySide = { page: -1, entry: -1, bits: 0 };

/** Finds the page that an MFN names; `write` refuses page tables. */
function claimFrame(v: Vcpu, side: CopySide, mfn: number, write: boolean): number {
  const { machine, domain } = v;
  const page = machine.mfnToOffset(mfn);
  if (page < 0) return gnttab.GNTST_bad_page;
  const frame = mfn - MFN_BASE;
  const m2p = (machine.layout.m2pOffset >>> 2) + frame * 2;
  // A frame that the domain gave back (memory.ts).
  if (frame < machine.layout.maxPages && (machine.u32[m2p] & machine.u32[m2p + 1]) >>> 0 === 0xffffffff)
    return gnttab.GNTST_bad_page;
  if (write && (domain.frameTypes[frame] & FRAME_LEVEL_MASK) !== 0) return gnttab.GNTST_general_error;
  side.page = page;
  return gnttab.GNTST_okay;
}

/** Marks a grant as in use and finds its page. Under the domain lock. */
function claimGrant(v: Vcpu, side: CopySide, ref: number, write: boolean): number {
  if (ref >= entryCount(v)) return gnttab.GNTST_bad_gntref;
  const i32 = v.machine.i32;
  const index = entryIndex(v, ref);
  const bits = write ? gnttab.GTF_reading | gnttab.GTF_writing : gnttab.GTF_reading;
  let old = Atomics.load(i32, index);
  for (let attempt = 1; ; attempt++) {
    if ((old & gnttab.GTF_type_mask) !== gnttab.GTF_permit_access || old >>> 16 !== v.domain.domid)
      return gnttab.GNTST_general_error;
    if (write && (old & gnttab.GTF_readonly) !== 0) return gnttab.GNTST_general_error;
    const seen = Atomics.compareExchange(i32, index, old, old | bits);
    if (seen === old) break;
    if (attempt === ATTEMPTS_MAX) return gnttab.GNTST_general_error;
    old = seen;
  }
  side.entry = index;
  side.bits = bits;
  return claimFrame(v, side, Atomics.load(i32, index + 1) >>> 0, write);
}

function release(v: Vcpu, side: CopySide): void {
  if (side.entry >= 0) Atomics.and(v.machine.i32, side.entry, ~side.bits);
  side.entry = -1;
  side.page = -1;
}

/** 0, or why a domid is wrong: frames are the caller's own, under DOMID_SELF only. */
function checkCopyDomain(v: Vcpu, domid: number, isGrant: boolean): number {
  if (domid !== DOMID_SELF && !isGrant) return gnttab.GNTST_permission_denied;
  return isSelf(v, domid) ? gnttab.GNTST_okay : gnttab.GNTST_bad_domain;
}

function copyOne(v: Vcpu): number {
  const C = gnttab.GNTTAB_COPY;
  const words = v.access.words;
  const flags = readU16(v, C.flags);
  const length = readU16(v, C.len);
  const sourceOffset = readU16(v, C.source_offset);
  const destOffset = readU16(v, C.dest_offset);
  const sourceRef = words[C.source >> 2];
  const sourceMfn = words[(C.source >> 2) + 1] * TWO_32 + sourceRef;
  const destRef = words[C.dest >> 2];
  const destMfn = words[(C.dest >> 2) + 1] * TWO_32 + destRef;
  const fromGrant = (flags & gnttab.GNTCOPY_source_gref) !== 0;
  const toGrant = (flags & gnttab.GNTCOPY_dest_gref) !== 0;
  let status = checkCopyDomain(v, readU16(v, C.source_domid), fromGrant);
  if (status === 0) status = checkCopyDomain(v, readU16(v, C.dest_domid), toGrant);
  if (status !== 0) return status;
  // The lock makes the in-use bits ours: two vCPUs may copy from the same grant.
  v.domain.lock();
  status = fromGrant ? claimGrant(v, source, sourceRef, false) : claimFrame(v, source, sourceMfn, false);
  if (status === 0) status = toGrant ? claimGrant(v, dest, destRef, true) : claimFrame(v, dest, destMfn, true);
  if (status === 0 && (sourceOffset + length > PAGE_SIZE || destOffset + length > PAGE_SIZE))
    status = gnttab.GNTST_bad_copy_arg;
  if (status === 0) {
    const from = source.page + sourceOffset;
    v.machine.u8.copyWithin(dest.page + destOffset, from, from + length);
    v.engine.memoryStored(dest.page + destOffset, length);
  }
  release(v, dest);
  release(v, source);
  v.domain.unlock();
  return status;
}

function swapOne(v: Vcpu): number {
  const S = gnttab.GNTTAB_SWAP_GRANT_REF;
  const a = v.access.words[S.ref_a >> 2];
  const b = v.access.words[S.ref_b >> 2];
  const count = entryCount(v);
  if (a >= count || b >= count) return gnttab.GNTST_bad_gntref;
  if (a === b) return gnttab.GNTST_okay;
  const i32 = v.machine.i32;
  const indexA = entryIndex(v, a);
  const indexB = entryIndex(v, b);
  const inUse = gnttab.GTF_reading | gnttab.GTF_writing;
  v.domain.lock();
  let status = gnttab.GNTST_okay;
  if (((Atomics.load(i32, indexA) | Atomics.load(i32, indexB)) & inUse) !== 0) status = gnttab.GNTST_eagain;
  else {
    for (let k = 0; k < 2; k++) {
      const old = Atomics.exchange(i32, indexA + k, Atomics.load(i32, indexB + k));
      Atomics.store(i32, indexB + k, old);
    }
  }
  v.domain.unlock();
  return status;
}

/** Caches are coherent here: a request that is right has nothing to do. */
function cacheFlush(v: Vcpu, count: number): number {
  const F = gnttab.GNTTAB_CACHE_FLUSH;
  let lo = v.args[2];
  let hi = v.args[3];
  if (!addressOkay(hi)) return -EFAULT;
  for (let i = 0; i < count; i++) {
    if (!v.access.copyIn(lo, hi, F.SIZE)) return -EFAULT;
    const offset = readU16(v, F.offset);
    const length = readU16(v, F.length);
    const op = v.access.words[F.op >> 2];
    if (offset >= PAGE_SIZE || offset + length > PAGE_SIZE) return -EINVAL;
    if ((op & ~(gnttab.GNTTAB_CACHE_INVAL | gnttab.GNTTAB_CACHE_CLEAN)) !== 0) return -EINVAL;
    if (length !== 0 && op !== 0) {
      const mfn = v.access.words[1] * 0x100000 + (v.access.words[0] >>> 12);
      if (v.machine.mfnToOffset(mfn) < 0) return -EINVAL;
    }
    hi = handleHi(lo, hi, F.SIZE);
    lo = handleLo(lo, F.SIZE);
    if ((i & 0xff) === 0xff && stopRequested(v)) break;
  }
  return 0;
}

/** (cmd, array, count) */
export function grantTableOp(v: Vcpu): number {
  const cmd = v.args[0] & gnttab.GNTTABOP_CMD_MASK;
  const count = v.args[4];
  if (count > 0x7fffffff) return -EINVAL;
  // Bits above the command are for continuations, which only cache_flush has.
  if (cmd !== gnttab.GNTTABOP_cache_flush && cmd !== v.args[0]) return -EINVAL;
  switch (cmd) {
    case gnttab.GNTTABOP_map_grant_ref:
      return forEach(v, gnttab.GNTTAB_MAP_GRANT_REF.SIZE, gnttab.GNTTAB_MAP_GRANT_REF.status, count, mapOne);
    case gnttab.GNTTABOP_unmap_grant_ref:
      return forEach(v, gnttab.GNTTAB_UNMAP_GRANT_REF.SIZE, gnttab.GNTTAB_UNMAP_GRANT_REF.status, count, badHandle);
    case gnttab.GNTTABOP_unmap_and_replace:
      return forEach(v, gnttab.GNTTAB_UNMAP_AND_REPLACE.SIZE, gnttab.GNTTAB_UNMAP_AND_REPLACE.status, count, badHandle);
    case gnttab.GNTTABOP_setup_table:
      return setupTable(v, count);
    case gnttab.GNTTABOP_transfer:
      // As Xen with `gnttab=transfer=no`: there is nobody to give a page to.
      return addressOkay(v.args[3]) ? -EOPNOTSUPP : -EFAULT;
    case gnttab.GNTTABOP_copy:
      return forEach(v, gnttab.GNTTAB_COPY.SIZE, gnttab.GNTTAB_COPY.status, count, copyOne);
    case gnttab.GNTTABOP_query_size:
      return querySize(v, count);
    case gnttab.GNTTABOP_set_version:
      return setVersion(v);
    case gnttab.GNTTABOP_get_status_frames:
      return getStatusFrames(v, count);
    case gnttab.GNTTABOP_get_version:
      return getVersion(v);
    case gnttab.GNTTABOP_swap_grant_ref:
      return forEach(v, gnttab.GNTTAB_SWAP_GRANT_REF.SIZE, gnttab.GNTTAB_SWAP_GRANT_REF.status, count, swapOne);
    case gnttab.GNTTABOP_cache_flush:
      return cacheFlush(v, count);
    default:
      // dump_table among them.
      return -ENOSYS;
  }
}
