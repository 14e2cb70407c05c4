/** What commands need of the domains that run: names, and the connection to xenstore that knows them. */

import type { ControlState } from '../../host/control-protocol.ts';
import { DomainClientError, domainStateOf } from '../../host/domain-client.ts';
import { openXenstoreSession, XenstoredError } from '../../host/xenstored.ts';
import { DevicePlugError } from '../../toolstack/device-plug.ts';
import { DomainControlError } from '../../toolstack/domain-control.ts';
import { introduceControlDomain } from '../../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../../xenstore/client.ts';
import type { Context } from './command.ts';

/** A command cannot be done: what to print, and the exit code. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly exitCode: number;

  constructor(message: string, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** Does something with xenstore. What goes wrong with it, or with a domain, becomes a line and an exit code. */
export async function withStore(context: Context, act: (store: XenstoreClient) => Promise<number>): Promise<number> {
  let store: XenstoreClient | null = null;
  try {
    // A daemon that dies meanwhile is a delay, not an error.
    store = new XenstoreClient(await openXenstoreSession(0, () => {}));
    await introduceControlDomain(store);
    return await act(store);
  } catch (error) {
    if (error instanceof CommandError) {
      context.err(error.message);
      return error.exitCode;
    }
    const isExpected =
      error instanceof XenstoredError ||
      error instanceof DomainClientError ||
      error instanceof DomainControlError ||
      error instanceof DevicePlugError;
    if (!isExpected) throw error;
    context.err(`libxl: error: ${error.message}`);
    return 1;
  } finally {
    store?.close();
  }
}

export interface Found {
  readonly domid: number;
  readonly name: string;
}

/** Domain 0 and all others, by domid. */
export async function allDomains(store: XenstoreClient): Promise<Found[]> {
  const domids = ((await store.directory('/local/domain')) ?? []).map(Number).sort((a, b) => a - b);
  const names = await Promise.all(domids.map((domid) => (Number.isSafeInteger(domid) ? nameOf(store, domid) : null)));
  return domids.flatMap((domid, i) => {
    const name = names[i];
    return name === null ? [] : [{ domid, name }];
  });
}

export async function nameOf(store: XenstoreClient, domid: number): Promise<string | null> {
  return await store.read(`/local/domain/${domid}/name`);
}

/** The domid that a word means: a number as it is, a name as it is known. Throws CommandError. */
export async function domidOf(store: XenstoreClient, word: string): Promise<number> {
  if (/^\d{1,5}$/.test(word)) return Number(word);
  const found = (await allDomains(store)).find(({ name }) => name === word);
  if (found === undefined) throw new CommandError(`${word} is an invalid domain identifier (rc=-6)`);
  return found.domid;
}

/** The domain that a word means, which there is. Throws CommandError. */
export async function findDomain(store: XenstoreClient, word: string): Promise<Found> {
  const domid = await domidOf(store, word);
  const name = await nameOf(store, domid);
  if (name === null) throw new CommandError(`libxl: error: Domain ${domid}:Non-existant domain`);
  return { domid, name };
}

/** How a domain is; null if its process is gone, or does not answer. */
export async function tryState(domid: number): Promise<ControlState | null> {
  try {
    return await domainStateOf(domid);
  } catch (error) {
    if (error instanceof DomainClientError) return null;
    throw error;
  }
}
