/** The ways from `xl migrate` to a migration's target: a command that a shell runs, and a TLS connection to the daemon of another host. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { isIP } from 'node:net';
import { PassThrough, type Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type TLSSocket } from 'node:tls';
import type { ListenAddress } from '../toolstack/config/xl-conf.ts';
import { readKeys, whyNotTrusted } from './keys/host-keys.ts';
import { FRAME_BYTES, FRAME_LINE, FrameReader } from './migration-frames.ts';
import {
  contextOptions,
  KEEP_ALIVE_MS,
  oneLine,
  requestLine,
  TLS_OPTIONS,
  TLS_PROTOCOL,
  whatHappened,
} from './migration-tls.ts';

export interface Carrier {
  /** What the target answers; it ends when the way is cut. */
  readonly answers: Readable;
  /** Bytes to the target. `onLost`: they, and all that follow, cannot have left. False: it has enough for now. */
  send(bytes: Uint8Array, onLost: () => void): boolean;
  /** There is room again. */
  onRoom(act: () => void): void;
  /** The target gets no more; resolves when it has been told what became of the way. */
  hangUp(): Promise<void>;
  /** Nothing of it is needed any more. */
  close(): void;
}

/** No way there; one line. */
export class CarrierError extends Error {
  override readonly name = 'CarrierError';
}

/** How long a way may take to end that is not listened to any more. */
const END_LIMIT_MS = 2000;
const CONNECT_LIMIT_MS = 30_000;

/** A command; a terminal for ssh's questions is inherited, and standard error is the user's. */
export function commandCarrier(command: string, tell: (line: string) => void): Carrier {
  const child = spawn('sh', ['-c', command], { stdio: ['pipe', 'pipe', 'inherit'] });
  const { stdin, stdout } = child;
  const exited = new Promise<void>((resolve) => {
    child.on('close', () => resolve());
    child.on('error', () => resolve());
  });
  // What goes wrong with either end is an end.
  stdin.on('error', () => {});
  stdout.on('error', () => {});
  return {
    answers: stdout,
    send: (bytes, onLost) =>
      stdin.write(bytes, (error) => {
        if (error) onLost();
      }) || stdin.destroyed,
    onRoom: (act) => {
      stdin.on('drain', act);
      stdin.on('close', act);
    },
    // As xl says how the command has ended.
    hangUp: async () => {
      stdin.destroy();
      const inTime = await Promise.race([exited.then(() => true), sleep(END_LIMIT_MS, false, { ref: false })]);
      const which = `migration transport process [${child.pid}]`;
      if (!inTime)
        tell(`migration child [${child.pid}] not exiting, no longer waiting (exit status will be unreported)`);
      else if (child.signalCode !== null) tell(`libxl: info: ${which} died due to fatal signal ${child.signalCode}`);
      else if (child.exitCode !== 0) tell(`libxl: info: ${which} exited with error status ${child.exitCode}`);
    },
    close: () => {
      stdin.destroy();
      stdout.destroy();
      child.unref();
    },
  };
}

export interface TlsTarget {
  readonly address: ListenAddress;
  /** State folder with the keys of this host. */
  readonly root: string;
  readonly paused: boolean;
  readonly preserve: boolean;
}

/** Connects to the daemon of another host. @throws CarrierError */
export async function tlsCarrier(
  { address, root, ...wanted }: TlsTarget,
  tell: (line: string) => void,
): Promise<Carrier> {
  const { host, port } = address;
  const where = isIP(host) === 6 ? `[${host}]:${port}` : `${host}:${port}`;
  const socket = await connected(address, root).catch((error: unknown) => {
    throw new CarrierError(`${where}: ${error instanceof CarrierError ? error.message : whatHappened(error)}`);
  });
  socket.write(requestLine({ protocol: TLS_PROTOCOL, ...wanted }));
  const answers = new PassThrough();
  answers.on('error', () => {});
  const reader = new FrameReader((kind, bytes) => {
    if (kind === FRAME_BYTES) answers.write(Uint8Array.from(bytes));
    else if (kind === FRAME_LINE) tell(oneLine(new TextDecoder().decode(bytes)));
  });
  socket.on('data', (bytes) => {
    if (!reader.push(bytes)) socket.destroy();
  });
  socket.on('end', () => answers.end());
  socket.on('close', () => answers.end());
  return {
    answers,
    // Of bytes that were given to a connection that was whole, nobody can say afterwards that they have not come.
    send: (bytes, onLost) => {
      if (socket.writable) return socket.write(bytes);
      onLost();
      return true;
    },
    onRoom: (act) => {
      socket.on('drain', act);
      socket.on('close', act);
    },
    // Its last lines say why.
    hangUp: async () => {
      if (socket.destroyed) return;
      socket.end();
      await Promise.race([
        once(socket, 'close').catch(() => undefined),
        sleep(END_LIMIT_MS, undefined, { ref: false }),
      ]);
      socket.destroy();
    },
    close: () => socket.destroy(),
  };
}

/** A connection to who may be trusted. @throws CarrierError, KeyError, what the system says */
async function connected({ host, port }: ListenAddress, root: string): Promise<TLSSocket> {
  const keys = readKeys(root);
  if (keys.certificate.validToDate.getTime() < Date.now())
    throw new CarrierError('the certificate of this host has expired: domus keys create --replace');
  const socket = connect({
    ...{ ...TLS_OPTIONS, ...contextOptions(keys), host, port, allowHalfOpen: true },
    ...(isIP(host) === 0 ? { servername: host } : {}),
  });
  socket.setNoDelay(true);
  socket.setKeepAlive(true, KEEP_ALIVE_MS);
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new CarrierError(`does not answer for ${CONNECT_LIMIT_MS / 1000} s`)),
      CONNECT_LIMIT_MS,
    );
    socket.once('close', () => reject(new CarrierError('the connection was closed')));
    // From here on, what goes wrong is an end.
    socket.on('error', reject);
    socket.once('secureConnect', resolve);
    socket.once('close', () => clearTimeout(timer));
    socket.once('secureConnect', () => clearTimeout(timer));
  }).catch((error: unknown) => {
    socket.destroy();
    throw error;
  });
  const why = whyNotTrusted(socket.getPeerX509Certificate(), keys.trusted, host);
  if (why === null) return socket;
  socket.end(requestLine({ refusal: why }));
  socket.resume();
  await Promise.race([once(socket, 'close'), sleep(END_LIMIT_MS, undefined, { ref: false })]).catch(() => undefined);
  socket.destroy();
  throw new CarrierError(why);
}
