/**
 * grant_table_op. Source: xen/include/public/grant_table.h; xen/common/grant_table.c (behaviour).
 *
 * The table's frames lie behind the RAM in machine memory and read zero until the guest fills them; it grows under the domain lock and
 * never shrinks. Mapping is in grant-map.ts, copying in grant-copy.ts, giving away in grant-transfer.ts, versions in grant-version.ts.
 *
 * Status goes into each entry, as s16; the hypercall itself fails only for a bad array.
 */

import { EFAULT, EINVAL, ENOSYS } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { offsetToMfn, PAGE_SIZE } from '../../machine/memory.ts';
import { DOMAIN, type Domain } from '../domain.ts';
import { entryCount, entryIndex, grantVersion, isEntryInUse } from '../grant-entries.ts';
import type { Vcpu } from '../vcpu.ts';
import { copyGrants } from './grant-copy.ts';
import { mapGrantRefs, unmapAndReplace, unmapGrantRefs } from './grant-map.ts';
import { transferPages } from './grant-transfer.ts';
import { getGrantVersion, getStatusFrames, setGrantVersion } from './grant-version.ts';
import { addressOkay, handleHi, handleLo, isSelf, readU16, stopRequested, writeS16 } from './guest-handle.ts';

const GRANT_FRAMES = DOMAIN.grantFrames >> 2;
const GRANT_FRAMES_LIMIT = DOMAIN.grantFramesMax >> 2;

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
  else if (frames > domain.i32[GRANT_FRAMES_LIMIT]) status = gnttab.GNTST_general_error;
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
    outWords[Q.max_nr_frames >> 2] = v.domain.i32[GRANT_FRAMES_LIMIT];
  }
  outWords[Q.status >> 2] = (outWords[Q.status >> 2] & 0xffff0000) | (status & 0xffff);
  return v.access.copyOut(v.args[2], v.args[3], out, 0, Q.SIZE) ? 0 : -EFAULT;
}

function swapOne(v: Vcpu): number {
  const S = gnttab.GNTTAB_SWAP_GRANT_REF;
  const a = v.access.words[S.ref_a >> 2];
  const b = v.access.words[S.ref_b >> 2];
  const d = v.domain;
  d.lock();
  const status = swap(d, a, b);
  d.unlock();
  return status;
}

function swap(d: Domain, a: number, b: number): number {
  const version = grantVersion(d);
  const count = entryCount(d, version);
  if (a >= count || b >= count) return gnttab.GNTST_bad_gntref;
  if (a === b) return gnttab.GNTST_okay;
  if (isEntryInUse(d, version, a) || isEntryInUse(d, version, b)) return gnttab.GNTST_eagain;
  const { i32 } = d.machine;
  const indexA = entryIndex(d, version, a);
  const indexB = entryIndex(d, version, b);
  const words = (version === 1 ? gnttab.GRANT_ENTRY_V1.SIZE : gnttab.GRANT_ENTRY_V2.SIZE) >> 2;
  for (let k = 0; k < words; k++) {
    const old = Atomics.exchange(i32, indexA + k, Atomics.load(i32, indexB + k));
    Atomics.store(i32, indexB + k, old);
  }
  return gnttab.GNTST_okay;
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
      return mapGrantRefs(v, count);
    case gnttab.GNTTABOP_unmap_grant_ref:
      return unmapGrantRefs(v, count);
    case gnttab.GNTTABOP_unmap_and_replace:
      return unmapAndReplace(v, count);
    case gnttab.GNTTABOP_setup_table:
      return setupTable(v, count);
    case gnttab.GNTTABOP_transfer:
      return transferPages(v, count);
    case gnttab.GNTTABOP_copy:
      return copyGrants(v, count);
    case gnttab.GNTTABOP_query_size:
      return querySize(v, count);
    case gnttab.GNTTABOP_set_version:
      return setGrantVersion(v);
    case gnttab.GNTTABOP_get_status_frames:
      return getStatusFrames(v, count);
    case gnttab.GNTTABOP_get_version:
      return getGrantVersion(v);
    case gnttab.GNTTABOP_swap_grant_ref:
      return forEach(v, gnttab.GNTTAB_SWAP_GRANT_REF.SIZE, gnttab.GNTTAB_SWAP_GRANT_REF.status, count, swapOne);
    case gnttab.GNTTABOP_cache_flush:
      return cacheFlush(v, count);
    default:
      // dump_table among them.
      return -ENOSYS;
  }
}
