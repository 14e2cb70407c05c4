/**
 * GNTTABOP_set_version, get_version and get_status_frames. Another version is an empty table, but for the entries that the toolstack
 * has made; and no entry may be in use but those.
 *
 * What is in use is what the table says: a guest that has written there itself may change the version under a grant that is mapped. The page
 * stays mapped, and only the guest misses that its entry is in use.
 *
 * Source: xen/include/public/grant_table.h; xen/common/grant_table.c, gnttab_set_version (behaviour).
 */

import { EBUSY, EFAULT, EINVAL, ENOSYS, ERANGE, ESRCH } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { offsetToMfn, PAGE_SIZE } from '../../machine/memory.ts';
import { DOMAIN, type Domain } from '../domain.ts';
import {
  entryCount,
  entryFrame,
  entryIndex,
  type GrantVersion,
  grantVersion,
  isEntryInUse,
  statusFrameCount,
  statusIndex,
  storeEntryFrame,
} from '../grant-entries.ts';
import { isMapped } from '../mmu.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay, handleHi, handleLo, isSelf, readU16, writeS16 } from './guest-handle.ts';

const RESERVED = gnttab.GNTTAB_NR_RESERVED_ENTRIES;
const IN_USE = gnttab.GTF_reading | gnttab.GTF_writing;
const FRAME_MAX_V1 = 0xffffffff;

/** The first word of each entry that stays, with the bits of version 1, and its frame. */
const headers = new Uint32Array(RESERVED);
const frames = new Float64Array(RESERVED);

/** (version *) */
export function setGrantVersion(v: Vcpu): number {
  const d = v.domain;
  if (!v.access.readU32(v.args[2], v.args[3])) return -EFAULT;
  const wanted = v.access.lo;
  let rc = -EINVAL;
  // As if there were no other version.
  if (wanted === 2 && d.i32[DOMAIN.grantVersionMax >> 2] < 2) rc = -ENOSYS;
  else if (wanted === 1 || wanted === 2) {
    d.lock();
    rc = wanted === grantVersion(d) ? 0 : change(v, wanted);
    d.unlock();
  }
  // The version in force comes back in any case.
  return v.access.writeU32(v.args[2], v.args[3], grantVersion(d)) ? rc : -EFAULT;
}

/** Under the domain lock. 0 or -errno. */
function change(v: Vcpu, wanted: GrantVersion): number {
  const d = v.domain;
  const { u8, layout } = d.machine;
  const old = grantVersion(d);
  const count = entryCount(d, old);
  for (let gref = RESERVED; gref < count; gref++) if (isEntryInUse(d, old, gref)) return -EBUSY;
  if (!keepReserved(d, old)) return -ERANGE;
  const statusFrames = statusFrameCount(d, 2);
  if (old === 2 && isMapped(d, layout.statusOffset / PAGE_SIZE, statusFrames)) return -EBUSY;
  const size = d.i32[DOMAIN.grantFrames >> 2] * PAGE_SIZE;
  u8.fill(0, layout.grantTableOffset, layout.grantTableOffset + size);
  u8.fill(0, layout.statusOffset, layout.statusOffset + statusFrames * PAGE_SIZE);
  restoreReserved(d, wanted);
  Atomics.store(d.i32, DOMAIN.grantVersion >> 2, wanted);
  v.engine.memoryStored(layout.grantTableOffset, size);
  v.engine.memoryStored(layout.statusOffset, statusFrames * PAGE_SIZE);
  return 0;
}

/** False: version 1 has no way to say what an entry says. */
function keepReserved(d: Domain, version: GrantVersion): boolean {
  const { u32, u16 } = d.machine;
  for (let gref = 0; gref < RESERVED; gref++) {
    headers[gref] = u32[entryIndex(d, version, gref)];
    frames[gref] = entryFrame(d, version, gref);
    if (version === 1) continue;
    const type = headers[gref] & gnttab.GTF_type_mask;
    if (type === gnttab.GTF_transitive) return false;
    if (type !== gnttab.GTF_permit_access) headers[gref] = frames[gref] = 0;
    else headers[gref] |= u16[statusIndex(d, gref)];
    if (frames[gref] > FRAME_MAX_V1) return false;
  }
  return true;
}

function restoreReserved(d: Domain, version: GrantVersion): void {
  const { u32, u16 } = d.machine;
  for (let gref = 0; gref < RESERVED; gref++) {
    const used = headers[gref] & IN_USE;
    if (version === 2) u16[statusIndex(d, gref)] = used;
    u32[entryIndex(d, version, gref)] = version === 2 ? headers[gref] & ~IN_USE : headers[gref];
    storeEntryFrame(d, version, gref, frames[gref]);
  }
}

/** (struct gnttab_get_version *) */
export function getGrantVersion(v: Vcpu): number {
  const G = gnttab.GNTTAB_GET_VERSION;
  const [lo, hi] = [v.args[2], v.args[3]];
  if (!v.access.copyIn(lo, hi, G.SIZE)) return -EFAULT;
  if (!isSelf(v, readU16(v, G.dom))) return -ESRCH;
  const version = grantVersion(v.domain);
  return v.access.writeU32(handleLo(lo, G.version), handleHi(lo, hi, G.version), version) ? 0 : -EFAULT;
}

/** (struct gnttab_get_status_frames *, count) */
export function getStatusFrames(v: Vcpu, count: number): number {
  const G = gnttab.GNTTAB_GET_STATUS_FRAMES;
  const [lo, hi] = [v.args[2], v.args[3]];
  const { access, domain } = v;
  if (count !== 1) return -EINVAL;
  if (!access.copyIn(lo, hi, G.SIZE)) return -EFAULT;
  const wanted = access.words[G.nr_frames >> 2];
  const domid = readU16(v, G.dom);
  const listLo = access.words[G.frame_list >> 2];
  const listHi = access.words[(G.frame_list >> 2) + 1];
  if (!addressOkay(listHi)) return -EFAULT;
  let status = gnttab.GNTST_okay;
  if (!isSelf(v, domid)) status = gnttab.GNTST_bad_domain;
  else if (wanted > statusFrameCount(domain, grantVersion(domain))) status = gnttab.GNTST_general_error;
  else
    for (let i = 0; i < wanted; i++) {
      const mfn = offsetToMfn(v.machine.layout.statusOffset + i * PAGE_SIZE);
      const okay = access.writeU64(handleLo(listLo, i * 8), handleHi(listLo, listHi, i * 8), mfn, 0);
      if (!okay) status = gnttab.GNTST_bad_virt_addr;
    }
  return writeS16(v, handleLo(lo, G.status), handleHi(lo, hi, G.status), status) ? 0 : -EFAULT;
}
