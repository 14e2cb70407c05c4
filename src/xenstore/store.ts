/**
 * xenstored in memory: the tree, the watches, the domains it serves and their connections.
 *
 * Single-threaded: everything here runs in one agent, one request at a time. Who carries the bytes (ring page or
 * socket) is outside: `ring-server.ts`. Nothing is persisted.
 *
 * Source: docs/misc/xenstore.txt.
 */
import { XS, type XsErrorName } from '../abi/io/xs-wire.ts';
import { Connection } from './connection.ts';
import { DEFAULT_QUOTAS, type Quotas } from './quotas.ts';
import { Tree } from './tree.ts';
import { Watches } from './watches.ts';
import { bytesToText, textToBytes } from './wire.ts';

/** How a domain reaches the store: frame of its ring page and its event channel port. */
export interface DomainRing {
  readonly gfn: number;
  readonly port: number;
}

interface IntroducedDomain {
  readonly ring: DomainRing;
  /** Has @releaseDomain told of its shutdown? */
  isShutDown: boolean;
}

export interface StoreOptions {
  /** Limits that differ from Xen's. */
  readonly quotas?: Partial<Quotas>;
}

const INTRODUCE_DOMAIN = '@introduceDomain';
const RELEASE_DOMAIN = '@releaseDomain';

/** A store with what xenstored itself puts into it. */
export function createStore(options: StoreOptions = {}): Store {
  return new Store({ ...DEFAULT_QUOTAS, ...options.quotas });
}

export class Store {
  readonly quotas: Quotas;
  readonly tree: Tree;
  readonly watches = new Watches();
  readonly #domains = new Map<number, IntroducedDomain>();
  readonly #targets = new Map<number, number>();
  readonly #connections = new Set<Connection>();
  /** For `read`, `write` and the other direct calls. Has no watches, so it never gets an event. */
  readonly #control: Connection;

  constructor(quotas: Quotas) {
    this.quotas = quotas;
    this.tree = new Tree(quotas);
    this.#control = new Connection(this, 0);
    // Below the root, readable by domain 0 only: as recorded from Xen.
    this.mkdir('/' + INTRODUCE_DOMAIN);
    this.mkdir('/' + RELEASE_DOMAIN);
    this.write('/tool/xenstored', 'domus');
  }

  /** A new client that speaks for `domid`. A guest has one; domain 0 has one for each process. */
  connect(domid: number): Connection {
    const connection = new Connection(this, domid);
    this.#connections.add(connection);
    return connection;
  }

  /** Called by `Connection.close`. */
  disconnect(connection: Connection): void {
    this.#connections.delete(connection);
  }

  isIntroduced(domid: number): boolean {
    return domid === 0 || this.#domains.has(domid);
  }

  /** The domain that `domid` acts for, or null. */
  targetOf(domid: number): number | null {
    return this.#targets.get(domid) ?? null;
  }

  /**
   * A domain may use the store from now on; fires @introduceDomain. Introducing it again with the same ring is
   * nothing new; with another one, and for domain 0, EINVAL.
   */
  introduceDomain(domid: number, ring: DomainRing): XsErrorName | null {
    if (domid === 0) return 'EINVAL';
    const known = this.#domains.get(domid);
    if (known !== undefined) return known.ring.gfn === ring.gfn && known.ring.port === ring.port ? null : 'EINVAL';
    this.#domains.set(domid, { ring, isShutDown: false });
    this.watches.fireSpecial(INTRODUCE_DOMAIN, this.tree.root);
    return null;
  }

  /** A domain is gone: its connections, its nodes and its permissions go; fires @releaseDomain. EINVAL if unknown. */
  releaseDomain(domid: number): XsErrorName | null {
    if (!this.#domains.delete(domid)) return 'EINVAL';
    this.#targets.delete(domid);
    for (const [other, target] of [...this.#targets]) if (target === domid) this.#targets.delete(other);
    for (const connection of [...this.#connections]) if (connection.domid === domid) connection.close();
    this.tree.forgetDomain(domid);
    this.watches.fireSpecial(RELEASE_DOMAIN, this.tree.root);
    return null;
  }

  /** A domain crashed or shut down: fires @releaseDomain, once until `resumeDomain`. EINVAL if unknown. */
  domainShutDown(domid: number): XsErrorName | null {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return 'EINVAL';
    if (domain.isShutDown) return null;
    domain.isShutDown = true;
    this.watches.fireSpecial(RELEASE_DOMAIN, this.tree.root);
    return null;
  }

  /** The domain runs again after a shutdown (suspend). EINVAL if unknown. */
  resumeDomain(domid: number): XsErrorName | null {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return 'EINVAL';
    domain.isShutDown = false;
    return null;
  }

  /** `domid` (a stub domain) may do what `target` may. ENOENT if `domid` is unknown. */
  setTarget(domid: number, target: number): XsErrorName | null {
    if (!this.#domains.has(domid)) return 'ENOENT';
    this.#targets.set(domid, target);
    return null;
  }

  // Direct calls of domain 0's own code. Absolute paths; text is UTF-8. They throw on errors that are the caller's
  // fault (a malformed path, a value over 2048 bytes).

  /** The value, or null if there is no such node. */
  read(path: string): Uint8Array | null {
    const reply = this.#request(XS.READ, path, '');
    return reply === 'ENOENT' ? null : this.#must(reply, 'READ', path);
  }

  /** Names of the children, or null if there is no such node. */
  list(path: string): string[] | null {
    const { tree } = this;
    const reply = this.#request(XS.GET_PERMS, path, '');
    if (reply === 'ENOENT') return null;
    this.#must(reply, 'DIRECTORY', path);
    const names = path === '/' ? [] : path.slice(1).split('/');
    const list = tree.list(this.#control.caller, names);
    return typeof list === 'string' ? null : list.names;
  }

  write(path: string, value: string | Uint8Array): void {
    const bytes = typeof value === 'string' ? new TextEncoder().encode(value) : value;
    this.#must(this.#request(XS.WRITE, path, bytesToText(bytes)), 'WRITE', path);
  }

  mkdir(path: string): void {
    this.#must(this.#request(XS.MKDIR, path, ''), 'MKDIR', path);
  }

  /** Removes the node and all below; nothing happens if it, or its parent, is missing. */
  remove(path: string): void {
    const reply = this.#request(XS.RM, path, '');
    if (reply !== 'ENOENT') this.#must(reply, 'RM', path);
  }

  /** `permissions`: owner first, such as ['n0', 'r5']. */
  setPermissions(path: string, permissions: readonly string[]): void {
    const text = permissions.map((entry) => entry + '\0').join('');
    this.#must(this.#request(XS.SET_PERMS, path, text), 'SET_PERMS', path);
  }

  #request(type: number, path: string, rest: string): Uint8Array | string {
    const payload = textToBytes(path + '\0' + rest);
    const reply = this.#control.handle({ type, reqId: 0, txId: 0, payload });
    return reply.type === XS.ERROR ? bytesToText(reply.payload.subarray(0, -1)) : reply.payload;
  }

  #must(reply: Uint8Array | string, operation: string, path: string): Uint8Array {
    if (typeof reply === 'string') throw new Error(`xenstore ${operation} ${path}: ${reply}`);
    return reply;
  }
}
