/**
 * The host's sockets for the NAT: node:net and node:dgram. Source: nodejs.org/api/net.html, dgram.html.
 */

import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { createServer, type Socket } from 'node:net';
import type {
  DatagramHandler,
  HostDatagram,
  HostListener,
  HostNetwork,
  HostPlace,
  HostStream,
  StreamEvents,
  StreamFailure,
} from '../nat/host-network.ts';
import { createResolverConfig } from './resolv-conf.ts';
import { createStreamSocket } from './stream-socket.ts';

/** A connection that the host's kernel has not made after this time is given up. */
const CONNECT_TIMEOUT_MS = 75_000;
/** Of datagrams that one socket has not sent yet. */
const DATAGRAM_BYTES_MAX = 1 << 18;

function failureOf(error: NodeJS.ErrnoException): StreamFailure {
  switch (error.code) {
    case 'ECONNREFUSED':
      return 'refused';
    case 'ENETUNREACH':
    case 'EHOSTUNREACH':
    case 'EACCES':
    case 'EPERM':
    case 'EADDRNOTAVAIL':
      return 'unreachable';
    case 'ETIMEDOUT':
      return 'timeout';
    case 'EMFILE':
    case 'ENFILE':
    case 'ENOBUFS':
      return 'no-resources';
    default:
      return 'reset';
  }
}

/** Why the host does not listen. */
function whyNot({ code, message }: NodeJS.ErrnoException): string {
  switch (code) {
    case 'EADDRINUSE':
      return 'the port is taken (EADDRINUSE)';
    case 'EADDRNOTAVAIL':
      return 'this host has no such address (EADDRNOTAVAIL)';
    case 'EACCES':
      return 'this user may not have the port (EACCES)';
    default:
      return code ?? message;
  }
}

class NodeStream implements HostStream {
  readonly #socket: Socket;
  #events: StreamEvents | null = null;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('end', () => this.#events?.end());
    socket.on('error', (error: NodeJS.ErrnoException) => this.#fail(failureOf(error)));
    // Closed both ways is an end as it should be; else whatever the flow still hoped for will not come.
    socket.on('close', () => {
      if (!socket.readableEnded || !socket.writableFinished) this.#fail('reset');
    });
  }

  #fail(failure: StreamFailure): void {
    const events = this.#events;
    this.#events = null;
    events?.failed(failure);
  }

  listenTo(events: StreamEvents): void {
    this.#events = events;
  }

  /** Bytes of the far side; false: no more for now. */
  take(bytes: Uint8Array): boolean {
    return this.#events?.data(bytes) !== false;
  }

  write(bytes: Uint8Array, done: () => void): void {
    this.#socket.write(bytes, (error) => {
      if (!error) done();
    });
  }

  end(): void {
    this.#socket.end();
  }

  resume(): void {
    this.#socket.resume();
  }

  reset(): void {
    this.#events = null;
    if (this.#socket.connecting) this.#socket.destroy();
    else this.#socket.resetAndDestroy();
  }

  close(): void {
    this.#events = null;
    this.#socket.destroySoon();
  }
}

class NodeDatagram implements HostDatagram {
  readonly #socket: UdpSocket;
  #pending = 0;
  #open = true;

  constructor(family: 4 | 6, bind: HostPlace | null, receive: DatagramHandler, failed: (why: string) => void) {
    // Destinations are always addresses, so nothing is looked up.
    const lookup = (
      name: string,
      _options: unknown,
      done: (error: null, address: string, family: number) => void,
    ): void => done(null, name, family);
    this.#socket = createSocket({ type: family === 4 ? 'udp4' : 'udp6', lookup });
    this.#socket.on('message', (bytes, from) => receive(bytes, from.address, from.port));
    this.#socket.on('error', (error: NodeJS.ErrnoException) => {
      // Errors of a single datagram come to its `send`; here it is the socket.
      this.close();
      if (bind === null) failed(error.code ?? error.message);
      else bind.failed(whyNot(error));
    });
    if (bind !== null) this.#socket.bind(bind.port, bind.address, bind.opened);
  }

  send(bytes: Uint8Array, start: number, length: number, address: string, port: number): boolean {
    if (!this.#open || this.#pending + length > DATAGRAM_BYTES_MAX) return false;
    this.#pending += length;
    this.#socket.send(new Uint8Array(bytes.subarray(start, start + length)), port, address, () => {
      this.#pending -= length;
    });
    return true;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#socket.close();
  }
}

export function createNodeNetwork(): HostNetwork {
  const resolver = createResolverConfig();
  return {
    nowMs: () => performance.now(),
    setTimer(delayMs, callback) {
      const timer = setTimeout(callback, delayMs);
      // The domain keeps the process running, not its NAT.
      timer.unref();
      return () => clearTimeout(timer);
    },
    connect(address, port, events) {
      const made = createStreamSocket({ allowHalfOpen: true });
      const { socket } = made;
      const stream = new NodeStream(socket);
      made.take = (bytes) => stream.take(bytes);
      stream.listenTo(events);
      const timer = setTimeout(
        () => socket.destroy(Object.assign(new Error('timeout'), { code: 'ETIMEDOUT' })),
        CONNECT_TIMEOUT_MS,
      );
      timer.unref();
      socket.once('close', () => clearTimeout(timer));
      socket.once('connect', () => {
        clearTimeout(timer);
        events.connected();
      });
      socket.connect({ host: address, port });
      return stream;
    },
    listen({ address, port, opened, failed }, accept): HostListener {
      const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
        const stream = new NodeStream(socket);
        socket.on('data', (bytes: Uint8Array) => {
          if (!stream.take(bytes)) socket.pause();
        });
        socket.pause();
        const events = accept(stream);
        if (events === null) stream.reset();
        else stream.listenTo(events);
      });
      server.on('error', (error: NodeJS.ErrnoException) => failed(whyNot(error)));
      server.listen(port, address, opened);
      return { close: () => void server.close() };
    },
    openDatagram: (family, bind, receive, failed) => new NodeDatagram(family, bind, receive, failed),
    nameServers: () => resolver().nameServers,
    searchDomains: () => resolver().searchDomains,
    ping: null,
  };
}
