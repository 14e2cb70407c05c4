/**
 * One TCP connection of the guest: this end speaks TCP with the guest, and hands the bytes to a stream of the host.
 *
 * The cable to the guest loses nothing as a rule, so there is no congestion control beyond what a lost segment asks for, and no
 * selective acknowledgement. A guest may drop from a queue that is full, so bytes to it are kept until acknowledged, and sent
 * again after three duplicate acknowledgements, or after a time that doubles.
 *
 * Memory is bounded both ways: the window that the guest is offered shrinks by what the host has not taken, and the host is not
 * read when the send buffer is full.
 *
 * Source: RFC 9293 (3.10.7 segment arrives, 3.8.6 windows), RFC 7323 (window scale), RFC 5961 (RST and SYN in the window),
 * RFC 6298 (5, timer), RFC 6582 (partial acknowledgements).
 */

import type { Frame } from '../frame.ts';
import type { ChunkPool } from './chunk-pool.ts';
import type { HostStream, StreamEvents, StreamFailure } from './host-network.ts';
import { read16 } from './ipv4.ts';
import type { Lan } from './lan.ts';
import { type BufferBudget, SEND_ROOM_BYTES, SendBuffer } from './send-buffer.ts';
import { Inbox } from './tcp-inbox.ts';
import { readSynOptions, SegmentWriter, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN } from './tcp-segment.ts';

/** Payload of a GSO frame: with its headers it takes 16 pages of the guest. */
const GSO_PAYLOAD_MAX = 61_440;

const RTO_MS = 300;
const RTO_MAX_MS = 60_000;
const RETRIES_MAX = 15;
const SYN_RETRIES_MAX = 6;
/** Probes of a shut window are sent at least every RTO_MS << this. */
const PROBE_BACKOFF_MAX = 7;
const TIME_WAIT_MS = 5_000;
const DUPLICATES = 3;
const NO_LIMIT = 1 << 30;

/** Waiting for the host's connection. */
export const STATE_CONNECTING = 0;
/** We sent SYN (a forwarded connection). */
export const STATE_SYN_SENT = 1;
/** We sent SYN and ACK. */
export const STATE_SYN_RECEIVED = 2;
export const STATE_ESTABLISHED = 3;
export const STATE_TIME_WAIT = 4;
export const STATE_CLOSED = 5;

/** What a flow needs of the table that holds it. */
export interface FlowOwner {
  readonly pool: ChunkPool;
  readonly sendBudget: BufferBudget;
  readonly receiveBudget: BufferBudget;
  readonly gso: boolean;
  nowMs(): number;
  trySend(frame: Frame): boolean;
  flush(): void;
  /** The flow has an acknowledgement or bytes for the host pending until the batch ends. */
  touch(flow: TcpFlow): void;
  /** The guest had no room: `resumeSending` is wanted when it has. */
  block(flow: TcpFlow): void;
  /** There is a deadline now. */
  armTimer(): void;
  /** The host cannot be reached: may tell the guest by ICMP. */
  hostUnreachable(flow: TcpFlow): void;
  remove(flow: TcpFlow): void;
}

export class TcpFlow implements StreamEvents {
  readonly guestIp: number;
  readonly guestPort: number;
  readonly remoteIp: number;
  readonly remotePort: number;
  /** For the table. */
  nextInBucket: TcpFlow | null = null;
  touched = false;
  blocked = false;
  /** When `onTimer` is due; Infinity: never. */
  deadlineMs = Number.POSITIVE_INFINITY;

  state = STATE_CONNECTING;
  stream: HostStream | null = null;
  readonly #owner: FlowOwner;
  readonly #segments: SegmentWriter;

  // To the guest. Sequence numbers are 32 bits, compared by difference.
  readonly #buffer: SendBuffer;
  #iss: number;
  #sndUna: number;
  #sndNxt: number;
  /** One past the last sequence number ever sent. */
  #sndMax: number;
  #sndWindow = 0;
  #sndScale = 0;
  #windowSeq = 0;
  #windowAck = 0;
  #mss = 0;
  #congestionWindow = NO_LIMIT;
  #duplicates = 0;
  #recovering = false;
  #recover = 0;
  #retries = 0;
  #hostEnded = false;
  #finAcked = false;
  #hostPaused = false;

  // From the guest.
  readonly #inbox: Inbox;
  #scaled = false;
  #ackWanted = false;

  constructor(
    owner: FlowOwner,
    lan: Lan,
    guestIp: number,
    guestPort: number,
    remoteIp: number,
    remotePort: number,
    iss: number,
  ) {
    this.#owner = owner;
    this.guestIp = guestIp;
    this.guestPort = guestPort;
    this.remoteIp = remoteIp;
    this.remotePort = remotePort;
    this.#iss = iss | 0;
    this.#sndUna = this.#iss;
    this.#sndNxt = this.#iss;
    this.#sndMax = this.#iss;
    this.#buffer = new SendBuffer(owner.sendBudget);
    this.#segments = new SegmentWriter(lan, remoteIp, remotePort, guestIp, guestPort);
    this.#inbox = new Inbox(owner.pool, owner.receiveBudget, () => this.#updateWindow());
  }

  // ---- opening -----------------------------------------------------------------------------------------------------

  /** The guest's SYN: TCP header at `l4`, `headerLength` long. The host's stream is opened by the caller. */
  acceptSyn(b: Uint8Array, l4: number, headerLength: number, sequence: number): void {
    this.#start(b, l4, headerLength, sequence);
    this.#sndWindow = read16(b, l4 + 14);
  }

  /** For a connection from outside: sends SYN. */
  open(): void {
    this.state = STATE_SYN_SENT;
    this.#sendSyn();
  }

  /** The guest's SYN. */
  #start(b: Uint8Array, l4: number, headerLength: number, sequence: number): void {
    const { mss, scale } = readSynOptions(b, l4, headerLength, this.#segments.mss);
    this.#mss = mss;
    this.#scaled = scale >= 0;
    this.#sndScale = Math.max(0, scale);
    this.#inbox.start(sequence, this.#scaled);
  }

  #sendSyn(): void {
    const opening = this.state === STATE_SYN_SENT;
    this.#sndNxt = (this.#iss + 1) | 0;
    this.#sndMax = this.#sndNxt;
    const flags = opening ? TCP_SYN : TCP_SYN | TCP_ACK;
    this.#owner.trySend(this.#segments.syn(flags, this.#iss, this.#inbox.next, opening || this.#scaled));
    this.#setTimer(RTO_MS << this.#retries);
  }

  connected(): void {
    if (this.state !== STATE_CONNECTING) return;
    this.state = STATE_SYN_RECEIVED;
    this.#sendSyn();
    this.#owner.flush();
  }

  // ---- from the guest ----------------------------------------------------------------------------------------------

  /** A segment of this connection: TCP header at `l4`, data from `data` to `end`. */
  segment(b: Uint8Array, l4: number, data: number, end: number): void {
    const flags = b[l4 + 13];
    const sequence = (b[l4 + 4] << 24) | (b[l4 + 5] << 16) | (b[l4 + 6] << 8) | b[l4 + 7] | 0;
    const ack = (b[l4 + 8] << 24) | (b[l4 + 9] << 16) | (b[l4 + 10] << 8) | b[l4 + 11] | 0;
    const rawWindow = read16(b, l4 + 14);
    if (this.state === STATE_CONNECTING) {
      if ((flags & TCP_RST) !== 0) this.#abandon();
      return;
    }
    if (this.state === STATE_SYN_SENT) {
      this.#answerToSyn(b, l4, data - l4, flags, sequence, ack, rawWindow);
      return;
    }
    const length = end - data;
    const offset = (sequence - this.#inbox.next) | 0;
    const room = this.#inbox.room;
    const acceptable =
      length === 0 ? offset >= -1 && offset <= room : offset + length > 0 && offset < Math.max(room, 1);
    if (!acceptable) {
      if ((flags & TCP_RST) === 0) this.#wantAck();
      return;
    }
    if ((flags & TCP_RST) !== 0) {
      if (offset === 0) this.#abandon();
      else this.#wantAck();
      return;
    }
    if ((flags & TCP_SYN) !== 0) {
      if (this.state === STATE_SYN_RECEIVED) this.#sendSyn();
      else this.#wantAck();
      return;
    }
    if ((flags & TCP_ACK) === 0) return;
    if (!this.#acknowledge(ack, sequence, rawWindow, length === 0 && (flags & TCP_FIN) === 0)) return;
    if (this.state === STATE_SYN_RECEIVED) return;
    if (this.state === STATE_TIME_WAIT) {
      this.#wantAck();
      return;
    }
    if (length > 0 || (flags & TCP_FIN) !== 0) {
      if (!this.#receive(b, data, length, offset, (flags & TCP_FIN) !== 0)) return;
    } else if (offset < 0) this.#wantAck(); // A keep-alive.
    this.#output();
  }

  #answerToSyn(
    b: Uint8Array,
    l4: number,
    headerLength: number,
    flags: number,
    sequence: number,
    ack: number,
    window: number,
  ): void {
    if ((flags & TCP_ACK) === 0) return;
    if (((ack - this.#iss) | 0) !== 1) {
      // The guest has a connection of these addresses from before it was saved: it has to forget that, and the SYN comes again.
      // Source: RFC 9293, 3.10.7.3.
      if ((flags & TCP_RST) === 0) this.#owner.trySend(this.#segments.segment(TCP_RST, ack, 0, 0));
      return;
    }
    if ((flags & TCP_RST) !== 0) {
      this.#abandon();
      return;
    }
    if ((flags & TCP_SYN) === 0) return;
    this.#start(b, l4, headerLength, sequence);
    this.#sndUna = ack;
    this.#sndWindow = window;
    this.#windowSeq = sequence;
    this.#windowAck = ack;
    this.#establish();
    this.#wantAck();
    this.#output();
  }

  #establish(): void {
    this.state = STATE_ESTABLISHED;
    this.#retries = 0;
    this.#clearTimer();
    // The host may have sent all that there is room for while the guest's answer was on its way, or lost.
    if (!this.#hostPaused) this.stream?.resume();
  }

  /** False: the segment's acknowledgement is of something never sent, and the segment is dropped. */
  #acknowledge(ack: number, sequence: number, rawWindow: number, pure: boolean): boolean {
    if (((ack - this.#sndMax) | 0) > 0) {
      this.#wantAck();
      return false;
    }
    const window = rawWindow << this.#sndScale;
    let advance = (ack - this.#sndUna) | 0;
    if (advance > 0) {
      if (this.state === STATE_SYN_RECEIVED) {
        this.#establish();
        advance--;
        this.#sndUna = (this.#sndUna + 1) | 0;
        this.#windowSeq = sequence;
        this.#windowAck = ack;
        this.#sndWindow = window;
      }
      this.#sndUna = ack;
      // The FIN comes after all bytes.
      const bytes = Math.min(advance, this.#buffer.length);
      this.#buffer.consume(bytes);
      if (advance > bytes) this.#finAcked = true;
      if (((this.#sndNxt - ack) | 0) < 0) this.#sndNxt = ack;
      this.#retries = 0;
      this.#duplicates = 0;
      if (this.#congestionWindow < NO_LIMIT)
        this.#congestionWindow = Math.min(NO_LIMIT, this.#congestionWindow + advance);
      if (this.#sndUna === this.#sndMax) this.#clearTimer();
      else this.#setTimer(RTO_MS);
      if (this.#recovering) {
        if (((this.#recover - ack) | 0) > 0) this.#retransmitOne();
        else this.#recovering = false;
      }
      if (this.#hostPaused && this.#buffer.reserve(SEND_ROOM_BYTES)) {
        this.#hostPaused = false;
        this.stream?.resume();
      }
    } else if (advance === 0 && pure && this.#sndMax !== ack && window === this.#sndWindow) {
      if (++this.#duplicates === DUPLICATES && !this.#recovering) {
        this.#recovering = true;
        this.#recover = this.#sndMax;
        this.#retransmitOne();
      }
    }
    // A guest whose window is shut and that says so is alive.
    if (advance === 0 && window === 0) this.#retries = Math.min(this.#retries, PROBE_BACKOFF_MAX);
    const newer = (sequence - this.#windowSeq) | 0;
    if (advance >= 0 && (newer > 0 || (newer === 0 && ((ack - this.#windowAck) | 0) >= 0))) {
      // The byte of a probe may have been dropped.
      if (this.#sndWindow === 0 && window > 0) this.#sndNxt = this.#sndUna;
      this.#sndWindow = window;
      this.#windowSeq = sequence;
      this.#windowAck = ack;
    }
    this.#finishIfDone();
    return this.state !== STATE_CLOSED;
  }

  /** Data and FIN. False: the connection is gone, or nothing new came of it. */
  #receive(b: Uint8Array, data: number, length: number, offset: number, fin: boolean): boolean {
    if (!this.#inbox.receive(b, data, length, offset, fin, this.stream)) {
      // Say again what is expected, at once, so that three of these are seen as three.
      this.#sendAck();
      return true;
    }
    this.#wantAck();
    this.#finishIfDone();
    return this.state === STATE_ESTABLISHED;
  }

  /** The host took bytes: tells the guest of the window when it has grown by much. */
  #updateWindow(): void {
    if (this.state !== STATE_ESTABLISHED || !this.#inbox.hasGrown) return;
    this.#sendAck();
    this.#owner.flush();
  }

  /** The end of a batch of segments from the guest. */
  endBatch(): void {
    if (this.state === STATE_CLOSED) return;
    this.#inbox.flush(this.stream);
    if (this.#ackWanted) this.#sendAck();
  }

  #wantAck(): void {
    this.#ackWanted = true;
    this.#owner.touch(this);
  }

  // ---- from the host -----------------------------------------------------------------------------------------------

  data(bytes: Uint8Array): boolean {
    if (this.state === STATE_CLOSED) return true;
    // A stream hands over at most SEND_ROOM_BYTES, for which there is room, or it would have been told to wait.
    if (!this.#buffer.reserve(bytes.length)) {
      this.#reset();
      return true;
    }
    this.#buffer.push(bytes);
    this.#output();
    this.#owner.flush();
    this.#hostPaused = !this.#buffer.reserve(SEND_ROOM_BYTES);
    return !this.#hostPaused;
  }

  end(): void {
    this.#hostEnded = true;
    if (this.state !== STATE_ESTABLISHED) return;
    this.#output();
    this.#owner.flush();
  }

  failed(failure: StreamFailure): void {
    if (this.state === STATE_CLOSED) return;
    this.stream = null;
    if (this.state === STATE_CONNECTING && failure === 'unreachable') this.#owner.hostUnreachable(this);
    // After a timeout the guest's own TCP knows how long to wait.
    if (this.state !== STATE_CONNECTING || (failure !== 'timeout' && failure !== 'unreachable')) this.#sendReset();
    this.#close();
    this.#owner.flush();
  }

  // ---- sending to the guest ----------------------------------------------------------------------------------------

  /** Sends what window and buffer allow, then the FIN when its time has come. */
  #output(): void {
    if (this.state !== STATE_ESTABLISHED || this.blocked) return;
    const buffer = this.#buffer;
    const limit = this.#segmentMax;
    for (;;) {
      const inFlight = (this.#sndNxt - this.#sndUna) | 0;
      const unsent = buffer.length - inFlight;
      if (unsent <= 0) break;
      const window = Math.min(this.#sndWindow, this.#congestionWindow) - inFlight;
      let count = Math.min(unsent, window, limit);
      if (count <= 0 || (count < this.#mss && count < unsent && inFlight > 0)) break;
      // Whole segments as long as more follow; what the ring's end cuts goes on its own.
      if (count < unsent && count > this.#mss) count -= count % this.#mss;
      count = Math.min(count, buffer.contiguous(inFlight));
      const flags = count === unsent ? TCP_ACK | TCP_PSH : TCP_ACK;
      if (!this.#emitData(flags, this.#sndNxt, inFlight, count)) return;
      this.#advance(count);
    }
    if (this.#hostEnded && !this.#finAcked && ((this.#sndNxt - this.#sndUna) | 0) === buffer.length) {
      if (!this.#emitData(TCP_ACK | TCP_FIN, this.#sndNxt, 0, 0)) return;
      this.#advance(1);
    }
    // The guest's window is shut: probe it, lest its opening is lost.
    if (buffer.length > 0 && this.#sndNxt === this.#sndUna && this.deadlineMs === Number.POSITIVE_INFINITY)
      this.#setTimer(RTO_MS << Math.min(this.#retries, PROBE_BACKOFF_MAX));
  }

  /** Payload of the largest frame to send. */
  get #segmentMax(): number {
    return this.#owner.gso ? Math.floor(GSO_PAYLOAD_MAX / this.#mss) * this.#mss : this.#mss;
  }

  #advance(count: number): void {
    this.#sndNxt = (this.#sndNxt + count) | 0;
    if (((this.#sndNxt - this.#sndMax) | 0) > 0) this.#sndMax = this.#sndNxt;
    if (this.deadlineMs === Number.POSITIVE_INFINITY) this.#setTimer(RTO_MS);
  }

  #retransmitOne(): void {
    const buffer = this.#buffer;
    const sent = Math.min(buffer.length, (this.#sndMax - this.#sndUna) | 0);
    const count = Math.min(this.#segmentMax, sent, buffer.length > 0 ? buffer.contiguous(0) : 0);
    if (count > 0) this.#emitData(TCP_ACK, this.#sndUna, 0, count);
    else if (this.#hostEnded && !this.#finAcked) this.#emitData(TCP_ACK | TCP_FIN, this.#sndUna, 0, 0);
  }

  #emitData(flags: number, sequence: number, position: number, count: number): boolean {
    const { next } = this.#inbox;
    const window = this.#inbox.offer();
    const { bytes } = this.#buffer;
    const made =
      count > 0
        ? this.#segments.data(flags, sequence, next, window, bytes, this.#buffer.index(position), count, this.#mss)
        : this.#segments.segment(flags, sequence, next, window);
    this.#ackWanted = !this.#owner.trySend(made);
    if (this.#ackWanted) this.#owner.block(this);
    return !this.#ackWanted;
  }

  #sendAck(): void {
    this.#emitData(TCP_ACK, this.#sndNxt, 0, 0);
  }

  #sendReset(): void {
    this.#owner.trySend(this.#segments.segment(TCP_RST | TCP_ACK, this.#sndNxt, this.#inbox.next, 0));
  }

  /** The guest has room again. */
  resumeSending(): void {
    if (this.state === STATE_CLOSED) return;
    this.#output();
    if (this.#ackWanted && !this.blocked) this.#sendAck();
  }

  // ---- time --------------------------------------------------------------------------------------------------------

  #setTimer(delayMs: number): void {
    this.deadlineMs = this.#owner.nowMs() + delayMs;
    this.#owner.armTimer();
  }

  #clearTimer(): void {
    this.deadlineMs = Number.POSITIVE_INFINITY;
  }

  onTimer(): void {
    this.#clearTimer();
    switch (this.state) {
      case STATE_TIME_WAIT:
        this.#close();
        return;
      case STATE_SYN_SENT:
      case STATE_SYN_RECEIVED:
        if (++this.#retries > SYN_RETRIES_MAX) this.#reset();
        else this.#sendSyn();
        return;
      case STATE_ESTABLISHED:
        this.#onRetransmitTimer();
        return;
      default:
        return;
    }
  }

  #onRetransmitTimer(): void {
    // A guest that takes no frames has not lost any.
    if (this.blocked) {
      this.#setTimer(RTO_MS);
      return;
    }
    if (++this.#retries > RETRIES_MAX) {
      this.#reset();
      return;
    }
    this.#setTimer(Math.min(RTO_MAX_MS, RTO_MS * 2 ** this.#retries));
    this.#recovering = false;
    this.#duplicates = 0;
    const probing = this.#sndWindow === 0 && this.#buffer.length > 0;
    this.#sndNxt = this.#sndUna;
    if (probing) {
      if (this.#emitData(TCP_ACK, this.#sndUna, 0, 1)) this.#advance(1);
      return;
    }
    // Everything is sent again, but no faster than acknowledgements come.
    this.#congestionWindow = this.#mss;
    this.#output();
  }

  // ---- closing -----------------------------------------------------------------------------------------------------

  #finishIfDone(): void {
    if (this.state !== STATE_ESTABLISHED || !this.#inbox.ended || !this.#finAcked) return;
    this.state = STATE_TIME_WAIT;
    // All that the guest sent goes to the host before the stream is let go of.
    this.#inbox.flush(this.stream);
    this.stream?.close();
    this.stream = null;
    this.#buffer.release();
    this.#setTimer(TIME_WAIT_MS);
  }

  /** The guest reset the connection. */
  #abandon(): void {
    this.#close();
  }

  /** We reset it. */
  #reset(): void {
    this.#sendReset();
    this.#close();
    this.#owner.flush();
  }

  #close(): void {
    if (this.state === STATE_CLOSED) return;
    this.state = STATE_CLOSED;
    this.stream?.reset();
    this.stream = null;
    this.#buffer.release();
    this.#inbox.release();
    this.#clearTimer();
    this.#owner.remove(this);
  }

  /** The table has no use for it any more. */
  destroy(): void {
    this.#close();
  }
}
