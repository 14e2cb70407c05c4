/** `domus snapshot`, `snapshots` and `revert`. */

import {
  allSnapshots,
  removeSnapshot,
  revertTo,
  type StoredSnapshot,
  snapshotsOf,
  takeSnapshot,
} from '../../host/snapshots.ts';
import { stateRoot } from '../../host/state-dir.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { allDomains } from '../xl/domains.ts';
import { DomusError, findDomain, lookUpDomain, type RunningDomain, withStore } from './running.ts';

const say = (line: string): void => void process.stderr.write(`domus: ${line}\n`);

/** The exit code; what went wrong has been printed. */
export async function snapshot(domain: string, name: string | null): Promise<number> {
  return await withStore(async (store) => {
    const { domid, name: called } = await findDomain(store, domain);
    const taken = await takeSnapshot(stateRoot(), domid, called, name);
    process.stdout.write(`snapshot ${taken.name} of ${called} is taken\n`);
    if (taken.remark !== null) say(`${called}: ${taken.remark}`);
    for (const { vdev, base, top } of taken.disks)
      if (base.format !== 'qcow2')
        say(`${vdev} of ${called} goes on in ${top}; ${base.path} is what it is based on, and must not change`);
    return 0;
  });
}

export async function listSnapshots(domain: string): Promise<number> {
  return await withStore(async (store) => {
    const { all } = await find(store, domain);
    printTable([HEADINGS, ...all.map(cells)]);
    return 0;
  });
}

/** Those of all domains, by the names that they have now, or had. */
export async function listAllSnapshots(): Promise<number> {
  return await withStore(async (store) => {
    const names = new Map<string, string>();
    for (const { domid, name } of await allDomains(store)) {
      const uuid = await uuidOf(store, domid);
      if (uuid !== null) names.set(uuid, name);
    }
    const rows = allSnapshots(stateRoot())
      .map((one) => [names.get(one.uuid) ?? one.domain, ...cells(one)])
      // Oldest first, as they come, within a domain.
      .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    printTable([['Domain', ...HEADINGS], ...rows]);
    return 0;
  });
}

const HEADINGS = ['Name', 'Taken', 'Memory', 'Disks'];

function cells({ name, taken, memoryBytes, disks }: StoredSnapshot): string[] {
  const at = `${taken.slice(0, 19).replace('T', ' ')} UTC`;
  const memory = `${Math.ceil(memoryBytes / 2 ** 20)} MiB`;
  return [name, at, memory, disks.map(({ vdev }) => vdev).join(' ') || '-'];
}

function printTable(rows: readonly (readonly string[])[]): void {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  for (const row of rows) {
    const line = row.map((text, column) => text.padEnd(widths[column])).join('  ');
    process.stdout.write(`${line.trimEnd()}\n`);
  }
}

async function uuidOf(store: XenstoreClient, domid: number): Promise<string | null> {
  return (await store.read(`/local/domain/${domid}/vm`))?.replace(/^\/vm\//, '') ?? null;
}

export async function removeOne(domain: string, name: string): Promise<number> {
  return await withStore(async (store) => {
    const { snapshot: found } = await findOne(store, domain, name);
    removeSnapshot(found);
    process.stdout.write(`snapshot ${name} of ${domain} is removed\n`);
    for (const { vdev, base } of found.disks) say(`${base.path} stays: what ${vdev} has got since lies over it`);
    return 0;
  });
}

export async function revert(domain: string, name: string, paused: boolean): Promise<number> {
  return await withStore(async (store) => {
    const { running, snapshot: found } = await findOne(store, domain, name);
    const domid = await revertTo(stateRoot(), store, found, running?.domid ?? null, { paused, log: say });
    process.stdout.write(`${found.domain} is domain ${domid}, as it was when snapshot ${name} was taken\n`);
    return 0;
  });
}

interface Found {
  readonly running: RunningDomain | null;
  readonly all: readonly StoredSnapshot[];
}

/** A domain that runs, or has snapshots. @throws DomusError */
async function find(store: XenstoreClient, domain: string): Promise<Found> {
  const running = await lookUpDomain(store, domain);
  const all = snapshotsOf(stateRoot(), domain, running === null ? null : await uuidOf(store, running.domid));
  if (running === null && all.length === 0)
    throw new DomusError(`there is no domain "${domain}", and no snapshot of one`);
  if (new Set(all.map(({ uuid }) => uuid)).size > 1)
    throw new DomusError(`several domains that were called "${domain}" have snapshots; start the one that you mean`);
  return { running, all };
}

async function findOne(
  store: XenstoreClient,
  domain: string,
  name: string,
): Promise<{ readonly running: RunningDomain | null; readonly snapshot: StoredSnapshot }> {
  const { running, all } = await find(store, domain);
  const found = all.find((one) => one.name === name);
  if (found !== undefined) return { running, snapshot: found };
  const there = all.map((one) => one.name).join(', ') || 'none';
  throw new DomusError(`${domain} has no snapshot "${name}"; there are: ${there}`);
}
