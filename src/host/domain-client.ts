/** Asks the process of a running domain (control-protocol.ts), and connects to its console. */
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CpuSet } from '../toolstack/config/cpu-set.ts';
import {
  type ControlDevices,
  type ControlMethod,
  type ControlParameters,
  type ControlSaved,
  type ControlSnapshot,
  type ControlState,
  LineReader,
} from './control-protocol.ts';
import type { Fork } from './domain-copies.ts';
import { forgetRecord } from './domain-record.ts';
import type { AfterSave } from './domain-writer.ts';
import type { Outline } from './forked-domain.ts';
import { connectLocally } from './local-socket.ts';
import { type ProcessId, parseProcessId, processLives } from './process-id.ts';
import { consolePath, controlPath, domainFolder, endedPath, pidIn, stateRoot } from './state-dir.ts';

/** The domain's process does not answer as it should. One line. */
export class DomainClientError extends Error {
  override readonly name = 'DomainClientError';
}

/** It has ended without an answer; so whatever it was asked to do, the domain does not go on in it. */
export class DomainProcessEnded extends DomainClientError {
  readonly pid: number;

  constructor(domid: number, pid: number) {
    super(`Domain ${domid}: its process has ended meanwhile`);
    this.pid = pid;
  }
}

const ANSWER_LIMIT_MS = 10_000;
/** What Linux tells programs, whatever its own is. Source: asm-generic/param.h, USER_HZ. */
const TICKS_PER_SECOND = 100;

/** One question; null if there is no such process. Throws DomainClientError. */
async function ask(
  root: string,
  domid: number,
  method: ControlMethod,
  limitMs: number | null = ANSWER_LIMIT_MS,
  params: ControlParameters = {},
): Promise<{ result: unknown; socket: Socket } | null> {
  const socket = await connectLocally(controlPath(root, domid));
  if (socket === null) return null;
  const reader = new LineReader();
  socket.write(`${JSON.stringify({ jsonrpc: '2.0', id: 1, method, params })}\n`);
  const line = await new Promise<string | null>((resolve) => {
    const timer =
      limitMs === null
        ? undefined
        : setTimeout(() => {
            socket.destroy();
            resolve(null);
          }, limitMs);
    const end = (text: string | null): void => {
      clearTimeout(timer);
      resolve(text);
    };
    socket.on('data', (bytes) => {
      const lines = reader.take(bytes);
      if (lines === null) socket.destroy();
      else if (lines.length > 0) end(lines[0]);
    });
    socket.on('close', () => end(null));
  });
  // Whoever waits without a limit waits for the end as well.
  if (line === null && limitMs === null) return null;
  if (line === null) {
    socket.destroy();
    throw new DomainClientError(`Domain ${domid}: its process does not answer`);
  }
  const { result, error } = JSON.parse(line) as { result?: unknown; error?: { message: string } };
  if (error !== undefined) {
    socket.destroy();
    throw new DomainClientError(`Domain ${domid}:${error.message}`);
  }
  return { result, socket };
}

/** How the domain is; null if its process is gone. Throws DomainClientError. */
export async function domainStateOf(domid: number, root: string = stateRoot()): Promise<ControlState | null> {
  const answer = await ask(root, domid, 'state');
  answer?.socket.destroy();
  return answer === null ? null : (answer.result as ControlState);
}

/** False if the domain's process is gone. Throws DomainClientError. */
export async function setPaused(domid: number, paused: boolean, root: string = stateRoot()): Promise<boolean> {
  const answer = await ask(root, domid, paused ? 'pause' : 'unpause');
  answer?.socket.destroy();
  return answer !== null;
}

/** Raises an NMI on a vCPU. False if the domain's process is gone. Throws DomainClientError. */
export async function raiseNmi(domid: number, vcpu: number, root: string = stateRoot()): Promise<boolean> {
  const answer = await ask(root, domid, 'nmi', ANSWER_LIMIT_MS, { vcpu });
  answer?.socket.destroy();
  return answer !== null;
}

/** A suspended guest goes on. False if the domain's process is gone. Throws DomainClientError, also if it is not suspended. */
export async function resumeDomain(domid: number, root: string = stateRoot()): Promise<boolean> {
  const answer = await ask(root, domid, 'resume');
  answer?.socket.destroy();
  return answer !== null;
}

/** Sets weight and cap; what is left out stays as it is. False if the domain's process is gone. Throws DomainClientError. */
export async function setSchedule(
  domid: number,
  change: { readonly weight?: number; readonly cap?: number },
  root: string = stateRoot(),
): Promise<boolean> {
  const answer = await ask(root, domid, 'schedule', ANSWER_LIMIT_MS, change);
  answer?.socket.destroy();
  return answer !== null;
}

/** Sets the CPUs that a vCPU may use, or prefers; what is left out stays as it is. False if the domain's process is gone. Throws DomainClientError. */
export async function pinVcpu(
  domid: number,
  pin: { readonly vcpu: number; readonly hard?: CpuSet; readonly soft?: CpuSet },
  root: string = stateRoot(),
): Promise<boolean> {
  const answer = await ask(root, domid, 'pin', ANSWER_LIMIT_MS, pin);
  answer?.socket.destroy();
  return answer !== null;
}

/** What the domain may have from now on. False if its process is gone. Throws DomainClientError. */
export async function allowMemory(domid: number, targetKiB: number, root: string = stateRoot()): Promise<boolean> {
  const answer = await ask(root, domid, 'memory', ANSWER_LIMIT_MS, { targetKiB });
  answer?.socket.destroy();
  return answer !== null;
}

/** What has gone through the domain's devices; null if its process is gone. Throws DomainClientError. */
export async function domainDevices(domid: number, root: string = stateRoot()): Promise<ControlDevices | null> {
  const answer = await ask(root, domid, 'devices');
  answer?.socket.destroy();
  return answer === null ? null : (answer.result as ControlDevices);
}

/** Waits until the domain has shut down: SHUTDOWN_*; null if it was destroyed, or its process killed. */
export async function waitForShutdown(domid: number, root: string = stateRoot()): Promise<number | null> {
  const answer = await ask(root, domid, 'wait', null);
  answer?.socket.destroy();
  return answer === null || answer.result === undefined ? null : Number(answer.result);
}

/**
 * Writes a domain to a file, an absolute path; after 'end' it is gone when this resolves. `config`: text that goes with it instead of its own. Null if there is none.
 * Throws DomainClientError when it cannot be saved; then it is as it was, but for DomainProcessEnded.
 */
export async function saveDomain(
  domid: number,
  path: string,
  then: AfterSave,
  config: string | null = null,
  root: string = stateRoot(),
): Promise<ControlSaved | null> {
  const pid = pidOf(root, domid);
  const answer = await ask(root, domid, 'save', null, { path, then, config });
  if (answer === null) {
    if (pid !== null) throw new DomainProcessEnded(domid, pid);
    return null;
  }
  if (then === 'end') await closed(answer.socket);
  answer.socket.destroy();
  return answer.result as ControlSaved;
}

/** Writes a core dump of a domain to a file, an absolute path. False if there is none. Throws DomainClientError. */
export async function dumpCore(domid: number, path: string, root: string = stateRoot()): Promise<boolean> {
  const answer = await ask(root, domid, 'dump-core', null, { path });
  answer?.socket.destroy();
  return answer !== null;
}

/** What has to be known to get ready for copies of a domain; null if there is none. Throws DomainClientError. */
export async function outlineOf(domid: number, root: string = stateRoot()): Promise<Outline | null> {
  const answer = await ask(root, domid, 'outline');
  answer?.socket.destroy();
  return answer === null ? null : (answer.result as Outline);
}

/** Copies the domain as it is now; null if there is none. `ticket`: by which the processes of copies ask for it. Throws DomainClientError. */
export async function forkDomain(domid: number, ticket: string, root: string = stateRoot()): Promise<Fork | null> {
  const answer = await ask(root, domid, 'fork', null, { ticket });
  answer?.socket.destroy();
  return answer === null ? null : (answer.result as Fork);
}

/** All copies have what they need. */
export async function endFork(domid: number, key: number, root: string = stateRoot()): Promise<void> {
  const answer = await ask(root, domid, 'fork-end', ANSWER_LIMIT_MS, { key });
  answer?.socket.destroy();
}

/** Writes a domain to a file, an absolute path, and freezes what its disks have; null if there is none. Throws DomainClientError. */
export async function snapshotDomain(
  domid: number,
  path: string,
  root: string = stateRoot(),
): Promise<ControlSnapshot | null> {
  const answer = await ask(root, domid, 'snapshot', null, { path });
  answer?.socket.destroy();
  return answer === null ? null : (answer.result as ControlSnapshot);
}

async function closed(socket: Socket): Promise<void> {
  await new Promise<void>((resolve) => {
    socket.on('close', () => resolve());
    socket.resume();
    if (socket.destroyed) resolve();
  });
}

/**
 * Ends a domain; resolves when it is gone. A process that does not answer, or not end, is killed. False if there is none.
 */
export async function destroyDomain(domid: number, root: string = stateRoot()): Promise<boolean> {
  const id = processIdOf(root, domid);
  let socket: Socket;
  try {
    const answer = await ask(root, domid, 'destroy');
    if (answer === null) {
      // It may be about to be made. If it is not, what it has left may be.
      if (id !== null) forgetRecord(root, domid);
      if (id !== null) await kill(id);
      rmSync(domainFolder(root, domid), { recursive: true, force: true });
      return id !== null;
    }
    socket = answer.socket;
  } catch (error) {
    if (!(error instanceof DomainClientError)) throw error;
    if (id === null) throw error;
    forgetRecord(root, domid);
    await kill(id);
    return true;
  }
  await new Promise<void>((resolve) => {
    const timer = setTimeout(() => {
      forgetRecord(root, domid);
      if (id !== null) void kill(id);
    }, ANSWER_LIMIT_MS);
    socket.on('close', () => {
      clearTimeout(timer);
      resolve();
    });
    socket.resume();
    if (socket.destroyed) resolve();
  });
  return true;
}

/** Kills a domain's process, and waits until it is gone. */
async function kill(id: ProcessId): Promise<void> {
  while (processLives(id)) {
    try {
      process.kill(id.pid, 'SIGKILL');
    } catch {
      // It has ended by itself.
    }
    await sleep(10);
  }
}

/** Why there is no record (domain-record.ts) of a domain that was found. */
export function whyNoRecord(domid: number, root: string = stateRoot()): string {
  const id = processIdOf(root, domid);
  return id !== null && processLives(id)
    ? `Domain ${domid}: it has been handed over to another host, and may run there`
    : `Domain ${domid}: its process is gone`;
}

/** SHUTDOWN_* of a domain that is kept though its process is gone; null for others. */
export function endedReasonOf(domid: number, root: string = stateRoot()): number | null {
  try {
    return Number(readFileSync(endedPath(root, domid), 'utf8'));
  } catch {
    return null;
  }
}

/** The process of a domain, as it has said itself. */
export function processIdOf(root: string, domid: number): ProcessId | null {
  try {
    return parseProcessId(readFileSync(join(domainFolder(root, domid), 'pid'), 'utf8'));
  } catch {
    return null;
  }
}

/** It has a process: one that does not answer yet is being made, or comes from another host. */
export function isThere(domid: number, root: string = stateRoot()): boolean {
  const id = processIdOf(root, domid);
  return id !== null && processLives(id);
}

export function pidOf(root: string, domid: number): number | null {
  return processIdOf(root, domid)?.pid ?? null;
}

/** CPU time that domusd has used since it was started; 0 if that cannot be told. Source: proc_pid_stat(5), utime and stime. */
export function daemonSeconds(root: string = stateRoot()): number {
  try {
    const stat = readFileSync(`/proc/${pidIn(root)}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const ticks = Number(fields[14 - 3]) + Number(fields[15 - 3]);
    return Number.isFinite(ticks) ? ticks / TICKS_PER_SECOND : 0;
  } catch {
    return 0;
  }
}

/** What the domain was made from, as libxl's JSON; empty if that is not there any more. */
export function readDomainConfigJson(domid: number, root: string = stateRoot()): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(readFileSync(join(domainFolder(root, domid), 'config.json'), 'utf8'));
    return typeof value === 'object' && value !== null ? { ...value } : {};
  } catch {
    return {};
  }
}

/** Those that have, or had, a process. */
export function domidsIn(root: string = stateRoot()): number[] {
  try {
    return readdirSync(join(root, 'domains'))
      .map(Number)
      .filter((domid) => Number.isSafeInteger(domid) && domid > 0)
      .sort((a, b) => a - b);
  } catch {
    return [];
  }
}

/** A connection to the domain's console; null if there is none. */
export function connectConsole(domid: number, root: string = stateRoot()): Promise<Socket | null> {
  return connectLocally(consolePath(root, domid));
}
