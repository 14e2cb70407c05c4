/**
 * TCP's header: its numbers, its options, and the frame that one connection fills again and again.
 * Source: RFC 9293 (3.1), RFC 7323 (2.2).
 */

import { fold } from '../checksum.ts';
import { CHECKSUM_PARTIAL, Frame, GSO_TCPV4, GSO_TCPV6 } from '../frame.ts';
import { PROTOCOL_TCP } from '../packet.ts';
import { IP, IP_DONT_FRAGMENT, IPV4_HEADER_BYTES, read16, write16, write32 } from './ipv4.ts';
import { isIpv6, L4_IPV6 } from './ipv6.ts';
import type { Lan } from './lan.ts';
import { payloadMax, pseudoSumOf, writePacketHeaders } from './packet-headers.ts';

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

/** What the options of a SYN say; `headerLength` has been checked. `mssMax`: more is of no use. */
export function readSynOptions(b: Uint8Array, l4: number, headerLength: number, mssMax: number): SynOptions {
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
    if (kind === OPTION_MSS && length === 4) mss = Math.min(mssMax, Math.max(MSS_MIN, read16(b, at + 2)));
    if (kind === OPTION_WINDOW_SCALE && length === 3) scale = Math.min(SCALE_MAX, b[at + 2]);
    at += length;
  }
  return { mss, scale };
}

const frame = new Frame();

/** Makes the segments of one connection, from the far side to the guest. All but what changes is written once. */
export class SegmentWriter {
  /** Of segments that an Ethernet of 1500 bytes carries. */
  readonly mss: number;
  readonly #header: Uint8Array;
  readonly #l4: number;
  readonly #isIpv6: boolean;
  /** The IPv4 header's sum without its length, and the pseudo-header's without the segment's. */
  readonly #ipSum: number;
  readonly #pseudo: number;

  constructor(lan: Lan, source: number, sourcePort: number, guestIp: number, guestPort: number) {
    const h = new Uint8Array(L4_IPV6 + TCP_HEADER_BYTES + SYN_OPTION_BYTES);
    const l4 = writePacketHeaders(h, lan, source, guestIp, PROTOCOL_TCP, 0, 0, IP_DONT_FRAGMENT);
    this.mss = payloadMax(source) - TCP_HEADER_BYTES;
    write16(h, l4, sourcePort);
    write16(h, l4 + 2, guestPort);
    h[l4 + 20] = OPTION_MSS;
    h[l4 + 21] = 4;
    write16(h, l4 + 22, this.mss);
    this.#header = h;
    this.#l4 = l4;
    this.#isIpv6 = isIpv6(source);
    this.#ipSum = fold((read16(h, IP + 10) ^ 0xffff) + 0xffff - IPV4_HEADER_BYTES);
    this.#pseudo = pseudoSumOf(h, source, guestIp, PROTOCOL_TCP, 0);
  }

  /** A SYN, with ACK or without. Borrowed until the next one is made, of whatever connection. */
  syn(flags: number, sequence: number, ack: number, scaled: boolean): Frame {
    const h = this.#header;
    const l4 = this.#l4;
    h[l4 + 24] = scaled ? OPTION_NOP : OPTION_END;
    h[l4 + 25] = scaled ? OPTION_WINDOW_SCALE : OPTION_END;
    h[l4 + 26] = scaled ? 3 : 0;
    h[l4 + 27] = scaled ? WINDOW_SCALE : 0;
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
      made.gsoType = this.#isIpv6 ? GSO_TCPV6 : GSO_TCPV4;
      made.gsoSize = mss;
    }
    return made;
  }

  #make(flags: number, sequence: number, ack: number, window: number, optionBytes: number, count: number): Frame {
    const h = this.#header;
    const headerBytes = TCP_HEADER_BYTES + optionBytes;
    const length = headerBytes + count;
    const l4 = this.#l4;
    if (this.#isIpv6) write16(h, IP + 4, length);
    else {
      write16(h, IP + 2, IPV4_HEADER_BYTES + length);
      write16(h, IP + 10, fold(this.#ipSum + IPV4_HEADER_BYTES + length) ^ 0xffff);
    }
    write32(h, l4 + 4, sequence);
    write32(h, l4 + 8, (flags & TCP_ACK) !== 0 ? ack : 0);
    h[l4 + 12] = (headerBytes / 4) << 4;
    h[l4 + 13] = flags;
    write16(h, l4 + 14, window);
    write16(h, l4 + 16, fold(this.#pseudo + length));
    frame.set(h, l4 + headerBytes);
    frame.checksum = CHECKSUM_PARTIAL;
    return frame;
  }
}
