/**
 * Takes migrations by TLS: listens, looks at who connects (migration-tls.ts), and hands over those that are trusted. Who is not costs a handshake: connections that have not
 * yet said what they want are few, have little time, and the oldest makes room for a new one, so none of them keeps others out.
 *
 * Keys and trust are read anew for each connection.
 */

import { once } from 'node:events';
import type { AddressInfo, Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import { namesOf } from './keys/certificate.ts';
import { type HostKeys, whyNotTrusted } from './keys/host-keys.ts';
import { FRAME_BYTES, FRAME_LINE, frame, textFrame } from './migration-frames.ts';
import {
  contextOptions,
  KEEP_ALIVE_MS,
  type MigrationRequest,
  oneLine,
  parseRequest,
  REQUEST_BYTES_MAX,
  REQUEST_LIMIT_MS,
  TLS_OPTIONS,
  whatHappened,
} from './migration-tls.ts';
import type { IncomingEnds } from './start-domain.ts';

export interface Arrival {
  readonly request: MigrationRequest;
  /** Of the other host, for logs. */
  readonly from: string;
  /** For the user at the other host. */
  readonly tell: (line: string) => void;
  /** Carries the domain to these ends, and answers back. */
  readonly join: (ends: IncomingEnds) => void;
}

export interface ListenerOptions {
  readonly host: string;
  readonly port: number;
  /** @throws KeyError */
  readonly keys: () => HostKeys;
  /** Resolves when the domain runs here, or does not; then the connection goes on until both ends have. */
  readonly receive: (arrival: Arrival) => Promise<void>;
  readonly log: (line: string) => void;
  /** For tests. */
  readonly requestLimitMs?: number;
  readonly pendingMax?: number;
  readonly arrivalsMax?: number;
}

export interface MigrationListener {
  readonly port: number;
  /** Migrations under way. */
  readonly arrivals: number;
  /** Listens no more; resolves when no migration is under way. */
  close(): Promise<void>;
}

const PENDING_MAX = 64;
const ARRIVALS_MAX = 16;
/** How long one who is refused may take to hear why. */
const REFUSED_LIMIT_MS = 2000;
/** Lines about strangers in a minute: more would only fill the disk. */
const STRANGER_LINES_MAX = 20;
const MINUTE_MS = 60_000;

/** @throws what the system says, such as EADDRINUSE */
export async function listenForMigrations(options: ListenerOptions): Promise<MigrationListener> {
  const listener = new Listener(options);
  return await listener.listen();
}

class Listener {
  readonly #options: ListenerOptions;
  readonly #server: Server;
  /** Those that have not said yet what they want, the oldest first. */
  readonly #pending = new Map<Socket, { readonly timer: NodeJS.Timeout; readonly keys: HostKeys }>();
  readonly #arrivals = new Set<TLSSocket>();
  #lines = 0;
  #minute = 0;
  #onQuiet: () => void = () => {};

  constructor(options: ListenerOptions) {
    this.#options = options;
    const { requestLimitMs = REQUEST_LIMIT_MS } = options;
    this.#server = createServer({
      ...{ ...TLS_OPTIONS, requestCert: true, allowHalfOpen: true, noDelay: true },
      ...{ keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_MS, handshakeTimeout: requestLimitMs },
    });
    // Before TLS sees it.
    this.#server.prependListener('connection', (socket: Socket) => this.#admit(socket, requestLimitMs));
    this.#server.on('tlsClientError', (error, socket) => {
      // Who has been cut off has been told of.
      if (socket.remoteAddress !== undefined) this.#tellStranger(addressOf(socket), whatHappened(error));
      socket.destroy();
    });
    this.#server.on('secureConnection', (socket) => void this.#greet(socket));
    // Such as no file descriptor left for one more: those that are connected go on.
    this.#server.on('error', () => {});
  }

  async listen(): Promise<MigrationListener> {
    const { host, port } = this.#options;
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen({ host, port }, resolve);
    });
    const arrivals = this.#arrivals;
    return {
      port: (this.#server.address() as AddressInfo).port,
      get arrivals() {
        return arrivals.size;
      },
      close: () => this.#close(),
    };
  }

  async #close(): Promise<void> {
    this.#server.close();
    for (const socket of this.#pending.keys()) socket.destroy();
    while (this.#arrivals.size > 0)
      await new Promise<void>((resolve) => {
        this.#onQuiet = resolve;
      });
  }

  #admit(socket: Socket, limitMs: number): void {
    const { keys, pendingMax = PENDING_MAX } = this.#options;
    const address = addressOf(socket);
    socket.on('error', () => {});
    let read: HostKeys;
    try {
      read = keys();
    } catch (error) {
      this.#tellStranger(address, whatHappened(error));
      socket.destroy();
      return;
    }
    this.#server.setSecureContext({ ...TLS_OPTIONS, ...contextOptions(read) });
    const late = (): void => {
      this.#tellStranger(address, `has not said what it wants within ${Math.round(limitMs / 1000)} s`);
      socket.destroy();
    };
    this.#pending.set(socket, { timer: setTimeout(late, limitMs), keys: read });
    socket.once('close', () => this.#settled(socket));
    if (this.#pending.size <= pendingMax) return;
    const [oldest] = this.#pending.keys();
    this.#tellStranger(
      addressOf(oldest),
      `makes room: more than ${pendingMax} connections that have not said what they want`,
    );
    oldest.destroy();
  }

  #settled(socket: Socket): void {
    clearTimeout(this.#pending.get(socket)?.timer);
    this.#pending.delete(socket);
  }

  /** TLS stands. */
  async #greet(socket: TLSSocket): Promise<void> {
    const found = [...this.#pending].find(
      ([one]) => one.remotePort === socket.remotePort && one.remoteAddress === socket.remoteAddress,
    );
    socket.on('error', () => {});
    if (found === undefined) {
      socket.destroy();
      return;
    }
    const [raw, { keys }] = found;
    const certificate = socket.getPeerX509Certificate();
    const names = certificate === undefined ? '' : ` (${namesOf(certificate).join(', ')})`;
    const from = `${addressOf(socket)}${oneLine(names)}`;
    const why = whyNotTrusted(certificate, keys.trusted, null);
    const line = await requestOf(socket);
    if (line === null) {
      if (this.#pending.has(raw)) this.#tellStranger(from, why ?? 'has ended before it said what it wants');
      socket.destroy();
      return;
    }
    this.#settled(raw);
    const request = parseRequest(line);
    if (typeof request === 'object' && 'refusal' in request) {
      this.#tellStranger(from, `does not trust this host: ${oneLine(request.refusal)}`);
      socket.destroy();
    } else if (why !== null) await this.#refuse(socket, from, why);
    else if (typeof request === 'string') await this.#refuse(socket, from, request);
    else if (this.#arrivals.size >= (this.#options.arrivalsMax ?? ARRIVALS_MAX))
      await this.#refuse(socket, from, `${this.#arrivals.size} domains come at the same time`);
    else await this.#serve(socket, from, request);
  }

  async #refuse(socket: TLSSocket, from: string, why: string): Promise<void> {
    this.#tellStranger(from, why);
    socket.resume();
    socket.end(textFrame(FRAME_LINE, `libxl: error: the target refuses this host: ${why}`));
    await Promise.race([once(socket, 'close'), sleep(REFUSED_LIMIT_MS, undefined, { ref: false })]).catch(
      () => undefined,
    );
    socket.destroy();
  }

  async #serve(socket: TLSSocket, from: string, request: MigrationRequest): Promise<void> {
    const { log, receive } = this.#options;
    this.#arrivals.add(socket);
    socket.once('close', () => {
      this.#arrivals.delete(socket);
      if (this.#arrivals.size === 0) this.#onQuiet();
    });
    log(`migrations: ${from}: a domain comes`);
    let hasJoined = false;
    const join = (ends: IncomingEnds): void => {
      hasJoined = true;
      joinEnds(socket, ends);
    };
    const tell = (line: string): void => {
      if (socket.writable) socket.write(textFrame(FRAME_LINE, line));
    };
    try {
      await receive({ request, from, tell, join });
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      log(`migrations: ${from}: ${error.stack ?? error.message}`);
      tell(`libxl: error: ${error.message}`);
    }
    // Else its process ends the way.
    if (!hasJoined) socket.destroy();
  }

  #tellStranger(from: string, what: string): void {
    const minute = Math.floor(performance.now() / MINUTE_MS);
    if (minute !== this.#minute) this.#lines = 0;
    this.#minute = minute;
    this.#lines++;
    if (this.#lines <= STRANGER_LINES_MAX) this.#options.log(`migrations: ${from}: ${what}`);
    if (this.#lines === STRANGER_LINES_MAX) this.#options.log('migrations: no more of this in this minute');
  }
}

function addressOf({ remoteAddress = 'somebody', remotePort }: Socket): string {
  return `${remoteAddress.replace(/^::ffff:/, '')}${remotePort === undefined ? '' : ` port ${remotePort}`}`;
}

/** The first line; what follows stays in the socket. Null: none comes. Who is too slow is cut off by its limit. */
async function requestOf(socket: TLSSocket): Promise<string | null> {
  let read = Buffer.alloc(0);
  return await new Promise((resolve) => {
    const done = (line: string | null): void => {
      socket.off('readable', look);
      socket.off('close', none);
      socket.off('end', none);
      resolve(line);
    };
    const none = (): void => done(null);
    const look = (): void => {
      for (let bytes = socket.read() as Buffer | null; bytes !== null; bytes = socket.read() as Buffer | null) {
        read = Buffer.concat([read, bytes]);
        const end = read.indexOf(0x0a);
        if (end >= 0 && end < REQUEST_BYTES_MAX) {
          done(read.toString('utf8', 0, end));
          if (read.length > end + 1) socket.unshift(read.subarray(end + 1));
          return;
        }
        if (read.length >= REQUEST_BYTES_MAX) {
          done(null);
          return;
        }
      }
    };
    socket.on('readable', look);
    socket.on('close', none);
    socket.on('end', none);
    if (socket.destroyed) none();
  });
}

/** The domain goes in, answers come out; what ends at one place ends at the other. */
function joinEnds(socket: TLSSocket, { input, output }: IncomingEnds): void {
  input.on('error', () => {});
  output.on('error', () => {});
  socket.pipe(input);
  // Cut in the middle, it has no end that the pipe would tell of.
  socket.on('close', () => input.destroy());
  output.on('data', (bytes: Uint8Array) => {
    if (socket.writable) socket.write(frame(FRAME_BYTES, bytes));
  });
  output.on('close', () => {
    socket.end();
    // What was on its way to a domain that has gone is read by nobody.
    socket.resume();
    setTimeout(() => socket.destroy(), REFUSED_LIMIT_MS).unref();
  });
}
