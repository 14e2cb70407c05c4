/**
 * One TCP connection of the guest: this end speaks TCP with the guest, and hands the bytes to a stream of the host.
 *
 * The cable to the guest loses nothing as a rule, so there is no congestion control beyond what a lost segment asks for, no
 * selective acknowledgement, and segments out of order are dropped and asked for again. What can be lost is (a rate limit, a guest
 * that drops from a full queue), so bytes to the guest are kept until acknowledged and sent again: after three duplicate
 * acknowledgements, or after a time that doubles.
 *
 * Memory is bounded both ways: the window that the guest is offered shrinks by what the host has not taken, and the host is not
 * read when the send buffer is full.
 *
 * Source: RFC 9293 (3.10.7 segment arrives, 3.8.6 windows), RFC 7323 (window scale), RFC 5961 (RST and SYN in the window),
 * RFC 6298 (5, timer), RFC 6582 (partial acknowledgements).
 */

import { fold } from '../checksum.ts';
import { CHECKSUM_PARTIAL, Frame, GSO_TCPV4 } from '../frame.ts';
import { PROTOCOL_TCP } from '../packet.ts';
import { CHUNK_BYTES, type ChunkPool } from './chunk-pool.ts';
import type { HostStream, StreamEvents, StreamFailure } from './host-network.ts';
import { IP, IPV4_HEADER_BYTES, L4, read16, write16, write32, writeHeaders } from './ipv4.ts';
import { type BufferBudget, SendBuffer } from './send-buffer.ts';

export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_RST = 0x04;
export const TCP_PSH = 0x08;
export const TCP_ACK = 0x10;

export const TCP_HEADER_BYTES = 20;
const OPTION_END = 0;
const OPTION_NOP = 1;
const OPTION_MSS = 2;
const OPTION_WINDOW_SCALE = 3;
const SYN_OPTION_BYTES = 8;

/** Of an Ethernet of 1500 bytes. */
export const TCP_MSS = 1460;
/** When the guest names none. Source: RFC 9293 (3.7.1). */
const MSS_DEFAULT = 536;
const MSS_MIN = 64;
/** Payload of a GSO frame: with its headers it takes 16 pages of the guest. */
const GSO_PAYLOAD_MAX = 61_440;

const WINDOW_MAX = 1 << 20;
const WINDOW_SCALE = 5;
/** A window this small is always offered, whatever the budget. */
const WINDOW_MIN = 16 * 1024;

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

const frame = new Frame();

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
  readonly #header: Uint8Array;
  readonly #ipSum: number;
  readonly #pseudo: number;

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
  #mss = MSS_DEFAULT;
  #congestionWindow = NO_LIMIT;
  #duplicates = 0;
  #recovering = false;
  #recover = 0;
  #retries = 0;
  #hostEnded = false;
  #finAcked = false;
  #hostPaused = false;

  // From the guest.
  #rcvNxt = 0;
  /** One past the last sequence number that the guest may send. */
  #rcvEdge = 0;
  #rcvScale = 0;
  #ackWanted = false;
  #guestFin = false;
  #endPending = false;
  #chunk: Uint8Array | null = null;
  #chunkUsed = 0;
  /** Bytes that the host has not taken, those in the chunk included. */
  #pending = 0;

  constructor(
    owner: FlowOwner,
    guestMac: Uint8Array,
    gatewayMac: Uint8Array,
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
    const h = new Uint8Array(L4 + TCP_HEADER_BYTES + SYN_OPTION_BYTES);
    writeHeaders(h, guestMac, gatewayMac, remoteIp, guestIp, PROTOCOL_TCP, 0, 0, 0x4000);
    write16(h, L4, remotePort);
    write16(h, L4 + 2, guestPort);
    this.#header = h;
    // The IP header's sum without its length.
    this.#ipSum = fold((read16(h, IP + 10) ^ 0xffff) + 0xffff - IPV4_HEADER_BYTES);
    this.#pseudo = fold(remoteIp + guestIp + PROTOCOL_TCP);
  }

  // ---- opening -----------------------------------------------------------------------------------------------------

  /** The guest's SYN: TCP header at `l4`, `headerLength` long. The host's stream is opened by the caller. */
  acceptSyn(b: Uint8Array, l4: number, headerLength: number, sequence: number): void {
    this.#rcvNxt = (sequence + 1) | 0;
    this.#readOptions(b, l4, headerLength);
    this.#sndWindow = read16(b, l4 + 14);
  }

  /** For a connection from outside: sends SYN. */
  open(): void {
    this.state = STATE_SYN_SENT;
    this.#sendSyn();
  }

  #readOptions(b: Uint8Array, l4: number, headerLength: number): void {
    let at = l4 + TCP_HEADER_BYTES;
    const end = l4 + headerLength;
    while (at < end) {
      const kind = b[at];
      if (kind === OPTION_END) break;
      if (kind === OPTION_NOP) {
        at++;
        continue;
      }
      if (at + 2 > end) break;
      const length = b[at + 1];
      if (length < 2 || at + length > end) break;
      if (kind === OPTION_MSS && length === 4) this.#mss = Math.min(TCP_MSS, Math.max(MSS_MIN, read16(b, at + 2)));
      if (kind === OPTION_WINDOW_SCALE && length === 3) {
        this.#sndScale = Math.min(14, b[at + 2]);
        this.#rcvScale = WINDOW_SCALE;
      }
      at += length;
    }
  }

  #sendSyn(): void {
    const h = this.#header;
    const opening = this.state === STATE_SYN_SENT;
    h[L4 + 20] = OPTION_MSS;
    h[L4 + 21] = 4;
    write16(h, L4 + 22, TCP_MSS);
    const scaled = opening || this.#rcvScale > 0;
    h[L4 + 24] = scaled ? OPTION_NOP : OPTION_END;
    h[L4 + 25] = scaled ? OPTION_WINDOW_SCALE : OPTION_END;
    h[L4 + 26] = scaled ? 3 : 0;
    h[L4 + 27] = scaled ? WINDOW_SCALE : 0;
    // The window of a SYN is never scaled.
    this.#rcvEdge = (this.#rcvNxt + 0xffff) | 0;
    this.#sndNxt = (this.#iss + 1) | 0;
    this.#sndMax = this.#sndNxt;
    write16(h, L4 + 14, 0xffff);
    this.#emit(opening ? TCP_SYN : TCP_SYN | TCP_ACK, this.#iss, 0, 0, SYN_OPTION_BYTES);
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
    const offset = (sequence - this.#rcvNxt) | 0;
    const room = (this.#rcvEdge - this.#rcvNxt) | 0;
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
      if (this.#receive(b, data, length, offset, room, (flags & TCP_FIN) !== 0)) return;
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
    if ((flags & TCP_ACK) === 0 || ((ack - this.#iss) | 0) !== 1) return;
    if ((flags & TCP_RST) !== 0) {
      this.#abandon();
      return;
    }
    if ((flags & TCP_SYN) === 0) return;
    this.#rcvNxt = (sequence + 1) | 0;
    this.#rcvEdge = (this.#rcvNxt + 0xffff) | 0;
    this.#readOptions(b, l4, headerLength);
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
    this.stream?.resume();
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
      if (this.#hostPaused && this.#buffer.reserve(CHUNK_BYTES)) {
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

  /** Data and FIN. True: the connection is gone. */
  #receive(b: Uint8Array, data: number, length: number, offset: number, room: number, fin: boolean): boolean {
    if (offset > 0 || this.#guestFin) {
      // Out of order, or after the guest's FIN: say again what is expected, at once, so that three of these are seen as three.
      this.#sendAck();
      return false;
    }
    const skip = -offset;
    const fresh = Math.min(length - skip, room);
    if (fresh > 0) {
      this.#take(b, data + skip, fresh);
      this.#rcvNxt = (this.#rcvNxt + fresh) | 0;
    }
    if (fin && fresh === Math.max(0, length - skip)) {
      this.#rcvNxt = (this.#rcvNxt + 1) | 0;
      this.#guestFin = true;
      this.#endPending = true;
    }
    this.#wantAck();
    this.#finishIfDone();
    return this.state === STATE_CLOSED;
  }

  #take(b: Uint8Array, start: number, count: number): void {
    this.#pending += count;
    this.#owner.receiveBudget.left -= count;
    while (count > 0) {
      this.#chunk ??= this.#owner.pool.take();
      const n = Math.min(count, CHUNK_BYTES - this.#chunkUsed);
      this.#chunk.set(b.subarray(start, start + n), this.#chunkUsed);
      this.#chunkUsed += n;
      start += n;
      count -= n;
      if (this.#chunkUsed === CHUNK_BYTES) this.#writeChunk();
    }
  }

  #writeChunk(): void {
    const chunk = this.#chunk;
    const stream = this.stream;
    if (chunk === null || stream === null) return;
    const count = this.#chunkUsed;
    this.#chunk = null;
    this.#chunkUsed = 0;
    stream.write(count === CHUNK_BYTES ? chunk : chunk.subarray(0, count), () => {
      this.#owner.pool.give(chunk);
      if (this.state === STATE_CLOSED) return;
      this.#pending -= count;
      this.#owner.receiveBudget.left += count;
      this.#updateWindow();
    });
  }

  /** The host took bytes: tells the guest of the window when it has grown by much. */
  #updateWindow(): void {
    if (this.#guestFin || this.state !== STATE_ESTABLISHED) return;
    const now = (this.#rcvEdge - this.#rcvNxt) | 0;
    if (this.#windowFree() - now >= WINDOW_MAX / 4) {
      this.#sendAck();
      this.#owner.flush();
    }
  }

  #windowFree(): number {
    return Math.max(0, Math.min(WINDOW_MAX - this.#pending, Math.max(WINDOW_MIN, this.#owner.receiveBudget.left)));
  }

  /** The end of a batch of segments from the guest. */
  endBatch(): void {
    if (this.state === STATE_CLOSED) return;
    if (this.#chunkUsed > 0) this.#writeChunk();
    if (this.#endPending) {
      this.#endPending = false;
      this.stream?.end();
    }
    if (this.#ackWanted) this.#sendAck();
  }

  #wantAck(): void {
    this.#ackWanted = true;
    this.#owner.touch(this);
  }

  // ---- from the host -----------------------------------------------------------------------------------------------

  data(bytes: Uint8Array): boolean {
    if (this.state === STATE_CLOSED) return true;
    // A stream hands over at most CHUNK_BYTES, for which there is room, or it would have been told to wait.
    if (!this.#buffer.reserve(bytes.length)) {
      this.#reset();
      return true;
    }
    this.#buffer.push(bytes);
    this.#output();
    this.#owner.flush();
    this.#hostPaused = !this.#buffer.reserve(CHUNK_BYTES);
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
    this.#writeWindow();
    if (this.#emit(flags, sequence, position, count, 0)) {
      this.#ackWanted = false;
      return true;
    }
    this.#owner.block(this);
    return false;
  }

  /** Puts the window to offer into the header. The edge never moves back. */
  #writeWindow(): void {
    const scale = this.#rcvScale;
    const offered = Math.max((this.#rcvEdge - this.#rcvNxt) | 0, this.#windowFree());
    const value = Math.min(0xffff, (offered + (1 << scale) - 1) >> scale);
    const edge = (this.#rcvNxt + (value << scale)) | 0;
    if (((edge - this.#rcvEdge) | 0) > 0) this.#rcvEdge = edge;
    write16(this.#header, L4 + 14, value);
  }

  #sendAck(): void {
    this.#writeWindow();
    if (this.#emit(TCP_ACK, this.#sndNxt, 0, 0, 0)) this.#ackWanted = false;
    else {
      this.#ackWanted = true;
      this.#owner.block(this);
    }
  }

  #sendReset(): void {
    write16(this.#header, L4 + 14, 0);
    this.#emit(TCP_RST | TCP_ACK, this.#sndNxt, 0, 0, 0);
  }

  #emit(flags: number, sequence: number, position: number, count: number, optionBytes: number): boolean {
    const h = this.#header;
    const headerBytes = TCP_HEADER_BYTES + optionBytes;
    const ipLength = IPV4_HEADER_BYTES + headerBytes + count;
    write16(h, IP + 2, ipLength);
    write16(h, IP + 10, fold(this.#ipSum + ipLength) ^ 0xffff);
    write32(h, L4 + 4, sequence);
    write32(h, L4 + 8, (flags & TCP_ACK) !== 0 ? this.#rcvNxt : 0);
    h[L4 + 12] = (headerBytes / 4) << 4;
    h[L4 + 13] = flags;
    write16(h, L4 + 16, fold(this.#pseudo + headerBytes + count));
    frame.set(h, L4 + headerBytes);
    if (count > 0) frame.setTail(this.#buffer.bytes, this.#buffer.index(position), count);
    frame.checksum = CHECKSUM_PARTIAL;
    if (count > this.#mss) {
      frame.gsoType = GSO_TCPV4;
      frame.gsoSize = this.#mss;
    }
    return this.#owner.trySend(frame);
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
    if (this.state !== STATE_ESTABLISHED || !this.#guestFin || !this.#finAcked) return;
    this.state = STATE_TIME_WAIT;
    this.endBatchBeforeWait();
    this.#setTimer(TIME_WAIT_MS);
  }

  /** All that the guest sent goes to the host before the stream is let go of. */
  endBatchBeforeWait(): void {
    if (this.#chunkUsed > 0) this.#writeChunk();
    if (this.#endPending) {
      this.#endPending = false;
      this.stream?.end();
    }
    this.stream?.close();
    this.stream = null;
    this.#buffer.release();
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
    this.#owner.receiveBudget.left += this.#pending;
    this.#pending = 0;
    if (this.#chunk !== null) this.#owner.pool.give(this.#chunk);
    this.#chunk = null;
    this.#clearTimer();
    this.#owner.remove(this);
  }

  /** The table has no use for it any more. */
  destroy(): void {
    this.#close();
  }
}
