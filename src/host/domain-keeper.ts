/**
 * domusd's care for domains whose process is gone without having ended its domain: killed, or lost with the host. Such a domain has crashed, so what
 * its config says of `on_crash` is done, with the devices that it had by then; scripts of devices are run for the last time; then nothing of it
 * is left, in xenstore or in files.
 *
 * A domain's process is told to be gone by its pid (`domains/DOMID/pid`), which is written before anything else is made for the domain. Each step can
 * be repeated: a daemon that was killed in the middle of one leaves the rest to the next.
 *
 * Deviations: nothing of the guest's memory is left, so `preserve` keeps its nodes and its name only, and what should dump core does not.
 */
import { appendFileSync, existsSync, rmSync, writeFileSync } from 'node:fs';
import { SHUTDOWN_crash } from '../abi/xen.ts';
import { readPlugged } from '../toolstack/plugged-devices.ts';
import { removeDomain } from '../toolstack/xenstore-nodes.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { domidsIn, processIdOf } from './domain-client.ts';
import { type DomainRecord, hostBootId, nextConfigOf, readRecord, writeRecord } from './domain-record.ts';
import { processLives } from './process-id.ts';
import { startDomain } from './start-domain.ts';
import { domainFolder, domainLogPath, endedPath, xenstoredPath } from './state-dir.ts';

export interface KeeperOptions {
  readonly root: string;
  readonly client: XenstoreClient;
  /** Is there a session with xenstore that speaks for the domain? Then its process lives. */
  readonly hasSession: (domid: number) => boolean;
  /** Domains that xenstore knows. */
  readonly domids: () => readonly number[];
  readonly log: (line: string) => void;
}

/** How soon those are looked at again that live, or may live, without a session. */
const LOOK_AGAIN_MIN_MS = 50;
const LOOK_AGAIN_MAX_MS = 2000;
/** How long a domain that was there before a restart of the daemon, and whose process is unknown, may take to come back. */
const RETURN_GRACE_MS = 60_000;

export class DomainKeeper {
  readonly #options: KeeperOptions;
  readonly #startMs = performance.now();
  /** What is introduced later without a process of ours is somebody else's. */
  readonly #fromBefore: ReadonlySet<number>;
  /** Domains that are being taken care of. */
  readonly #busy = new Map<number, Promise<void>>();
  #timer: NodeJS.Timeout | null = null;
  #delayMs = LOOK_AGAIN_MIN_MS;
  #closed = false;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#fromBefore = new Set([...options.domids(), ...domidsIn(options.root)]);
  }

  /** The last session of a domain has ended. Those of domain 0 may belong to a process that was making a domain. */
  sessionEnded(domid: number): void {
    const { root, domids } = this.#options;
    if (processIdOf(root, domid) === null && domids().includes(domid)) this.#take(domid);
    // A process that was killed closes its sockets a moment before it is gone.
    this.#delayMs = LOOK_AGAIN_MIN_MS;
    this.look();
  }

  /** Looks at all domains that there are any traces of. */
  look(): void {
    if (this.#closed) return;
    const { root, domids, hasSession } = this.#options;
    let lookAgain = false;
    for (const domid of new Set([...domids(), ...domidsIn(root)])) {
      if (domid === 0 || hasSession(domid) || this.#busy.has(domid) || existsSync(endedPath(root, domid))) continue;
      const id = processIdOf(root, domid);
      if (id === null && !this.#fromBefore.has(domid)) continue;
      const mayReturn = id === null && performance.now() - this.#startMs < RETURN_GRACE_MS;
      if (mayReturn || (id !== null && processLives(id))) lookAgain = true;
      else this.#take(domid);
    }
    if (!lookAgain) return;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.look(), this.#delayMs);
    this.#timer.unref();
    this.#delayMs = Math.min(2 * this.#delayMs, LOOK_AGAIN_MAX_MS);
  }

  /** Begins nothing more; resolves when what was begun is done. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    await Promise.all(this.#busy.values());
  }

  #take(domid: number): void {
    if (this.#closed || this.#busy.has(domid)) return;
    const { log } = this.#options;
    const done = this.#finish(domid)
      .catch((error: unknown) => log(`domusd: domain ${domid}: ${error instanceof Error ? error.message : error}`))
      .finally(() => this.#busy.delete(domid));
    this.#busy.set(domid, done);
  }

  async #finish(domid: number): Promise<void> {
    const { root, client, log } = this.#options;
    const record = readRecord(root, domid);
    // What a reboot of the host has ended did not crash. Without a record it was never there, or has ended by itself.
    const hasCrashed = record !== null && record.bootId === hostBootId();
    const action = hasCrashed ? (record.preserve ? 'preserve' : record.config.onCrash) : 'destroy';
    log(`domusd: the process of domain ${domid} is gone${record === null ? '' : `, action ${action}`}`);
    if (hasCrashed)
      this.#note(record, `Domain ${domid} has shut down, reason code ${SHUTDOWN_crash} 0x${SHUTDOWN_crash}`);
    if (hasCrashed) this.#note(record, `Action for shutdown reason code ${SHUTDOWN_crash} is ${action}`);
    if (record === null || record.bootId === hostBootId()) await this.#runLastScripts(domid);
    if (action === 'preserve') {
      writeFileSync(endedPath(root, domid), `${SHUTDOWN_crash}\n`);
      return;
    }
    const starts = hasCrashed && action !== 'destroy' && action !== 'coredump-destroy';
    const again = starts ? await this.#asItWas(record, domid) : null;
    await removeDomain(client, domid);
    if (again !== null) await this.#restart(again);
    else if (hasCrashed) this.#note(record, 'Done. Exiting now');
    // Last: until here another daemon would do it all again.
    rmSync(domainFolder(root, domid), { recursive: true, force: true });
  }

  /** What holds the host's end of its devices is told that they are not used any more. */
  async #runLastScripts(domid: number): Promise<void> {
    const { root, client, log } = this.#options;
    // Few domains have scripts.
    const { runLastScripts } = await import('./last-scripts.ts');
    const host = { store: client, xenstoredPath: xenstoredPath(root), log: (line: string) => log(`domusd: ${line}`) };
    await runLastScripts(domid, host);
  }

  /** With the devices that it had last. */
  async #asItWas(record: DomainRecord, domid: number): Promise<DomainRecord> {
    const { root, client } = this.#options;
    const { config, text } = nextConfigOf(record, await readPlugged(client, domid));
    const again = { ...record, config, configText: text };
    // The nodes go next, and this daemon may be killed before the domain is there again.
    writeRecord(root, domid, again);
    return again;
  }

  async #restart(record: DomainRecord): Promise<void> {
    const { root, log } = this.#options;
    const { config, configText, quiet, preserve, cwd, environment } = record;
    this.#note(record, 'Done. Rebooting now');
    try {
      const started = await startDomain(config, {
        quiet,
        preserve,
        configText,
        paused: false,
        log: () => {},
        note: () => {},
        root,
        cwd: existsSync(cwd) ? cwd : root,
        environment,
      });
      started.leave();
      log(`domusd: \`${config.name}' is domain ${started.domid} now`);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.#note(record, `xl: the domain cannot be started again: ${error.message}`);
      log(`domusd: \`${config.name}' cannot be started again: ${error.message}`);
    }
  }

  /** For the log of the domain, which its process can write no more. */
  #note({ config }: DomainRecord, line: string): void {
    try {
      appendFileSync(domainLogPath(this.#options.root, 'xl', config.name), `${line}\n`, { mode: 0o600 });
    } catch {
      // A log holds nothing up.
    }
  }
}
