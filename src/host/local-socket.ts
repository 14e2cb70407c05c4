/** Sockets in the state folder: for the user who owns it only. */
import { chmodSync, mkdirSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';

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
