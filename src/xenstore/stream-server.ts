/**
 * Serves clients of the store over byte streams, which is what xenstored's unix socket is.
 *
 * Every client begins as one of domain 0: whoever may open the socket may do all. By a CONTROL request
 * "domus-session", domid, name it becomes a session: it speaks for that domain from then on, with no more rights than the
 * domain has, and numbers its requests by req_id, so that one it sends again after a reconnect is not done twice
 * (`session.ts`). The domain must have been introduced (ENOENT). There is no way back.
 *
 * No client can hurt another:
 * - a length over the limit ends its connection; a message that never ends costs one message's memory;
 * - a few requests of each are executed when they arrive; what is more waits its turn, behind all others that have more, and
 *   every turn is short, so that who asks seldom is answered at once beside any number who never stop;
 * - no more are read while it does not take its replies;
 * - one that does not take its events is disconnected once EVENTS_MAX of them wait;
 * - a domain's own limits are the store's quotas.
 *
 * Source: docs/misc/xenstore.txt.
 */
import { XS, type XsErrorName } from '../abi/io/xs-wire.ts';
import type { Connection } from './connection.ts';
import type { Store } from './store.ts';
import { encodeMessage, joinStrings, type Message, MessageDecoder, splitStrings } from './wire.ts';

/** The server's end of a byte stream, handed in by who listens. */
export interface ServerChannel {
  write(bytes: Uint8Array): void;
  /** Bytes written that the client has not taken. */
  readonly backlogBytes: number;
  /** While paused, nothing arrives. */
  setPaused(paused: boolean): void;
  /** Sets who gets what arrives; once. What arrives earlier waits. */
  receive(handlers: {
    readonly onBytes: (bytes: Uint8Array) => void;
    /** The client has taken all that was written. */
    readonly onDrain: () => void;
    readonly onEnd: () => void;
  }): void;
  close(): void;
}

export interface StreamServerOptions {
  readonly store: Store;
  /** Calls back in a later turn, when others have had theirs. */
  readonly later: (work: () => void) => void;
  readonly log: (line: string) => void;
  /** A session that spoke for the domain is gone, and there is no other that does. */
  readonly onSessionEnd?: (domid: number) => void;
}

/** First word of the CONTROL request that makes a connection a session's. */
export const SESSION_COMMAND = 'domus-session';

const SESSION_NAME = /^[A-Za-z0-9._-]{1,64}$/;
/** Requests handled for one client before others get their turn, and clients in one turn of the event loop. */
const REQUESTS_PER_TURN = 4;
const CLIENTS_PER_TURN = 4;
/** No more requests are read while this much waits to be taken. */
const BACKLOG_BYTES_MAX = 64 * 1024;
/** Events that may wait for a client of domain 0, each at most a message. */
const EVENTS_MAX = 16 * 1024;
/** So that nobody can fill the log with one. */
const DEFECTS_LOGGED_MAX = 20;

export class StreamServer {
  readonly options: StreamServerOptions;
  readonly #clients = new Set<StreamClient>();
  readonly #sessions = new Map<string, StreamClient>();
  /** Those that have more to do, the longest wait first. */
  readonly #busy: StreamClient[] = [];
  #closed = false;
  #defectsLogged = 0;

  constructor(options: StreamServerOptions) {
    this.options = options;
  }

  serve(channel: ServerChannel): void {
    if (this.#closed) channel.close();
    else this.#clients.add(new StreamClient(this, channel));
  }

  get clientCount(): number {
    return this.#clients.size;
  }

  /** Is there a session that speaks for this domain? */
  hasSessionFor(domid: number): boolean {
    for (const client of this.#sessions.values()) if (client.domid === domid) return true;
    return false;
  }

  /** Ends all connections. Their sessions may come back, to another process. */
  close(): void {
    this.#closed = true;
    for (const client of [...this.#clients]) client.close();
  }

  /** For StreamClient: an exception that no request should cause. */
  logDefect(error: unknown): void {
    if (this.#defectsLogged++ >= DEFECTS_LOGGED_MAX) return;
    this.options.log(`xenstored: defect: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  }

  /** For StreamClient: it has more to do, when others have had their turn. */
  wait(client: StreamClient): void {
    if (this.#busy.push(client) === 1) this.options.later(() => this.#turn());
  }

  #turn(): void {
    const clients = this.#busy.splice(0, CLIENTS_PER_TURN);
    const isMore = this.#busy.length > 0;
    // Those that have even more begin a queue that is empty, and so the next turn, by themselves.
    for (const client of clients) client.takeTurn();
    if (isMore) this.options.later(() => this.#turn());
  }

  /** For StreamClient: it is `name` from now on. An older connection of that name is a dead one. */
  enterSession(client: StreamClient, name: string): void {
    const old = this.#sessions.get(name);
    this.#sessions.set(name, client);
    old?.close();
  }

  /** For StreamClient. */
  leave(client: StreamClient, session: string | null, domid: number): void {
    this.#clients.delete(client);
    if (session === null || this.#sessions.get(session) !== client) return;
    this.#sessions.delete(session);
    if (this.#closed) return;
    // This process lives and a unix socket does not break by itself, so it is the client that is gone.
    const { store, onSessionEnd } = this.options;
    store.endSession(session);
    if (domid === 0 || !this.hasSessionFor(domid)) onSessionEnd?.(domid);
  }
}

class StreamClient {
  readonly #server: StreamServer;
  readonly #channel: ServerChannel;
  readonly #decoder = new MessageDecoder();
  #connection: Connection;
  #session: string | null = null;
  /** What has arrived and is not decoded yet: at most what one turn brought. */
  #input: Uint8Array[] = [];
  /** It waits for its turn. */
  #isBusy = false;
  #workQueued = false;
  #closed = false;

  constructor(server: StreamServer, channel: ServerChannel) {
    this.#server = server;
    this.#channel = channel;
    this.#connection = this.#connect(0, null);
    channel.receive({
      onBytes: (bytes) => {
        this.#input.push(bytes);
        this.#work();
      },
      onDrain: () => this.#work(),
      onEnd: () => this.close(),
    });
  }

  get domid(): number {
    return this.#connection.domid;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const { domid } = this.#connection;
    this.#connection.onClose = null;
    this.#connection.close();
    this.#channel.close();
    this.#input = [];
    this.#server.leave(this, this.#session, domid);
  }

  #connect(domid: number, session: string | null): Connection {
    const connection = this.#server.options.store.connect(domid, session);
    connection.onEvent = () => this.#queueWork();
    connection.onClose = () => this.close();
    return connection;
  }

  /** In a later turn: the store may be in the middle of another client's request. */
  #queueWork(): void {
    if (this.#workQueued || this.#isBusy) return;
    this.#workQueued = true;
    this.#server.options.later(() => {
      this.#workQueued = false;
      this.#work();
    });
  }

  /** For StreamServer. */
  takeTurn(): void {
    this.#isBusy = false;
    this.#work();
  }

  /** Executes requests and sends what waits, as much as may be done now. */
  #work(): void {
    if (this.#isBusy) return;
    let hasRoom = this.#send();
    if (hasRoom) {
      for (let left = REQUESTS_PER_TURN; left > 0 && !this.#closed; left--) {
        const message = this.#nextRequest();
        if (message === null) break;
        this.#execute(message);
      }
      hasRoom = this.#send();
    }
    if (this.#closed) return;
    this.#isBusy = hasRoom && this.#input.length > 0;
    this.#channel.setPaused(!hasRoom || this.#isBusy);
    if (this.#isBusy) this.#server.wait(this);
  }

  /** Sends what waits; false if the client has to take some of it first. */
  #send(): boolean {
    if (this.#closed) return false;
    const parts: Uint8Array[] = [];
    let bytes = this.#channel.backlogBytes;
    while (bytes < BACKLOG_BYTES_MAX) {
      const message = this.#connection.takeOutput();
      if (message === null) break;
      const part = encodeMessage(message);
      parts.push(part);
      bytes += part.length;
    }
    if (parts.length > 0) this.#channel.write(parts.length === 1 ? parts[0] : concat(parts));
    if (this.#connection.eventsWaiting > EVENTS_MAX) {
      this.#server.options.log(`xenstored: a client has left ${EVENTS_MAX} watch events unread: disconnected`);
      this.close();
    }
    return bytes < BACKLOG_BYTES_MAX;
  }

  /** The next whole request of what has arrived, or null if there is none. */
  #nextRequest(): Message | null {
    for (let chunk = this.#input.shift(); chunk !== undefined; chunk = this.#input.shift()) {
      const taken = Math.min(chunk.length, this.#decoder.wanted);
      if (taken < chunk.length) this.#input.unshift(chunk.subarray(taken));
      const decoded = this.#decoder.push(chunk.subarray(0, taken));
      if (decoded.kind === 'message') return decoded.message;
      if (decoded.kind === 'violation') {
        this.close();
        return null;
      }
    }
    return null;
  }

  #execute(request: Message): void {
    if (request.type === XS.CONTROL && this.#session === null) {
      const { strings } = splitStrings(request.payload);
      if (strings[0] === SESSION_COMMAND) {
        // What was asked before is answered before, and by the connection that it was asked on.
        this.#send();
        const error = this.#becomeSession(strings[1] ?? '', strings[2] ?? '');
        const { type, reqId, txId } = request;
        this.#reply({ type: error === null ? type : XS.ERROR, reqId, txId, payload: joinStrings([error ?? 'OK']) });
        return;
      }
    }
    try {
      this.#connection.submit(request);
    } catch (error) {
      // A defect of ours. One client that has found it must not take the store away from all others, again and again.
      this.#server.logDefect(error);
      this.#reply({ ...request, type: XS.ERROR, payload: joinStrings(['EIO']) });
    }
  }

  #reply(message: Message): void {
    this.#channel.write(encodeMessage(message));
  }

  #becomeSession(domidText: string, name: string): XsErrorName | null {
    if (!/^\d{1,5}$/.test(domidText) || !SESSION_NAME.test(name)) return 'EINVAL';
    const domid = Number(domidText);
    if (!this.#server.options.store.isIntroduced(domid)) return 'ENOENT';
    this.#connection.onClose = null;
    this.#connection.close();
    this.#connection = this.#connect(domid, name);
    this.#session = name;
    this.#server.enterSession(this, name);
    return null;
  }
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
