/** For tests: a host with sockets that do what a test wants, a clock that it turns, and a guest's end of the cable. */

import { Frame, type FramePort } from '../frame.ts';
import type {
  DatagramHandler,
  HostDatagram,
  HostListener,
  HostNetwork,
  HostPlace,
  HostStream,
  StreamEvents,
  StreamFailure,
} from './host-network.ts';
import { Nat, type NatOptions, natAddresses } from './nat.ts';

export class FakeStream implements HostStream {
  readonly address: string;
  readonly port: number;
  events: StreamEvents | null;
  readonly received: Uint8Array[] = [];
  /** Calls that say that the kernel has taken what was written. */
  readonly pending: (() => void)[] = [];
  /** Takes what is written at once. */
  takes = true;
  paused = false;
  ended = false;
  wasReset = false;
  closed = false;

  constructor(address: string, port: number, events: StreamEvents | null) {
    this.address = address;
    this.port = port;
    this.events = events;
  }

  get receivedBytes(): Uint8Array {
    const whole = new Uint8Array(this.received.reduce((sum, bytes) => sum + bytes.length, 0));
    let at = 0;
    for (const bytes of this.received) {
      whole.set(bytes, at);
      at += bytes.length;
    }
    return whole;
  }

  /** The far side sends; false when the NAT wants no more. */
  say(bytes: Uint8Array): boolean {
    if (this.events?.data(bytes) === false) this.paused = true;
    return !this.paused;
  }

  fail(failure: StreamFailure): void {
    this.events?.failed(failure);
  }

  write(bytes: Uint8Array, done: () => void): void {
    this.received.push(new Uint8Array(bytes));
    if (this.takes) done();
    else this.pending.push(done);
  }
  end(): void {
    this.ended = true;
  }
  resume(): void {
    this.paused = false;
  }
  reset(): void {
    this.wasReset = true;
    this.events = null;
  }
  close(): void {
    this.closed = true;
    this.events = null;
  }
}

export class FakeDatagram implements HostDatagram {
  readonly bound: HostPlace | null;
  readonly receive: DatagramHandler;
  readonly sent: { bytes: Uint8Array; address: string; port: number }[] = [];
  closed = false;

  constructor(bound: FakeDatagram['bound'], receive: DatagramHandler) {
    this.bound = bound;
    this.receive = receive;
  }
  send(bytes: Uint8Array, start: number, length: number, address: string, port: number): boolean {
    this.sent.push({ bytes: new Uint8Array(bytes.subarray(start, start + length)), address, port });
    return true;
  }
  close(): void {
    this.closed = true;
  }
}

export class FakeHost implements HostNetwork {
  now = 1000;
  readonly timers: { atMs: number; callback: () => void }[] = [];
  readonly streams: FakeStream[] = [];
  readonly datagrams: FakeDatagram[] = [];
  readonly listeners: { address: string; port: number; accept: (stream: HostStream) => StreamEvents | null }[] = [];
  servers: string[] = ['192.0.2.53'];
  ping: HostNetwork['ping'] = null;

  nowMs(): number {
    return this.now;
  }
  setTimer(delayMs: number, callback: () => void): () => void {
    const timer = { atMs: this.now + delayMs, callback };
    this.timers.push(timer);
    return () => {
      const at = this.timers.indexOf(timer);
      if (at >= 0) this.timers.splice(at, 1);
    };
  }
  /** Turns the clock, in small steps. */
  advance(ms: number): void {
    for (const end = this.now + ms; this.now < end; ) {
      this.now = Math.min(end, this.now + 10);
      for (const timer of this.timers.filter((t) => t.atMs <= this.now)) {
        const at = this.timers.indexOf(timer);
        if (at < 0) continue;
        this.timers.splice(at, 1);
        timer.callback();
      }
    }
  }
  connect(address: string, port: number, events: StreamEvents): HostStream {
    const stream = new FakeStream(address, port, events);
    this.streams.push(stream);
    return stream;
  }
  listen({ address, port, opened }: HostPlace, accept: (stream: HostStream) => StreamEvents | null): HostListener {
    const listener = { address, port, accept };
    opened();
    this.listeners.push(listener);
    return { close: () => void this.listeners.splice(this.listeners.indexOf(listener), 1) };
  }
  openDatagram(_family: 4 | 6, bind: FakeDatagram['bound'], receive: DatagramHandler): HostDatagram {
    const datagram = new FakeDatagram(bind, receive);
    this.datagrams.push(datagram);
    bind?.opened();
    return datagram;
  }
  nameServers(): readonly string[] {
    return this.servers;
  }
  searchDomains(): readonly string[] {
    return ['example.org'];
  }
}

/** A frame that came to the guest. */
export interface GotFrame {
  readonly bytes: Uint8Array;
  readonly checksum: number;
  readonly gsoType: number;
  readonly gsoSize: number;
}

export class FakeCable implements FramePort {
  readonly got: GotFrame[] = [];
  full = false;
  send(frame: Frame): boolean {
    if (this.full) return false;
    const bytes = new Uint8Array(frame.length);
    frame.copyTo(bytes, 0);
    this.got.push({ bytes, checksum: frame.checksum, gsoType: frame.gsoType, gsoSize: frame.gsoSize });
    return true;
  }
  flush(): void {}
  room(): void {}
}

export const GUEST_IP = 0x0a00020f;

export function makeNat(options: Partial<NatOptions> = {}) {
  const host = new FakeHost();
  const cable = new FakeCable();
  const log: string[] = [];
  const nat = new Nat({
    host,
    addresses: natAddresses(GUEST_IP),
    guestMac: Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3),
    loopback: true,
    gso: () => true,
    forwards: [],
    log: (line) => log.push(line),
    ...options,
  });
  nat.connect(cable);
  void nat.openForwards();
  /** Sends frames as one batch; what came back. */
  const send = (...frames: Uint8Array[]): GotFrame[] => {
    const frame = new Frame();
    for (const bytes of frames) nat.send(frame.set(bytes, bytes.length));
    nat.flush();
    return cable.got.splice(0);
  };
  return { host, cable, nat, log, send };
}
