/**
 * A guest's connection to a store that is somewhere else, for the server of its ring: requests go over a link, replies come
 * when they come. The link is bound to the guest's domid (`session.ts`), so nothing that the guest sends gets it more rights.
 *
 * Events that the guest does not take are lost beyond the quota, as in the store itself.
 */
import { XS } from '../abi/io/xs-wire.ts';
import type { DomidAlias } from './domid-alias.ts';
import type { StoreLink } from './link.ts';
import { DEFAULT_QUOTAS } from './quotas.ts';
import type { RingConnection } from './ring-server.ts';
import { joinStrings, type Message, splitStrings } from './wire.ts';

/** What a WATCH request says: path, token, and perhaps a depth. */
export type Watch = readonly string[];

export class LinkConnection implements RingConnection {
  onEvent: (() => void) | null = null;
  /** Called once, when xenstored will serve this domain no more; why. */
  onEnd: ((reason: string) => void) | null = null;
  /** Events lost because the guest did not take them. */
  eventsLost = 0;
  readonly #link: StoreLink;
  readonly #alias: DomidAlias | null;
  /** Replies and events, oldest first. */
  readonly #output: Message[] = [];
  #repliesInOutput = 0;
  /** Requests without a reply. */
  #unanswered = 0;
  /** Replies to come that belong to the time before a reset, and what comes until then. */
  #stale = 0;
  #closed = false;
  /** Requests whose replies are to come, oldest first: xenstored answers in order. */
  readonly #asked: Message[] = [];
  /** Of those that the guest knows nothing of: the first ones. */
  #silent = 0;
  /** The guest's watches, by path and token. */
  readonly #watches = new Map<string, Watch>();
  readonly #transactions = new Set<number>();

  /** `alias`: the guest knows itself by another domid than the link is bound to. */
  constructor(link: StoreLink, alias: DomidAlias | null = null) {
    this.#link = link;
    this.#alias = alias;
    link.receive({
      onMessage: (message) => this.#onMessage(alias?.reply(message) ?? message),
      onEnd: (reason) => {
        this.#closed = true;
        this.onEnd?.(reason);
      },
    });
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  /** Those that are under way as well, so that a guest cannot have more of them by a slow xenstored. */
  get repliesWaiting(): number {
    return this.#unanswered + this.#repliesInOutput;
  }

  /** No request, reply or transaction of the guest is under way. Events may wait. */
  get isIdle(): boolean {
    return this.repliesWaiting + this.#stale + this.#silent + this.#transactions.size === 0;
  }

  get watches(): readonly Watch[] {
    return [...this.#watches.values()];
  }

  /** Sets watches on the guest's behalf, without its knowing; each fires once. Before the guest asks anything. */
  setWatches(watches: readonly Watch[]): void {
    for (const watch of watches) {
      this.#silent++;
      this.#watches.set(keyOf(watch), watch);
      this.#send({ type: XS.WATCH, reqId: 0, txId: 0, payload: joinStrings(watch) });
    }
  }

  submit(request: Message): void {
    this.#unanswered++;
    this.#asked.push(request);
    this.#send(request);
  }

  takeOutput(): Message | null {
    const message = this.#output.shift() ?? null;
    if (message !== null && message.type !== XS.WATCH_EVENT) this.#repliesInOutput--;
    return message;
  }

  /** The guest starts over: its watches and transactions end, nothing that was meant for it before arrives. */
  reset(): void {
    this.#output.length = 0;
    this.#repliesInOutput = 0;
    this.#stale += this.#unanswered + 1;
    this.#unanswered = 0;
    this.#asked.length = 0;
    this.#watches.clear();
    this.#transactions.clear();
    this.#link.send({ type: XS.RESET_WATCHES, reqId: 0, txId: 0, payload: Uint8Array.of(0) });
  }

  close(): void {
    this.#closed = true;
    this.#link.close();
  }

  #send(request: Message): void {
    this.#link.send(this.#alias?.request(request) ?? request);
  }

  #onMessage(message: Message): void {
    if (message.type !== XS.WATCH_EVENT) {
      if (this.#silent > 0) {
        this.#silent--;
        return;
      }
      if (this.#stale > 0) {
        this.#stale--;
        return;
      }
      this.#unanswered--;
      this.#repliesInOutput++;
      this.#note(message);
    } else if (this.#stale > 0) {
      return;
    } else if (this.#output.length - this.#repliesInOutput >= DEFAULT_QUOTAS.watchEventsMax) {
      this.eventsLost++;
      return;
    }
    this.#output.push(message);
    this.onEvent?.();
  }

  /** Keeps what the request that this answers has set up. */
  #note(reply: Message): void {
    const request = this.#asked.shift();
    if (request === undefined) return;
    if (request.type === XS.TRANSACTION_END) this.#transactions.delete(request.txId);
    if (reply.type === XS.ERROR) return;
    const words = splitStrings(request.payload).strings;
    if (request.type === XS.WATCH) this.#watches.set(keyOf(words), words.slice(0, 3));
    else if (request.type === XS.UNWATCH) this.#watches.delete(keyOf(words));
    else if (request.type === XS.TRANSACTION_START)
      this.#transactions.add(Number(splitStrings(reply.payload).strings[0]));
    else if (request.type === XS.RESET_WATCHES) {
      this.#watches.clear();
      this.#transactions.clear();
    }
  }
}

function keyOf(watch: Watch): string {
  return watch.slice(0, 2).join('\0');
}
