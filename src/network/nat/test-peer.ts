/**
 * For tests: the guest's end of a TCP connection, written from RFC 9293 and not from the NAT: sends by go-back-N, keeps what
 * comes out of order, acknowledges each segment. Slow and plain.
 */

import { tcpFrame } from '../testing.ts';
import type { GotFrame } from './testing.ts';

export const FIN = 1;
export const SYN = 2;
export const RST = 4;
export const ACK = 16;

export interface Segment {
  readonly sequence: number;
  readonly ack: number;
  readonly flags: number;
  readonly window: number;
  readonly options: Uint8Array;
  readonly payload: Uint8Array;
}

/** The TCP segment in a frame. Checks what the guest's card would. */
export function parseSegment(frame: GotFrame): Segment {
  const b = frame.bytes;
  const view = new DataView(b.buffer, b.byteOffset);
  if (b[23] !== 6) throw new Error(`protocol ${b[23]}`);
  if (view.getUint16(16) !== b.length - 14) throw new Error('IP length');
  const header = (b[46] >> 4) * 4;
  const payload = b.slice(34 + header);
  if (frame.gsoType === 0 && payload.length > 1460) throw new Error(`${payload.length} bytes without GSO`);
  return {
    sequence: view.getUint32(38),
    ack: view.getUint32(42),
    flags: b[47],
    window: view.getUint16(48),
    options: b.slice(54, 34 + header),
    payload,
  };
}

const SCALE = 7;
const RTO_MS = 200;

export interface PeerOptions {
  readonly destination?: number;
  readonly port?: number;
  readonly guestPort?: number;
  /** Sequence number of the SYN. */
  readonly iss?: number;
  /** Receive window in bytes, a multiple of 128. */
  readonly window?: number;
  readonly segment?: number;
}

export class Peer {
  readonly options: Required<PeerOptions>;
  readonly #send: (frame: Uint8Array) => void;
  readonly #now: () => number;
  #una: number;
  #next: number;
  #peerWindow = 0;
  #peerScale = 0;
  #out = new Uint8Array(0);
  #finQueued = false;
  #sentMs = 0;
  #rcvNxt = 0;
  readonly #early = new Map<number, Uint8Array>();
  #finAt: number | null = null;
  readonly #in: Uint8Array[] = [];
  established = false;
  /** The other side has sent FIN, and all before it is here. */
  ended = false;
  finAcked = false;
  reset = false;
  /** What it has not read: the window shrinks by that. */
  reading = true;
  #unread = 0;

  constructor(send: (frame: Uint8Array) => void, now: () => number, options: PeerOptions = {}) {
    this.options = {
      destination: 0x0a000202,
      port: 80,
      guestPort: 40_000,
      iss: 0xfffffc00,
      window: 64 * 1024,
      segment: 1460,
      ...options,
    };
    this.#send = send;
    this.#now = now;
    this.#una = this.options.iss;
    this.#next = this.options.iss;
  }

  get received(): Uint8Array {
    const whole = new Uint8Array(this.#in.reduce((sum, bytes) => sum + bytes.length, 0));
    let at = 0;
    for (const bytes of this.#in) {
      whole.set(bytes, at);
      at += bytes.length;
    }
    return whole;
  }

  get unacked(): number {
    return this.#out.length;
  }

  #emit(flags: number, sequence: number, payload: Uint8Array = new Uint8Array(0), options: number[] = []): void {
    const free = Math.max(0, this.options.window - this.#unread);
    const syn = (flags & SYN) !== 0;
    const { guestPort, port, destination } = this.options;
    this.#send(
      tcpFrame({
        payload,
        options,
        flags,
        sequence,
        acknowledgement: (flags & ACK) !== 0 ? this.#rcvNxt : 0,
        window: syn ? Math.min(free, 0xffff) : free >> SCALE,
        sourcePort: guestPort,
        destinationPort: port,
        destination,
      }),
    );
  }

  open(): void {
    this.#sentMs = this.#now();
    this.#emit(SYN, this.options.iss, undefined, [2, 4, 5, 0xb4, 1, 3, 3, SCALE]);
  }

  write(bytes: Uint8Array): void {
    const grown = new Uint8Array(this.#out.length + bytes.length);
    grown.set(this.#out);
    grown.set(bytes, this.#out.length);
    this.#out = grown;
    this.#push();
  }

  end(): void {
    this.#finQueued = true;
    this.#push();
  }

  abort(): void {
    this.#emit(RST, this.#next);
    this.reset = true;
  }

  read(): void {
    this.#unread = 0;
    this.reading = true;
    this.#emit(ACK, this.#next);
  }

  #push(): void {
    if (!this.established || this.reset) return;
    for (;;) {
      const sent = (this.#next - this.#una) >>> 0;
      const count = Math.min(this.options.segment, this.#out.length - sent, this.#peerWindow - sent);
      if (count <= 0) break;
      this.#emit(ACK, this.#next, this.#out.slice(sent, sent + count));
      this.#next = (this.#next + count) >>> 0;
      this.#sentMs = this.#now();
    }
    if (this.#finQueued && !this.finAcked && (this.#next - this.#una) >>> 0 === this.#out.length) {
      this.#emit(ACK | FIN, this.#next);
      this.#next = (this.#next + 1) >>> 0;
      this.#sentMs = this.#now();
    }
  }

  /** Sends again what has not been acknowledged for a while. */
  tick(): void {
    if (this.reset || this.#now() - this.#sentMs < RTO_MS) return;
    if (!this.established) {
      this.open();
      return;
    }
    if (this.#out.length === 0 && (!this.#finQueued || this.finAcked)) return;
    this.#next = this.#una;
    this.#sentMs = this.#now();
    this.#push();
    // Nothing fits: probe the window.
    if (this.#next === this.#una && this.#out.length > 0) this.#emit(ACK, this.#una, this.#out.slice(0, 1));
  }

  take(frame: GotFrame): void {
    const s = parseSegment(frame);
    if (this.reset) return;
    if ((s.flags & RST) !== 0) {
      this.reset = true;
      return;
    }
    if ((s.flags & SYN) !== 0) {
      if (!this.established) {
        this.established = true;
        this.#rcvNxt = (s.sequence + 1) >>> 0;
        this.#una = this.#next = (this.options.iss + 1) >>> 0;
        this.#peerScale = s.options.indexOf(3) >= 0 ? s.options[s.options.lastIndexOf(3) + 1] : 0;
        this.#peerWindow = s.window;
      }
      this.#emit(ACK, this.#next);
      this.#push();
      return;
    }
    if (!this.established) return;
    const advance = (s.ack - this.#una) >>> 0;
    if (advance > 0 && advance <= this.#out.length + 1) {
      this.#out = this.#out.slice(Math.min(advance, this.#out.length));
      this.#una = s.ack;
      if (((this.#next - this.#una) | 0) < 0) this.#next = this.#una;
      if (this.#finQueued && this.#out.length === 0 && s.ack === this.#next) this.finAcked = true;
      this.#sentMs = this.#now();
    }
    this.#peerWindow = s.window << this.#peerScale;
    if (s.payload.length > 0 || (s.flags & FIN) !== 0) {
      this.#receive(s);
      this.#emit(ACK, this.#next);
    }
    this.#push();
  }

  #receive(s: Segment): void {
    if ((s.flags & FIN) !== 0) this.#finAt = (s.sequence + s.payload.length) >>> 0;
    if (((s.sequence + s.payload.length - this.#rcvNxt) | 0) > 0) this.#early.set(s.sequence, s.payload);
    for (let found = true; found; ) {
      found = false;
      for (const [sequence, payload] of this.#early) {
        const skip = (this.#rcvNxt - sequence) | 0;
        if (skip < 0) continue;
        this.#early.delete(sequence);
        if (skip >= payload.length) continue;
        const fresh = payload.slice(skip);
        if (!this.reading && this.#unread + fresh.length > this.options.window) continue;
        if (!this.reading) this.#unread += fresh.length;
        this.#in.push(fresh);
        this.#rcvNxt = (this.#rcvNxt + fresh.length) >>> 0;
        found = true;
      }
    }
    if (this.#finAt !== null && this.#finAt === this.#rcvNxt && !this.ended) {
      this.#rcvNxt = (this.#rcvNxt + 1) >>> 0;
      this.ended = true;
    }
  }
}
