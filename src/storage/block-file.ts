/**
 * What the disk formats need of the host: a file or block device addressed by bytes, and a way to open one.
 *
 * Nothing here knows Node. `host/` has the implementation over real files; tests have one that records every write.
 * Buffers may be views of shared memory, so that a guest's pages are read and written without a copy.
 */

/** Something that a disk's user can be told: which file, what was expected, what was found. */
export class DiskImageError extends Error {
  override readonly name = 'DiskImageError';
}

/**
 * What others may do with the file while it is open. `exclusive`: read, if this one only reads, and nothing if it writes.
 * `shared`: anything, which is what `w!` in a disk's access mode asks for.
 */
export type Sharing = 'exclusive' | 'shared';

export interface BlockFile {
  /** For messages, and for names that are relative to it. */
  readonly path: string;
  readonly readOnly: boolean;
  /** The size now: it grows with writes behind the end. A block device's size stays. */
  readonly sizeBytes: number;
  /** Fills the buffers from `offset` on. What lies behind the end of the file reads as zeroes. */
  read(offset: number, buffers: readonly Uint8Array[]): Promise<void>;
  /** Writes all buffers one behind the other. The bytes are durable only after `flush`. */
  write(offset: number, buffers: readonly Uint8Array[]): Promise<void>;
  /**
   * The same at once, in this call, where that is likely to be quick. False: it is not done, or only in part; `read` is wanted.
   * Absent where a request always has to wait.
   */
  readNow?(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean;
  writeNow?(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean;
  /** All writes that were answered before this call survive a power cut: fdatasync. */
  flush(): Promise<void>;
  /**
   * Gives the storage of a range back to the host: it reads as zeroes afterwards. It must end within the file.
   * @returns false if the host cannot; nothing has changed then
   */
  punch(offset: number, lengthBytes: number): Promise<boolean>;
  /** Looks how large the file or device is now: others may have made it larger. `sizeBytes` says it then. */
  measure(): Promise<void>;
  /** Sets the size. New bytes read as zeroes. */
  truncate(sizeBytes: number): Promise<void>;
  close(): Promise<void>;
}

export interface OpenFileOptions {
  readonly readOnly: boolean;
  readonly sharing: Sharing;
}

/** How images pack data: RFC 1951 without any header, and RFC 8878. */
export type CompressionType = 'deflate-raw' | 'zstd';

/** What of the host an image needs besides its own file: those it names (backing files, external data), and unpacking. */
export interface Files {
  /** @throws DiskImageError if the file cannot be opened, is no file or block device, or is in use by someone else */
  open(path: string, options: OpenFileOptions): Promise<BlockFile>;
  /** The file that `name` means in an image at `imagePath`: relative names start at the image's folder. */
  resolve(imagePath: string, name: string): string;
  /** One name for each file, whatever the links that lead to it. */
  identity(path: string): Promise<string>;
  /**
   * Unpacks data to at most `sizeBytes`. What follows the packed data is not looked at.
   * @throws Error if the data is not sound or is more
   */
  decompress(type: CompressionType, packed: Uint8Array, sizeBytes: number): Promise<Uint8Array>;
}

const ZEROES = new Uint8Array(1 << 16);

/** The range reads as zeroes afterwards, with as little storage as the host can do with. It must end within the file. */
export async function zeroRange(file: BlockFile, offset: number, lengthBytes: number): Promise<void> {
  if (lengthBytes === 0 || (await file.punch(offset, lengthBytes))) return;
  for (let done = 0; done < lengthBytes; ) {
    const buffers: Uint8Array[] = [];
    for (let planned = 0; planned < 1 << 20 && done + planned < lengthBytes; planned += ZEROES.length) {
      buffers.push(ZEROES.subarray(0, Math.min(ZEROES.length, lengthBytes - done - planned)));
    }
    await file.write(offset + done, buffers);
    done += lengthOf(buffers);
  }
}

/** Bytes in a list of buffers. */
export function lengthOf(buffers: readonly Uint8Array[]): number {
  let length = 0;
  for (const buffer of buffers) length += buffer.length;
  return length;
}

/** The views of `buffers` that hold bytes `start` to `end`, counted over all of them. */
export function sliceBuffers(buffers: readonly Uint8Array[], start: number, end: number): Uint8Array[] {
  const slices: Uint8Array[] = [];
  let at = 0;
  for (const buffer of buffers) {
    const from = Math.max(start - at, 0);
    const to = Math.min(end - at, buffer.length);
    if (from < to) slices.push(from === 0 && to === buffer.length ? buffer : buffer.subarray(from, to));
    at += buffer.length;
    if (at >= end) break;
  }
  return slices;
}
