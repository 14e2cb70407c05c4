/**
 * GNTTABOP_map_grant_ref, unmap_grant_ref and unmap_and_replace: pages of other domains in this one's page tables. What a domain grants to
 * itself is in own-grants.ts.
 *
 * The other domain's process checks the grant and marks it in use (peer-server.ts); the page then stands in a foreign frame of memory
 * 0, which has an MFN like any other, and the guest's entry names that. Requests are done in batches, one question to the other
 * domain for each; that is asked without the domain lock.
 *
 * Handles and entries of an unmapped grant are gone before the other domain hears of it, and no vCPU has a translation left.
 *
 * Deviations: a guest that names a foreign frame in a table before that is one gets what it has mapped
 * anyway, or, where nothing is, a page of its own; if the grant is read-only and it writes, it crashes.
 *
 * Source: xen/include/public/grant_table.h; xen/common/grant_table.c, map_grant_ref and unmap_common; xen/arch/x86/pv/grant_table.c
 * (behaviour).
 */

import { EFAULT } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { DOMID_FIRST_RESERVED } from '../../abi/xen.ts';
import { offsetToMfn, PAGE_SIZE } from '../../machine/memory.ts';
import { PTE_A, PTE_D, PTE_P, PTE_RW } from '../../machine/page-table.ts';
import { FRAME_LEVEL_MASK } from '../domain.ts';
import { FOREIGN_BATCH, type ForeignDomains, GRANT_WORDS } from '../foreign-domains.ts';
import { pteMfn } from '../guest-access.ts';
import { addMapping, dropMapping, type Mapping, readMapping, storeMapping } from '../maptrack.ts';
import { allVcpus, flushVcpus, storeGrantPte, storePte } from '../mmu.ts';
import { claimOwn, releaseOwn } from '../own-grants.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay, handleHi, handleLo, isCanonical, readU16, stopRequested, writeS16 } from './guest-handle.ts';

const M = gnttab.GNTTAB_MAP_GRANT_REF;
const U = gnttab.GNTTAB_UNMAP_GRANT_REF;
const MAP_WORDS = M.SIZE >> 2;
const UNMAP_WORDS = U.SIZE >> 2;
/** Bits 16 to 18 of the flags go into the software bits of the entry. Source: grant_table.h, _GNTMAP_guest_avail0. */
const GUEST_AVAIL_SHIFT = 16;
const PTE_AVAIL_SHIFT = 9;
/** A mapping is there as long as one of these is in force. */
const IN_FORCE = gnttab.GNTMAP_device_map | gnttab.GNTMAP_host_map;
const KEPT_FLAGS = IN_FORCE | gnttab.GNTMAP_readonly | gnttab.GNTMAP_contains_pte;

/** The batch: what the guest asked, the status of each, and what is asked of the other domain. */
const asked = new Uint32Array(FOREIGN_BATCH * MAP_WORDS);
const statuses = new Int32Array(FOREIGN_BATCH);
const requests = new Uint32Array(FOREIGN_BATCH * GRANT_WORDS);
/** Which of the batch each request is. */
const origins = new Uint32Array(FOREIGN_BATCH);
/** What the other domain gave for each. */
const found = new Int32Array(FOREIGN_BATCH);
const frames = new Int32Array(FOREIGN_BATCH);
const domids = new Uint32Array(FOREIGN_BATCH);
const handles = new Int32Array(FOREIGN_BATCH);
/** An entry that moves. */
const taken = new Uint32Array(2);
const mapping: Mapping = { frame: 0, domid: 0, flags: 0, gref: 0 };

/** Reads requests from the array on into `asked`; how many. -1: a page fault at the first. */
function gather(v: Vcpu, lo: number, hi: number, words: number, limit: number, domidAt: number): number {
  let domid = -1;
  for (let n = 0; n < limit; n++) {
    if (!v.access.copyIn(lo, hi, words * 4)) return n === 0 ? -1 : n;
    if (domidAt >= 0) {
      // Of one domain only.
      const dom = readU16(v, domidAt);
      if (n > 0 && dom !== domid) return n;
      domid = dom;
    }
    for (let i = 0; i < words; i++) asked[n * words + i] = v.access.words[i];
    hi = handleHi(lo, hi, words * 4);
    lo = handleLo(lo, words * 4);
  }
  return limit;
}

/** Byte offset in memory 0 of the L1 entry that `host_addr` stands for, or -1. */
function entryOf(v: Vcpu, lo: number, hi: number, containsPte: boolean): number {
  let offset = -1;
  if (containsPte) {
    const page = v.machine.mfnToOffset(hi * 0x100000 + (lo >>> 12));
    if (page >= 0 && (lo & 7) === 0) offset = page + (lo & (PAGE_SIZE - 1));
  } else if (isCanonical(hi)) offset = v.access.entryOffset(v.access.kernelRoot(), lo, hi, 1);
  return offset >= 0 && (v.domain.frameTypes[offset >>> 12] & FRAME_LEVEL_MASK) === 1 ? offset : -1;
}

/** (array, count) */
export function mapGrantRefs(v: Vcpu, count: number): number {
  let lo = v.args[2];
  let hi = v.args[3];
  if (!addressOkay(hi)) return -EFAULT;
  for (let done = 0; done < count; ) {
    const n = gather(v, lo, hi, MAP_WORDS, Math.min(count - done, FOREIGN_BATCH), M.dom);
    if (n < 0) return -EFAULT;
    mapBatch(v, n);
    for (let i = 0; i < n; i++) {
      if (!writeMapped(v, lo, hi, i)) return -EFAULT;
      hi = handleHi(lo, hi, M.SIZE);
      lo = handleLo(lo, M.SIZE);
    }
    done += n;
    if (stopRequested(v)) break;
  }
  return 0;
}

function writeMapped(v: Vcpu, lo: number, hi: number, i: number): boolean {
  if (statuses[i] === gnttab.GNTST_okay) {
    const maddr = offsetToMfn(frames[i] * PAGE_SIZE) * PAGE_SIZE;
    const { words, bytes } = v.access;
    words[0] = handles[i];
    words[1] = maddr >>> 0;
    words[2] = Math.floor(maddr / 0x100000000);
    if (!v.access.copyOut(handleLo(lo, M.handle), handleHi(lo, hi, M.handle), bytes, 0, 12)) return false;
  }
  return writeS16(v, handleLo(lo, M.status), handleHi(lo, hi, M.status), statuses[i]);
}

/** The first `n` of `asked`, all of one domain, into `statuses`, `frames` and `handles`. */
function mapBatch(v: Vcpu, n: number): void {
  const { foreign } = v.host;
  const domid = asked[M.dom >> 2] & 0xffff;
  let wanted = 0;
  for (let i = 0; i < n; i++) {
    const at = i * MAP_WORDS;
    const flags = asked[at + (M.flags >> 2)];
    if ((flags & IN_FORCE) === 0) statuses[i] = gnttab.GNTST_bad_gntref;
    else if (domid === v.domain.domid) statuses[i] = mapOwn(v, i);
    // Dom0 grants nothing to anybody.
    else if (domid === 0) statuses[i] = gnttab.GNTST_bad_gntref;
    else if (foreign === null || domid >= DOMID_FIRST_RESERVED) statuses[i] = gnttab.GNTST_bad_domain;
    else {
      requests[wanted * GRANT_WORDS] = asked[at + (M.ref >> 2)];
      requests[wanted * GRANT_WORDS + 1] = (flags & gnttab.GNTMAP_readonly) !== 0 ? 0 : 1;
      origins[wanted++] = i;
    }
  }
  const refused = wanted === 0 || foreign === null ? 0 : mapForeign(v, foreign, domid, wanted);
  if (v.flushAll) {
    v.flushAll = false;
    flushVcpus(v, allVcpus(v.domain));
  }
  if (refused > 0) foreign?.release(domid, requests, refused, found);
}

/** Asks for `requests`; how many of them, which stand first then, have to be given back. */
function mapForeign(v: Vcpu, foreign: ForeignDomains, domid: number, wanted: number): number {
  foreign.map(domid, requests, wanted, found);
  let refused = 0;
  for (let k = 0; k < wanted; k++) {
    const i = origins[k];
    v.domain.lock();
    statuses[i] = found[k] < 0 ? found[k] : enter(v, i, domid, found[k]);
    v.domain.unlock();
    frames[i] = found[k];
    if (found[k] < 0 || statuses[i] === gnttab.GNTST_okay) continue;
    requests[refused * GRANT_WORDS] = requests[k * GRANT_WORDS];
    requests[refused * GRANT_WORDS + 1] = requests[k * GRANT_WORDS + 1];
    found[refused++] = found[k];
  }
  return refused;
}

/** Maps what the domain has granted to itself. GNTST_*. */
function mapOwn(v: Vcpu, i: number): number {
  const d = v.domain;
  const gref = asked[i * MAP_WORDS + (M.ref >> 2)];
  const writable = (asked[i * MAP_WORDS + (M.flags >> 2)] & gnttab.GNTMAP_readonly) === 0;
  d.lock();
  const frame = claimOwn(d, gref, writable);
  const status = frame < 0 ? frame : enter(v, i, d.domid, frame);
  if (frame >= 0 && status !== gnttab.GNTST_okay) releaseOwn(d, gref);
  d.unlock();
  frames[i] = frame;
  return status;
}

/** Gives the mapping of a frame a handle and, if it is asked for, an entry. GNTST_*. Under the domain lock. */
function enter(v: Vcpu, i: number, domid: number, frame: number): number {
  const d = v.domain;
  const at = i * MAP_WORDS;
  const flags = asked[at + (M.flags >> 2)];
  mapping.frame = frame;
  mapping.domid = domid;
  mapping.flags = flags & KEPT_FLAGS;
  mapping.gref = asked[at + (M.ref >> 2)];
  const handle = addMapping(d, mapping);
  let status = handle < 0 ? gnttab.GNTST_no_device_space : gnttab.GNTST_okay;
  if (status === gnttab.GNTST_okay && (flags & gnttab.GNTMAP_host_map) !== 0) {
    const entry = entryOf(v, asked[at], asked[at + 1], (flags & gnttab.GNTMAP_contains_pte) !== 0);
    const mfn = offsetToMfn(frame * PAGE_SIZE);
    const access = PTE_P | PTE_A | PTE_D | ((flags & gnttab.GNTMAP_readonly) !== 0 ? 0 : PTE_RW);
    const software = ((flags >>> GUEST_AVAIL_SHIFT) & 7) << PTE_AVAIL_SHIFT;
    const wasPresent = entry >= 0 && (v.machine.u32[entry >>> 2] & PTE_P) !== 0;
    const stored =
      entry >= 0 && storeGrantPte(v, entry, ((mfn << 12) | access | software) >>> 0, Math.floor(mfn / 0x100000)) === 0;
    if (stored && wasPresent) v.flushAll = true;
    if (!stored) {
      dropMapping(d, handle);
      status = gnttab.GNTST_general_error;
    }
  }
  handles[i] = handle;
  return status;
}

/** (array, count) */
export function unmapGrantRefs(v: Vcpu, count: number): number {
  return unmapAll(v, count, false);
}

/** (array, count). The same structure, with an address where the other one has dev_bus_addr. */
export function unmapAndReplace(v: Vcpu, count: number): number {
  return unmapAll(v, count, true);
}

function unmapAll(v: Vcpu, count: number, replaces: boolean): number {
  let lo = v.args[2];
  let hi = v.args[3];
  if (!addressOkay(hi)) return -EFAULT;
  for (let done = 0; done < count; ) {
    const n = gather(v, lo, hi, UNMAP_WORDS, Math.min(count - done, FOREIGN_BATCH), -1);
    if (n < 0) return -EFAULT;
    unmapBatch(v, n, replaces);
    for (let i = 0; i < n; i++) {
      if (!writeS16(v, handleLo(lo, U.status), handleHi(lo, hi, U.status), statuses[i])) return -EFAULT;
      hi = handleHi(lo, hi, U.SIZE);
      lo = handleLo(lo, U.SIZE);
    }
    done += n;
    if (stopRequested(v)) break;
  }
  return 0;
}

function unmapBatch(v: Vcpu, n: number, replaces: boolean): void {
  let ended = 0;
  v.domain.lock();
  for (let i = 0; i < n; i++) {
    statuses[i] = leave(v, i, replaces);
    if (statuses[i] !== gnttab.GNTST_okay || (mapping.flags & IN_FORCE) !== 0) continue;
    requests[ended * GRANT_WORDS] = mapping.gref;
    requests[ended * GRANT_WORDS + 1] = (mapping.flags & gnttab.GNTMAP_readonly) !== 0 ? 0 : 1;
    domids[ended] = mapping.domid;
    frames[ended++] = mapping.frame;
  }
  v.domain.unlock();
  if (ended === 0) return;
  v.flushAll = false;
  flushVcpus(v, allVcpus(v.domain));
  for (let from = 0; from < ended; ) {
    let to = from + 1;
    while (to < ended && domids[to] === domids[from]) to++;
    const words = requests.subarray(from * GRANT_WORDS, to * GRANT_WORDS);
    if (domids[from] === v.domain.domid) {
      v.domain.lock();
      for (let i = from; i < to; i++) releaseOwn(v.domain, requests[i * GRANT_WORDS]);
      v.domain.unlock();
    } else v.host.foreign?.release(domids[from], words, to - from, frames.subarray(from, to));
    from = to;
  }
}

/** Takes one mapping back as far as was asked; `mapping` is what is left of it. GNTST_*. Under the domain lock. */
function leave(v: Vcpu, i: number, replaces: boolean): number {
  const d = v.domain;
  const at = i * UNMAP_WORDS;
  const handle = asked[at + (U.handle >> 2)];
  if (!readMapping(d, handle, mapping)) return gnttab.GNTST_bad_handle;
  const { flags } = mapping;
  const mfn = offsetToMfn(mapping.frame * PAGE_SIZE);
  const otherLo = asked[at + (U.dev_bus_addr >> 2)];
  const otherHi = asked[at + (U.dev_bus_addr >> 2) + 1];
  if (!replaces && (otherLo | otherHi) !== 0 && (flags & gnttab.GNTMAP_device_map) !== 0) {
    if (otherHi * 0x100000 + (otherLo >>> 12) !== mfn) return gnttab.GNTST_bad_dev_addr;
    mapping.flags &= ~gnttab.GNTMAP_device_map;
  }
  const hostLo = asked[at];
  const hostHi = asked[at + 1];
  if ((hostLo | hostHi) !== 0 && (flags & gnttab.GNTMAP_host_map) !== 0) {
    const containsPte = (flags & gnttab.GNTMAP_contains_pte) !== 0;
    taken[0] = taken[1] = 0;
    if (replaces && (otherLo | otherHi) !== 0 && (containsPte || !takeEntry(v, otherLo, otherHi)))
      return gnttab.GNTST_general_error;
    const entry = entryOf(v, hostLo, hostHi, containsPte);
    if (entry < 0 || !isMappedBy(v, entry, mfn) || storeGrantPte(v, entry, taken[0], taken[1]) !== 0)
      return gnttab.GNTST_general_error;
    mapping.flags &= ~gnttab.GNTMAP_host_map;
  }
  if ((mapping.flags & IN_FORCE) === 0) dropMapping(d, handle);
  else storeMapping(d, handle, mapping);
  return gnttab.GNTST_okay;
}

/** Takes the entry of an address away, into `taken`; false: there is no table. What is wrong afterwards does not bring it back. */
function takeEntry(v: Vcpu, lo: number, hi: number): boolean {
  const entry = entryOf(v, lo, hi, false);
  if (entry < 0) return false;
  const { u32 } = v.machine;
  taken[0] = u32[entry >>> 2];
  taken[1] = u32[(entry >>> 2) + 1];
  return storePte(v, entry, 0, 0) === 0;
}

function isMappedBy(v: Vcpu, entry: number, mfn: number): boolean {
  const { u32 } = v.machine;
  return (u32[entry >>> 2] & PTE_P) !== 0 && pteMfn(u32[entry >>> 2], u32[(entry >>> 2) + 1]) === mfn;
}
