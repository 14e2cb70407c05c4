/** The nodes of a domain that runs, read once and kept up to date by watches: at a moment when it stands still they are known at once. */

import { readDomainNodes, type SavedNode } from '../toolstack/saved/saved-store.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { bytesToText } from '../xenstore/wire.ts';

const BACKENDS = '/local/domain/0/backend';

let tokens = 0;

export class KnownNodes {
  readonly #store: XenstoreClient;
  readonly #domid: number;
  readonly #watched: readonly string[];
  readonly #token: string;
  readonly #changed = new Set<string>();
  #nodes: readonly SavedNode[] = [];

  static async read(store: XenstoreClient, domid: number): Promise<KnownNodes> {
    const vm = await store.read(`/local/domain/${domid}/vm`);
    const watched = [`/local/domain/${domid}`, `/libxl/${domid}`, BACKENDS, ...(vm === null ? [] : [vm])];
    const known = new KnownNodes(store, domid, watched);
    const isOwn = new RegExp(`^${BACKENDS}/[^/]+/${domid}(/|$)`);
    for (const path of watched)
      await store.watch(path, known.#token, (event) => {
        if (path !== BACKENDS || isOwn.test(event)) known.#changed.add(event);
      });
    // A watch fires once when it is set, before this is answered.
    await store.read(`/local/domain/${domid}/domid`);
    known.#changed.clear();
    known.#nodes = await readDomainNodes(store, domid);
    return known;
  }

  private constructor(store: XenstoreClient, domid: number, watched: readonly string[]) {
    this.#store = store;
    this.#domid = domid;
    this.#watched = watched;
    // One may still be on its way out when the next is read.
    this.#token = `nodes of ${domid}, ${++tokens}`;
  }

  /** As they were when they were looked at last. */
  get last(): readonly SavedNode[] {
    return this.#nodes;
  }

  /** As they are now. The domain must not change them meanwhile. */
  async current(): Promise<readonly SavedNode[]> {
    // Events come before the answer to what is asked after them.
    await this.#store.read(`/local/domain/${this.#domid}/domid`);
    const changed = new Set(this.#changed);
    this.#changed.clear();
    if (changed.size === 0) return this.#nodes;
    // Watches that were set again, by a session that had lost xenstored: what they have missed is unknown.
    if (this.#watched.some((path) => changed.has(path))) return await this.#readAll();
    const nodes: SavedNode[] = [];
    for (const node of this.#nodes) {
      const now = changed.delete(node[0]) ? await this.#readNode(node[0]) : node;
      // One has gone: others may have gone with it.
      if (now === null) return await this.#readAll();
      nodes.push(now);
    }
    if (changed.size > 0) return await this.#readAll();
    this.#nodes = nodes;
    return nodes;
  }

  /** Nothing is kept up to date any more. */
  close(): void {
    for (const path of this.#watched) this.#store.unwatch(path, this.#token).catch(() => undefined);
  }

  async #readAll(): Promise<readonly SavedNode[]> {
    this.#nodes = await readDomainNodes(this.#store, this.#domid);
    return this.#nodes;
  }

  async #readNode(path: string): Promise<SavedNode | null> {
    const [value, permissions] = await Promise.all([this.#store.readBytes(path), this.#store.getPermissions(path)]);
    return value === null || permissions === null ? null : [path, bytesToText(value), permissions];
  }
}
