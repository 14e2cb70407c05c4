/** Sockets in the state folder: for the user who owns it only. */
import { chmodSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { basename, dirname, join } from 'node:path';

/** As `listenLocally` does. */
export type Listen = (path: string, onSocket: (socket: Socket) => void) => Promise<{ close(): void }>;

/** Listens at `path`; what a process that is gone has left there is replaced. */
export async function listenLocally(path: string, onSocket: (socket: Socket) => void): Promise<Server> {
  const isFile = process.platform !== 'win32';
  if (isFile) {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    rmSync(path, { force: true });
  }
  const server = createServer(onSocket);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
  if (isFile) chmodSync(path, 0o600);
  // Such as no file descriptor left for one more: those that are connected go on.
  server.on('error', () => {});
  return server;
}

/** Sockets that are open already, which nobody finds before they appear: that takes no time then. */
export class UnseenSockets {
  #waiting: (() => void)[] = [];

  /** The path gets no longer, since its length is limited. */
  readonly listen: Listen = async (path, onSocket) => {
    if (process.platform === 'win32') {
      const server = createServer(onSocket);
      server.on('error', () => {});
      this.#waiting.push(() => server.listen(path));
      return server;
    }
    const unseen = join(dirname(path), `~${basename(path).slice(1)}`);
    const server = await listenLocally(unseen, onSocket);
    let isSeen = false;
    this.#waiting.push(() => {
      renameSync(unseen, path);
      isSeen = true;
    });
    return {
      close: () => {
        server.close();
        if (isSeen) rmSync(path, { force: true });
      },
    };
  };

  appear(): void {
    for (const show of this.#waiting.splice(0)) show();
  }
}

/** Connects to `path`; null if nobody listens there. */
export function connectLocally(path: string): Promise<Socket | null> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      // What goes wrong ends the connection, and 'close' follows.
      socket.on('error', () => {});
      resolve(socket);
    });
    socket.once('error', () => resolve(null));
  });
}
