import { expect, test } from 'vitest';
import { EFAULT, EINVAL, ENODEV, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM } from '../../abi/errno.ts';
import * as physdev from '../../abi/physdev.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { HOLE_HI, KERNEL_VA, TestGuest, UNMAPPED_VA, VA_HI, va } from '../testing.ts';
import { physdevOp } from './physdev.ts';

const ARG = KERNEL_VA + 0x1000;

test('set_iopl', () => {
  const guest = new TestGuest();
  guest.setWords(ARG, [1]);
  expect(guest.call(physdevOp, physdev.PHYSDEVOP_set_iopl, va(ARG))).toBe(0);
  expect(guest.vcpu.block.u32[VCPU.iopl >> 2]).toBe(1);
  for (const iopl of [4, 0xffffffff]) {
    guest.setWords(ARG, [iopl]);
    expect(guest.call(physdevOp, physdev.PHYSDEVOP_set_iopl, va(ARG))).toBe(-EINVAL);
  }
  expect(guest.call(physdevOp, physdev.PHYSDEVOP_set_iopl, va(UNMAPPED_VA))).toBe(-EFAULT);
  expect(guest.vcpu.block.u32[VCPU.iopl >> 2]).toBe(1);
});

test('set_iobitmap', () => {
  const guest = new TestGuest();
  const set = (words: readonly number[]): number => {
    guest.setWords(ARG, words);
    return guest.call(physdevOp, physdev.PHYSDEVOP_set_iobitmap, va(ARG));
  };
  expect(set([0x1000, VA_HI, 65536, 0])).toBe(0);
  expect(set([0x1000, VA_HI, 65537, 0])).toBe(-EINVAL);
  expect(set([0, HOLE_HI, 1, 0])).toBe(-EINVAL);
});

test('devices are refused, after a look at the argument', () => {
  const guest = new TestGuest();
  const refusals: readonly (readonly [number, number])[] = [
    [5, EINVAL],
    [8, EPERM],
    [9, EPERM],
    [10, EPERM],
    [12, EINVAL],
    [13, EPERM],
    [14, EPERM],
    [15, EPERM],
    [16, EPERM],
    [17, ENOSYS],
    [19, ENODEV],
    [20, EPERM],
    [21, EPERM],
    [23, ENOSPC],
    [27, ENODEV],
    [28, ENOSYS],
    [30, EPERM],
    [31, EPERM],
  ];
  for (const [cmd, errno] of refusals) {
    expect(guest.call(physdevOp, cmd, va(ARG))).toBe(-errno);
    expect(guest.call(physdevOp, cmd, va(UNMAPPED_VA))).toBe(-EFAULT);
  }
  for (const cmd of [24, 29]) expect(guest.call(physdevOp, cmd, va(ARG))).toBe(-EPERM);
  for (const cmd of [25, 26]) expect(guest.call(physdevOp, cmd, va(ARG))).toBe(-EOPNOTSUPP);
  for (const cmd of [0, 11, 22, 32, 0xffffffff]) expect(guest.call(physdevOp, cmd, va(ARG))).toBe(-ENOSYS);
});
