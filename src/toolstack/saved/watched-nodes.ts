/**
 * What xenstore holds of a domain, read while it runs, and known to be so still when it stands still: all of it is watched, so that it
 * need not be read again unless something has changed.
 */

import type { XenstoreClient } from '../../xenstore/client.ts';
import { readDomainNodes, readNodesBelow, type SavedNode } from './saved-store.ts';

const BACKENDS = '/local/domain/0/backend';

const isBelow = (path: string, other: string): boolean => path === other || path.startsWith(`${other}/`);

const parent = (path: string): string => path.slice(0, path.lastIndexOf('/'));

/** In the order of their paths, so that parents come first. */
function byPath(nodes: readonly SavedNode[]): Map<string, SavedNode> {
  return new Map([...nodes].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map((node) => [node[0], node]));
}

export class WatchedNodes {
  readonly #store: XenstoreClient;
  readonly #domid: number;
  readonly #paths: string[] = [];
  /** As they were read, by path. */
  #nodes = new Map<string, SavedNode>();
  readonly #changed = new Set<string>();

  constructor(store: XenstoreClient, domid: number) {
    this.#store = store;
    this.#domid = domid;
  }

  /** Reads them, and watches them from now on. */
  async start(): Promise<readonly SavedNode[]> {
    const kinds = (await this.#store.directory(BACKENDS)) ?? [];
    const vm = await this.#store.read(`${this.#folder}/vm`);
    this.#paths.push(this.#folder, `/libxl/${this.#domid}`, ...(vm === null ? [] : [vm]));
    for (const kind of kinds) this.#paths.push(`${BACKENDS}/${kind}/${this.#domid}`);
    for (const path of this.#paths) await this.#store.watch(path, this.#token, (changed) => this.#changed.add(changed));
    await this.#eventsUntilNow();
    this.#changed.clear();
    this.#nodes = byPath(await readDomainNodes(this.#store, this.#domid));
    return [...this.#nodes.values()];
  }

  /** As they are now: what has changed is read again. */
  async now(): Promise<readonly SavedNode[]> {
    await this.#eventsUntilNow();
    const changed = [...new Set([...this.#changed].map((path) => this.#firstNew(path)))];
    this.#changed.clear();
    const kept = [...this.#nodes.values()].filter(([path]) => !changed.some((other) => isBelow(path, other)));
    const read = await Promise.all(changed.map((path) => readNodesBelow(this.#store, path)));
    this.#nodes = byPath([...kept, ...read.flat()]);
    return [...this.#nodes.values()];
  }

  /** Nodes that were made above a node on the way to it are not told of. */
  #firstNew(path: string): string {
    const root = this.#paths.find((one) => isBelow(path, one));
    let first = path;
    for (let above = parent(path); root !== undefined && isBelow(above, root); above = parent(above))
      if (!this.#nodes.has(above)) first = above;
    return first;
  }

  /** What was due comes before an answer. */
  async #eventsUntilNow(): Promise<void> {
    await this.#store.read(`${this.#folder}/name`);
  }

  stop(): void {
    for (const path of this.#paths.splice(0)) this.#store.unwatch(path, this.#token).catch(() => undefined);
  }

  get #folder(): string {
    return `/local/domain/${this.#domid}`;
  }

  get #token(): string {
    return `migrate ${this.#domid}`;
  }
}
