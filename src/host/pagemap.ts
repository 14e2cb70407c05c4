/**
 * What the kernel tells a process of the pages of its memory.
 *
 * Source: Linux Documentation/admin-guide/mm/pagemap.rst; include/uapi/linux/fs.h, struct pm_scan_arg.
 */

import { closeSync, openSync, readSync } from 'node:fs';
import { PAGE_SIZE } from '../machine/memory.ts';
import { HostError } from './host-error.ts';
import type { HostCalls } from './libc.ts';

/** Bits 61, 62 and 63 of an entry, in its upper half. */
const ENTRY_IS_FILE = 0x20000000;
const ENTRY_IS_SWAPPED = 0x40000000;
const ENTRY_IS_PRESENT = 0x80000000;

/** _IOWR('f', 16, struct pm_scan_arg), since Linux 6.7. */
const PAGEMAP_SCAN = 0xc0606610;
/** Of struct pm_scan_arg: words of 64 bits. */
const SCAN = {
  size: 0,
  start: 2,
  end: 3,
  walkEnd: 4,
  vector: 5,
  vectorLength: 6,
  inverted: 8,
  mask: 9,
  anyOf: 10,
  returned: 11,
  words: 12,
} as const;
const PAGE_IS_FILE = 1 << 2;
const PAGE_IS_PRESENT = 1 << 3;
const PAGE_IS_SWAPPED = 1 << 4;
/** Of struct page_region: start, end, categories. */
const REGION_WORDS = 3;
const REGIONS = 1024;

/** The kernel has something for the page, in memory or elsewhere. `entry`: the upper half. */
export function isPresent(entry: number): boolean {
  return (entry & (ENTRY_IS_PRESENT | ENTRY_IS_SWAPPED)) !== 0;
}

/** Two words for each page from `address` on, the lower half first. */
export function readPagemap(address: number, pages: number): Uint32Array {
  const entries = new Uint32Array(pages * 2);
  const bytes = new Uint8Array(entries.buffer);
  const position = (address / PAGE_SIZE) * 8;
  withPagemap((fd) => {
    for (let at = 0; at < bytes.length; ) {
      const count = readSync(fd, bytes, at, bytes.length - at, position + at);
      if (count === 0) throw new HostError('the system does not say which pages there are');
      at += count;
    }
  });
  return entries;
}

/** Numbers of the pages from `address` on that are this process's own: there, and of no file. */
export function anonymousPages(calls: HostCalls, address: number, pages: number): number[] {
  return scan(calls, address, pages) ?? fromPagemap(address, pages);
}

function fromPagemap(address: number, pages: number): number[] {
  const entries = readPagemap(address, pages);
  const found: number[] = [];
  for (let page = 0; page < pages; page++) {
    const entry = entries[page * 2 + 1];
    if (isPresent(entry) && (entry & ENTRY_IS_FILE) === 0) found.push(page);
  }
  return found;
}

/** Null: the kernel has no such call. Some milliseconds less for 256 MiB. */
function scan(calls: HostCalls, address: number, pages: number): number[] | null {
  const end = address + pages * PAGE_SIZE;
  const regions = new BigUint64Array(REGIONS * REGION_WORDS);
  const argument = new BigUint64Array(SCAN.words);
  const found: number[] = [];
  let isThere = true;
  withPagemap((fd) => {
    for (let start = address; isThere && start < end; start = Number(argument[SCAN.walkEnd])) {
      // Behind what it fills in are zeros.
      regions.fill(0n);
      argument[SCAN.size] = BigInt(argument.byteLength);
      argument[SCAN.start] = BigInt(start);
      argument[SCAN.end] = BigInt(end);
      argument[SCAN.vector] = BigInt(calls.addressOf(new Uint8Array(regions.buffer)));
      argument[SCAN.vectorLength] = BigInt(REGIONS);
      argument[SCAN.inverted] = BigInt(PAGE_IS_FILE);
      argument[SCAN.mask] = BigInt(PAGE_IS_FILE);
      argument[SCAN.anyOf] = BigInt(PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
      argument[SCAN.returned] = BigInt(PAGE_IS_PRESENT);
      isThere = calls.ioctl(fd, PAGEMAP_SCAN, new Uint8Array(argument.buffer)) === 0;
      if (!isThere) break;
      for (let at = 0; at < regions.length && regions[at + 1] !== 0n; at += REGION_WORDS) {
        const behind = (Number(regions[at + 1]) - address) / PAGE_SIZE;
        for (let page = (Number(regions[at]) - address) / PAGE_SIZE; page < behind; page++) found.push(page);
      }
    }
  });
  return isThere ? found : null;
}

function withPagemap(act: (fd: number) => void): void {
  const fd = openSync('/proc/self/pagemap', 'r');
  try {
    act(fd);
  } finally {
    closeSync(fd);
  }
}
