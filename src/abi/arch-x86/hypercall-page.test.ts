import { expect, test } from 'vitest';
import { fillHypercallPage } from './hypercall-page.ts';

const hexBytes = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');

test('every stub but iret saves rcx and r11 around SYSCALL', () => {
  const page = new Uint8Array(4096 + 1).fill(7);
  fillHypercallPage(page);
  for (let number = 0; number < 128; number++) {
    if (number === 23) continue;
    const code = `51 41 53 b8 ${hexBytes(Uint8Array.of(number))} 00 00 00 0f 05 41 5b 59 c3`;
    expect(hexBytes(page.subarray(number * 32, number * 32 + 32))).toBe(`${code}${' cc'.repeat(18)}`);
  }
  expect(page[4096]).toBe(7);
});

test('the iret stub pushes rcx, r11 and rax and does not return', () => {
  const page = new Uint8Array(4096);
  fillHypercallPage(page);
  expect(hexBytes(page.subarray(23 * 32, 24 * 32))).toBe(`51 41 53 50 b8 17 00 00 00 0f 05${' cc'.repeat(21)}`);
});

test('less than a page is refused', () => {
  expect(() => fillHypercallPage(new Uint8Array(4095))).toThrow(RangeError);
});
