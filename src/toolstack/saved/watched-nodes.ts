/**
 * What xenstore holds of a domain, read while it runs, and known to be so still when it stands still: all of it is watched, so that it
 * need not be read again unless something has changed.
 */

import type { XenstoreClient } from '../../xenstore/client.ts';
import { readDomainNodes, type SavedNode } from './saved-store.ts';

const BACKENDS = '/local/domain/0/backend';

export class WatchedNodes {
  readonly #store: XenstoreClient;
  readonly #domid: number;
  readonly #paths: string[] = [];
  #nodes: readonly SavedNode[] = [];
  #hasChanged = false;

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
    for (const path of this.#paths)
      await this.#store.watch(path, this.#token, () => {
        this.#hasChanged = true;
      });
    await this.#eventsUntilNow();
    this.#hasChanged = false;
    this.#nodes = await readDomainNodes(this.#store, this.#domid);
    return this.#nodes;
  }

  /** As they are now. */
  async now(): Promise<readonly SavedNode[]> {
    await this.#eventsUntilNow();
    return this.#hasChanged ? await readDomainNodes(this.#store, this.#domid) : this.#nodes;
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
