/**
 * GNTTABOP_copy: bytes between frames of the caller, and pages that were granted to it, by itself or by others.
 *
 * What lies in another domain is copied by that domain's process (peer-server.ts). Runs of copies from, or to, one domain are one
 * question to it; the domain lock is not held meanwhile. Runs are done in the order of the array.
 *
 * Source: xen/include/public/grant_table.h; xen/common/grant_table.c, gnttab_copy (behaviour).
 */

import { EFAULT } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { DOMID_FIRST_RESERVED, DOMID_SELF } from '../../abi/xen.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { FRAME_LEVEL_MASK } from '../domain.ts';
import { COPY_WORDS, FOREIGN_BATCH } from '../foreign-domains.ts';
import {
  claimEntry,
  type EntryUse,
  entryCount,
  entryCovers,
  entryFrame,
  grantVersion,
  releaseEntry,
  useBits,
} from '../grant-entries.ts';
import { ownsFrame } from '../owned-frames.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay, handleHi, handleLo, isSelf, readU16, stopRequested, writeS16 } from './guest-handle.ts';

const C = gnttab.GNTTAB_COPY;
const TWO_32 = 0x100000000;

/** One side of a copy as the guest gave it, and what it comes to while it is claimed. Made once for each side. */
interface CopySide {
  domid: number;
  isGrant: boolean;
  ref: number;
  mfn: number;
  offset: number;
  /** Byte offset of the page in memory 0. */
  page: number;
  /** In-use bits of the entry that are ours, 0 = none. */
  bits: number;
}
const side = (): CopySide => ({ domid: 0, isGrant: false, ref: 0, mfn: 0, offset: 0, page: -1, bits: 0 });
const source = side();
const dest = side();
let length = 0;
const use: EntryUse = { domid: 0, writable: false, maps: false };

/** A run of copies between this domain and another: 'read' is out of the other's grants. */
let run: 'none' | 'read' | 'write' = 'none';
let runDomid = 0;
let runCount = 0;
let runBytes = 0;
const requests = new Uint32Array(FOREIGN_BATCH * COPY_WORDS);
const results = new Int32Array(FOREIGN_BATCH);
/** Where the status of each goes: index in the array. */
const indexes = new Uint32Array(FOREIGN_BATCH);
/** For 'read', where the bytes go. */
const dests = Array.from({ length: FOREIGN_BATCH }, side);
const bytes = new Uint8Array(FOREIGN_BATCH * PAGE_SIZE);

/** Finds the page that an MFN names; `write` refuses page tables. */
function claimFrame(v: Vcpu, side: CopySide, mfn: number, write: boolean): number {
  const { machine, domain } = v;
  const page = machine.mfnToOffset(mfn);
  if (page < 0) return gnttab.GNTST_bad_page;
  const frame = mfn - MFN_BASE;
  if (frame < machine.layout.maxPages && !ownsFrame(domain, frame)) return gnttab.GNTST_bad_page;
  if (write && (domain.frameTypes[frame] & FRAME_LEVEL_MASK) !== 0) return gnttab.GNTST_general_error;
  side.page = page;
  return gnttab.GNTST_okay;
}

/** Marks a grant of the caller to itself as in use and finds its page. Under the domain lock. */
function claimGrant(v: Vcpu, side: CopySide, write: boolean): number {
  const d = v.domain;
  const version = grantVersion(d);
  if (side.ref >= entryCount(d, version)) return gnttab.GNTST_bad_gntref;
  use.domid = d.domid;
  use.writable = write;
  const status = claimEntry(d, version, side.ref, use);
  if (status !== gnttab.GNTST_okay) return status;
  side.bits = useBits(write);
  return claimFrame(v, side, entryFrame(d, version, side.ref), write);
}

function claim(v: Vcpu, side: CopySide, write: boolean): number {
  return side.isGrant ? claimGrant(v, side, write) : claimFrame(v, side, side.mfn, write);
}

/** A claimed side grants all the bytes that are to be copied. */
function covers(v: Vcpu, { isGrant, ref, offset }: CopySide, count: number): boolean {
  return !isGrant || entryCovers(v.domain, grantVersion(v.domain), ref, offset, count);
}

function release(v: Vcpu, side: CopySide): void {
  if (side.bits !== 0) releaseEntry(v.domain, grantVersion(v.domain), side.ref, side.bits);
  side.bits = 0;
  side.page = -1;
}

/** 0, or why a domid is wrong: frames are the caller's own, under DOMID_SELF only. */
function checkDomain(v: Vcpu, { domid, isGrant }: CopySide): number {
  if (domid !== DOMID_SELF && !isGrant) return gnttab.GNTST_permission_denied;
  if (isSelf(v, domid)) return gnttab.GNTST_okay;
  // Dom0 grants nothing to anybody.
  if (domid === 0) return gnttab.GNTST_bad_gntref;
  return domid < DOMID_FIRST_RESERVED && v.host.foreign !== null ? gnttab.GNTST_okay : gnttab.GNTST_bad_domain;
}

function readSide(v: Vcpu, side: CopySide, at: number, isGrant: boolean): void {
  const { words } = v.access;
  side.domid = readU16(v, at + C.source_domid);
  side.isGrant = isGrant;
  side.ref = words[at >> 2];
  side.mfn = words[(at >> 2) + 1] * TWO_32 + side.ref;
  side.offset = readU16(v, at + C.source_offset);
}

/** Both sides in this domain. */
function copyWithin(v: Vcpu): number {
  // The lock makes the in-use bits ours: two vCPUs may copy from the same grant.
  v.domain.lock();
  let status = claim(v, source, false);
  if (status === 0) status = claim(v, dest, true);
  if (status === 0 && (source.offset + length > PAGE_SIZE || dest.offset + length > PAGE_SIZE))
    status = gnttab.GNTST_bad_copy_arg;
  if (status === 0 && !(covers(v, source, length) && covers(v, dest, length))) status = gnttab.GNTST_general_error;
  if (status === 0) {
    const from = source.page + source.offset;
    v.machine.u8.copyWithin(dest.page + dest.offset, from, from + length);
    v.engine.memoryStored(dest.page + dest.offset, length);
  }
  release(v, dest);
  release(v, source);
  v.domain.unlock();
  return status;
}

/** Bytes from an own page to `bytes`. */
function copyOut(v: Vcpu, at: number): number {
  v.domain.lock();
  let status = claim(v, source, false);
  if (status === 0 && !covers(v, source, length)) status = gnttab.GNTST_general_error;
  if (status === 0) {
    const from = source.page + source.offset;
    bytes.set(v.machine.u8.subarray(from, from + length), at);
  }
  release(v, source);
  v.domain.unlock();
  return status;
}

/** Bytes from `bytes` to an own page. */
function copyInto(v: Vcpu, to: CopySide, at: number, count: number): number {
  v.domain.lock();
  let status = claim(v, to, true);
  if (status === 0 && !covers(v, to, count)) status = gnttab.GNTST_general_error;
  if (status === 0) {
    const offset = to.page + to.offset;
    v.machine.u8.set(bytes.subarray(at, at + count), offset);
    v.engine.memoryStored(offset, count);
  }
  release(v, to);
  v.domain.unlock();
  return status;
}

/** Does what the run has gathered, and stores the status of each. False: a page fault. */
function endRun(v: Vcpu): boolean {
  const count = runCount;
  const kind = run;
  run = 'none';
  runCount = 0;
  if (kind === 'none' || v.host.foreign === null) return true;
  if (kind === 'write') v.host.foreign.write(runDomid, requests, count, bytes.subarray(0, runBytes), results);
  else v.host.foreign.read(runDomid, requests, count, bytes, results);
  let at = 0;
  for (let i = 0; i < count; i++) {
    let status = results[i];
    if (kind === 'read' && status === gnttab.GNTST_okay) {
      const size = requests[i * COPY_WORDS + 2];
      status = copyInto(v, dests[i], at, size);
      at += size;
    }
    if (!storeStatus(v, indexes[i], status)) return false;
  }
  return true;
}

function storeStatus(v: Vcpu, index: number, status: number): boolean {
  const at = index * C.SIZE + C.status;
  return writeS16(v, handleLo(v.args[2], at), handleHi(v.args[2], v.args[3], at), status);
}

/** Puts a copy into the run, which fits it. `far` is the other domain's side. GNTST_*. */
function join(v: Vcpu, index: number, kind: 'read' | 'write', far: CopySide): number {
  if (source.offset + length > PAGE_SIZE || dest.offset + length > PAGE_SIZE) return gnttab.GNTST_bad_copy_arg;
  if (run === 'none') runBytes = 0;
  if (kind === 'write') {
    const status = copyOut(v, runBytes);
    if (status !== 0) return status;
    runBytes += length;
  } else Object.assign(dests[runCount], dest);
  run = kind;
  runDomid = far.domid;
  indexes[runCount] = index;
  requests[runCount * COPY_WORDS] = far.ref;
  requests[runCount * COPY_WORDS + 1] = far.offset;
  requests[runCount * COPY_WORDS + 2] = length;
  runCount++;
  return gnttab.GNTST_okay;
}

/** Both sides in other domains: out of the one, then into the other. */
function copyBetween(v: Vcpu): number {
  const { foreign } = v.host;
  if (foreign === null) return gnttab.GNTST_bad_domain;
  if (source.offset + length > PAGE_SIZE || dest.offset + length > PAGE_SIZE) return gnttab.GNTST_bad_copy_arg;
  requests.set([source.ref, source.offset, length]);
  foreign.read(source.domid, requests, 1, bytes, results);
  if (results[0] !== gnttab.GNTST_okay) return results[0];
  requests.set([dest.ref, dest.offset, length]);
  foreign.write(dest.domid, requests, 1, bytes.subarray(0, length), results);
  return results[0];
}

/** (array, count) */
export function copyGrants(v: Vcpu, count: number): number {
  if (!addressOkay(v.args[3])) return -EFAULT;
  run = 'none';
  runCount = 0;
  for (let index = 0; index < count; index++) {
    const at = index * C.SIZE;
    if (!v.access.copyIn(handleLo(v.args[2], at), handleHi(v.args[2], v.args[3], at), C.SIZE)) {
      endRun(v);
      return -EFAULT;
    }
    const flags = readU16(v, C.flags);
    length = readU16(v, C.len);
    readSide(v, source, C.source, (flags & gnttab.GNTCOPY_source_gref) !== 0);
    readSide(v, dest, C.dest, (flags & gnttab.GNTCOPY_dest_gref) !== 0);
    let status = checkDomain(v, source);
    if (status === 0) status = checkDomain(v, dest);
    const fromFar = !isSelf(v, source.domid);
    const toFar = !isSelf(v, dest.domid);
    const kind = status !== 0 || fromFar === toFar ? 'none' : fromFar ? 'read' : 'write';
    const far = fromFar ? source : dest;
    const fits = kind === run && far.domid === runDomid && runCount < FOREIGN_BATCH;
    if (run !== 'none' && !fits && !endRun(v)) return -EFAULT;
    if (kind !== 'none') {
      status = join(v, index, kind, far);
      if (status === gnttab.GNTST_okay) continue;
    } else if (status === 0) status = fromFar ? copyBetween(v) : copyWithin(v);
    if (!storeStatus(v, index, status)) return -EFAULT;
    if ((index & 0x3f) === 0x3f && stopRequested(v)) break;
  }
  return endRun(v) ? 0 : -EFAULT;
}
