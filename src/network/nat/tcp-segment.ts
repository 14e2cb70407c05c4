/**
 * TCP's header: its numbers, its options, and the frame that one connection fills again and again.
 * Source: RFC 9293 (3.1), RFC 7323 (2.2).
 */

import { fold } from '../checksum.ts';
import { CHECKSUM_PARTIAL, Frame, GSO_TCPV4 } from '../frame.ts';
import { PROTOCOL_TCP } from '../packet.ts';
import { IP, IP_DONT_FRAGMENT, IPV4_HEADER_BYTES, L4, read16, write16, write32, writeHeaders } from './ipv4.ts';

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
const TCP_MSS = 1460;
/** When the guest names none. Source: RFC 9293 (3.7.1). */
const MSS_DEFAULT = 536;
const MSS_MIN = 64;
const SCALE_MAX = 14;
/** Of the windows that we offer. */
export const WINDOW_SCALE = 5;

export interface SynOptions {
  readonly mss: number;
  /** Shift of the other side's windows; -1: it knows no scaling, and neither must we. */
  readonly scale: number;
}

/** What the options of a SYN say; `headerLength` has been checked. */
export function readSynOptions(b: Uint8Array, l4: number, headerLength: number): SynOptions {
  let mss = MSS_DEFAULT;
  let scale = -1;
  const end = l4 + headerLength;
  for (let at = l4 + TCP_HEADER_BYTES; at < end; ) {
    const kind = b[at];
    if (kind === OPTION_END) break;
    if (kind === OPTION_NOP) {
      at++;
      continue;
    }
    if (at + 2 > end) break;
    const length = b[at + 1];
    if (length < 2 || at + length > end) break;
    if (kind === OPTION_MSS && length === 4) mss = Math.min(TCP_MSS, Math.max(MSS_MIN, read16(b, at + 2)));
    if (kind === OPTION_WINDOW_SCALE && length === 3) scale = Math.min(SCALE_MAX, b[at + 2]);
    at += length;
  }
  return { mss, scale };
}

const frame = new Frame();

/** Makes the segments of one connection, from the far side to the guest. All but what changes is written once. */
export class SegmentWriter {
  readonly #header: Uint8Array;
  /** The IP header's sum without its length, and the pseudo-header's without the segment's. */
  readonly #ipSum: number;
  readonly #pseudo: number;

  constructor(
    guestMac: Uint8Array,
    gatewayMac: Uint8Array,
    source: number,
    sourcePort: number,
    guestIp: number,
    guestPort: number,
  ) {
    const h = new Uint8Array(L4 + TCP_HEADER_BYTES + SYN_OPTION_BYTES);
    writeHeaders(h, guestMac, gatewayMac, source, guestIp, PROTOCOL_TCP, 0, 0, IP_DONT_FRAGMENT);
    write16(h, L4, sourcePort);
    write16(h, L4 + 2, guestPort);
    h[L4 + 20] = OPTION_MSS;
    h[L4 + 21] = 4;
    write16(h, L4 + 22, TCP_MSS);
    this.#header = h;
    this.#ipSum = fold((read16(h, IP + 10) ^ 0xffff) + 0xffff - IPV4_HEADER_BYTES);
    this.#pseudo = fold(source + guestIp + PROTOCOL_TCP);
  }

  /** A SYN, with ACK or without. Borrowed until the next one is made, of whatever connection. */
  syn(flags: number, sequence: number, ack: number, scaled: boolean): Frame {
    const h = this.#header;
    h[L4 + 24] = scaled ? OPTION_NOP : OPTION_END;
    h[L4 + 25] = scaled ? OPTION_WINDOW_SCALE : OPTION_END;
    h[L4 + 26] = scaled ? 3 : 0;
    h[L4 + 27] = scaled ? WINDOW_SCALE : 0;
    // The window of a SYN is never scaled.
    return this.#make(flags, sequence, ack, 0xffff, SYN_OPTION_BYTES, 0);
  }

  segment(flags: number, sequence: number, ack: number, window: number): Frame {
    return this.#make(flags, sequence, ack, window, 0, 0);
  }

  /** With `count` bytes of data from `start` of `bytes`; more than `mss` of them make it a GSO frame. */
  data(
    flags: number,
    sequence: number,
    ack: number,
    window: number,
    bytes: Uint8Array,
    start: number,
    count: number,
    mss: number,
  ): Frame {
    const made = this.#make(flags, sequence, ack, window, 0, count).setTail(bytes, start, count);
    if (count > mss) {
      made.gsoType = GSO_TCPV4;
      made.gsoSize = mss;
    }
    return made;
  }

  #make(flags: number, sequence: number, ack: number, window: number, optionBytes: number, count: number): Frame {
    const h = this.#header;
    const headerBytes = TCP_HEADER_BYTES + optionBytes;
    const ipLength = IPV4_HEADER_BYTES + headerBytes + count;
    write16(h, IP + 2, ipLength);
    write16(h, IP + 10, fold(this.#ipSum + ipLength) ^ 0xffff);
    write32(h, L4 + 4, sequence);
    write32(h, L4 + 8, (flags & TCP_ACK) !== 0 ? ack : 0);
    h[L4 + 12] = (headerBytes / 4) << 4;
    h[L4 + 13] = flags;
    write16(h, L4 + 14, window);
    write16(h, L4 + 16, fold(this.#pseudo + headerBytes + count));
    frame.set(h, L4 + headerBytes);
    frame.checksum = CHECKSUM_PARTIAL;
    return frame;
  }
}
