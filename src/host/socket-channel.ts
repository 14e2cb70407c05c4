/** Node's sockets as the byte streams of the xenstore room. */
import type { Socket } from 'node:net';
import type { ByteChannel } from '../xenstore/link.ts';
import type { ServerChannel } from '../xenstore/stream-server.ts';

/** The client's end. The socket is connected. */
export function clientChannel(socket: Socket): ByteChannel {
  let reason = 'xenstored has closed the connection';
  socket.on('error', (error) => {
    reason = error.message;
  });
  return {
    write: (bytes) => void socket.write(bytes),
    receive: (onBytes, onEnd) => {
      socket.on('data', onBytes);
      socket.on('close', () => onEnd(reason));
      if (socket.destroyed) onEnd(reason);
    },
    close: () => socket.destroy(),
  };
}

/** The server's end. */
export function serverChannel(socket: Socket): ServerChannel {
  // What goes wrong on a connection ends it, and 'close' follows.
  socket.on('error', () => {});
  return {
    write: (bytes) => void socket.write(bytes),
    get backlogBytes() {
      return socket.writableLength;
    },
    setPaused: (paused) => {
      if (paused) socket.pause();
      else if (socket.isPaused()) socket.resume();
    },
    receive: ({ onBytes, onDrain, onEnd }) => {
      socket.on('data', onBytes);
      socket.on('drain', onDrain);
      socket.on('close', onEnd);
    },
    close: () => socket.destroy(),
  };
}
