/**
 * GNTTABOP_transfer: pages of the caller become another domain's, or its own by another entry. What the other domain's process does is
 * in page-transfer.ts; it is asked without the domain lock.
 *
 * As under Xen, a page that may be given away has left the domain before anybody asks whether the other one takes it: whatever is wrong
 * then, and if the other domain ends meanwhile, the page is gone. So no page is ever of two domains.
 *
 * Xen finds by its count of references that somebody uses a page; here tables of the domain are looked through.
 *
 * Source: xen/include/public/grant_table.h; xen/common/grant_table.c, gnttab_transfer; xen/arch/x86/mm.c, steal_page (behaviour).
 */

import { EFAULT } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { DOMID_FIRST_RESERVED } from '../../abi/xen.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import type { Domain } from '../domain.ts';
import { entryCount, entryFrame, entryIndex, grantVersion, isEntryInUse } from '../grant-entries.ts';
import { allVcpus, flushVcpus, isMapped } from '../mmu.ts';
import { ownsFrame, removeFrame } from '../owned-frames.ts';
import { acceptPage } from '../page-transfer.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay, handleHi, handleLo, readU16, stopRequested, writeS16 } from './guest-handle.ts';

const T = gnttab.GNTTAB_TRANSFER;
const GDT_FRAMES = 16;
const GDT_ENTRIES_PER_FRAME = 512;
const DOM0 = 0;

/** What is on its way. */
const page = new Uint8Array(PAGE_SIZE);

/** (array, count) */
export function transferPages(v: Vcpu, count: number): number {
  let lo = v.args[2];
  let hi = v.args[3];
  if (!addressOkay(hi)) return -EFAULT;
  for (let i = 0; i < count; i++) {
    if (i > 0 && stopRequested(v)) break;
    if (!v.access.copyIn(lo, hi, T.SIZE)) return -EFAULT;
    const { words } = v.access;
    const mfn = words[(T.mfn >> 2) + 1] * 0x100000000 + words[T.mfn >> 2];
    const status = transfer(v, mfn - MFN_BASE, readU16(v, T.domid), words[T.ref >> 2]);
    if (!writeS16(v, handleLo(lo, T.status), handleHi(lo, hi, T.status), status)) return -EFAULT;
    hi = handleHi(lo, hi, T.SIZE);
    lo = handleLo(lo, T.SIZE);
  }
  return 0;
}

/** `frame` may be any number. GNTST_*. */
function transfer(v: Vcpu, frame: number, domid: number, gref: number): number {
  const d = v.domain;
  if (!take(v, frame)) return gnttab.GNTST_bad_page;
  if (domid === d.domid) return acceptPage(d, domid, gref, page, (at, size) => v.engine.memoryStored(at, size));
  // Dom0 accepts nothing.
  if (domid === DOM0) return gnttab.GNTST_general_error;
  if (domid >= DOMID_FIRST_RESERVED || v.host.foreign === null) return gnttab.GNTST_bad_domain;
  return v.host.foreign.transfer(domid, gref, page);
}

/** Takes the frame from the domain, and what stands in it into `page`. False: it is not the domain's, or in use. */
function take(v: Vcpu, frame: number): boolean {
  const d = v.domain;
  const at = frame * PAGE_SIZE;
  d.lock();
  const taken = ownsFrame(d, frame) && !isInUse(d, frame) && removeFrame(d, frame);
  // From here on another vCPU may be given the frame.
  if (taken) page.set(v.machine.u8.subarray(at, at + PAGE_SIZE));
  d.unlock();
  if (!taken) return false;
  // A vCPU may have an old translation still.
  flushVcpus(v, allVcpus(d));
  d.lock();
  if (!ownsFrame(d, frame)) v.host.discard(at, PAGE_SIZE);
  d.unlock();
  return true;
}

/** Whether page tables, descriptor tables, Xen, or other domains use a frame of RAM. Under the domain lock. */
function isInUse(d: Domain, frame: number): boolean {
  if (d.frameTypes[frame] !== 0) return true;
  for (const { u32 } of d.vcpus) {
    if (u32[VCPU.vcpuInfo >> 2] >>> 12 === frame) return true;
    const gdtFrames = Math.min(Math.ceil(u32[VCPU.gdtEntries >> 2] / GDT_ENTRIES_PER_FRAME), GDT_FRAMES);
    for (let i = 0; i < gdtFrames; i++) if (u32[(VCPU.gdtFrames >> 2) + i] === frame) return true;
  }
  return isGrantInUse(d, frame) || isMapped(d, frame, 1);
}

function isGrantInUse(d: Domain, frame: number): boolean {
  const version = grantVersion(d);
  const count = entryCount(d, version);
  for (let gref = 0; gref < count; gref++) {
    if (entryFrame(d, version, gref) !== MFN_BASE + frame) continue;
    const type = d.machine.u32[entryIndex(d, version, gref)] & gnttab.GTF_type_mask;
    // Dom0 has the rings of console and xenstore from the start.
    const isRing = gref <= gnttab.GNTTAB_RESERVED_XENSTORE && type !== gnttab.GTF_invalid;
    if (isRing || isEntryInUse(d, version, gref)) return true;
  }
  return false;
}
