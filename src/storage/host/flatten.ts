/**
 * Makes a qcow2 image that lies over others (overlay.ts) stand alone, with the same disk in it. The others stay as they are: they may be the
 * bases of other images as well.
 *
 * The new image is a file beside, which takes the name when it is whole and on the disk. Until then the name means the old one, and nobody else
 * opens that.
 */

import { chmod, chown, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type BlockFile, DiskImageError } from '../block-file.ts';
import { backingPath, type DiskImage, openDiskImage, probeFormat } from '../disk-image.ts';
import { createQcow2 } from '../qcow2/create.ts';
import { type Qcow2Header, readHeader } from '../qcow2/header.ts';
import { hostFiles } from './node-file.ts';
import { syncFolder } from './overlay.ts';

/** Read at a time. */
const CHUNK_BYTES = 2 << 20;
/** Zeros are left out in pieces of this size: a cluster of the new image. */
const PIECE_BYTES = 64 << 10;
/** More than a chain that can be opened has. */
const BASES_MAX = 64;

/**
 * The images on which it does not depend any more, the nearest first.
 * @throws DiskImageError, or the host's error; the image is as it was then
 */
export async function flattenImage(path: string): Promise<string[]> {
  const real = await realpath(path).catch(() => path);
  // Held until the other one has its name: whoever has it open is asked here, and whoever wants it meanwhile is refused.
  const image = await openDiskImage(hostFiles, real, { format: 'qcow2', readOnly: false });
  // One that was killed has left it there.
  const partial = `${real}.domus-flat`;
  let bases: string[];
  try {
    bases = await basesOf(real);
    const { mode, uid, gid } = await stat(real);
    await rm(partial, { force: true });
    await writeFile(partial, '', { flag: 'wx', mode: 0o600 });
    await copyTo(partial, image);
    // Who may not give files away owns what he has made.
    await chown(partial, uid, gid).catch(() => undefined);
    await chmod(partial, mode & 0o7777);
    await rename(partial, real);
    await syncFolder(dirname(real));
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  } finally {
    await image.close();
  }
  return bases;
}

/** All files under a qcow2 image. @throws DiskImageError where there are none, or something in it would be lost */
async function basesOf(path: string): Promise<string[]> {
  const header = await headerOf(path);
  if (header === null) throw new DiskImageError(`${path}: expected a qcow2 image that lies over others`);
  if (header.backingName === undefined) throw new DiskImageError(`${path}: lies over no other image`);
  if (header.snapshots > 0) throw new DiskImageError(`${path}: has internal snapshots, which would be lost`);
  if (header.hasExternalData) throw new DiskImageError(`${path}: has its data in an external file`);
  const bases: string[] = [];
  for (let [at, next]: [string, Qcow2Header | null] = [path, header]; bases.length < BASES_MAX; ) {
    if (next?.backingName === undefined) break;
    at = hostFiles.resolve(at, backingPath(at, next.backingName));
    bases.push(at);
    next = next.backingFormat === undefined || next.backingFormat === 'qcow2' ? await headerOf(at) : null;
  }
  return bases;
}

/** Null for another format. */
async function headerOf(path: string): Promise<Qcow2Header | null> {
  const file: BlockFile = await hostFiles.open(path, { readOnly: true, sharing: 'shared' });
  try {
    return (await probeFormat(file)) === 'qcow2' ? await readHeader(file) : null;
  } finally {
    await file.close();
  }
}

async function copyTo(path: string, from: DiskImage): Promise<void> {
  const file = await hostFiles.open(path, { readOnly: false, sharing: 'exclusive' });
  try {
    await createQcow2(file, from.sizeBytes);
  } finally {
    await file.close();
  }
  const to = await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: false });
  try {
    const buffer = Buffer.alloc(CHUNK_BYTES);
    for (let offset = 0; offset < from.sizeBytes; offset += CHUNK_BYTES) {
      const chunk = buffer.subarray(0, Math.min(CHUNK_BYTES, from.sizeBytes - offset));
      await from.read(offset, [chunk]);
      for (const [start, end] of piecesWithData(chunk)) await to.write(offset + start, [chunk.subarray(start, end)]);
    }
    await to.flush();
  } finally {
    await to.close();
  }
}

/** From where to where there are others than zeros. */
function* piecesWithData(chunk: Buffer): Generator<readonly [number, number]> {
  let start = -1;
  for (let at = 0; at < chunk.length; at += PIECE_BYTES) {
    const piece = chunk.subarray(at, at + PIECE_BYTES);
    const isZero = ZEROS.compare(piece, 0, piece.length, 0, piece.length) === 0;
    if (!isZero && start < 0) start = at;
    if (isZero && start >= 0) {
      yield [start, at];
      start = -1;
    }
  }
  if (start >= 0) yield [start, chunk.length];
}

const ZEROS = Buffer.alloc(PIECE_BYTES);
