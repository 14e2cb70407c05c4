/**
 * Serves one guest's xenstore ring page.
 *
 * The page is shared memory that the guest's vCPUs write at any time. [GST] writes req[], req_prod, rsp_cons and
 * connection; [XS], which is this file, writes rsp[], req_cons, rsp_prod, server_features and error. The server's own two indices are
 * kept here: the page has copies for the guest to read, which nobody here reads back. Request bytes are copied before
 * they are looked at.
 *
 * A request:                                      A response:
 * 1. read req_prod (acquire), bound it            1. read rsp_cons (acquire), bound it
 * 2. copy bytes out of req[]                      2. copy bytes into rsp[]
 * 3. publish req_cons (release)                   3. publish rsp_prod (release)
 * 4. read req_prod again; back to 2 while there is more. Linux sends no event for bytes added before it saw 3.
 * Then, if either index moved, one event to the guest: it may wait for responses or for space.
 *
 * Requests stay in the ring while REPLIES_MAX replies are owed: the guest does not read its responses, or the store has not
 * made them yet. In the second case they are taken up when a reply comes.
 *
 * An index out of bounds, or a message over the limit, ends the service with a value in `error`, as xenstored does; the
 * guest may ask for a new start by `connection` = XENSTORE_RECONNECT.
 *
 * Source: docs/misc/xenstore-ring.txt; xen/include/public/io/xs_wire.h.
 */
import {
  XENSTORE_CONNECTED,
  XENSTORE_ERROR_NONE,
  XENSTORE_ERROR_PROTO,
  XENSTORE_ERROR_RINGIDX,
  XENSTORE_RECONNECT,
  XENSTORE_RING_SIZE,
  XENSTORE_SERVER_FEATURE_ERROR,
  XENSTORE_SERVER_FEATURE_RECONNECTION,
  XENSTORE_SERVER_FEATURE_WATCHDEPTH,
  XENSTORE_DOMAIN_INTERFACE as XSDI,
} from '../abi/io/xs-wire.ts';
import { encodeMessage, type Message, MessageDecoder } from './wire.ts';

/** The guest's connection to the store: `Connection` in this process, `LinkConnection` to one elsewhere. */
export interface RingConnection {
  /** Called when a reply or an event has come to wait that no call of `submit` has made. */
  onEvent: (() => void) | null;
  readonly isClosed: boolean;
  /** Requests that were submitted and whose replies were not taken. */
  readonly repliesWaiting: number;
  submit(request: Message): void;
  /** The oldest waiting reply or event, or null. */
  takeOutput(): Message | null;
  /** The guest starts over. */
  reset(): void;
}

export interface RingServerOptions {
  /** The ring page: 4096 bytes, 4-byte aligned, a view of memory the guest writes. */
  readonly page: Uint8Array;
  readonly connection: RingConnection;
  /** Sends the guest an event. Called after bytes were consumed or produced, never while `service` still works. */
  readonly notify: () => void;
}

/** Replies that may wait for space. Source: tools/xenstored, default of --quota outstanding. */
const REPLIES_MAX = 20;
/** Requests handled in one call, so that a guest that never stops sending leaves room for others. */
const REQUESTS_PER_CALL = 64;

const PAGE_SIZE = 4096;
const RING_MASK = XENSTORE_RING_SIZE - 1;

/** Makes the server and tells the guest, in the page, what it can do. It takes up the indices it finds there. */
export function createRingServer(options: RingServerOptions): RingServer {
  return new RingServer(options);
}

export class RingServer {
  readonly #connection: RingConnection;
  readonly #notify: () => void;
  readonly #req: Uint8Array;
  readonly #rsp: Uint8Array;
  /** The page from req_cons on, as u32. */
  readonly #words: Uint32Array;
  readonly #decoder = new MessageDecoder();
  /** The message being written, and how much of it is. */
  #writing: Uint8Array | null = null;
  #written = 0;
  #reqCons = 0;
  #rspProd = 0;
  #failed = false;
  #isServing = false;
  /** Requests may be in the ring that were left there because of REPLIES_MAX. */
  #isThrottled = false;
  /** Nothing is read or written: `hold`. */
  #isHeld = false;

  constructor({ page, connection, notify }: RingServerOptions) {
    if (page.length !== PAGE_SIZE || page.byteOffset % 4 !== 0) {
      throw new Error(`bug: xenstore ring page of ${page.length} bytes at ${page.byteOffset}`);
    }
    this.#connection = connection;
    this.#notify = notify;
    this.#req = page.subarray(XSDI.req, XSDI.req + XENSTORE_RING_SIZE);
    this.#rsp = page.subarray(XSDI.rsp, XSDI.rsp + XENSTORE_RING_SIZE);
    this.#words = new Uint32Array(page.buffer, page.byteOffset + XSDI.req_cons, (XSDI.SIZE - XSDI.req_cons) / 4);
    this.takeUp();
    connection.onEvent = () => {
      if (this.#isServing || this.#failed || this.#isHeld) return;
      // Only writes: handling requests here would run them in the middle of another client's request.
      if (this.#writeResponses()) this.#notify();
      if (this.#isThrottled && connection.repliesWaiting < REPLIES_MAX) this.#serveLater();
    };
  }

  /** Takes up the indices that stand in the page: again, when the page has come since. Nothing has been served yet. */
  takeUp(): void {
    this.#reqCons = this.#load(XSDI.req_cons);
    this.#rspProd = this.#load(XSDI.rsp_prod);
    this.#store(
      XSDI.server_features,
      XENSTORE_SERVER_FEATURE_RECONNECTION | XENSTORE_SERVER_FEATURE_ERROR | XENSTORE_SERVER_FEATURE_WATCHDEPTH,
    );
  }

  /** Has the guest broken the protocol? It can start over by XENSTORE_RECONNECT. */
  get hasFailed(): boolean {
    return this.#failed;
  }

  /**
   * Handles all requests in the ring and writes what fits of the waiting replies and events. Call it for each event
   * from the guest. True if it stopped with requests left, to be fair to others: call it again in a later turn.
   */
  service(): boolean {
    if (this.#connection.isClosed || this.#isHeld) return false;
    this.#isServing = true;
    const hadFailed = this.#failed;
    let moved = false;
    if (this.#load(XSDI.connection) === XENSTORE_RECONNECT) {
      this.#reconnect();
      moved = true;
    }
    let requestsLeft = REQUESTS_PER_CALL;
    while (!this.#failed) {
      if (this.#writeResponses()) moved = true;
      this.#isThrottled = this.#connection.repliesWaiting >= REPLIES_MAX;
      if (this.#failed || requestsLeft === 0 || this.#isThrottled) break;
      if (this.#readRequest() === 0) break;
      moved = true;
      requestsLeft--;
    }
    this.#isServing = false;
    if (moved || this.#failed !== hadFailed) this.#notify();
    return requestsLeft === 0;
  }

  /** Neither a request nor a response is on its way in part: all that there is stands in the ring, or in the connection. */
  get isBetweenMessages(): boolean {
    return this.#decoder.isEmpty && this.#writing === null;
  }

  /** From here on the page is not touched, until `release`. */
  hold(): void {
    this.#isHeld = true;
  }

  release(): void {
    this.#isHeld = false;
    if (this.service()) this.#serveLater();
  }

  #serveLater(): void {
    this.#isThrottled = false;
    setTimeout(() => {
      if (this.service()) this.#serveLater();
    }, 0);
  }

  /** Consumes bytes up to the end of one message and handles it, or all there are; how many. */
  #readRequest(): number {
    let consumed = 0;
    for (;;) {
      const available = (this.#load(XSDI.req_prod) - this.#reqCons) >>> 0;
      if (available > XENSTORE_RING_SIZE) {
        this.#fail(XENSTORE_ERROR_RINGIDX);
        return consumed;
      }
      if (available === 0) return consumed;
      const start = this.#reqCons & RING_MASK;
      const bytes = Math.min(available, this.#decoder.wanted, XENSTORE_RING_SIZE - start);
      const decoded = this.#decoder.push(this.#req.subarray(start, start + bytes));
      consumed += bytes;
      this.#reqCons = (this.#reqCons + bytes) >>> 0;
      this.#store(XSDI.req_cons, this.#reqCons);
      if (decoded.kind === 'violation') {
        this.#fail(XENSTORE_ERROR_PROTO);
        return consumed;
      }
      if (decoded.kind === 'message') {
        this.#connection.submit(decoded.message);
        return consumed;
      }
    }
  }

  /** Writes what fits; true if rsp_prod moved. */
  #writeResponses(): boolean {
    const before = this.#rspProd;
    for (;;) {
      if (this.#writing === null) {
        const message = this.#connection.takeOutput();
        if (message === null) break;
        this.#writing = encodeMessage(message);
        this.#written = 0;
      }
      const used = (this.#rspProd - this.#load(XSDI.rsp_cons)) >>> 0;
      if (used > XENSTORE_RING_SIZE) {
        this.#fail(XENSTORE_ERROR_RINGIDX);
        break;
      }
      const start = this.#rspProd & RING_MASK;
      const left = this.#writing.length - this.#written;
      const bytes = Math.min(left, XENSTORE_RING_SIZE - used, XENSTORE_RING_SIZE - start);
      if (bytes === 0) break;
      this.#rsp.set(this.#writing.subarray(this.#written, this.#written + bytes), start);
      this.#rspProd = (this.#rspProd + bytes) >>> 0;
      this.#store(XSDI.rsp_prod, this.#rspProd);
      this.#written += bytes;
      if (bytes === left) this.#writing = null;
    }
    return this.#rspProd !== before;
  }

  /** Nothing more is read or written until the guest reconnects. */
  #fail(error: number): void {
    this.#failed = true;
    this.#dropAll();
    this.#store(XSDI.error, error);
  }

  #reconnect(): void {
    this.#dropAll();
    this.#failed = false;
    this.#reqCons = 0;
    this.#rspProd = 0;
    this.#store(XSDI.req_cons, 0);
    this.#store(XSDI.req_prod, 0);
    this.#store(XSDI.rsp_cons, 0);
    this.#store(XSDI.rsp_prod, 0);
    this.#store(XSDI.error, XENSTORE_ERROR_NONE);
    // Last: the guest looks at the other fields once it sees this.
    this.#store(XSDI.connection, XENSTORE_CONNECTED);
  }

  #dropAll(): void {
    this.#connection.reset();
    this.#decoder.reset();
    this.#writing = null;
  }

  #load(offset: number): number {
    return Atomics.load(this.#words, (offset - XSDI.req_cons) >> 2);
  }

  #store(offset: number, value: number): void {
    Atomics.store(this.#words, (offset - XSDI.req_cons) >> 2, value);
  }
}
