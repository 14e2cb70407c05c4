/**
 * Snapshots of domains: a guest and its disks as they were at one moment, in `snapshots/UUID/NAME/` of the state folder. `memory` is what
 * `xl save` writes, and `snapshot.json`, which is written last, says which disks go with it: when a snapshot is taken, each disk gets a
 * layer (disk-layers.ts), and what it has until then is the base. To revert is to put an empty overlay over the base in the place of the
 * disk's image, and to restore the domain from the file. Either can be done again after it was cut short.
 */

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { open, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { DiskImageError } from '../storage/block-file.ts';
import { openDiskImage } from '../storage/disk-image.ts';
import { hostFiles } from '../storage/host/node-file.ts';
import { resetToBase } from '../storage/host/overlay.ts';
import { type DomainConfig, formatUuid, readDomainConfig } from '../toolstack/config/domain-config.ts';
import { ConfigError } from '../toolstack/config/xl-cfg.ts';
import { formatGeneration, GENERATION_NODE, makeUpGeneration } from '../toolstack/saved/forked-nodes.ts';
import { PART_END, SaveFileError, SaveReader } from '../toolstack/saved/save-file.ts';
import { decodeDescription } from '../toolstack/saved/saved-description.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import type { ControlSaved } from './control-protocol.ts';
import type { FrozenDisk } from './disk-layers.ts';
import { DomainClientError, destroyDomain, snapshotDomain, whyNoRecord } from './domain-client.ts';
import { type DomainRecord, readRecord } from './domain-record.ts';
import { NODE_CODEC, openSource } from './save-stream.ts';
import { startDomain } from './start-domain.ts';
import { snapshotsFolder } from './state-dir.ts';

export interface Snapshot {
  /** Of the snapshot, and of the domain when it was taken. */
  readonly name: string;
  readonly domain: string;
  readonly uuid: string;
  /** ISO 8601. */
  readonly taken: string;
  readonly disks: readonly FrozenDisk[];
  /** How the domain is started. */
  readonly start: Pick<DomainRecord, 'quiet' | 'preserve' | 'cwd' | 'environment'>;
}

/** A snapshot that is there: with its folder, and bytes of memory in it. */
export interface StoredSnapshot extends Snapshot {
  readonly folder: string;
  readonly memoryBytes: number;
}

/** There is no such snapshot, or it cannot be taken or used. One line. */
export class SnapshotError extends Error {
  override readonly name = 'SnapshotError';
}

const VERSION = 1;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.+:-]{0,63}$/;

const memoryPath = (folder: string): string => join(folder, 'memory');

/** All that there are, of all domains, oldest first. */
export function allSnapshots(root: string): StoredSnapshot[] {
  const found: StoredSnapshot[] = [];
  for (const uuid of foldersIn(snapshotsFolder(root)))
    for (const name of foldersIn(join(snapshotsFolder(root), uuid))) {
      const snapshot = readSnapshot(join(snapshotsFolder(root), uuid, name));
      if (snapshot !== null) found.push(snapshot);
    }
  return found.sort((a, b) => (a.taken < b.taken ? -1 : 1));
}

function foldersIn(path: string): string[] {
  try {
    return readdirSync(path).sort();
  } catch {
    return [];
  }
}

/** Null for one that is not whole: taking it was cut short. */
function readSnapshot(folder: string): StoredSnapshot | null {
  try {
    const value = JSON.parse(readFileSync(join(folder, 'snapshot.json'), 'utf8')) as Snapshot & { version: number };
    // Written by us, in a folder that is the user's only.
    return value.version === VERSION ? { ...value, folder, memoryBytes: statSync(memoryPath(folder)).size } : null;
  } catch {
    return null;
  }
}

/** Those of a domain: of one that runs, by its UUID; of one that does not, by the name that it had. */
export function snapshotsOf(root: string, word: string, uuid: string | null): StoredSnapshot[] {
  return allSnapshots(root).filter((snapshot) => (uuid === null ? snapshot.domain === word : snapshot.uuid === uuid));
}

/**
 * Takes a snapshot of a domain, which goes on. `name`: null for the first number that is free.
 * @throws SnapshotError, DomainClientError
 */
export async function takeSnapshot(
  root: string,
  domid: number,
  domain: string,
  name: string | null,
): Promise<Snapshot & ControlSaved> {
  if (name !== null && !NAME.test(name))
    throw new SnapshotError(
      `expected a name of letters, digits and "_.+:-" for the snapshot, found ${JSON.stringify(name)}`,
    );
  const record = readRecord(root, domid);
  if (record === null) throw new DomainClientError(whyNoRecord(domid, root));
  const uuid = formatUuid(record.config.uuid);
  const all = join(snapshotsFolder(root), uuid);
  const chosen = name ?? freeNumber(all);
  const folder = join(all, chosen);
  if (readSnapshot(folder) !== null) throw new SnapshotError(`${domain} has a snapshot ${chosen} already`);
  // One that was cut short.
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  try {
    const written = await snapshotDomain(domid, memoryPath(folder), root);
    if (written === null) throw new DomainClientError(`Domain ${domid}: its process is gone`);
    const { quiet, preserve, cwd, environment } = record;
    const start = { quiet, preserve, cwd, environment };
    const snapshot = { name: chosen, domain, uuid, taken: new Date().toISOString(), disks: written.disks, start };
    await writeDurably(join(folder, 'snapshot.json'), JSON.stringify({ version: VERSION, ...snapshot }));
    return { ...snapshot, remark: written.remark };
  } catch (error) {
    rmSync(folder, { recursive: true, force: true });
    throw error;
  }
}

function freeNumber(folder: string): string {
  for (let n = 1; ; n++) if (readSnapshot(join(folder, String(n))) === null) return String(n);
}

async function writeDurably(path: string, text: string): Promise<void> {
  const temporary = `${path}.${process.pid}`;
  const file = await open(temporary, 'w', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
}

/**
 * A domain goes on as it was when the snapshot was taken, with its disks as they were; what has happened since is lost. `domid`: the
 * domain, if it runs, which is destroyed. Nothing is changed before the snapshot is known to be sound. The new domid.
 * @throws SnapshotError, DomainClientError, StartError
 */
export async function revertTo(
  root: string,
  store: XenstoreClient,
  snapshot: StoredSnapshot,
  domid: number | null,
  options: { readonly paused: boolean; readonly log: (line: string) => void },
): Promise<number> {
  const { config, text } = await checkSnapshot(snapshot);
  if (domid !== null) await destroyDomain(domid, root);
  for (const { top, base, vdev } of snapshot.disks) {
    try {
      await resetToBase(top, base);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      throw new SnapshotError(`disk ${vdev}: ${error.message}; revert again when that is solved`);
    }
  }
  const { quiet, preserve, cwd, environment } = snapshot.start;
  const started = await startDomain(config, {
    ...{ quiet, preserve, configText: text, restoreFrom: memoryPath(snapshot.folder), root, environment },
    ...{ paused: options.paused, log: options.log, note: () => {}, cwd: existsSync(cwd) ? cwd : root },
  });
  started.leave();
  await tellGeneration(store, started.domid);
  return started.domid;
}

/** So a guest can tell that time has gone back. */
async function tellGeneration(store: XenstoreClient, domid: number): Promise<void> {
  const guestReads = ['n0', `r${domid}`];
  const node = `/local/domain/${domid}/${GENERATION_NODE}`;
  await store.transaction(async (nodes) => {
    await nodes.write(node, formatGeneration(makeUpGeneration()));
    await nodes.setPermissions(node, guestReads);
    await nodes.setPermissions(node.slice(0, node.lastIndexOf('/')), guestReads);
  });
}

/** Reads all that a revert needs, so that a domain is not ended for what cannot be. @throws SnapshotError */
async function checkSnapshot(
  snapshot: StoredSnapshot,
): Promise<{ readonly config: DomainConfig; readonly text: string }> {
  const fail = (message: string): never => {
    throw new SnapshotError(`snapshot ${snapshot.name} of ${snapshot.domain}: ${message}`);
  };
  for (const { vdev, base } of snapshot.disks) {
    try {
      const image = await openDiskImage(hostFiles, base.path, { format: base.format, readOnly: true });
      const { sizeBytes } = image;
      await image.close();
      if (sizeBytes !== base.sizeBytes)
        fail(`disk ${vdev}: ${base.path} has ${sizeBytes} bytes, not ${base.sizeBytes}`);
    } catch (error) {
      if (!(error instanceof DiskImageError)) throw error;
      fail(`disk ${vdev}: ${error.message}`);
    }
  }
  const { source, close } = openSource(memoryPath(snapshot.folder));
  try {
    const reader = new SaveReader(source, NODE_CODEC);
    await reader.start();
    const { bytes } = await reader.part();
    const { config: text } = decodeDescription(bytes);
    while ((await reader.part()).kind !== PART_END);
    return { config: readDomainConfig('<snapshot>', text, { warn: () => {} }), text };
  } catch (error) {
    const isExpected =
      error instanceof SaveFileError || error instanceof ConfigError || (error instanceof Error && 'syscall' in error);
    if (!isExpected) throw error;
    return fail((error as Error).message);
  } finally {
    close();
  }
}

/** The memory is gone then; the base of each disk stays, since what was written later lies over it. */
export function removeSnapshot({ folder }: StoredSnapshot): void {
  // First what makes it one.
  rmSync(join(folder, 'snapshot.json'), { force: true });
  rmSync(folder, { recursive: true, force: true });
}
