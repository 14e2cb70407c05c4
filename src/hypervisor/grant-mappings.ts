/**
 * Grants of a domain that others hold mapped: Dom0, and guests (peer-server.ts). Mapping costs nothing here, since Dom0's half of a
 * domain sees all its memory; what remains is what a frontend can notice: who may map what, and the in-use bits of the entry.
 *
 * One object for each domain, used by the domain's main thread only. As under Xen, what counts for a grant in use is the frame
 * that it named when it was first mapped: a guest that changes the entry meanwhile changes nothing. A guest that takes the page
 * back regardless shares it with the backend until the last mapping is released, and hurts nobody but itself.
 *
 * Source: xen/include/public/grant_table.h; xen/common/grant_table.c, map_grant_ref and unmap_common (behaviour).
 */

import * as gnttab from '../abi/grant-table.ts';
import { GRANT_FRAMES_MAX, type MachineMemory, MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { DOMAIN, type Domain, FRAME_LEVEL_MASK } from './domain.ts';
import { ownsFrame } from './owned-frames.ts';

const ENTRIES_PER_FRAME = PAGE_SIZE / gnttab.GRANT_ENTRY_V1.SIZE;
const ENTRIES_MAX = GRANT_FRAMES_MAX * ENTRIES_PER_FRAME;
const DOM0 = 0;
/** Compare-exchanges on an entry that the guest keeps changing. Source: xen/common/grant_table.c, _set_status_v1. */
const ATTEMPTS_MAX = 5;

export class GrantMappings {
  readonly #domain: Domain;
  readonly #machine: MachineMemory;
  /** Of each reference: mappings of either kind, and those that may write. */
  readonly #mappings = new Uint32Array(ENTRIES_MAX);
  readonly #writers = new Uint32Array(ENTRIES_MAX);
  /** Byte offset of the page in memory 0 while there are mappings. */
  readonly #pages = new Uint32Array(ENTRIES_MAX);
  /** Who has it mapped. */
  readonly #holders = new Uint16Array(ENTRIES_MAX);
  #inUse = 0;

  constructor(domain: Domain) {
    this.#domain = domain;
    this.#machine = domain.machine;
  }

  /** Mappings that have not been released. */
  get inUse(): number {
    return this.#inUse;
  }

  /** Maps the page that a reference grants to a domain. Byte offset of the page in memory 0, or a GNTST_* (negative). */
  map(gref: number, writable: boolean, domid = DOM0): number {
    if (gref >>> 0 !== gref || gref >= Atomics.load(this.#domain.i32, DOMAIN.grantFrames >> 2) * ENTRIES_PER_FRAME)
      return gnttab.GNTST_bad_gntref;
    if (this.#mappings[gref] > 0 && this.#holders[gref] !== domid) return gnttab.GNTST_general_error;
    if (this.#mappings[gref] === 0 || (writable && this.#writers[gref] === 0)) {
      const status = this.#setInUse(gref, writable, domid);
      if (status < 0) return status;
    }
    this.#holders[gref] = domid;
    this.#mappings[gref]++;
    if (writable) this.#writers[gref]++;
    this.#inUse++;
    return this.#pages[gref];
  }

  /** Releases one mapping. The page is the guest's own again when its last one is gone. */
  unmap(gref: number, writable: boolean): void {
    if (this.#mappings[gref] === 0) throw new Error(`bug: grant ${gref} released, but not mapped`);
    this.#inUse--;
    let gone = 0;
    if (writable) this.#machine.dirty.mark(this.#pages[gref] >>> 12);
    if (writable && --this.#writers[gref] === 0) gone = gnttab.GTF_writing;
    if (--this.#mappings[gref] === 0) gone |= gnttab.GTF_reading;
    if (gone !== 0) Atomics.and(this.#machine.i32, this.#entry(gref), ~gone);
  }

  /** Index in machine.i32 of an entry: flags | domid << 16, then frame. */
  #entry(gref: number): number {
    return (this.#machine.layout.grantTableOffset + gref * gnttab.GRANT_ENTRY_V1.SIZE) >>> 2;
  }

  /** Checks the entry and marks it in use. For its first mapping, finds its page. */
  #setInUse(gref: number, writable: boolean, domid: number): number {
    const i32 = this.#machine.i32;
    const index = this.#entry(gref);
    const bits = writable ? gnttab.GTF_reading | gnttab.GTF_writing : gnttab.GTF_reading;
    let old = Atomics.load(i32, index);
    for (let attempt = 1; ; attempt++) {
      if ((old & gnttab.GTF_type_mask) !== gnttab.GTF_permit_access || old >>> 16 !== domid)
        return gnttab.GNTST_general_error;
      if (writable && (old & gnttab.GTF_readonly) !== 0) return gnttab.GNTST_general_error;
      const seen = Atomics.compareExchange(i32, index, old, old | bits);
      if (seen === old) break;
      if (attempt === ATTEMPTS_MAX) return gnttab.GNTST_general_error;
      old = seen;
    }
    const page = this.#mappings[gref] > 0 ? this.#pages[gref] : this.#pageOf(Atomics.load(i32, index + 1) >>> 0);
    if (page < 0 || (writable && this.#isPageTable(page))) {
      const held = this.#mappings[gref] > 0 ? gnttab.GTF_reading : 0;
      Atomics.and(i32, index, ~(bits & ~held));
      return page < 0 ? page : gnttab.GNTST_general_error;
    }
    this.#pages[gref] = page;
    return page;
  }

  /** A page by its MFN, without a grant, as Dom0 may map any: byte offset in memory 0, or GNTST_bad_page (negative). */
  mapFrame(mfn: number): number {
    return Number.isSafeInteger(mfn) ? this.#pageOf(mfn) : gnttab.GNTST_bad_page;
  }

  /** Of the domain's RAM only: its grant table and shared_info are no business of a backend. */
  #pageOf(mfn: number): number {
    return ownsFrame(this.#domain, mfn - MFN_BASE) ? this.#machine.mfnToOffset(mfn) : gnttab.GNTST_bad_page;
  }

  #isPageTable(page: number): boolean {
    return (this.#domain.frameTypes[page >>> 12] & FRAME_LEVEL_MASK) !== 0;
  }
}
