/**
 * The split devices of one domain: makes their nodes, opens what is behind them, runs their backends, and takes all of that away
 * again, when a device is unplugged or the domain ends. Images are opened before any node is made: a device that cannot be is
 * an error of `xl create`, with nothing left behind.
 */

import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { BlockDevice } from '../backends/block.ts';
import type { GuestPort } from '../backends/guest-port.ts';
import { NetworkDevice } from '../backends/network.ts';
import { type BackendDevice, type DeviceBus, XenbusBackend } from '../backends/xenbus.ts';
import { DiskImageError } from '../storage/block-file.ts';
import { type DiskImage, openDiskImage } from '../storage/disk-image.ts';
import { hostFiles } from '../storage/host/node-file.ts';
import { type DiskConfig, vdevNumber } from '../toolstack/config/disk.ts';
import type { VifConfig } from '../toolstack/config/network-interface.ts';
import {
  addDeviceNodes,
  backendPath,
  type DeviceNodes,
  diskNodes,
  removeDeviceNodes,
  unplugDevice,
  vifNodes,
} from '../toolstack/device-nodes.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { openNetwork } from './domain-network.ts';
import { HostError } from './host-error.ts';

export interface DomainDevicesOptions {
  readonly store: XenstoreClient;
  readonly port: GuestPort;
  readonly log: (line: string) => void;
}

interface Device {
  readonly nodes: DeviceNodes;
  readonly backend: XenbusBackend;
}

/** How long a guest may take to let go of a device. Source: tools/libs/light/libxl_internal.h, LIBXL_DESTROY_TIMEOUT. */
const UNPLUG_MS = 10_000;

export class DomainDevices {
  readonly #options: DomainDevicesOptions;
  readonly #devices = new Map<string, Device>();

  constructor(options: DomainDevicesOptions) {
    this.#options = options;
  }

  /** @throws HostError when the disk cannot be had; nothing is left behind then */
  async addDisk(disk: DiskConfig): Promise<void> {
    const { image, id, path } = await openDisk(disk);
    const options = {
      image,
      readOnly: !disk.writable,
      cdrom: disk.cdrom,
      discards: disk.discard ?? disk.writable,
      sectorBytes: 512,
    } as const;
    const nodes = diskNodes(disk, id, path);
    try {
      await this.add(nodes, (bus) => new BlockDevice(this.#options.port, bus, options));
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  /** @throws HostError when there is no such network; nothing is left behind then */
  async addVif(vif: VifConfig): Promise<void> {
    const { port, log } = this.#options;
    const mac = vif.mac ?? makeUpMac();
    let device: NetworkDevice | null = null;
    const facts = { domid: port.domid, mac, takesGso: () => device?.takesGso ?? false, log };
    const network = await openNetwork(vif, facts);
    const options = {
      network,
      rate: vif.rate === null ? null : { bytes: vif.rate.bytesPerInterval, periodUs: vif.rate.intervalUs },
      nowMs: () => performance.now(),
      setTimer: (delayMs: number, callback: () => void) => {
        const timer = setTimeout(callback, delayMs);
        return () => clearTimeout(timer);
      },
    };
    try {
      await this.add(vifNodes(vif, mac), (bus) => {
        device = new NetworkDevice(port, bus, options);
        return device;
      });
    } catch (error) {
      network.close();
      throw error;
    }
  }

  /** Makes a device's nodes and starts its backend, which is in InitWait when this resolves. */
  async add(nodes: DeviceNodes, device: (bus: DeviceBus) => BackendDevice): Promise<void> {
    const { store, port, log } = this.#options;
    if (!(await addDeviceNodes(store, port.domid, nodes)))
      throw new HostError(`Domain ${port.domid}: device ${nodes.kind} ${nodes.id} is there already`);
    const path = backendPath(port.domid, nodes);
    const backend = new XenbusBackend({ store, path, device, log });
    try {
      await backend.start();
      await store.write(`${path}/hotplug-status`, 'connected');
    } catch (error) {
      await backend.stop();
      await removeDeviceNodes(store, port.domid, nodes);
      throw error;
    }
    this.#devices.set(keyOf(nodes), { nodes, backend });
  }

  /** Unplugs a device; by force when the guest does not let go of it in time. False: there is no such device. */
  async remove(kind: string, id: number): Promise<boolean> {
    const { store, port, log } = this.#options;
    const device = this.#devices.get(keyOf({ kind, id }));
    if (device === undefined) return false;
    await unplugDevice(store, port.domid, device.nodes);
    const late = await Promise.race([
      device.backend.gone.then(() => false),
      new Promise<boolean>((done) => setTimeout(() => done(true), UNPLUG_MS).unref()),
    ]);
    if (late) log(`${device.backend.path}: the guest has not let go of it; it is taken away`);
    await this.#take(device);
    return true;
  }

  /** The domain has ended: nothing of it is used any more when this resolves. Its nodes go with all others of the domain. */
  async close(): Promise<void> {
    const devices = [...this.#devices.values()];
    this.#devices.clear();
    await Promise.all(devices.map(({ backend }) => backend.stop()));
  }

  async #take({ nodes, backend }: Device): Promise<void> {
    this.#devices.delete(keyOf(nodes));
    await backend.stop();
    await removeDeviceNodes(this.#options.store, this.#options.port.domid, nodes);
  }
}

/** An address in the range of Xen's. Source: libxl_nic.c, libxl__device_nic_setdefault. */
function makeUpMac(): Uint8Array {
  const random = crypto.getRandomValues(new Uint8Array(3));
  return Uint8Array.of(0x00, 0x16, 0x3e, random[0] & 0x7f, random[1], random[2]);
}

const keyOf = ({ kind, id }: { readonly kind: string; readonly id: number }): string => `${kind} ${id}`;

/** Finds out what a disk is, and opens its image. */
async function openDisk(disk: DiskConfig): Promise<{ image: DiskImage; id: number; path: string }> {
  const { vdev, target, format, backend, backendDomain } = disk;
  const name = `Disk vdev=${vdev}`;
  const id = vdevNumber(vdev);
  if (id === null) throw new HostError(`Invalid or unsupported virtual disk identifier ${vdev}`);
  if (backendDomain !== null && backendDomain !== '0' && backendDomain !== 'Domain-0')
    throw new HostError(`${name}: backend=${backendDomain}: disks are served by Dom0 only`);
  if (disk.specification === 'virtio') throw new HostError(`${name}: specification=virtio is for HVM guests`);
  if (backend === 'tap' || backend === 'standalone')
    throw new HostError(`${name}: backendtype=${backend} is not supported: expected phy or qdisk`);
  if (target === null || target === '' || format === 'empty')
    throw new HostError(`${name}: a drive without a disk is for HVM guests; expected a target`);
  if (format === 'qcow' || format === 'qed')
    throw new HostError(`${name}: format ${format} is not supported: expected raw, qcow2 or vhd`);
  if (backend === 'phy' && format !== 'raw')
    throw new HostError(`${name}, backend phy unsuitable due to format ${format}`);
  // As the scripts of Xen take a name without a folder.
  const path = target.startsWith('/') ? target : resolve('/dev', target);
  try {
    await stat(path);
  } catch (error) {
    throw new HostError(`${name} failed to stat: ${path}: ${reasonOf(error)}`);
  }
  try {
    return { image: await openDiskImage(hostFiles, path, { format, readOnly: !disk.writable }), id, path };
  } catch (error) {
    if (error instanceof DiskImageError) throw new HostError(`${name}: ${error.message}`);
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
