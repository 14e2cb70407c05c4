/**
 * The Internet checksum: ones' complement sum of 16-bit words. Source: RFC 1071, whose section 2 allows any order and wider words.
 *
 * Words are summed as the host reads them (little-endian on all that runs Node or a browser) and swapped at the end. A sum of
 * 32-bit words stays an exact number: 65535 bytes are at most 2^14 words of 2^32.
 */

const SCRATCH_BYTES = 65536 + 64;
const scratch = new Uint8Array(SCRATCH_BYTES);
const scratchWords = new Uint32Array(scratch.buffer);

/** Folds a sum of 32-bit or 16-bit words to 16 bits. `sum` is a non-negative integer. */
export function fold(sum: number): number {
  // The high part of a large number is taken by division, because shifts see 32 bits.
  let folded = (sum % 0x10000) + (Math.floor(sum / 0x10000) % 0x10000) + Math.floor(sum / 0x100000000);
  while (folded > 0xffff) folded = (folded & 0xffff) + (folded >>> 16);
  return folded;
}

const swap16 = (value: number): number => ((value & 0xff) << 8) | (value >>> 8);

/**
 * Sum of `count` bytes from `start`, folded to 16 bits, not complemented, as big-endian words; an odd last byte is the high one.
 * For `count` up to 65536.
 */
export function sumBytes(bytes: Uint8Array, start: number, count: number): number {
  if (count <= 64) {
    let sum = 0;
    const even = count & ~1;
    for (let i = 0; i < even; i += 2) sum += (bytes[start + i] << 8) | bytes[start + i + 1];
    if (count & 1) sum += bytes[start + count - 1] << 8;
    return fold(sum);
  }
  let words: Uint32Array = scratchWords;
  const at = bytes.byteOffset + start;
  if ((at & 3) === 0) {
    words = new Uint32Array(bytes.buffer, at, count >>> 2);
  } else {
    scratch.set(bytes.subarray(start, start + count));
  }
  const end = count >>> 2;
  let sum = 0;
  // Two accumulators let the additions overlap.
  let other = 0;
  let first = 0;
  for (; first + 1 < end; first += 2) {
    sum += words[first];
    other += words[first + 1];
  }
  if (first < end) sum += words[first];
  let total = fold(sum + other);
  const rest = start + (end << 2);
  const left = count & 3;
  if (left > 0) total += bytes[rest] | (left > 1 ? bytes[rest + 1] << 8 : 0);
  if (left > 2) total += bytes[rest + 2];
  return swap16(fold(total));
}

/** The pseudo-header's sum for IPv4. `header` is where the IP header lies; `length` that of the TCP or UDP part. */
export function pseudoSum4(bytes: Uint8Array, header: number, protocol: number, length: number): number {
  return fold(sumBytes(bytes, header + 12, 8) + protocol + length);
}

/** The pseudo-header's sum for IPv6. */
export function pseudoSum6(bytes: Uint8Array, header: number, protocol: number, length: number): number {
  return fold(sumBytes(bytes, header + 8, 32) + protocol + length);
}

/** Writes the checksum of the IPv4 header at `header`, which is `length` bytes long. */
export function writeIpv4Checksum(bytes: Uint8Array, header: number, length: number): void {
  bytes[header + 10] = 0;
  bytes[header + 11] = 0;
  const sum = sumBytes(bytes, header, length) ^ 0xffff;
  bytes[header + 10] = sum >>> 8;
  bytes[header + 11] = sum & 0xff;
}
