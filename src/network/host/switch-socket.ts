/**
 * The switches of a host, behind a unix socket: a client says which it wants, as a line of text, and is a port of that one from
 * then on. A switch is made by its first port and goes with its last.
 *
 *   client   "domus-switch 1 NAME\n", then frames (frame-stream.ts, domus)
 *   server   frames
 *
 * A client that does not take its frames loses its own; one that sends what is no frame loses its connection.
 */

import type { Server, Socket } from 'node:net';
import type { Frame, FramePort } from '../frame.ts';
import { DOMUS_FORM, FrameReader, FrameWriter } from '../frame-stream.ts';
import { EthernetSwitch, type SwitchPort } from '../switch.ts';
import { connectStream, type StreamSocket } from './stream-socket.ts';

const GREETING = 'domus-switch 1 ';
/** Of a switch. Longer than any interface's name, and no surprises in it. */
export const SWITCH_NAME = /^[A-Za-z0-9_.:-]{1,32}$/;
const GREETING_BYTES_MAX = GREETING.length + 32 + 1;
const SWITCHES_MAX = 256;
const CLIENTS_MAX = 4096;
const GREETING_TIMEOUT_MS = 10_000;

/** Serves switches to whoever connects to the server's sockets. */
export class SwitchServer {
  readonly #switches = new Map<string, EthernetSwitch>();
  readonly #sockets = new Set<Socket>();

  /** Names of the switches that have ports, and how many each. */
  get switches(): ReadonlyMap<string, number> {
    return new Map([...this.#switches].map(([name, s]) => [name, s.portCount]));
  }

  attachTo(server: Server): void {
    server.on('connection', (socket) => this.serve(socket));
  }

  serve(socket: Socket): void {
    if (this.#sockets.size >= CLIENTS_MAX) {
      socket.destroy();
      return;
    }
    this.#sockets.add(socket);
    socket.on('error', () => {});
    const timer = setTimeout(() => socket.destroy(), GREETING_TIMEOUT_MS);
    timer.unref();
    let greeting = Buffer.alloc(0);
    const greet = (bytes: Buffer): void => {
      greeting = Buffer.concat([greeting, bytes]);
      const end = greeting.indexOf(0x0a);
      if (end < 0 && greeting.length <= GREETING_BYTES_MAX) return;
      clearTimeout(timer);
      socket.off('data', greet);
      const line = greeting.subarray(0, Math.max(0, end)).toString('latin1');
      const name = line.slice(GREETING.length);
      const port = line.startsWith(GREETING) && SWITCH_NAME.test(name) ? this.#attach(name) : null;
      if (port === null) socket.destroy();
      else this.#plug(socket, name, port, greeting.subarray(end + 1));
    };
    socket.on('data', greet);
    socket.on('close', () => {
      clearTimeout(timer);
      this.#sockets.delete(socket);
    });
  }

  #attach(name: string): SwitchPort | null {
    let wanted = this.#switches.get(name);
    if (wanted === undefined) {
      if (this.#switches.size === SWITCHES_MAX) return null;
      wanted = new EthernetSwitch(() => performance.now());
      this.#switches.set(name, wanted);
    }
    return wanted.attach();
  }

  #plug(socket: Socket, name: string, port: SwitchPort, rest: Uint8Array): void {
    const writer = new FrameWriter(
      DOMUS_FORM,
      (bytes, done) => void socket.write(bytes, (error) => error || done()),
      () => port.room(),
    );
    const device: FramePort = {
      send: (frame: Frame) => writer.send(frame),
      flush: () => writer.flush(),
      room: () => {},
    };
    port.connect(device);
    // A switch takes every frame at once.
    const reader = new FrameReader(DOMUS_FORM, (frame) => port.send(frame));
    const take = (bytes: Uint8Array): void => {
      if (!reader.push(bytes)) socket.destroy();
      port.flush();
    };
    socket.on('data', take);
    socket.on('close', () => {
      port.close();
      if (this.#switches.get(name)?.portCount === 0) this.#switches.delete(name);
    });
    if (rest.length > 0) take(rest);
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}

/** A connection to a switch, ready for frames, and paused. */
export async function connectSwitch(path: string, name: string): Promise<StreamSocket> {
  const connection = await connectStream(path);
  connection.socket.write(`${GREETING}${name}\n`);
  return connection;
}
