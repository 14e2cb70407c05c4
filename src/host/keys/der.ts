/**
 * Writes ASN.1's distinguished encoding: what a certificate needs of it (certificate.ts). Nothing is read here; Node's X509Certificate does that.
 * Source: ITU-T X.690, 8 and 10.
 */

export type Der = Uint8Array;

const CONTEXT = 0x80;
const CONSTRUCTED = 0x20;

function encode(tag: number, content: Uint8Array): Der {
  const { length } = content;
  // 8.1.3: up to 127 in a byte, else how many bytes follow, and they.
  const size: number[] = [];
  for (let left = length; left > 0; left = Math.floor(left / 256)) size.unshift(left % 256);
  const header = length < 0x80 ? [tag, length] : [tag, 0x80 | size.length, ...size];
  return Uint8Array.from([...header, ...content]);
}

export function sequence(...items: readonly Der[]): Der {
  return encode(0x30, Buffer.concat(items));
}

export function set(...items: readonly Der[]): Der {
  return encode(0x31, Buffer.concat(items));
}

/** `magnitude`: big-endian, of a number that is not negative. */
export function integer(magnitude: Uint8Array): Der {
  let first = 0;
  while (first < magnitude.length - 1 && magnitude[first] === 0) first++;
  const digits = magnitude.subarray(first);
  // 8.3: the highest bit is the sign.
  return encode(0x02, digits[0] >= 0x80 ? Uint8Array.of(0, ...digits) : digits);
}

/** `text`: such as 2.5.29.17. */
export function oid(text: string): Der {
  const [first, second, ...rest] = text.split('.').map(Number);
  const bytes: number[] = [];
  for (const arc of [40 * first + second, ...rest]) {
    const digits = [arc % 128];
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) digits.unshift((left % 128) | 0x80);
    bytes.push(...digits);
  }
  return encode(0x06, Uint8Array.from(bytes));
}

export const TRUE: Der = Uint8Array.of(0x01, 1, 0xff);

/** `unused`: bits at the end that are none. */
export function bitString(bytes: Uint8Array, unused = 0): Der {
  return encode(0x03, Uint8Array.of(unused, ...bytes));
}

export function octetString(bytes: Uint8Array): Der {
  return encode(0x04, bytes);
}

export function utf8String(text: string): Der {
  return encode(0x0c, new TextEncoder().encode(text));
}

/** To the second. Source: RFC 5280, 4.1.2.5: two digits of the year until 2049. */
export function time(date: Date): Der {
  const digits = date.toISOString().replace(/\.\d+/, '').replaceAll(/[-:T]/g, '');
  const isShort = date.getUTCFullYear() < 2050;
  return encode(isShort ? 0x17 : 0x18, new TextEncoder().encode(isShort ? digits.slice(2) : digits));
}

/** Around what is whole. */
export function explicit(number: number, item: Der): Der {
  return encode(CONTEXT | CONSTRUCTED | number, item);
}

/** Instead of its own tag. */
export function implicit(number: number, content: Uint8Array): Der {
  return encode(CONTEXT | number, content);
}
