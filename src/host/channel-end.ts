/**
 * The host's end of a channel: a unix socket that this process listens at, for one program at a time, or a pseudo-terminal.
 *
 * Source: the chardevs that libxl asks QEMU for (`-chardev socket,server=on,wait=off`, `-chardev pty`): behaviour.
 */
import { closeSync, constants, lstatSync, openSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { ReadStream, WriteStream } from 'node:tty';
import type { ChannelEnd } from '../backends/console-channel.ts';
import type { ChannelConfig } from '../toolstack/config/channel.ts';
import { HostError } from './host-error.ts';
import { type HostCalls, hostCalls } from './libc.ts';

/** Bytes that the host's program has not taken, beyond which the guest has to wait. */
const BACKLOG_BYTES = 64 << 10;
/** Programs that wait for the one before to go. */
const WAITING_MAX = 16;

type Guest = Parameters<ChannelEnd['attach']>[0];

export interface OpenChannel {
  readonly end: ChannelEnd;
  /** The pseudo-terminal's path; empty for a socket. */
  readonly tty: string;
}

/** @throws HostError */
export async function openChannelEnd({ name, connection }: ChannelConfig): Promise<OpenChannel> {
  if (connection.kind === 'pty') return PtyEnd.open(name);
  return { end: await SocketEnd.open(name, connection.path), tty: '' };
}

class SocketEnd implements ChannelEnd {
  readonly #server: Server;
  readonly #path: string;
  readonly #sockets: Socket[] = [];
  #guest: Guest = null;
  #paused = false;

  static async open(name: string, path: string): Promise<SocketEnd> {
    const fail = (why: string): HostError => new HostError(`channel ${name}: ${path}: ${why}`);
    // What a process that was killed has left; anything else is not ours to take away.
    const there = lstatSync(path, { throwIfNoEntry: false });
    if (there?.isSocket()) rmSync(path, { force: true });
    else if (there !== undefined) throw fail('a socket is to be made there, but there is something else');
    const server = createServer();
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(path, () => {
          server.off('error', reject);
          resolve();
        });
      });
    } catch (error) {
      throw fail(error instanceof Error ? error.message : String(error));
    }
    return new SocketEnd(server, path);
  }

  private constructor(server: Server, path: string) {
    this.#server = server;
    this.#path = path;
    server.on('error', () => {});
    server.on('connection', (socket) => this.#add(socket));
  }

  #add(socket: Socket): void {
    if (this.#sockets.length > WAITING_MAX) {
      socket.destroy();
      return;
    }
    this.#sockets.push(socket);
    socket.pause();
    socket.on('error', () => {});
    socket.on('data', (bytes) => this.#guest?.input(bytes));
    socket.on('drain', () => this.#guest?.onRoom());
    socket.on('close', () => {
      const wasFirst = this.#sockets[0] === socket;
      this.#sockets.splice(this.#sockets.indexOf(socket), 1);
      if (!wasFirst) return;
      this.#look();
      this.#guest?.onRoom();
    });
    this.#look();
  }

  #look(): void {
    if (this.#guest === null || this.#paused) this.#sockets[0]?.pause();
    else this.#sockets[0]?.resume();
  }

  write(bytes: Uint8Array): void {
    this.#sockets[0]?.write(bytes);
  }

  hasRoom(): boolean {
    return (this.#sockets[0]?.writableLength ?? 0) < BACKLOG_BYTES;
  }

  attach(guest: Guest): void {
    this.#guest = guest;
    this.#look();
  }

  setPaused(paused: boolean): void {
    this.#paused = paused;
    this.#look();
  }

  close(): void {
    this.#guest = null;
    // Node takes the path away.
    this.#server.close();
    for (const socket of this.#sockets) socket.end();
    rmSync(this.#path, { force: true });
  }
}

/** Source: Linux include/uapi/asm-generic/ioctls.h; termbits.h, struct termios. */
const TCGETS = 0x5401;
const TCSETS = 0x5402;
const TIOCGPTN = 0x80045430;
const TIOCSPTLCK = 0x40045431;
const TERMIOS_BYTES = 36;
/** Flags that cfmakeraw(3) clears, and the one that it sets. */
const RAW_INPUT_OFF = 0x5eb;
const RAW_OUTPUT_OFF = 1;
const RAW_LOCAL_OFF = 0x804b;
const RAW_CONTROL_OFF = 0x130;
const CS8 = 0x30;

/** Bytes go through as they are. An errno, or 0. */
function makeRaw(calls: HostCalls, master: number): number {
  const termios = new Uint32Array(TERMIOS_BYTES / 4);
  const bytes = new Uint8Array(termios.buffer);
  const errno = calls.ioctl(master, TCGETS, bytes);
  if (errno !== 0) return errno;
  termios[0] &= ~RAW_INPUT_OFF;
  termios[1] &= ~RAW_OUTPUT_OFF;
  termios[2] = (termios[2] & ~RAW_CONTROL_OFF) | CS8;
  termios[3] &= ~RAW_LOCAL_OFF;
  return calls.ioctl(master, TCSETS, bytes);
}

class PtyEnd implements ChannelEnd {
  readonly #reader: ReadStream;
  readonly #writer: WriteStream;
  /** Held open, so that a program may come and go. */
  readonly #terminal: number;
  #guest: Guest = null;
  #paused = false;

  static open(name: string): OpenChannel {
    const fail = (why: string): HostError => new HostError(`channel ${name}: no pseudo-terminal: ${why}`);
    const calls = hostCalls();
    if (calls === null) throw fail('connection=pty needs Linux and the package koffi; use connection=socket');
    const flags = constants.O_RDWR | constants.O_NOCTTY;
    let master = -1;
    try {
      master = openSync('/dev/ptmx', flags);
      const word = new Uint32Array(1);
      const bytes = new Uint8Array(word.buffer);
      const errno =
        calls.ioctl(master, TIOCSPTLCK, bytes) || calls.ioctl(master, TIOCGPTN, bytes) || makeRaw(calls, master);
      if (errno !== 0) throw fail(`errno ${errno}`);
      const tty = `/dev/pts/${word[0]}`;
      return { end: new PtyEnd(master, openSync(tty, flags)), tty };
    } catch (error) {
      if (master >= 0) closeSync(master);
      if (error instanceof HostError) throw error;
      throw fail(error instanceof Error ? error.message : String(error));
    }
  }

  private constructor(master: number, terminal: number) {
    this.#terminal = terminal;
    this.#reader = new ReadStream(master);
    this.#writer = new WriteStream(master);
    this.#reader.pause();
    this.#reader.on('error', () => {});
    this.#writer.on('error', () => {});
    this.#reader.on('data', (bytes) => this.#guest?.input(bytes));
    this.#writer.on('drain', () => this.#guest?.onRoom());
  }

  #look(): void {
    if (this.#guest === null || this.#paused) this.#reader.pause();
    else this.#reader.resume();
  }

  write(bytes: Uint8Array): void {
    this.#writer.write(bytes);
  }

  hasRoom(): boolean {
    return this.#writer.writableLength < BACKLOG_BYTES;
  }

  attach(guest: Guest): void {
    this.#guest = guest;
    this.#look();
  }

  setPaused(paused: boolean): void {
    this.#paused = paused;
    this.#look();
  }

  close(): void {
    this.#guest = null;
    this.#writer.destroy();
    this.#reader.destroy();
    closeSync(this.#terminal);
  }
}
