/**
 * Neighbour discovery: gateway and name server answer for themselves, and the gateway tells the guest the network, so that it makes itself
 * an address. Router advertisements come when the guest asks, and every ten minutes as soon as it has said anything by IPv6, since a router
 * is one for a time only; a guest that was restored does not ask.
 *
 * Source: RFC 4861 (4.1-4.4, 6.2.6, 7.2.4), RFC 4862, RFC 8106 (name servers and search domains).
 */

import { MAC_BYTES } from '../ethernet.ts';
import { Frame } from '../frame.ts';
import { encodeNames } from './dhcp.ts';
import type { HostNetwork } from './host-network.ts';
import { sendIcmp6 } from './icmp6.ts';
import { write16, write32 } from './ipv4.ts';
import {
  IPV6_ADDRESS_BYTES,
  IPV6_DESTINATION,
  IPV6_HOP_LIMIT,
  IPV6_SOURCE,
  isIpv6LinkLocal,
  isIpv6Unspecified,
  L4_IPV6,
} from './ipv6.ts';
import { PREFIX_BYTES } from './ipv6-addresses.ts';
import type { Lan } from './lan.ts';

const ROUTER_SOLICITATION = 133;
const ROUTER_ADVERTISEMENT = 134;
const NEIGHBOUR_SOLICITATION = 135;
const NEIGHBOUR_ADVERTISEMENT = 136;

/** Who has gone through a router says another; so others' messages are known. */
const HOP_LIMIT = 255;
const ROUTER = 0x80;
const SOLICITED = 0x40;
const OVERRIDE = 0x20;

const OPTION_SOURCE_MAC = 1;
const OPTION_TARGET_MAC = 2;
const OPTION_PREFIX = 3;
const OPTION_MTU = 5;
const OPTION_DNS = 25;
const OPTION_SEARCH = 31;
const ON_LINK_AND_AUTONOMOUS = 0xc0;

const FIRST_MS = 16_000;
const INTERVAL_MS = 600_000;
const ROUTER_SECONDS = 9000;
const VALID_SECONDS = 86_400;
const PREFERRED_SECONDS = 14_400;
const MTU = 1500;

/** ff02::1, all nodes, and the MAC that goes with it. */
const ALL_NODES = Uint8Array.of(0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC = Uint8Array.of(0x33, 0x33, 0, 0, 0, 1);

const bytes = new Uint8Array(512);
const frame = new Frame();

export class Neighbours {
  readonly #lan: Lan;
  readonly #host: HostNetwork;
  #cancel: (() => void) | null = null;

  constructor(lan: Lan, host: HostNetwork) {
    this.#lan = lan;
    this.#host = host;
  }

  /** The guest speaks IPv6: from now on it is told in time that its router is one still. */
  heard(): void {
    if (this.#cancel === null) this.#advertiseIn(FIRST_MS);
  }

  #advertiseIn(ms: number): void {
    this.#cancel = this.#host.setTimer(ms, () => {
      this.#advertiseIn(INTERVAL_MS);
      this.#advertise();
      this.#lan.flush();
    });
  }

  close(): void {
    this.#cancel?.();
    this.#cancel = null;
  }

  /** An ICMPv6 message of the guest: false if it is none of neighbour discovery. */
  handle(b: Uint8Array, l4: number, end: number): boolean {
    const type = b[l4];
    if (type < ROUTER_SOLICITATION || type > NEIGHBOUR_ADVERTISEMENT + 1) return false;
    if (b[IPV6_HOP_LIMIT] !== HOP_LIMIT || b[l4 + 1] !== 0) return true;
    if (type === ROUTER_SOLICITATION && end - l4 >= 8) this.#advertise();
    if (type === NEIGHBOUR_SOLICITATION && end - l4 >= 8 + IPV6_ADDRESS_BYTES) this.#answer(b, l4 + 8);
    return true;
  }

  /** Answers who asks for the 16 bytes at `target`, if they are an address of ours. */
  #answer(b: Uint8Array, target: number): void {
    const { ipv6, gatewayMac } = this.#lan;
    if (!this.isOwn(b, target)) return;
    const address = b.subarray(target, target + IPV6_ADDRESS_BYTES);
    // Somebody who wants that address for itself has none yet.
    const isNobody = isIpv6Unspecified(b, IPV6_SOURCE);
    bytes.set(address, IPV6_SOURCE);
    bytes.set(isNobody ? ALL_NODES : b.subarray(IPV6_SOURCE, IPV6_SOURCE + IPV6_ADDRESS_BYTES), IPV6_DESTINATION);
    const isDns = ipv6.isLocal(b, target) && ipv6.find(b, target) === ipv6.dns;
    bytes[L4_IPV6] = NEIGHBOUR_ADVERTISEMENT;
    bytes[L4_IPV6 + 1] = 0;
    write32(bytes, L4_IPV6 + 4, 0);
    bytes[L4_IPV6 + 4] = (isDns ? 0 : ROUTER) | (isNobody ? 0 : SOLICITED) | OVERRIDE;
    bytes.set(address, L4_IPV6 + 8);
    putMac(L4_IPV6 + 24, OPTION_TARGET_MAC, gatewayMac);
    sendIcmp6(this.#lan, bytes, 32, HOP_LIMIT, frame, isNobody ? ALL_NODES_MAC : this.#lan.guestMac);
  }

  /** Whether the 16 bytes at `at` are an address of gateway or name server. */
  isOwn(b: Uint8Array, at: number): boolean {
    const { ipv6 } = this.#lan;
    if (isIpv6LinkLocal(b, at)) return ipv6.gatewayLinkLocal.every((byte, i) => b[at + i] === byte);
    if (!ipv6.isLocal(b, at)) return false;
    const address = ipv6.find(b, at);
    return address === ipv6.gateway || address === ipv6.dns;
  }

  /** To all, as the guest has perhaps no address yet. */
  #advertise(): void {
    const { ipv6, gatewayMac } = this.#lan;
    bytes.fill(0);
    bytes.set(ipv6.gatewayLinkLocal, IPV6_SOURCE);
    bytes.set(ALL_NODES, IPV6_DESTINATION);
    bytes[L4_IPV6] = ROUTER_ADVERTISEMENT;
    bytes[L4_IPV6 + 4] = 64;
    write16(bytes, L4_IPV6 + 6, ROUTER_SECONDS);
    let at = L4_IPV6 + 16;
    putMac(at, OPTION_SOURCE_MAC, gatewayMac);
    at += 8;
    bytes.set([OPTION_MTU, 1], at);
    write32(bytes, at + 4, MTU);
    at += 8;
    bytes.set([OPTION_PREFIX, 4, PREFIX_BYTES * 8, ON_LINK_AND_AUTONOMOUS], at);
    write32(bytes, at + 4, VALID_SECONDS);
    write32(bytes, at + 8, PREFERRED_SECONDS);
    ipv6.copyTo(ipv6.gateway, bytes, at + 16);
    bytes.fill(0, at + 16 + PREFIX_BYTES, at + 32);
    at += 32;
    bytes.set([OPTION_DNS, 3], at);
    write32(bytes, at + 4, ROUTER_SECONDS);
    ipv6.copyTo(ipv6.dns, bytes, at + 8);
    at += 24;
    const search = encodeNames(this.#host.searchDomains());
    if (search.length > 0) {
      const units = Math.ceil((8 + search.length) / 8);
      bytes.set([OPTION_SEARCH, units], at);
      write32(bytes, at + 4, ROUTER_SECONDS);
      bytes.set(search, at + 8);
      at += units * 8;
    }
    sendIcmp6(this.#lan, bytes, at - L4_IPV6, HOP_LIMIT, frame, ALL_NODES_MAC);
  }
}

function putMac(at: number, option: number, mac: Uint8Array): void {
  bytes.set([option, 1], at);
  for (let i = 0; i < MAC_BYTES; i++) bytes[at + 2 + i] = mac[i];
}
