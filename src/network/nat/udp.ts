/**
 * UDP through the host. Each port of the guest is one datagram socket of the host, so that answers come from wherever the guest
 * wrote to and programs that tell others their address work; a socket goes when nothing went through it for a minute. The
 * gateway's address stands for the host's loopback. Source: RFC 768, RFC 4787 (mapping that is independent of the endpoint; a
 * timer of more than two minutes is only a recommendation, and few programs notice).
 */

import { sumBytes } from '../checksum.ts';
import { CHECKSUM_PARTIAL, Frame, MTU } from '../frame.ts';
import { PROTOCOL_UDP } from '../packet.ts';
import type { HostDatagram, HostNetwork } from './host-network.ts';
import {
  formatIpv4,
  IP_MORE_FRAGMENTS,
  IPV4_HEADER_BYTES,
  L4,
  parseIpv4,
  pseudoSum,
  read16,
  write16,
  writeHeaders,
} from './ipv4.ts';
import type { Lan } from './lan.ts';

const FLOWS_MAX = 512;
const IDLE_MS = 60_000;
const SWEEP_MS = 10_000;
const HEADER_BYTES = 8;
const PAYLOAD_MAX = 65507;
/** Payload of an IP fragment: a multiple of 8. */
const FRAGMENT_BYTES = (MTU - IPV4_HEADER_BYTES) & ~7;

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
  readonly #header = new Uint8Array(L4 + HEADER_BYTES);
  readonly #datagram = new Uint8Array(HEADER_BYTES + PAYLOAD_MAX);

  constructor(lan: Lan) {
    this.#lan = lan;
  }

  send(source: number, sourcePort: number, guestIp: number, guestPort: number, payload: Uint8Array): void {
    const length = HEADER_BYTES + payload.length;
    if (payload.length > PAYLOAD_MAX) return;
    const h = this.#header;
    write16(h, L4, sourcePort);
    write16(h, L4 + 2, guestPort);
    write16(h, L4 + 4, length);
    const sum = pseudoSum(source, guestIp, PROTOCOL_UDP, length);
    write16(h, L4 + 6, sum);
    if (length > MTU - IPV4_HEADER_BYTES) {
      this.#sendFragments(source, guestIp, payload);
      return;
    }
    const { guestMac, gatewayMac } = this.#lan;
    writeHeaders(h, guestMac, gatewayMac, source, guestIp, PROTOCOL_UDP, length, this.#lan.nextIdentification(), 0);
    const frame = this.#frame.set(h, L4 + HEADER_BYTES).setTail(payload, 0, payload.length);
    frame.checksum = CHECKSUM_PARTIAL;
    this.#lan.deliver(frame);
  }

  #sendFragments(source: number, guestIp: number, payload: Uint8Array): void {
    const lan = this.#lan;
    const d = this.#datagram;
    const length = HEADER_BYTES + payload.length;
    d.set(this.#header.subarray(L4, L4 + HEADER_BYTES));
    d.set(payload, HEADER_BYTES);
    // Nobody completes the checksum of a fragment.
    write16(d, 6, sumBytes(d, 0, length) ^ 0xffff || 0xffff);
    const identification = lan.nextIdentification();
    for (let at = 0; at < length; at += FRAGMENT_BYTES) {
      const count = Math.min(FRAGMENT_BYTES, length - at);
      const field = (at >> 3) | (at + count < length ? IP_MORE_FRAGMENTS : 0);
      const h = this.#header;
      writeHeaders(h, lan.guestMac, lan.gatewayMac, source, guestIp, PROTOCOL_UDP, count, identification, field);
      lan.deliver(this.#frame.set(h, L4).setTail(d, at, count));
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

  /** `loopback`: the gateway's address reaches the host's 127.0.0.1. */
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
    const { gatewayIp } = this.#lan.addresses;
    if (destination === gatewayIp && !this.#loopback) return false;
    const guestPort = read16(b, l4);
    const port = read16(b, l4 + 2);
    if (port === 0) return true;
    const flow = this.#flow(source, guestPort);
    if (flow === null) return true;
    flow.lastMs = this.#host.nowMs();
    const address = destination === gatewayIp ? '127.0.0.1' : formatIpv4(destination);
    flow.socket.send(b, l4 + HEADER_BYTES, end - l4 - HEADER_BYTES, address, port);
    return true;
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
      4,
      null,
      (bytes, address, port) => {
        const ip = parseIpv4(address);
        if (ip < 0) return;
        flow.lastMs = this.#host.nowMs();
        const from = ip >>> 24 === 127 ? this.#lan.addresses.gatewayIp : ip;
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
