/**
 * From a kernel file to its ELF image: reads, unpacks and caches.
 *
 * Owns: the unpacked-kernel cache. An entry is named by the SHA-256 of the file it came from and holds the ELF bytes,
 * then a footer with their length and SHA-256. The footer is checked on each read, so a damaged entry is made again
 * rather than booted; readelf and gdb do not mind the footer. Measured with Debian 6.1 (65.9 MB, xz), reading included:
 * unpacking 0.74 s with @napi-rs/lzma and 1.1 s with the host's xz, from the cache 0.12 s.
 */

import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { constants, gunzip, zstdDecompress } from 'node:zlib';
import bunzip from 'seek-bzip';
import { findPayload, type Payload } from './builder/bzimage.ts';
import { isElf } from './builder/elf.ts';
import { KernelImageError } from './builder/errors.ts';
import { writeFileAtomic } from './cache.ts';
import { unpackLz4Legacy } from './lz4.ts';
import { unpackXz } from './xz.ts';

/** Nothing larger is unpacked: a few kilobytes of input can claim any size. Debian's kernels are 53-66 MB. */
export const KERNEL_BYTES_MAX = 2 ** 30;

export interface LoadKernelOptions {
  /** Folder of the unpacked-kernel cache; made if missing. */
  readonly cacheDir: string;
  /** Called when a step starts that the user may have to wait for. */
  readonly onProgress?: (step: string, detail: string) => void;
}

export interface LoadedKernel {
  /** The unpacked ELF file. */
  readonly elf: Uint8Array;
  /** SHA-256 of the input file, in hex. */
  readonly sha256: string;
}

/**
 * Reads a kernel file (bzImage, ELF, or a compressed ELF) and gives its ELF image.
 *
 * @param path the kernel file
 * @throws KernelImageError if the file cannot be read, is no kernel, is truncated or damaged
 */
export async function loadKernel(path: string, options: LoadKernelOptions): Promise<LoadedKernel> {
  let file: Uint8Array;
  try {
    // /dev/zero never ends.
    if ((await stat(path)).isCharacterDevice()) throw new Error('it is a device');
    file = await readFile(path);
  } catch (error) {
    throw new KernelImageError(path, `cannot read the kernel: ${reason(error)}`, { cause: error });
  }
  const sha256 = createHash('sha256').update(file).digest('hex');
  const payload = findPayload(file, path);
  if (payload.kind === 'elf') return { elf: payload.bytes, sha256 };

  const cached = join(options.cacheDir, `${sha256}.elf`);
  const hit = await readCached(cached);
  if (hit) return { elf: hit, sha256 };
  options.onProgress?.('unpack', `${path} (${payload.kind})`);
  const elf = await unpackPayload(payload, path);
  if (!isElf(elf)) throw new KernelImageError(path, `the ${payload.kind} payload does not unpack to an ELF file`);
  // The cache saves time, nothing else: a full or read-only disk must not keep a guest from booting.
  await writeFileAtomic(cached, [elf, footerOf(elf)]).catch((error: unknown) => {
    options.onProgress?.('cache', `not kept: ${reason(error)}`);
  });
  return { elf, sha256 };
}

/**
 * Unpacks what `findPayload()` found.
 *
 * @param name the file's name, for messages
 * @throws KernelImageError if the payload is damaged, cut short, of a kind we cannot unpack, or too large
 */
export async function unpackPayload(payload: Payload, name: string): Promise<Uint8Array> {
  const { kind, unpackedBytes } = payload;
  if (kind === 'lzo') {
    throw new KernelImageError(
      name,
      'LZO kernels cannot be unpacked here; unpack it with lzop or extract-vmlinux and give the vmlinux',
    );
  }
  if (unpackedBytes !== undefined && unpackedBytes > KERNEL_BYTES_MAX) {
    throw new KernelImageError(
      name,
      `the ${kind} payload claims ${unpackedBytes} bytes unpacked, the limit is ${KERNEL_BYTES_MAX}`,
    );
  }
  let unpacked: Uint8Array;
  try {
    unpacked = await unpack(payload);
  } catch (error) {
    throw new KernelImageError(name, `the ${kind} payload is damaged or cut short: ${reason(error)}`, { cause: error });
  }
  if (unpackedBytes !== undefined && unpacked.length !== unpackedBytes) {
    throw new KernelImageError(
      name,
      `the ${kind} payload is damaged: expected ${unpackedBytes} bytes unpacked, found ${unpacked.length}`,
    );
  }
  return unpacked;
}

async function unpack({ kind, bytes, unpackedBytes }: Payload): Promise<Uint8Array> {
  switch (kind) {
    case 'elf':
      return bytes;
    case 'gzip':
      return zlibCall((done) =>
        gunzip(bytes, { maxOutputLength: KERNEL_BYTES_MAX, chunkSize: ZLIB_CHUNK_BYTES }, done),
      );
    case 'zstd':
      // Debian 6.12 has a 128 MiB window; zstd refuses more than 8 MiB unless told otherwise.
      return zlibCall((done) =>
        zstdDecompress(
          bytes,
          {
            maxOutputLength: KERNEL_BYTES_MAX,
            chunkSize: ZLIB_CHUNK_BYTES,
            params: { [constants.ZSTD_d_windowLogMax]: 31 },
          },
          done,
        ),
      );
    case 'xz':
    case 'lzma': {
      const chunks: Uint8Array[] = [];
      let total = 0;
      for await (const chunk of unpackXz([bytes], kind)) {
        total += chunk.length;
        if (total > KERNEL_BYTES_MAX) throw new Error(`unpacks to more than the limit of ${KERNEL_BYTES_MAX} bytes`);
        chunks.push(chunk);
      }
      return Buffer.concat(chunks, total);
    }
    case 'lz4':
      return Buffer.concat(unpackLz4Legacy(bytes, KERNEL_BYTES_MAX));
    case 'bzip2': {
      const sink = new ByteBuffer(unpackedBytes ?? bytes.length * 8);
      bunzip.decode(bytes, sink);
      return sink.bytes.subarray(0, sink.length);
    }
    case 'lzo':
      throw new Error('LZO');
  }
}

/** Large enough that 60 MB do not become four thousand chunks. */
const ZLIB_CHUNK_BYTES = 1 << 20;

function zlibCall(call: (done: (error: Error | null, result: Buffer) => void) => void): Promise<Uint8Array> {
  return new Promise((resolve, reject) => call((error, result) => (error ? reject(error) : resolve(result))));
}

/** The sink seek-bzip writes to; grows by doubling up to the size limit. */
class ByteBuffer {
  bytes: Uint8Array;
  length = 0;

  constructor(expectedBytes: number) {
    this.bytes = new Uint8Array(Math.min(Math.max(expectedBytes, 4096), KERNEL_BYTES_MAX));
  }

  writeByte(byte: number): void {
    if (this.length === this.bytes.length) {
      if (this.length >= KERNEL_BYTES_MAX)
        throw new Error(`unpacks to more than the limit of ${KERNEL_BYTES_MAX} bytes`);
      const larger = new Uint8Array(Math.min(this.length * 2, KERNEL_BYTES_MAX));
      larger.set(this.bytes);
      this.bytes = larger;
    }
    this.bytes[this.length++] = byte;
  }
}

/** Footer of a cache entry: magic, length as u64, SHA-256 of the ELF bytes. */
const FOOTER_MAGIC = 'DOMUSELF';
const FOOTER_BYTES = 8 + 8 + 32;

function footerOf(elf: Uint8Array): Uint8Array {
  const footer = Buffer.alloc(FOOTER_BYTES);
  footer.write(FOOTER_MAGIC, 0, 'latin1');
  footer.writeBigUInt64LE(BigInt(elf.length), 8);
  createHash('sha256').update(elf).digest().copy(footer, 16);
  return footer;
}

/** Reads a cache entry; undefined if it is absent or damaged. */
async function readCached(path: string): Promise<Uint8Array | undefined> {
  let entry: Uint8Array;
  try {
    entry = await readFile(path);
  } catch {
    // Absent or unreadable, the cure is the same: unpack again.
    return undefined;
  }
  if (entry.length < FOOTER_BYTES) return undefined;
  const elf = entry.subarray(0, entry.length - FOOTER_BYTES);
  return Buffer.compare(entry.subarray(elf.length), footerOf(elf)) === 0 ? elf : undefined;
}

const SYSTEM_ERRORS: Readonly<Record<string, string>> = {
  ENOENT: 'no such file',
  EACCES: 'permission denied',
  EISDIR: 'it is a folder',
  ENOSPC: 'the disk is full',
  ERR_FS_FILE_TOO_LARGE: 'the file is larger than 2 GiB',
  ERR_BUFFER_TOO_LARGE: `unpacks to more than the limit of ${KERNEL_BYTES_MAX} bytes`,
};

function reason(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = 'code' in error && typeof error.code === 'string' ? error.code : '';
  return SYSTEM_ERRORS[code] ?? error.message;
}
