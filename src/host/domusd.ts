/**
 * domusd, the daemon: one a state folder. It is xenstored and the host's Ethernet switches, lets a process of its own take migrations
 * (door-keeper.ts), and holds no guest memory. Killed at any moment it loses nothing that it has acknowledged; domains run on, and find the
 * next one by its socket.
 *
 * Single instance: on Linux an abstract unix socket named after the state folder is held, which the kernel gives to one process
 * and takes back when that ends, however it ends. Elsewhere, and against another network namespace, it is the socket of
 * xenstored that tells: who answers there is the daemon.
 *
 * As a program: `domusd.ts [folder]`; ends with SIGTERM or SIGINT. Exit codes: 0; 1 with a line that says why; 3 if another
 * one runs for the same folder.
 */
import { chmodSync, type FSWatcher, mkdirSync, renameSync, rmSync, statSync, watch, writeFileSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { totalmem } from 'node:os';
import { dirname, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SwitchServer } from '../network/host/switch-socket.ts';
import { introduceControlDomain } from '../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore, type Store } from '../xenstore/store.ts';
import { StreamServer } from '../xenstore/stream-server.ts';
import { DomainKeeper } from './domain-keeper.ts';
import { DoorKeeper } from './door-keeper.ts';
import { JournalError, JournalFile } from './journal-file.ts';
import { serverChannel } from './socket-channel.ts';
import { daemonLockName, journalPath, pidIn, pidPath, stateRoot, switchPath, xenstoredPath } from './state-dir.ts';

/** Another daemon serves this folder. */
export class AlreadyRunning extends Error {
  override readonly name = 'AlreadyRunning';
}

/** The daemon cannot start; one line. */
export class DaemonError extends Error {
  override readonly name = 'DaemonError';
}

export interface Daemon {
  /** Resolves when somebody has taken the socket away: nobody can reach this daemon any more, and the next one needs its lock. */
  readonly lost: Promise<void>;
  /** Stops serving; everything is on disk already. */
  stop(): Promise<void>;
}

/** Connections at a time. More would only be a program that has lost count. */
const CLIENTS_MAX = 4096;
const STOP_LIMIT_MS = 30_000;

/** Starts serving in this process. Throws AlreadyRunning, DaemonError, JournalError. */
export async function startDaemon(root: string, log: (line: string) => void): Promise<Daemon> {
  const socketPath = xenstoredPath(root);
  mkdirSync(root, { recursive: true, mode: 0o700 });
  if (process.platform !== 'win32') mkdirSync(dirname(socketPath), { recursive: true, mode: 0o700 });
  const lock = await takeLock(root);
  try {
    if (await answers(socketPath)) throw new AlreadyRunning(`a daemon answers at ${socketPath}`);
    const journal = new JournalFile({ path: journalPath(root), log });
    const store = storeFrom(journal, journalPath(root), log);
    journal.start(() => store.records());
    store.journal = journal;
    const client = new XenstoreClient(linkToStore(store));
    await introduceControlDomain(client, Math.floor(totalmem() / 1024));

    const xenstored = new StreamServer({
      store,
      later: setImmediate,
      log,
      onSessionEnd: (domid) => keeper.sessionEnded(domid),
    });
    const keeper = new DomainKeeper({
      root,
      client,
      hasSession: (domid) => xenstored.hasSessionFor(domid),
      domids: () => store.domids(),
      log,
    });

    // Before xenstored's socket, which is what commands wait for.
    const switches = new SwitchServer();
    const switchServer = createServer();
    switches.attachTo(switchServer);
    const switchesAt = switchPath(root);
    if (process.platform !== 'win32') {
      mkdirSync(dirname(switchesAt), { recursive: true, mode: 0o700 });
      rmSync(switchesAt, { force: true });
    }
    await listen(switchServer, switchesAt);

    const server = createServer((socket) => {
      if (xenstored.clientCount < CLIENTS_MAX) xenstored.serve(serverChannel(socket));
      else socket.destroy();
    });
    // Only now: the lock is ours and nobody answers here, so what is there is what a killed daemon left.
    if (process.platform !== 'win32') rmSync(socketPath, { force: true });
    // Before anybody can connect, so that whoever has connected finds it; and at once or not at all, because whoever reads it
    // may be about to send a signal.
    writeFileSync(`${pidPath(root)}.new`, `${process.pid}\n`);
    renameSync(`${pidPath(root)}.new`, pidPath(root));
    await listen(server, socketPath);
    const { lost, unwatch } = watchSocket(socketPath);
    // What has ended since the last daemon did.
    keeper.look();
    const door = new DoorKeeper(root, log);
    return {
      lost,
      stop: async () => {
        unwatch();
        door.close();
        await keeper.close();
        xenstored.close();
        switches.close();
        await new Promise((resolve) => switchServer.close(resolve));
        // Another daemon may serve the folder already.
        if (pidIn(root) === process.pid) rmSync(pidPath(root), { force: true });
        await new Promise((resolve) => server.close(resolve));
        journal.close();
        lock?.close();
      },
    };
  } catch (error) {
    lock?.close();
    throw error;
  }
}

/** Tells when there is another file than now, or none, at `path`. */
function watchSocket(path: string): { readonly lost: Promise<void>; readonly unwatch: () => void } {
  if (process.platform === 'win32') return { lost: new Promise(() => {}), unwatch: () => {} };
  const inode = inodeOf(path);
  let watcher: FSWatcher | null = null;
  const lost = new Promise<void>((resolve) => {
    try {
      watcher = watch(dirname(path), { persistent: false }, () => {
        if (inodeOf(path) !== inode) resolve();
      });
      watcher.on('error', () => {});
    } catch {
      // The host watches no more folders for us. Then it is the user who has to end this daemon.
    }
  });
  return { lost, unwatch: () => watcher?.close() };
}

function inodeOf(path: string): number | null {
  return statSync(path, { throwIfNoEntry: false })?.ino ?? null;
}

function storeFrom(journal: JournalFile, path: string, log: (line: string) => void): Store {
  try {
    return createStore({ records: journal.records, log });
  } catch (error) {
    // Each record is as it was written, but together they make no store.
    throw new DaemonError(`${path}: ${messageOf(error)}`);
  }
}

/** Holds the name of this folder, or throws AlreadyRunning. Null where the system has no such names. */
async function takeLock(root: string): Promise<Server | null> {
  if (process.platform !== 'linux') return null;
  const lock = createServer((socket) => socket.destroy());
  try {
    await listen(lock, daemonLockName(root));
  } catch (error) {
    if (codeOf(error) === 'EADDRINUSE') throw new AlreadyRunning(`a daemon runs for ${root}`);
    throw error;
  }
  lock.unref();
  return lock;
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error) =>
      reject(
        codeOf(error) === 'EINVAL' || codeOf(error) === 'ENAMETOOLONG'
          ? new DaemonError(`${path}: too long for a unix socket; set DOMUS_STATE_DIR to a shorter folder`)
          : error,
      ),
    );
    server.listen(path, () => {
      if (process.platform !== 'win32' && !path.startsWith('\0')) chmodSync(path, 0o600);
      resolve();
    });
  });
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

function lives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The program: serves until it is told to end; its exit code. */
export async function runDaemon(root: string = stateRoot()): Promise<number> {
  const log = (line: string): void => void process.stderr.write(`${new Date().toISOString()} ${line}\n`);
  let daemon: Daemon;
  try {
    daemon = await startDaemon(root, log);
  } catch (error) {
    if (error instanceof AlreadyRunning) {
      log(`domusd: ${error.message}`);
      return 3;
    }
    const isExpected = error instanceof JournalError || error instanceof DaemonError || codeOf(error) !== '';
    if (!isExpected) throw error;
    log(`domusd: ${messageOf(error)}`);
    return 1;
  }
  log(`domusd: serves ${root} as process ${process.pid}`);
  const cause = await new Promise<string>((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => resolve(name));
    void daemon.lost.then(() => resolve('the loss of its socket'));
    // The terminal it was started from may go.
    process.on('SIGHUP', () => {});
  });
  await daemon.stop();
  log(`domusd: ended by ${cause}`);
  return 0;
}

/** Ends the daemon of a state folder, if one runs, and waits until it has; its process id. Throws DaemonError. */
export async function stopDaemon(root: string = stateRoot()): Promise<number | null> {
  const path = xenstoredPath(root);
  if (!(await answers(path))) return null;
  const pid = pidIn(root);
  if (pid === null)
    throw new DaemonError(`a daemon answers at ${path}, but ${pidPath(root)} does not say which process it is`);
  process.kill(pid, 'SIGTERM');
  const deadlineMs = performance.now() + STOP_LIMIT_MS;
  // Another one may answer by now: whoever has a session starts it again.
  while (lives(pid)) {
    if (performance.now() > deadlineMs) throw new DaemonError(`the daemon, process ${pid}, does not end`);
    await sleep(10);
  }
  return pid;
}

if (import.meta.main)
  process.exitCode = await runDaemon(process.argv[2] === undefined ? stateRoot() : resolve(process.argv[2]));
