import { expect, test } from 'vitest';
import * as cb from '../../abi/callback.ts';
import { EFAULT, EINVAL, ENOSYS } from '../../abi/errno.ts';
import {
  CALLBACK_MASKS_FAILSAFE,
  CALLBACK_MASKS_SYSCALL,
  CALLBACK_MASKS_SYSCALL32,
  CALLBACK_MASKS_SYSENTER,
  VCPU,
} from '../../machine/vcpu-block.ts';
import { KERNEL_VA, TestGuest, UNMAPPED_VA, VA_HI, va } from '../testing.ts';
import { callbackOp } from './callback.ts';
import { nmiOp } from './nmi.ts';

const ARG = KERNEL_VA + 0x1000;

function register(guest: TestGuest, type: number, flags: number, lo: number, hi = VA_HI): number {
  guest.setWords(ARG, [(flags << 16) | type, 0, lo, hi]);
  return guest.call(callbackOp, cb.CALLBACKOP_register, va(ARG));
}

test('each type has its place and its bit', () => {
  const types: readonly (readonly [number, number, number])[] = [
    [cb.CALLBACKTYPE_event, VCPU.eventCallback, 0],
    [cb.CALLBACKTYPE_failsafe, VCPU.failsafeCallback, CALLBACK_MASKS_FAILSAFE],
    [cb.CALLBACKTYPE_syscall, VCPU.syscallCallback, CALLBACK_MASKS_SYSCALL],
    [cb.CALLBACKTYPE_syscall32, VCPU.syscall32Callback, CALLBACK_MASKS_SYSCALL32],
    [cb.CALLBACKTYPE_sysenter, VCPU.sysenterCallback, CALLBACK_MASKS_SYSENTER],
  ];
  for (const [type, offset, bit] of types) {
    const guest = new TestGuest();
    const u = guest.vcpu.block.u32;
    expect(register(guest, type, cb.CALLBACKF_mask_events, 0x81001000)).toBe(0);
    expect([u[offset >> 2], u[(offset >> 2) + 1]]).toEqual([0x81001000, VA_HI]);
    expect(u[VCPU.callbackFlags >> 2]).toBe(bit);
    expect(register(guest, type, 0, 0x1000, 0)).toBe(0);
    expect([u[offset >> 2], u[(offset >> 2) + 1]]).toEqual([0x1000, 0]);
    expect(u[VCPU.callbackFlags >> 2]).toBe(0);
    guest.setWords(ARG, [type]);
    expect(guest.call(callbackOp, cb.CALLBACKOP_unregister, va(ARG))).toBe(-EINVAL);
  }
});

test('the NMI callback is trap 2, by either hypercall', () => {
  const guest = new TestGuest();
  const trap = (): number[] => [...guest.vcpu.block.u32.slice((VCPU.traps >> 2) + 8, (VCPU.traps >> 2) + 12)];
  expect(register(guest, cb.CALLBACKTYPE_nmi, 0, 0x81002000)).toBe(0);
  expect(trap()).toEqual([0x81002000, VA_HI, 4, 0xe033]);
  expect(guest.call(callbackOp, cb.CALLBACKOP_unregister, va(ARG))).toBe(0);
  expect(trap()).toEqual([0, 0, 0, 0]);
  guest.setWords(ARG, [0x81003000, VA_HI, 0, 0]);
  expect(guest.call(nmiOp, cb.XENNMI_register_callback, va(ARG))).toBe(0);
  expect(trap()).toEqual([0x81003000, VA_HI, 4, 0xe033]);
  expect(guest.call(nmiOp, cb.XENNMI_unregister_callback, 0)).toBe(0);
  expect(trap()).toEqual([0, 0, 0, 0]);
});

test('refusals', () => {
  const guest = new TestGuest();
  expect(register(guest, cb.CALLBACKTYPE_event, 0, 0, 0x00800000)).toBe(-EINVAL);
  expect(register(guest, cb.CALLBACKTYPE_nmi, 0, 0, 0x00008000)).toBe(-EINVAL);
  for (const type of [3, 6, 8, 0xffff]) expect(register(guest, type, 0, 0x1000)).toBe(-ENOSYS);
  guest.setWords(ARG, [3]);
  expect(guest.call(callbackOp, cb.CALLBACKOP_unregister, va(ARG))).toBe(-ENOSYS);
  expect(guest.call(callbackOp, 2, va(ARG))).toBe(-ENOSYS);
  expect(guest.call(nmiOp, 2, va(ARG))).toBe(-ENOSYS);
  for (const cmd of [0, 1]) expect(guest.call(callbackOp, cmd, va(UNMAPPED_VA))).toBe(-EFAULT);
  expect(guest.call(nmiOp, 0, va(UNMAPPED_VA))).toBe(-EFAULT);
  guest.setWords(ARG, [0, 0x00008000, 0, 0]);
  expect(guest.call(nmiOp, 0, va(ARG))).toBe(-EINVAL);
});
