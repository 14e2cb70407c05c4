/**
 * What another domain's process may do with this domain, on behalf of its guest: bind to ports that were made for that guest, map
 * and copy pages that were granted to it, give it pages where it accepts them. Each request is checked against this domain's own tables; nothing is believed but who asks,
 * which the connection says. When the connection ends, all that it holds is given back.
 */

import { EINVAL } from '../abi/errno.ts';
import * as gnttab from '../abi/grant-table.ts';
import { PAGE_SIZE } from '../machine/memory.ts';
import type { Dom0Channels } from './dom0-channels.ts';
import type { Domain } from './domain.ts';
import { COPY_WORDS, FOREIGN_BATCH, GRANT_WORDS } from './foreign-domains.ts';
import type { GrantMappings } from './grant-mappings.ts';
import type { PageArrivals } from './page-transfer.ts';
import { PeerChannels } from './peer-channels.ts';
import * as peer from './peer-protocol.ts';

export interface PeerServerOptions {
  readonly domain: Domain;
  readonly channels: Dom0Channels;
  readonly grants: GrantMappings;
  readonly arrivals: PageArrivals;
  /** Something was stored into a page by another domain, or may have been: there may be code. */
  readonly memoryStored: (offset: number, sizeBytes: number) => void;
  /** Who asks. */
  readonly peerDomid: number;
  readonly send: (message: Uint8Array) => void;
  /** Much that was sent has not been taken yet. */
  readonly isCongested: () => boolean;
}

interface Held {
  readonly page: number;
  mappings: number;
  writers: number;
}

export class PeerServer {
  readonly #options: PeerServerOptions;
  readonly #channels: PeerChannels;
  /** By reference. */
  readonly #held = new Map<number, Held>();

  constructor(options: PeerServerOptions) {
    this.#options = options;
    this.#channels = new PeerChannels(options.peerDomid, options.send, options.isCongested);
  }

  /** False: that is no message for a server, and the connection has to end. */
  handle({ kind, id, body }: peer.PeerMessage): boolean {
    const { send } = this.#options;
    const words = peer.wordsOf(body);
    switch (kind) {
      case peer.PEER_BIND: {
        if (words.length !== 2) return false;
        const bound = this.#channels.add(words[0], words[1], (ends) => this.#options.channels.accept(ends));
        send(peer.encodePeerMessage(peer.PEER_ANSWER, id, [bound ? 0 : EINVAL]));
        return true;
      }
      case peer.PEER_MAP:
      case peer.PEER_RELEASE: {
        if (words.length === 0 || words.length % GRANT_WORDS !== 0 || words.length > FOREIGN_BATCH * GRANT_WORDS)
          return false;
        const results: number[] = [];
        for (let at = 0; at < words.length; at += GRANT_WORDS) {
          const writable = words[at + 1] !== 0;
          if (kind === peer.PEER_MAP) results.push(this.#map(words[at], writable));
          else this.#release(words[at], writable);
        }
        send(peer.encodePeerMessage(peer.PEER_ANSWER, id, results));
        return true;
      }
      case peer.PEER_READ:
        return this.#read(id, words);
      case peer.PEER_WRITE:
        return this.#write(id, words, body);
      case peer.PEER_TRANSFER: {
        if (body.length !== 4 + PAGE_SIZE) return false;
        const status = this.#options.arrivals.accept(this.#options.peerDomid, words[0], body.subarray(4));
        send(peer.encodePeerMessage(peer.PEER_ANSWER, id, [status]));
        return true;
      }
      case peer.PEER_EVENT:
        if (words.length === 2) this.#channels.signalled(words[0], words[1]);
        return words.length === 2;
      case peer.PEER_CLOSED:
        if (words.length === 2) this.#channels.closed(words[0], words[1]);
        return words.length === 2;
      default:
        return false;
    }
  }

  /** The other domain has pages of this one mapped. */
  get isMapped(): boolean {
    return this.#held.size > 0;
  }

  /** The connection has ended. */
  close(): void {
    this.#channels.closeAll();
    for (const [gref, held] of this.#held) {
      while (held.writers > 0) this.#release(gref, true);
      while (held.mappings > 0) this.#release(gref, false);
    }
  }

  /** Frame, or a GNTST_*. */
  #map(gref: number, writable: boolean): number {
    const { grants, peerDomid } = this.#options;
    const page = grants.map(gref, writable, peerDomid);
    if (page < 0) return page;
    const held = this.#held.get(gref) ?? { page, mappings: 0, writers: 0 };
    held.mappings++;
    if (writable) held.writers++;
    this.#held.set(gref, held);
    return page / PAGE_SIZE;
  }

  /** What is not held is not released. */
  #release(gref: number, writable: boolean): void {
    const held = this.#held.get(gref);
    if (held === undefined || (writable ? held.writers : held.mappings - held.writers) === 0) return;
    held.mappings--;
    if (writable) {
      held.writers--;
      this.#options.memoryStored(held.page, PAGE_SIZE);
    }
    if (held.mappings === 0) this.#held.delete(gref);
    this.#options.grants.unmap(gref, writable);
  }

  #read(id: number, words: Uint32Array): boolean {
    const { domain, send } = this.#options;
    const count = words.length / COPY_WORDS;
    if (count === 0 || !Number.isInteger(count) || count > FOREIGN_BATCH) return false;
    const results: number[] = [];
    const pieces: Uint8Array[] = [];
    let size = 0;
    for (let i = 0; i < count; i++) {
      const [gref, offset, length] = words.subarray(i * COPY_WORDS);
      const status = this.#copy(gref, offset, length, false, (at) => {
        pieces.push(domain.machine.u8.slice(at, at + length));
        size += length;
      });
      results.push(status);
    }
    const bytes = new Uint8Array(size);
    let at = 0;
    for (const piece of pieces) {
      bytes.set(piece, at);
      at += piece.length;
    }
    send(peer.encodePeerMessage(peer.PEER_ANSWER, id, results, bytes));
    return true;
  }

  #write(id: number, words: Uint32Array, body: Uint8Array): boolean {
    const { domain, memoryStored, send } = this.#options;
    const count = words.length === 0 ? 0 : words[0];
    if (count === 0 || count > FOREIGN_BATCH || words.length < 1 + count * COPY_WORDS) return false;
    const results: number[] = [];
    let from = (1 + count * COPY_WORDS) * 4;
    for (let i = 0; i < count; i++) {
      const [gref, offset, length] = words.subarray(1 + i * COPY_WORDS);
      if (length > PAGE_SIZE || from + length > body.length) return false;
      const piece = body.subarray(from, from + length);
      from += length;
      const status = this.#copy(gref, offset, length, true, (at) => {
        domain.machine.u8.set(piece, at);
        memoryStored(at, length);
      });
      results.push(status);
    }
    send(peer.encodePeerMessage(peer.PEER_ANSWER, id, results));
    return true;
  }

  /** `copy` gets the offset in memory 0 while the grant is in use. GNTST_*. */
  #copy(gref: number, offset: number, length: number, writable: boolean, copy: (at: number) => void): number {
    if (offset > PAGE_SIZE || length > PAGE_SIZE || offset + length > PAGE_SIZE) return gnttab.GNTST_bad_copy_arg;
    const { grants, peerDomid } = this.#options;
    const page = grants.mapForCopy(gref, writable, peerDomid, offset, length);
    if (page < 0) return page;
    copy(page + offset);
    grants.unmap(gref, writable);
    return gnttab.GNTST_okay;
  }
}
