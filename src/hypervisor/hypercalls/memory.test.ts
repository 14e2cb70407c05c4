import { expect, test } from 'vitest';
import { EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH } from '../../abi/errno.ts';
import * as xenmem from '../../abi/memory.ts';
import { DOMID_SELF } from '../../abi/xen.ts';
import { MFN_BASE } from '../../machine/memory.ts';
import { FLAG_STOP, VCPU } from '../../machine/vcpu-block.ts';
import { DOMAIN, FRAME_PINNED } from '../domain.ts';
import { allowMemory, domainState } from '../domain-state.ts';
import { HOLE_HI, KERNEL_VA, READ_ONLY_VA, TEST_DOMID, TestGuest, UNMAPPED_VA, VA_HI, va } from '../testing.ts';
import { memoryOp } from './memory.ts';

const ARG = KERNEL_VA + 0x1000;
const LIST = KERNEL_VA + 0x2000;
const DECREASE = xenmem.XENMEM_decrease_reservation;
const POPULATE = xenmem.XENMEM_populate_physmap;
const INCREASE = xenmem.XENMEM_increase_reservation;

interface Reservation {
  readonly list?: readonly [number, number];
  readonly count?: number;
  readonly countHi?: number;
  readonly order?: number;
  readonly flags?: number;
  readonly domid?: number;
}

function reserve(guest: TestGuest, op: number, frames: readonly number[], more: Reservation = {}): number {
  const [lo, hi] = more.list ?? va(LIST);
  guest.setWords(
    LIST,
    frames.flatMap((frame) => [frame >>> 0, Math.floor(frame / 0x100000000)]),
  );
  const { count = frames.length, countHi = 0, order = 0, flags = 0, domid = DOMID_SELF } = more;
  guest.setWords(ARG, [lo, hi, count, countHi, order, flags, domid, 0]);
  return guest.call(memoryOp, op, va(ARG));
}

const total = (guest: TestGuest): number => guest.domain.i32[DOMAIN.totalPages >> 2];
const m2p = (guest: TestGuest, frame: number): number =>
  guest.machine.u32[(guest.machine.layout.m2pOffset >>> 2) + frame * 2];

test('the balloon: pages go and come back, zeroed, at the same MFN', () => {
  const guest = new TestGuest();
  guest.machine.u8.fill(0xaa, 10 * 4096, 12 * 4096);
  expect(reserve(guest, DECREASE, [MFN_BASE + 10, MFN_BASE + 11])).toBe(2);
  expect(total(guest)).toBe(62);
  expect(m2p(guest, 10)).toBe(0xffffffff);
  expect(reserve(guest, POPULATE, [10, 11])).toBe(2);
  expect(guest.words(LIST, 4)).toEqual([MFN_BASE + 10, 0, MFN_BASE + 11, 0]);
  expect(total(guest)).toBe(64);
  expect(m2p(guest, 11)).toBe(11);
  expect(guest.machine.u8.subarray(10 * 4096, 12 * 4096).every((byte) => byte === 0)).toBe(true);
});

test('memory beyond that of boot can be populated up to the maximum', () => {
  const guest = new TestGuest({ ramPages: 64, maxPages: 66 });
  expect(reserve(guest, POPULATE, [64, 65, 66])).toBe(2);
  expect(total(guest)).toBe(66);
  expect(reserve(guest, POPULATE, [65])).toBe(0);
  expect(reserve(guest, DECREASE, [MFN_BASE + 65])).toBe(1);
  expect(reserve(guest, POPULATE, [65])).toBe(1);
});

test('decrease stops at a frame that is not RAM of the domain, or not any more', () => {
  const guest = new TestGuest();
  const sharedInfo = MFN_BASE + 64;
  for (const frame of [0, 10, MFN_BASE - 1, sharedInfo, sharedInfo + 1, 0xffffffff, 2 ** 63]) {
    expect(reserve(guest, DECREASE, [MFN_BASE + 12, frame, MFN_BASE + 13])).toBe(1);
    expect(reserve(guest, POPULATE, [12])).toBe(1);
  }
  expect(total(guest)).toBe(64);
  expect(reserve(guest, DECREASE, [MFN_BASE + 12, MFN_BASE + 12])).toBe(1);
  expect(total(guest)).toBe(63);
});

test('populate stops at a page that the domain has, and at one beyond', () => {
  const guest = new TestGuest();
  for (const pfn of [5, 64, 0xffffffff, 2 ** 52, MFN_BASE]) expect(reserve(guest, POPULATE, [pfn])).toBe(0);
  guest.domain.frameTypes[20] = FRAME_PINNED | 4;
  expect(reserve(guest, DECREASE, [MFN_BASE + 20])).toBe(1);
  expect(guest.domain.frameTypes[20]).toBe(0);
  expect(reserve(guest, POPULATE, [20], { flags: xenmem.XENMEMF_populate_on_demand })).toBe(0);
});

test('increase takes what was given back, with or without a list', () => {
  const guest = new TestGuest();
  expect(reserve(guest, DECREASE, [MFN_BASE + 16, MFN_BASE + 17, MFN_BASE + 20])).toBe(3);
  expect(reserve(guest, INCREASE, [0], { order: 1 })).toBe(1);
  expect(guest.word(LIST)).toBe(MFN_BASE + 16);
  expect(reserve(guest, INCREASE, [0, 0], { list: [0, 0] })).toBe(1);
  expect(total(guest)).toBe(64);
  expect(reserve(guest, INCREASE, [0])).toBe(0);
});

test('extents of more than one page', () => {
  const guest = new TestGuest();
  expect(reserve(guest, DECREASE, [MFN_BASE + 16], { order: 3 })).toBe(1);
  expect(total(guest)).toBe(56);
  expect(reserve(guest, POPULATE, [16], { order: 3 })).toBe(1);
  expect(reserve(guest, POPULATE, [16], { order: 10 })).toBe(0);
  expect(reserve(guest, DECREASE, [MFN_BASE + 16], { order: 0xffffffff })).toBe(0);
});

test('a bad reservation does nothing: the extents done so far come back', () => {
  const guest = new TestGuest();
  const frames = [MFN_BASE + 10];
  expect(guest.call(memoryOp, DECREASE, va(UNMAPPED_VA))).toBe(0);
  expect(guest.call(memoryOp, DECREASE | (7 << 6), va(UNMAPPED_VA))).toBe(7);
  expect(reserve(guest, DECREASE, frames, { list: va(UNMAPPED_VA) })).toBe(0);
  expect(reserve(guest, DECREASE, frames, { list: [0, HOLE_HI] })).toBe(0);
  expect(reserve(guest, DECREASE, frames, { list: [0, 0x00008000] })).toBe(0);
  expect(reserve(guest, DECREASE, frames, { count: 0x04000000 })).toBe(0);
  expect(reserve(guest, DECREASE, frames, { countHi: 1 })).toBe(0);
  expect(reserve(guest, DECREASE, frames, { domid: 0 })).toBe(0);
  expect(reserve(guest, DECREASE, frames, { flags: 12 })).toBe(0);
  expect(total(guest)).toBe(64);
  // A huge count ends at the end of the list.
  expect(reserve(guest, DECREASE, frames, { count: 0x03ffffff })).toBe(1);
});

test('a list that cannot be written ends the call before it counts', () => {
  const guest = new TestGuest();
  expect(reserve(guest, DECREASE, [MFN_BASE + 10])).toBe(1);
  guest.setWords(KERNEL_VA, [10, 0]);
  expect(reserve(guest, POPULATE, [10], { list: va(READ_ONLY_VA) })).toBe(0);
});

test('a stop request ends a long call', () => {
  const guest = new TestGuest({ ramPages: 600 });
  guest.vcpu.block.i32[VCPU.flags >> 2] = FLAG_STOP;
  const frames = Array.from({ length: 300 }, (_, i) => MFN_BASE + 100 + i);
  expect(reserve(guest, DECREASE, frames)).toBe(255);
  expect(total(guest)).toBe(600 - 255);
});

test('memory_map is one entry of RAM up to the maximum', () => {
  const guest = new TestGuest({ ramPages: 64, maxPages: 80 });
  guest.setWords(ARG, [128, 0, LIST, VA_HI]);
  guest.machine.u8.fill(0xff, 0x2000, 0x2040);
  expect(guest.call(memoryOp, xenmem.XENMEM_memory_map, va(ARG))).toBe(0);
  expect(guest.word(ARG)).toBe(1);
  expect(guest.words(LIST, 6)).toEqual([0, 0, 80 * 4096, 0, 1, 0xffffffff]);
  guest.setWords(ARG, [0, 0, UNMAPPED_VA, VA_HI]);
  expect(guest.call(memoryOp, xenmem.XENMEM_memory_map, va(ARG))).toBe(0);
  expect(guest.word(ARG)).toBe(0);
  guest.setWords(ARG, [1, 0, UNMAPPED_VA, VA_HI]);
  expect(guest.call(memoryOp, xenmem.XENMEM_memory_map, va(ARG))).toBe(-EFAULT);
  expect(guest.call(memoryOp, xenmem.XENMEM_memory_map, va(UNMAPPED_VA))).toBe(-EFAULT);
});

test('machphys_mapping ends with the last frame', () => {
  const guest = new TestGuest();
  const last = MFN_BASE + guest.machine.layout.nameableFrames - 1;
  expect(guest.call(memoryOp, xenmem.XENMEM_machphys_mapping, va(LIST))).toBe(0);
  const [startLo, startHi, endLo, endHi, maxLo, maxHi] = guest.words(LIST, 6);
  expect([startLo, startHi, endHi, maxLo, maxHi]).toEqual([0, 0xffff8000, 0xffff8000, last, 0]);
  expect(endLo).toBe(Math.ceil(((last + 1) * 8) / 4096) * 4096);
  expect(guest.call(memoryOp, xenmem.XENMEM_machphys_mapping, va(READ_ONLY_VA))).toBe(-EFAULT);
});

test('statistics', () => {
  const guest = new TestGuest({ ramPages: 64, maxPages: 80 });
  guest.setWords(ARG, [DOMID_SELF]);
  expect(guest.call(memoryOp, xenmem.XENMEM_current_reservation, va(ARG))).toBe(64);
  expect(guest.call(memoryOp, xenmem.XENMEM_maximum_reservation, va(ARG))).toBe(80);
  expect(guest.call(memoryOp, xenmem.XENMEM_maximum_gpfn, va(ARG))).toBe(79);
  guest.machine.u32[(guest.machine.layout.sharedInfoOffset + 0xc10) >>> 2] = 64;
  expect(guest.call(memoryOp, xenmem.XENMEM_maximum_gpfn, va(ARG))).toBe(63);
  guest.setWords(ARG, [TEST_DOMID]);
  expect(guest.call(memoryOp, xenmem.XENMEM_current_reservation, va(ARG))).toBe(64);
  guest.setWords(ARG, [0]);
  expect(guest.call(memoryOp, xenmem.XENMEM_current_reservation, va(ARG))).toBe(-ESRCH);
  expect(guest.call(memoryOp, xenmem.XENMEM_current_reservation, va(UNMAPPED_VA))).toBe(-EFAULT);
  expect(guest.call(memoryOp, xenmem.XENMEM_current_reservation | 64, va(ARG))).toBe(-EINVAL);
  expect(guest.call(memoryOp, xenmem.XENMEM_maximum_ram_page, 0)).toBe(MFN_BASE + guest.machine.layout.nameableFrames);
});

test('refusals', () => {
  const guest = new TestGuest();
  const refusals: readonly (readonly [number, number, number])[] = [
    [xenmem.XENMEM_add_to_physmap, 0, -EACCES],
    [xenmem.XENMEM_add_to_physmap_batch, 0, -EACCES],
    [xenmem.XENMEM_remove_from_physmap, 0, -EACCES],
    [xenmem.XENMEM_set_memory_map, 0, -EPERM],
    [xenmem.XENMEM_set_pod_target, 8, -EINVAL],
    [xenmem.XENMEM_get_pod_target, 8, -EINVAL],
    [xenmem.XENMEM_get_vnumainfo, 0, -EOPNOTSUPP],
    [xenmem.XENMEM_acquire_resource, 0, -EPERM],
  ];
  for (const [op, domidWord, errno] of refusals) {
    guest.setWords(ARG, new Array<number>(12).fill(0));
    guest.setWords(ARG + domidWord * 4, [DOMID_SELF]);
    expect(guest.call(memoryOp, op, va(ARG))).toBe(errno);
    guest.setWords(ARG + domidWord * 4, [9]);
    expect(guest.call(memoryOp, op, va(ARG))).toBe(-ESRCH);
    expect(guest.call(memoryOp, op, va(UNMAPPED_VA))).toBe(-EFAULT);
  }
  guest.setWords(ARG, new Array<number>(12).fill(0));
  guest.setWords(ARG + 24, [TEST_DOMID]);
  expect(guest.call(memoryOp, xenmem.XENMEM_claim_pages, va(ARG))).toBe(-EPERM);
  expect(guest.call(memoryOp, xenmem.XENMEM_machine_memory_map, va(ARG))).toBe(-EPERM);
  expect(guest.call(memoryOp, xenmem.XENMEM_machphys_compat_mfn_list, va(ARG))).toBe(-EOPNOTSUPP);
  for (const op of [5, 8, 11, 20, 21, 22, 29, 63]) expect(guest.call(memoryOp, op, va(ARG))).toBe(-ENOSYS);
  guest.setWords(ARG, [0, 7, 0, 0, 0, 0]);
  expect(guest.call(memoryOp, xenmem.XENMEM_reserved_device_memory_map, va(ARG))).toBe(0);
  expect(guest.word(ARG + 4)).toBe(0);
});

test('a domain gets no more than it may have, though there is room for it', () => {
  const guest = new TestGuest({ ramPages: 64, maxPages: 1024 });
  allowMemory(guest.domain, 70);
  // And 1 MiB, as libxl allows.
  const frames = Array.from({ length: 300 }, (_, i) => 64 + i);
  expect(reserve(guest, POPULATE, frames)).toBe(262);
  allowMemory(guest.domain, 10);
  expect(total(guest)).toBe(326);
  expect(domainState(guest.domain)).toMatchObject({ pages: 326, promisedPages: 326 });
  expect(reserve(guest, DECREASE, [MFN_BASE + 64])).toBe(1);
  expect(reserve(guest, POPULATE, [64])).toBe(0);
});

test('pages that were given back go to the host in one piece, and come back as zeros', () => {
  const guest = new TestGuest();
  guest.canDiscard = true;
  guest.machine.u8.fill(0xaa, 10 * 4096, 14 * 4096);
  expect(reserve(guest, DECREASE, [MFN_BASE + 10, MFN_BASE + 11, MFN_BASE + 12, MFN_BASE + 30])).toBe(4);
  expect(guest.discards).toEqual([
    [10, 3],
    [30, 1],
  ]);
  // From above down, as some balloons go; the last is none of the domain's, what came before is given back all the same.
  guest.discards.length = 0;
  expect(reserve(guest, DECREASE, [MFN_BASE + 22, MFN_BASE + 21, MFN_BASE + 10])).toBe(2);
  expect(guest.discards).toEqual([[21, 2]]);
  guest.machine.u8[11 * 4096] = 1;
  guest.discards.length = 0;
  expect(reserve(guest, POPULATE, [11])).toBe(1);
  expect(guest.discards).toEqual([[11, 1]]);
  expect(guest.machine.u8[11 * 4096]).toBe(0);
  expect(guest.machine.u8[13 * 4096]).toBe(0xaa);
});
