/**
 * What a domain grants to itself and maps: its own pages, by a handle like any other. What counts for a grant in use is the frame that it
 * named when it was first mapped. Under the domain lock.
 *
 * Source: xen/common/grant_table.c, map_grant_ref and unmap_common_complete (behaviour).
 */

import * as gnttab from '../abi/grant-table.ts';
import { MFN_BASE } from '../machine/memory.ts';
import { type Domain, FRAME_LEVEL_MASK } from './domain.ts';
import {
  claimEntry,
  type EntryUse,
  entryCount,
  entryFrame,
  grantVersion,
  releaseEntry,
  useBits,
} from './grant-entries.ts';
import { countMappings, type MappingCount } from './maptrack.ts';
import { ownsFrame } from './owned-frames.ts';

const use: EntryUse = { domid: 0, writable: false, maps: true };
const count: MappingCount = { mappings: 0, writers: 0, frame: 0 };

/** Marks an entry as in use by one mapping more, which the caller adds. Its frame, or a GNTST_* (negative). */
export function claimOwn(d: Domain, gref: number, writable: boolean): number {
  const version = grantVersion(d);
  if (gref >= entryCount(d, version)) return gnttab.GNTST_bad_gntref;
  countMappings(d, d.domid, gref, count);
  const isHeld = count.mappings > 0;
  if (isHeld && (!writable || count.writers > 0)) return count.frame;
  const held = isHeld ? gnttab.GTF_reading : 0;
  use.domid = d.domid;
  use.writable = writable;
  const status = claimEntry(d, version, gref, use, held);
  if (status !== gnttab.GNTST_okay) return status;
  const frame = isHeld ? count.frame : entryFrame(d, version, gref) - MFN_BASE;
  const isOwned = ownsFrame(d, frame);
  if (isOwned && !(writable && (d.frameTypes[frame] & FRAME_LEVEL_MASK) !== 0)) return frame;
  releaseEntry(d, version, gref, useBits(writable) & ~held);
  return isOwned ? gnttab.GNTST_general_error : gnttab.GNTST_bad_page;
}

/** A mapping has gone from the maptrack, or has never been there: the entry is in use by those that are left. */
export function releaseOwn(d: Domain, gref: number): void {
  const version = grantVersion(d);
  countMappings(d, d.domid, gref, count);
  const kept = count.mappings === 0 ? 0 : useBits(count.writers > 0);
  if (gref < entryCount(d, version)) releaseEntry(d, version, gref, useBits(true) & ~kept);
}
