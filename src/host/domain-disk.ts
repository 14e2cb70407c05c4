/** What a disk specification means on this host: whether it can be had, which file it is, and the image in it. */

import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { DiskImageError } from '../storage/block-file.ts';
import { type DiskFormat, type DiskImage, openDiskImage } from '../storage/disk-image.ts';
import { hostFiles } from '../storage/host/node-file.ts';
import { topOf } from '../storage/host/overlay.ts';
import { openByQemuNbd } from '../storage/host/qemu-nbd.ts';
import { type DiskConfig, vdevNumber } from '../toolstack/config/disk.ts';
import { HostError } from './host-error.ts';

export interface DiskPlace {
  /** Number of the virtual device. */
  readonly id: number;
  /** The file, or what its script takes for one. */
  readonly path: string;
  /** The last two are qemu-nbd's. */
  readonly format: DiskFormat | 'qcow' | 'qed';
}

/** Checks all that can be known before anything is made. @throws HostError */
export async function placeDisk(disk: DiskConfig): Promise<DiskPlace> {
  const { vdev, target, format, backend } = disk;
  const name = `Disk vdev=${vdev}`;
  const id = vdevNumber(vdev);
  if (id === null) throw new HostError(`Invalid or unsupported virtual disk identifier ${vdev}`);
  if (disk.specification === 'virtio') throw new HostError(`${name}: specification=virtio is for HVM guests`);
  if (backend === 'tap' || backend === 'standalone')
    throw new HostError(`${name}: backendtype=${backend} is not supported: expected phy or qdisk`);
  if (target === null || target === '' || format === 'empty')
    throw new HostError(`${name}: a drive without a disk is for HVM guests; expected a target`);
  if (backend === 'phy' && format !== 'raw')
    throw new HostError(`${name}, backend phy unsuitable due to format ${format}`);
  if (disk.script !== null) return { id, path: target, format };
  // As the scripts of Xen take a name without a folder.
  const path = target.startsWith('/') ? target : resolve('/dev', target);
  try {
    await stat(path);
  } catch (error) {
    throw new HostError(`${name} failed to stat: ${path}: ${reasonOf(error)}`);
  }
  return { id, path, format };
}

/** Number of a disk that a driver domain serves: whether it can be had is that domain's to know. @throws HostError */
export function numberOfForeignDisk({ vdev, backendDomain, specification, format }: DiskConfig): number {
  const name = `Disk vdev=${vdev}`;
  const id = vdevNumber(vdev);
  if (id === null) throw new HostError(`Invalid or unsupported virtual disk identifier ${vdev}`);
  if (specification === 'virtio') throw new HostError(`${name}: specification=virtio is for HVM guests`);
  if (format !== 'raw') throw new HostError(`${name}: backend=${backendDomain}: expected format=raw, found ${format}`);
  return id;
}

/** @throws HostError */
export async function openDisk(disk: DiskConfig, path: string, format: DiskPlace['format']): Promise<DiskImage> {
  const top = disk.writable ? await topOf(path) : null;
  if (top !== null)
    throw new HostError(`Disk vdev=${disk.vdev}: ${path} is the base of other images, and its disk goes on in ${top}`);
  try {
    if (format === 'qcow' || format === 'qed') return await openByQemuNbd(path, { format, readOnly: !disk.writable });
    return await openDiskImage(hostFiles, path, { format, readOnly: !disk.writable });
  } catch (error) {
    if (error instanceof DiskImageError) throw new HostError(`Disk vdev=${disk.vdev}: ${error.message}`);
    throw error;
  }
}

function reasonOf(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT') return 'No such file or directory';
  if (code === 'ENOTDIR') return 'Not a directory';
  if (code === 'EACCES') return 'Permission denied';
  return String(code);
}
