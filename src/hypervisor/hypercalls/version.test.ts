import { expect, test } from 'vitest';
import { EFAULT, EINVAL, ENOSYS, EPERM } from '../../abi/errno.ts';
import { XEN_COMPILE_INFO } from '../../abi/version.ts';
import { HOLE_HI, KERNEL_VA, READ_ONLY_VA, TEST_UUID, TestGuest, UNMAPPED_VA, va } from '../testing.ts';
import { XEN_CAPABILITIES, XEN_EXTRAVERSION, xenVersion } from './version.ts';

const BUFFER = KERNEL_VA + 0x2000;

test('XENVER_version is 4.17, whatever the pointer', () => {
  const guest = new TestGuest();
  expect(guest.call(xenVersion, 0, va(UNMAPPED_VA))).toBe(0x00040011);
});

test('strings fill their fields', () => {
  const guest = new TestGuest();
  guest.machine.u8.fill(0xff, 0x2000, 0x3000);
  expect(guest.call(xenVersion, 1, va(BUFFER))).toBe(0);
  expect(guest.text(BUFFER, 16)).toBe(XEN_EXTRAVERSION);
  expect(guest.machine.u8[0x2000 + 15]).toBe(0);
  expect(guest.machine.u8[0x2000 + 16]).toBe(0xff);
  expect(guest.call(xenVersion, 3, va(BUFFER))).toBe(0);
  expect(guest.text(BUFFER, 1024)).toBe(XEN_CAPABILITIES);
  expect(guest.machine.u8[0x2000 + 1024]).toBe(0xff);
  expect(guest.call(xenVersion, 2, va(BUFFER))).toBe(0);
  expect(guest.text(BUFFER + XEN_COMPILE_INFO.compile_by, 16)).toBe('domus');
  expect(guest.call(xenVersion, 4, va(BUFFER))).toBe(0);
  expect(guest.text(BUFFER, 64)).toBe('');
  expect(guest.call(xenVersion, 9, va(BUFFER))).toBe(0);
  expect(guest.text(BUFFER, 64)).toBe('<denied>');
});

test('numbers: platform parameters, features, page size, handle', () => {
  const guest = new TestGuest();
  expect(guest.call(xenVersion, 5, va(BUFFER))).toBe(0);
  expect(guest.words(BUFFER, 2)).toEqual([0, 0xffff8000]);
  guest.setWords(BUFFER, [0, 0]);
  expect(guest.call(xenVersion, 6, va(BUFFER))).toBe(0);
  // Bits 5 and 7: Linux does not start without. 2 and 3: it must not see them.
  expect(guest.words(BUFFER, 2)).toEqual([0, 0x220f0]);
  guest.setWords(BUFFER, [1, 0]);
  expect(guest.call(xenVersion, 6, va(BUFFER))).toBe(-EINVAL);
  expect(guest.call(xenVersion, 7, 0)).toBe(4096);
  expect(guest.call(xenVersion, 7, va(BUFFER))).toBe(-EINVAL);
  expect(guest.call(xenVersion, 8, va(BUFFER))).toBe(0);
  expect(guest.machine.u8.slice(0x2000, 0x2010)).toEqual(TEST_UUID);
});

test('refusals', () => {
  const guest = new TestGuest();
  expect(guest.call(xenVersion, 10, va(BUFFER))).toBe(-EPERM);
  for (const cmd of [11, 12, 13, 14, 0xffffffff]) expect(guest.call(xenVersion, cmd, va(BUFFER))).toBe(-ENOSYS);
});

test('-EFAULT for a pointer that cannot be written', () => {
  const guest = new TestGuest();
  for (const cmd of [1, 2, 3, 4, 5, 6, 8, 9]) {
    expect(guest.call(xenVersion, cmd, va(UNMAPPED_VA))).toBe(-EFAULT);
    expect(guest.call(xenVersion, cmd, va(READ_ONLY_VA))).toBe(-EFAULT);
    expect(guest.call(xenVersion, cmd, [0, HOLE_HI])).toBe(-EFAULT);
    expect(guest.call(xenVersion, cmd, [0, 0x00800000])).toBe(-EFAULT);
    expect(guest.call(xenVersion, cmd, va(0xfffffffe))).toBe(-EFAULT);
  }
});
