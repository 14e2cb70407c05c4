/**
 * Copies of a running domain, each in a process of its own. The processes are started first and get ready, so that all that lies between
 * the moment of the copy and a copy's first instruction is what cannot be known before:
 *
 *   1. start     a process for each copy: engine, vCPUs, a domid
 *   2. fork      the domain stands still for a moment: its disks get a layer each, its state is written, its memory becomes a base
 *   3. go on     the domain's process tells the copies, which have asked it before (copy-source.ts): each makes overlays of its own over the
 *                same bases, takes over memory and state, and runs
 *
 * What fails before 2 leaves nothing behind. Whoever is killed later, the others live, and their disks are whole. Copies go on before the answer
 * to 2 is here, and whether there is one or not: from 2 on only a copy's own process knows what has become of it.
 */

import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { type ConfigAndText, movedDisk, withDevices } from '../toolstack/config/device-specs.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import { makeUpMac } from '../toolstack/config/network-interface.ts';
import { makeUpGeneration } from '../toolstack/saved/forked-nodes.ts';
import { completeConfig } from '../toolstack/saved/saved-config.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import type { FrozenDisk } from './disk-layers.ts';
import { DomainClientError, endFork, forkDomain, outlineOf, whyNoRecord } from './domain-client.ts';
import type { Fork } from './domain-copies.ts';
import { type DomainRecord, readRecord } from './domain-record.ts';
import type { ForkRequest, Outline } from './forked-domain.ts';
import { type EarlyProcess, StartError, type StartedDomain, startDomain } from './start-domain.ts';
import { disksFolder, overlayPath } from './state-dir.ts';

export interface ForkOptions {
  readonly root: string;
  readonly store: XenstoreClient;
  readonly domid: number;
  /** Of the copies; no domain has one of them. */
  readonly names: readonly string[];
  /** They do not run before somebody unpauses them. */
  readonly paused: boolean;
  readonly log: (line: string) => void;
  /** Processes for copies, for tests. */
  readonly startProcess?: () => EarlyProcess;
}

/** A copy that runs, or why there is none. */
export type ForkedCopy =
  | { readonly kind: 'runs'; readonly name: string; readonly domid: number; readonly folder: string }
  | { readonly kind: 'failed'; readonly name: string; readonly message: string };

export interface Forked {
  readonly copies: readonly ForkedCopy[];
  /** By which images the domain that was copied goes on. */
  readonly disks: readonly FrozenDisk[];
  /** Why that is not known, though there are copies, or what else went wrong with the domain; one line. */
  readonly trouble: string | null;
}

/** In the folder of a copy. */
const CONFIG_FILE = 'domain.cfg';

interface Copy {
  readonly name: string;
  readonly folder: string;
  readonly config: ConfigAndText;
  readonly identity: ForkRequest['identity'];
}

/** Disks and config of a copy are in a folder of its own. */
export function copyFolder(root: string, name: string): string {
  return disksFolder(root, name);
}

/** @throws DomainClientError when the domain cannot be copied; StartError when no process can be had for a copy */
export async function forkCopies(options: ForkOptions): Promise<Forked> {
  const { root, store, domid, names } = options;
  const record = readRecord(root, domid);
  const outline = await outlineOf(domid, root);
  if (record === null || outline === null) throw new DomainClientError(whyNoRecord(domid, root));
  const vifs = (await store.directory(`/local/domain/${domid}/device/vif`)) ?? [];
  const copies = names.map((name) => planCopy(root, record, name, vifs.map(Number)));
  for (const { folder } of copies)
    if (existsSync(folder))
      throw new DomainClientError(`${folder} is there already, of an earlier domain of that name`);

  const ticket = crypto.randomUUID();
  const gate = new Gate(copies.length);
  const forking = gate.opened.then(async () => {
    const fork = await forkDomain(domid, ticket, root);
    if (fork === null) throw new DomainClientError(`Domain ${domid}: its process is gone`);
    return fork;
  });
  // The copies come first.
  forking.catch(() => undefined);
  const results = await Promise.all(copies.map((copy) => startCopy(copy, { options, record, outline, ticket, gate })));
  for (const { kind, name } of results)
    if (kind === 'failed') rmSync(copyFolder(root, name), { recursive: true, force: true });
  let fork: Fork | null = null;
  try {
    fork = await forking;
    await endFork(domid, fork.key, root);
  } catch (error) {
    // What the first of them stumbled over, if nothing was copied.
    const isCopied = fork !== null || results.some(({ kind }) => kind === 'runs');
    if (!isCopied || !(error instanceof DomainClientError)) throw error;
    return { copies: results, disks: fork?.disks ?? [], trouble: error.message };
  }
  return { copies: results, disks: fork.disks, trouble: null };
}

/** Lets nobody pass before all are there. */
class Gate {
  readonly #opened = Promise.withResolvers<void>();
  #missing: number;

  constructor(count: number) {
    this.#missing = count;
    this.opened.catch(() => undefined);
  }

  /** Rejects if one will never come. */
  get opened(): Promise<void> {
    return this.#opened.promise;
  }

  pass(): Promise<void> {
    if (--this.#missing === 0) this.#opened.resolve();
    return this.opened;
  }

  /** One will never come; nothing if all were there. */
  refuse(error: Error): void {
    this.#opened.reject(error);
  }
}

interface Start {
  readonly options: ForkOptions;
  readonly record: DomainRecord;
  readonly outline: Outline;
  readonly ticket: string;
  readonly gate: Gate;
}

function planCopy(root: string, record: DomainRecord, name: string, vifs: readonly number[]): Copy {
  const folder = copyFolder(root, name);
  const uuid = crypto.getRandomValues(new Uint8Array(16));
  uuid[6] = (uuid[6] & 0x0f) | 0x40;
  uuid[8] = (uuid[8] & 0x3f) | 0x80;
  const macs: Record<number, Uint8Array> = {};
  for (const devid of [...vifs, ...record.config.vifs.map((vif) => vif.devid)]) macs[devid] ??= makeUpMac();
  const own: DomainConfig = {
    ...record.config,
    name,
    uuid,
    // The display of the other one is taken.
    vfbs: record.config.vfbs.map((vfb) => ({ ...vfb, findUnused: true })),
  };
  const text = completeConfig(record.configText, own, name, (file) => resolve(record.cwd, file));
  const config = withDevices(
    { config: own, text },
    {
      disks: own.disks.map((disk) => (disk.writable ? movedDisk(disk, overlayPath(folder, disk.vdev)) : disk)),
      // Ports of the host lead to the other one, and an interface of the host has one name.
      vifs: own.vifs.map((vif) => ({ ...vif, mac: macs[vif.devid], forwards: [], ifname: null })),
    },
  );
  return { name, folder, config, identity: { name, uuid, macs, generation: makeUpGeneration() } };
}

async function startCopy(copy: Copy, { options, record, outline, ticket, gate }: Start): Promise<ForkedCopy> {
  const { root, domid, paused, log, startProcess } = options;
  const { name, folder, config } = copy;
  let started: StartedDomain;
  try {
    started = await startDomain(config.config, {
      ...{ quiet: record.quiet, preserve: record.preserve, paused, configText: config.text, root, log },
      ...{ cwd: existsSync(record.cwd) ? record.cwd : root, environment: record.environment, note: () => {} },
      ...(startProcess === undefined ? {} : { process: startProcess() }),
      fork: { request: { outline, domid, ticket, folder, identity: copy.identity }, ready: () => passWith(copy, gate) },
    });
  } catch (error) {
    if (!(error instanceof StartError)) throw error;
    gate.refuse(error);
    await error.gone;
    return { kind: 'failed', name, message: error.message };
  }
  started.leave();
  return { kind: 'runs', name, domid: started.domid, folder };
}

/** A copy's process is ready. */
async function passWith({ folder, config }: Copy, gate: Gate): Promise<void> {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  writeFileSync(join(folder, CONFIG_FILE), config.text, { mode: 0o600 });
  await gate.pass();
}
