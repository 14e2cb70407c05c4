/**
 * A client of xenstore: each request is a method, each reply a promise.
 *
 *   const client = new XenstoreClient(linkToStore(store));
 *   await client.write('/local/domain/0/name', 'Domain-0');
 *   await client.transaction(async (t) => {
 *     const old = Number(await t.read('/a/count'));
 *     await t.write('/a/count', String(old + 1));
 *   });
 *
 * Requests are sent in the order of the calls, without waiting for replies. A missing node is null or false, never an
 * exception; every other error of xenstored is a XenstoreError, and the end of the connection a XenstoreClosed.
 * Values are bytes; the methods that take or give strings mean UTF-8.
 *
 * Source: docs/misc/xenstore.txt.
 */
import { XENSTORE_PAYLOAD_MAX, XS, XSD_ERRORS, type XsErrorName } from '../abi/io/xs-wire.ts';
import type { StoreLink } from './link.ts';
import { bytesToText, joinStrings, type Message, splitStrings } from './wire.ts';

/** xenstored refused a request, or the request would not fit a message (E2BIG) or not be one path (EINVAL). */
export class XenstoreError extends Error {
  override readonly name = 'XenstoreError';
  readonly code: XsErrorName;
  /** What was asked for, such as "READ /a". */
  readonly operation: string;

  constructor(code: XsErrorName, operation: string) {
    super(`xenstore ${operation}: ${code}`);
    this.code = code;
    this.operation = operation;
  }
}

/** The connection is gone: whether a request without a reply was done is not known. */
export class XenstoreClosed extends Error {
  override readonly name = 'XenstoreClosed';
}

/** What can be done to nodes, alone or in a transaction. Paths are absolute, or relative to /local/domain/<own domid>. */
export interface XenstoreNodes {
  /** The value as UTF-8 text, or null if there is no such node. */
  read(path: string): Promise<string | null>;
  /** The value, or null if there is no such node. */
  readBytes(path: string): Promise<Uint8Array | null>;
  /** Makes the node and its parents if they are missing. */
  write(path: string, value: string | Uint8Array): Promise<void>;
  /** Makes the node and its parents if they are missing; changes nothing if it is there. */
  mkdir(path: string): Promise<void>;
  /** Removes the node and all below. False if there is no parent; a missing node below an existing parent is true. */
  remove(path: string): Promise<boolean>;
  /** Names of the children, however many there are, or null if there is no such node. */
  directory(path: string): Promise<string[] | null>;
  /** Owner first, such as ['n0', 'r5'], or null if there is no such node. */
  getPermissions(path: string): Promise<string[] | null>;
  setPermissions(path: string, permissions: readonly string[]): Promise<void>;
}

/** `path` is what changed, spelt as the watch's own path was: absolute, relative or special. */
export type WatchCallback = (path: string, token: string) => void;

interface Pending {
  readonly operation: string;
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: Error) => void;
}

interface OwnWatch {
  readonly path: string;
  readonly token: string;
  readonly callback: WatchCallback;
}

type Exchange = (type: number, operation: string, payload: Uint8Array) => Promise<Uint8Array>;

/** The requests that name a node, on whatever `exchange` puts them into. */
class Nodes implements XenstoreNodes {
  readonly #exchange: Exchange;

  constructor(exchange: Exchange) {
    this.#exchange = exchange;
  }

  async read(path: string): Promise<string | null> {
    const value = await this.readBytes(path);
    return value === null ? null : new TextDecoder().decode(value);
  }

  async readBytes(path: string): Promise<Uint8Array | null> {
    return await orNull(this.#exchange(XS.READ, `READ ${path}`, pathPayload(path)));
  }

  async write(path: string, value: string | Uint8Array): Promise<void> {
    const bytes = typeof value === 'string' ? new TextEncoder().encode(value) : value;
    await this.#exchange(XS.WRITE, `WRITE ${path}`, concat(pathPayload(path), bytes));
  }

  async mkdir(path: string): Promise<void> {
    await this.#exchange(XS.MKDIR, `MKDIR ${path}`, pathPayload(path));
  }

  async remove(path: string): Promise<boolean> {
    return (await orNull(this.#exchange(XS.RM, `RM ${path}`, pathPayload(path)))) !== null;
  }

  async directory(path: string): Promise<string[] | null> {
    try {
      const names = await orNull(this.#exchange(XS.DIRECTORY, `DIRECTORY ${path}`, pathPayload(path)));
      return names === null ? null : splitStrings(names).strings;
    } catch (error) {
      if (!hasCode(error, 'E2BIG')) throw error;
    }
    // Too long for one message.
    for (;;) {
      const names = await this.#directoryByParts(path);
      if (names !== 'changed') return names;
    }
  }

  async #directoryByParts(path: string): Promise<string[] | null | 'changed'> {
    const names: string[] = [];
    let generation: string | null = null;
    let offset = 0;
    for (;;) {
      const payload = concat(pathPayload(path), joinStrings([String(offset)]));
      const part = await orNull(this.#exchange(XS.DIRECTORY_PART, `DIRECTORY_PART ${path}`, payload));
      if (part === null) return null;
      const [partGeneration = '', ...partNames] = splitStrings(part).strings;
      if (generation !== null && generation !== partGeneration) return 'changed';
      generation = partGeneration;
      // An empty name ends the list.
      const ends = partNames.at(-1) === '';
      if (ends) partNames.pop();
      names.push(...partNames);
      if (ends) return names;
      if (partNames.length === 0) throw new XenstoreError('EIO', `DIRECTORY_PART ${path}`);
      for (const name of partNames) offset += name.length + 1;
    }
  }

  async getPermissions(path: string): Promise<string[] | null> {
    const permissions = await orNull(this.#exchange(XS.GET_PERMS, `GET_PERMS ${path}`, pathPayload(path)));
    return permissions === null ? null : splitStrings(permissions).strings;
  }

  async setPermissions(path: string, permissions: readonly string[]): Promise<void> {
    const payload = concat(pathPayload(path), joinStrings(permissions));
    await this.#exchange(XS.SET_PERMS, `SET_PERMS ${path}`, payload);
  }
}

export class XenstoreClient extends Nodes {
  readonly #link: StoreLink;
  readonly #pending = new Map<number, Pending>();
  /** By the token on the wire, which is a number of our own: two watches may share path and token, or nest. */
  readonly #watches = new Map<string, OwnWatch>();
  #nextReqId = 1;
  #nextWatch = 1;
  #closed: XenstoreClosed | null = null;
  #whenClosed: (() => void)[] = [];

  constructor(link: StoreLink) {
    super((type, operation, payload) => this.#request(type, operation, payload, 0));
    this.#link = link;
    link.receive({ onMessage: (message) => this.#onMessage(message), onEnd: (reason) => this.#end(reason) });
  }

  /**
   * Runs `body` with the nodes as a transaction sees them, and commits; again from its start if that conflicts with
   * another client's changes, or xenstored has lost it, which `body` may have thrown for. What it throws otherwise aborts the
   * transaction and comes out.
   */
  async transaction<T>(body: (nodes: XenstoreNodes) => Promise<T>): Promise<T> {
    for (;;) {
      const started = await this.#request(XS.TRANSACTION_START, 'TRANSACTION_START', joinStrings(['']), 0);
      const txId = Number(splitStrings(started).strings[0]);
      const end = (verdict: 'T' | 'F') =>
        this.#request(XS.TRANSACTION_END, 'TRANSACTION_END', joinStrings([verdict]), txId);
      let result: T;
      try {
        result = await body(new Nodes((type, operation, payload) => this.#request(type, operation, payload, txId)));
      } catch (error) {
        const ended = await end('F').catch((reason: unknown) => reason);
        if (hasCode(ended, 'EAGAIN')) continue;
        // Nothing is left to say about the transaction that matters more than this error.
        throw error;
      }
      try {
        await end('T');
        return result;
      } catch (error) {
        if (!hasCode(error, 'EAGAIN')) throw error;
      }
    }
  }

  /**
   * Calls back once at once, and then for each change at or below `path`; "@introduceDomain" and "@releaseDomain" are
   * paths as well. Any number of watches may share path and token.
   */
  async watch(path: string, token: string, callback: WatchCallback): Promise<void> {
    const wireToken = String(this.#nextWatch++);
    this.#watches.set(wireToken, { path, token, callback });
    try {
      await this.#request(XS.WATCH, `WATCH ${path}`, concat(pathPayload(path), joinStrings([wireToken])), 0);
    } catch (error) {
      this.#watches.delete(wireToken);
      throw error;
    }
  }

  /** Ends the watches of this path and token: no callback after this call, not even before its promise resolves. */
  async unwatch(path: string, token: string): Promise<void> {
    const ended: Promise<unknown>[] = [];
    for (const [wireToken, watch] of [...this.#watches]) {
      if (watch.path !== path || watch.token !== token) continue;
      this.#watches.delete(wireToken);
      const payload = concat(pathPayload(path), joinStrings([wireToken]));
      ended.push(this.#request(XS.UNWATCH, `UNWATCH ${path}`, payload, 0));
    }
    if (ended.length === 0) throw new XenstoreError('ENOENT', `UNWATCH ${path}`);
    await Promise.all(ended);
  }

  /** A domain may use the store from now on. `gfn`: frame of its ring page; `port`: its event channel port. */
  async introduce(domid: number, gfn: number, port: number): Promise<void> {
    await this.#request(XS.INTRODUCE, `INTRODUCE ${domid}`, joinStrings([String(domid), String(gfn), String(port)]), 0);
  }

  /** A domain is gone: its connection ends, the nodes that it owns go. */
  async release(domid: number): Promise<void> {
    await this.#request(XS.RELEASE, `RELEASE ${domid}`, joinStrings([String(domid)]), 0);
  }

  async getDomainPath(domid: number): Promise<string> {
    const reply = await this.#request(XS.GET_DOMAIN_PATH, `GET_DOMAIN_PATH ${domid}`, joinStrings([String(domid)]), 0);
    return splitStrings(reply).strings[0] ?? '';
  }

  async isDomainIntroduced(domid: number): Promise<boolean> {
    const payload = joinStrings([String(domid)]);
    const reply = await this.#request(XS.IS_DOMAIN_INTRODUCED, `IS_DOMAIN_INTRODUCED ${domid}`, payload, 0);
    return splitStrings(reply).strings[0] === 'T';
  }

  /** A command for xenstored itself, in words; its answer as text. */
  async control(words: readonly string[]): Promise<string> {
    const payload = joinStrings(words.map((word) => bytesToText(new TextEncoder().encode(word))));
    const reply = await this.#request(XS.CONTROL, `CONTROL ${words[0] ?? ''}`, payload, 0);
    return new TextDecoder().decode(reply).replace(/\0$/, '');
  }

  /** Resolves when the connection has ended, whoever ended it. */
  get closed(): Promise<void> {
    return this.#closed !== null ? Promise.resolve() : new Promise((resolve) => this.#whenClosed.push(resolve));
  }

  /** Ends the connection: requests without a reply are rejected, watches and open transactions are gone. */
  close(): void {
    if (this.#closed !== null) return;
    this.#link.close();
    this.#end('closed by this client');
  }

  #request(type: number, operation: string, payload: Uint8Array, txId: number): Promise<Uint8Array> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    if (payload.length > XENSTORE_PAYLOAD_MAX) return Promise.reject(new XenstoreError('E2BIG', operation));
    const reqId = this.#nextReqId;
    this.#nextReqId = (this.#nextReqId + 1) >>> 0;
    return new Promise((resolve, reject) => {
      this.#pending.set(reqId, { operation, resolve, reject });
      this.#link.send({ type, reqId, txId, payload });
    });
  }

  #onMessage({ type, reqId, payload }: Message): void {
    if (type === XS.WATCH_EVENT) {
      const [path = '', wireToken = ''] = splitStrings(payload).strings;
      const watch = this.#watches.get(wireToken);
      // An event that was on its way when the watch ended has nobody left.
      watch?.callback(path, watch.token);
      return;
    }
    const pending = this.#pending.get(reqId);
    if (pending === undefined) return;
    this.#pending.delete(reqId);
    if (type !== XS.ERROR) pending.resolve(payload);
    else pending.reject(new XenstoreError(errorName(payload), pending.operation));
  }

  #end(reason: string): void {
    this.#closed = new XenstoreClosed(`xenstore connection ended: ${reason}`);
    for (const { reject } of this.#pending.values()) reject(this.#closed);
    this.#pending.clear();
    this.#watches.clear();
    for (const resolve of this.#whenClosed.splice(0)) resolve();
  }
}

function hasCode(error: unknown, code: XsErrorName): boolean {
  return error instanceof XenstoreError && error.code === code;
}

function errorName(payload: Uint8Array): XsErrorName {
  const name = splitStrings(payload).strings[0];
  // As libxenstore takes a name that it does not know.
  return XSD_ERRORS.find((known) => known === name) ?? 'EINVAL';
}

async function orNull(reply: Promise<Uint8Array>): Promise<Uint8Array | null> {
  try {
    return await reply;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return null;
    throw error;
  }
}

/** The path and its NUL. One with a NUL inside would be read as path and more. */
function pathPayload(path: string): Uint8Array {
  if (path.includes('\0')) throw new XenstoreError('EINVAL', `path ${JSON.stringify(path)}`);
  return new TextEncoder().encode(path + '\0');
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(a.length + b.length);
  bytes.set(a);
  bytes.set(b, a.length);
  return bytes;
}
