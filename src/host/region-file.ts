/**
 * Translated code that outlives its domain: a file in the cache's folder (toolstack/cache.ts), of chunks as engine/wasm/region-library.ts
 * has them, that the vCPUs of all domains read and append to.
 *
 * Its name says by which sources it was made: others leave it alone. Only the user may write it; one that somebody else can write is not
 * used. What is written is one append, so that several processes can; a chunk that was cut off is cut away by who opens the file next.
 * A file that has grown too large keeps its younger half, under a new inode: whoever has the old one open goes on with that.
 */

import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  type Stats,
  writeSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chunkEnds, type RegionStore } from '../engine/wasm/region-library.ts';
import { cacheRoot, temporaryBeside } from '../toolstack/cache.ts';

/** Bytes from which on a file is halved when it is opened; nothing is appended to one of twice that. */
const SIZE_MAX = 24 << 20;
/** An end that is no whole chunk belongs to nobody who is still writing when the file has not changed for so many ms. */
const SETTLED_MS = 60_000;
/** Files of other sources that nobody has used for so many ms are removed. */
const STALE_MS = 30 * 86_400_000;

/** What translated code depends on, beside the guest's. */
const SOURCES = ['../engine/wasm', '../engine/x86', '../machine'];

/** A hash of the sources that make translated code. */
export function regionVersion(): string {
  const hash = createHash('sha256');
  const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js';
  for (const folder of SOURCES) {
    const path = fileURLToPath(new URL(folder, import.meta.url));
    for (const name of readdirSync(path, { recursive: true, encoding: 'utf8' }).sort()) {
      if (!name.endsWith(extension) || name.endsWith(`.test${extension}`)) continue;
      hash.update(`${folder}/${name}\0`).update(readFileSync(join(path, name)));
    }
  }
  return hash.digest('hex').slice(0, 16);
}

/** The file for the sources that run; DOMUS_REGION_CACHE names another folder for it, or is `off`: null, nothing is kept. */
export function regionFilePath(env: NodeJS.ProcessEnv = process.env): string | null {
  const asked = env['DOMUS_REGION_CACHE'];
  if (asked === 'off') return null;
  return join(asked ? resolve(asked) : join(cacheRoot(env), 'translated'), regionVersion());
}

const isSystemError = (error: unknown): boolean => error instanceof Error && 'syscall' in error;

/** Nobody but the user can have written it. */
function isOwn(stats: Stats): boolean {
  const isUsers = process.getuid === undefined || stats.uid === process.getuid();
  return stats.isFile() && isUsers && (process.platform === 'win32' || (stats.mode & 0o022) === 0);
}

function readFrom(fd: number, at: number, into: Uint8Array): boolean {
  try {
    return readSync(fd, into, 0, into.length, at) === into.length;
  } catch (error) {
    if (isSystemError(error)) return false;
    throw error;
  }
}

function removeStale(folder: string): void {
  for (const name of readdirSync(folder)) {
    const path = join(folder, name);
    const fd = openSync(path, 'r');
    const { mtimeMs } = fstatSync(fd);
    closeSync(fd);
    if (Date.now() - mtimeMs > STALE_MS) rmSync(path, { force: true });
  }
}

function open(path: string): number {
  const { O_RDWR, O_APPEND, O_CREAT } = constants;
  // Not through a link that somebody else has put there.
  return openSync(path, O_RDWR | O_APPEND | O_CREAT | (constants.O_NOFOLLOW ?? 0), 0o600);
}

/** The younger half of a file's chunks, in a file that takes its place. Its descriptor. */
function halve(path: string, fd: number, ends: readonly number[]): number {
  const last = ends[ends.length - 1];
  const from = ends.find((end) => last - end <= SIZE_MAX / 2) ?? last;
  const rest = new Uint8Array(last - from);
  if (!readFrom(fd, from, rest)) return fd;
  const temporary = temporaryBeside(path);
  const half = open(temporary);
  writeSync(half, rest);
  renameSync(temporary, path);
  closeSync(fd);
  return half;
}

/** Opens a file, or makes it. Null, and nothing is kept, where that cannot be, or where others could have written it. */
export function openRegionFile(path: string): RegionStore | null {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    let fd = open(path);
    const stats = fstatSync(fd);
    if (!isOwn(stats)) {
      closeSync(fd);
      return null;
    }
    if (stats.size === 0) removeStale(dirname(path));
    const all = { sizeBytes: stats.size, read: (at: number, into: Uint8Array) => readFrom(fd, at, into) };
    const ends = chunkEnds(all);
    const end = ends[ends.length - 1] ?? 0;
    if (end < stats.size && Date.now() - stats.mtimeMs > SETTLED_MS) ftruncateSync(fd, end);
    if (end > SIZE_MAX) fd = halve(path, fd, ends);
    const sizeBytes = Math.min(fstatSync(fd).size, end);
    return {
      sizeBytes,
      read: (at, into) => at + into.length <= sizeBytes && readFrom(fd, at, into),
      keep: (chunk) => append(fd, chunk),
    };
  } catch (error) {
    if (isSystemError(error)) return null;
    throw error;
  }
}

/** One that cannot be written is not kept. */
function append(fd: number, chunk: Uint8Array): void {
  try {
    if (fstatSync(fd).size < 2 * SIZE_MAX) writeSync(fd, chunk);
  } catch (error) {
    if (!isSystemError(error)) throw error;
  }
}
