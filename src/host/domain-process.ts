/**
 * The process of a domain: started by `startDomain` (start-domain.ts), which hands it the config over its IPC channel, and on
 * its own from then on. Runs the domain and what it becomes by restarts, serves its console and its control socket, and keeps
 * its logs. Whoever started it hears what happens as long as it listens.
 */
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { useCompileCache } from '../toolstack/compile-cache.ts';
import { withMovedDisk } from '../toolstack/config/device-specs.ts';
import { configJson, type DomainConfig } from '../toolstack/config/domain-config.ts';
import { untilAtRest } from './at-rest.ts';
import { ConsoleServer } from './console-server.ts';
import type { ControlServer } from './control-server.ts';
import {
  type DomainRecord,
  forgetRecord,
  nextConfigOf,
  prepareRecord,
  readRecord,
  recordOf,
  writeRecord,
} from './domain-record.ts';
import { EarlyThreads } from './early-threads.ts';
import type { CopySource, ForkRequest, ForkSource } from './forked-domain.ts';
import type { IncomingDomain } from './incoming-domain.ts';
import { OLD_LOGS, openLogFile, rotateLog } from './log-file.ts';
import { lowerPriority } from './low-priority.ts';
import type { MigrationServer } from './migration-server.ts';
import { formatProcessId, thisProcess } from './process-id.ts';
import type { OpenSaved } from './restore-domain.ts';
import { type FromDomainProcess, INCOMING_FDS, type ToDomainProcess } from './start-domain.ts';
import {
  consolePath,
  controlPath,
  domainFolder,
  domainLogPath,
  hypervisorLogPath,
  migrationPath,
  stateRoot,
} from './state-dir.ts';
import { heedWasmHints } from './wasm-hints.ts';

const CONSOLE_LOG_BYTES = 1 << 20;
const HYPERVISOR_LOG_BYTES = 1 << 20;
/** How long a copy's process lets V8 compile what it has rehearsed: on a host of few CPUs that would be in its own way. */
const REST_LIMIT_MS = 300;
/** How long viewers may take for what they have not seen yet, when the domain is gone. */
const VIEWERS_LIMIT_MS = 5000;

/** Resolves when it is on its way; whoever listened may have gone. */
function say(message: FromDomainProcess): Promise<void> {
  return new Promise((resolve) => {
    if (!process.connected || process.send === undefined) resolve();
    else process.send(message, undefined, undefined, () => resolve());
  });
}

/** What a copy goes on from: what has started this process has the domain copied when it hears that all copies are ready. */
async function copySource(
  request: ForkRequest,
  root: string,
  onTaken: (source: ForkSource) => void,
): Promise<CopySource> {
  const { DomainSource } = await import('./copy-source.ts');
  const domain = await DomainSource.open(request, root, async () => {
    await untilAtRest(REST_LIMIT_MS);
    await say({ kind: 'ready' });
  });
  // Whoever has the domain copied has given it up.
  const onGone = (): void => domain.close();
  process.once('disconnect', onGone);
  if (!process.connected) onGone();
  return {
    early: () => domain.early(),
    take: async () => {
      const source = await domain.take();
      process.off('disconnect', onGone);
      onTaken(source);
      return source;
    },
  };
}

/** There is a domain of that name: its log replaces that of the one before. */
function keepLog(path: string, kept: string): void {
  rotateLog(kept, OLD_LOGS);
  try {
    renameSync(path, kept);
  } catch {
    // Somebody has taken it away.
  }
}

/** `unusedLog`: a log that nobody needs if the failure is the user's to solve; all others are defects of ours. */
async function tellFailure(error: Error, unusedLog: string | null): Promise<void> {
  const isExpected = ['HostError', 'KernelImageError', 'BuildError', 'SaveFileError'].includes(error.name);
  const message = isExpected ? error.message : (error.stack ?? error.message);
  process.stderr.write(`${message}\n`);
  if (isExpected && unusedLog !== null) rmSync(unusedLog, { force: true });
  await say({ kind: 'failed', message, isExpected });
  process.exitCode = 1;
  if (process.connected) process.disconnect();
}

// Behind `useCompileCache`.
const loadModules = () =>
  Promise.all([
    import('./run-domain.ts'),
    import('./control-server.ts'),
    import('./domain-control.ts'),
    import('./restore-domain.ts'),
    import('./migration-server.ts'),
    import('./forked-domain.ts'),
    import('./local-socket.ts'),
  ]);

async function run(request: ToDomainProcess): Promise<void> {
  const { quiet, paused, preserve, restoreFrom, incoming, fork, force, logPath } = request;
  let { configText } = request;
  if (request.config !== null) threads.expect(request.config);
  const [
    { runDomain },
    { openControlServer },
    { controlHandlers },
    { openSaved },
    { openMigrationServer },
    { ForkedDomain, fromSaved },
    { UnseenSockets },
  ] = await modules;
  const root = stateRoot();
  const hypervisorLog = openLogFile(hypervisorLogPath(root), HYPERVISOR_LOG_BYTES, 1);
  // Standard error is the log xl-NAME.log.
  const note = (line: string): void => {
    process.stderr.write(`${line}\n`);
    void say({ kind: 'note', line });
  };
  const log = (line: string): void => {
    process.stderr.write(`${line}\n`);
    if (line.startsWith('(XEN) ')) hypervisorLog.add(`${line}\n`);
    void say({ kind: 'log', line });
  };
  let config: DomainConfig;
  let arriving: IncomingDomain | null = null;
  try {
    if (incoming) {
      const { IncomingDomain } = await import('./incoming-domain.ts');
      arriving = await IncomingDomain.open(...INCOMING_FDS, log);
      ({ config, text: configText } = arriving.config);
      threads.expect(config);
    } else if (request.config !== null) ({ config } = request);
    else throw new Error('bug: a domain without a config');
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    await tellFailure(error, logPath);
    return;
  }
  const console = new ConsoleServer(openLogFile(domainLogPath(root, 'console', config.name), CONSOLE_LOG_BYTES, 1));
  let domid = 0;
  let hasLived = false;
  /** Folder of the domain before a restart, which is kept until the next one has its own. */
  let previous: string | null = null;
  let control: ControlServer | null = null;
  let migration: MigrationServer | null = null;
  let saved: OpenSaved | null = null;
  let source: ForkSource | null = null;
  try {
    if (restoreFrom !== null) saved = await openSaved(restoreFrom);
    saved?.domain.readAhead();
    const restore =
      fork !== null
        ? new ForkedDomain(fork, await copySource(fork, root, (taken) => (source = taken)), async (nodes) =>
            (await import('./rehearsed-copy.ts')).rehearseCopy(fork, nodes),
          )
        : arriving !== null
          ? fromSaved(arriving.saved)
          : saved && fromSaved(saved.domain);
    const { exitCode } = await runDomain(config, {
      written: () => {
        // `xl config-update` may have changed it.
        const record = readRecord(root, domid);
        return (
          record?.next ?? { config: record?.config ?? config, text: record === null ? configText : record.configText }
        );
      },
      ...(restore === null ? {} : { restore, force }),
      ...(arriving === null ? {} : { incoming: arriving }),
      standsStill: arriving !== null || fork !== null,
      threads,
      console,
      log,
      note,
      quiet,
      xenstore: 'daemon',
      paused,
      preserve,
      onStart: () => {
        saved?.close();
        arriving?.started();
        void say({ kind: 'started', domid });
      },
      nextConfig: () => config,
      onDiskMoved: (moved) => {
        // `xl config-update` may have changed it.
        const record = readRecord(root, domid) ?? recordOf({ config, configText, quiet, preserve });
        const next = withMovedDisk({ config: record.config, text: record.configText }, moved);
        const later = record.next == null ? null : withMovedDisk(record.next, moved);
        writeRecord(root, domid, { ...record, config: next.config, configText: next.text, next: later });
        writeFileSync(join(domainFolder(root, domid), 'config.json'), configJson(next.config), { mode: 0o600 });
        configText = withMovedDisk({ config, text: configText }, moved).text;
      },
      onWentOn: (atNs) => {
        if (source === null) return;
        const [asked, stopped] = [source.askedNs, source.stoppedNs].map((ns) => Math.round((atNs - ns) / 1e6));
        note(
          `Domain ${domid} is a copy: its first instruction came ${asked} ms after it was asked for, ${stopped} ms after the other one was stopped`,
        );
      },
      onAllocated: (allocated) => {
        domid = allocated;
        mkdirSync(domainFolder(root, domid), { recursive: true, mode: 0o700 });
        writeFileSync(join(domainFolder(root, domid), 'pid'), formatProcessId(thisProcess()));
      },
      onLive: async (live) => {
        const folder = domainFolder(root, domid);
        // Whoever finds this process killed must not start the domain again when it may run elsewhere.
        let kept: DomainRecord | null = null;
        const departure = {
          leave: () => {
            kept = readRecord(root, domid);
            forgetRecord(root, domid);
          },
          comeBack: () => {
            if (kept !== null) writeRecord(root, domid, kept);
            kept = null;
          },
          // It may have gone to this host.
          gone: () => lowerPriority(true),
        };
        const sockets = new UnseenSockets();
        control = await openControlServer(
          controlPath(root, domid),
          controlHandlers(live, departure, log),
          sockets.listen,
        );
        migration = await openMigrationServer(
          migrationPath(root, domid),
          (link, options) => live.migrate(link, options, departure),
          log,
          sockets.listen,
        );
        await console.listen(consolePath(root, domid), sockets.listen);
        writeFileSync(join(folder, 'config.json'), configJson(config), { mode: 0o600 });
        const prepared = prepareRecord(root, domid, recordOf({ config, configText, quiet, preserve }));
        const showRecord = (): void => {
          const come = hasLived ? undefined : arriving?.config;
          if (come === undefined || come.text === configText) {
            prepared();
            return;
          }
          // It has changed on its way.
          ({ config, text: configText } = come);
          writeFileSync(join(folder, 'config.json'), configJson(config), { mode: 0o600 });
          writeRecord(root, domid, recordOf({ config, configText, quiet, preserve }));
        };
        return {
          onRunning: () => {
            showRecord();
            sockets.appear();
          },
          onRuns: () => {
            if (!hasLived) keepLog(logPath, domainLogPath(root, 'xl', config.name));
            hasLived = true;
            if (previous !== null) rmSync(previous, { recursive: true, force: true });
            previous = null;
            note(`Waiting for domain ${config.name} (domid ${domid}) to die [pid ${process.pid}]`);
          },
          onEnding: (restarts, plugged) => {
            const record = readRecord(root, domid) ?? recordOf({ config, configText, quiet, preserve });
            ({ config, text: configText } = nextConfigOf(record, plugged));
            if (restarts) previous = folder;
            else forgetRecord(root, domid);
          },
          onGone: () => {
            if (previous === null) rmSync(folder, { recursive: true, force: true });
            control?.close();
            migration?.close();
          },
        };
      },
    });
    await console.finish(VIEWERS_LIMIT_MS);
    await say({ kind: 'ended', exitCode });
  } catch (error) {
    console.close();
    if (!(error instanceof Error)) throw error;
    if (domid !== 0) rmSync(domainFolder(root, domid), { recursive: true, force: true });
    if (previous !== null) rmSync(previous, { recursive: true, force: true });
    await arriving?.failed();
    await tellFailure(error, hasLived ? null : logPath);
  }
  if (process.connected) process.disconnect();
}

useCompileCache();
heedWasmHints();
const threads = new EarlyThreads();
/** Loaded while whoever has started this process finds out what it is to run. */
const modules = loadModules();
modules.catch(() => undefined);
// The terminal that it was started from may go.
process.on('SIGHUP', () => {});
process.once('message', (message) => void run(message as ToDomainProcess));
