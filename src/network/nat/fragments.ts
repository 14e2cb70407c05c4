/**
 * Puts the fragments of IPv4 packets together. Few packets at a time, each for a short time, and a packet whose fragments overlap
 * or disagree is thrown away whole. Source: RFC 791 (3.2), RFC 815, RFC 1858 (why overlaps are refused).
 */

import { IP, IP_MORE_FRAGMENTS, IP_OFFSET_MASK, L4, read16, read32, write16 } from './ipv4.ts';

const PACKETS_MAX = 16;
const TIMEOUT_MS = 15_000;
const PAYLOAD_MAX = 65515;
const BLOCKS = 8192;

class Assembly {
  readonly bytes = new Uint8Array(L4 + 65536);
  /** A bit for each 8 bytes that have come. */
  readonly blocks = new Uint32Array(BLOCKS / 32);
  used = false;
  bad = false;
  source = 0;
  destination = 0;
  /** Identification and protocol. */
  key = 0;
  deadlineMs = 0;
  received = 0;
  /** Payload bytes, or -1 as long as the last fragment has not come. */
  total = -1;
}

export class Fragments {
  readonly #assemblies: Assembly[] = [];

  /**
   * Takes a fragment: `b` is a frame with its IP header at IP, payload from `l4` to `end`. Answers the whole packet as a frame
   * with a header without options and its length in `length`, or null. The answer is good until the next call.
   */
  add(b: Uint8Array, l4: number, end: number, nowMs: number): { bytes: Uint8Array; length: number } | null {
    const field = read16(b, IP + 6);
    const offset = (field & IP_OFFSET_MASK) * 8;
    const more = (field & IP_MORE_FRAGMENTS) !== 0;
    const count = end - l4;
    const a = this.#find(b, nowMs);
    if (count === 0 || offset + count > PAYLOAD_MAX || (more && (count & 7) !== 0)) a.bad = true;
    const last = offset + count;
    if (!more) {
      if (a.total >= 0 && a.total !== last) a.bad = true;
      a.total = last;
    }
    if (a.total >= 0 && last > a.total) a.bad = true;
    if (a.bad) return null;
    for (let block = offset >> 3; block < (last + 7) >> 3; block++) {
      const bit = 1 << (block & 31);
      if ((a.blocks[block >> 5] & bit) !== 0) {
        a.bad = true;
        return null;
      }
      a.blocks[block >> 5] |= bit;
    }
    a.bytes.set(b.subarray(l4, end), L4 + offset);
    a.received += count;
    if (a.total < 0 || a.received !== a.total) return null;
    a.used = false;
    a.bytes.set(b.subarray(0, L4));
    a.bytes[IP] = 0x45;
    write16(a.bytes, IP + 2, 20 + a.total);
    write16(a.bytes, IP + 6, 0);
    return { bytes: a.bytes, length: L4 + a.total };
  }

  #find(b: Uint8Array, nowMs: number): Assembly {
    const source = read32(b, IP + 12);
    const destination = read32(b, IP + 16);
    const key = (read16(b, IP + 4) << 8) | b[IP + 9];
    let free: Assembly | null = null;
    let oldest: Assembly | null = null;
    for (const a of this.#assemblies) {
      if (a.used && a.deadlineMs <= nowMs) a.used = false;
      if (!a.used) free = a;
      else if (a.source === source && a.destination === destination && a.key === key) return a;
      else if (oldest === null || a.deadlineMs < oldest.deadlineMs) oldest = a;
    }
    if (free === null && this.#assemblies.length < PACKETS_MAX) {
      free = new Assembly();
      this.#assemblies.push(free);
    }
    const a = free ?? oldest!;
    a.used = true;
    a.bad = false;
    a.source = source;
    a.destination = destination;
    a.key = key;
    a.deadlineMs = nowMs + TIMEOUT_MS;
    a.received = 0;
    a.total = -1;
    a.blocks.fill(0);
    return a;
  }
}
