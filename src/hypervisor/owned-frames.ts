/**
 * Which frames of RAM a domain owns. That stands in the M2P: the entry of a frame that was given back, or never had, reads
 * INVALID_M2P_ENTRY. These entries and `totalPages` change under the domain lock.
 */

import { DOMAIN, type Domain } from './domain.ts';

const INVALID_M2P_ENTRY = 0xffffffff;
const TWO_32 = 0x100000000;
const TOTAL_PAGES = DOMAIN.totalPages >> 2;

function m2pIndex({ machine }: Domain, frame: number): number {
  return (machine.layout.m2pOffset >>> 2) + frame * 2;
}

/** `frame` may be any number. */
export function ownsFrame(d: Domain, frame: number): boolean {
  if (!(frame >= 0 && frame < d.machine.layout.maxPages)) return false;
  const index = m2pIndex(d, frame);
  return (d.machine.u32[index] & d.machine.u32[index + 1]) >>> 0 !== INVALID_M2P_ENTRY;
}

/** Whether the domain may own `count` pages more. */
export function hasRoom({ i32, machine }: Domain, count: number): boolean {
  const allowed = Math.min(machine.layout.maxPages, Atomics.load(i32, DOMAIN.maxPages >> 2));
  return i32[TOTAL_PAGES] + count <= allowed;
}

/** Gives a frame that is nobody's to the domain, which knows it as page `pfn`. */
export function addFrame(d: Domain, frame: number, pfn = frame): void {
  const index = m2pIndex(d, frame);
  Atomics.store(d.machine.u32, index, pfn);
  Atomics.store(d.machine.u32, index + 1, Math.floor(pfn / TWO_32));
  Atomics.store(d.i32, TOTAL_PAGES, d.i32[TOTAL_PAGES] + 1);
}

/** Takes a frame from the domain. False: it is not RAM, or not the domain's. */
export function removeFrame(d: Domain, frame: number): boolean {
  const total = d.i32[TOTAL_PAGES];
  if (!ownsFrame(d, frame) || total === 0) return false;
  const index = m2pIndex(d, frame);
  Atomics.store(d.machine.u32, index, INVALID_M2P_ENTRY);
  Atomics.store(d.machine.u32, index + 1, INVALID_M2P_ENTRY);
  d.frameTypes[frame] = 0;
  Atomics.store(d.i32, TOTAL_PAGES, total - 1);
  return true;
}

/** First frame >= `from`, a multiple of `count`, from which `count` frames are nobody's; or -1. */
export function findFree(d: Domain, from: number, count: number): number {
  for (let first = from; first + count <= d.machine.layout.maxPages; first += count) {
    let i = 0;
    while (i < count && !ownsFrame(d, first + i)) i++;
    if (i === count) return first;
  }
  return -1;
}
