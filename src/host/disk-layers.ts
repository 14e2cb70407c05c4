/**
 * Gives all writable disks of a running domain a layer (storage/host/overlay.ts): what they have now stays as it is, for copies of the
 * domain, and the domain goes on in overlays of its own.
 *
 *   1. prepare   while the domain runs: overlays are made and on the disk
 *   2. commit    while it is frozen: images are closed; overlays take their place; the domain's record and nodes name them; they are opened
 *   3. the domain goes on
 *
 * Nothing is written to an overlay before 3, so a process that is killed at any moment leaves disks that are whole, by the names that the
 * record has.
 */

import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import type { BlockDevice } from '../backends/block.ts';
import { DiskImageError } from '../storage/block-file.ts';
import { isQemuFormat } from '../storage/formats.ts';
import { type Base, type Layer, prepareLayer } from '../storage/host/overlay.ts';
import { type MovedDisk, movedDisk } from '../toolstack/config/device-specs.ts';
import type { DiskConfig } from '../toolstack/config/disk.ts';
import { diskNodes } from '../toolstack/device-nodes.ts';
import type { DiskPlace } from '../toolstack/disk-place.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { openDisk } from './domain-disk.ts';
import { HostError } from './host-error.ts';

/** A disk that a domain's process serves. */
export interface OpenDisk {
  /** Of its backend in xenstore. */
  readonly folder: string;
  disk: DiskConfig;
  place: DiskPlace;
  /** A script has made what `place` names. */
  readonly isScripts: boolean;
  readonly device: BlockDevice;
}

/** What a writable disk was at one moment, and the image by which it goes on. */
export interface FrozenDisk {
  readonly id: number;
  readonly vdev: string;
  readonly top: string;
  readonly base: Base;
}

interface Prepared {
  readonly disk: OpenDisk;
  readonly layer: Layer;
}

export interface DiskLayersOptions {
  readonly domid: number;
  readonly store: XenstoreClient;
  /** The file for the overlay of a disk whose image cannot have one in its place. */
  readonly elsewhere: (vdev: string) => Promise<string>;
  /** Makes the change known to who starts the domain again. */
  readonly onMoved: (moved: MovedDisk) => void;
}

export class DiskLayers {
  readonly #options: DiskLayersOptions;
  readonly #prepared: readonly Prepared[];

  /** Makes the layers; the domain runs. @throws NotSavable when a disk cannot have one */
  static async prepare(disks: readonly OpenDisk[], options: DiskLayersOptions): Promise<DiskLayers> {
    const prepared: Prepared[] = [];
    try {
      for (const disk of disks) {
        if (!disk.disk.writable) continue;
        const { path, format } = disk.place;
        if (disk.isScripts) throw new NotSavable(`disk ${disk.disk.vdev} is made by a script, and cannot be copied`);
        if (isQemuFormat(format))
          throw new NotSavable(`disk ${disk.disk.vdev} has format ${format}; expected raw, qcow2 or vhd`);
        const elsewhere = await options.elsewhere(disk.disk.vdev);
        mkdirSync(dirname(elsewhere), { recursive: true, mode: 0o700 });
        const image = { path, format, sizeBytes: disk.device.image.sizeBytes };
        prepared.push({ disk, layer: await prepareLayer(image, elsewhere) });
      }
      return new DiskLayers(prepared, options);
    } catch (error) {
      for (const { layer } of prepared) await layer.abandon();
      throw notSavable(error);
    }
  }

  private constructor(prepared: readonly Prepared[], options: DiskLayersOptions) {
    this.#prepared = prepared;
    this.#options = options;
  }

  /** Puts the layers in; the domain is frozen. @throws NotSavable; then disks are as they were, or have an empty layer more */
  async commit(): Promise<FrozenDisk[]> {
    const waiting = [...this.#prepared];
    const frozen: FrozenDisk[] = [];
    try {
      for (;;) {
        const next = waiting.shift();
        if (next === undefined) break;
        frozen.push(await this.#commitOne(next));
      }
      return frozen;
    } catch (error) {
      for (const { layer } of waiting) await layer.abandon();
      throw notSavable(error);
    }
  }

  async abandon(): Promise<void> {
    for (const { layer } of this.#prepared) await layer.abandon();
  }

  async #commitOne({ disk, layer }: Prepared): Promise<FrozenDisk> {
    const { device, place } = disk;
    const to: OpenDisk = {
      ...disk,
      disk: movedDisk(disk.disk, layer.top),
      place: { ...place, path: layer.top, format: 'qcow2' },
    };
    if (device.image.sizeBytes !== layer.base.sizeBytes) {
      await layer.abandon();
      throw new NotSavable(`disk ${disk.disk.vdev} has got another size meanwhile`);
    }
    await device.image.close();
    let isCommitted = false;
    try {
      await layer.commit();
      isCommitted = true;
      // Its name and format are others: who looks for the disk must find it before it is written to.
      if (layer.top !== place.path) await this.#tell(to);
      device.image = await openDisk(to.disk, layer.top, 'qcow2');
    } catch (error) {
      if (isCommitted && layer.top !== place.path) await this.#tell(disk);
      if (isCommitted) await layer.undo();
      else await layer.abandon();
      device.image = await openDisk(disk.disk, place.path, place.format);
      throw error;
    }
    disk.disk = to.disk;
    disk.place = to.place;
    return { id: place.id, vdev: disk.disk.vdev, top: layer.top, base: layer.base };
  }

  async #tell({ folder, disk, place }: OpenDisk): Promise<void> {
    const { store, domid, onMoved } = this.#options;
    onMoved({ ...disk, id: place.id });
    const { params, type } = diskNodes(disk, place.id, place.path).backend;
    for (const path of [folder, `/libxl/${domid}/device/vbd/${place.id}`]) {
      await store.write(`${path}/params`, params ?? '');
      await store.write(`${path}/type`, type ?? '');
    }
  }
}

function notSavable(error: unknown): unknown {
  const isExpected =
    error instanceof DiskImageError || error instanceof HostError || (error instanceof Error && 'syscall' in error);
  return isExpected ? new NotSavable((error as Error).message) : error;
}
