/** The raw format: the file is the disk, byte for byte. A block device works as well. */
import { type BlockFile, DiskImageError, lengthOf, zeroRange } from './block-file.ts';
import type { DiskImage } from './disk-image.ts';
import { checkRange } from './range.ts';

export class RawImage implements DiskImage {
  readonly format: string = 'raw';
  readonly #file: BlockFile;
  #sizeBytes: number;

  /** `sizeBytes`: of the disk, if the file holds more behind it. */
  constructor(file: BlockFile, sizeBytes: number = file.sizeBytes) {
    this.#file = file;
    this.#sizeBytes = sizeBytes;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get readOnly(): boolean {
    return this.#file.readOnly;
  }

  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    checkRange(this.#file.path, this, 'read', offset, lengthOf(buffers));
    await this.#file.read(offset, buffers);
  }

  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    checkRange(this.#file.path, this, 'write', offset, lengthOf(buffers));
    await this.#file.write(offset, buffers);
  }

  readNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    return offset + lengthBytes <= this.#sizeBytes && this.#file.readNow?.(offset, buffers, lengthBytes) === true;
  }

  writeNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    if (this.readOnly || offset + lengthBytes > this.#sizeBytes) return false;
    return this.#file.writeNow?.(offset, buffers, lengthBytes) === true;
  }

  async flush(): Promise<void> {
    if (!this.readOnly) await this.#file.flush();
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    if (lengthBytes > 0) await this.#file.punch(offset, lengthBytes);
  }

  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    await zeroRange(this.#file, offset, lengthBytes);
  }

  async resize(sizeBytes: number): Promise<void> {
    if (this.readOnly) throw new DiskImageError(`${this.#file.path}: cannot resize: it is open for reading only`);
    await this.#file.truncate(sizeBytes);
    this.#sizeBytes = this.#file.sizeBytes;
  }

  /** For a format that adds to this one: the disk has this size now, and so has its place in the file. */
  protected setSize(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes;
  }

  async measure(): Promise<void> {
    await this.#file.measure();
    this.#sizeBytes = this.#file.sizeBytes;
  }

  async close(): Promise<void> {
    try {
      await this.flush();
    } finally {
      await this.#file.close();
    }
  }
}
