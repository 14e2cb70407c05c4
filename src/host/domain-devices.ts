/**
 * The split devices of one domain: makes their nodes, runs their scripts, opens what is behind them, runs their backends, and
 * takes all of that away again, when a device is unplugged or the domain ends. A device that cannot be had is an error of
 * `xl create`, with nothing left behind.
 */

import { BlockDevice } from '../backends/block.ts';
import type { GuestPort } from '../backends/guest-port.ts';
import { NetworkDevice } from '../backends/network.ts';
import { type BackendDevice, type DeviceBus, XenbusBackend } from '../backends/xenbus.ts';
import type { DiskConfig } from '../toolstack/config/disk.ts';
import type { VifConfig } from '../toolstack/config/network-interface.ts';
import {
  addDeviceNodes,
  backendPath,
  type DeviceNodes,
  diskNodes,
  removeDeviceNodes,
  scriptPath,
  unplugDevice,
  vifNodes,
} from '../toolstack/device-nodes.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { openDisk, placeDisk } from './domain-disk.ts';
import { openNetwork } from './domain-network.ts';
import { HostError } from './host-error.ts';
import { runHotplugScript } from './hotplug-script.ts';

export interface DomainDevicesOptions {
  readonly store: XenstoreClient;
  readonly port: GuestPort;
  /** Where xenstored listens, for scripts; null when nobody but this process can reach it. */
  readonly xenstoredPath: string | null;
  readonly log: (line: string) => void;
}

/** A script of the user's, and its words when the device comes and when it goes. */
interface DeviceScript {
  readonly path: string;
  readonly plug: readonly string[];
  readonly unplug: readonly string[];
}

interface Device {
  readonly nodes: DeviceNodes;
  readonly script: DeviceScript | null;
  readonly backend: XenbusBackend;
}

/** Makes a device once its nodes are there and its script has run. */
type OpenDevice = () => Promise<(bus: DeviceBus) => BackendDevice>;

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
    const { port, store } = this.#options;
    const { id, path, format } = await placeDisk(disk);
    const nodes = diskNodes(disk, id, path);
    const script = disk.script === null ? null : { path: scriptPath(disk.script), plug: ['add'], unplug: ['remove'] };
    await this.#add(nodes, script, async () => {
      const made = script && (await store.read(`${backendPath(port.domid, nodes)}/physical-device-path`));
      const options = {
        image: await openDisk(disk, made ?? path, format),
        readOnly: !disk.writable,
        cdrom: disk.cdrom,
        discards: disk.discard ?? disk.writable,
        sectorBytes: 512,
      } as const;
      return (bus) => new BlockDevice(port, bus, options);
    });
  }

  /** @throws HostError when there is no such network; nothing is left behind then */
  async addVif(vif: VifConfig): Promise<void> {
    const { port, log } = this.#options;
    const mac = vif.mac ?? makeUpMac();
    let device: NetworkDevice | null = null;
    const facts = { domid: port.domid, mac, takesGso: () => device?.takesGso ?? false, log };
    await this.#add(vifNodes(vif, mac), null, async () => {
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
      return (bus) => {
        device = new NetworkDevice(port, bus, options);
        return device;
      };
    });
  }

  /** Makes a device's nodes and starts its backend, which is in InitWait when this resolves. */
  async #add(nodes: DeviceNodes, script: DeviceScript | null, open: OpenDevice): Promise<void> {
    const { store, port, log } = this.#options;
    if (!(await addDeviceNodes(store, port.domid, nodes)))
      throw new HostError(`Domain ${port.domid}: device ${nodes.kind} ${nodes.id} is there already`);
    const path = backendPath(port.domid, nodes);
    let backend: XenbusBackend | null = null;
    let plugged = false;
    try {
      if (script !== null) {
        await runHotplugScript({ path: script.path, words: script.plug, backendPath: path }, this.#options);
        plugged = true;
      }
      backend = new XenbusBackend({ store, path, device: await open(), log });
      await backend.start();
      await store.write(`${path}/hotplug-status`, 'connected');
    } catch (error) {
      await backend?.stop();
      if (plugged) await this.#runUnplugScript(nodes, script);
      await removeDeviceNodes(store, port.domid, nodes);
      throw error;
    }
    this.#devices.set(keyOf(nodes), { nodes, script, backend });
  }

  /** What goes wrong with it holds nothing up. */
  async #runUnplugScript(nodes: DeviceNodes, script: DeviceScript | null): Promise<void> {
    if (script === null) return;
    const words = script.unplug;
    const path = backendPath(this.#options.port.domid, nodes);
    try {
      await runHotplugScript({ path: script.path, words, backendPath: path }, this.#options);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.#options.log(`${path}: ${error.message}`);
    }
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
    await Promise.all(devices.map((device) => this.#close(device)));
  }

  async #close({ nodes, script, backend }: Device): Promise<void> {
    await backend.stop();
    await this.#runUnplugScript(nodes, script);
  }

  async #take(device: Device): Promise<void> {
    const { nodes } = device;
    this.#devices.delete(keyOf(nodes));
    await this.#close(device);
    await removeDeviceNodes(this.#options.store, this.#options.port.domid, nodes);
  }
}

/** An address in the range of Xen's. Source: libxl_nic.c, libxl__device_nic_setdefault. */
function makeUpMac(): Uint8Array {
  const random = crypto.getRandomValues(new Uint8Array(3));
  return Uint8Array.of(0x00, 0x16, 0x3e, random[0] & 0x7f, random[1], random[2]);
}

const keyOf = ({ kind, id }: { readonly kind: string; readonly id: number }): string => `${kind} ${id}`;
