/**
 * User-mode network: a guest's network device with the host's ordinary sockets behind it, without any right on the host. The guest
 * sees an Ethernet with a gateway that is also its DHCP server, and a name server:
 *
 *   x.y.z.2  the gateway; for TCP and UDP the host's 127.0.0.1, unless that is turned off
 *   x.y.z.3  the name server: hands queries to the host's
 *   x.y.z.15 the guest, by DHCP
 *
 * and the same hosts in an IPv6 network of its own (ipv6-addresses.ts), in which it makes itself an address (ipv6-side.ts).
 *
 * The layout is that of slirp (and so of QEMU's user network), which people know. Connections to anywhere else are made by the
 * host, so the guest reaches what the host reaches. From outside nothing gets in but by a forward.
 *
 * Not there: ICMP beyond echo and errors, IPv4 options (they are skipped), other protocols (the guest is told so by ICMP).
 * Checksums of the guest's TCP and UDP are not checked: they come from its own memory.
 */

import { sumBytes } from '../checksum.ts';
import { ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, isGroupAddress, MAC_BYTES } from '../ethernet.ts';
import { FRAME_BYTES_MAX, type Frame, type FramePort, type LinkStatistics, type NetworkEnd } from '../frame.ts';
import { PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP } from '../packet.ts';
import { handleArp } from './arp.ts';
import { DHCP_SERVER_PORT, handleDhcp } from './dhcp.ts';
import { DNS_PORT, DnsRelay } from './dns.ts';
import { type Forward, Forwards } from './forwards.ts';
import { Fragments } from './fragments.ts';
import type { HostNetwork } from './host-network.ts';
import { Icmp, UNREACHABLE_HOST, UNREACHABLE_PORT, UNREACHABLE_PROHIBITED, UNREACHABLE_PROTOCOL } from './icmp.ts';
import {
  formatIpv4,
  IP,
  IP_MORE_FRAGMENTS,
  IP_OFFSET_MASK,
  L4,
  read16,
  read32,
  write16,
  writeHeaders,
} from './ipv4.ts';
import { isIpv6 } from './ipv6.ts';
import { Ipv6Side } from './ipv6-side.ts';
import { Lan, type LanAddresses } from './lan.ts';
import { TcpRelay } from './tcp.ts';
import type { TcpFlow } from './tcp-flow.ts';
import { UdpRelay, UdpSender } from './udp.ts';

export interface NatOptions {
  readonly host: HostNetwork;
  readonly addresses: LanAddresses;
  /** The guest's network device's, for frames to a guest that has not been heard from. */
  readonly guestMac: Uint8Array;
  /** The gateway's addresses reach the host's loopback. */
  readonly loopback: boolean;
  /** Whether the device takes GSO frames as they are; may change. */
  readonly gso: () => boolean;
  readonly forwards: readonly Forward[];
  /** Gets one line when a forward is lost. */
  readonly log: (line: string) => void;
}

/** The usual layout on the /24 of `guestIp`. */
export function natAddresses(guestIp: number): LanAddresses {
  const network = (guestIp & 0xffffff00) >>> 0;
  const host = guestIp & 0xff;
  // The guest may be given one of the usual two itself.
  const free = [2, 3, 4, 5].filter((n) => n !== host);
  return { gatewayIp: network + free[0], dnsIp: network + free[1], guestIp, netmask: 0xffffff00 };
}

export class Nat implements NetworkEnd {
  readonly #options: NatOptions;
  readonly #lan: Lan;
  readonly #icmp: Icmp;
  readonly #udp: UdpRelay;
  readonly #dns: DnsRelay;
  readonly #tcp: TcpRelay;
  readonly #forwards: Forwards;
  readonly #fragments = new Fragments();
  readonly #ipv6: Ipv6Side;
  #whole: Uint8Array | null = null;

  constructor(options: NatOptions) {
    const { host, loopback } = options;
    this.#options = options;
    this.#lan = new Lan(options.addresses, options.guestMac);
    this.#icmp = new Icmp(this.#lan, host);
    const sender = new UdpSender(this.#lan);
    this.#udp = new UdpRelay(this.#lan, host, sender, loopback);
    this.#dns = new DnsRelay(this.#lan, host, sender);
    this.#tcp = new TcpRelay(this.#lan, host, {
      gso: options.gso,
      translate: (address) => this.#translate(address),
      hostUnreachable: (flow) => this.#tellUnreachable(flow),
    });
    const relays = { tcp: this.#tcp, udp: this.#udp, dns: this.#dns, fragments: this.#fragments };
    this.#ipv6 = new Ipv6Side({ lan: this.#lan, host, ...relays });
    this.#forwards = new Forwards(this.#lan, host, sender, this.#tcp, options.log);
  }

  get statistics(): LinkStatistics {
    return this.#lan.statistics;
  }

  /** Open connections and UDP ports, for those who watch. */
  get flows(): { readonly tcp: number; readonly udp: number } {
    return { tcp: this.#tcp.flowCount, udp: this.#udp.flowCount };
  }

  connect(device: FramePort): void {
    this.#lan.connect(device);
  }

  /** Once, before or after `connect`; a line for each forward that cannot be had. */
  async openForwards(): Promise<string[]> {
    const lines = await Promise.all(this.#options.forwards.map((forward) => this.#forwards.open(forward)));
    return lines.filter((line) => line !== null);
  }

  close(): void {
    this.#lan.connect(null);
    this.#ipv6.close();
    this.#forwards.close();
    this.#tcp.close();
    this.#udp.close();
    this.#dns.close();
  }

  #translate(address: number): string | null {
    const lan = this.#lan;
    // Port 53 of the name server, and nothing else of it.
    if (lan.isDns(address)) return this.#options.host.nameServers()[0] ?? null;
    if (lan.isGateway(address)) return this.#options.loopback ? (isIpv6(address) ? '::1' : '127.0.0.1') : null;
    return isIpv6(address) ? lan.ipv6.format(address) : formatIpv4(address);
  }

  /** True for addresses that the host must not be asked to connect to for the guest. */
  #isForbidden(destination: number): boolean {
    const first = destination >>> 24;
    if (first === 127 || first === 0 || first >= 224) return true;
    const { gatewayIp, dnsIp } = this.#lan.addresses;
    return this.#lan.isLocal(destination) && destination !== gatewayIp && destination !== dnsIp;
  }

  #tellUnreachable(flow: TcpFlow): void {
    if (isIpv6(flow.guestIp)) {
      this.#ipv6.tellUnreachable(flow);
      return;
    }
    const b = new Uint8Array(L4 + 8);
    const lan = this.#lan;
    writeHeaders(b, lan.gatewayMac, lan.guestMac, flow.guestIp, flow.remoteIp, PROTOCOL_TCP, 8, 0, 0);
    b[L4] = flow.guestPort >>> 8;
    b[L4 + 1] = flow.guestPort;
    b[L4 + 2] = flow.remotePort >>> 8;
    b[L4 + 3] = flow.remotePort;
    this.#icmp.unreachable(b, UNREACHABLE_HOST, b.length);
  }

  send(frame: Frame): boolean {
    const { statistics } = this.#lan;
    const length = frame.length;
    statistics.framesIn++;
    statistics.bytesIn += length;
    let b = frame.head;
    if (frame.tailLength > 0) {
      if (length > FRAME_BYTES_MAX) return true;
      this.#whole ??= new Uint8Array(FRAME_BYTES_MAX);
      b = this.#whole;
      frame.copyTo(b, 0);
    }
    if (length < IP) return true;
    // Only what is for the gateway; a guest with a bridge inside may send us more.
    if (!isGroupAddress(b, 0)) for (let i = 0; i < MAC_BYTES; i++) if (b[i] !== this.#lan.gatewayMac[i]) return true;
    if (isGroupAddress(b, MAC_BYTES)) return true;
    const type = read16(b, 12);
    if (type === ETHERTYPE_ARP) {
      this.#hear(b);
      handleArp(this.#lan, b, length);
    } else if (type === ETHERTYPE_IPV4) this.#ipv4(b, length);
    else if (type === ETHERTYPE_IPV6 && this.#ipv6.handle(b, length)) this.#hear(b);
    return true;
  }

  /** Notes where the guest is. */
  #hear(b: Uint8Array): void {
    const mac = this.#lan.guestMac;
    for (let i = 0; i < MAC_BYTES; i++) mac[i] = b[MAC_BYTES + i];
  }

  #ipv4(b: Uint8Array, length: number): void {
    if (length < L4 || b[IP] >> 4 !== 4) return;
    const header = (b[IP] & 15) * 4;
    const end = IP + read16(b, IP + 2);
    if (header < 20 || end > length || end < IP + header) return;
    if (sumBytes(b, IP, header) !== 0xffff) return;
    this.#hear(b);
    const source = read32(b, IP + 12);
    const destination = read32(b, IP + 16);
    const l4 = IP + header;
    const field = read16(b, IP + 6);
    if ((field & (IP_MORE_FRAGMENTS | IP_OFFSET_MASK)) === 0) {
      this.#packet(b, source, destination, l4, end);
      return;
    }
    const key = (read16(b, IP + 4) << 8) | b[IP + 9];
    const [offset, more] = [(field & IP_OFFSET_MASK) * 8, (field & IP_MORE_FRAGMENTS) !== 0];
    const piece = { source, destination, key, offset, more };
    const whole = this.#fragments.add(piece, b, L4, l4, end, this.#options.host.nowMs());
    if (whole === null) return;
    whole.bytes[IP] = 0x45;
    write16(whole.bytes, IP + 2, whole.length - IP);
    write16(whole.bytes, IP + 6, 0);
    this.#packet(whole.bytes, source, destination, L4, whole.length);
  }

  #packet(b: Uint8Array, source: number, destination: number, l4: number, end: number): void {
    const protocol = b[IP + 9];
    const { gatewayIp, dnsIp } = this.#lan.addresses;
    if (protocol === PROTOCOL_UDP && end - l4 >= 8) {
      const udpEnd = l4 + read16(b, l4 + 4);
      if (udpEnd < l4 + 8 || udpEnd > end) return;
      if (read16(b, l4 + 2) === DHCP_SERVER_PORT && (destination === 0xffffffff || destination === gatewayIp)) {
        handleDhcp(this.#lan, this.#options.host.searchDomains(), b, l4 + 8, udpEnd);
        return;
      }
      end = udpEnd;
    }
    // What the guest says of itself must be true, or answers would go nowhere.
    if (!this.#lan.isLocal(source) || source === gatewayIp || source === dnsIp) return;
    if (this.#isForbidden(destination)) {
      if (destination >>> 24 < 224 && destination >>> 24 !== 0) this.#icmp.unreachable(b, UNREACHABLE_HOST, end);
      return;
    }
    if (b[IP + 8] <= 1 && destination !== gatewayIp && destination !== dnsIp) {
      this.#icmp.timeExceeded(b, end);
      return;
    }
    switch (protocol) {
      case PROTOCOL_TCP:
        this.#tcpPacket(b, source, destination, l4, end);
        return;
      case PROTOCOL_UDP:
        this.#udpPacket(b, source, destination, l4, end);
        return;
      case PROTOCOL_ICMP:
        this.#icmp.handle(b, source, destination, l4, end);
        return;
      default:
        this.#icmp.unreachable(b, UNREACHABLE_PROTOCOL, end);
    }
  }

  #tcpPacket(b: Uint8Array, source: number, destination: number, l4: number, end: number): void {
    if (end - l4 < 20) return;
    if (destination === this.#lan.addresses.dnsIp && read16(b, l4 + 2) !== DNS_PORT)
      this.#icmp.unreachable(b, UNREACHABLE_PROHIBITED, end);
    else this.#tcp.handle(b, source, destination, l4, end);
  }

  #udpPacket(b: Uint8Array, source: number, destination: number, l4: number, end: number): void {
    if (end - l4 < 8) return;
    if (destination === this.#lan.addresses.dnsIp) {
      if (read16(b, l4 + 2) === DNS_PORT) this.#dns.handle(b, source, destination, l4, end);
      else this.#icmp.unreachable(b, UNREACHABLE_PORT, end);
      return;
    }
    if (this.#forwards.handle(b, source, destination, l4, end)) return;
    if (!this.#udp.handle(b, source, destination, l4, end)) this.#icmp.unreachable(b, UNREACHABLE_PORT, end);
  }

  flush(): void {
    this.#tcp.endBatch();
    this.#lan.flush();
  }

  room(): void {
    if (this.#lan.room()) this.#tcp.room();
    this.#lan.flush();
  }
}
