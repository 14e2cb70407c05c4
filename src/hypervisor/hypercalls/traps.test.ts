import { expect, test } from 'vitest';
import { EFAULT, EINVAL } from '../../abi/errno.ts';
import { MFN_BASE } from '../../machine/memory.ts';
import { FLAG_STOP, VCPU } from '../../machine/vcpu-block.ts';
import { KERNEL_VA, TestGuest, UNMAPPED_VA, VA_HI, va } from '../testing.ts';
import { setCallbacks, setTrapTable } from './traps.ts';

const TABLE = KERNEL_VA + 0x1000;

const trap = (guest: TestGuest, vector: number): number[] => {
  const at = (VCPU.traps >> 2) + vector * 4;
  return [...guest.vcpu.block.u32.slice(at, at + 4)];
};
const entry = (vector: number, flags: number, cs: number, lo: number, hi = VA_HI): number[] => [
  ((cs << 16) | (flags << 8) | vector) >>> 0,
  0,
  lo,
  hi,
];

test('entries are merged up to the one with address 0', () => {
  const guest = new TestGuest();
  guest.setWords(TABLE, [...entry(14, 4, 0x10, 0x81000000), ...entry(255, 3, 0x33, 0x81000100), 0, 0, 0, 0]);
  expect(guest.call(setTrapTable, va(TABLE))).toBe(0);
  expect(trap(guest, 14)).toEqual([0x81000000, VA_HI, 4, 0x13]);
  expect(trap(guest, 255)).toEqual([0x81000100, VA_HI, 3, 0x33]);
  guest.setWords(TABLE, [...entry(14, 0, 0x10, 0x81000200), 0, 0, 0, 0]);
  expect(guest.call(setTrapTable, va(TABLE))).toBe(0);
  expect(trap(guest, 14)).toEqual([0x81000200, VA_HI, 0, 0x13]);
  expect(trap(guest, 255)).toEqual([0x81000100, VA_HI, 3, 0x33]);
  expect(guest.call(setTrapTable, 0)).toBe(0);
  expect(trap(guest, 255)).toEqual([0, 0, 0, 0]);
});

test('bad tables', () => {
  const guest = new TestGuest();
  expect(guest.call(setTrapTable, va(UNMAPPED_VA))).toBe(-EFAULT);
  guest.setWords(TABLE, [...entry(1, 0, 0x10, 0x1000), ...entry(2, 0, 0x10, 0, 0x00008000), 0, 0, 0, 0]);
  expect(guest.call(setTrapTable, va(TABLE))).toBe(-EINVAL);
  expect(trap(guest, 1)[0]).toBe(0x1000);
  expect(trap(guest, 2)).toEqual([0, 0, 0, 0]);
});

test('a table without an end ends with the mapping, or with a stop request', () => {
  const guest = new TestGuest();
  for (let i = 0; i < 256; i++) guest.setWords(TABLE + i * 16, entry(i, 0, 0x10, 0x1000));
  guest.map(KERNEL_VA + 0x2000, VA_HI, 0, 0);
  expect(guest.call(setTrapTable, va(TABLE))).toBe(-EFAULT);
  for (let page = 2; page < 30; page++) guest.map(KERNEL_VA + page * 4096, VA_HI, MFN_BASE + 1);
  guest.vcpu.block.i32[VCPU.flags >> 2] = FLAG_STOP;
  expect(guest.call(setTrapTable, va(TABLE))).toBe(0);
});

test('set_callbacks passes over what is not canonical', () => {
  const guest = new TestGuest();
  const u = guest.vcpu.block.u32;
  expect(guest.call(setCallbacks, va(0x1000), [0, 0x00800000], va(0x3000))).toBe(0);
  expect(u[VCPU.eventCallback >> 2]).toBe(0x1000);
  expect(u[VCPU.failsafeCallback >> 2]).toBe(0);
  expect(u[VCPU.syscallCallback >> 2]).toBe(0x3000);
});
