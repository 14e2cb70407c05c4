/**
 * IPv6 addresses and headers. Within the NAT an address of either family is a number: below IPV6_FIRST it is IPv4's, from there on one of
 * an `Ipv6Addresses` (ipv6-addresses.ts). Source: RFC 8200 (3), RFC 4291 (2), RFC 5952 (4).
 */

import { ETHERTYPE_IPV6, MAC_BYTES } from '../ethernet.ts';
import { IP, read16, write16 } from './ipv4.ts';

export const IPV6_HEADER_BYTES = 40;
export const IPV6_ADDRESS_BYTES = 16;
/** Where an IPv6 header has its next header, source and destination, in a frame. */
export const IPV6_NEXT_HEADER = IP + 6;
export const IPV6_HOP_LIMIT = IP + 7;
export const IPV6_SOURCE = IP + 8;
export const IPV6_DESTINATION = IP + 24;
/** Where the payload of a packet without extension headers starts in a frame. */
export const L4_IPV6 = IP + IPV6_HEADER_BYTES;
/** Source: RFC 8200 (5): what every link carries. */
export const IPV6_MTU_MIN = 1280;

export const IPV6_FIRST = 2 ** 32;
export const isIpv6 = (address: number): boolean => address >= IPV6_FIRST;

const HOP_LIMIT = 64;
const GROUPS = 8;

/** Writes Ethernet and IPv6 header but for the addresses. */
export function writeIpv6Header(
  b: Uint8Array,
  toMac: Uint8Array,
  fromMac: Uint8Array,
  nextHeader: number,
  payloadLength: number,
  hopLimit = HOP_LIMIT,
): void {
  for (let i = 0; i < MAC_BYTES; i++) {
    b[i] = toMac[i];
    b[MAC_BYTES + i] = fromMac[i];
  }
  write16(b, 12, ETHERTYPE_IPV6);
  b[IP] = 0x60;
  b[IP + 1] = b[IP + 2] = b[IP + 3] = 0;
  write16(b, IP + 4, payloadLength);
  b[IPV6_NEXT_HEADER] = nextHeader;
  b[IPV6_HOP_LIMIT] = hopLimit;
}

/** The 16 bytes of an address in text; null if it is none, or has a zone or an IPv4 address in it. */
export function parseIpv6(text: string): Uint8Array | null {
  const halves = text.split('::');
  if (halves.length > 2 || !/^[\da-fA-F:]{2,39}$/.test(text)) return null;
  const [head, tail] = halves.map((half) => (half === '' ? [] : half.split(':')));
  const missing = GROUPS - head.length - (tail?.length ?? 0);
  if (tail === undefined ? missing !== 0 : missing < 1) return null;
  const groups = tail === undefined ? head : [...head, ...new Array<string>(missing).fill('0'), ...tail];
  if (!groups.every((group) => /^[\da-fA-F]{1,4}$/.test(group))) return null;
  const bytes = new Uint8Array(IPV6_ADDRESS_BYTES);
  for (let i = 0; i < GROUPS; i++) write16(bytes, i * 2, Number.parseInt(groups[i], 16));
  return bytes;
}

/** The address at `at` as RFC 5952 has it: `::` for the first of the longest runs of zeros. */
export function formatIpv6(b: Uint8Array, at: number): string {
  const groups = Array.from({ length: GROUPS }, (_, i) => read16(b, at + i * 2).toString(16));
  let [first, longest] = [0, 1];
  for (let i = 0; i < GROUPS; i++) {
    let end = i;
    while (end < GROUPS && groups[end] === '0') end++;
    if (end - i > longest) [first, longest] = [i, end - i];
  }
  if (longest === 1) return groups.join(':');
  return `${groups.slice(0, first).join(':')}::${groups.slice(first + longest).join(':')}`;
}

export const isIpv6Multicast = (b: Uint8Array, at: number): boolean => b[at] === 0xff;
export const isIpv6LinkLocal = (b: Uint8Array, at: number): boolean => b[at] === 0xfe && (b[at + 1] & 0xc0) === 0x80;

export function isIpv6Unspecified(b: Uint8Array, at: number): boolean {
  for (let i = 0; i < IPV6_ADDRESS_BYTES; i++) if (b[at + i] !== 0) return false;
  return true;
}

/**
 * True for what the host must not be asked to connect to for the guest: groups, the host's own loopback, addresses of one link, and what the
 * host would take for an address of IPv4 (::/96, ::ffff:0:0/96), which may be its loopback as well.
 */
export function isIpv6Forbidden(b: Uint8Array, at: number): boolean {
  if (isIpv6Multicast(b, at) || isIpv6LinkLocal(b, at)) return true;
  for (let i = 0; i < 10; i++) if (b[at + i] !== 0) return false;
  const word = read16(b, at + 10);
  return word === 0 || word === 0xffff;
}
