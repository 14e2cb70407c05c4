/** What commands about running domains share: the connection to xenstore that knows them, and what may go wrong. */

import { openXenstoreSession } from '../../host/xenstored.ts';
import { introduceControlDomain } from '../../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../../xenstore/client.ts';

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

export interface RunningDomain {
  readonly domid: number;
  readonly name: string;
}

/** By its name or its number; null if there is none. Domain 0 is none. */
export async function lookUpDomain(store: XenstoreClient, word: string): Promise<RunningDomain | null> {
  for (const entry of (await store.directory('/local/domain')) ?? []) {
    if (entry === '0') continue;
    const name = await store.read(`/local/domain/${entry}/name`);
    if (name !== null && (entry === word || name === word)) return { domid: Number(entry), name };
  }
  return null;
}

/** @throws DomusError */
export async function findDomain(store: XenstoreClient, word: string): Promise<RunningDomain> {
  const found = await lookUpDomain(store, word);
  if (found === null) throw new DomusError(`there is no domain "${word}"`);
  return found;
}

export async function namesIn(store: XenstoreClient): Promise<Set<string>> {
  const names = new Set<string>();
  for (const entry of (await store.directory('/local/domain')) ?? [])
    names.add((await store.read(`/local/domain/${entry}/name`)) ?? '');
  return names;
}
