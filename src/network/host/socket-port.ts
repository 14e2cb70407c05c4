/**
 * A network at the other end of a stream socket. When the connection ends, the cable is unplugged: frames are lost, and it is
 * tried again until somebody answers or the port is closed.
 */

import type { Socket } from 'node:net';
import { createLinkStatistics, type Frame, type FramePort, type LinkStatistics, type NetworkEnd } from '../frame.ts';
import { type FrameForm, FrameReader, FrameWriter } from '../frame-stream.ts';
import type { StreamSocket } from './stream-socket.ts';

const RETRY_FIRST_MS = 50;
const RETRY_MAX_MS = 2000;

export interface SocketPortOptions {
  readonly form: FrameForm;
  /** Makes a connection that is ready for frames, and paused. Rejects when nobody answers. */
  readonly open: () => Promise<StreamSocket>;
  /** The connection that is there to begin with. */
  readonly first: StreamSocket;
}

export class SocketPort implements NetworkEnd {
  readonly statistics: LinkStatistics = createLinkStatistics();
  readonly #options: SocketPortOptions;
  #device: FramePort | null = null;
  #socket: Socket | null = null;
  #writer: FrameWriter | null = null;
  #reader: FrameReader | null = null;
  #retryMs = RETRY_FIRST_MS;
  #retryTimer: NodeJS.Timeout | null = null;
  #closed = false;

  constructor(options: SocketPortOptions) {
    this.#options = options;
  }

  connect(device: FramePort): void {
    this.#device = device;
    this.#use(this.#options.first);
  }

  #use(connection: StreamSocket): void {
    const { socket } = connection;
    const device = this.#device!;
    const s = this.statistics;
    const reader = new FrameReader(this.#options.form, (frame) => {
      if (!device.send(frame)) return false;
      s.framesOut++;
      s.bytesOut += frame.length;
      return true;
    });
    this.#socket = socket;
    this.#reader = reader;
    this.#writer = new FrameWriter(
      this.#options.form,
      (bytes, done) => void socket.write(bytes, (error) => error || done()),
      () => device.room(),
    );
    this.#retryMs = RETRY_FIRST_MS;
    connection.take = (bytes) => {
      if (!reader.push(bytes)) socket.destroy();
      device.flush();
      return !reader.isStalled;
    };
    // What goes wrong ends the connection, and 'close' follows.
    socket.on('error', () => {});
    socket.on('close', () => this.#lost(socket));
    if (socket.destroyed) this.#lost(socket);
    else socket.resume();
  }

  #lost(socket: Socket): void {
    if (this.#socket !== socket) return;
    this.#socket = null;
    this.#writer = null;
    this.#reader = null;
    if (this.#closed) return;
    // What was refused is lost now, as everything is until there is a connection.
    this.#device?.room();
    this.#retry();
  }

  #retry(): void {
    this.#retryTimer = setTimeout(() => {
      this.#options.open().then(
        (connection) => {
          if (this.#closed) connection.socket.destroy();
          else this.#use(connection);
        },
        () => {
          if (!this.#closed) this.#retry();
        },
      );
    }, this.#retryMs);
    this.#retryTimer.unref();
    this.#retryMs = Math.min(RETRY_MAX_MS, this.#retryMs * 2);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#retryTimer !== null) clearTimeout(this.#retryTimer);
    // Nobody may have been connected to it.
    if (this.#device === null) this.#options.first.socket.destroy();
    this.#socket?.destroy();
  }

  send(frame: Frame): boolean {
    const writer = this.#writer;
    const s = this.statistics;
    if (writer === null) {
      s.dropped++;
      return true;
    }
    if (!writer.send(frame)) return false;
    s.framesIn++;
    s.bytesIn += frame.length;
    return true;
  }

  flush(): void {
    this.#writer?.flush();
  }

  room(): void {
    const reader = this.#reader;
    const socket = this.#socket;
    if (reader === null || socket === null || !reader.isStalled) return;
    if (!reader.resume()) socket.destroy();
    else if (!reader.isStalled) socket.resume();
    this.#device?.flush();
  }
}
