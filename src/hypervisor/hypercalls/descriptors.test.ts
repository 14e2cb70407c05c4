import { expect, test } from 'vitest';
import { EFAULT, EINVAL } from '../../abi/errno.ts';
import { FIRST_RESERVED_GDT_ENTRY } from '../../abi/xen.ts';
import { MFN_BASE } from '../../machine/memory.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { KERNEL_VA, TestGuest, UNMAPPED_VA, va } from '../testing.ts';
import { setGdt, updateDescriptor } from './descriptors.ts';

const LIST = KERNEL_VA + 0x1000;
const GDT = KERNEL_VA + 10 * 4096;
/** 64-bit kernel code, DPL 0, and what becomes of it. */
const CODE = [0x0000ffff, 0x00af9b00] as const;
const CODE_DPL3 = 0x00affb00;
const TSS_HI = 0x00008900;

function load(guest: TestGuest, mfns: readonly number[], entries: number): number {
  guest.setWords(
    LIST,
    mfns.flatMap((mfn) => [mfn >>> 0, Math.floor(mfn / 0x100000000)]),
  );
  return guest.call(setGdt, va(LIST), entries);
}

test('set_gdt keeps frame indexes and forces DPL 3', () => {
  const guest = new TestGuest();
  guest.setWords(GDT + 8, CODE);
  expect(load(guest, [MFN_BASE + 10, MFN_BASE + 11], 513)).toBe(0);
  const u = guest.vcpu.block.u32;
  expect(u[VCPU.gdtEntries >> 2]).toBe(513);
  expect([...u.slice(VCPU.gdtFrames >> 2, (VCPU.gdtFrames >> 2) + 3)]).toEqual([10, 11, 0]);
  expect(guest.words(GDT + 8, 2)).toEqual([CODE[0], CODE_DPL3]);
  expect(guest.engine.descriptorTableChanges).toBe(1);
  expect(load(guest, [], 0)).toBe(0);
  expect(u[VCPU.gdtEntries >> 2]).toBe(0);
  expect(u[VCPU.gdtFrames >> 2]).toBe(0);
});

test('set_gdt refuses, and leaves the old table', () => {
  const guest = new TestGuest();
  expect(load(guest, [MFN_BASE + 10], 16)).toBe(0);
  expect(guest.call(setGdt, va(UNMAPPED_VA), FIRST_RESERVED_GDT_ENTRY + 1)).toBe(-EINVAL);
  expect(guest.call(setGdt, va(UNMAPPED_VA), 0xffffffff)).toBe(-EINVAL);
  expect(guest.call(setGdt, va(UNMAPPED_VA), 1)).toBe(-EFAULT);
  for (const mfn of [0, 10, MFN_BASE - 1, MFN_BASE + 64, MFN_BASE + 65, 2 ** 32 + MFN_BASE]) {
    expect(load(guest, [MFN_BASE + 11, mfn], 1024)).toBe(-EINVAL);
  }
  guest.domain.frameTypes[12] = 1;
  expect(load(guest, [MFN_BASE + 12], 1)).toBe(-EINVAL);
  guest.setWords(KERNEL_VA + 13 * 4096, [...CODE, 0, TSS_HI]);
  expect(load(guest, [MFN_BASE + 13], 1)).toBe(-EINVAL);
  expect(guest.word(KERNEL_VA + 13 * 4096 + 4)).toBe(CODE[1]);
  expect(guest.vcpu.block.u32[VCPU.gdtFrames >> 2]).toBe(10);
  expect(guest.vcpu.block.u32[VCPU.gdtEntries >> 2]).toBe(16);
});

const machine = (frame: number, offset: number): readonly [number, number] => [
  (((frame + MFN_BASE) << 12) | offset) >>> 0,
  (frame + MFN_BASE) >>> 20,
];

test('update_descriptor', () => {
  const guest = new TestGuest();
  expect(guest.call(updateDescriptor, machine(10, 0x18), CODE)).toBe(0);
  expect(guest.words(GDT + 0x18, 2)).toEqual([CODE[0], CODE_DPL3]);
  expect(guest.engine.descriptorTableChanges).toBe(0);
  expect(load(guest, [MFN_BASE + 10], 16)).toBe(0);
  expect(guest.call(updateDescriptor, machine(10, 0x18), [0, 0])).toBe(0);
  expect(guest.words(GDT + 0x18, 2)).toEqual([0, 0]);
  expect(guest.engine.descriptorTableChanges).toBe(2);
  // A call gate may stand there, but every use faults.
  expect(guest.call(updateDescriptor, machine(10, 8), [0x00100123, 0x0000ec00])).toBe(0);
  expect(guest.words(GDT + 8, 2)).toEqual([0x00130123, 0x00008c00]);
});

test('update_descriptor refuses', () => {
  const guest = new TestGuest();
  expect(guest.call(updateDescriptor, machine(10, 4), CODE)).toBe(-EINVAL);
  expect(guest.call(updateDescriptor, machine(10, 0), [0, TSS_HI])).toBe(-EINVAL);
  expect(guest.call(updateDescriptor, machine(10, 0), [0, 0x0000ec01])).toBe(-EINVAL);
  for (const frame of [-1, 64, 65]) expect(guest.call(updateDescriptor, machine(frame, 0), CODE)).toBe(-EINVAL);
  expect(guest.call(updateDescriptor, [0, 0], CODE)).toBe(-EINVAL);
  expect(guest.call(updateDescriptor, [0, 0xffffffff], CODE)).toBe(-EINVAL);
  guest.domain.frameTypes[10] = 4;
  expect(guest.call(updateDescriptor, machine(10, 0), CODE)).toBe(-EINVAL);
});
