/**
 * Grants that this domain has mapped, of others or its own: what stands behind the handles that GNTTABOP_map_grant_ref gives out. Entries
 * are in the domain's shared state and change under the domain lock.
 *
 *   word 0   the frame (offset >> 12 in memory 0) plus 1; 0 = free
 *   word 1   domid of the owner | GNTMAP_* that are still in force << 16
 *   word 2   the reference
 */

import { GNTMAP_readonly } from '../abi/grant-table.ts';
import { DOMAIN, type Domain, MAPTRACK_WORDS } from './domain.ts';
import { MAPTRACK_ENTRIES } from './domain-limits.ts';

export interface Mapping {
  frame: number;
  domid: number;
  /** GNTMAP_device_map, GNTMAP_host_map, GNTMAP_readonly. */
  flags: number;
  gref: number;
}

/** How often a grant of a domain is mapped, and how often for writing. */
export interface MappingCount {
  mappings: number;
  writers: number;
  /** Of the first one. */
  frame: number;
}

export function countMappings(d: Domain, domid: number, gref: number, count: MappingCount): void {
  count.mappings = count.writers = 0;
  for (let at = 0; at < MAPTRACK_ENTRIES * MAPTRACK_WORDS; at += MAPTRACK_WORDS) {
    const { maptrack } = d;
    if (maptrack[at] === 0 || maptrack[at + 2] !== gref || (maptrack[at + 1] & 0xffff) !== domid) continue;
    if (count.mappings++ === 0) count.frame = maptrack[at] - 1;
    if (((maptrack[at + 1] >>> 16) & GNTMAP_readonly) === 0) count.writers++;
  }
}

/** Whether the domain has any grant mapped. */
export function hasMappings(d: Domain): boolean {
  for (let handle = 0; handle < MAPTRACK_ENTRIES; handle++) if (d.maptrack[handle * MAPTRACK_WORDS] !== 0) return true;
  return false;
}

/** A handle for a new mapping, or -1 when the domain may have no more. */
export function addMapping(d: Domain, mapping: Mapping): number {
  const count = d.i32[DOMAIN.maptrackMax >> 2];
  for (let handle = 0; handle < count; handle++) {
    if (d.maptrack[handle * MAPTRACK_WORDS] !== 0) continue;
    storeMapping(d, handle, mapping);
    return handle;
  }
  return -1;
}

export function storeMapping(d: Domain, handle: number, { frame, domid, flags, gref }: Mapping): void {
  const at = handle * MAPTRACK_WORDS;
  d.maptrack[at + 1] = domid | (flags << 16);
  d.maptrack[at + 2] = gref;
  d.maptrack[at] = frame + 1;
}

/** Reads what a handle stands for into `mapping`; false if it stands for nothing. `handle` may be any number. */
export function readMapping(d: Domain, handle: number, mapping: Mapping): boolean {
  if (handle >= MAPTRACK_ENTRIES) return false;
  const at = handle * MAPTRACK_WORDS;
  if (d.maptrack[at] === 0) return false;
  mapping.frame = d.maptrack[at] - 1;
  mapping.domid = d.maptrack[at + 1] & 0xffff;
  mapping.flags = d.maptrack[at + 1] >>> 16;
  mapping.gref = d.maptrack[at + 2];
  return true;
}

export function dropMapping(d: Domain, handle: number): void {
  d.maptrack[handle * MAPTRACK_WORDS] = 0;
}
