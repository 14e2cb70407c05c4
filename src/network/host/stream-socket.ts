/**
 * A socket whose bytes all come in one buffer, which is every such socket's: nothing is allocated for what arrives, where Node
 * otherwise takes 64 KiB for each read. Whoever takes the bytes has them for the call. Windows fills buffers while nobody looks,
 * so there each socket has its own. Source: nodejs.org/api/net.html, `onread`; libuv, uv__read and uv__tcp_queue_read.
 */

import { Socket, type SocketConstructorOpts } from 'node:net';

const READ_BYTES = 1 << 16;
const shared = process.platform === 'win32' ? null : new Uint8Array(READ_BYTES);

export interface StreamSocket {
  readonly socket: Socket;
  /** Gets what arrives, borrowed for the call. False: no more until the socket is resumed. */
  take: (bytes: Uint8Array) => boolean;
}

/** Not connected. Bytes that nobody has set `take` for are lost; a socket that is paused reads none. */
export function createStreamSocket(options: SocketConstructorOpts = {}): StreamSocket {
  const buffer = shared ?? new Uint8Array(READ_BYTES);
  const made: StreamSocket = {
    socket: new Socket({
      ...options,
      onread: { buffer, callback: (count) => made.take(buffer.subarray(0, count)) },
    }),
    take: () => true,
  };
  return made;
}

/** A connection to a local socket, paused. Rejects when nobody answers. */
export function connectStream(path: string): Promise<StreamSocket> {
  return new Promise((resolve, reject) => {
    const connection = createStreamSocket();
    const { socket } = connection;
    // Nothing may arrive before somebody takes it.
    socket.pause();
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(connection);
    });
    socket.connect(path);
  });
}
