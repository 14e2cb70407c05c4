/**
 * UDP through the host. Each port of the guest is one datagram socket of the host, so that answers come from wherever the guest
 * wrote to and programs that tell others their address work; a socket goes when nothing went through it for a minute. The
 * gateway's address stands for the host's loopback. Source: RFC 768, RFC 4787 (mapping that is independent of the endpoint; a
 * timer of more than two minutes is only a recommendation, and few programs notice).
 */

import { sumBytes } from '../checksum.ts';
import { CHECKSUM_PARTIAL, Frame } from '../frame.ts';
import { PROTOCOL_UDP } from '../packet.ts';
import type { HostDatagram, HostNetwork } from './host-network.ts';
import { formatIpv4, IP_MORE_FRAGMENTS, parseIpv4, read16, write16, write32, writeHeaders } from './ipv4.ts';
import { isIpv6, L4_IPV6 } from './ipv6.ts';
import type { Lan } from './lan.ts';
import { payloadMax, pseudoSumOf, writePacketHeaders } from './packet-headers.ts';

const FLOWS_MAX = 512;
const IDLE_MS = 60_000;
const SWEEP_MS = 10_000;
const HEADER_BYTES = 8;
const PAYLOAD_MAX = 65507;
/** Source: RFC 8200 (4.5). */
export const PROTOCOL_FRAGMENT = 44;
export const FRAGMENT_HEADER_BYTES = 8;

interface UdpFlow {
  readonly key: number;
  readonly guestIp: number;
  readonly guestPort: number;
  readonly socket: HostDatagram;
  lastMs: number;
}

/** Sends a UDP datagram to the guest, in fragments when it must. */
export class UdpSender {
  readonly #lan: Lan;
  readonly #frame = new Frame();
  readonly #header = new Uint8Array(L4_IPV6 + HEADER_BYTES);
  readonly #datagram = new Uint8Array(HEADER_BYTES + PAYLOAD_MAX);

  constructor(lan: Lan) {
    this.#lan = lan;
  }

  send(source: number, sourcePort: number, guestIp: number, guestPort: number, payload: Uint8Array): void {
    const length = HEADER_BYTES + payload.length;
    if (payload.length > PAYLOAD_MAX) return;
    const h = this.#header;
    const identification = this.#lan.nextIdentification();
    const l4 = writePacketHeaders(h, this.#lan, source, guestIp, PROTOCOL_UDP, length, identification, 0);
    write16(h, l4, sourcePort);
    write16(h, l4 + 2, guestPort);
    write16(h, l4 + 4, length);
    const sum = pseudoSumOf(h, source, guestIp, PROTOCOL_UDP, length);
    write16(h, l4 + 6, sum);
    if (length > payloadMax(source)) {
      this.#sendFragments(source, guestIp, l4, payload);
      return;
    }
    const frame = this.#frame.set(h, l4 + HEADER_BYTES).setTail(payload, 0, payload.length);
    frame.checksum = CHECKSUM_PARTIAL;
    this.#lan.deliver(frame);
  }

  /** The header of UDP stands at `l4` of the headers. */
  #sendFragments(source: number, guestIp: number, l4: number, payload: Uint8Array): void {
    const lan = this.#lan;
    const d = this.#datagram;
    const h = this.#header;
    const length = HEADER_BYTES + payload.length;
    d.set(h.subarray(l4, l4 + HEADER_BYTES));
    d.set(payload, HEADER_BYTES);
    // Nobody completes the checksum of a fragment.
    write16(d, 6, sumBytes(d, 0, length) ^ 0xffff || 0xffff);
    const identification = lan.nextIdentification();
    const extra = isIpv6(source) ? FRAGMENT_HEADER_BYTES : 0;
    // A multiple of 8.
    const most = (payloadMax(source) - extra) & ~7;
    for (let at = 0; at < length; at += most) {
      const count = Math.min(most, length - at);
      const more = at + count < length;
      if (isIpv6(source)) {
        writePacketHeaders(h, lan, source, guestIp, PROTOCOL_FRAGMENT, extra + count, 0, 0);
        write16(h, l4, PROTOCOL_UDP << 8);
        write16(h, l4 + 2, at | (more ? 1 : 0));
        write32(h, l4 + 4, identification);
      } else {
        const field = (at >> 3) | (more ? IP_MORE_FRAGMENTS : 0);
        writeHeaders(h, lan.guestMac, lan.gatewayMac, source, guestIp, PROTOCOL_UDP, count, identification, field);
      }
      lan.deliver(this.#frame.set(h, l4 + extra).setTail(d, at, count));
    }
  }
}

export class UdpRelay {
  readonly #lan: Lan;
  readonly #host: HostNetwork;
  readonly #sender: UdpSender;
  readonly #loopback: boolean;
  readonly #flows = new Map<number, UdpFlow>();
  #cancelSweep: (() => void) | null = null;

  /** `loopback`: the gateway's addresses reach the host's 127.0.0.1 and ::1. */
  constructor(lan: Lan, host: HostNetwork, sender: UdpSender, loopback: boolean) {
    this.#lan = lan;
    this.#host = host;
    this.#sender = sender;
    this.#loopback = loopback;
  }

  get flowCount(): number {
    return this.#flows.size;
  }

  /** A datagram from the guest: UDP header at `l4`, ending at `end`. False: it cannot go anywhere. */
  handle(b: Uint8Array, source: number, destination: number, l4: number, end: number): boolean {
    const isGateway = this.#lan.isGateway(destination);
    if (isGateway && !this.#loopback) return false;
    const guestPort = read16(b, l4);
    const port = read16(b, l4 + 2);
    if (port === 0) return true;
    const flow = this.#flow(source, guestPort);
    if (flow === null) return true;
    flow.lastMs = this.#host.nowMs();
    const address = isGateway ? (isIpv6(destination) ? '::1' : '127.0.0.1') : this.#format(destination);
    flow.socket.send(b, l4 + HEADER_BYTES, end - l4 - HEADER_BYTES, address, port);
    return true;
  }

  #format(address: number): string {
    return isIpv6(address) ? this.#lan.ipv6.format(address) : formatIpv4(address);
  }

  /** Who sent something to the host, as the guest knows them; -1: nobody that it could know. */
  #sender6(address: string): number {
    return address === '::1' ? this.#lan.ipv6.gateway : this.#lan.ipv6.parse(address);
  }

  #sender4(address: string): number {
    const ip = parseIpv4(address);
    return ip >= 0 && ip >>> 24 === 127 ? this.#lan.addresses.gatewayIp : ip;
  }

  /** Addresses of the guest that have ports open. */
  addAddresses(to: Set<number>): void {
    for (const { guestIp } of this.#flows.values()) to.add(guestIp);
  }

  #flow(guestIp: number, guestPort: number): UdpFlow | null {
    const key = guestIp * 0x10000 + guestPort;
    const known = this.#flows.get(key);
    if (known !== undefined) return known;
    if (this.#flows.size >= FLOWS_MAX) this.#dropOldest();
    const drop = (): void => {
      if (this.#flows.get(key) === flow) this.#drop(flow);
    };
    const socket = this.#host.openDatagram(
      isIpv6(guestIp) ? 6 : 4,
      null,
      (bytes, address, port) => {
        const from = isIpv6(guestIp) ? this.#sender6(address) : this.#sender4(address);
        if (from < 0) return;
        flow.lastMs = this.#host.nowMs();
        this.#sender.send(from, port, guestIp, guestPort, bytes);
        this.#lan.flush();
      },
      drop,
    );
    const flow: UdpFlow = { key, guestIp, guestPort, socket, lastMs: this.#host.nowMs() };
    this.#flows.set(key, flow);
    this.#cancelSweep ??= this.#host.setTimer(SWEEP_MS, () => this.#sweep());
    return flow;
  }

  #drop(flow: UdpFlow): void {
    this.#flows.delete(flow.key);
    flow.socket.close();
  }

  #dropOldest(): void {
    let oldest: UdpFlow | null = null;
    for (const flow of this.#flows.values()) if (oldest === null || flow.lastMs < oldest.lastMs) oldest = flow;
    if (oldest !== null) this.#drop(oldest);
  }

  #sweep(): void {
    const idle = this.#host.nowMs() - IDLE_MS;
    for (const flow of this.#flows.values()) if (flow.lastMs <= idle) this.#drop(flow);
    this.#cancelSweep = this.#flows.size > 0 ? this.#host.setTimer(SWEEP_MS, () => this.#sweep()) : null;
  }

  close(): void {
    this.#cancelSweep?.();
    this.#cancelSweep = null;
    for (const flow of this.#flows.values()) this.#drop(flow);
  }
}
