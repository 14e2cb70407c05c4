/**
 * Watches: who wants to hear of which paths, and which events a change makes.
 *
 * A change of /a/b is an event for watches of /, /a and /a/b, with the path /a/b. The removal of /a/b is one also for each
 * watch below it, with that watch's own path. A watch that was set with a relative path gets relative paths.
 * A watch may be held to a number of levels below its path. For a special one, level 1 means that its events name the domain,
 * "@releaseDomain/5"; a watch of that very path hears of that domain only.
 * An event goes to a client only if it may read the node, or the node's parent, now or (when a node was removed or its
 * permissions changed) before.
 *
 * Source: docs/misc/xenstore.txt, watches (levels and domids: those of Xen 4.22); xs-wire.out and xs-watch-*.out recorded from Xen 4.17.
 */
import type { XsErrorName } from '../abi/io/xs-wire.ts';
import type { Change } from './operations.ts';
import { absolutePath, domainPath, formatPath, isRelative, isSpecial, type Path, parsePath } from './path.ts';
import { type Caller, isPrivileged, mayAccess } from './permissions.ts';
import { findNode, type Node } from './tree.ts';

/** Who holds a watch. */
export interface Watcher {
  readonly caller: Caller;
  /** An event for this client; `path` as the client named it. */
  deliver(path: string, token: string): void;
}

interface Watch {
  readonly watcher: Watcher;
  readonly path: Path;
  /** As the client gave it. */
  readonly givenPath: string;
  readonly token: string;
  /** Levels below the path of which it hears. */
  readonly depth: number;
}

/** One domain's special events. */
const SPECIAL_OF_DOMAIN = /^(@releaseDomain)\/(\d{1,5})$/;

export class Watches {
  /** By absolute path. */
  readonly #byPath = new Map<string, Watch[]>();
  readonly #counts = new Map<Watcher, number>();

  countOf(watcher: Watcher): number {
    return this.#counts.get(watcher) ?? 0;
  }

  /**
   * Adds a watch. EINVAL for a bad path, or a depth other than 0, 1 and all for a special one; EEXIST if this client has the
   * same path and token. Delivers nothing.
   */
  add(watcher: Watcher, givenPath: string, token: string, depth = Infinity): XsErrorName | null {
    const { domid } = watcher.caller;
    const path = parseWatchPath(givenPath, domid);
    if (path === null) return 'EINVAL';
    if (isSpecial(path) && depth > 1 && depth !== Infinity) return 'EINVAL';
    const key = absolutePath(givenPath, domid);
    const watches = this.#byPath.get(key) ?? [];
    if (watches.some((watch) => watch.watcher === watcher && watch.token === token)) return 'EEXIST';
    this.#byPath.set(key, [...watches, { watcher, path, givenPath, token, depth }]);
    this.#counts.set(watcher, this.countOf(watcher) + 1);
    return null;
  }

  /** ENOENT if this client has no such watch. */
  remove(watcher: Watcher, givenPath: string, token: string): XsErrorName | null {
    const { domid } = watcher.caller;
    if (parseWatchPath(givenPath, domid) === null) return 'EINVAL';
    const key = absolutePath(givenPath, domid);
    const removed = this.#keep(key, (watch) => watch.watcher !== watcher || watch.token !== token);
    return removed === 0 ? 'ENOENT' : null;
  }

  removeAll(watcher: Watcher): void {
    if (this.countOf(watcher) === 0) return;
    for (const key of [...this.#byPath.keys()]) this.#keep(key, (watch) => watch.watcher !== watcher);
  }

  /** Delivers the events of changes that are already made. `rootBefore` is the tree without them, `root` with them. */
  fire(changes: readonly Change[], rootBefore: Node, root: Node): void {
    for (const { kind, path } of changes) {
      // Permissions of a special watch: no domain came or went.
      if (isSpecial(path)) continue;
      const roots = kind === 'remove' ? [rootBefore] : kind === 'permissions' ? [rootBefore, root] : [root];
      const text = formatPath(path);
      for (const key of ancestors(path)) {
        for (const watch of this.#byPath.get(key) ?? []) {
          if (path.length - watch.path.length > watch.depth) continue;
          if (mayHear(watch.watcher.caller, roots, path)) deliver(watch, text);
        }
      }
      if (kind !== 'remove') continue;
      const below = text + '/';
      for (const [key, watches] of [...this.#byPath]) {
        if (!key.startsWith(below)) continue;
        for (const watch of watches) {
          if (mayHear(watch.watcher.caller, roots, watch.path)) watch.watcher.deliver(watch.givenPath, watch.token);
        }
      }
    }
  }

  /** Delivers a special event of a domain, such as "@releaseDomain", to those who may read the node of that name. */
  fireSpecial(name: string, domid: number, root: Node): void {
    const node = findNode(root, [name]);
    const ofDomain = `${name}/${domid}`;
    for (const key of [name, ofDomain]) {
      for (const { watcher, givenPath, token, depth } of this.#byPath.get(key) ?? []) {
        const mayRead = node === null ? watcher.caller.domid === 0 : mayAccess(watcher.caller, node.permissions, 'r');
        if (mayRead) watcher.deliver(depth === 1 ? ofDomain : givenPath, token);
      }
    }
  }

  /** Keeps the watches of one path that `wanted` wants; how many went. */
  #keep(key: string, wanted: (watch: Watch) => boolean): number {
    const watches = this.#byPath.get(key) ?? [];
    const kept = watches.filter(wanted);
    const removed = watches.filter((watch) => !wanted(watch));
    if (kept.length === 0) this.#byPath.delete(key);
    else if (removed.length > 0) this.#byPath.set(key, kept);
    for (const { watcher } of removed) {
      const count = this.countOf(watcher) - 1;
      if (count === 0) this.#counts.delete(watcher);
      else this.#counts.set(watcher, count);
    }
    return removed.length;
  }
}

function parseWatchPath(givenPath: string, domid: number): Path | null {
  const special = SPECIAL_OF_DOMAIN.exec(givenPath);
  return special === null ? parsePath(givenPath, domid) : [special[1]];
}

/** "/", "/a", "/a/b" for ['a', 'b']. */
function ancestors(path: Path): string[] {
  const keys = ['/'];
  let key = '';
  for (const name of path) {
    key += '/' + name;
    keys.push(key);
  }
  return keys;
}

function deliver(watch: Watch, changed: string): void {
  const relative = isRelative(watch.givenPath);
  const base = domainPath(watch.watcher.caller.domid) + '/';
  watch.watcher.deliver(relative ? changed.slice(base.length) : changed, watch.token);
}

function mayHear(caller: Caller, roots: readonly Node[], path: Path): boolean {
  // Also of a node that one transaction both made and removed.
  if (isPrivileged(caller)) return true;
  for (const root of roots) {
    const parent = findNode(root, path.slice(0, -1));
    if (parent === null) continue;
    if (mayAccess(caller, parent.permissions, 'r')) return true;
    const node = findNode(root, path);
    if (node !== null && mayAccess(caller, node.permissions, 'r')) return true;
  }
  return false;
}
