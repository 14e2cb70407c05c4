/**
 * GNTTABOP_transfer, at the domain that gets the page. Domains have a memory each, between which no page can move: a free frame of this
 * one gets what stood in the other's. That frame is the one that the entry names, if it is free, so that a guest which has given page P
 * back to have room finds its page P in the frame where P was.
 *
 * Called in the main thread for other domains, and in a vCPU's for a transfer to itself.
 *
 * Source: xen/include/public/grant_table.h, GTF_accept_transfer; xen/common/grant_table.c, gnttab_transfer and
 * gnttab_prepare_for_transfer (behaviour).
 */

import * as gnttab from '../abi/grant-table.ts';
import { MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import type { Domain } from './domain.ts';
import { entryCount, entryFrame, entryIndex, grantVersion, storeEntryFrame } from './grant-entries.ts';
import { addFrame, findFree, hasRoom, ownsFrame } from './owned-frames.ts';

/** Of 52 bits of address. */
const PFN_MAX = 0xff_ffff_ffff;
/** Compare-exchanges on an entry that the guest keeps changing. Source: gnttab_prepare_for_transfer. */
const ATTEMPTS_MAX = 5;

/** Something was stored into these bytes of memory 0. */
type OnStored = (offset: number, sizeBytes: number) => void;

/** GNTST_*. The page is the domain's if that is GNTST_okay. */
export function acceptPage(d: Domain, from: number, gref: number, page: Uint8Array, onStored: OnStored): number {
  d.lock();
  const status = accept(d, from, gref, page, onStored);
  d.unlock();
  return status;
}

function accept(d: Domain, from: number, gref: number, page: Uint8Array, onStored: OnStored): number {
  const { i32, u8, layout } = d.machine;
  if (d.shutdownReason !== -1 || !hasRoom(d, 1)) return gnttab.GNTST_general_error;
  // A guest may have written the M2P so that no frame looks free.
  const free = findUntyped(d);
  const version = grantVersion(d);
  if (free < 0 || gref >= entryCount(d, version)) return gnttab.GNTST_general_error;
  const entry = entryIndex(d, version, gref);
  if (!commit(i32, entry, from)) return gnttab.GNTST_general_error;
  const pfn = entryFrame(d, version, gref);
  const frame = pfn < layout.maxPages && isFree(d, pfn) ? pfn : free;
  u8.set(page, frame * PAGE_SIZE);
  onStored(frame * PAGE_SIZE, PAGE_SIZE);
  // A number that no page can have would say that the frame is nobody's.
  addFrame(d, frame, pfn <= PFN_MAX ? pfn : frame);
  storeEntryFrame(d, version, gref, MFN_BASE + frame);
  Atomics.or(i32, entry, gnttab.GTF_transfer_completed);
  return gnttab.GNTST_okay;
}

function isFree(d: Domain, frame: number): boolean {
  return !ownsFrame(d, frame) && d.frameTypes[frame] === 0;
}

function findUntyped(d: Domain): number {
  let frame = findFree(d, 0, 1);
  while (frame >= 0 && d.frameTypes[frame] !== 0) frame = findFree(d, frame + 1, 1);
  return frame;
}

/** From now on the guest leaves the entry alone. False: it accepts no page, or not from this domain. */
function commit(i32: Int32Array, entry: number, from: number): boolean {
  const accepting = gnttab.GTF_accept_transfer | (from << 16);
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const old = Atomics.load(i32, entry);
    if (old !== accepting) return false;
    if (Atomics.compareExchange(i32, entry, old, old | gnttab.GTF_transfer_committed) === old) return true;
  }
  return false;
}
