/**
 * The way to xenstored for every command and every domain process: connects to the daemon, and starts it first if it does not
 * run.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, renameSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { linkOverBytes, type StoreLink } from '../xenstore/link.ts';
import { openSession } from '../xenstore/session.ts';
import { clientChannel } from './socket-channel.ts';
import { daemonLockName, logPath, pidIn, stateRoot, xenstoredPath } from './state-dir.ts';

/** xenstored cannot be reached, or not be started. One line; `code` as the system has it, if it was the system. */
export class XenstoredError extends Error {
  override readonly name = 'XenstoredError';
  readonly code: string;

  constructor(message: string, code = '') {
    super(message);
    this.code = code;
  }
}

const START_LIMIT_MS = 20_000;
const REOPEN_SPREAD_MS = 500;
/** Exit code of domusd when another one serves the folder. */
const EXIT_RUNS_ALREADY = 3;
const LOG_BYTES_MAX = 1 << 20;

/** Connects to the socket at `path`. Throws XenstoredError. */
export function connectXenstored(path: string): Promise<StoreLink> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(linkOverBytes(clientChannel(socket)));
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      const why =
        error.code === 'EINVAL' || error.code === 'ENAMETOOLONG'
          ? 'too long for a unix socket; set DOMUS_STATE_DIR to a shorter folder'
          : error.message;
      reject(new XenstoredError(`xenstored at ${path}: ${why}`, error.code));
    });
  });
}

/** A plain connection to the daemon of the state folder, which is started if it does not run. Throws XenstoredError. */
export async function openXenstored(root: string = stateRoot()): Promise<StoreLink> {
  const path = xenstoredPath(root);
  try {
    return await connectXenstored(path);
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
  return await startAndConnect(root, path);
}

/**
 * A link that speaks for `domid` and outlives the daemon, which is started again when it is gone. Throws XenstoredError if
 * there is none now and none can be started.
 */
export async function openXenstoreSession(
  domid: number,
  log: (line: string) => void,
  root: string = stateRoot(),
): Promise<StoreLink> {
  let first: StoreLink | null = await openXenstored(root);
  const open = async (): Promise<StoreLink> => {
    const link = first ?? (await reopenXenstored(root));
    first = null;
    return link;
  };
  return openSession({ open, domid, name: `${process.pid}-${randomUUID()}`, log });
}

/** Is it that nobody listens, rather than that it is not allowed or not possible? */
function isAbsent(error: unknown): boolean {
  return error instanceof XenstoredError && (error.code === 'ENOENT' || error.code === 'ECONNREFUSED');
}

/**
 * All that have lost the daemon come at once. Each waits for a while whether it is there again before it starts one: a start costs a tenth of a second of CPU
 * time, and all but one would be in vain.
 */
async function reopenXenstored(root: string): Promise<StoreLink> {
  const path = xenstoredPath(root);
  const endMs = performance.now() + Math.random() * REOPEN_SPREAD_MS;
  for (;;) {
    try {
      return await connectXenstored(path);
    } catch (error) {
      if (!isAbsent(error)) throw error;
    }
    if (performance.now() > endMs) return await startAndConnect(root, path);
    await sleep(20);
  }
}

/** Does a daemon of this folder run that does not answer yet, or no more? Not to be known but on Linux. */
function isStarting(root: string): Promise<boolean> {
  if (process.platform !== 'linux' || !existsSync(root)) return Promise.resolve(false);
  return new Promise((resolve) => {
    const socket = connect(daemonLockName(root));
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

async function startAndConnect(root: string, path: string): Promise<StoreLink> {
  const deadlineMs = performance.now() + START_LIMIT_MS;
  let daemon: ChildProcess | null = null;
  for (let delayMs = 10; ; delayMs = Math.min(delayMs * 1.5, 200)) {
    if (daemon === null && !(await isStarting(root))) daemon = spawnDaemon(root);
    try {
      const link = await connectXenstored(path);
      // Another command's daemon answers. Ours, which is still starting, would take over when that one ends.
      if (daemon !== null && pidIn(root) !== daemon.pid) daemon.kill();
      return link;
    } catch (error) {
      if (!isAbsent(error)) throw error;
    }
    if (daemon === null) {
      // Another one is about to answer, or a dying one has not let go yet.
    } else if (daemon.exitCode === EXIT_RUNS_ALREADY) {
      if (delayMs === 200) daemon = null;
    } else if (daemon.exitCode !== null || daemon.signalCode !== null || daemon.pid === undefined) {
      throw new XenstoredError(`the daemon could not be started: ${lastLine(logPath(root))}`);
    }
    if (performance.now() > deadlineMs)
      throw new XenstoredError(`the daemon did not answer within ${START_LIMIT_MS / 1000} s; see ${logPath(root)}`);
    await sleep(delayMs);
  }
}

/** Starts domusd as a process of its own, which stays when this one goes. */
function spawnDaemon(root: string): ChildProcess {
  mkdirSync(root, { recursive: true, mode: 0o700 });
  const path = logPath(root);
  try {
    if (statSync(path).size > LOG_BYTES_MAX) renameSync(path, `${path}.old`);
  } catch {
    // There is none yet.
  }
  const log = openSync(path, 'a', 0o600);
  const program = new URL(import.meta.url.endsWith('.ts') ? './domusd.ts' : './domusd.js', import.meta.url);
  const { PATH, HOME, LANG, TZ } = process.env;
  const child = spawn(process.execPath, [fileURLToPath(program), root], {
    cwd: root,
    // It serves others as well, so what this command was told is none of its business.
    env: { PATH, HOME, LANG, TZ },
    detached: true,
    stdio: ['ignore', log, log],
  });
  closeSync(log);
  // Such as a Node that cannot be executed; the one who waits for the daemon sees that it has no process.
  child.on('error', () => {});
  child.unref();
  return child;
}

function lastLine(path: string): string {
  try {
    const line = readFileSync(path, 'utf8').trimEnd().split('\n').at(-1) ?? '';
    return line.replace(/^\S+Z domusd: /, '') || `see ${path}`;
  } catch {
    return `see ${path}`;
  }
}
