import { expect, test } from 'vitest';
import { fold, pseudoSum4, sumBytes, writeIpv4Checksum } from './checksum.ts';

/** Word by word, as RFC 1071 (1) says. */
function reference(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
    sum = (sum & 0xffff) + (sum >>> 16);
  }
  return sum;
}

test('the example of RFC 1071 (3)', () => {
  expect(sumBytes(Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7), 0, 8)).toBe(0xddf2);
});

test('any length at any alignment is what the words one by one give', () => {
  const bytes = Uint8Array.from({ length: 70_000 }, (_, i) => (i * 31 + (i >> 5) * 7) & 0xff);
  for (const start of [0, 1, 2, 3, 5])
    for (const count of [0, 1, 2, 3, 20, 63, 64, 65, 66, 67, 68, 1459, 1460, 8191, 65_535])
      expect(sumBytes(bytes, start, count), `${count} from ${start}`).toBe(
        reference(bytes.subarray(start, start + count)),
      );
});

test('the largest sum is folded exactly', () => {
  expect(sumBytes(new Uint8Array(65_536).fill(0xff), 0, 65_536)).toBe(0xffff);
  expect(fold(0xffffffff * 0x4000)).toBe(0xffff);
});

test('a header with its checksum sums to all ones', () => {
  const header = Uint8Array.from({ length: 34 }, (_, i) => i * 9);
  writeIpv4Checksum(header, 14, 20);
  expect(sumBytes(header, 14, 20)).toBe(0xffff);
  expect(pseudoSum4(header, 14, 6, 100)).toBe(fold(sumBytes(header, 26, 8) + 106));
});
