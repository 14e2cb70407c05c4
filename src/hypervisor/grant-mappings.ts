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
import { type Domain, FRAME_LEVEL_MASK } from './domain.ts';
import {
  claimEntry,
  type EntryUse,
  entryCount,
  entryCovers,
  entryFrame,
  type GrantVersion,
  grantVersion,
  releaseEntry,
  useBits,
} from './grant-entries.ts';
import { ownsFrame } from './owned-frames.ts';

/** Version 1 has the most. */
const ENTRIES_MAX = (GRANT_FRAMES_MAX * PAGE_SIZE) / gnttab.GRANT_ENTRY_V1.SIZE;
const DOM0 = 0;

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
  /** What is asked of an entry: made once. */
  readonly #use: EntryUse = { domid: 0, writable: false, maps: true };

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
    return this.#acquire(gref, writable, domid, true);
  }

  /** The same for a copy of some bytes of the page, which may be all that is granted. Ends with `unmap`. */
  mapForCopy(gref: number, writable: boolean, domid: number, offset: number, length: number): number {
    const page = this.#acquire(gref, writable, domid, false);
    if (page < 0 || entryCovers(this.#domain, grantVersion(this.#domain), gref, offset, length)) return page;
    this.unmap(gref, writable);
    return gnttab.GNTST_general_error;
  }

  #acquire(gref: number, writable: boolean, domid: number, maps: boolean): number {
    const version = grantVersion(this.#domain);
    if (gref >>> 0 !== gref || gref >= entryCount(this.#domain, version)) return gnttab.GNTST_bad_gntref;
    if (this.#mappings[gref] > 0 && this.#holders[gref] !== domid) return gnttab.GNTST_general_error;
    if (this.#mappings[gref] === 0 || (writable && this.#writers[gref] === 0)) {
      this.#use.domid = domid;
      this.#use.writable = writable;
      this.#use.maps = maps;
      const status = this.#setInUse(version, gref);
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
    if (gone === 0) return;
    // Where the reference is none in a version that was set meanwhile, there is nothing to say.
    const version = grantVersion(this.#domain);
    if (gref < entryCount(this.#domain, version)) releaseEntry(this.#domain, version, gref, gone);
  }

  /** Checks the entry for `#use` and marks it in use. For its first mapping, finds its page. */
  #setInUse(version: GrantVersion, gref: number): number {
    const d = this.#domain;
    const { writable } = this.#use;
    const isHeld = this.#mappings[gref] > 0;
    const held = isHeld ? gnttab.GTF_reading : 0;
    const status = claimEntry(d, version, gref, this.#use, held);
    if (status < 0) return status;
    const page = isHeld ? this.#pages[gref] : this.#pageOf(entryFrame(d, version, gref));
    if (page < 0 || (writable && this.#isPageTable(page))) {
      releaseEntry(d, version, gref, useBits(writable) & ~held);
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
