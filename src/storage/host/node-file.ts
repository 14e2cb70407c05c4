/**
 * Files and block devices of the host, over Node's fs.
 *
 * Node's vectored calls take views of shared memory as they are and hand their addresses to preadv(2) and pwritev(2), so
 * a guest's pages are never copied here. A call may do less than it was asked for (IOV_MAX is 1024); what is left is
 * asked for again.
 */
import {
  close,
  constants,
  fdatasync,
  fstat,
  ftruncate,
  open,
  readSync,
  readv,
  readvSync,
  writev,
  writevSync,
} from 'node:fs';
import { realpath } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { promisify } from 'node:util';
import {
  type BlockFile,
  DiskImageError,
  type Files,
  lengthOf,
  type OpenFileOptions,
  sliceBuffers,
} from '../block-file.ts';
import { decompress } from './decompress.ts';
import { linuxCalls } from './libc.ts';
import { lockImage, type Unlock } from './lock.ts';
import { Pace } from './pace.ts';

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
/** Of more than this, the copying takes longer than the way to another thread. */
const NOW_BYTES_MAX = 1 << 17;

const closeFile = promisify(close);
const syncData = promisify(fdatasync);
const statFile = promisify(fstat);
const truncateFile = promisify(ftruncate);
const openFile = promisify(open);

function readOnce(fd: number, offset: number, buffers: readonly Uint8Array[]): Promise<number> {
  return new Promise((done, failed) => {
    readv(fd, buffers as Uint8Array[], offset, (error, count) => (error ? failed(error) : done(count)));
  });
}

function writeOnce(fd: number, offset: number, buffers: readonly Uint8Array[]): Promise<number> {
  return new Promise((done, failed) => {
    writev(fd, buffers as Uint8Array[], offset, (error, count) => (error ? failed(error) : done(count)));
  });
}

class NodeFile implements BlockFile {
  readonly path: string;
  readonly readOnly: boolean;
  readonly #fd: number;
  readonly #isDevice: boolean;
  readonly #unlock: Unlock;
  readonly #readPace = new Pace(() => performance.now());
  readonly #writePace = new Pace(() => performance.now());
  #sizeBytes: number;
  #punches = linuxCalls() !== undefined;

  constructor(
    path: string,
    file: { readonly fd: number; readonly isDevice: boolean; readonly sizeBytes: number },
    readOnly: boolean,
    unlock: Unlock,
  ) {
    this.path = path;
    this.readOnly = readOnly;
    this.#fd = file.fd;
    this.#isDevice = file.isDevice;
    this.#sizeBytes = file.sizeBytes;
    this.#unlock = unlock;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    let done = 0;
    let rest = buffers;
    while (done < lengthBytes) {
      const count = await readOnce(this.#fd, offset + done, rest);
      if (count === 0) {
        for (const buffer of rest) buffer.fill(0);
        return;
      }
      done += count;
      if (done < lengthBytes) rest = sliceBuffers(buffers, done, lengthBytes);
    }
  }

  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    let done = 0;
    let rest = buffers;
    while (done < lengthBytes) {
      const count = await writeOnce(this.#fd, offset + done, rest);
      if (count === 0) throw new DiskImageError(`${this.path}: nothing could be written at ${offset + done}`);
      done += count;
      if (done < lengthBytes) rest = sliceBuffers(buffers, done, lengthBytes);
    }
    if (!this.#isDevice) this.#sizeBytes = Math.max(this.#sizeBytes, offset + lengthBytes);
  }

  readNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    if (lengthBytes > NOW_BYTES_MAX || !this.#readPace.begin()) return false;
    try {
      return readvSync(this.#fd, buffers as Uint8Array[], offset) === lengthBytes;
    } catch {
      // Whoever waits for it is told why.
      return false;
    } finally {
      this.#readPace.end();
    }
  }

  writeNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    // A file that grows may need a while, and knows its size only when it has grown.
    if (lengthBytes > NOW_BYTES_MAX || offset + lengthBytes > this.#sizeBytes || !this.#writePace.begin()) return false;
    try {
      return writevSync(this.#fd, buffers as Uint8Array[], offset) === lengthBytes;
    } catch {
      return false;
    } finally {
      this.#writePace.end();
    }
  }

  async flush(): Promise<void> {
    await syncData(this.#fd);
  }

  async punch(offset: number, lengthBytes: number): Promise<boolean> {
    const calls = this.#punches ? linuxCalls() : undefined;
    if (calls === undefined) return false;
    // A file system or device that cannot will not learn it.
    this.#punches =
      (await calls.fallocate(this.#fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, lengthBytes)) === 0;
    return this.#punches;
  }

  async measure(): Promise<void> {
    this.#sizeBytes = this.#isDevice ? deviceSize(this.#fd) : (await statFile(this.#fd)).size;
  }

  async truncate(sizeBytes: number): Promise<void> {
    if (this.#isDevice) {
      throw new DiskImageError(`${this.path}: is a block device of ${this.#sizeBytes} bytes and cannot be resized`);
    }
    await truncateFile(this.#fd, sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  async close(): Promise<void> {
    this.#unlock();
    await closeFile(this.#fd);
  }
}

/** A block device has no size in stat(2), and seeking is not in Node's fs: the last byte that can be read says it. */
function deviceSize(fd: number): number {
  const byte = new Uint8Array(1);
  const canRead = (offset: number): boolean => {
    try {
      return readSync(fd, byte, 0, 1, offset) === 1;
    } catch {
      return false;
    }
  };
  if (!canRead(0)) return 0;
  let low = 0;
  let high = 1;
  while (canRead(high)) {
    low = high;
    high *= 2;
    if (high > Number.MAX_SAFE_INTEGER / 2) break;
  }
  while (high - low > 1) {
    const middle = low + Math.floor((high - low) / 2);
    if (canRead(middle)) low = middle;
    else high = middle;
  }
  return high;
}

function reasonOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  const reasons: Readonly<Record<string, string>> = {
    ENOENT: 'there is no such file',
    EACCES: 'permission denied',
    EPERM: 'permission denied',
    EROFS: 'its file system is mounted for reading only',
    EISDIR: 'is a directory; expected a file or a block device',
    ENXIO: 'expected a file or a block device',
  };
  return reasons[code ?? ''] ?? message;
}

/** The files of this host. */
export const hostFiles: Files = {
  async open(path: string, { readOnly, sharing }: OpenFileOptions): Promise<BlockFile> {
    let fd: number;
    try {
      // O_NONBLOCK: opening a FIFO must not wait for its other end.
      fd = await openFile(path, (readOnly ? constants.O_RDONLY : constants.O_RDWR) | (constants.O_NONBLOCK ?? 0));
    } catch (error) {
      throw new DiskImageError(`${path}: cannot open it for ${readOnly ? 'reading' : 'writing'}: ${reasonOf(error)}`);
    }
    try {
      const stat = await statFile(fd);
      const isDevice = stat.isBlockDevice();
      if (!isDevice && !stat.isFile()) {
        throw new DiskImageError(
          `${path}: ${stat.isDirectory() ? 'is a directory; ' : ''}expected a file or a block device`,
        );
      }
      const unlock = lockImage(fd, path, readOnly, sharing);
      return new NodeFile(path, { fd, isDevice, sizeBytes: isDevice ? deviceSize(fd) : stat.size }, readOnly, unlock);
    } catch (error) {
      await closeFile(fd);
      throw error;
    }
  },
  resolve: (imagePath, name) => resolve(dirname(imagePath), name),
  identity: (path) => realpath(path),
  decompress,
};
