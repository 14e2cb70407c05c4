/**
 * The door of a VNC server for browsers: RFB in binary messages of WebSockets, as noVNC speaks it, at a port of its own.
 *
 * Any page that a user of this host looks at can have the browser connect here, and the browser says only from where that page is. Where
 * no password is asked for, it has to be from this host: `localhost`, a loopback address, or the address that is connected to (a number:
 * a name could be made to lead anywhere). With a password, a page may be from anywhere. Programs other than browsers name no origin.
 *
 * Source: RFC 6455; RFC 6454, 7 (Origin). The ports are those of QEMU's `-vnc :N,websocket=on`.
 */

import { createServer, type IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';

export interface WebDoorOptions {
  readonly listen: string;
  readonly port: number;
  readonly hasPassword: boolean;
  readonly accept: (stream: Duplex) => void;
}

export interface WebDoor {
  /** Ends all connections, too. */
  close(): void;
}

/** Of one message from the viewer; RFB's largest is a cut text of 1 MiB. */
const MESSAGE_BYTES_MAX = 2 << 20;
const CONNECTIONS_MAX = 32;

/** Whether a page of that origin may connect; null for none. `local`: the address that is connected to. */
export function isOwnOrigin(origin: string | null, local: string): boolean {
  if (origin === null) return true;
  const host = URL.parse(origin)?.hostname.replace(/^\[(.*)\]$/, '$1') ?? '';
  if (host === 'localhost' || host === '::1' || /^127(\.\d+){3}$/.test(host)) return true;
  return host !== '' && host === local.replace(/^::ffff:/, '');
}

/** Opens it. What the system says when it cannot. */
export async function openWebDoor({ listen, port, hasPassword, accept }: WebDoorOptions): Promise<WebDoor | string> {
  // Few want it.
  const { WebSocketServer, createWebSocketStream } = await import('ws');
  const http = createServer((_, response) => {
    response.writeHead(426, { upgrade: 'websocket' }).end('Here is a VNC server for WebSockets.\n');
  });
  http.maxConnections = CONNECTIONS_MAX;
  const failure = await new Promise<string | null>((resolve) => {
    http.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    http.listen(port, listen, () => resolve(null));
  });
  if (failure !== null) return failure;
  const server = new WebSocketServer({
    server: http,
    maxPayload: MESSAGE_BYTES_MAX,
    perMessageDeflate: false,
    handleProtocols: (offered) => offered.has('binary') && 'binary',
    verifyClient: ({ req }: { req: IncomingMessage }, done) =>
      done(hasPassword || isOwnOrigin(req.headers.origin ?? null, req.socket.localAddress ?? ''), 403),
  });
  // A connection that cannot be had is somebody else's trouble.
  server.on('error', () => {});
  server.on('connection', (socket) => {
    const stream = createWebSocketStream(socket);
    // There is no half of a WebSocket.
    stream.on('end', () => stream.destroy());
    accept(stream);
  });
  return {
    close() {
      for (const socket of server.clients) socket.terminate();
      server.close();
      http.close();
      http.closeAllConnections();
    },
  };
}
