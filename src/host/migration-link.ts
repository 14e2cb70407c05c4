/** The source's end of the way to a migration's target: bytes there, lines back, and what the user is told. */

import type { Socket } from 'node:net';
import { LineReader } from './control-protocol.ts';
import {
  FRAME_BYTES,
  FRAME_DETAIL,
  FRAME_ENDED,
  FRAME_GO,
  FRAME_HANG_UP,
  FRAME_LINE,
  FRAME_LOST,
  FRAME_RESULT,
  frame,
  textFrame,
} from './migration-frames.ts';

/** The target cannot be reached any more, or says what it should not. One line. */
export class LinkError extends Error {
  override readonly name = 'LinkError';
  /** What was to be sent cannot have left this process. */
  readonly isUnsent: boolean;

  constructor(message: string, isUnsent = false) {
    super(message);
    this.isUnsent = isUnsent;
  }
}

export interface MigrationLink {
  /** Resolves when there is room for more. @throws LinkError */
  send(bytes: Uint8Array): Promise<void>;
  /**
   * Sends a few bytes that must not be taken for lost when they are not, and tells the user `said` with them. `commit` is called before, when all that is
   * left to do is to write: they are out of this process, whatever becomes of it, before anything else happens in it. What `commit` throws counts as unsent.
   * @throws LinkError
   */
  sendFinal(bytes: Uint8Array, said: string, commit: () => void): Promise<void>;
  /** The next line from the target; `what` it should be. @throws LinkError when there is none within the limit */
  line(what: string, limitMs: number): Promise<string>;
  /** How long `send` waits from now on while the target takes nothing. */
  patienceMs: number;
  tell(line: string): void;
  /** For a user who has asked for more. */
  detail(line: string): void;
  /** The target gets nothing more. */
  hangUp(): void;
  result(exitCode: number): void;
}

/** Waiting to be sent: enough to compress the next part meanwhile. */
const QUEUE_BYTES = 2 << 20;
const LINES_MAX = 16;
/** What has to be taken within the time of patience. */
const PIECE_BYTES = 256 << 10;

/** Over a socket to `xl migrate`. `receive` gets its frames. */
export class SocketLink implements MigrationLink {
  readonly #socket: Socket;
  readonly #reader = new LineReader();
  readonly #lines: string[] = [];
  #ended: string | null = null;
  /** What was sent last has not come to the target, nor will it. */
  #isLost = false;
  /** Nothing has been written behind the bytes of `sendFinal`. */
  #endsWithFinal = false;
  #wake: () => void = () => {};
  /** When something was taken last. */
  #movedMs = 0;
  patienceMs: number;

  constructor(socket: Socket, patienceMs: number) {
    this.#socket = socket;
    this.patienceMs = patienceMs;
    socket.on('close', () => this.#end('xl migrate has ended'));
    // Linux says so when the other end is closed before it has read all. What was written in one piece is read in one. Source: unix(7), ECONNRESET;
    // net/unix/af_unix.c unix_release_sock.
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (process.platform === 'linux' && error.code === 'ECONNRESET' && this.#endsWithFinal) this.#isLost = true;
    });
  }

  receive(kind: number, bytes: Uint8Array): void {
    if (kind === FRAME_LOST) this.#isLost = true;
    if (kind === FRAME_ENDED || kind === FRAME_LOST) this.#end(null);
    if (kind !== FRAME_BYTES) return;
    const lines = this.#reader.take(bytes);
    if (lines === null || this.#lines.length + lines.length > LINES_MAX) {
      this.#lines.length = 0;
      this.#end('migration receiver stream contained lines without end');
      return;
    }
    this.#lines.push(...lines);
    this.#wake();
  }

  /** Null: nothing is wrong, but there is no more. */
  #end(why: string | null): void {
    this.#ended ??= why ?? '';
    this.#wake();
  }

  async send(bytes: Uint8Array): Promise<void> {
    if (this.#ended !== null) throw this.#lost('writing to migration stream');
    const onWritten = (): void => {
      this.#movedMs = performance.now();
      this.#wake();
    };
    if (this.#socket.writableLength === 0) this.#movedMs = performance.now();
    for (let at = 0; at < bytes.length; at += PIECE_BYTES)
      this.#socket.write(frame(FRAME_BYTES, bytes.subarray(at, at + PIECE_BYTES)), onWritten);
    const hasRoom = (): boolean => this.#socket.writableLength < QUEUE_BYTES || this.#ended !== null;
    while (!hasRoom()) {
      const leftMs = this.#movedMs + this.patienceMs - performance.now();
      if (leftMs <= 0) throw new LinkError(`the target has taken nothing for ${Math.round(this.patienceMs / 1000)} s`);
      await this.#until(hasRoom, leftMs);
    }
  }

  async sendFinal(bytes: Uint8Array, said: string, commit: () => void): Promise<void> {
    const doing = 'writing GO message to migration stream';
    const late = `the target has taken nothing for ${Math.round(this.patienceMs / 1000)} s`;
    // What waits in this process would be lost with it.
    const isOut = (): boolean => this.#socket.writableLength === 0 || this.#ended !== null;
    if (!(await this.#until(isOut, this.patienceMs))) throw new LinkError(late, true);
    if (this.#ended !== null) throw this.#lost(doing, true);
    const frames = Buffer.concat([textFrame(FRAME_LINE, said), frame(FRAME_GO, bytes)]);
    let outcome: { readonly error: Error | null } | null = null;
    const onWritten = (error?: Error | null): void => {
      outcome = { error: error ?? null };
      this.#wake();
    };
    try {
      commit();
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      throw new LinkError(error.message, true);
    }
    this.#endsWithFinal = true;
    this.#socket.write(frames, onWritten);
    if (!(await this.#until(() => outcome !== null, this.patienceMs))) throw new LinkError(late);
    // So few bytes go whole or not at all.
    if ((outcome as { readonly error: Error | null } | null)?.error) throw this.#lost(doing, true);
  }

  async line(what: string, limitMs: number): Promise<string> {
    const has = await this.#until(() => this.#lines.length > 0 || this.#ended !== null, limitMs);
    const line = this.#lines.shift();
    if (line !== undefined) return line;
    if (!has) throw new LinkError(`no ${what} from the migration receiver for ${Math.round(limitMs / 1000)} s`);
    throw this.#lost(`reading ${what} from migration receiver stream`);
  }

  #lost(doing: string, isUnsent = false): LinkError {
    const why = this.#ended === null || this.#ended === '' ? 'file/stream truncated ' : `${this.#ended}, `;
    return new LinkError(`${why}${doing}`, isUnsent || this.#isLost);
  }

  /** False: not within the limit. */
  async #until(condition: () => boolean, limitMs: number): Promise<boolean> {
    const endMs = performance.now() + limitMs;
    while (!condition()) {
      const leftMs = endMs - performance.now();
      if (leftMs <= 0) return false;
      await new Promise<void>((resolve) => {
        const timer = limitMs === Number.POSITIVE_INFINITY ? undefined : setTimeout(resolve, leftMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return true;
  }

  tell(line: string): void {
    this.#write(textFrame(FRAME_LINE, line));
  }

  detail(line: string): void {
    this.#write(textFrame(FRAME_DETAIL, line));
  }

  hangUp(): void {
    this.#write(frame(FRAME_HANG_UP, new Uint8Array(0)));
  }

  result(exitCode: number): void {
    this.#write(frame(FRAME_RESULT, Uint8Array.of(exitCode)));
  }

  #write(bytes: Uint8Array): void {
    this.#endsWithFinal = false;
    this.#socket.write(bytes, () => this.#wake());
  }
}
