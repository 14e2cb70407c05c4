/**
 * A link that outlives the xenstored behind it: when the connection ends it opens another one, and its user notices
 * nothing but a delay, events that tell of no change, and transactions that have to be done again.
 *
 * One request is under way at a time, numbered by req_id. After a reconnect, in this order:
 * 1. the session says who it is (`stream-server.ts`);
 * 2. the request that was under way, if any, is sent again with its number: xenstored executes it unless it had;
 * 3. the watches are set again; each fires once, as a new watch does, which stands for the events that were missed;
 * 4. what waits is sent.
 *
 * Open transactions end with the connection. The user goes on with one as if nothing had happened, on a new transaction that
 * is begun behind its back, until it ends it: that is answered with EAGAIN, to which every user of xenstore has an
 * answer; so is one that it gives up, which may be for what it has not found again. (To fail the requests before that would be an error
 * that Linux drivers do not expect.) The user knows
 * transactions by numbers of this file's, because those of xenstored start over with it.
 */
import { XS, type XsErrorName } from '../abi/io/xs-wire.ts';
import type { LinkHandlers, StoreLink } from './link.ts';
import { SESSION_COMMAND } from './stream-server.ts';
import { joinStrings, type Message, splitStrings } from './wire.ts';

export interface SessionOptions {
  /** Opens a connection; rejects if xenstored cannot be reached now. */
  readonly open: () => Promise<StoreLink>;
  /** Whom it speaks for. The domain must have been introduced. */
  readonly domid: number;
  /** Unlike that of any other session. */
  readonly name: string;
  readonly log?: (line: string) => void;
}

/** What a request waits for until it is sent. */
interface Waiting {
  readonly request: Message;
  /** Its number, once it has been sent; it keeps it. */
  sequence: number | null;
}

interface Transaction {
  /** xenstored's number for it, in the connection of this count. */
  serverId: number;
  connection: number;
  /** It has been replaced by another one, and must not be committed. */
  isDoomed: boolean;
}

const RETRY_MIN_MS = 20;
const RETRY_MAX_MS = 1000;
/** As xenstored has them: positive as a signed 32-bit number. */
const TRANSACTION_ID_MAX = 0x7fffffff;

/** The connection has ended in the middle of something. */
class Disconnected extends Error {}

export function openSession(options: SessionOptions): StoreLink {
  return new SessionLink(options);
}

class SessionLink implements StoreLink {
  readonly #options: SessionOptions;
  #handlers: LinkHandlers | null = null;
  #closed = false;
  readonly #queue: Waiting[] = [];
  readonly #transactions = new Map<number, Transaction>();
  #nextTransaction = 1;
  /** The WATCH requests in force, by path and token. */
  readonly #watches = new Map<string, Uint8Array>();
  #nextSequence = 1;
  /** The present connection. */
  #link: StoreLink | null = null;
  /** Connections so far. */
  #connections = 0;
  /** Who waits for the reply with this number. */
  #reply: { sequence: number; resolve: (reply: Message) => void; reject: (error: Error) => void } | null = null;
  /** Wakes the loop when there is a request, no connection any more, or nothing more to do. */
  #wake: (() => void) | null = null;

  constructor(options: SessionOptions) {
    this.#options = options;
  }

  send(request: Message): void {
    if (this.#closed) return;
    this.#queue.push({ request, sequence: null });
    this.#wake?.();
  }

  receive(handlers: LinkHandlers): void {
    this.#handlers = handlers;
    void this.#run();
  }

  close(): void {
    this.#handlers = null;
    this.#end();
  }

  /** From the first connection to the last. */
  async #run(): Promise<void> {
    while (!this.#closed) {
      try {
        const error = await this.#connect();
        if (error !== null) {
          const { domid } = this.#options;
          const reason = error === 'ENOENT' ? `domain ${domid} is unknown to xenstored` : `xenstored answers ${error}`;
          this.#handlers?.onEnd(reason);
          this.#end();
          return;
        }
        await this.#serve();
      } catch (error) {
        if (!(error instanceof Disconnected)) throw error;
      }
      this.#dropLink();
    }
  }

  #end(): void {
    this.#closed = true;
    this.#queue.length = 0;
    this.#dropLink();
    this.#wake?.();
  }

  #dropLink(): void {
    this.#link?.close();
    this.#link = null;
    this.#reply?.reject(new Disconnected());
    this.#reply = null;
  }

  /** Opens a connection, however long it takes; the name of xenstored's error if it will not have the session, or null. */
  async #connect(): Promise<string | null> {
    let delayMs = RETRY_MIN_MS;
    let link: StoreLink | null = null;
    while (link === null) {
      try {
        link = await this.#options.open();
      } catch (error) {
        if (delayMs === RETRY_MIN_MS)
          this.#options.log?.(`xenstored cannot be reached: ${error instanceof Error ? error.message : String(error)}`);
        await new Promise((resolve) => setTimeout(resolve, delayMs));
        delayMs = Math.min(delayMs * 2, RETRY_MAX_MS);
      }
      if (this.#closed) {
        link?.close();
        throw new Disconnected();
      }
    }
    this.#link = link;
    this.#connections++;
    link.receive({
      onMessage: (message) => this.#onMessage(message),
      onEnd: () => {
        if (this.#link !== link) return;
        this.#dropLink();
        this.#wake?.();
      },
    });
    const { domid, name } = this.#options;
    const reply = await this.#exchange(XS.CONTROL, 0, joinStrings([SESSION_COMMAND, String(domid), name]));
    return reply.type === XS.ERROR ? (splitStrings(reply.payload).strings[0] ?? '') : null;
  }

  /** Works through the queue until the connection ends. */
  async #serve(): Promise<void> {
    // Before anything else: xenstored knows the last number that it has done, and no others.
    if (this.#queue[0]?.sequence != null) await this.#serveNext();
    for (const payload of [...this.#watches.values()]) await this.#exchange(XS.WATCH, 0, payload);
    while (!this.#closed && this.#link !== null) {
      if (this.#queue.length > 0) await this.#serveNext();
      else await new Promise<void>((resolve) => (this.#wake = resolve));
      this.#wake = null;
    }
  }

  async #serveNext(): Promise<void> {
    const waiting = this.#queue[0];
    const isResent = waiting.sequence !== null;
    waiting.sequence ??= this.#takeSequence();
    const reply = await this.#execute(waiting.request, waiting.sequence, isResent);
    this.#queue.shift();
    const { reqId, txId } = waiting.request;
    this.#handlers?.onMessage({ type: reply.type, reqId, txId, payload: reply.payload });
  }

  async #execute({ type, txId, payload }: Message, sequence: number, isResent: boolean): Promise<Message> {
    // xenstored ignores the transaction of WATCH and UNWATCH.
    if (txId === 0 || type === XS.WATCH || type === XS.UNWATCH) {
      const reply = await this.#exchange(type, 0, payload, sequence);
      return reply.type === XS.ERROR ? reply : this.#note(payload, reply);
    }
    const transaction = this.#transactions.get(txId);
    if (transaction === undefined) return refusal('EIO');
    if (type === XS.TRANSACTION_END) {
      const verdict = splitStrings(payload).strings[0];
      if (verdict !== 'T' && verdict !== 'F') return refusal('EINVAL');
      const reply = await this.#endTransaction(transaction, verdict, sequence, isResent);
      this.#transactions.delete(txId);
      return reply;
    }
    if (transaction.connection !== this.#connections) {
      const begun = await this.#exchange(XS.TRANSACTION_START, 0, joinStrings(['']));
      if (begun.type === XS.ERROR) return begun;
      transaction.serverId = transactionIdOf(begun);
      transaction.connection = this.#connections;
      transaction.isDoomed = true;
    }
    return await this.#exchange(type, transaction.serverId, payload, sequence);
  }

  async #endTransaction(
    { serverId, connection, isDoomed }: Transaction,
    verdict: 'T' | 'F',
    sequence: number,
    isResent: boolean,
  ): Promise<Message> {
    const isPresent = connection === this.#connections;
    if (!isDoomed && (isPresent || isResent)) {
      const reply = await this.#exchange(XS.TRANSACTION_END, serverId, joinStrings([verdict]), sequence);
      // One that was under way when the connection ended is known to be done, or it can no longer be.
      if (isPresent || reply.type !== XS.ERROR) return reply;
    } else if (isPresent) {
      await this.#exchange(XS.TRANSACTION_END, serverId, joinStrings(['F']));
    }
    return isDoomed || verdict === 'T' ? refusal('EAGAIN') : replyOf(XS.TRANSACTION_END, 'OK');
  }

  /** Keeps what a request without transaction, answered with `reply`, has set up; the reply for the user. */
  #note(payload: Uint8Array, reply: Message): Message {
    switch (reply.type) {
      case XS.WATCH:
        this.#watches.set(watchKey(payload), payload);
        return reply;
      case XS.UNWATCH:
        this.#watches.delete(watchKey(payload));
        return reply;
      case XS.RESET_WATCHES:
        this.#watches.clear();
        this.#transactions.clear();
        return reply;
      case XS.TRANSACTION_START: {
        const id = this.#nextTransaction;
        const serverId = transactionIdOf(reply);
        this.#transactions.set(id, { serverId, connection: this.#connections, isDoomed: false });
        this.#nextTransaction = id >= TRANSACTION_ID_MAX ? 1 : id + 1;
        return replyOf(XS.TRANSACTION_START, String(id));
      }
      default:
        return reply;
    }
  }

  /** Sends a request and waits for its reply. Throws Disconnected. */
  #exchange(type: number, txId: number, payload: Uint8Array, sequence = this.#takeSequence()): Promise<Message> {
    const link = this.#link;
    if (link === null) return Promise.reject(new Disconnected());
    return new Promise((resolve, reject) => {
      this.#reply = { sequence, resolve, reject };
      link.send({ type, reqId: sequence, txId, payload });
    });
  }

  #onMessage(message: Message): void {
    if (message.type === XS.WATCH_EVENT) {
      this.#handlers?.onMessage(message);
      return;
    }
    const reply = this.#reply;
    if (reply === null || reply.sequence !== message.reqId) return;
    this.#reply = null;
    reply.resolve(message);
  }

  #takeSequence(): number {
    const sequence = this.#nextSequence;
    this.#nextSequence = (sequence + 1) >>> 0;
    return sequence;
  }
}

/** Path and token, without the depth that a WATCH may have behind them. */
function watchKey(payload: Uint8Array): string {
  return splitStrings(payload).strings.slice(0, 2).join('\0');
}

function replyOf(type: number, text: string): Message {
  return { type, reqId: 0, txId: 0, payload: joinStrings([text]) };
}

function refusal(error: XsErrorName): Message {
  return replyOf(XS.ERROR, error);
}

function transactionIdOf(reply: Message): number {
  return Number(splitStrings(reply.payload).strings[0]);
}
