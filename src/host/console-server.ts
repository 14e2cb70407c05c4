/**
 * A domain's console for whoever connects to its socket: raw bytes both ways. Who comes later gets the last of what was
 * written first. All viewers see all output, and what any of them types goes to the guest. Everything is also in a log.
 *
 * It outlives a restart of the domain: viewers stay, the socket is another one.
 */
import type { Socket } from 'node:net';
import type { ConsoleEnds } from './console-ends.ts';
import { type Listen, listenLocally } from './local-socket.ts';
import type { LogFile } from './log-file.ts';

const SCROLL_BACK_BYTES = 256 << 10;
/** What a viewer may be behind; beyond, it loses output and is told so. */
const BACKLOG_BYTES_MAX = 4 << 20;
const VIEWERS_MAX = 64;

export class ConsoleServer implements ConsoleEnds {
  readonly #log: LogFile;
  readonly #recent: Uint8Array[] = [];
  #recentBytes = 0;
  /** Bytes that each has lost since it last kept up. */
  readonly #viewers = new Map<Socket, number>();
  #server: { close(): void } | null = null;
  #onInput: ((bytes: Uint8Array) => void) | null = null;

  constructor(log: LogFile) {
    this.#log = log;
  }

  /** From now on it is this path where viewers find the console. */
  async listen(path: string, listen: Listen = listenLocally): Promise<void> {
    this.#server?.close();
    this.#server = await listen(path, (socket) => this.#add(socket));
  }

  write(bytes: Uint8Array): void {
    const copy = Uint8Array.from(bytes);
    this.#log.add(copy);
    this.#recent.push(copy);
    this.#recentBytes += copy.length;
    while (this.#recentBytes - this.#recent[0].length >= SCROLL_BACK_BYTES)
      this.#recentBytes -= this.#recent.shift()?.length ?? 0;
    for (const [socket, lost] of this.#viewers) {
      if (socket.writableLength > BACKLOG_BYTES_MAX) this.#viewers.set(socket, lost + copy.length);
      else {
        if (lost > 0) socket.write(`\r\n[domus: ${lost} bytes of output are not shown]\r\n`);
        this.#viewers.set(socket, 0);
        socket.write(copy);
      }
    }
  }

  onInput(handler: (bytes: Uint8Array) => void): void {
    this.#onInput = handler;
  }

  /** Nobody can look any more. Resolves when all have been given what they were still owed, or do not take it. */
  async finish(limitMs: number): Promise<void> {
    this.#server?.close();
    const ended = [...this.#viewers.keys()].map(
      (socket) =>
        new Promise<void>((resolve) => {
          socket.once('close', () => resolve());
          socket.end();
          socket.setTimeout(limitMs, () => socket.destroy());
        }),
    );
    await Promise.all(ended);
  }

  close(): void {
    this.#server?.close();
    for (const socket of this.#viewers.keys()) socket.destroy();
  }

  #add(socket: Socket): void {
    if (this.#viewers.size >= VIEWERS_MAX) {
      socket.destroy();
      return;
    }
    socket.on('error', () => {});
    socket.on('data', (bytes) => this.#onInput?.(bytes));
    socket.on('close', () => this.#viewers.delete(socket));
    for (const bytes of this.#recent) socket.write(bytes);
    this.#viewers.set(socket, 0);
  }
}
