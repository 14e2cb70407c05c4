/** What a domain may not give away; peer-server.test.ts has what becomes of what it may. */
import { expect, test } from 'vitest';
import * as gnttab from '../../abi/grant-table.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { PTE_P, PTE_RW } from '../../machine/page-table.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { DOMAIN, FRAME_PINNED } from '../domain.ts';
import { removeFrame } from '../owned-frames.ts';
import { KERNEL_VA, TEST_DOMID, TestGuest, VA_HI, va } from '../testing.ts';
import { grantTableOp } from './grant-table.ts';

const ARG = KERNEL_VA + 0x1000;
const GREF = 9;
const BAD_PAGE = gnttab.GNTST_bad_page;

function transfer(guest: TestGuest, mfn: number, domid = TEST_DOMID, mfnHi = 0): number {
  guest.setWords(ARG, [mfn >>> 0, mfnHi, domid, GREF, 0x7777, 0]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_transfer, va(ARG), 1)).toBe(0);
  return guest.s16(ARG + 16);
}

/** Page 10 and those after it are mapped nowhere. */
function makeGuest(): TestGuest {
  const guest = new TestGuest();
  for (let pfn = 10; pfn < 30; pfn++) guest.map(KERNEL_VA + pfn * PAGE_SIZE, VA_HI, MFN_BASE + pfn, 0);
  return guest;
}

function entry({ machine }: TestGuest, gref: number): number {
  return machine.layout.grantTableOffset / 4 + gref * 2;
}

const total = ({ domain }: TestGuest): number => domain.i32[DOMAIN.totalPages >> 2];

test('frames that are not RAM of the domain', () => {
  const guest = makeGuest();
  const { layout } = guest.machine;
  removeFrame(guest.domain, 10);
  const bad = [
    ...[0, 11, MFN_BASE - 1, MFN_BASE + 10, 0xffffffff],
    ...[layout.sharedInfoOffset, layout.grantTableOffset, layout.foreignOffset].map((at) => MFN_BASE + at / PAGE_SIZE),
    MFN_BASE + layout.nameableFrames,
  ];
  for (const mfn of bad) expect(transfer(guest, mfn)).toBe(BAD_PAGE);
  expect(transfer(guest, MFN_BASE + 11, TEST_DOMID, 1)).toBe(BAD_PAGE);
  expect(transfer(guest, 0xffffffff, TEST_DOMID, 0xffffffff)).toBe(BAD_PAGE);
  expect(total(guest)).toBe(63);
});

test('frames in use: page tables, mapped pages, GDTs, vcpu_info, grants that somebody has mapped, the rings', () => {
  const guest = makeGuest();
  const { u32 } = guest.machine;
  guest.domain.frameTypes[11] = 1;
  guest.domain.frameTypes[12] = 4 | FRAME_PINNED;
  // A table of level 1 names page 13; a page that is no table names page 14.
  const named = (pfn: number): number[] => [(pfn << 12) | PTE_P | PTE_RW, MFN_BASE / 0x100000];
  u32.set(named(13), (11 * PAGE_SIZE) / 4 + 6);
  u32.set(named(14), (20 * PAGE_SIZE) / 4 + 6);
  const vcpu = guest.domain.vcpus[0].u32;
  vcpu[VCPU.gdtEntries >> 2] = 513;
  vcpu[(VCPU.gdtFrames >> 2) + 1] = 15;
  vcpu[(VCPU.gdtFrames >> 2) + 2] = 16;
  vcpu[VCPU.vcpuInfo >> 2] = 17 * PAGE_SIZE + 64;
  u32.set([gnttab.GTF_permit_access | gnttab.GTF_reading, MFN_BASE + 18], entry(guest, 20));
  u32.set([gnttab.GTF_permit_access, MFN_BASE + 19], entry(guest, 21));
  u32.set([gnttab.GTF_permit_access, MFN_BASE + 21], entry(guest, gnttab.GNTTAB_RESERVED_XENSTORE));
  for (const pfn of [11, 12, 13, 15, 17, 18, 21]) expect(transfer(guest, MFN_BASE + pfn), `${pfn}`).toBe(BAD_PAGE);
  expect(total(guest)).toBe(64);
  // Nobody accepts the others, so they are gone.
  for (const pfn of [14, 16, 19]) expect(transfer(guest, MFN_BASE + pfn)).toBe(gnttab.GNTST_general_error);
  expect(total(guest)).toBe(61);
});

test('a domain may give a page to itself, by its number', () => {
  const guest = makeGuest();
  guest.machine.u8.fill(0x5a, 10 * PAGE_SIZE, 11 * PAGE_SIZE);
  removeFrame(guest.domain, 12);
  guest.machine.u32.set([gnttab.GTF_accept_transfer | (TEST_DOMID << 16), 12], entry(guest, GREF));
  const flushes = guest.engine.tlbFlushes;
  expect(transfer(guest, MFN_BASE + 10)).toBe(0);
  expect(guest.engine.tlbFlushes).toBe(flushes + 1);
  expect(guest.machine.u32[entry(guest, GREF) + 1]).toBe(MFN_BASE + 12);
  expect(guest.machine.u8[12 * PAGE_SIZE + 4095]).toBe(0x5a);
  expect(total(guest)).toBe(63);
});

test('several in one call, each with its own status', () => {
  const guest = makeGuest();
  guest.setWords(ARG, [MFN_BASE + 10, 0, 9, GREF, 0x7777, 0, 3, 0, 9, GREF, 0x7777, 0]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_transfer, va(ARG), 2)).toBe(0);
  expect([guest.s16(ARG + 16), guest.s16(ARG + 40)]).toEqual([gnttab.GNTST_bad_domain, BAD_PAGE]);
  expect(total(guest)).toBe(63);
});
