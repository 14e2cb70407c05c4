/**
 * Starts a domain in a process of its own (domain-process.ts), which goes on when this one ends.
 */
import { type ChildProcess, fork as forkProcess } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readdirSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { compileCacheFolderOf } from '../toolstack/compile-cache.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import type { ForkRequest } from './forked-domain.ts';
import { OLD_LOGS } from './log-file.ts';
import { processLives } from './process-id.ts';
import { domainLogPath, stateRoot } from './state-dir.ts';

/** The only message to a domain's process. */
export interface ToDomainProcess {
  /** Null for an incoming one. */
  readonly config: DomainConfig | null;
  readonly quiet: boolean;
  readonly paused: boolean;
  readonly preserve: boolean;
  /** What `config` was read from. */
  readonly configText: string;
  /** A saved domain that goes on: its file; null to build one. */
  readonly restoreFrom: string | null;
  /** It comes from another host, by descriptors INCOMING_FDS. */
  readonly incoming: boolean;
  /** A copy of a domain that runs. */
  readonly fork: ForkRequest | null;
  /** It goes on even where the CPU lacks what its guest has seen. */
  readonly force: boolean;
  /** Where its standard error goes. */
  readonly logPath: string;
}

/** Descriptors of a domain's process by which a domain comes: input, output. */
export const INCOMING_FDS = [4, 5] as const;

export type FromDomainProcess =
  /** A copy: the domain can be copied. */
  | { readonly kind: 'ready' }
  /** For the user. */
  | { readonly kind: 'log'; readonly line: string }
  /** For a user who waits for the domain's end. */
  | { readonly kind: 'note'; readonly line: string }
  | { readonly kind: 'started'; readonly domid: number }
  | { readonly kind: 'ended'; readonly exitCode: number }
  | { readonly kind: 'failed'; readonly message: string; readonly isExpected: boolean };

/** Of a domain that comes: its stream, and what it answers. */
export interface IncomingEnds {
  readonly input: Writable;
  readonly output: Readable;
}

export interface StartOptions {
  readonly quiet: boolean;
  readonly paused: boolean;
  readonly preserve: boolean;
  /** What the config was read from. */
  readonly configText: string;
  /** A saved domain that goes on: its file. */
  readonly restoreFrom?: string;
  /**
   * A domain comes from another host, which knows its config: by this process's standard input, and it is answered on the standard output; or by the
   * two ends that this is called with.
   */
  readonly incoming?: boolean | ((ends: IncomingEnds) => void);
  /**
   * A copy of a domain that runs; `ready` is called when its process is. The copy ends when that rejects: then the domain is not copied with that
   * ticket. Else only the copy's process tells what becomes of it.
   */
  readonly fork?: { readonly request: ForkRequest; readonly ready: () => Promise<unknown> };
  /** It goes on even where the CPU lacks what its guest has seen. */
  readonly force?: boolean;
  readonly log: (line: string) => void;
  readonly note: (line: string) => void;
  /** That has been started already. */
  readonly process?: EarlyProcess;
  /** For a domain of another state folder, working folder and settings than this process has. */
  readonly root?: string;
  readonly cwd?: string;
  readonly environment?: Readonly<Record<string, string>>;
}

export interface StartedDomain {
  readonly domid: number;
  /** Exit code of the domain when it has ended for good; null if its process was killed. */
  readonly ended: Promise<number | null>;
  /** Listens no more; the domain goes on. */
  leave(): void;
}

/** The domain cannot be had; one line. */
export class StartError extends Error {
  override readonly name = 'StartError';
  /** False: the message is a stack, of a defect of ours. */
  readonly isExpected: boolean;
  /** Resolves when there is no process that could use what was made for the domain. */
  readonly gone: Promise<void>;

  constructor(message: string, isExpected: boolean, gone: Promise<void> = Promise.resolve()) {
    super(message);
    this.isExpected = isExpected;
    this.gone = gone;
  }
}

/**
 * For glibc, of which V8's compilers take and give back tens of MiB in several threads: one arena, and large pieces of their own, so that
 * what is given back goes to the host. 40 MB less of a domain's process after a boot (docs/measurements.md). Source: mallopt(3).
 */
const MALLOC = { MALLOC_ARENA_MAX: '1', MALLOC_TRIM_THRESHOLD_: '131072', MALLOC_MMAP_THRESHOLD_: '65536' };
/** As many as Node has where it is not told. */
const V8_THREADS = 4;
/**
 * The main thread's young generation, up to three times so many MiB instead of 16; no counting of calls in WebAssembly for the sake of
 * inlining, of which the translator's regions have nothing: it took 2 to 4 % of the vCPU's time in fork and exec. A small module's functions
 * are validated when they are compiled, not by threads that are waited for; the same for small collections of garbage. Of the CPUs, one is for the guest:
 * V8's four threads, which optimize, would take all of few (docs/measurements.md).
 */
const V8_OPTIONS = [
  `--v8-pool-size=${Math.max(1, Math.min(V8_THREADS, availableParallelism() - 1))}`,
  '--max-semi-space-size=2',
  '--no-wasm-inlining',
  '--wasm-lazy-validation',
  '--no-parallel-scavenge',
];

function openLog(path: string): number {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    return openSync(path, 'a', 0o600);
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error;
    throw new StartError(`the domain's log ${path}: ${error.message}`, true);
  }
}

function incomingEnds(incoming: StartOptions['incoming']): (number | 'pipe')[] {
  if (incoming === undefined || incoming === false) return [];
  return incoming === true ? [0, 1] : ['pipe', 'pipe'];
}

/** Those of domains that have not become any, of processes that were killed. */
function removeOldLogs(path: string): void {
  const name = `${basename(path)}.`;
  for (const entry of readdirSync(dirname(path))) {
    const pid = entry.startsWith(name) ? Number(entry.slice(name.length)) : Number.NaN;
    // A domain of that name has kept logs with smaller numbers (log-file.ts).
    if (Number.isSafeInteger(pid) && pid > OLD_LOGS && !processLives({ pid, startTime: '' }))
      rmSync(join(dirname(path), entry), { force: true });
  }
}

/** A process that gets ready to run a domain, and has not been told which. */
export interface EarlyProcess {
  readonly child: ChildProcess;
  readonly logPath: string;
  /** It could not be started. */
  hasFailed: boolean;
  /** A domain has it. */
  isTaken: boolean;
}

/** Starts a process for `startDomain`, which may be given up. `name`: of its log until there is a domain. Throws StartError. */
export function startProcess(
  name: string,
  options: Pick<StartOptions, 'incoming' | 'root' | 'cwd' | 'environment'> = {},
): EarlyProcess {
  // It becomes the log of that name when there is a domain of that name.
  const root = options.root ?? stateRoot();
  const path = `${domainLogPath(root, 'xl', name)}.${process.pid}`;
  const logFile = openLog(path);
  removeOldLogs(domainLogPath(root, 'xl', name));
  const program = new URL(
    import.meta.url.endsWith('.ts') ? './domain-process.ts' : './domain-process.js',
    import.meta.url,
  );
  const child = forkProcess(fileURLToPath(program), [], {
    detached: true,
    cwd: options.cwd,
    env: {
      ...MALLOC,
      ...process.env,
      ...options.environment,
      DOMUS_STATE_DIR: root,
      NODE_COMPILE_CACHE: compileCacheFolderOf('domain'),
    },
    execArgv: [...V8_OPTIONS, ...process.execArgv],
    serialization: 'advanced',
    // Standard input is nothing that can be read; /dev/null may be missing.
    stdio: [logFile, logFile, logFile, 'ipc', ...incomingEnds(options.incoming)],
  });
  closeSync(logFile);
  const early: EarlyProcess = { child, logPath: path, hasFailed: false, isTaken: false };
  child.on('error', () => {
    early.hasFailed = true;
  });
  return early;
}

/** There will be no domain. */
export function giveUpProcess({ child, logPath }: EarlyProcess): void {
  if (child.connected) child.disconnect();
  child.unref();
  rmSync(logPath, { force: true });
}

/** A process that was started early may have ended since, which nobody has heard. */
function stillThere(early: EarlyProcess | undefined): EarlyProcess | undefined {
  if (early === undefined) return undefined;
  if (early.hasFailed || !early.child.connected) {
    giveUpProcess(early);
    return undefined;
  }
  early.isTaken = true;
  return early;
}

/** How long the process of a copy that has failed may take to end. */
const END_LIMIT_MS = 10_000;

function lives({ pid, exitCode, signalCode }: ChildProcess): boolean {
  return pid !== undefined && exitCode === null && signalCode === null;
}

function untilGone(child: ChildProcess): Promise<void> {
  return lives(child) ? new Promise((resolve) => child.once('exit', () => resolve())) : Promise.resolve();
}

/** A copy has failed, or cannot begin: its process ends. */
function haveEnd(child: ChildProcess): void {
  if (!lives(child)) return;
  const timer = setTimeout(() => child.kill('SIGKILL'), END_LIMIT_MS);
  child.once('exit', () => clearTimeout(timer));
}

/** Resolves when the domain is built and runs. `config`: null for an incoming one. Throws StartError. */
export async function startDomain(config: DomainConfig | null, options: StartOptions): Promise<StartedDomain> {
  const { child, logPath: path } = stillThere(options.process) ?? startProcess(config?.name ?? 'incoming', options);
  if (typeof options.incoming === 'function') {
    // Node's types know of five.
    const ends: readonly unknown[] = child.stdio;
    const [input, output] = INCOMING_FDS;
    options.incoming({ input: ends[input] as Writable, output: ends[output] as Readable });
  }
  const { quiet, paused, preserve, configText, restoreFrom = null, force = false } = options;
  const incoming = options.incoming !== undefined && options.incoming !== false;
  const what = { config, configText, restoreFrom, incoming, fork: options.fork?.request ?? null, force };
  const request: ToDomainProcess = { ...what, quiet, paused, preserve, logPath: path };
  child.send(request, () => {});
  return await new Promise((resolve, reject) => {
    let end: (exitCode: number | null) => void = () => {};
    const ended = new Promise<number | null>((resolveEnd) => {
      end = resolveEnd;
    });
    const isCopy = options.fork !== undefined;
    const fail = (message: string, isExpected: boolean): void =>
      reject(new StartError(message, isExpected, untilGone(child)));
    child.on('message', (received) => {
      const message = received as FromDomainProcess;
      switch (message.kind) {
        case 'log':
          options.log(message.line);
          break;
        case 'note':
          options.note(message.line);
          break;
        case 'ready':
          options.fork?.ready().catch(() => {
            haveEnd(child);
            if (child.connected) child.disconnect();
          });
          break;
        case 'started':
          resolve({
            domid: message.domid,
            ended,
            leave: () => {
              if (child.connected) child.disconnect();
              child.unref();
            },
          });
          break;
        case 'ended':
          end(message.exitCode);
          break;
        case 'failed':
          if (isCopy) haveEnd(child);
          fail(message.message, message.isExpected);
          break;
      }
    });
    child.on('error', (error) => {
      if (!isCopy || !lives(child)) fail(`the domain's process: ${error.message}`, true);
    });
    // Not 'exit', which may come before what it has said last.
    child.on('disconnect', () => {
      end(null);
      fail(`the domain's process has ended; see ${path}`, true);
    });
  });
}
