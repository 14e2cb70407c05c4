import { expect, test } from 'vitest';
import { EBUSY, EFAULT, EINVAL, ENOSYS, ERANGE } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { DOMID_SELF } from '../../abi/xen.ts';
import { GRANT_FRAMES_MAX, GRANT_STATUS_FRAMES_MAX, MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { PTE_P, PTE_RW } from '../../machine/page-table.ts';
import { DOMAIN } from '../domain.ts';
import { isEntryInUse, statusIndex } from '../grant-entries.ts';
import { storePte } from '../mmu.ts';
import { HOLE_HI, KERNEL_VA, TEST_DOMID, TestGuest, UNMAPPED_VA, VA_HI, va } from '../testing.ts';
import { grantTableOp } from './grant-table.ts';

const ARG = KERNEL_VA + 0x1000;
const LIST = KERNEL_VA + 0x2000;
const { GTF_permit_access, GTF_reading, GTF_writing, GTF_readonly, GTF_sub_page } = gnttab;
const IN_USE = GTF_reading | GTF_writing;

function setVersion(guest: TestGuest, version: number): { rc: number; version: number } {
  guest.setWords(ARG, [version]);
  const rc = guest.call(grantTableOp, gnttab.GNTTABOP_set_version, va(ARG), 1);
  return { rc, version: guest.word(ARG) };
}

function table({ machine }: TestGuest): number {
  return machine.layout.grantTableOffset / 4;
}

/** The words of an entry of version 2. */
function entry(guest: TestGuest, gref: number, words: readonly number[]): void {
  guest.machine.u32.set(words, table(guest) + gref * 4);
}

const status = (guest: TestGuest, gref: number): number => guest.machine.u16[statusIndex(guest.domain, gref)];

test('a domain that may have version 1 only is told that there is no other', () => {
  const guest = new TestGuest({ limits: { grantVersion: 1 } });
  expect(setVersion(guest, 2)).toEqual({ rc: -ENOSYS, version: 1 });
  expect(setVersion(guest, 1)).toEqual({ rc: 0, version: 1 });
  expect(setVersion(guest, 3)).toEqual({ rc: -EINVAL, version: 1 });
});

test('another version keeps the entries of the toolstack, and clears all else', () => {
  const guest = new TestGuest();
  const { u32 } = guest.machine;
  const at = table(guest);
  u32.set([GTF_permit_access | IN_USE, MFN_BASE + 3, GTF_permit_access | (7 << 16), MFN_BASE + 4], at);
  u32.set([GTF_permit_access, MFN_BASE + 5], at + 8 * 2);
  expect(setVersion(guest, 2)).toEqual({ rc: 0, version: 2 });
  expect([...u32.slice(at, at + 8)]).toEqual([
    ...[GTF_permit_access, 0, MFN_BASE + 3, 0],
    ...[GTF_permit_access | (7 << 16), 0, MFN_BASE + 4, 0],
  ]);
  expect(u32.slice(at + 8, at + 1024).every((word) => word === 0)).toBe(true);
  expect([status(guest, 0), status(guest, 1)]).toEqual([IN_USE, 0]);
  expect(setVersion(guest, 2)).toEqual({ rc: 0, version: 2 });
  guest.setWords(ARG, [DOMID_SELF, 0]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_get_version, va(ARG), 1)).toBe(0);
  expect(guest.word(ARG + 4)).toBe(2);

  entry(guest, 9, [GTF_permit_access, 0, 0x123, 0]);
  expect(setVersion(guest, 1)).toEqual({ rc: 0, version: 1 });
  expect([...u32.slice(at, at + 4)]).toEqual([
    ...[GTF_permit_access | IN_USE, MFN_BASE + 3],
    ...[GTF_permit_access | (7 << 16), MFN_BASE + 4],
  ]);
  expect(u32.slice(at + 4, at + 1024).every((word) => word === 0)).toBe(true);
  expect(status(guest, 0)).toBe(0);
});

test('a version is refused while entries are in use, or say what version 1 cannot', () => {
  const guest = new TestGuest();
  for (const version of [0, 3, 0xffffffff]) expect(setVersion(guest, version)).toEqual({ rc: -EINVAL, version: 1 });
  guest.machine.u32[table(guest) + 20 * 2] = GTF_permit_access | GTF_reading;
  expect(setVersion(guest, 2)).toEqual({ rc: -EBUSY, version: 1 });
  guest.machine.u32[table(guest) + 20 * 2] = 0;
  expect(setVersion(guest, 2).rc).toBe(0);
  guest.machine.u16[statusIndex(guest.domain, 20)] = GTF_writing;
  expect(setVersion(guest, 1)).toEqual({ rc: -EBUSY, version: 2 });
  guest.machine.u16[statusIndex(guest.domain, 20)] = 0;
  entry(guest, 7, [GTF_permit_access, 0, 0, 1]);
  expect(setVersion(guest, 1)).toEqual({ rc: -ERANGE, version: 2 });
  entry(guest, 7, [gnttab.GTF_transitive, 0, 0, 0]);
  expect(setVersion(guest, 1)).toEqual({ rc: -ERANGE, version: 2 });
  entry(guest, 7, [gnttab.GTF_accept_transfer, 0, 0, 1]);
  expect(setVersion(guest, 1)).toEqual({ rc: 0, version: 1 });
  expect(guest.machine.u32[table(guest) + 7 * 2]).toBe(0);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_set_version, va(UNMAPPED_VA), 1)).toBe(-EFAULT);
});

test('status frames: as many as the table needs, and mapped with version 2 only', () => {
  const guest = new TestGuest();
  const first = MFN_BASE + guest.machine.layout.statusOffset / PAGE_SIZE;
  const ask = (count: number, list: readonly [number, number] = va(LIST), domid = DOMID_SELF): number => {
    guest.setWords(ARG, [count, domid | (0x7777 << 16), ...list]);
    expect(guest.call(grantTableOp, gnttab.GNTTABOP_get_status_frames, va(ARG), 1)).toBe(0);
    return guest.s16(ARG + 6);
  };
  const l1 = guest.map(0xc0000000 - 5 * PAGE_SIZE, VA_HI, 0, 0);
  guest.domain.frameTypes[l1 >>> 12] = 1;
  const store = (mfn: number): number =>
    storePte(guest.vcpu, l1, ((mfn << 12) | PTE_P | PTE_RW) >>> 0, Math.floor(mfn / 0x100000));
  expect(store(first)).toBe(-EINVAL);
  expect(ask(0)).toBe(0);
  expect(ask(1)).toBe(gnttab.GNTST_general_error);
  setVersion(guest, 2);
  expect(ask(1)).toBe(0);
  expect(guest.words(LIST, 2)).toEqual([first, 0]);
  expect(ask(2)).toBe(gnttab.GNTST_general_error);
  guest.domain.i32[DOMAIN.grantFrames >> 2] = GRANT_FRAMES_MAX;
  expect(ask(GRANT_STATUS_FRAMES_MAX)).toBe(0);
  expect(guest.words(LIST + 7 * 8, 2)).toEqual([first + 7, 0]);
  expect(ask(GRANT_STATUS_FRAMES_MAX + 1)).toBe(gnttab.GNTST_general_error);
  expect(ask(0xffffffff)).toBe(gnttab.GNTST_general_error);
  expect(ask(1, va(UNMAPPED_VA))).toBe(gnttab.GNTST_bad_virt_addr);
  expect(ask(1, va(LIST), 3)).toBe(gnttab.GNTST_bad_domain);
  guest.setWords(ARG, [1, DOMID_SELF, 0, HOLE_HI]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_get_status_frames, va(ARG), 1)).toBe(-EFAULT);
  // They may not go while the guest has them mapped.
  expect(store(first + 7)).toBe(0);
  expect(store(first + 8)).toBe(-EINVAL);
  expect(setVersion(guest, 1)).toEqual({ rc: -EBUSY, version: 2 });
  expect(storePte(guest.vcpu, l1, 0, 0)).toBe(0);
  expect(setVersion(guest, 1)).toEqual({ rc: 0, version: 1 });
});

test('copy and swap with version 2: a part of a page, read-only, no transitive grants', () => {
  const guest = new TestGuest();
  setVersion(guest, 2);
  const self = TEST_DOMID << 16;
  guest.machine.u8.set([1, 2, 3, 4], 10 * PAGE_SIZE + 100);
  entry(guest, 20, [GTF_permit_access | GTF_sub_page | self, 100 | (4 << 16), MFN_BASE + 10, 0]);
  entry(guest, 21, [GTF_permit_access | self, 0, MFN_BASE + 11, 0]);
  entry(guest, 22, [gnttab.GTF_transitive | self, 9, 20, 0]);
  entry(guest, 23, [GTF_permit_access | GTF_readonly | self, 0, MFN_BASE + 11, 0]);
  entry(guest, 24, [GTF_permit_access | self, 0, MFN_BASE + 11, 1]);
  entry(guest, 25, [GTF_permit_access | GTF_sub_page | self, 0xffff | (0xffff << 16), MFN_BASE + 10, 0]);
  const copy = (from: number, fromOffset: number, to: number, length: number): number => {
    const side = (gref: number, offset: number): number[] => [gref, 0, (offset << 16) | DOMID_SELF, 0];
    guest.setWords(ARG, [...side(from, fromOffset), ...side(to, 8), (3 << 16) | length, 0]);
    expect(guest.call(grantTableOp, gnttab.GNTTABOP_copy, va(ARG), 1)).toBe(0);
    return guest.s16(ARG + 36);
  };
  expect(copy(20, 100, 21, 4)).toBe(0);
  expect([...guest.machine.u8.slice(11 * PAGE_SIZE + 8, 11 * PAGE_SIZE + 12)]).toEqual([1, 2, 3, 4]);
  expect([copy(20, 99, 21, 2), copy(20, 101, 21, 4), copy(25, 0, 21, 1)]).toEqual([-1, -1, -1]);
  expect([copy(22, 0, 21, 1), copy(20, 100, 23, 1)]).toEqual([-1, -1]);
  expect(copy(20, 100, 24, 1)).toBe(gnttab.GNTST_bad_page);
  expect(copy(256, 0, 21, 1)).toBe(gnttab.GNTST_bad_gntref);
  for (let gref = 20; gref < 26; gref++) expect(isEntryInUse(guest.domain, 2, gref)).toBe(false);

  guest.setWords(ARG, [20, 255, 0x7777]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_swap_grant_ref, va(ARG), 1)).toBe(0);
  expect(copy(255, 100, 21, 4)).toBe(0);
  guest.machine.u16[statusIndex(guest.domain, 255)] = GTF_reading;
  guest.setWords(ARG, [20, 255, 0x7777]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_swap_grant_ref, va(ARG), 1)).toBe(0);
  expect(guest.s16(ARG + 8)).toBe(gnttab.GNTST_eagain);
  guest.setWords(ARG, [20, 256, 0x7777]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_swap_grant_ref, va(ARG), 1)).toBe(0);
  expect(guest.s16(ARG + 8)).toBe(gnttab.GNTST_bad_gntref);
});
