/**
 * A guest's connection to a store that is somewhere else, for the server of its ring: requests go over a link, replies come
 * when they come. The link is bound to the guest's domid (`session.ts`), so nothing that the guest sends gets it more rights.
 *
 * Events that the guest does not take are lost beyond the quota, as in the store itself.
 */
import { XS } from '../abi/io/xs-wire.ts';
import type { StoreLink } from './link.ts';
import { DEFAULT_QUOTAS } from './quotas.ts';
import type { RingConnection } from './ring-server.ts';
import type { Message } from './wire.ts';

export class LinkConnection implements RingConnection {
  onEvent: (() => void) | null = null;
  /** Called once, when xenstored will serve this domain no more; why. */
  onEnd: ((reason: string) => void) | null = null;
  /** Events lost because the guest did not take them. */
  eventsLost = 0;
  readonly #link: StoreLink;
  /** Replies and events, oldest first. */
  readonly #output: Message[] = [];
  #repliesInOutput = 0;
  /** Requests without a reply. */
  #unanswered = 0;
  /** Replies to come that belong to the time before a reset, and what comes until then. */
  #stale = 0;
  #closed = false;

  constructor(link: StoreLink) {
    this.#link = link;
    link.receive({
      onMessage: (message) => this.#onMessage(message),
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

  submit(request: Message): void {
    this.#unanswered++;
    this.#link.send(request);
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
    this.#link.send({ type: XS.RESET_WATCHES, reqId: 0, txId: 0, payload: Uint8Array.of(0) });
  }

  close(): void {
    this.#closed = true;
    this.#link.close();
  }

  #onMessage(message: Message): void {
    if (message.type !== XS.WATCH_EVENT) {
      if (this.#stale > 0) {
        this.#stale--;
        return;
      }
      this.#unanswered--;
      this.#repliesInOutput++;
    } else if (this.#stale > 0) {
      return;
    } else if (this.#output.length - this.#repliesInOutput >= DEFAULT_QUOTAS.watchEventsMax) {
      this.eventsLost++;
      return;
    }
    this.#output.push(message);
    this.onEvent?.();
  }
}
