/**
 * The NAT's side of the guest's cable: who is who on it, and sending on it. What has no memory of its own of what it sent (all but
 * TCP) sends by `deliver`, which holds a little back when the guest takes nothing, and then throws away.
 */

import { createLinkStatistics, type Frame, type FramePort, type LinkStatistics } from '../frame.ts';
import { FrameQueue } from '../frame-queue.ts';
import { Ipv6Addresses } from './ipv6-addresses.ts';

const QUEUE_BYTES = 256 * 1024;

export interface LanAddresses {
  /** The host as the guest sees it. */
  readonly gatewayIp: number;
  readonly dnsIp: number;
  /** What DHCP gives the guest. */
  readonly guestIp: number;
  readonly netmask: number;
}

/** The MAC of gateway and name server: locally administered. */
const GATEWAY_MAC = Uint8Array.of(0x52, 0x55, 0x0a, 0x00, 0x02, 0x02);

export class Lan {
  readonly addresses: LanAddresses;
  readonly ipv6: Ipv6Addresses;
  readonly gatewayMac = GATEWAY_MAC;
  /** Where the guest was last heard from; its configured address until then. */
  readonly guestMac: Uint8Array;
  readonly statistics: LinkStatistics = createLinkStatistics();
  #device: FramePort | null = null;
  #queue: FrameQueue | null = null;
  #identification = 0;

  constructor(addresses: LanAddresses, guestMac: Uint8Array) {
    this.addresses = addresses;
    this.ipv6 = new Ipv6Addresses(addresses.gatewayIp, addresses.dnsIp);
    this.guestMac = guestMac.slice();
  }

  connect(device: FramePort | null): void {
    this.#device = device;
  }

  /** Of either family. */
  isGateway(address: number): boolean {
    return address === this.addresses.gatewayIp || address === this.ipv6.gateway;
  }

  isDns(address: number): boolean {
    return address === this.addresses.dnsIp || address === this.ipv6.dns;
  }

  /** Of IPv4. */
  isLocal(address: number): boolean {
    const { gatewayIp, netmask } = this.addresses;
    return ((address ^ gatewayIp) & netmask) >>> 0 === 0;
  }

  nextIdentification(): number {
    this.#identification = (this.#identification + 1) & 0xffff;
    return this.#identification;
  }

  /** False: the guest has no room; the frame is not sent. */
  trySend(frame: Frame): boolean {
    const device = this.#device;
    if (device === null) return true;
    if (this.#queue !== null && this.#queue.frames > 0) return false;
    if (!device.send(frame)) return false;
    this.#count(frame);
    return true;
  }

  /** Sends, or keeps for later, or throws away. */
  deliver(frame: Frame): void {
    if (this.trySend(frame)) return;
    this.#queue ??= new FrameQueue(QUEUE_BYTES);
    if (!this.#queue.push(frame)) this.statistics.dropped++;
  }

  flush(): void {
    this.#device?.flush();
  }

  /** The guest has room again. True: nothing waits here any more. */
  room(): boolean {
    const queue = this.#queue;
    const device = this.#device;
    if (queue === null || device === null) return true;
    for (let frame = queue.peek(); frame !== null; frame = queue.peek()) {
      if (!device.send(frame)) return false;
      this.#count(frame);
      queue.shift();
    }
    return true;
  }

  #count(frame: Frame): void {
    this.statistics.framesOut++;
    this.statistics.bytesOut += frame.length;
  }
}
