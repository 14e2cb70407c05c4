/**
 * Copy-on-write layers over disk images, as files of this host. A *base* is an image that nobody writes any more; an *overlay* is a qcow2
 * image over it, which has what was written since. When a disk gets a layer, its image becomes a base:
 *
 *   qcow2      the base gets a name of its own (`IMAGE.base-N`), and the overlay takes the image's: whoever names it goes on with the
 *              disk as it is now. A hard link, then a rename: at every moment the name means one of both, whole.
 *   raw, vhd   the name says another format than an overlay has, so the base keeps it, and the overlay is a new file.
 *
 * A base is made read-only, so that nobody writes to it by mistake, and a raw or vhd one gets a link `IMAGE.domus-top` to the overlay by
 * which its disk went on: a domain is not given the base as its disk (host/domain-disk.ts).
 */

import { chmod, link, lstat, open, realpath, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { type BlockFile, DiskImageError } from '../block-file.ts';
import type { DiskFormat } from '../formats.ts';
import { createQcow2 } from '../qcow2/create.ts';
import { hostFiles } from './node-file.ts';

export interface Base {
  readonly path: string;
  readonly format: DiskFormat;
  /** Of the disk. */
  readonly sizeBytes: number;
}

/** A layer that is made and not used yet. */
export interface Layer {
  /** The image by which the disk goes on: qcow2. */
  readonly top: string;
  readonly base: Base;
  /** The image must be closed. When this resolves, `top` is the disk, also after a crash. */
  commit(): Promise<void>;
  /** After `commit`, and before anything was written to `top`: all is as before. */
  undo(): Promise<void>;
  /** Instead of `commit`. */
  abandon(): Promise<void>;
}

const WRITE_BITS = 0o222;
const BASES_MAX = 100_000;

/** What QEMU calls the formats. */
const NAMES: Readonly<Record<DiskFormat, string>> = { raw: 'raw', qcow2: 'qcow2', vhd: 'vpc' };

export interface OverlayOptions {
  /** By which it names the base. */
  readonly backingName?: string;
  readonly mode?: number;
  /** It is on the disk when this resolves; otherwise when something in it is flushed. */
  readonly sync?: boolean;
}

/**
 * Makes an empty overlay at `path`, where nothing may be.
 * @throws DiskImageError, or the host's error
 */
export async function createOverlay(path: string, base: Base, options: OverlayOptions = {}): Promise<void> {
  const { backingName = base.path, mode = 0o600, sync = true } = options;
  await writeFile(path, '', { flag: 'wx', mode });
  try {
    const file = await hostFiles.open(path, { readOnly: false, sharing: 'exclusive' });
    const backing = { name: backingName, format: NAMES[base.format] };
    try {
      await createQcow2(sync ? file : unflushed(file), base.sizeBytes, backing);
    } finally {
      await file.close();
    }
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
}

function unflushed(file: BlockFile): Pick<BlockFile, 'path' | 'write' | 'flush'> {
  return { path: file.path, write: (offset, buffers) => file.write(offset, buffers), flush: async () => {} };
}

/**
 * Makes the overlay that an image is to get. `elsewhere`: the file for it if it cannot have the image's name.
 * @throws DiskImageError, or the host's error
 */
export async function prepareLayer(image: Base, elsewhere: string): Promise<Layer> {
  return image.format === 'qcow2' ? await inPlace(image) : await besides(image, elsewhere);
}

async function inPlace(image: Base): Promise<Layer> {
  const { path } = image;
  const real = await realpath(path);
  const { mode } = await stat(real);
  const base = { ...image, path: await freeName(real) };
  const overlay = `${real}.${process.pid}.overlay`;
  await rm(overlay, { force: true });
  // A name without a folder lets both be moved together; one that is found through a link would be looked for beside the link.
  const isLink = (await lstat(path)).isSymbolicLink();
  await createOverlay(overlay, base, { backingName: isLink ? base.path : basename(base.path), mode: mode & 0o777 });
  return {
    top: path,
    base,
    commit: async () => {
      await link(real, base.path);
      try {
        await rename(overlay, real);
      } catch (error) {
        await rm(base.path);
        throw error;
      }
      await syncFolder(dirname(real));
      await chmod(base.path, mode & 0o777 & ~WRITE_BITS);
    },
    undo: async () => {
      await chmod(base.path, mode & 0o777);
      await rename(base.path, real);
    },
    abandon: () => rm(overlay, { force: true }),
  };
}

async function besides(image: Base, top: string): Promise<Layer> {
  const real = await realpath(image.path);
  const stats = await stat(real);
  const base = { ...image, path: real };
  await createOverlay(top, base);
  await syncFolder(dirname(top));
  return {
    top,
    base,
    // Devices keep theirs: they are the administrator's.
    commit: async () => {
      if (!stats.isFile()) return;
      await rm(topLink(real), { force: true });
      await symlink(top, topLink(real));
      await syncFolder(dirname(real));
      await chmod(real, stats.mode & 0o777 & ~WRITE_BITS);
    },
    undo: async () => {
      if (stats.isFile()) {
        await chmod(real, stats.mode & 0o777);
        await rm(topLink(real), { force: true });
      }
      await rm(top, { force: true });
    },
    abandon: () => rm(top, { force: true }),
  };
}

/** A symbolic link beside a raw or vhd image that is a base: by which image its disk went on. */
function topLink(image: string): string {
  return `${image}.domus-top`;
}

/** The image by which the disk goes on that was this one; null if it is no base, or that image is gone. */
export async function topOf(image: string): Promise<string | null> {
  try {
    return await realpath(topLink(await realpath(image)));
  } catch {
    return null;
  }
}

/** `IMAGE.base-N`, the first that is free. */
async function freeName(image: string): Promise<string> {
  for (let n = 1; n <= BASES_MAX; n++) {
    const name = `${image}.base-${n}`;
    try {
      await lstat(name);
    } catch {
      return name;
    }
  }
  throw new DiskImageError(`${image}: has ${BASES_MAX} bases already`);
}

/**
 * Puts an empty overlay over `base` in the place of the image `top`, which nobody has open: the disk is as the base has it.
 * @throws DiskImageError, or the host's error
 */
export async function resetToBase(top: string, base: Base): Promise<void> {
  let real = top;
  try {
    real = await realpath(top);
  } catch {
    // It is gone, and comes back.
  }
  const overlay = `${real}.${process.pid}.overlay`;
  await rm(overlay, { force: true });
  const beside = real === top && dirname(base.path) === dirname(real);
  await createOverlay(overlay, base, { backingName: beside ? basename(base.path) : base.path });
  await rename(overlay, real);
  await syncFolder(dirname(real));
}

/** Names survive a power cut. */
export async function syncFolder(path: string): Promise<void> {
  // Windows has nothing like it.
  if (process.platform === 'win32') return;
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
