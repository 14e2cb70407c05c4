/** `domus snapshot`, `snapshots` and `revert`. */

import { removeSnapshot, revertTo, type StoredSnapshot, snapshotsOf, takeSnapshot } from '../../host/snapshots.ts';
import { stateRoot } from '../../host/state-dir.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { DomusError, findDomain, lookUpDomain, type RunningDomain, withStore } from './running.ts';

const say = (line: string): void => void process.stderr.write(`domus: ${line}\n`);

/** The exit code; what went wrong has been printed. */
export async function snapshot(domain: string, name: string | null): Promise<number> {
  return await withStore(async (store) => {
    const { domid, name: called } = await findDomain(store, domain);
    const taken = await takeSnapshot(stateRoot(), domid, called, name);
    process.stdout.write(`snapshot ${taken.name} of ${called} is taken\n`);
    for (const { vdev, base, top } of taken.disks)
      if (base.format !== 'qcow2')
        say(`${vdev} of ${called} goes on in ${top}; ${base.path} is what it is based on, and must not change`);
    return 0;
  });
}

export async function listSnapshots(domain: string): Promise<number> {
  return await withStore(async (store) => {
    const { all } = await find(store, domain);
    const rows = all.map(({ name, taken, memoryBytes, disks }) => [
      name,
      `${taken.slice(0, 19).replace('T', ' ')} UTC`,
      `${Math.ceil(memoryBytes / 2 ** 20)} MiB`,
      disks.map(({ vdev }) => vdev).join(' ') || '-',
    ]);
    const table = [['Name', 'Taken', 'Memory', 'Disks'], ...rows];
    const widths = [0, 1, 2].map((column) => Math.max(...table.map((row) => row[column].length)));
    for (const row of table)
      process.stdout.write(
        `${row
          .map((text, column) => text.padEnd(widths[column] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
      );
    return 0;
  });
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
  const vm = running === null ? null : await store.read(`/local/domain/${running.domid}/vm`);
  const all = snapshotsOf(stateRoot(), domain, vm === null ? null : vm.replace(/^\/vm\//, ''));
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
