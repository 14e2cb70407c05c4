/**
 * xenstored: the tree, the watches, the domains it serves and their connections.
 *
 * Single-threaded: everything here runs in one agent, one request at a time. Who carries the bytes (ring page or
 * socket) is outside: `ring-server.ts`, `stream-server.ts`.
 *
 * What has to outlive the process goes to a journal, if there is one, before it happens and before anyone is told of it:
 * a change that the journal does not take is refused with the journal's error, and nothing has changed. Watches and open
 * transactions are the connections' state and end with them.
 *
 * Source: docs/misc/xenstore.txt.
 */
import { XS, type XsErrorName } from '../abi/io/xs-wire.ts';
import { DOMID_FIRST_RESERVED } from '../abi/xen.ts';
import { Connection } from './connection.ts';
import { type Change, executeOperation, isOperation } from './operations.ts';
import { formatPath, type Path } from './path.ts';
import { formatPermissions, parsePermissions } from './permissions.ts';
import { DEFAULT_QUOTAS, NO_QUOTAS, type Quotas } from './quotas.ts';
import { decodeRecord, encodeRecord, type KeptRequest, type RequestKey, type StoreRecord } from './records.ts';
import { Tree } from './tree.ts';
import { Watches } from './watches.ts';
import { bytesToText, joinStrings, splitStrings, textToBytes } from './wire.ts';

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

/** Where records go to stay. */
export interface Journal {
  /**
   * Keeps one record, whatever happens to this process from then on; or says why it cannot, and has kept nothing of it.
   * It may replace all records before this one by `records()` of the store.
   */
  append(record: Uint8Array): XsErrorName | null;
}

export interface StoreOptions {
  /** Limits that differ from Xen's. */
  readonly quotas?: Partial<Quotas>;
  /** The records of an earlier store, to go on from where it was. */
  readonly records?: Iterable<Uint8Array>;
  /** Where lines for people go; nowhere if left out. */
  readonly log?: (line: string) => void;
}

const INTRODUCE_DOMAIN = '@introduceDomain';
const RELEASE_DOMAIN = '@releaseDomain';

/** Sessions whose last request is remembered; beyond that the ones not heard of longest are forgotten. */
const SESSIONS_MAX = 4096;
/** More generations than one life of a store can use up, so that no two lives share one. */
const GENERATIONS_PER_LIFE = 2 ** 32;

/**
 * A store with what xenstored itself puts into it, or one that goes on with the records of an earlier one; throws an Error
 * if those make no store.
 */
export function createStore(options: StoreOptions = {}): Store {
  return new Store({ ...DEFAULT_QUOTAS, ...options.quotas }, options.records ?? [], options.log ?? (() => {}));
}

export class Store {
  readonly quotas: Quotas;
  readonly tree: Tree;
  readonly log: (line: string) => void;
  readonly watches = new Watches();
  /** Set once the records it was made from, if any, are in the past. */
  journal: Journal | null = null;
  readonly #domains = new Map<number, IntroducedDomain>();
  readonly #targets = new Map<number, number>();
  readonly #connections = new Set<Connection>();
  /** Sequence number of the last request that changed something, by session; the one heard of last is at the end. */
  readonly #sessions = new Map<string, number>();
  #nextDomid = 1;
  /** How often this store was opened before. */
  #openedBefore = 0;
  /** For `read`, `write` and the other direct calls. Has no watches, so it never gets an event. */
  readonly #control: Connection;

  constructor(quotas: Quotas, records: Iterable<Uint8Array>, log: (line: string) => void) {
    this.quotas = quotas;
    this.log = log;
    // The records were within the limits of their time.
    const tree = new Tree(NO_QUOTAS);
    let isNew = true;
    for (const record of records) {
      this.#replay(decodeRecord(record), tree);
      isNew = false;
    }
    this.tree = tree.withQuotas(quotas);
    this.#control = new Connection(this, 0);
    if (!isNew) return;
    // Below the root, readable by domain 0 only: as recorded from Xen.
    this.mkdir('/' + INTRODUCE_DOMAIN);
    this.mkdir('/' + RELEASE_DOMAIN);
    this.write('/tool/xenstored', 'domus');
  }

  /** The whole store: what `createStore` needs to make an equal one. */
  *records(): Generator<Uint8Array> {
    yield encodeRecord({ kind: 'opened', count: this.#openedBefore });
    for (const { path, node } of this.tree.nodes()) {
      const permissions = formatPermissions(node.permissions).join(' ');
      yield encodeRecord({ kind: 'node', path: formatPath(path), value: node.value, permissions });
    }
    for (const [domid, { ring, isShutDown }] of this.#domains)
      yield encodeRecord({ kind: 'domain', domid, ...ring, isShutDown, target: this.targetOf(domid) });
    yield encodeRecord({ kind: 'domids', next: this.#nextDomid });
    for (const [session, sequence] of this.#sessions) yield encodeRecord({ kind: 'session', session, sequence });
  }

  /**
   * A new client that speaks for `domid`. A guest has one; domain 0 has one for each process. `session` names a client that
   * gives each request its own req_id, and may have sent some of them on an earlier connection already.
   */
  connect(domid: number, session: string | null = null): Connection {
    const connection = new Connection(this, domid, session);
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

  /** All introduced domains but 0. */
  domids(): number[] {
    return [...this.#domains.keys()];
  }

  /** The domain that `domid` acts for, or null. */
  targetOf(domid: number): number | null {
    return this.#targets.get(domid) ?? null;
  }

  /** The domid for a new domain: each is given once, until all have been. ENOSPC if every domid is in use. */
  allocateDomid(): number | XsErrorName {
    for (let tried = 1; tried < DOMID_FIRST_RESERVED; tried++) {
      const domid = this.#nextDomid;
      this.#nextDomid = domid + 1 < DOMID_FIRST_RESERVED ? domid + 1 : 1;
      if (this.isIntroduced(domid)) continue;
      return this.#keep({ kind: 'domids', next: this.#nextDomid }) ?? domid;
    }
    return 'ENOSPC';
  }

  /** Takes a domid out of turn: false if it is in use. EINVAL if no domain can have it. */
  claimDomid(domid: number): boolean | XsErrorName {
    if (domid <= 0 || domid >= DOMID_FIRST_RESERVED) return 'EINVAL';
    if (this.isIntroduced(domid)) return false;
    if (domid < this.#nextDomid) return true;
    this.#nextDomid = domid + 1 < DOMID_FIRST_RESERVED ? domid + 1 : 1;
    return this.#keep({ kind: 'domids', next: this.#nextDomid }) ?? true;
  }

  /** Has this very request been done already? */
  isDone(key: RequestKey): boolean {
    return this.#sessions.get(key.session) === key.sequence;
  }

  /** The client of this name will not come back. */
  endSession(session: string): void {
    if (this.#sessions.delete(session)) this.#keep({ kind: 'session', session, sequence: null });
  }

  /** Makes `tree`, a snapshot of the present one that `requests` of `domid` have changed, the present one. */
  commit(
    tree: Tree,
    changes: readonly Change[],
    domid: number,
    key: RequestKey | null,
    requests: readonly KeptRequest[],
  ): XsErrorName | null {
    const error = this.#keep({ kind: 'requests', domid, key, requests });
    if (error !== null) return error;
    const rootBefore = this.tree.root;
    this.tree.adopt(tree);
    this.watches.fire(changes, rootBefore, this.tree.root);
    return null;
  }

  /**
   * A domain may use the store from now on; fires @introduceDomain. Introducing it again with the same ring is
   * nothing new; with another one, and for domain 0, EINVAL.
   */
  introduceDomain(domid: number, ring: DomainRing, key: RequestKey | null = null): XsErrorName | null {
    if (domid === 0) return 'EINVAL';
    const known = this.#domains.get(domid);
    if (known !== undefined) return known.ring.gfn === ring.gfn && known.ring.port === ring.port ? null : 'EINVAL';
    const error = this.#keepCall(XS.INTRODUCE, [domid, ring.gfn, ring.port], key);
    if (error !== null) return error;
    this.#domains.set(domid, { ring, isShutDown: false });
    this.watches.fireSpecial(INTRODUCE_DOMAIN, domid, this.tree.root);
    return null;
  }

  /** A domain is gone: its connections, its nodes and its permissions go; fires @releaseDomain. EINVAL if unknown. */
  releaseDomain(domid: number, key: RequestKey | null = null): XsErrorName | null {
    if (!this.#domains.has(domid)) return 'EINVAL';
    const error = this.#keepCall(XS.RELEASE, [domid], key);
    if (error !== null) return error;
    this.#forgetDomain(domid, this.tree);
    for (const connection of [...this.#connections]) if (connection.domid === domid) connection.close();
    this.watches.fireSpecial(RELEASE_DOMAIN, domid, this.tree.root);
    return null;
  }

  /** A domain crashed or shut down: fires @releaseDomain, once until `resumeDomain`. EINVAL if unknown. */
  domainShutDown(domid: number): XsErrorName | null {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return 'EINVAL';
    if (domain.isShutDown) return null;
    const error = this.#keep({ kind: 'shutdown', domid });
    if (error !== null) return error;
    domain.isShutDown = true;
    this.watches.fireSpecial(RELEASE_DOMAIN, domid, this.tree.root);
    return null;
  }

  /** The domain runs again after a shutdown (suspend). EINVAL if unknown. */
  resumeDomain(domid: number, key: RequestKey | null = null): XsErrorName | null {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return 'EINVAL';
    const error = this.#keepCall(XS.RESUME, [domid], key);
    if (error !== null) return error;
    domain.isShutDown = false;
    return null;
  }

  /** `domid` (a stub domain) may do what `target` may. ENOENT if `domid` is unknown. */
  setTarget(domid: number, target: number, key: RequestKey | null = null): XsErrorName | null {
    if (!this.#domains.has(domid)) return 'ENOENT';
    const error = this.#keepCall(XS.SET_TARGET, [domid, target], key);
    if (error !== null) return error;
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

  /** Null once the record is kept, and the request of its key done. */
  #keep(record: StoreRecord): XsErrorName | null {
    const error = this.journal?.append(encodeRecord(record)) ?? null;
    if (error === null && record.kind === 'requests' && record.key !== null) this.#noteDone(record.key);
    return error;
  }

  /** Keeps a request of domain 0 that consists of numbers. */
  #keepCall(type: number, numbers: readonly number[], key: RequestKey | null): XsErrorName | null {
    const payload = joinStrings(numbers.map(String));
    return this.#keep({ kind: 'requests', domid: 0, key, requests: [{ type, payload }] });
  }

  #noteDone({ session, sequence }: RequestKey): void {
    this.#sessions.delete(session);
    this.#sessions.set(session, sequence);
    if (this.#sessions.size <= SESSIONS_MAX) return;
    for (const oldest of this.#sessions.keys()) {
      this.#sessions.delete(oldest);
      break;
    }
  }

  #forgetDomain(domid: number, tree: Tree): void {
    this.#domains.delete(domid);
    this.#targets.delete(domid);
    for (const [other, target] of [...this.#targets]) if (target === domid) this.#targets.delete(other);
    tree.forgetDomain(domid);
  }

  /** Does again what the record says was done. Throws if that cannot be. */
  #replay(record: StoreRecord, tree: Tree): void {
    switch (record.kind) {
      case 'opened':
        this.#openedBefore = record.count + 1;
        tree.startGenerationsAt(this.#openedBefore * GENERATIONS_PER_LIFE);
        break;
      case 'node': {
        const permissions = parsePermissions(record.permissions.split(' '));
        const path = pathOfRecord(record.path);
        if (permissions === null) throw new Error(`node ${record.path} has the permissions "${record.permissions}"`);
        if (!tree.restoreNode(path, record.value, permissions)) throw new Error(`node ${record.path} has no parent`);
        break;
      }
      case 'domain': {
        const { domid, gfn, port, isShutDown, target } = record;
        this.#domains.set(domid, { ring: { gfn, port }, isShutDown });
        if (target !== null) this.#targets.set(domid, target);
        break;
      }
      case 'requests':
        for (const { type, payload } of record.requests) this.#replayRequest(record.domid, type, payload, tree);
        if (record.key !== null) this.#noteDone(record.key);
        break;
      case 'shutdown': {
        const domain = this.#domains.get(record.domid);
        if (domain !== undefined) domain.isShutDown = true;
        break;
      }
      case 'domids':
        this.#nextDomid = record.next;
        break;
      case 'session':
        if (record.sequence === null) this.#sessions.delete(record.session);
        else this.#noteDone({ session: record.session, sequence: record.sequence });
        break;
    }
  }

  #replayRequest(domid: number, type: number, payload: Uint8Array, tree: Tree): void {
    if (isOperation(type)) {
      const answer = executeOperation(tree, { domid, target: this.targetOf(domid) }, type, payload, []);
      if (typeof answer === 'string') throw new Error(`request ${type} of domain ${domid} gives ${answer}`);
      return;
    }
    const [about = 0, second = 0, third = 0] = splitStrings(payload).strings.map(Number);
    if (type === XS.INTRODUCE) this.#domains.set(about, { ring: { gfn: second, port: third }, isShutDown: false });
    else if (type === XS.RELEASE) this.#forgetDomain(about, tree);
    else if (type === XS.SET_TARGET) this.#targets.set(about, second);
    else if (type === XS.RESUME) {
      const domain = this.#domains.get(about);
      if (domain !== undefined) domain.isShutDown = false;
    } else throw new Error(`request ${type} changes nothing`);
  }
}

/** The names of a path that `formatPath` made, special ones below the root included. */
function pathOfRecord(text: string): Path {
  return text === '/' ? [] : text.slice(1).split('/');
}
