import { expect, test } from 'vitest';
import { EINVAL, ENODEV, EPERM } from '../../abi/errno.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { HOLE_HI, TestGuest, VA_HI } from '../testing.ts';
import { RESULT_IN_RAX } from '../vcpu.ts';
import { getDebugreg, setDebugreg } from './debug-registers.ts';
import { fpuTaskswitch } from './fpu.ts';

function read(guest: TestGuest, reg: number): number[] {
  expect(guest.call(getDebugreg, reg)).toBe(RESULT_IN_RAX);
  return [...guest.vcpu.block.u32.slice(VCPU.gpr >> 2, (VCPU.gpr >> 2) + 2)];
}

test('addresses', () => {
  const guest = new TestGuest();
  for (let reg = 0; reg < 4; reg++) {
    expect(guest.call(setDebugreg, reg, [0x81000000 + reg, VA_HI])).toBe(0);
    expect(read(guest, reg)).toEqual([0x81000000 + reg, VA_HI]);
  }
  expect(guest.engine.debugRegisterChanges).toBe(4);
  for (const hi of [HOLE_HI, 0x00008000, 0xffff87ff, 0xfff00000])
    expect(guest.call(setDebugreg, 0, [0, hi])).toBe(-EPERM);
  expect(guest.call(setDebugreg, 1, [0, 0xffff8800])).toBe(0);
});

test('DR6 and DR7 keep their fixed bits; DR4 and DR5 are names of them', () => {
  const guest = new TestGuest();
  expect(guest.call(setDebugreg, 6, 0x1001)).toBe(0);
  expect(read(guest, 6)).toEqual([0xffff0ff1, 0]);
  expect(read(guest, 4)).toEqual([0xffff0ff1, 0]);
  expect(guest.call(setDebugreg, 5, 0xd801)).toBe(0);
  expect(read(guest, 7)).toEqual([0x401, 0]);
  expect(read(guest, 5)).toEqual([0x401, 0]);
  expect(guest.call(setDebugreg, 7, 0x2000)).toBe(-EPERM);
  for (const reg of [4, 5, 6, 7]) expect(guest.call(setDebugreg, reg, [0, 1])).toBe(-EINVAL);
});

test('I/O breakpoints need CR4.DE, and are kept from the CPU', () => {
  const guest = new TestGuest();
  const u = guest.vcpu.block.u32;
  const ioInDr1 = 0x0020000c | 1;
  expect(guest.call(setDebugreg, 7, ioInDr1)).toBe(-EPERM);
  u[VCPU.cr4 >> 2] = 8;
  expect(guest.call(setDebugreg, 7, ioInDr1)).toBe(0);
  expect(u[(VCPU.dr >> 2) + 14]).toBe(0x00200401);
  expect(read(guest, 7)).toEqual([0x0020040d, 0]);
  for (const reg of [4, 5]) {
    expect(guest.call(setDebugreg, reg, 0)).toBe(-ENODEV);
    expect(guest.call(getDebugreg, reg)).toBe(-ENODEV);
  }
});

test('there is no ninth register', () => {
  const guest = new TestGuest();
  for (const reg of [8, 15, 0xffffffff]) {
    expect(guest.call(setDebugreg, reg, 0)).toBe(-ENODEV);
    expect(guest.call(getDebugreg, reg)).toBe(-ENODEV);
  }
});

test('fpu_taskswitch sets and clears CR0.TS', () => {
  const guest = new TestGuest();
  expect(guest.call(fpuTaskswitch, 1)).toBe(0);
  expect(guest.vcpu.block.u32[VCPU.cr0Ts >> 2]).toBe(8);
  expect(guest.call(fpuTaskswitch, 0)).toBe(0);
  expect(guest.vcpu.block.u32[VCPU.cr0Ts >> 2]).toBe(0);
});
