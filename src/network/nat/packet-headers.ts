/** Headers of packets of either family, from the far side to the guest or the other way round. */

import { fold, sumBytes } from '../checksum.ts';
import { MTU } from '../frame.ts';
import { IPV4_HEADER_BYTES, L4, pseudoSum, writeHeaders } from './ipv4.ts';
import {
  IPV6_ADDRESS_BYTES,
  IPV6_DESTINATION,
  IPV6_HEADER_BYTES,
  IPV6_SOURCE,
  isIpv6,
  L4_IPV6,
  writeIpv6Header,
} from './ipv6.ts';
import type { Lan } from './lan.ts';

/** The largest payload of IP in a frame. */
export const payloadMax = (address: number): number => MTU - (isIpv6(address) ? IPV6_HEADER_BYTES : IPV4_HEADER_BYTES);

/** Writes Ethernet and IP header of a whole packet to the guest; where its payload starts. `field`: flags, for IPv4. */
export function writePacketHeaders(
  b: Uint8Array,
  lan: Lan,
  source: number,
  destination: number,
  protocol: number,
  payloadLength: number,
  identification: number,
  field: number,
): number {
  const { guestMac, gatewayMac } = lan;
  if (!isIpv6(source)) {
    writeHeaders(b, guestMac, gatewayMac, source, destination, protocol, payloadLength, identification, field);
    return L4;
  }
  writeIpv6Header(b, guestMac, gatewayMac, protocol, payloadLength);
  lan.ipv6.copyTo(source, b, IPV6_SOURCE);
  lan.ipv6.copyTo(destination, b, IPV6_DESTINATION);
  return L4_IPV6;
}

/** The pseudo-header's sum of the packet whose headers stand in `b`. */
export function pseudoSumOf(
  b: Uint8Array,
  source: number,
  destination: number,
  protocol: number,
  length: number,
): number {
  if (!isIpv6(source)) return pseudoSum(source, destination, protocol, length);
  return fold(sumBytes(b, IPV6_SOURCE, 2 * IPV6_ADDRESS_BYTES) + protocol + length);
}
