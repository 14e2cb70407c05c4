/** Saved domains as files of this host: zstd and CRC-32 of Node, and files that are there whole or not at all. */

import { createReadStream, readFileSync } from 'node:fs';
import { type FileHandle, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { constants, crc32, zstdCompress, zstdCompressSync, zstdDecompress, zstdDecompressSync } from 'node:zlib';
import { syncFolder } from '../storage/host/overlay.ts';
import type { Codec, Sink, Source } from '../toolstack/saved/save-file.ts';
import { partialPath } from './state-dir.ts';

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);
/** The quickest: what a save waits for. */
const PARAMS = { [constants.ZSTD_c_compressionLevel]: 1 };

/**
 * What comes out, in one piece. In pieces of 16 KiB, as Node has them otherwise, each is a turn of another thread: 162 ms instead of 94 to
 * compress 32 MiB in parts of 4, 82 instead of 32 to decompress them.
 */
const chunkFor = (bytes: number): number => Math.max(bytes + 512, 1 << 10);

/** What is smaller takes less time than another thread's answer. */
const SMALL_BYTES = 256 << 10;

export const NODE_CODEC: Codec = {
  crc32: (bytes) => crc32(bytes),
  compress: async (bytes) => {
    const chunkSize = chunkFor(bytes.length + (bytes.length >> 7));
    const options = { params: PARAMS, chunkSize, pledgedSrcSize: bytes.length };
    return bytes.length <= SMALL_BYTES ? zstdCompressSync(bytes, options) : await compress(bytes, options);
  },
  decompress: async (bytes, bytesMax) => {
    const options = { maxOutputLength: Math.max(bytesMax, 1), chunkSize: chunkFor(bytesMax) };
    return bytesMax <= SMALL_BYTES ? zstdDecompressSync(bytes, options) : await decompress(bytes, options);
  },
};

/** For what is read at once, by another process of this host. */
export const PLAIN_CODEC: Codec = { ...NODE_CODEC, compress: async (bytes) => bytes };

/** What is to be so from the moment on at which a file is there. */
export interface BeforeShown {
  /** All of it is written; it appears next. */
  leave(): Promise<void>;
  /** It does not appear. */
  comeBack(): void;
}

/**
 * Calls `body` with where the bytes go. A regular file appears under its name, and on the disk, when `body` has succeeded; what was
 * there stays until then. A symbolic link leads where it did. Anything else, a pipe or a device, is written to as it is.
 */
export async function writeWhole(
  path: string,
  body: (sink: Sink) => Promise<void>,
  before: BeforeShown | null = null,
): Promise<void> {
  const isFile = await isRegular(path);
  const real = isFile ? await targetOf(path) : path;
  const partial = isFile ? partialPath(real, process.pid) : real;
  // Nobody else may read the memory of a guest.
  const file = await open(partial, 'w', 0o600);
  try {
    await body((bytes) => writeAll(file, bytes));
    if (isFile) await file.sync();
    await file.close();
    await leaveAndShow(before, async () => {
      if (isFile) await show(partial, real);
    });
  } catch (error) {
    await file.close();
    if (isFile) await rm(partial, { force: true });
    throw error;
  }
}

const FOLDER_NOT_SYNCED: ReadonlySet<string | undefined> = new Set([
  'EACCES',
  'EPERM',
  'EINVAL',
  'ENOTSUP',
  'EOPNOTSUPP',
  'ENOSYS',
]);

async function leaveAndShow(before: BeforeShown | null, show: () => Promise<void>): Promise<void> {
  try {
    await before?.leave();
    await show();
  } catch (error) {
    before?.comeBack();
    throw error;
  }
}

async function show(partial: string, path: string): Promise<void> {
  await rename(partial, path);
  try {
    await syncFolder(dirname(path));
  } catch (error) {
    // It may be written to but not read, or lie on a file system that does not do this for folders.
    if (FOLDER_NOT_SYNCED.has((error as NodeJS.ErrnoException).code)) return;
    // Whoever wrote it goes on as if it were not there.
    await rm(path, { force: true });
    throw error;
  }
}

/** Of a link that leads nowhere: itself. */
async function targetOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch {
    return path;
  }
}

async function isRegular(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isFile();
  } catch {
    return true;
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at)).bytesWritten;
}

export interface OpenSource {
  readonly source: Source;
  close(): void;
}

/** Reads a file, a pipe or a device from its start. What is wrong with it comes out of the source. */
export function openSource(path: string): OpenSource {
  const stream = createReadStream(path, { highWaterMark: 1 << 20 });
  return {
    source: sourceOf(stream.iterator() as AsyncIterableIterator<Uint8Array>).source,
    close: () => stream.destroy(),
  };
}

/** Reads what is there at once, without letting go of this thread: a few MiB. */
export function sourceOfFile(path: string): Source {
  const file = readFileSync(path);
  // A Buffer cuts other pieces than its type says.
  const bytes = new Uint8Array(file.buffer, file.byteOffset, file.length);
  let at = 0;
  return async (count) => {
    const part = bytes.subarray(at, at + count);
    at += part.length;
    return part;
  };
}

/** Reads what comes in chunks of any size. */
export function sourceOf(chunks: AsyncIterableIterator<Uint8Array>): Pick<OpenSource, 'source'> {
  let rest: Uint8Array = new Uint8Array(0);
  return {
    source: async (count) => {
      const bytes = new Uint8Array(count);
      let filled = 0;
      while (filled < count) {
        if (rest.length === 0) {
          const next = await chunks.next();
          if (next.done === true) break;
          rest = next.value;
        }
        const part = rest.subarray(0, count - filled);
        bytes.set(part, filled);
        filled += part.length;
        rest = rest.subarray(part.length);
      }
      return bytes.subarray(0, filled);
    },
  };
}
