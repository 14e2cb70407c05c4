/**
 * Formats that Domus does not have, through QEMU's server of them, where it is installed: a qemu-nbd of its own for each disk,
 * on a socket in a folder that only this user can enter. It ends with the connection, so a killed Domus leaves none behind.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DiskImageError } from '../block-file.ts';
import type { QemuFormat } from '../formats.ts';
import { type NbdImage, type NbdLink, openNbd } from '../nbd-image.ts';

export interface QemuNbdOptions {
  readonly format: QemuFormat;
  readonly readOnly: boolean;
  /** The program and its environment; the qemu-nbd in PATH unless given. */
  readonly program?: { readonly path: string; readonly env: NodeJS.ProcessEnv };
}

const START_MS = 30_000;
/** How long an image may be locked still: a server lets go of it a moment after its connection has ended, which may have been that of this disk. */
const LOCKED_MS = 2000;
const LOOK_AGAIN_MS = 20;

/** @throws DiskImageError if qemu-nbd is not installed, or refuses the image */
export async function openByQemuNbd(path: string, options: QemuNbdOptions): Promise<NbdImage> {
  const folder = await mkdtemp(join(tmpdir(), 'domus-nbd-'));
  try {
    const socketPath = join(folder, 'socket');
    const endMs = performance.now() + LOCKED_MS;
    for (;;) {
      const trouble = await startServer(path, socketPath, options);
      if (trouble === null) break;
      if (!trouble.isLocked || performance.now() > endMs) throw new DiskImageError(`${path}: ${trouble.reason}`);
      await sleep(LOOK_AGAIN_MS);
    }
    const socket = await connected(socketPath);
    try {
      return await openNbd(linkTo(socket, path), '', options.readOnly);
    } catch (error) {
      socket.destroy();
      throw error;
    }
  } finally {
    // A connection needs no name.
    await rm(folder, { recursive: true, force: true });
  }
}

/** Null, or why there is no server. */
type Trouble = { readonly reason: string; readonly isLocked: boolean } | null;

/** With --fork the first process ends when the server listens, or with what is wrong. */
function startServer(
  path: string,
  socketPath: string,
  { format, readOnly, program }: QemuNbdOptions,
): Promise<Trouble> {
  const words = [
    ...['--fork', `--socket=${socketPath}`, `--format=${format}`, '--discard=unmap', '--cache=writeback'],
    ...(readOnly ? ['--read-only'] : []),
    ...['--', path],
  ];
  return new Promise((done) => {
    const options = { timeout: START_MS, ...(program === undefined ? {} : { env: program.env }) };
    execFile(program?.path ?? 'qemu-nbd', words, options, (error, _stdout, stderr) => {
      if (error === null) return done(null);
      const isMissing = (error as NodeJS.ErrnoException).code === 'ENOENT';
      const reason = isMissing
        ? `images of format ${format} need qemu-nbd, which is not installed (on Debian: package qemu-utils)`
        : (stderr.trim().split('\n').at(-1) ?? error.message);
      done({ reason, isLocked: /Failed to get .* lock/.test(stderr) });
    });
  });
}

function connected(socketPath: string): Promise<Socket> {
  return new Promise((done, failed) => {
    const socket = connect(socketPath);
    socket.once('connect', () => {
      socket.off('error', failed);
      done(socket);
    });
    socket.once('error', failed);
  });
}

/** Node gives a socket's first error to whoever listens; after it comes `close`. */
function linkTo(socket: Socket, name: string): NbdLink {
  let reason = 'closed by qemu-nbd';
  let isClosed = false;
  const closed = new Promise<void>((done) => {
    socket.once('close', () => {
      isClosed = true;
      link.onEnd(reason);
      done();
    });
  });
  const link: NbdLink = {
    name,
    onData: () => {},
    onEnd: () => {},
    send: (buffers) =>
      new Promise((done, failed) => {
        if (isClosed) return failed(new DiskImageError(`${name}: the connection ended: ${reason}`));
        socket.cork();
        buffers.forEach((buffer, index) => {
          const isLast = index === buffers.length - 1;
          socket.write(buffer, isLast ? (error) => (error ? failed(error) : done()) : undefined);
        });
        socket.uncork();
      }),
    close: async () => {
      socket.end();
      await closed;
    },
  };
  socket.on('error', (error) => {
    reason = error.message;
  });
  socket.on('data', (bytes: Uint8Array) => link.onData(bytes));
  return link;
}
