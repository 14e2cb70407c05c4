/** A disk or a part of it, read in small pieces, with the pieces last used kept. */
import type { DiskImage } from '../../storage/disk-image.ts';

/** The disk cannot be booted from. `message` says what was expected and found. */
export class BootDiskError extends Error {
  override readonly name = 'BootDiskError';
}

const PIECE_BYTES = 1 << 16;
const PIECES_MAX = 64;

export class Volume {
  readonly sizeBytes: number;
  readonly #disk: Pick<DiskImage, 'sizeBytes' | 'read'>;
  readonly #start: number;
  /** By index on the volume, the longest kept first. */
  readonly #pieces = new Map<number, Uint8Array>();

  constructor(disk: Pick<DiskImage, 'sizeBytes' | 'read'>, start = 0, sizeBytes = disk.sizeBytes - start) {
    this.#disk = disk;
    this.#start = Math.min(start, disk.sizeBytes);
    this.sizeBytes = Math.max(0, Math.min(sizeBytes, disk.sizeBytes - this.#start));
  }

  /** @throws BootDiskError if the bytes are not on the volume */
  async read(offset: number, lengthBytes: number): Promise<Uint8Array> {
    if (!Number.isSafeInteger(offset) || offset < 0 || lengthBytes < 0 || offset + lengthBytes > this.sizeBytes) {
      throw new BootDiskError(
        `${lengthBytes} bytes at ${offset} lie behind the end of the volume (${this.sizeBytes} bytes)`,
      );
    }
    const bytes = new Uint8Array(lengthBytes);
    if (lengthBytes >= PIECE_BYTES) {
      await this.#disk.read(this.#start + offset, [bytes]);
      return bytes;
    }
    for (let done = 0; done < lengthBytes; ) {
      const index = Math.floor((offset + done) / PIECE_BYTES);
      const piece = await this.#piece(index);
      const from = offset + done - index * PIECE_BYTES;
      const part = piece.subarray(from, from + lengthBytes - done);
      bytes.set(part, done);
      done += part.length;
    }
    return bytes;
  }

  async view(offset: number, lengthBytes: number): Promise<DataView> {
    return new DataView((await this.read(offset, lengthBytes)).buffer);
  }

  async #piece(index: number): Promise<Uint8Array> {
    const kept = this.#pieces.get(index);
    if (kept !== undefined) return kept;
    const offset = index * PIECE_BYTES;
    const piece = new Uint8Array(Math.min(PIECE_BYTES, this.sizeBytes - offset));
    await this.#disk.read(this.#start + offset, [piece]);
    if (this.#pieces.size >= PIECES_MAX) this.#pieces.delete(this.#pieces.keys().next().value!);
    this.#pieces.set(index, piece);
    return piece;
  }
}
