/** What a disk specification means on this host: which file it is, and the image in it. What cannot be had is a HostError. */

import { DiskImageError } from '../storage/block-file.ts';
import { type DiskImage, openDiskImage } from '../storage/disk-image.ts';
import { isQemuFormat } from '../storage/formats.ts';
import { hostFiles } from '../storage/host/node-file.ts';
import { topOf } from '../storage/host/overlay.ts';
import { openByQemuNbd } from '../storage/host/qemu-nbd.ts';
import type { DiskConfig } from '../toolstack/config/disk.ts';
import { type DiskPlace, DiskPlaceError, findDisk, numberOfForeignDisk } from '../toolstack/disk-place.ts';
import { HostError } from './host-error.ts';

/** Checks all that can be known before anything is made. @throws HostError */
export async function placeDisk(disk: DiskConfig): Promise<DiskPlace> {
  try {
    return await findDisk(disk);
  } catch (error) {
    throw hostErrorOf(error);
  }
}

/** Number of a disk that a driver domain serves. @throws HostError */
export function placeForeignDisk(disk: DiskConfig): number {
  try {
    return numberOfForeignDisk(disk);
  } catch (error) {
    throw hostErrorOf(error);
  }
}

function hostErrorOf(error: unknown): unknown {
  return error instanceof DiskPlaceError ? new HostError(error.message) : error;
}

/** @throws HostError */
export async function openDisk(disk: DiskConfig, path: string, format: DiskPlace['format']): Promise<DiskImage> {
  const top = disk.writable ? await topOf(path) : null;
  if (top !== null)
    throw new HostError(`Disk vdev=${disk.vdev}: ${path} is the base of other images, and its disk goes on in ${top}`);
  try {
    if (isQemuFormat(format)) return await openByQemuNbd(path, { format, readOnly: !disk.writable });
    return await openDiskImage(hostFiles, path, { format, readOnly: !disk.writable });
  } catch (error) {
    if (error instanceof DiskImageError) throw new HostError(`Disk vdev=${disk.vdev}: ${error.message}`);
    throw error;
  }
}
