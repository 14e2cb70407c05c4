/**
 * The tree of nodes, with permissions and the count of nodes that each domain owns.
 *
 * A tree can be copied in constant time (`snapshot`): nodes are shared until one side changes them. Every node carries
 * the epoch of the tree that made it. A tree changes a node in place if the node has the tree's own epoch; otherwise it
 * copies the nodes from the root down to it first. `snapshot` gives both sides new epochs, so neither owns a shared node.
 * Hence also: `root` is the same object as at the snapshot exactly if nothing was changed since.
 *
 * Operations answer with what was asked for or with the name of an error, and change nothing when they fail.
 * A value handed in or out is never written again by anyone.
 *
 * Differences to the recorded xenstored (oxenstored 4.17), which Xen's C xenstored shares:
 * - a new node belongs to the domain that made it, not to the owner of its parent, so that a domain cannot spend the
 *   quota of another one (or of domain 0, who has none);
 * - RM of "/" is EINVAL; oxenstored wipes the store.
 */
import type { XsErrorName } from '../abi/io/xs-wire.ts';
import type { Path } from './path.ts';
import { type Caller, isOwner, isPrivileged, mayAccess, type Permissions, withoutDomain } from './permissions.ts';
import type { Quotas } from './quotas.ts';

/** A node. Only its tree may change it. */
export interface Node {
  readonly epoch: number;
  /** Changes with every change of value, permissions or names of children. */
  generation: number;
  value: Uint8Array;
  permissions: Permissions;
  readonly children: Map<string, Node>;
}

/** The counters that all snapshots of one tree share. */
interface Clock {
  epoch: number;
  generation: number;
}

const EMPTY = new Uint8Array(0);
const DOMAIN_ZERO_ONLY: Permissions = [{ domid: 0, access: 'n' }];

export class Tree {
  root: Node;
  readonly #clock: Clock;
  readonly #quotas: Quotas;
  #epoch: number;
  /** Nodes owned, by domid. */
  #owned: Map<number, number>;

  constructor(quotas: Quotas, shared?: { clock: Clock; root: Node; owned: ReadonlyMap<number, number> }) {
    this.#quotas = quotas;
    this.#clock = shared?.clock ?? { epoch: 0, generation: 0 };
    this.#epoch = ++this.#clock.epoch;
    this.#owned = new Map(shared?.owned);
    this.root = shared?.root ?? this.#newNode(EMPTY, DOMAIN_ZERO_ONLY);
  }

  /** A copy that no longer changes with this tree, nor this tree with it. */
  snapshot(): Tree {
    const copy = new Tree(this.#quotas, { clock: this.#clock, root: this.root, owned: this.#owned });
    this.#epoch = ++this.#clock.epoch;
    return copy;
  }

  /** The same tree under other quotas. This one is used up. */
  withQuotas(quotas: Quotas): Tree {
    return new Tree(quotas, { clock: this.#clock, root: this.root, owned: this.#owned });
  }

  /** Makes this tree what `other`, a snapshot of it, has become. `other` is used up. */
  adopt(other: Tree): void {
    this.root = other.root;
    this.#epoch = other.#epoch;
    this.#owned = other.#owned;
  }

  /** All nodes, each before its children, which come in their order. */
  *nodes(): Generator<{ readonly path: Path; readonly node: Node }> {
    const stack: { path: Path; node: Node }[] = [{ path: [], node: this.root }];
    for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
      yield next;
      const { path, node } = next;
      for (const [name, child] of [...node.children].reverse()) stack.push({ path: [...path, name], node: child });
    }
  }

  /** Puts back a node that `nodes` gave; true, or false if it has no parent. `value` must not be written afterwards. */
  restoreNode(path: Path, value: Uint8Array, permissions: Permissions): boolean {
    if (path.length > 0 && findNode(this.root, path.slice(0, -1)) === null) return false;
    const node = this.#make({ domid: 0, target: null }, path);
    this.#count(node.permissions[0].domid, -1);
    this.#count(permissions[0].domid, 1);
    node.value = value;
    node.permissions = permissions;
    return true;
  }

  /** Makes generations from now on larger than any before, those of the tree's earlier lives included. */
  startGenerationsAt(generation: number): void {
    this.#clock.generation = Math.max(this.#clock.generation, generation);
  }

  nodesOwnedBy(domid: number): number {
    return this.#owned.get(domid) ?? 0;
  }

  read(caller: Caller, path: Path): Uint8Array | XsErrorName {
    const node = this.#readable(caller, path);
    return typeof node === 'string' ? node : node.value;
  }

  /** Names of the children, in the order of their bytes as oxenstored has them, and the node's generation. */
  list(caller: Caller, path: Path): { readonly names: string[]; readonly generation: number } | XsErrorName {
    const node = this.#readable(caller, path);
    return typeof node === 'string' ? node : { names: [...node.children.keys()].sort(), generation: node.generation };
  }

  permissions(caller: Caller, path: Path): Permissions | XsErrorName {
    const node = this.#readable(caller, path);
    return typeof node === 'string' ? node : node.permissions;
  }

  /** Sets the value, makes the node and its parents if they are missing. `value` must not be written afterwards. */
  write(caller: Caller, path: Path, value: Uint8Array): XsErrorName | null {
    if (value.length > this.#quotas.valueBytesMax) return 'E2BIG';
    const error = this.#checkWritable(caller, path);
    if (error !== null) return error;
    const node = this.#make(caller, path);
    node.value = value;
    node.generation = ++this.#clock.generation;
    return null;
  }

  /** Makes the node and its parents; true if it was missing. */
  mkdir(caller: Caller, path: Path): boolean | XsErrorName {
    const error = this.#checkWritable(caller, path);
    if (error !== null) return error;
    if (findNode(this.root, path) !== null) return false;
    this.#make(caller, path);
    return true;
  }

  /** Removes the node and everything below; false if it was missing while its parent exists. */
  remove(caller: Caller, path: Path): boolean | XsErrorName {
    if (path.length === 0) return 'EINVAL';
    const parentPath = path.slice(0, -1);
    const parent = findNode(this.root, parentPath);
    if (parent === null) return 'ENOENT';
    const name = path[path.length - 1];
    const node = parent.children.get(name);
    if (node === undefined) return false;
    if (!mayAccess(caller, node.permissions, 'w')) return 'EACCES';
    this.#disown(node);
    const ownParent = this.#own(parentPath);
    ownParent.children.delete(name);
    ownParent.generation = ++this.#clock.generation;
    return true;
  }

  setPermissions(caller: Caller, path: Path, permissions: Permissions): XsErrorName | null {
    const node = findNode(this.root, path);
    if (node === null) return 'ENOENT';
    if (!isOwner(caller, node.permissions)) return 'EACCES';
    const oldOwner = node.permissions[0].domid;
    const newOwner = permissions[0].domid;
    if (!isPrivileged(caller)) {
      if (newOwner !== oldOwner) return 'EACCES';
      if (permissions.length > this.#quotas.permissionsMax) return 'ENOSPC';
    }
    const own = this.#own(path);
    own.permissions = permissions;
    own.generation = ++this.#clock.generation;
    this.#count(oldOwner, -1);
    this.#count(newOwner, 1);
    return null;
  }

  /** A domain is gone: its nodes go with all their children, and its entries in others' permissions. */
  forgetDomain(domid: number): void {
    this.root = this.#withoutDomain(this.root, domid);
  }

  #withoutDomain(node: Node, domid: number): Node {
    const permissions = withoutDomain(node.permissions, domid);
    let children: Map<string, Node> | null = null;
    for (const [name, child] of node.children) {
      if (child.permissions[0].domid === domid) {
        this.#disown(child);
        children ??= new Map(node.children);
        children.delete(name);
        continue;
      }
      const kept = this.#withoutDomain(child, domid);
      if (kept !== child) (children ??= new Map(node.children)).set(name, kept);
    }
    if (children === null && permissions === node.permissions) return node;
    return {
      epoch: this.#epoch,
      generation: ++this.#clock.generation,
      value: node.value,
      permissions,
      children: children ?? new Map(node.children),
    };
  }

  #readable(caller: Caller, path: Path): Node | XsErrorName {
    const node = findNode(this.root, path);
    if (node === null) return 'ENOENT';
    return mayAccess(caller, node.permissions, 'r') ? node : 'EACCES';
  }

  /** May `caller` write the node, or make what is missing of the path below its deepest existing ancestor? */
  #checkWritable(caller: Caller, path: Path): XsErrorName | null {
    let node = this.root;
    let missing = path.length;
    for (const name of path) {
      const child = node.children.get(name);
      if (child === undefined) break;
      node = child;
      missing--;
    }
    if (!mayAccess(caller, node.permissions, 'w')) return 'EACCES';
    if (missing > 0 && !isPrivileged(caller) && this.nodesOwnedBy(caller.domid) + missing > this.#quotas.nodesMax) {
      return 'ENOSPC';
    }
    return null;
  }

  /** The node at `path`, ready to be changed; made, with its parents, if missing. Everything was checked before. */
  #make(caller: Caller, path: Path): Node {
    let node = this.#ownRoot();
    for (const name of path) {
      const existing = node.children.get(name);
      if (existing !== undefined) {
        node = this.#ownChild(node, name, existing);
        continue;
      }
      const [owner, ...others] = node.permissions;
      const ownerDomid = isPrivileged(caller) ? owner.domid : caller.domid;
      const child = this.#newNode(EMPTY, [{ domid: ownerDomid, access: owner.access }, ...others]);
      node.children.set(name, child);
      node.generation = ++this.#clock.generation;
      node = child;
    }
    return node;
  }

  /** The existing node at `path`, ready to be changed. */
  #own(path: Path): Node {
    let node = this.#ownRoot();
    for (const name of path) {
      const child = node.children.get(name);
      if (child === undefined) throw new Error(`bug: xenstore node ${path.join('/')} vanished while it was changed`);
      node = this.#ownChild(node, name, child);
    }
    return node;
  }

  #ownRoot(): Node {
    return (this.root = this.#ownNode(this.root));
  }

  #ownChild(parent: Node, name: string, child: Node): Node {
    const own = this.#ownNode(child);
    if (own !== child) parent.children.set(name, own);
    return own;
  }

  #ownNode(node: Node): Node {
    return node.epoch === this.#epoch ? node : { ...node, epoch: this.#epoch, children: new Map(node.children) };
  }

  #newNode(value: Uint8Array, permissions: Permissions): Node {
    this.#count(permissions[0].domid, 1);
    const generation = ++this.#clock.generation;
    return { epoch: this.#epoch, generation, value, permissions, children: new Map() };
  }

  #disown(node: Node): void {
    this.#count(node.permissions[0].domid, -1);
    for (const child of node.children.values()) this.#disown(child);
  }

  #count(domid: number, difference: number): void {
    const count = this.nodesOwnedBy(domid) + difference;
    if (count === 0) this.#owned.delete(domid);
    else this.#owned.set(domid, count);
  }
}

/** The node at `path` below `root`, or null. */
export function findNode(root: Node, path: Path): Node | null {
  let node = root;
  for (const name of path) {
    const child = node.children.get(name);
    if (child === undefined) return null;
    node = child;
  }
  return node;
}
