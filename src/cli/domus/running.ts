/** What commands about running domains share: the connection to xenstore that knows them, and what may go wrong. */

import { openXenstoreSession } from '../../host/xenstored.ts';
import { introduceControlDomain } from '../../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../../xenstore/client.ts';
import { allDomains, type Found as RunningDomain } from '../xl/domains.ts';

/** The user's to solve; one line. */
export class DomusError extends Error {
  override readonly name = 'DomusError';
}

/** Errors with one line each, of which the stack tells the user nothing. */
const EXPECTED = [
  'DomusError',
  'DomainClientError',
  'StartError',
  'SnapshotError',
  'XenstoredError',
  'DomainNameTaken',
];

/** Does something with xenstore; the exit code. What went wrong has been printed. */
export async function withStore(act: (store: XenstoreClient) => Promise<number>): Promise<number> {
  let store: XenstoreClient | null = null;
  try {
    store = new XenstoreClient(await openXenstoreSession(0, () => {}));
    await introduceControlDomain(store);
    return await act(store);
  } catch (error) {
    const isExpected =
      error instanceof Error && EXPECTED.includes(error.name) && !('isExpected' in error && error.isExpected === false);
    if (!isExpected) throw error;
    process.stderr.write(`domus: ${error.message}\n`);
    return 1;
  } finally {
    store?.close();
  }
}

export type { RunningDomain };

/** By its name or its number; null if there is none. Domain 0 is none. */
export async function lookUpDomain(store: XenstoreClient, word: string): Promise<RunningDomain | null> {
  const guests = (await allDomains(store)).filter(({ domid }) => domid !== 0);
  return guests.find(({ domid, name }) => String(domid) === word || name === word) ?? null;
}

/** @throws DomusError */
export async function findDomain(store: XenstoreClient, word: string): Promise<RunningDomain> {
  const found = await lookUpDomain(store, word);
  if (found === null) throw new DomusError(`there is no domain "${word}"`);
  return found;
}

export async function namesIn(store: XenstoreClient): Promise<Set<string>> {
  return new Set((await allDomains(store)).map(({ name }) => name));
}
