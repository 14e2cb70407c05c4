/**
 * passt(1) as a network: a process of its own for each interface, which this one talks to over a unix socket. It gives the guest
 * the host's own address, and IPv6. Source: passt(1); QEMU's `-netdev stream` for the framing.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { QEMU_FORM } from '../frame-stream.ts';
import type { Forward } from '../nat/forwards.ts';
import { SocketPort } from './socket-port.ts';
import { connectStream, type StreamSocket } from './stream-socket.ts';

/** passt cannot be started. One line. */
export class PasstError extends Error {
  override readonly name = 'PasstError';
}

const START_LIMIT_MS = 5000;

const tryConnect = (path: string): Promise<StreamSocket | null> => connectStream(path).catch(() => null);

/** Starts passt and connects to it. It ends when the connection does, however that comes about. Throws PasstError. */
async function startPasst(forwards: readonly Forward[]): Promise<StreamSocket> {
  const folder = mkdtempSync(join(tmpdir(), 'domus-passt-'));
  const path = join(folder, 'socket');
  const words = ['-f', '-q', '--one-off', '-s', path];
  // As root it would become nobody, who may not make the socket.
  if (process.getuid?.() === 0) words.push('--runas', '0');
  for (const { protocol, address, port, guestPort } of forwards)
    words.push(protocol === 'tcp' ? '-t' : '-u', `${address}/${port}:${guestPort}`);
  let said = '';
  const child: ChildProcess = spawn('passt', words, { stdio: ['ignore', 'ignore', 'pipe'] });
  let failure: string | null = null;
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    if (said.length < 4096) said += text;
  });
  child.on('error', (error: NodeJS.ErrnoException) => {
    failure = error.code === 'ENOENT' ? 'passt is not installed' : error.message;
  });
  child.on('close', () => {
    failure ??= lastWords(said) || 'passt has ended';
  });
  try {
    const deadlineMs = performance.now() + START_LIMIT_MS;
    for (;;) {
      const socket = await tryConnect(path);
      if (socket !== null) return socket;
      if (failure !== null || performance.now() > deadlineMs) {
        child.kill();
        throw new PasstError(failure ?? 'passt does not answer');
      }
      await sleep(20);
    }
  } finally {
    // Nobody else is to connect.
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Where there is no system log, it complains of that after each line. */
function lastWords(said: string): string {
  const lines = said
    .split('\n')
    .filter((line) => line.trim() !== '' && !/^Failed to send \d+ bytes to syslog/.test(line));
  return lines.at(-1)?.trim() ?? '';
}

/** passt as a network; another one takes its place when it ends. Throws PasstError. */
export async function openPasst(forwards: readonly Forward[]): Promise<SocketPort> {
  const open = (): Promise<StreamSocket> => startPasst(forwards);
  return new SocketPort({ form: QEMU_FORM, open, first: await open() });
}
