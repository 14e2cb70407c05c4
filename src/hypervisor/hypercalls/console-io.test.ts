import { expect, test } from 'vitest';
import { E2BIG, EFAULT, ENOSYS } from '../../abi/errno.ts';
import { MFN_BASE } from '../../machine/memory.ts';
import { DOMAIN } from '../domain.ts';
import { HOLE_HI, KERNEL_VA, TestGuest, UNMAPPED_VA, VA_HI, va } from '../testing.ts';
import { consoleIo } from './console-io.ts';

const BUFFER = KERNEL_VA + 0x1000;

function write(guest: TestGuest, text: string): number {
  for (let i = 0; i < text.length; i++) guest.machine.u8[0x1000 + i] = text.charCodeAt(i);
  return guest.call(consoleIo, 0, text.length, va(BUFFER));
}

function ring(guest: TestGuest): string {
  const producer = guest.domain.u32[DOMAIN.consoleIoProducer >> 2];
  return String.fromCharCode(...guest.domain.u8.slice(DOMAIN.consoleIoRing, DOMAIN.consoleIoRing + producer));
}

test('text goes to the ring, without what a terminal would act on', () => {
  const guest = new TestGuest();
  expect(write(guest, 'hello\n')).toBe(0);
  expect(write(guest, '\x1b[2J\tworld\r\n\x7f')).toBe(0);
  expect(ring(guest)).toBe('hello\n[2J\tworld\n');
  expect(guest.domain.i32[DOMAIN.doorbell >> 2]).toBe(2);
});

test('the ring wraps; the producer counts on', () => {
  const guest = new TestGuest();
  guest.machine.u8.fill(0x61, 0x1000, 0x9000);
  expect(guest.call(consoleIo, 0, 0x6000, va(BUFFER))).toBe(0);
  expect(guest.domain.u32[DOMAIN.consoleIoProducer >> 2]).toBe(0x6000);
  expect(guest.domain.u8[DOMAIN.frameTypes]).toBe(0);
  expect(guest.domain.u8[DOMAIN.consoleIoRing - 1]).toBe(0);
});

test('a fault ends a write: what was before it is out', () => {
  const guest = new TestGuest();
  guest.map(KERNEL_VA + 0x2000, VA_HI, MFN_BASE, 0);
  guest.machine.u8.fill(0x62, 0x1000, 0x2000);
  expect(guest.call(consoleIo, 0, 0xffffffff, va(BUFFER))).toBe(-EFAULT);
  expect(guest.domain.u32[DOMAIN.consoleIoProducer >> 2]).toBe(4096);
  expect(guest.call(consoleIo, 0, 1, va(UNMAPPED_VA))).toBe(-EFAULT);
  expect(guest.call(consoleIo, 0, 1, [0, HOLE_HI])).toBe(-EFAULT);
});

test('nothing to write, nothing to read, and no other command', () => {
  const guest = new TestGuest();
  expect(guest.call(consoleIo, 0, 0, va(UNMAPPED_VA))).toBe(0);
  expect(guest.call(consoleIo, 1, 100, va(BUFFER))).toBe(0);
  expect(guest.call(consoleIo, 1, 0x80000000, va(BUFFER))).toBe(-E2BIG);
  expect(guest.call(consoleIo, 2, 1, va(BUFFER))).toBe(-ENOSYS);
});
