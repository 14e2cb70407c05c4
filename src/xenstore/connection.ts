/**
 * One client of the store: a guest behind its ring page, or a process of domain 0.
 *
 * `handle` executes one request and returns the reply. Whoever carries the bytes uses `submit`, which puts the reply into the
 * connection's queue of output, before the watch events that the request made, and takes messages out with
 * `takeOutput`. `onEvent` says that an event made by another client has come to wait. No bytes from a client make
 * `handle` or `submit` throw.
 *
 * Source: docs/misc/xenstore.txt; xs-wire.out recorded from Xen 4.17 for the replies to odd requests. Where that
 * xenstored (oxenstored) answers with an error name the protocol does not have (EQUOTA), the C xenstored's ENOSPC is
 * sent, because Linux takes an unknown name for EINVAL; DIRECTORY_PART is known, as it is to the C xenstored.
 */
import { XENSTORE_PAYLOAD_MAX, XS, type XsErrorName } from '../abi/io/xs-wire.ts';
import { DOMID_FIRST_RESERVED } from '../abi/xen.ts';
import { executeControl } from './control.ts';
import { type Answer, type Change, executeOperation, isOperation, isRead, OK } from './operations.ts';
import { type Caller, isPrivileged } from './permissions.ts';
import type { RequestKey } from './records.ts';
import type { Store } from './store.ts';
import { Transactions } from './transactions.ts';
import type { Watcher } from './watches.ts';
import { joinStrings, type Message, splitStrings, textToBytes } from './wire.ts';

export class Connection implements Watcher {
  /** Called when an event has come to wait. Set by whoever carries this connection's bytes. */
  onEvent: (() => void) | null = null;
  /** Called when the connection is closed, by whomever. Set by whoever carries this connection's bytes. */
  onClose: (() => void) | null = null;
  /** Events lost because the client did not take them; see Quotas.watchEventsMax. */
  eventsLost = 0;

  readonly #store: Store;
  readonly #domid: number;
  readonly #session: string | null;
  readonly #transactions: Transactions;
  /** Replies and events, oldest first. */
  readonly #output: Message[] = [];
  #repliesWaiting = 0;
  #closed = false;

  /** Made by `Store.connect`. */
  constructor(store: Store, domid: number, session: string | null = null) {
    this.#store = store;
    this.#domid = domid;
    this.#session = session;
    this.#transactions = new Transactions(store.tree, store.quotas);
  }

  get domid(): number {
    return this.#domid;
  }

  get caller(): Caller {
    return { domid: this.#domid, target: this.#store.targetOf(this.#domid) };
  }

  /** Executes one request (payload at most XENSTORE_PAYLOAD_MAX bytes) and returns its reply. */
  handle(request: Message): Message {
    const { reqId, txId } = request;
    let answer = this.#answer(request);
    if (typeof answer !== 'string' && answer.length > XENSTORE_PAYLOAD_MAX) answer = 'E2BIG';
    return typeof answer === 'string'
      ? { type: XS.ERROR, reqId, txId, payload: joinStrings([answer]) }
      : { type: request.type, reqId, txId, payload: answer };
  }

  /** Executes one request and queues its reply. */
  submit(request: Message): void {
    const replyIndex = this.#output.length;
    const reply = this.handle(request);
    this.#output.splice(replyIndex, 0, reply);
    this.#repliesWaiting++;
  }

  /** The oldest waiting reply or event, or null. */
  takeOutput(): Message | null {
    const message = this.#output.shift() ?? null;
    if (message !== null && message.type !== XS.WATCH_EVENT) this.#repliesWaiting--;
    return message;
  }

  get eventsWaiting(): number {
    return this.#output.length - this.#repliesWaiting;
  }

  get repliesWaiting(): number {
    return this.#repliesWaiting;
  }

  /** The client is gone, or its domain was released: nothing more is served. */
  get isClosed(): boolean {
    return this.#closed;
  }

  /** For the watch table: an event to wait for the client. */
  deliver(path: string, token: string): void {
    if (this.#closed) return;
    const payload = joinStrings([path, token]);
    // The client's path and token are each legal, but together they fit no message. Xen sends nothing then either.
    if (payload.length > XENSTORE_PAYLOAD_MAX) return;
    if (!isPrivileged(this.caller) && this.eventsWaiting >= this.#store.quotas.watchEventsMax) {
      this.eventsLost++;
      return;
    }
    this.#output.push({ type: XS.WATCH_EVENT, reqId: 0, txId: 0, payload });
    this.onEvent?.();
  }

  /** The client starts over: its watches, transactions and waiting output are gone. */
  reset(): void {
    this.#store.watches.removeAll(this);
    this.#transactions.abortAll();
    this.#output.length = 0;
    this.#repliesWaiting = 0;
  }

  /** The client is gone. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.onEvent = null;
    this.reset();
    this.#store.disconnect(this);
    this.onClose?.();
    this.onClose = null;
  }

  #answer(request: Message): Answer {
    const { type, payload } = request;
    const key = this.#session === null ? null : { session: this.#session, sequence: request.reqId };
    // Only what changed something and was answered with OK is known to be done.
    if (key !== null && this.#store.isDone(key)) return OK;
    // WATCH and UNWATCH ignore the transaction.
    const txId = type === XS.WATCH || type === XS.UNWATCH ? 0 : request.txId;
    if (txId !== 0 && !this.#transactions.has(txId)) return 'EIO';

    if (isOperation(type)) {
      return txId === 0
        ? this.#execute(type, payload, key)
        : this.#transactions.execute(txId, this.caller, type, payload);
    }
    switch (type) {
      case XS.WATCH:
        return this.#watch(payload);
      case XS.UNWATCH:
        return this.#unwatch(payload);
      case XS.RESET_WATCHES:
        this.#store.watches.removeAll(this);
        this.#transactions.abortAll();
        return OK;
      case XS.TRANSACTION_START:
        return this.#transactionStart(txId);
      case XS.TRANSACTION_END:
        return this.#transactionEnd(txId, payload, key);
      case XS.IS_DOMAIN_INTRODUCED:
        return this.#isDomainIntroduced(payload);
      case XS.CONTROL:
      case XS.INTRODUCE:
      case XS.RELEASE:
      case XS.RESUME:
      case XS.SET_TARGET:
        return isPrivileged(this.caller) ? this.#privileged(type, splitStrings(payload).strings, key) : 'EACCES';
      default:
        return 'ENOSYS';
    }
  }

  #execute(type: number, payload: Uint8Array, key: RequestKey | null): Answer {
    const store = this.#store;
    const changes: Change[] = [];
    if (isRead(type)) return executeOperation(store.tree, this.caller, type, payload, changes);
    const tree = store.tree.snapshot();
    const answer = executeOperation(tree, this.caller, type, payload, changes);
    if (changes.length === 0) return answer;
    return store.commit(tree, changes, this.#domid, key, [{ type, payload }]) ?? answer;
  }

  #watch(payload: Uint8Array): Answer {
    const { strings, rest } = splitStrings(payload);
    if (strings.length < 2 || strings.length > 3 || rest > 0) return 'EINVAL';
    const [path, token, levels] = strings;
    const depth = levels === undefined ? Infinity : parseNumber(levels);
    if (depth === null) return 'EINVAL';
    const { watches, quotas } = this.#store;
    if (!isPrivileged(this.caller) && watches.countOf(this) >= quotas.watchesMax) return 'ENOSPC';
    const error = watches.add(this, path, token, depth);
    if (error !== null) return error;
    // Once at once, whether the node exists and may be read or not.
    this.deliver(path, token);
    return OK;
  }

  #unwatch(payload: Uint8Array): Answer {
    const { strings, rest } = splitStrings(payload);
    if (strings.length !== 2 || rest > 0) return 'EINVAL';
    return this.#store.watches.remove(this, strings[0], strings[1]) ?? OK;
  }

  #transactionStart(txId: number): Answer {
    if (txId !== 0) return 'EBUSY';
    const id = this.#transactions.start(this.caller);
    return typeof id === 'string' ? id : joinStrings([String(id)]);
  }

  #transactionEnd(txId: number, payload: Uint8Array, key: RequestKey | null): Answer {
    if (txId === 0) return 'ENOENT';
    const verdict = splitStrings(payload).strings[0];
    if (verdict === 'F') {
      this.#transactions.abort(txId);
      return OK;
    }
    if (verdict !== 'T') return 'EINVAL';
    const outcome = this.#transactions.end(txId, this.caller);
    if (typeof outcome === 'string') return outcome;
    const { tree, changes, requests } = outcome;
    return tree === null ? OK : (this.#store.commit(tree, changes, this.#domid, key, requests) ?? OK);
  }

  #isDomainIntroduced(payload: Uint8Array): Answer {
    const domid = parseNumber(splitStrings(payload).strings[0]);
    if (domid === null) return 'EINVAL';
    return textToBytes(this.#store.isIntroduced(domid) ? 'T\0' : 'F\0');
  }

  #privileged(type: number, strings: readonly string[], key: RequestKey | null): Answer {
    if (type === XS.CONTROL) return executeControl(this.#store, strings);
    const domid = parseNumber(strings[0]);
    if (domid === null || domid >= DOMID_FIRST_RESERVED) return 'EINVAL';
    let error: XsErrorName | null;
    if (type === XS.INTRODUCE) {
      const gfn = parseNumber(strings[1]);
      const port = parseNumber(strings[2]);
      if (gfn === null || port === null) return 'EINVAL';
      error = this.#store.introduceDomain(domid, { gfn, port }, key);
    } else if (type === XS.RELEASE) {
      error = this.#store.releaseDomain(domid, key);
    } else if (type === XS.RESUME) {
      error = this.#store.resumeDomain(domid, key);
    } else {
      const target = parseNumber(strings[1]);
      error = target === null || target >= DOMID_FIRST_RESERVED ? 'EINVAL' : this.#store.setTarget(domid, target, key);
    }
    return error ?? OK;
  }
}

/** A decimal number of a request, or null (EINVAL). */
function parseNumber(text: string | undefined): number | null {
  return text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : null;
}
