/**
 * Entries of a domain's grant table, in both versions. Version 1 has what is granted and what is in use in one word, version 2 has entries
 * of 16 bytes, of which one may grant a part of a page, and what is in use in a table of its own, the status frames.
 *
 * The guest may set another version at any time. So who looks at an entry takes the version once, and names it in each call: what it finds
 * may be nonsense then, but it is the guest's own, and in its table.
 *
 * Source: xen/include/public/grant_table.h; xen/common/grant_table.c, _set_status_v1 and _set_status_v2 (behaviour).
 */

import * as gnttab from '../abi/grant-table.ts';
import { PAGE_SIZE } from '../machine/memory.ts';
import { DOMAIN, type Domain } from './domain.ts';

const VERSION = DOMAIN.grantVersion >> 2;
const GRANT_FRAMES = DOMAIN.grantFrames >> 2;
const V1 = gnttab.GRANT_ENTRY_V1;
const V2 = gnttab.GRANT_ENTRY_V2;
const STATUS_BYTES = 2;
const STATUS_PER_FRAME = PAGE_SIZE / STATUS_BYTES;
const IN_USE = gnttab.GTF_reading | gnttab.GTF_writing;
/** Compare-exchanges on an entry that the guest keeps changing. Source: _set_status_v1. */
const ATTEMPTS_MAX = 5;
const TWO_32 = 0x100000000;

export type GrantVersion = 1 | 2;

export function grantVersion(d: Domain): GrantVersion {
  return Atomics.load(d.i32, VERSION) === 2 ? 2 : 1;
}

/** References that the table has now. */
export function entryCount(d: Domain, version: GrantVersion): number {
  return (Atomics.load(d.i32, GRANT_FRAMES) * PAGE_SIZE) / (version === 1 ? V1.SIZE : V2.SIZE);
}

/** Frames of the status table. */
export function statusFrameCount(d: Domain, version: GrantVersion): number {
  return version === 1 ? 0 : Math.ceil(entryCount(d, 2) / STATUS_PER_FRAME);
}

/** Index in machine.i32 of an entry's first word: flags | domid << 16. */
export function entryIndex(d: Domain, version: GrantVersion, gref: number): number {
  return (d.machine.layout.grantTableOffset + gref * (version === 1 ? V1.SIZE : V2.SIZE)) >>> 2;
}

/** Index in machine.u16 of what version 2 says of an entry's use. */
export function statusIndex(d: Domain, gref: number): number {
  return (d.machine.layout.statusOffset + gref * STATUS_BYTES) >>> 1;
}

/** What an entry names: a guest's MFN, any number. */
export function entryFrame(d: Domain, version: GrantVersion, gref: number): number {
  const { i32 } = d.machine;
  const index = entryIndex(d, version, gref);
  if (version === 1) return Atomics.load(i32, index + (V1.frame >> 2)) >>> 0;
  const frame = index + (V2.frame >> 2);
  return (Atomics.load(i32, frame + 1) >>> 0) * TWO_32 + (Atomics.load(i32, frame) >>> 0);
}

export function storeEntryFrame(d: Domain, version: GrantVersion, gref: number, mfn: number): void {
  const { i32 } = d.machine;
  const index = entryIndex(d, version, gref);
  if (version === 2) Atomics.store(i32, index + (V2.frame >> 2) + 1, Math.floor(mfn / TWO_32));
  Atomics.store(i32, index + ((version === 1 ? V1.frame : V2.frame) >> 2), mfn | 0);
}

/** Whether bytes of a page are among those that the entry grants. */
export function entryCovers(d: Domain, version: GrantVersion, gref: number, offset: number, length: number): boolean {
  const { u32 } = d.machine;
  const index = entryIndex(d, version, gref);
  if (version === 1 || (u32[index] & gnttab.GTF_sub_page) === 0) return true;
  const range = u32[index + (V2.page_off >> 2)];
  return offset >= (range & 0xffff) && offset + length <= (range & 0xffff) + (range >>> 16);
}

/** Whether the entry says that somebody uses it. */
export function isEntryInUse(d: Domain, version: GrantVersion, gref: number): boolean {
  const { u16, i32 } = d.machine;
  const used = version === 1 ? Atomics.load(i32, entryIndex(d, 1, gref)) : Atomics.load(u16, statusIndex(d, gref));
  return (used & IN_USE) !== 0;
}

/** GTF_reading and perhaps GTF_writing. */
export function useBits(writable: boolean): number {
  return writable ? IN_USE : gnttab.GTF_reading;
}

/** What is wanted of an entry. */
export interface EntryUse {
  /** Who. */
  domid: number;
  writable: boolean;
  /** To map a page takes an entry for all of it. */
  maps: boolean;
}

/** Checks that an entry grants what is wanted, and marks it as in use. GNTST_*. `held`: bits that stay if it does not. */
export function claimEntry(d: Domain, version: GrantVersion, gref: number, use: EntryUse, held = 0): number {
  const { i32, u16 } = d.machine;
  const index = entryIndex(d, version, gref);
  const bits = useBits(use.writable);
  if (version === 2) {
    const status = statusIndex(d, gref);
    if (!allows(Atomics.load(i32, index), use)) return gnttab.GNTST_general_error;
    Atomics.or(u16, status, bits);
    // A guest that takes the grant back looks at the status behind that.
    if (allows(Atomics.load(i32, index), use)) return gnttab.GNTST_okay;
    Atomics.and(u16, status, ~(bits & ~held));
    return gnttab.GNTST_general_error;
  }
  let old = Atomics.load(i32, index);
  for (let attempt = 1; allows(old, use); attempt++) {
    const seen = Atomics.compareExchange(i32, index, old, old | bits);
    if (seen === old) return gnttab.GNTST_okay;
    if (attempt === ATTEMPTS_MAX) break;
    old = seen;
  }
  return gnttab.GNTST_general_error;
}

function allows(header: number, { domid, writable, maps }: EntryUse): boolean {
  const mask = maps ? gnttab.GTF_type_mask | gnttab.GTF_sub_page : gnttab.GTF_type_mask;
  if ((header & mask) !== gnttab.GTF_permit_access || header >>> 16 !== domid) return false;
  return !writable || (header & gnttab.GTF_readonly) === 0;
}

/** Nobody uses the entry any more in the way that `bits` say. */
export function releaseEntry(d: Domain, version: GrantVersion, gref: number, bits: number): void {
  if (version === 2) Atomics.and(d.machine.u16, statusIndex(d, gref), ~bits);
  else Atomics.and(d.machine.i32, entryIndex(d, 1, gref), ~bits);
}
