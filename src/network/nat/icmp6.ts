/**
 * ICMPv6: the gateway answers echo requests for itself and the name server, and tells the guest what cannot be reached.
 * Source: RFC 4443 (2.4, 3, 4).
 */

import { sumBytes } from '../checksum.ts';
import { Frame } from '../frame.ts';
import { ErrorRate } from './error-rate.ts';
import type { HostNetwork } from './host-network.ts';
import { IP, write16, write32 } from './ipv4.ts';
import {
  IPV6_ADDRESS_BYTES,
  IPV6_DESTINATION,
  IPV6_MTU_MIN,
  IPV6_SOURCE,
  isIpv6Multicast,
  isIpv6Unspecified,
  L4_IPV6,
  writeIpv6Header,
} from './ipv6.ts';
import type { Lan } from './lan.ts';

export const PROTOCOL_ICMPV6 = 58;
const UNREACHABLE = 1;
const TIME_EXCEEDED = 3;
const PARAMETER_PROBLEM = 4;
export const ECHO_REQUEST = 128;
const ECHO_REPLY = 129;

export const UNREACHABLE_PROHIBITED = 1;
export const UNREACHABLE_ADDRESS = 3;
export const UNREACHABLE_PORT = 4;
const UNKNOWN_NEXT_HEADER = 1;

const HEADER_BYTES = 8;
/** Of an echo request; larger ones come in fragments and go unanswered. */
const ECHO_BYTES_MAX = 1460;

const bytes = new Uint8Array(L4_IPV6 + ECHO_BYTES_MAX);
const frame = new Frame();

/** Sends the ICMPv6 message of `length` bytes that stands in `b` behind its addresses: fills in the rest. */
export function sendIcmp6(
  lan: Lan,
  b: Uint8Array,
  length: number,
  hopLimit: number,
  out: Frame,
  toMac = lan.guestMac,
): void {
  writeIpv6Header(b, toMac, lan.gatewayMac, PROTOCOL_ICMPV6, length, hopLimit);
  write16(b, L4_IPV6 + 2, 0);
  const pseudo = sumBytes(b, IPV6_SOURCE, 2 * IPV6_ADDRESS_BYTES) + PROTOCOL_ICMPV6 + length;
  const sum = (pseudo + sumBytes(b, L4_IPV6, length)) % 0xffff;
  write16(b, L4_IPV6 + 2, 0xffff - sum);
  lan.deliver(out.set(b, L4_IPV6 + length));
}

export class Icmp6 {
  readonly #lan: Lan;
  readonly #host: HostNetwork;
  readonly #errors = new ErrorRate();

  constructor(lan: Lan, host: HostNetwork) {
    this.#lan = lan;
    this.#host = host;
  }

  /** An echo request to one of the NAT's own addresses: ICMPv6 from `l4` to `end`. */
  echo(b: Uint8Array, l4: number, end: number): void {
    const length = end - l4;
    if (length < HEADER_BYTES || length > ECHO_BYTES_MAX) return;
    bytes.set(b.subarray(IPV6_DESTINATION, IPV6_DESTINATION + IPV6_ADDRESS_BYTES), IPV6_SOURCE);
    bytes.set(b.subarray(IPV6_SOURCE, IPV6_SOURCE + IPV6_ADDRESS_BYTES), IPV6_DESTINATION);
    bytes[L4_IPV6] = ECHO_REPLY;
    bytes[L4_IPV6 + 1] = 0;
    bytes.set(b.subarray(l4 + 4, end), L4_IPV6 + 4);
    sendIcmp6(this.#lan, bytes, length, 64, frame);
  }

  /** Tells the guest that the packet, which ends at `end`, did not get through. */
  unreachable(b: Uint8Array, code: number, end: number): void {
    this.#error(UNREACHABLE, code, 0, b, end);
  }

  timeExceeded(b: Uint8Array, end: number): void {
    this.#error(TIME_EXCEEDED, 0, 0, b, end);
  }

  /** `at`: where in the frame the next header stands that nobody knows. */
  unknownHeader(b: Uint8Array, at: number, end: number): void {
    this.#error(PARAMETER_PROBLEM, UNKNOWN_NEXT_HEADER, at - IP, b, end);
  }

  #error(type: number, code: number, value: number, original: Uint8Array, end: number): void {
    // Nobody is told of what went to a group, or came from nobody.
    if (isIpv6Multicast(original, IPV6_DESTINATION) || isIpv6Unspecified(original, IPV6_SOURCE)) return;
    if (!this.#errors.mayTell(this.#host.nowMs())) return;
    const lan = this.#lan;
    const quoted = Math.min(end - IP, IPV6_MTU_MIN - (L4_IPV6 - IP) - HEADER_BYTES);
    lan.ipv6.copyTo(lan.ipv6.gateway, bytes, IPV6_SOURCE);
    bytes.set(original.subarray(IPV6_SOURCE, IPV6_SOURCE + IPV6_ADDRESS_BYTES), IPV6_DESTINATION);
    bytes[L4_IPV6] = type;
    bytes[L4_IPV6 + 1] = code;
    write32(bytes, L4_IPV6 + 4, value);
    bytes.set(original.subarray(IP, IP + quoted), L4_IPV6 + HEADER_BYTES);
    sendIcmp6(lan, bytes, HEADER_BYTES + quoted, 64, frame);
  }
}
