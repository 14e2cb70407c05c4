/**
 * The IPv6 addresses that the NAT has to do with, each known by a number, so that connections are found and compared by numbers as
 * with IPv4. The table is of a fixed size: when it is full, addresses that nobody uses any more are forgotten. Numbers stay
 * with their address as long as `inUse` names them.
 *
 * The network is fd00:A:B:C::/64 for IPv4's A.B.C.0, with hosts of the same last byte: fd00:a:0:2::2 is the gateway where 10.0.2.2 is.
 * Source: RFC 4193 (the prefix; what should be a random part of it is not, since nobody else sees it).
 */

import { formatIpv6, IPV6_ADDRESS_BYTES, IPV6_FIRST, parseIpv6 } from './ipv6.ts';

/** More than there can be connections, UDP ports and queries, each with two addresses at most that others do not have. */
const SLOTS = 8192;
const BUCKETS = 1024;
const NONE = -1;
const FIXED = 2;
export const PREFIX_BYTES = 8;

export class Ipv6Addresses {
  readonly gateway = IPV6_FIRST;
  readonly dns = IPV6_FIRST + 1;
  /** The gateway's address of the link, fe80::2 for instance. */
  readonly gatewayLinkLocal: Uint8Array;
  /** Numbers that must stay, besides those of gateway and name server. */
  inUse: () => ReadonlySet<number> = () => new Set();
  readonly #bytes = new Uint8Array(SLOTS * IPV6_ADDRESS_BYTES);
  readonly #next = new Int16Array(SLOTS).fill(NONE);
  readonly #first = new Int16Array(BUCKETS).fill(NONE);
  /** Slots below have been used; free ones of them are in #free. */
  #used = 0;
  readonly #free: number[] = [];

  constructor(gatewayIp: number, dnsIp: number) {
    for (const ip of [gatewayIp, dnsIp]) {
      const address = new Uint8Array(IPV6_ADDRESS_BYTES);
      address.set([0xfd, 0, 0, ip >>> 24, 0, (ip >>> 16) & 255, 0, (ip >>> 8) & 255]);
      address[15] = ip & 255;
      this.find(address, 0);
    }
    this.gatewayLinkLocal = new Uint8Array(IPV6_ADDRESS_BYTES);
    this.gatewayLinkLocal.set([0xfe, 0x80]);
    this.gatewayLinkLocal[15] = gatewayIp & 255;
  }

  /** Afterwards `count` addresses can be found without forgetting any: numbers that nobody uses yet stay as long. */
  reserve(count: number): void {
    if (SLOTS - this.#used + this.#free.length < count) this.#forget();
  }

  /** The number of the 16 bytes at `at`. Others that nobody uses may be gone then, but for what was reserved. */
  find(b: Uint8Array, at: number): number {
    const bucket = bucketOf(b, at);
    for (let slot = this.#first[bucket]; slot !== NONE; slot = this.#next[slot])
      if (this.#isAt(slot, b, at)) return IPV6_FIRST + slot;
    const slot = this.#take();
    this.#bytes.set(b.subarray(at, at + IPV6_ADDRESS_BYTES), slot * IPV6_ADDRESS_BYTES);
    this.#next[slot] = this.#first[bucket];
    this.#first[bucket] = slot;
    return IPV6_FIRST + slot;
  }

  /** The number of an address in text, or -1. */
  parse(text: string): number {
    const bytes = parseIpv6(text);
    return bytes === null ? -1 : this.find(bytes, 0);
  }

  format(address: number): string {
    return formatIpv6(this.#bytes, this.#at(address));
  }

  copyTo(address: number, b: Uint8Array, at: number): void {
    const from = this.#at(address);
    for (let i = 0; i < IPV6_ADDRESS_BYTES; i++) b[at + i] = this.#bytes[from + i];
  }

  /** Whether the 16 bytes at `at` are an address of the guest's network. */
  isLocal(b: Uint8Array, at: number): boolean {
    for (let i = 0; i < PREFIX_BYTES; i++) if (b[at + i] !== this.#bytes[i]) return false;
    return true;
  }

  #at(address: number): number {
    return (address - IPV6_FIRST) * IPV6_ADDRESS_BYTES;
  }

  #isAt(slot: number, b: Uint8Array, at: number): boolean {
    const from = slot * IPV6_ADDRESS_BYTES;
    for (let i = 0; i < IPV6_ADDRESS_BYTES; i++) if (this.#bytes[from + i] !== b[at + i]) return false;
    return true;
  }

  #take(): number {
    if (this.#used < SLOTS) return this.#used++;
    if (this.#free.length === 0) this.#forget();
    const slot = this.#free.pop();
    if (slot === undefined) throw new Error('bug: all IPv6 addresses of the NAT are in use');
    return slot;
  }

  #forget(): void {
    const inUse = this.inUse();
    this.#first.fill(NONE);
    this.#free.length = 0;
    for (let slot = this.#used - 1; slot >= 0; slot--) {
      if (slot >= FIXED && !inUse.has(IPV6_FIRST + slot)) {
        this.#free.push(slot);
        continue;
      }
      const bucket = bucketOf(this.#bytes, slot * IPV6_ADDRESS_BYTES);
      this.#next[slot] = this.#first[bucket];
      this.#first[bucket] = slot;
    }
  }
}

function bucketOf(b: Uint8Array, at: number): number {
  let h = 0;
  for (let i = 0; i < IPV6_ADDRESS_BYTES; i += 2) h = Math.imul(h ^ (b[at + i] << 8) ^ b[at + i + 1], 0x9e3779b1);
  return (h ^ (h >>> 15)) & (BUCKETS - 1);
}
