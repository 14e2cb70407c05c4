/**
 * A disk that someone else serves by NBD: fixed newstyle negotiation, then simple replies.
 *
 * Requests go out as they come and are answered in any order; each carries a number of its own. When the connection breaks, all
 * that wait fail, and so does everything later: what the server had not been told to flush may be lost.
 * Source: NetworkBlockDevice, doc/proto.md.
 */
import { DiskImageError, lengthOf, sliceBuffers } from './block-file.ts';
import type { DiskImage } from './disk-image.ts';
import { checkRange } from './range.ts';

/** A connection to the server, made and ready. */
export interface NbdLink {
  /** For messages. */
  readonly name: string;
  /** Sends the buffers; they are not touched after the promise is fulfilled. */
  send(buffers: readonly Uint8Array[]): Promise<void>;
  onData: (bytes: Uint8Array) => void;
  onEnd: (reason: string) => void;
  close(): Promise<void>;
}

const NBDMAGIC = 0x4e42444d41474943n;
const IHAVEOPT = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
const REQUEST_MAGIC = 0x25609513;
const REPLY_MAGIC = 0x67446698;
const FLAG_FIXED_NEWSTYLE = 1;
const OPT_GO = 7;
const REP_ACK = 1;
const REP_INFO = 3;
const REP_ERROR = 2 ** 31;
const INFO_EXPORT = 0;
const TRANSMISSION = { READ_ONLY: 2, SEND_FLUSH: 4, SEND_TRIM: 32, SEND_WRITE_ZEROES: 64 } as const;
const COMMAND = { READ: 0, WRITE: 1, DISCONNECT: 2, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;
const REPLY_BYTES = 16;
/** Servers must take this much. */
const REQUEST_BYTES_MAX = 32 << 20;
const OPTION_REPLY_BYTES_MAX = 1 << 16;

/** Hands out what comes in, so many bytes at a time, or straight into the buffers of a read. */
class Receiver {
  #link: NbdLink;
  #chunks: Uint8Array[] = [];
  #available = 0;
  #wake: () => void = () => {};
  #ended: string | undefined;

  constructor(link: NbdLink) {
    this.#link = link;
    link.onData = (bytes) => {
      this.#chunks.push(bytes);
      this.#available += bytes.length;
      this.#wake();
    };
    link.onEnd = (reason) => {
      this.#ended = reason;
      this.#wake();
    };
  }

  async take(lengthBytes: number): Promise<DataView> {
    const bytes = new Uint8Array(lengthBytes);
    await this.fill([bytes]);
    return new DataView(bytes.buffer);
  }

  async fill(buffers: readonly Uint8Array[]): Promise<void> {
    for (const buffer of buffers) {
      for (let done = 0; done < buffer.length; ) {
        while (this.#available === 0) {
          if (this.#ended !== undefined)
            throw new DiskImageError(`${this.#link.name}: the connection ended: ${this.#ended}`);
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
        }
        const chunk = this.#chunks[0]!;
        const part = chunk.subarray(0, buffer.length - done);
        buffer.set(part, done);
        done += part.length;
        this.#available -= part.length;
        if (part.length === chunk.length) this.#chunks.shift();
        else this.#chunks[0] = chunk.subarray(part.length);
      }
    }
  }
}

interface Pending {
  /** Of a read. */
  readonly buffers: readonly Uint8Array[];
  readonly done: () => void;
  readonly failed: (error: Error) => void;
}

/**
 * Negotiates and opens an export.
 *
 * @throws DiskImageError if the server is none, has no such export, or serves it for reading only when it is to be written
 */
export async function openNbd(link: NbdLink, exportName: string, readOnly: boolean): Promise<NbdImage> {
  const receiver = new Receiver(link);
  const fail = (message: string): never => {
    throw new DiskImageError(`${link.name}: ${message}`);
  };
  const greeting = await receiver.take(18);
  if (greeting.getBigUint64(0) !== NBDMAGIC || greeting.getBigUint64(8) !== IHAVEOPT)
    fail('not an NBD server of the new style');
  if ((greeting.getUint16(16) & FLAG_FIXED_NEWSTYLE) === 0) fail('an NBD server of before 2011');
  const name = new TextEncoder().encode(exportName);
  const request = new DataView(new ArrayBuffer(4 + 16 + 4 + name.length + 2));
  request.setUint32(0, FLAG_FIXED_NEWSTYLE);
  request.setBigUint64(4, IHAVEOPT);
  request.setUint32(12, OPT_GO);
  request.setUint32(16, 4 + name.length + 2);
  request.setUint32(20, name.length);
  new Uint8Array(request.buffer).set(name, 24);
  await link.send([new Uint8Array(request.buffer)]);
  let sizeBytes = -1;
  let flags = 0;
  for (;;) {
    const reply = await receiver.take(20);
    const type = reply.getUint32(12);
    const lengthBytes = reply.getUint32(16);
    if (reply.getBigUint64(0) !== OPTION_REPLY_MAGIC || lengthBytes > OPTION_REPLY_BYTES_MAX)
      fail('an answer that makes no sense');
    const content = await receiver.take(lengthBytes);
    if (type >= REP_ERROR) {
      const words = new TextDecoder().decode(content);
      fail(`refuses export "${exportName}": ${words || `error ${type - REP_ERROR}`}`);
    }
    if (type === REP_INFO && lengthBytes >= 12 && content.getUint16(0) === INFO_EXPORT) {
      sizeBytes = Number(content.getBigUint64(2));
      flags = content.getUint16(10);
    }
    if (type === REP_ACK) break;
  }
  if (sizeBytes < 0 || !Number.isSafeInteger(sizeBytes)) fail(`a disk of ${sizeBytes} bytes`);
  if (!readOnly && (flags & TRANSMISSION.READ_ONLY) !== 0) fail('serves the disk for reading only');
  return new NbdImage(link, receiver, { sizeBytes, flags, readOnly });
}

export class NbdImage implements DiskImage {
  readonly format = 'nbd';
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly #link: NbdLink;
  readonly #flags: number;
  readonly #pending = new Map<number, Pending>();
  #nextCookie = 1;
  #broken: Error | undefined;

  constructor(link: NbdLink, receiver: Receiver, disk: { sizeBytes: number; flags: number; readOnly: boolean }) {
    this.#link = link;
    this.sizeBytes = disk.sizeBytes;
    this.readOnly = disk.readOnly;
    this.#flags = disk.flags;
    this.#receive(receiver).catch((error: unknown) => {
      this.#broken = error instanceof Error ? error : new DiskImageError(`${link.name}: ${String(error)}`);
      for (const { failed } of this.#pending.values()) failed(this.#broken);
      this.#pending.clear();
    });
  }

  async #receive(receiver: Receiver): Promise<never> {
    for (;;) {
      const reply = await receiver.take(REPLY_BYTES);
      const cookie = Number(reply.getBigUint64(8));
      const pending = this.#pending.get(cookie);
      if (reply.getUint32(0) !== REPLY_MAGIC || pending === undefined) {
        throw new DiskImageError(`${this.#link.name}: an answer that nobody asked for`);
      }
      const errno = reply.getUint32(4);
      // An answer with an error has no data.
      if (errno === 0) await receiver.fill(pending.buffers);
      this.#pending.delete(cookie);
      if (errno === 0) pending.done();
      else pending.failed(new DiskImageError(`${this.#link.name}: the server failed with errno ${errno}`));
    }
  }

  async #request(
    command: number,
    offset: number,
    lengthBytes: number,
    out: readonly Uint8Array[] = [],
    into: readonly Uint8Array[] = [],
  ): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken;
    const cookie = this.#nextCookie++;
    const answered = new Promise<void>((done, failed) => {
      this.#pending.set(cookie, { buffers: into, done, failed });
    });
    // Whoever awaits it may still be sending when it fails.
    answered.catch(() => {});
    await this.#link.send([requestOf(command, cookie, offset, lengthBytes), ...out]);
    await answered;
  }

  async #inPieces(lengthBytes: number, piece: (from: number, to: number) => Promise<void>): Promise<void> {
    for (let done = 0; done < lengthBytes; done += REQUEST_BYTES_MAX) {
      await piece(done, Math.min(lengthBytes, done + REQUEST_BYTES_MAX));
    }
  }

  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    checkRange(this.#link.name, this, 'read', offset, lengthBytes);
    await this.#inPieces(lengthBytes, (from, to) =>
      this.#request(COMMAND.READ, offset + from, to - from, [], sliceBuffers(buffers, from, to)),
    );
  }

  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    checkRange(this.#link.name, this, 'write', offset, lengthBytes);
    await this.#inPieces(lengthBytes, (from, to) =>
      this.#request(COMMAND.WRITE, offset + from, to - from, sliceBuffers(buffers, from, to)),
    );
  }

  async flush(): Promise<void> {
    if (!this.readOnly && (this.#flags & TRANSMISSION.SEND_FLUSH) !== 0) await this.#request(COMMAND.FLUSH, 0, 0);
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#link.name, this, 'write', offset, lengthBytes);
    if ((this.#flags & TRANSMISSION.SEND_TRIM) === 0) return;
    await this.#inPieces(lengthBytes, (from, to) => this.#request(COMMAND.TRIM, offset + from, to - from));
  }

  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#link.name, this, 'write', offset, lengthBytes);
    const canZero = (this.#flags & TRANSMISSION.SEND_WRITE_ZEROES) !== 0;
    await this.#inPieces(lengthBytes, (from, to) =>
      canZero
        ? this.#request(COMMAND.WRITE_ZEROES, offset + from, to - from)
        : this.write(offset + from, [new Uint8Array(to - from)]),
    );
  }

  resize(): Promise<void> {
    return Promise.reject(new DiskImageError(`${this.#link.name}: a disk served by NBD cannot be resized`));
  }

  async close(): Promise<void> {
    try {
      if (this.#broken === undefined) {
        await this.flush();
        await this.#link.send([requestOf(COMMAND.DISCONNECT, this.#nextCookie++, 0, 0)]);
      }
    } finally {
      await this.#link.close();
    }
  }
}

function requestOf(command: number, cookie: number, offset: number, lengthBytes: number): Uint8Array {
  const request = new DataView(new ArrayBuffer(28));
  request.setUint32(0, REQUEST_MAGIC);
  request.setUint16(6, command);
  request.setBigUint64(8, BigInt(cookie));
  request.setBigUint64(16, BigInt(offset));
  request.setUint32(24, lengthBytes);
  return new Uint8Array(request.buffer);
}
