/**
 * What a store keeps over its process's end: records, as bytes, in the order in which things happened.
 *
 * Two sorts. A change is a record when it is made: the requests that made it, just as the client sent them, executed again
 * when the store is read back (a transaction is one record, so it is there whole or not at all). The state of a whole
 * store is a run of records as well: nodes, domains and counters. So a journal is one or more records of state, followed by
 * changes, and reading it back is one loop.
 *
 *   record   u8 kind, then by kind:
 *   node     path, value, permissions (parents come before children; text as "n0 r5")
 *   domain   domid, gfn, port, u8 shut down, target (NO_TARGET: none)
 *   requests domid, session, sequence number, count, then for each u32 type, payload
 *   shutdown, domids, session: see below
 *
 * Numbers are little-endian u32 unless said otherwise, but for gfn, which is a float64; byte strings have their length, a
 * u32, in front. Who checks that a record is whole (a checksum) is outside; what is wrong in one that is whole is an Error.
 */
import { bytesToText, textToBytes } from './wire.ts';

/** One request as it stands in a record: it changed something, and its answer was "OK". */
export interface KeptRequest {
  readonly type: number;
  readonly payload: Uint8Array;
}

/** Names one request of one client, so that it is not done twice when it is sent again. See `session.ts`. */
export interface RequestKey {
  readonly session: string;
  readonly sequence: number;
}

export type StoreRecord =
  | { readonly kind: 'node'; readonly path: string; readonly value: Uint8Array; readonly permissions: string }
  | {
      readonly kind: 'domain';
      readonly domid: number;
      readonly gfn: number;
      readonly port: number;
      readonly isShutDown: boolean;
      readonly target: number | null;
    }
  | {
      readonly kind: 'requests';
      readonly domid: number;
      readonly key: RequestKey | null;
      readonly requests: readonly KeptRequest[];
    }
  /** A domain has shut down, and @releaseDomain has told of it. */
  | { readonly kind: 'shutdown'; readonly domid: number }
  /** The domid that the next domain gets. */
  | { readonly kind: 'domids'; readonly next: number }
  /** The last request done for a session; null: the session has ended. */
  | { readonly kind: 'session'; readonly session: string; readonly sequence: number | null }
  /** How often the store has been opened. */
  | { readonly kind: 'opened'; readonly count: number };

const KINDS = ['node', 'domain', 'requests', 'shutdown', 'domids', 'session', 'opened'] as const;
const NONE = 0xffffffff;

export function encodeRecord(record: StoreRecord): Uint8Array {
  const out = new Writer();
  out.byte(KINDS.indexOf(record.kind));
  switch (record.kind) {
    case 'node':
      out.bytes(textToBytes(record.path));
      out.bytes(record.value);
      out.bytes(textToBytes(record.permissions));
      break;
    case 'domain':
      out.u32(record.domid);
      out.f64(record.gfn);
      out.f64(record.port);
      out.byte(record.isShutDown ? 1 : 0);
      out.u32(record.target ?? NONE);
      break;
    case 'requests':
      out.u32(record.domid);
      out.bytes(textToBytes(record.key?.session ?? ''));
      out.u32(record.key?.sequence ?? 0);
      out.u32(record.requests.length);
      for (const { type, payload } of record.requests) {
        out.u32(type);
        out.bytes(payload);
      }
      break;
    case 'shutdown':
      out.u32(record.domid);
      break;
    case 'domids':
      out.u32(record.next);
      break;
    case 'session':
      out.bytes(textToBytes(record.session));
      out.byte(record.sequence === null ? 0 : 1);
      out.u32(record.sequence ?? 0);
      break;
    case 'opened':
      out.u32(record.count);
      break;
  }
  return out.finish();
}

/** Throws an Error that says what is wrong with it. */
export function decodeRecord(bytes: Uint8Array): StoreRecord {
  const from = new Reader(bytes);
  const record = decodeKind(KINDS[from.byte()], from);
  from.end();
  return record;
}

function decodeKind(kind: (typeof KINDS)[number] | undefined, from: Reader): StoreRecord {
  switch (kind) {
    case 'node':
      return { kind, path: from.text(), value: from.bytes(), permissions: from.text() };
    case 'domain': {
      const domid = from.u32();
      const gfn = from.f64();
      const port = from.f64();
      const isShutDown = from.byte() !== 0;
      const target = from.u32();
      return { kind, domid, gfn, port, isShutDown, target: target === NONE ? null : target };
    }
    case 'requests': {
      const domid = from.u32();
      const session = from.text();
      const sequence = from.u32();
      const requests: KeptRequest[] = [];
      for (let left = from.u32(); left > 0; left--) requests.push({ type: from.u32(), payload: from.bytes() });
      return { kind, domid, key: session === '' ? null : { session, sequence }, requests };
    }
    case 'shutdown':
      return { kind, domid: from.u32() };
    case 'domids':
      return { kind, next: from.u32() };
    case 'session': {
      const session = from.text();
      const isOpen = from.byte() !== 0;
      const sequence = from.u32();
      return { kind, session, sequence: isOpen ? sequence : null };
    }
    case 'opened':
      return { kind, count: from.u32() };
    default:
      throw new Error('a record of an unknown kind');
  }
}

class Writer {
  #buffer = new Uint8Array(256);
  #view = new DataView(this.#buffer.buffer);
  #length = 0;

  byte(value: number): void {
    this.#reserve(1);
    this.#buffer[this.#length++] = value;
  }

  u32(value: number): void {
    this.#reserve(4);
    this.#view.setUint32(this.#length, value, true);
    this.#length += 4;
  }

  f64(value: number): void {
    this.#reserve(8);
    this.#view.setFloat64(this.#length, value, true);
    this.#length += 8;
  }

  bytes(value: Uint8Array): void {
    this.u32(value.length);
    this.#reserve(value.length);
    this.#buffer.set(value, this.#length);
    this.#length += value.length;
  }

  finish(): Uint8Array {
    return this.#buffer.subarray(0, this.#length);
  }

  #reserve(bytes: number): void {
    if (this.#length + bytes <= this.#buffer.length) return;
    const larger = new Uint8Array(Math.max(this.#buffer.length * 2, this.#length + bytes));
    larger.set(this.#buffer.subarray(0, this.#length));
    this.#buffer = larger;
    this.#view = new DataView(larger.buffer);
  }
}

class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  byte(): number {
    return this.#bytes[this.#take(1)];
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  f64(): number {
    return this.#view.getFloat64(this.#take(8), true);
  }

  bytes(): Uint8Array {
    const length = this.u32();
    const start = this.#take(length);
    return this.#bytes.slice(start, start + length);
  }

  text(): string {
    return bytesToText(this.bytes());
  }

  end(): void {
    if (this.#at !== this.#bytes.length)
      throw new Error(`${this.#bytes.length - this.#at} bytes behind a record's end`);
  }

  #take(count: number): number {
    if (this.#bytes.length - this.#at < count) throw new Error('a record that is too short');
    const start = this.#at;
    this.#at += count;
    return start;
  }
}
