/**
 * `domus domains start` and `stop`: what xendomains does when a host with Xen starts and ends. `start` creates the guests whose configs are in
 * the folder `auto` of the state folder, in the order of their names, but for those that run. `stop` asks all guests to shut down, waits for them all
 * together, and takes away those that have not.
 *
 * Deviation: xendomains saves guests by default; here they shut down.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { destroyDomain, domidsIn, waitForShutdown } from '../../host/domain-client.ts';
import { stateRoot } from '../../host/state-dir.ts';
import { openXenstoreSession } from '../../host/xenstored.ts';
import { readStated } from '../../toolstack/config/domain-config.ts';
import { requestShutdown } from '../../toolstack/domain-control.ts';
import { nameMustBeFree, removeDomain } from '../../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../../xenstore/client.ts';

/** As XENDOMAINS_STOP_MAXWAIT has it. */
export const STOP_LIMIT_S = 300;

export type Say = (line: string) => void;
/** `xl create -q FILE`; its exit code. */
export type Create = (file: string) => Promise<number>;

async function withStore<T>(act: (store: XenstoreClient) => Promise<T>): Promise<T> {
  const store = new XenstoreClient(await openXenstoreSession(0, () => {}));
  try {
    return await act(store);
  } finally {
    store.close();
  }
}

/** Exit code: 1 if one could not be started. The others are started all the same. */
export async function startDomains(create: Create, say: Say): Promise<number> {
  const folder = join(stateRoot(), 'auto');
  // As xendomains: files that editors and packages leave behind are none.
  const files = existsSync(folder) ? readdirSync(folder).filter((name) => /^[^.#][^~]*$/.test(name)) : [];
  if (files.length === 0) say(`domus: no guest to start: there is no config in ${folder}`);
  let failed = 0;
  for (const name of files.sort()) {
    const file = join(folder, name);
    if (await isRunning(file)) say(`domus: ${name}: runs already`);
    else {
      const code = await create(file);
      say(`domus: ${name}: ${code === 0 ? 'started' : `not started (exit code ${code})`}`);
      if (code !== 0) failed = 1;
    }
  }
  return failed;
}

/** Is there a domain of the name that the config says? What is wrong with a config, `xl create` says. */
async function isRunning(file: string): Promise<boolean> {
  let name: string;
  try {
    name = readStated(file, readFileSync(file, 'utf8'), { warn: () => {} }).name;
  } catch {
    return false;
  }
  return await withStore(async (store) => {
    try {
      await nameMustBeFree(store, name);
      return false;
    } catch (error) {
      if (error instanceof Error && error.name === 'DomainNameTaken') return true;
      throw error;
    }
  });
}

/** Shuts all guests down; exit code 0. */
export async function stopDomains(limitS: number, say: Say): Promise<number> {
  const root = stateRoot();
  if (domidsIn(root).length === 0) {
    say('domus: no guest runs');
    return 0;
  }
  return await withStore(async (store) => {
    const late = new AbortController();
    const limit = sleep(limitS * 1000, 'late' as const, { signal: late.signal }).catch(() => 'late' as const);
    await Promise.all(domidsIn(root).map((domid) => stopDomain(store, root, domid, limit, say)));
    late.abort();
    return 0;
  });
}

async function stopDomain(
  store: XenstoreClient,
  root: string,
  domid: number,
  limit: Promise<'late'>,
  say: Say,
): Promise<void> {
  const name = (await store.read(`/local/domain/${domid}/name`)) ?? String(domid);
  const ended = waitForShutdown(domid, root);
  try {
    await requestShutdown(store, domid, 'poweroff');
  } catch (error) {
    if (!(error instanceof Error && error.name === 'DomainControlError')) throw error;
    // It has gone meanwhile.
    return;
  }
  const how = await Promise.race([ended, limit]);
  if (how !== 'late') say(`domus: ${name}: has shut down`);
  else {
    say(`domus: ${name}: does not shut down, and is destroyed`);
    await destroyDomain(domid, root);
    await removeDomain(store, domid);
  }
}
