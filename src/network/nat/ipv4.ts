/** IPv4 addresses and headers. Addresses are unsigned 32-bit numbers. Source: RFC 791. */

import { fold, writeIpv4Checksum } from '../checksum.ts';
import { ETHERTYPE_IPV4 } from '../ethernet.ts';

export const IPV4_HEADER_BYTES = 20;
/** Where the IPv4 packet starts in a frame. */
export const IP = 14;
/** Where the payload of a packet without options starts in a frame. */
export const L4 = IP + IPV4_HEADER_BYTES;

export const IP_MORE_FRAGMENTS = 0x2000;
export const IP_DONT_FRAGMENT = 0x4000;
export const IP_OFFSET_MASK = 0x1fff;

const TTL = 64;

export const read16 = (b: Uint8Array, at: number): number => (b[at] << 8) | b[at + 1];
export const read32 = (b: Uint8Array, at: number): number =>
  ((b[at] << 24) | (b[at + 1] << 16) | (b[at + 2] << 8) | b[at + 3]) >>> 0;

export function write16(b: Uint8Array, at: number, value: number): void {
  b[at] = value >>> 8;
  b[at + 1] = value;
}

export function write32(b: Uint8Array, at: number, value: number): void {
  b[at] = value >>> 24;
  b[at + 1] = value >>> 16;
  b[at + 2] = value >>> 8;
  b[at + 3] = value;
}

/** The number of `a.b.c.d`, or -1 when it is no such thing. */
export function parseIpv4(text: string): number {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (match === null) return -1;
  let value = 0;
  for (let i = 1; i <= 4; i++) {
    const byte = Number(match[i]);
    if (byte > 255) return -1;
    value = value * 256 + byte;
  }
  return value;
}

export function formatIpv4(address: number): string {
  return `${address >>> 24}.${(address >>> 16) & 255}.${(address >>> 8) & 255}.${address & 255}`;
}

/** Writes Ethernet and IPv4 header, checksum included. `fragment` is the field of flags and offset. */
export function writeHeaders(
  b: Uint8Array,
  toMac: Uint8Array,
  fromMac: Uint8Array,
  source: number,
  destination: number,
  protocol: number,
  payloadLength: number,
  identification: number,
  fragment: number,
): void {
  for (let i = 0; i < 6; i++) {
    b[i] = toMac[i];
    b[6 + i] = fromMac[i];
  }
  write16(b, 12, ETHERTYPE_IPV4);
  b[IP] = 0x45;
  b[IP + 1] = 0;
  write16(b, IP + 2, IPV4_HEADER_BYTES + payloadLength);
  write16(b, IP + 4, identification);
  write16(b, IP + 6, fragment);
  b[IP + 8] = TTL;
  b[IP + 9] = protocol;
  write32(b, IP + 12, source);
  write32(b, IP + 16, destination);
  writeIpv4Checksum(b, IP, IPV4_HEADER_BYTES);
}

/** The pseudo-header's sum for addresses as numbers. */
export function pseudoSum(source: number, destination: number, protocol: number, length: number): number {
  return fold(source + destination + protocol + length);
}
