/**
 * What `xl migrate` does: runs the command that reaches the target, and carries bytes between that and the process of the domain,
 * which does the rest (migration-sender.ts). When this ends, or the command does, both of them notice.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import type { Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectLocally } from './local-socket.ts';
import {
  FRAME_BEGIN,
  FRAME_BYTES,
  FRAME_DETAIL,
  FRAME_ENDED,
  FRAME_HANG_UP,
  FRAME_LINE,
  FRAME_LOST,
  FRAME_RESULT,
  FrameReader,
  frame,
  type MigrationOptions,
  textFrame,
} from './migration-frames.ts';
import { migrationPath, stateRoot } from './state-dir.ts';

export interface MigrationRequest extends MigrationOptions {
  readonly domid: number;
  readonly tell: (line: string) => void;
  readonly detail: (line: string) => void;
}

/** How long a command may take to end that is not listened to any more. */
const END_LIMIT_MS = 2000;

/** Resolves with xl's exit code when the domain is gone, or stays; null: there is no such domain. */
export async function migrateDomain(request: MigrationRequest, root: string = stateRoot()): Promise<number | null> {
  const socket = await connectLocally(migrationPath(root, request.domid));
  if (socket === null) return null;
  // A terminal for ssh's questions is inherited; standard error is the user's.
  const child = spawn('sh', ['-c', request.command], { stdio: ['pipe', 'pipe', 'inherit'] });
  const exited = new Promise<void>((resolve) => {
    child.on('close', () => resolve());
    child.on('error', () => resolve());
  });
  const { command, config, debug } = request;
  socket.write(textFrame(FRAME_BEGIN, JSON.stringify({ command, config, debug } satisfies MigrationOptions)));
  carryAnswers(child, socket);
  const code = await carry(request, socket, child, exited);
  if (code === null) request.tell(`libxl: error: Domain ${request.domid}: its process has ended meanwhile`);
  child.stdin.destroy();
  child.stdout.destroy();
  child.unref();
  return code ?? 1;
}

function carryAnswers(child: ChildProcess, socket: Socket): void {
  // What goes wrong with either end is an end.
  child.stdin?.on('error', () => {});
  child.stdout?.on('error', () => {});
  child.stdout?.on('data', (bytes: Uint8Array) => socket.write(frame(FRAME_BYTES, bytes)));
  child.stdout?.on('end', () => socket.write(frame(FRAME_ENDED, new Uint8Array(0))));
}

/** Does what the domain says, in its order; its result, or null when its process ends without one. */
async function carry(
  { tell, detail }: MigrationRequest,
  socket: Socket,
  child: ChildProcess & { readonly stdin: Writable },
  exited: Promise<void>,
): Promise<number | null> {
  let code: number | null = null;
  let doing: Promise<void> = Promise.resolve();
  let hasHungUp = false;
  const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  const inTurn = (act: () => void | Promise<void>): void => {
    doing = doing.then(act);
  };
  const reader = new FrameReader((kind, bytes) => {
    if (kind === FRAME_BYTES && !hasHungUp) {
      const onWritten = (error: Error | null | undefined): void => {
        if (error) socket.write(frame(FRAME_LOST, new Uint8Array(0)));
      };
      if (!child.stdin.write(Uint8Array.from(bytes), onWritten) && !child.stdin.destroyed) socket.pause();
    } else if (kind === FRAME_LINE || kind === FRAME_DETAIL) {
      const line = text(bytes);
      inTurn(() => (kind === FRAME_LINE ? tell : detail)(line));
    } else if (kind === FRAME_HANG_UP) {
      hasHungUp = true;
      inTurn(async () => {
        child.stdin.destroy();
        await reportExit(child, exited, tell);
      });
    } else if (kind === FRAME_RESULT) {
      const [said] = bytes;
      inTurn(() => {
        code = said;
        // A domain that has gone ends the connection itself, when nothing is left of it.
        if (said !== 0) socket.destroy();
      });
    }
  });
  child.stdin.on('drain', () => socket.resume());
  child.stdin.on('close', () => socket.resume());
  socket.on('data', (bytes) => {
    if (!reader.push(bytes)) socket.destroy();
  });
  await new Promise<void>((resolve) => {
    socket.on('close', () => resolve());
    if (socket.destroyed) resolve();
  });
  await doing;
  return code;
}

/** As xl says how the command has ended. */
async function reportExit(child: ChildProcess, exited: Promise<void>, tell: (line: string) => void): Promise<void> {
  const inTime = await Promise.race([exited.then(() => true), sleep(END_LIMIT_MS, false, { ref: false })]);
  const which = `migration transport process [${child.pid}]`;
  if (!inTime) tell(`migration child [${child.pid}] not exiting, no longer waiting (exit status will be unreported)`);
  else if (child.signalCode !== null) tell(`libxl: info: ${which} died due to fatal signal ${child.signalCode}`);
  else if (child.exitCode !== 0) tell(`libxl: info: ${which} exited with error status ${child.exitCode}`);
}
