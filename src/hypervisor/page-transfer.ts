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

const { GNTST_okay, GNTST_general_error } = gnttab;
/** Of 52 bits of address. */
const PFN_MAX = 0xff_ffff_ffff;
/** Compare-exchanges on an entry that the guest keeps changing. Source: gnttab_prepare_for_transfer. */
const ATTEMPTS_MAX = 5;

/** Something was stored into these bytes of memory 0. */
type OnStored = (offset: number, sizeBytes: number) => void;

/** GNTST_*. The page is the domain's if that is GNTST_okay. */
export function acceptPage(d: Domain, from: number, gref: number, page: Uint8Array, onStored: OnStored): number {
  d.lock();
  const status = d.shutdownReason === -1 && hasRoom(d, 1) ? put(d, from, gref, page, onStored) : GNTST_general_error;
  d.unlock();
  return status;
}

function put(d: Domain, from: number, gref: number, page: Uint8Array, onStored: OnStored): number {
  const { i32, u8, layout } = d.machine;
  // A guest may have written the M2P so that no frame looks free.
  const free = findUntyped(d);
  const version = grantVersion(d);
  if (free < 0 || gref >= entryCount(d, version)) return GNTST_general_error;
  const entry = entryIndex(d, version, gref);
  if (!commit(i32, entry, from)) return GNTST_general_error;
  const pfn = entryFrame(d, version, gref);
  const frame = pfn < layout.maxPages && isFree(d, pfn) ? pfn : free;
  u8.set(page, frame * PAGE_SIZE);
  onStored(frame * PAGE_SIZE, PAGE_SIZE);
  // A number that no page can have would say that the frame is nobody's.
  addFrame(d, frame, pfn <= PFN_MAX ? pfn : frame);
  storeEntryFrame(d, version, gref, MFN_BASE + frame);
  Atomics.or(i32, entry, gnttab.GTF_transfer_completed);
  return GNTST_okay;
}

interface Arrival {
  readonly from: number;
  readonly gref: number;
  readonly page: Uint8Array;
}

/**
 * Pages of other domains that come to one. Those that come while it stands still, and somebody reads its memory, are accepted, and put where
 * they belong before its vCPUs go on: so nobody waits for a domain that may be waiting itself. If it ends instead, they have ended with it.
 */
export class PageArrivals {
  readonly #domain: Domain;
  readonly #onStored: OnStored;
  /** By reference; null while the domain moves. */
  #held: Map<number, Arrival> | null = null;

  constructor(domain: Domain, onStored: OnStored) {
    this.#domain = domain;
    this.#onStored = onStored;
  }

  /** GNTST_*. The page is the domain's, now or when it goes on, if that is GNTST_okay. */
  accept(from: number, gref: number, page: Uint8Array): number {
    const d = this.#domain;
    if (this.#held === null) return acceptPage(d, from, gref, page, this.#onStored);
    const version = grantVersion(d);
    const isAccepted =
      d.shutdownReason === -1 &&
      !this.#held.has(gref) &&
      hasRoom(d, this.#held.size + 1) &&
      gref < entryCount(d, version) &&
      Atomics.load(d.machine.i32, entryIndex(d, version, gref)) === acceptingFrom(from);
    if (!isAccepted) return GNTST_general_error;
    this.#held.set(gref, { from, gref, page: page.slice() });
    return GNTST_okay;
  }

  /** All vCPUs are parked: from here on memory is not touched, until `release`. */
  hold(): void {
    this.#held ??= new Map();
  }

  /** Before a vCPU goes on. */
  release(): void {
    const d = this.#domain;
    const held = this.#held ?? new Map<number, Arrival>();
    this.#held = null;
    d.lock();
    // There was room for them, whatever has been said of its memory since.
    for (const { from, gref, page } of held.values()) put(d, from, gref, page, this.#onStored);
    d.unlock();
  }
}

/** An entry by which a page of that domain may come. */
function acceptingFrom(domid: number): number {
  return gnttab.GTF_accept_transfer | (domid << 16);
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
  const accepting = acceptingFrom(from);
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const old = Atomics.load(i32, entry);
    if (old !== accepting) return false;
    if (Atomics.compareExchange(i32, entry, old, old | gnttab.GTF_transfer_committed) === old) return true;
  }
  return false;
}
