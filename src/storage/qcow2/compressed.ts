/**
 * Compressed clusters, which are only ever read: writing one gives the disk an ordinary cluster.
 *
 * A few unpacked clusters are kept, because a guest reads a cluster of 64 KiB in pieces of 4 KiB.
 */
import type { BlockFile, CompressionType, Files } from '../block-file.ts';
import { DamagedImageError } from './damage.ts';

const KEPT_BYTES_MAX = 1 << 20;

export class CompressedClusters {
  readonly #file: BlockFile;
  readonly #clusterBytes: number;
  readonly #type: CompressionType;
  readonly #decompress: Files['decompress'];
  /** By offset in the file, the longest kept first. */
  readonly #kept = new Map<number, Promise<Uint8Array>>();

  constructor(file: BlockFile, clusterBytes: number, type: CompressionType, decompress: Files['decompress']) {
    this.#file = file;
    this.#clusterBytes = clusterBytes;
    this.#type = type;
    this.#decompress = decompress;
  }

  /** The cluster's content. */
  read(offset: number, compressedBytes: number): Promise<Uint8Array> {
    const kept = this.#kept.get(offset);
    if (kept !== undefined) return kept;
    const content = this.#unpack(offset, compressedBytes);
    this.#kept.set(offset, content);
    if (this.#kept.size * this.#clusterBytes > Math.max(KEPT_BYTES_MAX, 2 * this.#clusterBytes)) {
      this.#kept.delete(this.#kept.keys().next().value!);
    }
    content.catch(() => {
      if (this.#kept.get(offset) === content) this.#kept.delete(offset);
    });
    return content;
  }

  forgetAll(): void {
    this.#kept.clear();
  }

  async #unpack(offset: number, compressedBytes: number): Promise<Uint8Array> {
    if (offset >= this.#file.sizeBytes) {
      throw new DamagedImageError(
        this.#file.path,
        `compressed data at ${offset}, behind the end of the file (${this.#file.sizeBytes} bytes)`,
      );
    }
    const packed = new Uint8Array(compressedBytes);
    await this.#file.read(offset, [packed]);
    let content: Uint8Array;
    try {
      content = await this.#decompress(this.#type, packed, this.#clusterBytes);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new DamagedImageError(this.#file.path, `compressed data at ${offset} cannot be unpacked (${reason})`);
    }
    if (content.length !== this.#clusterBytes) {
      throw new DamagedImageError(
        this.#file.path,
        `compressed data at ${offset} has ${content.length} bytes, expected ${this.#clusterBytes}`,
      );
    }
    return content;
  }
}
