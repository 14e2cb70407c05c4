/**
 * Where on this host a disk is: whether it can be had, and which file it is. The same for `xl create` and `xl block-attach`.
 *
 * Deviation: a relative path is that of the working directory if there is such a file. libxl looks in /dev only, and leaves what its
 * QEMU opens to QEMU's working directory.
 *
 * Source: tools/libs/light/libxl_device.c, disk_try_backend (behaviour); recorded output of xl 4.17.
 */

import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import type { DiskFormat, QemuFormat } from '../storage/formats.ts';
import { type DiskConfig, vdevNumber } from './config/disk.ts';

/** There is no such disk. One line, as libxl says it. */
export class DiskPlaceError extends Error {
  override readonly name = 'DiskPlaceError';
}

export interface DiskPlace {
  /** Number of the virtual device. */
  readonly id: number;
  /** The file, or what its script takes for one. */
  readonly path: string;
  readonly format: DiskFormat | QemuFormat;
}

/** Checks all that can be known before anything is made. @throws DiskPlaceError */
export async function findDisk(disk: DiskConfig): Promise<DiskPlace> {
  const { target, format, backend, script } = disk;
  const name = `Disk vdev=${disk.vdev}`;
  const id = numberOf(disk);
  if (backend === 'tap' || backend === 'standalone')
    throw new DiskPlaceError(`${name}: backendtype=${backend} is not supported: expected phy or qdisk`);
  if (target === null || target === '' || format === 'empty')
    throw new DiskPlaceError(`${name}: a drive without a disk is for HVM guests; expected a target`);
  if (backend === 'phy' && format !== 'raw')
    throw new DiskPlaceError(`${name}, backend phy unsuitable due to format ${format}`);
  if (script !== null && (backend === 'qdisk' || format !== 'raw'))
    throw new DiskPlaceError(`${name}, backend qdisk not compatible with script=${script}`);
  if (script !== null) return { id, path: target, format };
  const path = await pathOf(target);
  try {
    await stat(path);
  } catch (error) {
    throw new DiskPlaceError(`${name} failed to stat: ${path}: ${reasonOf(error)}`);
  }
  return { id, path, format };
}

/** Number of a disk that a driver domain serves: whether it can be had is that domain's to know. @throws DiskPlaceError */
export function numberOfForeignDisk(disk: DiskConfig): number {
  const { vdev, backendDomain, format } = disk;
  const id = numberOf(disk);
  if (format !== 'raw')
    throw new DiskPlaceError(`Disk vdev=${vdev}: backend=${backendDomain}: expected format=raw, found ${format}`);
  return id;
}

function numberOf({ vdev, specification }: DiskConfig): number {
  const id = vdevNumber(vdev);
  if (id === null) throw new DiskPlaceError(`Invalid or unsupported virtual disk identifier ${vdev}`);
  if (specification === 'virtio') throw new DiskPlaceError(`Disk vdev=${vdev}: specification=virtio is for HVM guests`);
  return id;
}

/** A file of the working directory; otherwise, as libxl has it, what is without a folder is in /dev. */
async function pathOf(target: string): Promise<string> {
  const here = resolve(target);
  if (here === target) return target;
  const isHere = await stat(here).then(
    () => true,
    () => false,
  );
  return isHere ? here : resolve('/dev', target);
}

function reasonOf(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT') return 'No such file or directory';
  if (code === 'ENOTDIR') return 'Not a directory';
  if (code === 'EACCES') return 'Permission denied';
  return String(code);
}
