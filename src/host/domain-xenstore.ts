/**
 * The xenstore that a domain process uses: that of the daemon, or one of its own.
 *
 * A private store is right where a domain is nobody else's business and ends with its process: tests, benches and whoever
 * calls `runDomain` as a library. `xl` always takes the daemon's, because other commands must see the domain.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { removeDomain } from '../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import type { DomidAlias } from '../xenstore/domid-alias.ts';
import { linkToStore, type StoreLink } from '../xenstore/link.ts';
import { LinkConnection } from '../xenstore/link-connection.ts';
import { openXenstoreSession } from './xenstored.ts';

export type XenstoreChoice = 'private' | 'daemon';

export interface DomainXenstore {
  /** Domain 0's: for toolstack and backends. */
  readonly client: XenstoreClient;
  /** The connection of a guest, for its ring. It must have been introduced. `alias`: it knows itself by another domid. */
  connect(domid: number, alias?: DomidAlias | null): Promise<LinkConnection>;
  /** The domid for a new domain. */
  allocateDomid(): Promise<number>;
  /** That very domid for a domain; false if another one has it. */
  claimDomid(domid: number): Promise<boolean>;
  /**
   * Takes away what was made for a domain that has ended. Never throws: if xenstored cannot do it now, a line in the log says
   * so, and the daemon does it when it finds the domain's process gone.
   */
  remove(domid: number): Promise<void>;
  close(): void;
}

const REMOVE_LIMIT_MS = 5000;

/** Throws XenstoredError if the daemon cannot be reached. */
export async function openDomainXenstore(choice: XenstoreChoice, log: (line: string) => void): Promise<DomainXenstore> {
  const store = choice === 'private' ? (await import('../xenstore/store.ts')).createStore() : null;
  const link = async (domid: number): Promise<StoreLink> =>
    store === null ? await openXenstoreSession(domid, log) : linkToStore(store, domid);
  const client = new XenstoreClient(await link(0));
  return {
    client,
    connect: async (domid, alias = null) => new LinkConnection(await link(domid), alias),
    allocateDomid: async () => Number(await client.control(['allocate-domid'])),
    claimDomid: async (domid) => (await client.control(['claim-domid', String(domid)])) === 'OK',
    remove: async (domid) => {
      const late = new AbortController();
      try {
        const limit = sleep(REMOVE_LIMIT_MS, undefined, { signal: late.signal });
        limit.catch(() => undefined);
        const removed = removeDomain(client, domid).then(() => true);
        if ((await Promise.race([removed, limit])) !== true) throw new Error('xenstored does not answer');
      } catch (error) {
        log(`xl: xenstore still has domain ${domid}: ${error instanceof Error ? error.message : String(error)}`);
      } finally {
        late.abort();
      }
    },
    close: () => client.close(),
  };
}
