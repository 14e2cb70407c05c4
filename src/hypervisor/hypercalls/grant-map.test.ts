/** What a domain grants to itself and maps; peer-server.test.ts has the pages of others. */
import { expect, test } from 'vitest';
import * as gnttab from '../../abi/grant-table.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { PTE_P, PTE_RW } from '../../machine/page-table.ts';
import { DOMAIN } from '../domain.ts';
import { isEntryInUse, statusIndex } from '../grant-entries.ts';
import { hasMappings } from '../maptrack.ts';
import { removeFrame } from '../owned-frames.ts';
import { KERNEL_VA, TEST_DOMID, TestGuest, type TestGuestOptions, VA_HI, va } from '../testing.ts';
import { grantTableOp } from './grant-table.ts';

const ARG = KERNEL_VA + 0x1000;
const GREF = 9;
const HOST = 0xc0000000 - 8 * PAGE_SIZE;
const { GNTMAP_host_map, GNTMAP_device_map, GNTMAP_readonly, GTF_reading, GTF_writing } = gnttab;
const IN_USE = GTF_reading | GTF_writing;

class Guest extends TestGuest {
  /** Offset of the entry for HOST; those of the pages behind it follow. */
  readonly entry = this.map(HOST, VA_HI, 0, 0);

  constructor(options: TestGuestOptions = {}) {
    super(options);
    this.domain.frameTypes[this.entry >>> 12] = 1;
  }

  grant(gref: number, page: number, flags = gnttab.GTF_permit_access, domid = TEST_DOMID): void {
    this.machine.u32.set([flags | (domid << 16), MFN_BASE + page], this.machine.layout.grantTableOffset / 4 + gref * 2);
  }

  inUse(gref = GREF): number {
    return this.machine.u32[this.machine.layout.grantTableOffset / 4 + gref * 2] & IN_USE;
  }

  mapGrant(flags: number, host = 0, gref = GREF): { status: number; handle: number; maddr: number } {
    this.setWords(ARG, [host, host === 0 ? 0 : VA_HI, flags, gref, TEST_DOMID, 0, 0, 0]);
    expect(this.call(grantTableOp, gnttab.GNTTABOP_map_grant_ref, va(ARG), 1)).toBe(0);
    const [handle, lo, hi] = this.words(ARG + 20, 3);
    return { status: this.s16(ARG + 18), handle, maddr: hi * 2 ** 32 + lo };
  }

  unmap(handle: number, host: number, bus = 0): number {
    this.setWords(ARG, [host, host === 0 ? 0 : VA_HI, bus >>> 0, Math.floor(bus / 2 ** 32), handle, 0]);
    expect(this.call(grantTableOp, gnttab.GNTTABOP_unmap_grant_ref, va(ARG), 1)).toBe(0);
    return this.s16(ARG + 20);
  }

  replace(handle: number, host: number, by: number): number {
    this.setWords(ARG, [host, VA_HI, by, by === 0 ? 0 : VA_HI, handle, 0]);
    expect(this.call(grantTableOp, gnttab.GNTTABOP_unmap_and_replace, va(ARG), 1)).toBe(0);
    return this.s16(ARG + 20);
  }

  /** Page and rights of the n-th entry from HOST on; null: not present. */
  at(n: number): { page: number; writable: boolean } | null {
    const [lo, hi] = this.machine.u32.slice((this.entry >> 2) + n * 2, (this.entry >> 2) + n * 2 + 2);
    if ((lo & PTE_P) === 0) return null;
    return { page: hi * 0x100000 + (lo >>> 12) - MFN_BASE, writable: (lo & PTE_RW) !== 0 };
  }
}

test('a page is mapped at two addresses, and its entry is in use until the last one is gone', () => {
  const guest = new Guest();
  guest.grant(GREF, 10);
  const first = guest.mapGrant(GNTMAP_host_map | GNTMAP_readonly, HOST);
  expect([first.status, first.maddr, guest.inUse()]).toEqual([0, (MFN_BASE + 10) * PAGE_SIZE, GTF_reading]);
  // What is in use is the page of the first one, whatever the entry says now.
  guest.grant(GREF, 11, gnttab.GTF_permit_access | GTF_reading);
  const second = guest.mapGrant(GNTMAP_host_map, HOST + PAGE_SIZE);
  expect([second.status, guest.inUse()]).toEqual([0, IN_USE]);
  expect([guest.at(0), guest.at(1)]).toEqual([
    { page: 10, writable: false },
    { page: 10, writable: true },
  ]);
  expect(hasMappings(guest.domain)).toBe(true);
  const flushes = guest.engine.tlbFlushes;
  expect(guest.unmap(second.handle, HOST + PAGE_SIZE)).toBe(0);
  expect([guest.at(1), guest.inUse(), guest.engine.tlbFlushes]).toEqual([null, GTF_reading, flushes + 1]);
  expect(guest.unmap(first.handle, HOST)).toBe(0);
  expect([guest.at(0), guest.inUse(), hasMappings(guest.domain)]).toEqual([null, 0, false]);
  expect(guest.unmap(first.handle, HOST)).toBe(gnttab.GNTST_bad_handle);
});

test('what the domain has not granted to itself, or cannot', () => {
  const guest = new Guest();
  const map = (flags = GNTMAP_device_map): number => guest.mapGrant(flags).status;
  guest.grant(GREF, 10, gnttab.GTF_permit_access, 7);
  expect(map()).toBe(gnttab.GNTST_general_error);
  guest.grant(GREF, 10, gnttab.GTF_permit_access | gnttab.GTF_readonly);
  expect(map()).toBe(gnttab.GNTST_general_error);
  guest.grant(GREF, 10, gnttab.GTF_accept_transfer);
  expect(map()).toBe(gnttab.GNTST_general_error);
  guest.grant(GREF, 10, gnttab.GTF_permit_access | gnttab.GTF_sub_page);
  expect(map()).toBe(gnttab.GNTST_general_error);
  const { layout } = guest.machine;
  removeFrame(guest.domain, 12);
  for (const page of [12, layout.sharedInfoOffset >>> 12, layout.foreignOffset >>> 12, 0x7fffffff]) {
    guest.grant(GREF, page);
    expect(map()).toBe(gnttab.GNTST_bad_page);
  }
  guest.domain.frameTypes[13] = 1;
  guest.grant(GREF, 13);
  expect(map()).toBe(gnttab.GNTST_general_error);
  expect(guest.inUse()).toBe(0);
  expect(guest.mapGrant(GNTMAP_device_map, 0, 512).status).toBe(gnttab.GNTST_bad_gntref);
  // A place without a table: nothing stays.
  guest.grant(GREF, 10);
  expect(guest.mapGrant(GNTMAP_host_map, 0x10000000).status).toBe(gnttab.GNTST_general_error);
  expect([guest.inUse(), hasMappings(guest.domain)]).toEqual([0, false]);
  // A read-only mapping of a page table is none of anybody's business.
  guest.grant(GREF, 13);
  const { status, handle, maddr } = guest.mapGrant(GNTMAP_device_map | GNTMAP_readonly);
  expect(status).toBe(0);
  expect(guest.unmap(handle, 0, maddr + PAGE_SIZE)).toBe(gnttab.GNTST_bad_dev_addr);
  expect([guest.unmap(handle, 0, maddr), guest.inUse()]).toEqual([0, 0]);
});

test('a frame of maptrack is 256 mappings; with none left nothing is mapped, and what is given back can be had again', () => {
  const none = new Guest({ limits: { maptrackFrames: 0 } });
  none.grant(GREF, 3);
  expect(none.mapGrant(GNTMAP_device_map).status).toBe(gnttab.GNTST_no_device_space);
  expect(none.inUse()).toBe(0);
  const guest = new Guest({ limits: { maptrackFrames: 1 } });
  guest.grant(GREF, 3);
  for (let n = 0; n < 256; n++) expect(guest.mapGrant(GNTMAP_device_map)).toMatchObject({ status: 0, handle: n });
  expect(guest.mapGrant(GNTMAP_device_map).status).toBe(gnttab.GNTST_no_device_space);
  const bus = (MFN_BASE + 3) * PAGE_SIZE;
  expect(guest.unmap(77, 0, bus)).toBe(gnttab.GNTST_okay);
  expect(guest.mapGrant(GNTMAP_device_map)).toMatchObject({ status: 0, handle: 77 });
});

test('own grants of version 2', () => {
  const guest = new Guest();
  guest.domain.i32[DOMAIN.grantVersion >> 2] = 2;
  const at = guest.machine.layout.grantTableOffset / 4 + GREF * 4;
  guest.machine.u32.set([gnttab.GTF_permit_access | (TEST_DOMID << 16), 0, MFN_BASE + 10, 0], at);
  const { status, handle } = guest.mapGrant(GNTMAP_host_map, HOST);
  expect([status, guest.machine.u16[statusIndex(guest.domain, GREF)]]).toEqual([0, IN_USE]);
  expect([guest.unmap(handle, HOST), isEntryInUse(guest.domain, 2, GREF)]).toEqual([0, false]);
});

test('unmap_and_replace moves the entry of another address there', () => {
  const guest = new Guest();
  guest.grant(GREF, 10);
  const mapped = guest.mapGrant(GNTMAP_host_map, HOST);
  guest.machine.u32.set([(20 << 12) | PTE_P, MFN_BASE / 0x100000], (guest.entry >> 2) + 2);
  expect(guest.replace(mapped.handle, HOST, HOST + PAGE_SIZE)).toBe(0);
  expect([guest.at(0), guest.at(1), guest.inUse()]).toEqual([{ page: 20, writable: false }, null, 0]);
  expect(guest.replace(mapped.handle, HOST, HOST + PAGE_SIZE)).toBe(gnttab.GNTST_bad_handle);

  // Without another address, the entry is empty afterwards.
  const again = guest.mapGrant(GNTMAP_host_map, HOST);
  expect([guest.replace(again.handle, HOST, 0), guest.at(0), guest.inUse()]).toEqual([0, null, 0]);

  // A place without a table, and an address that maps something else: the mapping stays.
  const third = guest.mapGrant(GNTMAP_host_map, HOST);
  expect(guest.replace(third.handle, HOST, 0x10000000)).toBe(gnttab.GNTST_general_error);
  expect(guest.replace(third.handle, HOST + 2 * PAGE_SIZE, HOST + PAGE_SIZE)).toBe(gnttab.GNTST_general_error);
  expect([guest.at(0), guest.inUse()]).toEqual([{ page: 10, writable: true }, IN_USE]);
  expect(guest.unmap(third.handle, HOST)).toBe(0);
});
