/**
 * What the guest sends by IPv6: its headers are checked and passed over, and what is in them goes where IPv4's goes. There is no
 * forwarding into the guest by IPv6, and it can reach no addresses of the link but the gateway's, for echo requests.
 *
 * Source: RFC 8200 (4: extension headers, 4.5: fragments).
 */

import { PROTOCOL_TCP, PROTOCOL_UDP } from '../packet.ts';
import { DNS_PORT, type DnsRelay } from './dns.ts';
import type { Fragments } from './fragments.ts';
import type { HostNetwork } from './host-network.ts';
import {
  ECHO_REQUEST,
  Icmp6,
  PROTOCOL_ICMPV6,
  UNREACHABLE_ADDRESS,
  UNREACHABLE_PORT,
  UNREACHABLE_PROHIBITED,
} from './icmp6.ts';
import { IP, read16, read32, write16 } from './ipv4.ts';
import {
  IPV6_DESTINATION,
  IPV6_HEADER_BYTES,
  IPV6_HOP_LIMIT,
  IPV6_NEXT_HEADER,
  IPV6_SOURCE,
  isIpv6Forbidden,
  isIpv6LinkLocal,
  isIpv6Multicast,
  isIpv6Unspecified,
  L4_IPV6,
  writeIpv6Header,
} from './ipv6.ts';
import type { Lan } from './lan.ts';
import { Neighbours } from './neighbours.ts';
import type { TcpRelay } from './tcp.ts';
import type { TcpFlow } from './tcp-flow.ts';
import { FRAGMENT_HEADER_BYTES, PROTOCOL_FRAGMENT, type UdpRelay } from './udp.ts';

const HOP_BY_HOP = 0;
const ROUTING = 43;
const DESTINATION_OPTIONS = 60;
const NO_NEXT_HEADER = 59;
const EXTENSIONS_MAX = 8;
/** Its own two, and what a neighbour is asked for. */
const ADDRESSES_PER_PACKET = 3;

export interface Ipv6SideOptions {
  readonly lan: Lan;
  readonly host: HostNetwork;
  readonly tcp: TcpRelay;
  readonly udp: UdpRelay;
  readonly dns: DnsRelay;
  readonly fragments: Fragments;
}

export class Ipv6Side {
  readonly #options: Ipv6SideOptions;
  readonly #icmp: Icmp6;
  readonly #neighbours: Neighbours;

  constructor(options: Ipv6SideOptions) {
    const { lan, host, tcp, udp, dns } = options;
    this.#options = options;
    this.#icmp = new Icmp6(lan, host);
    this.#neighbours = new Neighbours(lan, host);
    lan.ipv6.inUse = () => {
      const used = new Set<number>();
      for (const relay of [tcp, udp, dns]) relay.addAddresses(used);
      return used;
    };
  }

  close(): void {
    this.#neighbours.close();
  }

  /** A frame of `length` bytes. False: it is no IPv6 packet of the guest's. */
  handle(b: Uint8Array, length: number): boolean {
    if (length < L4_IPV6 || b[IP] >> 4 !== 6) return false;
    const end = L4_IPV6 + read16(b, IP + 4);
    if (end > length) return false;
    const { ipv6 } = this.#options.lan;
    ipv6.reserve(ADDRESSES_PER_PACKET);
    // What the guest says of itself must be true, or answers would go nowhere.
    const isOfLink = isIpv6Unspecified(b, IPV6_SOURCE) || isIpv6LinkLocal(b, IPV6_SOURCE);
    if (!isOfLink && !ipv6.isLocal(b, IPV6_SOURCE)) return false;
    if (this.#neighbours.isOwn(b, IPV6_SOURCE)) return false;
    this.#neighbours.heard();
    this.#headers(b, b[IPV6_NEXT_HEADER], IPV6_NEXT_HEADER, L4_IPV6, end, false);
    return true;
  }

  /** A connection of the guest's that the host cannot make. */
  tellUnreachable(flow: TcpFlow): void {
    const { lan } = this.#options;
    const b = new Uint8Array(L4_IPV6 + 8);
    writeIpv6Header(b, lan.gatewayMac, lan.guestMac, PROTOCOL_TCP, 8);
    lan.ipv6.copyTo(flow.guestIp, b, IPV6_SOURCE);
    lan.ipv6.copyTo(flow.remoteIp, b, IPV6_DESTINATION);
    write16(b, L4_IPV6, flow.guestPort);
    write16(b, L4_IPV6 + 2, flow.remotePort);
    this.#icmp.unreachable(b, UNREACHABLE_ADDRESS, b.length);
  }

  /** The headers from `at` on; the first is a `next`, which is said at `saidAt`. */
  #headers(b: Uint8Array, next: number, saidAt: number, at: number, end: number, isWhole: boolean): void {
    let first = next;
    for (let i = 0; first === HOP_BY_HOP || first === ROUTING || first === DESTINATION_OPTIONS; i++) {
      if (i === EXTENSIONS_MAX || at + 8 > end) return;
      first = b[at];
      saidAt = at;
      at += (b[at + 1] + 1) * 8;
    }
    if (at > end || first === NO_NEXT_HEADER) return;
    if (first === PROTOCOL_FRAGMENT && !isWhole) this.#fragment(b, at, end);
    else this.#packet(b, first, saidAt, at, end);
  }

  #fragment(b: Uint8Array, at: number, end: number): void {
    if (at + FRAGMENT_HEADER_BYTES > end || isIpv6Multicast(b, IPV6_DESTINATION)) return;
    const { lan, host, fragments } = this.#options;
    const protocol = b[at];
    const field = read16(b, at + 2);
    const from = at + FRAGMENT_HEADER_BYTES;
    const [offset, more] = [field & 0xfff8, (field & 1) !== 0];
    if (offset === 0 && !more) {
      this.#headers(b, protocol, at, from, end, true);
      return;
    }
    const [source, destination] = [lan.ipv6.find(b, IPV6_SOURCE), lan.ipv6.find(b, IPV6_DESTINATION)];
    const key = read32(b, at + 4) * 256 + protocol;
    const piece = { source, destination, key, offset, more };
    const whole = fragments.add(piece, b, L4_IPV6, from, end, host.nowMs());
    if (whole === null) return;
    whole.bytes[IPV6_NEXT_HEADER] = protocol;
    write16(whole.bytes, IP + 4, whole.length - IP - IPV6_HEADER_BYTES);
    this.#headers(whole.bytes, protocol, IPV6_NEXT_HEADER, L4_IPV6, whole.length, true);
  }

  #packet(b: Uint8Array, protocol: number, saidAt: number, l4: number, end: number): void {
    const { lan } = this.#options;
    if (protocol === PROTOCOL_ICMPV6 && end - l4 >= 8) {
      if (this.#neighbours.handle(b, l4, end)) return;
      if (b[l4] === ECHO_REQUEST && !isIpv6Unspecified(b, IPV6_SOURCE) && this.#neighbours.isOwn(b, IPV6_DESTINATION)) {
        this.#icmp.echo(b, l4, end);
        return;
      }
      // Errors, and what belongs to groups.
      if (b[l4] !== ECHO_REQUEST) return;
    }
    if (!lan.ipv6.isLocal(b, IPV6_SOURCE)) return;
    const isLocal = lan.ipv6.isLocal(b, IPV6_DESTINATION);
    if (isIpv6Forbidden(b, IPV6_DESTINATION) || (isLocal && !this.#neighbours.isOwn(b, IPV6_DESTINATION))) {
      this.#icmp.unreachable(b, UNREACHABLE_ADDRESS, end);
      return;
    }
    if (b[IPV6_HOP_LIMIT] <= 1 && !isLocal) {
      this.#icmp.timeExceeded(b, end);
      return;
    }
    switch (protocol) {
      case PROTOCOL_TCP:
        this.#tcp(b, l4, end);
        return;
      case PROTOCOL_UDP:
        this.#udp(b, l4, end);
        return;
      case PROTOCOL_ICMPV6:
        this.#icmp.unreachable(b, UNREACHABLE_PROHIBITED, end);
        return;
      default:
        this.#icmp.unknownHeader(b, saidAt, end);
    }
  }

  #tcp(b: Uint8Array, l4: number, end: number): void {
    const { lan, tcp } = this.#options;
    if (end - l4 < 20) return;
    const destination = lan.ipv6.find(b, IPV6_DESTINATION);
    if (lan.isDns(destination) && read16(b, l4 + 2) !== DNS_PORT)
      this.#icmp.unreachable(b, UNREACHABLE_PROHIBITED, end);
    else tcp.handle(b, lan.ipv6.find(b, IPV6_SOURCE), destination, l4, end);
  }

  #udp(b: Uint8Array, l4: number, end: number): void {
    const { lan, udp, dns } = this.#options;
    if (end - l4 < 8) return;
    const udpEnd = l4 + read16(b, l4 + 4);
    if (udpEnd < l4 + 8 || udpEnd > end) return;
    const destination = lan.ipv6.find(b, IPV6_DESTINATION);
    const source = lan.ipv6.find(b, IPV6_SOURCE);
    const isQuery = lan.isDns(destination) && read16(b, l4 + 2) === DNS_PORT;
    if (isQuery) dns.handle(b, source, destination, l4, udpEnd);
    else if (lan.isDns(destination) || !udp.handle(b, source, destination, l4, udpEnd))
      this.#icmp.unreachable(b, UNREACHABLE_PORT, end);
  }
}
