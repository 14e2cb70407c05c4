/**
 * The nodes of a restored domain in xenstore. They are there before its pages: those of one that still runs elsewhere, or is being copied, hardly
 * change.
 */

import type { KnownNodes } from '../backends/xenbus.ts';
import { changeDomainNodes, renumberNodes, type SavedNode, writeDomainNodes } from '../toolstack/saved/saved-store.ts';
import { textToBytes } from '../xenstore/wire.ts';
import { disksMustBeThere } from './domain-devices.ts';
import type { DomainXenstore } from './domain-xenstore.ts';
import type { RestorableDomain } from './forked-domain.ts';

export class RestoredNodes {
  readonly #xenstore: DomainXenstore;
  readonly #domid: number;
  readonly #name: string;
  /** What is there. */
  #written: readonly SavedNode[] | null = null;

  /** `name`: what the domain is called until it has come. */
  constructor(xenstore: DomainXenstore, domid: number, name: string) {
    this.#xenstore = xenstore;
    this.#domid = domid;
    this.#name = name;
  }

  /** Writes what is known of them before the rest is there. @throws DomainNameTaken, HostError */
  async writeEarly(saved: RestorableDomain): Promise<void> {
    const early = await saved.earlyNodes(this.#xenstore.client, this.#domid);
    await this.#make(early);
    // Nothing to do, but JavaScript has compiled it.
    await this.#make(early);
    // Better now than when it stands still.
    await disksMustBeThere(this.known(), this.#domid);
  }

  /** What has been written, by path. */
  known(): KnownNodes {
    const decoder = new TextDecoder();
    return new Map((this.#written ?? []).map(([path, value]) => [path, decoder.decode(textToBytes(value))]));
  }

  /** Makes them as they are described now. @throws DomainNameTaken */
  async write({ description: { nodes, domid } }: RestorableDomain): Promise<void> {
    await this.#make(renumberNodes(nodes, domid, this.#domid));
  }

  async #make(wanted: readonly SavedNode[]): Promise<void> {
    const { client } = this.#xenstore;
    if (this.#written === null) await writeDomainNodes(client, wanted, this.#name);
    else await changeDomainNodes(client, this.#written, wanted);
    this.#written = wanted;
  }
}
