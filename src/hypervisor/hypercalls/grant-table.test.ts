import { expect, test } from 'vitest';
import { EFAULT, EINVAL, ENOSYS, ESRCH } from '../../abi/errno.ts';
import * as gnttab from '../../abi/grant-table.ts';
import { DOMID_SELF } from '../../abi/xen.ts';
import { GRANT_FRAMES_MAX, MFN_BASE } from '../../machine/memory.ts';
import { DOMAIN } from '../domain.ts';
import { HOLE_HI, KERNEL_VA, READ_ONLY_VA, TEST_DOMID, TestGuest, UNMAPPED_VA, VA_HI, va } from '../testing.ts';
import { grantTableOp } from './grant-table.ts';

const ARG = KERNEL_VA + 0x1000;
const LIST = KERNEL_VA + 0x2000;
const GREF = 8;

/** Writes a version 1 entry. */
function grant(guest: TestGuest, ref: number, flags: number, mfn: number, domid = TEST_DOMID): void {
  const at = (guest.machine.layout.grantTableOffset >>> 2) + ref * 2;
  guest.machine.u32[at] = ((domid << 16) | flags) >>> 0;
  guest.machine.u32[at + 1] = mfn;
}

const grantFlags = (guest: TestGuest, ref: number): number =>
  guest.machine.u32[(guest.machine.layout.grantTableOffset >>> 2) + ref * 2] & 0xffff;

interface Side {
  readonly frame: number;
  readonly frameHi?: number;
  readonly domid?: number;
  readonly offset?: number;
}

function copy(guest: TestGuest, from: Side, to: Side, length: number, flags: number): number {
  const side = ({ frame, frameHi = 0, domid = DOMID_SELF, offset = 0 }: Side): number[] => [
    frame,
    frameHi,
    ((offset << 16) | domid) >>> 0,
    0,
  ];
  guest.setWords(ARG, [...side(from), ...side(to), ((flags << 16) | length) >>> 0, 0x7777]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_copy, va(ARG), 1)).toBe(0);
  return guest.s16(ARG + 36);
}

test('setup_table returns MFNs and grows the table', () => {
  const guest = new TestGuest();
  guest.setWords(ARG, [DOMID_SELF, 3, 0x7777, 0, LIST, VA_HI]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_setup_table, va(ARG), 1)).toBe(0);
  expect(guest.s16(ARG + 8)).toBe(gnttab.GNTST_okay);
  const first = MFN_BASE + (guest.machine.layout.grantTableOffset >>> 12);
  expect(guest.words(LIST, 6)).toEqual([first, 0, first + 1, 0, first + 2, 0]);
  expect(guest.domain.i32[DOMAIN.grantFrames >> 2]).toBe(3);
  guest.setWords(ARG, [DOMID_SELF, 1, 0, 0, LIST, VA_HI]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_setup_table, va(ARG), 1)).toBe(0);
  expect(guest.domain.i32[DOMAIN.grantFrames >> 2]).toBe(3);
});

test('setup_table: bad requests', () => {
  const guest = new TestGuest();
  const setup = (words: readonly number[], count = 1): number => {
    guest.setWords(ARG, words);
    return guest.call(grantTableOp, gnttab.GNTTABOP_setup_table, va(ARG), count);
  };
  expect(setup([DOMID_SELF, 1, 0, 0, LIST, VA_HI], 0)).toBe(-EINVAL);
  expect(setup([DOMID_SELF, 1, 0, 0, LIST, VA_HI], 2)).toBe(-EINVAL);
  expect(setup([DOMID_SELF, 1, 0, 0, 0, HOLE_HI])).toBe(-EFAULT);
  expect(setup([0, 1, 0, 0, LIST, VA_HI])).toBe(0);
  expect(guest.s16(ARG + 8)).toBe(gnttab.GNTST_bad_domain);
  for (const frames of [GRANT_FRAMES_MAX + 1, 0xffffffff]) {
    expect(setup([DOMID_SELF, frames, 0, 0, LIST, VA_HI])).toBe(0);
    expect(guest.s16(ARG + 8)).toBe(gnttab.GNTST_general_error);
  }
  expect(setup([DOMID_SELF, GRANT_FRAMES_MAX, 0, 0, UNMAPPED_VA, VA_HI])).toBe(0);
  expect(guest.s16(ARG + 8)).toBe(gnttab.GNTST_bad_virt_addr);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_setup_table, va(UNMAPPED_VA), 1)).toBe(-EFAULT);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_setup_table, va(READ_ONLY_VA), 1)).toBe(-EFAULT);
});

test('query_size, get_version', () => {
  const guest = new TestGuest();
  guest.setWords(ARG, [DOMID_SELF, 7, 7, 0xabcd7777]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_query_size, va(ARG), 1)).toBe(0);
  expect(guest.words(ARG, 4)).toEqual([DOMID_SELF, 1, GRANT_FRAMES_MAX, 0xabcd0000]);
  guest.setWords(ARG, [3, 7, 7, 0]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_query_size, va(ARG), 1)).toBe(0);
  expect(guest.words(ARG, 4)).toEqual([3, 7, 7, 0xfffe]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_query_size, va(ARG), 2)).toBe(-EINVAL);
  guest.setWords(ARG, [DOMID_SELF, 0]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_get_version, va(ARG), 1)).toBe(0);
  expect(guest.word(ARG + 4)).toBe(1);
  guest.setWords(ARG, [9, 0]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_get_version, va(ARG), 1)).toBe(-ESRCH);
});

test('a domain has no more frames than its limit says', () => {
  const guest = new TestGuest({ limits: { grantFrames: 3 } });
  for (const [frames, status] of [
    [4, gnttab.GNTST_general_error],
    [3, gnttab.GNTST_okay],
    [64, gnttab.GNTST_general_error],
  ]) {
    guest.setWords(ARG, [DOMID_SELF, frames, 0, 0, LIST, VA_HI]);
    expect(guest.call(grantTableOp, gnttab.GNTTABOP_setup_table, va(ARG), 1)).toBe(0);
    expect(guest.s16(ARG + 8)).toBe(status);
  }
  guest.setWords(ARG, [DOMID_SELF, 7, 7, 0]);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_query_size, va(ARG), 1)).toBe(0);
  expect(guest.words(ARG, 4)).toEqual([DOMID_SELF, 3, 3, 0]);
});

test('copy between own frames', () => {
  const guest = new TestGuest();
  guest.machine.u8.set([1, 2, 3, 4, 5], 10 * 4096 + 4091);
  expect(copy(guest, { frame: MFN_BASE + 10, offset: 4091 }, { frame: MFN_BASE + 11, offset: 2 }, 5, 0)).toBe(0);
  expect([...guest.machine.u8.slice(11 * 4096, 11 * 4096 + 8)]).toEqual([0, 0, 1, 2, 3, 4, 5, 0]);
});

test('copy between own grants sets and clears the in-use bits', () => {
  const guest = new TestGuest();
  grant(guest, GREF, gnttab.GTF_permit_access | gnttab.GTF_readonly, MFN_BASE + 10);
  grant(guest, GREF + 1, gnttab.GTF_permit_access, MFN_BASE + 11);
  guest.machine.u8.set([7, 8], 10 * 4096);
  const both = gnttab.GNTCOPY_source_gref | gnttab.GNTCOPY_dest_gref;
  expect(copy(guest, { frame: GREF }, { frame: GREF + 1, domid: TEST_DOMID }, 2, both)).toBe(0);
  expect([...guest.machine.u8.slice(11 * 4096, 11 * 4096 + 2)]).toEqual([7, 8]);
  expect(grantFlags(guest, GREF)).toBe(gnttab.GTF_permit_access | gnttab.GTF_readonly);
  expect(grantFlags(guest, GREF + 1)).toBe(gnttab.GTF_permit_access);
});

test('copy: hostile requests fail in their entry', () => {
  const guest = new TestGuest();
  const page: Side = { frame: MFN_BASE + 10 };
  const src = gnttab.GNTCOPY_source_gref;
  const dst = gnttab.GNTCOPY_dest_gref;
  expect(copy(guest, { ...page, domid: TEST_DOMID }, page, 1, 0)).toBe(gnttab.GNTST_permission_denied);
  expect(copy(guest, page, { ...page, domid: 0 }, 1, 0)).toBe(gnttab.GNTST_permission_denied);
  expect(copy(guest, { frame: 1, domid: 0 }, page, 1, src)).toBe(gnttab.GNTST_bad_gntref);
  expect(copy(guest, { frame: 1, domid: 9 }, page, 1, src)).toBe(gnttab.GNTST_bad_domain);
  for (const frame of [0, 10, MFN_BASE - 1, MFN_BASE + guest.machine.layout.nameableFrames, 0xffffffff]) {
    expect(copy(guest, { frame }, page, 1, 0)).toBe(gnttab.GNTST_bad_page);
    expect(copy(guest, page, { frame }, 1, 0)).toBe(gnttab.GNTST_bad_page);
  }
  expect(copy(guest, { ...page, frameHi: 1 }, page, 1, 0)).toBe(gnttab.GNTST_bad_page);
  expect(copy(guest, { ...page, offset: 4096 }, page, 1, 0)).toBe(gnttab.GNTST_bad_copy_arg);
  expect(copy(guest, page, { ...page, offset: 0xffff }, 0xffff, 0)).toBe(gnttab.GNTST_bad_copy_arg);
  guest.domain.frameTypes[12] = 1;
  expect(copy(guest, page, { frame: MFN_BASE + 12 }, 1, 0)).toBe(gnttab.GNTST_general_error);
  for (const ref of [512, 0xffffffff]) expect(copy(guest, { frame: ref }, page, 1, src)).toBe(gnttab.GNTST_bad_gntref);
  grant(guest, GREF, gnttab.GTF_invalid, MFN_BASE + 10);
  expect(copy(guest, { frame: GREF }, page, 1, src)).toBe(gnttab.GNTST_general_error);
  grant(guest, GREF, gnttab.GTF_permit_access, MFN_BASE + 10, 0);
  expect(copy(guest, { frame: GREF }, page, 1, src)).toBe(gnttab.GNTST_general_error);
  grant(guest, GREF, gnttab.GTF_permit_access | gnttab.GTF_readonly, MFN_BASE + 10);
  expect(copy(guest, page, { frame: GREF }, 1, dst)).toBe(gnttab.GNTST_general_error);
  grant(guest, GREF, gnttab.GTF_permit_access, 0xffffffff);
  expect(copy(guest, { frame: GREF }, page, 1, src)).toBe(gnttab.GNTST_bad_page);
  expect(grantFlags(guest, GREF)).toBe(gnttab.GTF_permit_access);
});

test('the frame of a copy may not be one that was given back', () => {
  const guest = new TestGuest();
  guest.machine.u32.fill(
    0xffffffff,
    (guest.machine.layout.m2pOffset >>> 2) + 20,
    (guest.machine.layout.m2pOffset >>> 2) + 22,
  );
  expect(copy(guest, { frame: MFN_BASE + 10 }, { frame: MFN_BASE + 11 }, 1, 0)).toBe(gnttab.GNTST_bad_page);
});

test('map, unmap: there is nobody else', () => {
  const guest = new TestGuest();
  const map = (flags: number, dom: number, ref = GREF): number => {
    guest.setWords(ARG, [0, 0, flags, ref, (0x7777 << 16) | dom, 0, 0, 0]);
    expect(guest.call(grantTableOp, gnttab.GNTTABOP_map_grant_ref, va(ARG), 1)).toBe(0);
    return guest.s16(ARG + 18);
  };
  expect(map(gnttab.GNTMAP_readonly, 0)).toBe(gnttab.GNTST_bad_gntref);
  expect(map(gnttab.GNTMAP_host_map, 0)).toBe(gnttab.GNTST_bad_gntref);
  expect(map(gnttab.GNTMAP_host_map, 9)).toBe(gnttab.GNTST_bad_domain);
  expect(map(gnttab.GNTMAP_host_map, DOMID_SELF)).toBe(gnttab.GNTST_bad_domain);
  expect(map(gnttab.GNTMAP_host_map, TEST_DOMID)).toBe(gnttab.GNTST_general_error);
  for (const op of [gnttab.GNTTABOP_unmap_grant_ref, gnttab.GNTTABOP_unmap_and_replace]) {
    guest.setWords(ARG, new Array<number>(12).fill(0));
    expect(guest.call(grantTableOp, op, va(ARG), 2)).toBe(0);
    expect(guest.s16(ARG + 20)).toBe(gnttab.GNTST_bad_handle);
    expect(guest.s16(ARG + 24 + 20)).toBe(gnttab.GNTST_bad_handle);
  }
});

test('swap_grant_ref', () => {
  const guest = new TestGuest();
  grant(guest, GREF, gnttab.GTF_permit_access, 0x123);
  const swap = (a: number, b: number): number => {
    guest.setWords(ARG, [a, b, 0x7777]);
    expect(guest.call(grantTableOp, gnttab.GNTTABOP_swap_grant_ref, va(ARG), 1)).toBe(0);
    return guest.s16(ARG + 8);
  };
  expect(swap(GREF, GREF + 1)).toBe(0);
  expect(grantFlags(guest, GREF)).toBe(0);
  expect(grantFlags(guest, GREF + 1)).toBe(gnttab.GTF_permit_access);
  expect(swap(GREF, 512)).toBe(gnttab.GNTST_bad_gntref);
  expect(swap(0xffffffff, GREF)).toBe(gnttab.GNTST_bad_gntref);
  grant(guest, GREF, gnttab.GTF_permit_access | gnttab.GTF_reading, 0x123);
  expect(swap(GREF, GREF + 1)).toBe(gnttab.GNTST_eagain);
});

test('cache_flush checks its request', () => {
  const guest = new TestGuest();
  const flush = (mfn: number, offset: number, length: number, op: number): number => {
    guest.setWords(ARG, [(mfn << 12) >>> 0, mfn >>> 20, ((length << 16) | offset) >>> 0, op]);
    return guest.call(grantTableOp, gnttab.GNTTABOP_cache_flush, va(ARG), 1);
  };
  expect(flush(MFN_BASE + 3, 0, 4096, gnttab.GNTTAB_CACHE_CLEAN)).toBe(0);
  expect(flush(3, 0, 4096, gnttab.GNTTAB_CACHE_CLEAN)).toBe(-EINVAL);
  expect(flush(MFN_BASE + 3, 1, 4096, gnttab.GNTTAB_CACHE_CLEAN)).toBe(-EINVAL);
  expect(flush(MFN_BASE + 3, 0, 1, 4)).toBe(-EINVAL);
});

test('bad commands, counts and arrays', () => {
  const guest = new TestGuest();
  for (const cmd of [gnttab.GNTTABOP_dump_table, 13, 0xfff])
    expect(guest.call(grantTableOp, cmd, va(ARG), 1)).toBe(-ENOSYS);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_copy, va(ARG), 0x80000000)).toBe(-EINVAL);
  expect(guest.call(grantTableOp, gnttab.GNTTABOP_copy | 0x1000, va(ARG), 1)).toBe(-EINVAL);
  for (const cmd of [0, 1, 4, 5, 7, 11, 12]) {
    expect(guest.call(grantTableOp, cmd, va(UNMAPPED_VA), 1)).toBe(-EFAULT);
    expect(guest.call(grantTableOp, cmd, [0, HOLE_HI], 1)).toBe(-EFAULT);
    expect(guest.call(grantTableOp, cmd, va(ARG), 0)).toBe(0);
    // A huge count ends where the mapping does.
    guest.machine.u8.fill(0, 0x1000, 0x9000);
    guest.map(KERNEL_VA + 0x9000, VA_HI, 0, 0);
    expect(guest.call(grantTableOp, cmd, va(ARG), 0x7fffffff)).toBe(-EFAULT);
  }
});
