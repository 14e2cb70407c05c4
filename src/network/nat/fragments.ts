/**
 * Puts the fragments of packets of both families together. Few packets at a time, each for a short time, and a packet whose fragments overlap
 * or disagree is thrown away whole. Source: RFC 791 (3.2), RFC 815, RFC 1858 (why overlaps are refused), RFC 8200 (4.5).
 */

import { L4_IPV6 } from './ipv6.ts';

const PACKETS_MAX = 16;
const TIMEOUT_MS = 15_000;
const PAYLOAD_MAX = 65515;
const BLOCKS = 8192;

class Assembly {
  readonly bytes = new Uint8Array(L4_IPV6 + 65536);
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

export interface Fragment {
  readonly source: number;
  readonly destination: number;
  /** Identification and protocol, in one number. */
  readonly key: number;
  /** Of its payload in the packet's, in bytes. */
  readonly offset: number;
  /** It is not the last one. */
  readonly more: boolean;
}

export class Fragments {
  readonly #assemblies: Assembly[] = [];

  /**
   * Takes a fragment: payload from `from` to `end` of a frame whose headers without options are the first `headers` bytes. Answers
   * the whole packet, those headers in front, or null; the headers are as the last fragment had them. The answer is good until the next call.
   */
  add(
    { source, destination, key, offset, more }: Fragment,
    b: Uint8Array,
    headers: number,
    from: number,
    end: number,
    nowMs: number,
  ): { bytes: Uint8Array; length: number } | null {
    const count = end - from;
    const a = this.#find(source, destination, key, nowMs);
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
    a.bytes.set(b.subarray(from, end), headers + offset);
    a.received += count;
    if (a.total < 0 || a.received !== a.total) return null;
    a.used = false;
    a.bytes.set(b.subarray(0, headers));
    return { bytes: a.bytes, length: headers + a.total };
  }

  #find(source: number, destination: number, key: number, nowMs: number): Assembly {
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
