/**
 * All TCP connections of the guest: finds a segment's flow, opens new ones, keeps their timers and the list of those that have
 * something to say when a batch ends. Source: RFC 9293 (3.10.7.1: segments for no connection), RFC 6528 (initial sequence numbers).
 */

import { CHECKSUM_PARTIAL, Frame } from '../frame.ts';
import { PROTOCOL_TCP } from '../packet.ts';
import { ChunkPool } from './chunk-pool.ts';
import type { HostNetwork, HostStream, StreamEvents } from './host-network.ts';
import { IP_DONT_FRAGMENT, read16, read32, write16, write32 } from './ipv4.ts';
import { L4_IPV6 } from './ipv6.ts';
import type { Lan } from './lan.ts';
import { pseudoSumOf, writePacketHeaders } from './packet-headers.ts';
import { BufferBudget } from './send-buffer.ts';
import { type FlowOwner, STATE_TIME_WAIT, TcpFlow } from './tcp-flow.ts';
import { TCP_ACK, TCP_FIN, TCP_HEADER_BYTES, TCP_RST, TCP_SYN } from './tcp-segment.ts';

const FLOWS_MAX = 1024;
const BUCKETS = 1024;
const TICK_MS = 50;
/** Of all flows together, beyond what each is always given. */
const BUDGET_BYTES = 64 << 20;
const EPHEMERAL_FIRST = 49_152;
const EPHEMERAL_COUNT = 16_384;

export interface TcpOptions {
  /** The guest takes GSO frames. */
  readonly gso: () => boolean;
  /** The host's address for one that the guest wrote to, or null when there is none. */
  readonly translate: (address: number) => string | null;
  readonly hostUnreachable: (flow: TcpFlow) => void;
}

export class TcpRelay implements FlowOwner {
  readonly pool = new ChunkPool();
  readonly sendBudget = new BufferBudget(BUDGET_BYTES);
  readonly receiveBudget = new BufferBudget(BUDGET_BYTES);
  readonly #lan: Lan;
  readonly #host: HostNetwork;
  readonly #options: TcpOptions;
  readonly #buckets: (TcpFlow | null)[] = new Array<TcpFlow | null>(BUCKETS).fill(null);
  readonly #touched: TcpFlow[] = [];
  #blocked: TcpFlow[] = [];
  #cancelTick: (() => void) | null = null;
  #count = 0;
  #ephemeral = 0;
  readonly #frame = new Frame();
  readonly #header = new Uint8Array(L4_IPV6 + TCP_HEADER_BYTES);

  constructor(lan: Lan, host: HostNetwork, options: TcpOptions) {
    this.#lan = lan;
    this.#host = host;
    this.#options = options;
  }

  get flowCount(): number {
    return this.#count;
  }

  get gso(): boolean {
    return this.#options.gso();
  }

  nowMs(): number {
    return this.#host.nowMs();
  }

  trySend(frame: Frame): boolean {
    return this.#lan.trySend(frame);
  }

  flush(): void {
    this.#lan.flush();
  }

  hostUnreachable(flow: TcpFlow): void {
    this.#options.hostUnreachable(flow);
  }

  // ---- from the guest ----------------------------------------------------------------------------------------------

  /** A whole packet: TCP header at `l4`, ending at `end`. */
  handle(b: Uint8Array, source: number, destination: number, l4: number, end: number): void {
    if (end - l4 < TCP_HEADER_BYTES) return;
    const headerLength = (b[l4 + 12] >> 4) * 4;
    if (headerLength < TCP_HEADER_BYTES || l4 + headerLength > end) return;
    const guestPort = read16(b, l4);
    const port = read16(b, l4 + 2);
    const flags = b[l4 + 13];
    const opens = (flags & (TCP_SYN | TCP_ACK | TCP_RST)) === TCP_SYN;
    let flow = this.#find(source, guestPort, destination, port);
    if (flow !== null && opens && flow.state === STATE_TIME_WAIT) {
      flow.destroy();
      flow = null;
    }
    if (flow !== null) {
      flow.segment(b, l4, l4 + headerLength, end);
      return;
    }
    if (opens && guestPort !== 0 && port !== 0) this.#open(b, source, guestPort, destination, port, l4, headerLength);
    else if ((flags & TCP_RST) === 0)
      this.#refuse(b, source, guestPort, destination, port, l4, end - l4 - headerLength);
  }

  #open(
    b: Uint8Array,
    source: number,
    guestPort: number,
    destination: number,
    port: number,
    l4: number,
    headerLength: number,
  ): void {
    const address = this.#options.translate(destination);
    if (address === null || !this.#makeRoom()) {
      this.#refuse(b, source, guestPort, destination, port, l4, 0);
      return;
    }
    const flow = this.#create(source, guestPort, destination, port);
    flow.acceptSyn(b, l4, headerLength, read32(b, l4 + 4));
    flow.stream = this.#host.connect(address, port, flow);
  }

  /** Answers a segment that belongs to no connection with RST. */
  #refuse(
    b: Uint8Array,
    source: number,
    guestPort: number,
    destination: number,
    port: number,
    l4: number,
    dataLength: number,
  ): void {
    const flags = b[l4 + 13];
    const h = this.#header;
    const size = TCP_HEADER_BYTES;
    const at = writePacketHeaders(h, this.#lan, destination, source, PROTOCOL_TCP, size, 0, IP_DONT_FRAGMENT);
    write16(h, at, port);
    write16(h, at + 2, guestPort);
    const length = dataLength + ((flags & TCP_SYN) !== 0 ? 1 : 0) + ((flags & TCP_FIN) !== 0 ? 1 : 0);
    const hasAck = (flags & TCP_ACK) !== 0;
    write32(h, at + 4, hasAck ? read32(b, l4 + 8) : 0);
    write32(h, at + 8, hasAck ? 0 : (read32(b, l4 + 4) + length) >>> 0);
    h[at + 12] = 5 << 4;
    h[at + 13] = hasAck ? TCP_RST : TCP_RST | TCP_ACK;
    write16(h, at + 14, 0);
    write16(h, at + 16, pseudoSumOf(h, destination, source, PROTOCOL_TCP, TCP_HEADER_BYTES));
    const frame = this.#frame.set(h, at + TCP_HEADER_BYTES);
    frame.checksum = CHECKSUM_PARTIAL;
    this.#lan.deliver(frame);
  }

  // ---- from outside ------------------------------------------------------------------------------------------------

  /** A connection that came to a forwarded port of the host, for `guestPort` of the guest; null when there is no room for it. */
  accept(stream: HostStream, guestPort: number): StreamEvents | null {
    const { gatewayIp, guestIp } = this.#lan.addresses;
    if (!this.#makeRoom()) return null;
    for (let i = 0; i < EPHEMERAL_COUNT; i++) {
      const port = EPHEMERAL_FIRST + this.#ephemeral;
      this.#ephemeral = (this.#ephemeral + 1) % EPHEMERAL_COUNT;
      if (this.#find(guestIp, guestPort, gatewayIp, port) !== null) continue;
      const flow = this.#create(guestIp, guestPort, gatewayIp, port);
      flow.stream = stream;
      flow.open();
      this.flush();
      return flow;
    }
    return null;
  }

  /** Addresses of the connections that there are. */
  addAddresses(to: Set<number>): void {
    for (const first of this.#buckets)
      for (let flow = first; flow !== null; flow = flow.nextInBucket) to.add(flow.guestIp).add(flow.remoteIp);
  }

  // ---- the table ---------------------------------------------------------------------------------------------------

  #bucket(guestIp: number, guestPort: number, remoteIp: number, remotePort: number): number {
    let h = Math.imul(guestIp ^ (guestPort << 16) ^ remotePort, 0x9e3779b1) ^ Math.imul(remoteIp, 0x85ebca6b);
    h ^= h >>> 15;
    return h & (BUCKETS - 1);
  }

  #find(guestIp: number, guestPort: number, remoteIp: number, remotePort: number): TcpFlow | null {
    let flow = this.#buckets[this.#bucket(guestIp, guestPort, remoteIp, remotePort)];
    while (
      flow !== null &&
      (flow.guestPort !== guestPort ||
        flow.remotePort !== remotePort ||
        flow.remoteIp !== remoteIp ||
        flow.guestIp !== guestIp)
    )
      flow = flow.nextInBucket;
    return flow;
  }

  #create(guestIp: number, guestPort: number, remoteIp: number, remotePort: number): TcpFlow {
    const iss = crypto.getRandomValues(new Uint32Array(1))[0];
    const flow = new TcpFlow(this, this.#lan, guestIp, guestPort, remoteIp, remotePort, iss);
    const bucket = this.#bucket(guestIp, guestPort, remoteIp, remotePort);
    flow.nextInBucket = this.#buckets[bucket];
    this.#buckets[bucket] = flow;
    this.#count++;
    return flow;
  }

  /** True: there is room for one more, perhaps because a connection that is over was forgotten early. */
  #makeRoom(): boolean {
    if (this.#count < FLOWS_MAX) return true;
    for (const first of this.#buckets)
      for (let flow = first; flow !== null; flow = flow.nextInBucket)
        if (flow.state === STATE_TIME_WAIT) {
          flow.destroy();
          return true;
        }
    return false;
  }

  remove(flow: TcpFlow): void {
    const bucket = this.#bucket(flow.guestIp, flow.guestPort, flow.remoteIp, flow.remotePort);
    let at = this.#buckets[bucket];
    if (at === flow) this.#buckets[bucket] = flow.nextInBucket;
    else {
      while (at !== null && at.nextInBucket !== flow) at = at.nextInBucket;
      if (at === null) return;
      at.nextInBucket = flow.nextInBucket;
    }
    this.#count--;
  }

  // ---- batches, room, time -----------------------------------------------------------------------------------------

  touch(flow: TcpFlow): void {
    if (flow.touched) return;
    flow.touched = true;
    this.#touched.push(flow);
  }

  /** The guest's batch is over. */
  endBatch(): void {
    const touched = this.#touched;
    for (let i = 0; i < touched.length; i++) {
      touched[i].touched = false;
      touched[i].endBatch();
    }
    touched.length = 0;
  }

  block(flow: TcpFlow): void {
    if (flow.blocked) return;
    flow.blocked = true;
    this.#blocked.push(flow);
  }

  /** The guest has room: those that waited go on, in the order in which they were stopped. */
  room(): void {
    const waiting = this.#blocked;
    if (waiting.length === 0) return;
    this.#blocked = [];
    for (const flow of waiting) {
      flow.blocked = false;
      flow.resumeSending();
    }
  }

  armTimer(): void {
    this.#cancelTick ??= this.#host.setTimer(TICK_MS, () => this.#tick());
  }

  #tick(): void {
    this.#cancelTick = null;
    const now = this.#host.nowMs();
    let armed = false;
    for (let i = 0; i < BUCKETS; i++) {
      let flow = this.#buckets[i];
      while (flow !== null) {
        const next = flow.nextInBucket;
        if (flow.deadlineMs <= now) flow.onTimer();
        armed ||= flow.deadlineMs !== Number.POSITIVE_INFINITY;
        flow = next;
      }
    }
    if (armed) this.armTimer();
    this.flush();
  }

  close(): void {
    for (const first of this.#buckets)
      for (let flow = first; flow !== null; ) {
        const next: TcpFlow | null = flow.nextInBucket;
        flow.destroy();
        flow = next;
      }
    this.#cancelTick?.();
    this.#cancelTick = null;
  }
}
