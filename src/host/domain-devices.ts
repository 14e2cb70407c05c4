/**
 * The split devices of one domain: makes their nodes, runs their scripts, opens what is behind them, runs their backends, and
 * takes all of that away again, when a device is unplugged or the domain ends. A device that cannot be had is an error of
 * `xl create`, with nothing left behind.
 */

import { XenbusStateClosed, XenbusStateConnected, XenbusStateInitialising } from '../abi/io/xenbus.ts';
import { BlockDevice } from '../backends/block.ts';
import { ConsoleChannelDevice } from '../backends/console-channel.ts';
import { FramebufferDevice } from '../backends/framebuffer.ts';
import type { GuestPort } from '../backends/guest-port.ts';
import { KeyboardDevice } from '../backends/keyboard.ts';
import { NetworkDevice } from '../backends/network.ts';
import { DiskTraffic, NetworkTraffic } from '../backends/traffic.ts';
import { type BackendDevice, type DeviceBus, type KnownNodes, XenbusBackend } from '../backends/xenbus.ts';
import { announcement } from '../network/announcement.ts';
import { backendDomid } from '../toolstack/backend-domain.ts';
import type { ChannelConfig } from '../toolstack/config/channel.ts';
import { diskFromNodes, vifFromNodes } from '../toolstack/config/device-from-nodes.ts';
import type { DiskConfig } from '../toolstack/config/disk.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import { type VfbConfig, vncPlace } from '../toolstack/config/framebuffer.ts';
import { makeUpMac, type VifConfig } from '../toolstack/config/network-interface.ts';
import {
  addDeviceNodes,
  backendPath,
  channelNodes,
  type DeviceNodes,
  diskNodes,
  removeDeviceNodes,
  screenNodes,
  scriptPath,
  vifNodes,
} from '../toolstack/device-nodes.ts';
import { DevicePlugError, errorNode, plugDevice } from '../toolstack/device-plug.ts';
import type { DiskPlace } from '../toolstack/disk-place.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { openChannelEnd } from './channel-end.ts';
import type { ControlDevices } from './control-protocol.ts';
import type { OpenDisk } from './disk-layers.ts';
import { openDisk, placeDisk, placeForeignDisk } from './domain-disk.ts';
import { openNetwork, userScript, vifName } from './domain-network.ts';
import { HostError } from './host-error.ts';
import { type HotplugScript, runHotplugScript } from './hotplug-script.ts';
import { BACKEND_KINDS, PlugWatcher } from './plug-watcher.ts';
import { RfbServer } from './rfb/server.ts';

export interface DomainDevicesOptions {
  readonly store: XenstoreClient;
  readonly port: GuestPort;
  /** Of the domain, for viewers of its screen. */
  readonly name: string;
  /** Where xenstored listens, for scripts; null when nobody but this process can reach it. */
  readonly xenstoredPath: string | null;
  readonly log: (line: string) => void;
}

type MakeDevice = (bus: DeviceBus) => BackendDevice;
/** Runs its script, if it has one, and opens what is behind a device, once its nodes are there; `path` is the backend's folder. */
type OpenDevice = (path: string) => Promise<MakeDevice>;

/** A device that cannot be plugged is the user's to solve. */
async function asHostError<T>(done: Promise<T>, prefix = ''): Promise<T> {
  try {
    return await done;
  } catch (error) {
    if (error instanceof DevicePlugError) throw new HostError(`${prefix}${error.message}`);
    throw error;
  }
}

export class DomainDevices {
  readonly #options: DomainDevicesOptions;
  /** By the backend's folder. */
  readonly #devices = new Map<string, XenbusBackend>();
  readonly #disks = new Map<string, OpenDisk>();
  readonly #adding = new Set<string>();
  readonly #servers: RfbServer[] = [];
  #watcher: PlugWatcher | null = null;
  /** The nodes are those of a domain that was saved: devices go on where they were. */
  #isRestoring = false;
  /** What xenstore has of that domain, if that is known. */
  #known: KnownNodes | null = null;
  /** What was plugged when all was closed (`release`), until it goes on; and whether it is open again. */
  #released: DomainConfig | null = null;
  #isReopened = false;
  #hasEnded = false;

  constructor(options: DomainDevicesOptions) {
    this.#options = options;
  }

  /** @throws HostError when the disk cannot be had; nothing is left behind then */
  async addDisk(disk: DiskConfig): Promise<void> {
    const backend = await this.#backendOf(`Disk vdev=${disk.vdev}`, disk.backendDomain);
    if (backend !== 0)
      return await this.#addForeign(diskNodes(disk, placeForeignDisk(disk), disk.target ?? ''), backend);
    const place = await placeDisk(disk);
    const { script } = disk;
    await this.#add(diskNodes(disk, place.id, place.path), async (path) => {
      if (script === null) return await this.#openBlock(disk, place, path);
      return await this.#afterScript(scriptPath(script), path, async (unplug) => {
        const made = await this.#options.store.read(`${path}/physical-device-path`);
        return await this.#openBlock(disk, { ...place, path: made ?? place.path }, path, unplug);
      });
    });
  }

  /** Lets a disk's script make what `open` opens; `unplug` has to be called when that is closed. */
  async #afterScript(
    script: string,
    backendFolder: string,
    open: (unplug: () => Promise<void>) => Promise<MakeDevice>,
  ): Promise<MakeDevice> {
    await runHotplugScript({ path: script, words: ['add'], backendPath: backendFolder }, this.#options);
    const unplug = (): Promise<void> => this.#runLast({ path: script, words: ['remove'], backendPath: backendFolder });
    try {
      return await open(unplug);
    } catch (error) {
      await unplug();
      throw error;
    }
  }

  /** `unplug`: what a script is owed when the image is closed. */
  async #openBlock(
    disk: DiskConfig,
    place: DiskPlace,
    folder: string,
    unplug?: () => Promise<void>,
  ): Promise<MakeDevice> {
    const { path, format } = place;
    const options = {
      afterClose: async () => {
        this.#disks.delete(folder);
        await unplug?.();
      },
      image: await openDisk(disk, path, format),
      readOnly: !disk.writable,
      cdrom: disk.cdrom,
      discards: disk.discard ?? disk.writable,
      sectorBytes: 512,
    } as const;
    return (bus) => {
      const device = new BlockDevice(this.#options.port, bus, options);
      this.#disks.set(folder, { folder, disk, place, isScripts: unplug !== undefined, device });
      return device;
    };
  }

  /** Those that are served here. */
  get disks(): readonly OpenDisk[] {
    return [...this.#disks.values()];
  }

  /**
   * `mayLackForwards`: its domain has run already, and goes on without ports that somebody else has taken.
   * @throws HostError when there is no such network; nothing is left behind then
   */
  async addVif(vif: VifConfig, mayLackForwards = false): Promise<void> {
    const mac = vif.mac ?? makeUpMac();
    const backend = await this.#backendOf(`vif ${vif.devid}`, vif.backendDomain);
    if (backend !== 0) return await this.#addForeign(vifNodes(vif, mac), backend);
    await this.#add(vifNodes(vif, mac), (path) => this.#openVif(vif, mac, path, mayLackForwards));
  }

  /** A script of the user's runs when its interface is there: before the guest is served, and after it has gone. */
  async #openVif(
    vif: VifConfig,
    mac: Uint8Array,
    backendFolder: string,
    mayLackForwards: boolean,
  ): Promise<MakeDevice> {
    const { port, log } = this.#options;
    let device: NetworkDevice | null = null;
    const facts = { domid: port.domid, mac, takesGso: () => device?.takesGso ?? false, log, mayLackForwards };
    const network = await openNetwork(vif, facts);
    const path = userScript(vif);
    const script = (action: string): HotplugScript | null => {
      if (path === null) return null;
      const env = { vif: vifName(port.domid, vif), netdev: vif.gatewaydev ?? '' };
      return { path, words: [action, 'type_if=vif'], backendPath: backendFolder, env };
    };
    const [online, offline] = [script('online'), script('offline')];
    try {
      if (online !== null) await runHotplugScript(online, this.#options);
    } catch (error) {
      await network.close();
      throw error;
    }
    const options = {
      network,
      beforeClose: async () => {
        if (offline !== null) await this.#runLast(offline);
      },
      onlyMac: vif.macFilter ? mac : null,
      rate: vif.rate === null ? null : { bytes: vif.rate.bytesPerInterval, periodUs: vif.rate.intervalUs },
      nowMs: () => performance.now(),
      setTimer: (delayMs: number, callback: () => void) => {
        const timer = setTimeout(callback, delayMs);
        return () => clearTimeout(timer);
      },
    };
    return (bus) => {
      device = new NetworkDevice(port, bus, options);
      if (this.#isRestoring) {
        // It may come from another host: what is for the guest is to come here.
        network.send(announcement(mac));
        network.flush();
      }
      return device;
    };
  }

  /**
   * A screen with keyboard and pointer, and the VNC server that shows it.
   * @throws HostError when the port cannot be had; nothing is left behind then
   */
  async addVfb(vfb: VfbConfig): Promise<void> {
    const { port, store, name } = this.#options;
    const nodes = screenNodes(vfb, name);
    const keyboard = new KeyboardDevice(port);
    let screen: FramebufferDevice | null = null;
    await this.#add(nodes.vkbd, async () => () => keyboard);
    await this.#add(nodes.vfb, async () => (bus) => {
      const framebuffer = new FramebufferDevice(port, bus);
      screen = framebuffer;
      return framebuffer;
    });
    if (screen === null || vfb.vnc === false) return;
    const place = vncPlace(vfb);
    if (place === null) throw new HostError(`vfb: vnclisten=${vfb.listen}: expected ADDRESS or ADDRESS:DISPLAY`);
    const server = await RfbServer.open({
      framebuffer: screen,
      keyboard,
      name: `Xen-${name}`,
      listen: place.address,
      display: place.display,
      findUnused: vfb.findUnused ?? true,
      password: vfb.password === '' ? null : vfb.password,
      websocket: vfb.websocket,
    });
    this.#servers.push(server);
    const console = `/local/domain/${port.domid}/console`;
    await store.write(`${console}/vnc-listen`, place.address);
    await store.write(`${console}/vnc-port`, String(server.port));
    if (server.webPort !== null) await store.write(`${console}/vnc-websocket-port`, String(server.webPort));
  }

  /** @throws HostError when the host's end cannot be had; nothing is left behind then */
  async addChannel(channel: ChannelConfig): Promise<void> {
    const { backendDomain, name } = channel;
    if ((await this.#backendOf(`channel ${name}`, backendDomain)) !== 0)
      throw new HostError(`channel ${name}: backend=${backendDomain}: channels are served by Dom0 only`);
    const { end, tty } = await openChannelEnd(channel);
    try {
      await this.#add(channelNodes(channel, tty), async () => () => new ConsoleChannelDevice(this.#options.port, end));
    } catch (error) {
      end.close();
      throw error;
    }
  }

  async #backendOf(device: string, backend: string | null): Promise<number> {
    return await asHostError(backendDomid(this.#options.store, backend), `${device}: `);
  }

  /** A device that a driver domain serves: that finds it by its nodes. */
  async #addForeign(nodes: DeviceNodes, backend: number): Promise<void> {
    const { store, port } = this.#options;
    await asHostError(plugDevice(store, port.domid, { ...nodes, backendDomid: backend }));
  }

  /** Makes a device's nodes and starts its backend, which is in InitWait when this resolves. */
  async #add(nodes: DeviceNodes, open: OpenDevice): Promise<void> {
    const { store, port } = this.#options;
    const path = backendPath(port.domid, nodes);
    const isThere = this.#isRestoring ? (await store.read(`${path}/state`)) !== null : false;
    if (this.#devices.has(path) || !(isThere || (await addDeviceNodes(store, port.domid, nodes))))
      throw new HostError(`Domain ${port.domid}: device ${nodes.kind} ${nodes.id} is there already`);
    this.#adding.add(path);
    let backend: XenbusBackend | null = null;
    try {
      backend = await this.#start(path, await open(path));
      if (backend.waitsForHotplug) await store.write(`${path}/hotplug-status`, 'connected');
    } catch (error) {
      this.#devices.delete(path);
      await backend?.stop();
      await removeDeviceNodes(store, port.domid, nodes);
      throw error;
    } finally {
      this.#adding.delete(path);
    }
  }

  async #start(path: string, device: MakeDevice): Promise<XenbusBackend> {
    const { store, log } = this.#options;
    const backend = new XenbusBackend({ store, path, device, log });
    this.#devices.set(path, backend);
    // Whoever has unplugged it.
    void backend.gone.then(() => {
      if (this.#devices.get(path) === backend) this.#devices.delete(path);
    });
    try {
      await backend.start(this.#isRestoring, this.#known);
    } catch (error) {
      this.#devices.delete(path);
      await backend.stop();
      throw error;
    }
    return backend;
  }

  /** Lets go of the guest's memory, which nobody touches any more when this resolves. No device comes or goes meanwhile. */
  async detach(): Promise<void> {
    await this.#watcher?.hold();
    await Promise.all([...this.#devices.values()].map((backend) => backend.detach()));
  }

  /** After `detach`: closes what is behind them too, so that another process may open it. */
  async release(config: DomainConfig): Promise<void> {
    this.#released = config;
    this.#isReopened = false;
    await this.close();
  }

  /** After `release`: opens all again; nothing if nothing was released. @throws HostError when one cannot be had any more; all are closed then */
  async reopen(): Promise<void> {
    if (this.#released === null || this.#isReopened || this.#hasEnded) return;
    try {
      await this.restore(this.#released);
    } catch (error) {
      await this.close();
      throw error;
    }
    this.#isReopened = true;
  }

  /** After `detach`, or `release`: all go on where they were. @throws HostError when what was released cannot be had any more */
  async attach(): Promise<void> {
    await this.reopen();
    if (this.#hasEnded) return;
    if (this.#released === null) await Promise.all([...this.#devices.values()].map((backend) => backend.attach()));
    this.#released = null;
    if (this.#watcher !== null) {
      this.#watcher.release();
      return;
    }
    // The guest need not wait for it: a watch fires when it is set.
    void this.watch().catch((error: Error) => this.#options.log(`looking for new devices: ${error.message}`));
  }

  /**
   * Opens the devices of a restored domain, whose nodes are there, and goes on with each where it was. `config` has what no nodes say;
   * `known`: all nodes of the domain, if nobody can have changed any.
   * @throws HostError
   */
  async restore(config: DomainConfig, known: KnownNodes | null = null): Promise<void> {
    this.#isRestoring = true;
    this.#known = known;
    const { store, port } = this.#options;
    const kindFolder = (kind: string): string => `/local/domain/0/backend/${kind}/${port.domid}`;
    const found: { backendKind: string; path: string; configured: VifConfig | undefined }[] = [];
    const namesIn = (folder: string): Promise<string[] | null> | string[] =>
      known === null ? store.directory(folder) : namesBelow(known, folder);
    const names = await Promise.all(BACKEND_KINDS.map((kind) => namesIn(kindFolder(kind))));
    for (const [i, backendKind] of BACKEND_KINDS.entries())
      for (const name of names[i] ?? []) {
        const configured = config.vifs.find((vif) => backendKind === 'vif' && String(vif.devid) === name);
        found.push({ backendKind, path: `${kindFolder(backendKind)}/${name}`, configured });
      }
    // The guest stands still meanwhile.
    const done = await Promise.allSettled(
      found.map(async ({ backendKind, path, configured }) => {
        const nodes = known === null ? await this.#readNodes(path) : nodesIn(known, path);
        // Those that had been unplugged.
        if (Number(nodes['state']) > XenbusStateConnected) return;
        await this.#start(path, await this.#openFromNodes(path, backendKind, nodes, configured));
      }),
    );
    for (const one of done) if (one.status === 'rejected') throw one.reason;
    for (const vfb of config.vfbs) await this.addVfb(vfb);
    this.#isRestoring = false;
    this.#known = null;
  }

  async #readNodes(path: string): Promise<Record<string, string>> {
    const { store } = this.#options;
    const names = (await store.directory(path)) ?? [];
    const values = await Promise.all(names.map((name) => store.read(`${path}/${name}`)));
    return Object.fromEntries(names.map((name, i) => [name, values[i] ?? '']));
  }

  /** Somebody else has made the nodes of a device: it is opened, and its backend started. What is wrong is told in xenstore. */
  async #adopt(backendKind: string, id: number): Promise<void> {
    const { store, port, log } = this.#options;
    const path = `/local/domain/0/backend/${backendKind}/${port.domid}/${id}`;
    if (this.#devices.has(path) || this.#adding.has(path)) return;
    const nodes = await this.#readNodes(path);
    if (nodes['state'] !== String(XenbusStateInitialising)) return;
    try {
      await this.#start(path, await this.#openFromNodes(path, backendKind, nodes));
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      log(`${path}: ${error.message}`);
      await store.write(errorNode(path), error.message.slice(0, 1024));
      // It will not come, whether or not somebody is there to take its nodes away.
      await store.write(`${path}/online`, '0');
      await store.write(`${path}/state`, String(XenbusStateClosed));
    }
  }

  /** `configured`: the same interface in the domain's config, for what nodes of an older Domus do not say. */
  async #openFromNodes(
    path: string,
    backendKind: string,
    nodes: Readonly<Record<string, string>>,
    configured: VifConfig | undefined = undefined,
  ): Promise<MakeDevice> {
    if (backendKind === 'vif') {
      const vif = vifFromNodes(nodes, configured);
      if (vif?.mac) return await this.#openVif(vif, vif.mac, path, this.#isRestoring);
    } else {
      const disk = diskFromNodes(nodes);
      if (disk !== null && disk.script === null) return await this.#openBlock(disk, await placeDisk(disk), path);
      if (disk !== null && disk.script !== null)
        return await this.#afterScript(disk.script, path, async (unplug) => {
          const made = { ...(diskFromNodes(await this.#readNodes(path)) ?? disk), script: null };
          return await this.#openBlock(made, await placeDisk(made), path, unplug);
        });
    }
    throw new HostError(`the nodes describe no ${backendKind}`);
  }

  /** Runs a device's script for the last time. What goes wrong with it holds nothing up. */
  async #runLast(script: HotplugScript): Promise<void> {
    try {
      await runHotplugScript(script, this.#options);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.#options.log(`${script.backendPath}: ${error.message}`);
    }
  }

  /** From now on, devices that others plug in are served too. */
  async watch(): Promise<void> {
    const { store, port, log } = this.#options;
    const onDevice = (backendKind: string, id: number): Promise<void> => this.#adopt(backendKind, id);
    this.#watcher = new PlugWatcher({ store, domid: port.domid, onDevice, log });
    await this.#watcher.start();
  }

  /** What has gone through the disks and interfaces that are plugged in, by number. */
  traffic(): ControlDevices {
    const disks: (DiskTraffic & { id: number })[] = [];
    const vifs: (NetworkTraffic & { id: number })[] = [];
    for (const { path, traffic } of this.#devices.values()) {
      const id = Number(path.slice(path.lastIndexOf('/') + 1));
      if (traffic instanceof DiskTraffic) disks.push({ id, ...traffic });
      else if (traffic instanceof NetworkTraffic) vifs.push({ id, ...traffic });
    }
    return { disks: disks.sort((a, b) => a.id - b.id), vifs: vifs.sort((a, b) => a.id - b.id) };
  }

  /** The domain has ended: nothing of it is used any more when this resolves, or will be. Its nodes go with all others of the domain. */
  async end(): Promise<void> {
    this.#hasEnded = true;
    await this.close();
  }

  /** Nothing of the domain is used any more when this resolves. */
  async close(): Promise<void> {
    const watcher = this.#watcher;
    this.#watcher = null;
    await watcher?.stop();
    for (const server of this.#servers.splice(0)) server.close();
    const backends = [...this.#devices.values()];
    this.#devices.clear();
    await Promise.all(backends.map((backend) => backend.stop()));
  }
}

function namesBelow(known: KnownNodes, folder: string): string[] {
  const names = [...known.keys()].filter((path) => path.startsWith(`${folder}/`));
  return [...new Set(names.map((path) => path.slice(folder.length + 1).split('/')[0]))];
}

/** Values of a folder by name. */
function nodesIn(known: KnownNodes, folder: string): Record<string, string> {
  return Object.fromEntries(namesBelow(known, folder).map((name) => [name, known.get(`${folder}/${name}`) ?? '']));
}

/** The disks of a domain, by its nodes, as far as files of this host are behind them. @throws HostError when one is not there */
export async function disksMustBeThere(known: KnownNodes, domid: number): Promise<void> {
  for (const backendKind of BACKEND_KINDS.filter((kind) => kind !== 'vif'))
    for (const name of namesBelow(known, `/local/domain/0/backend/${backendKind}/${domid}`)) {
      const nodes = nodesIn(known, `/local/domain/0/backend/${backendKind}/${domid}/${name}`);
      const disk = diskFromNodes(nodes);
      if (disk !== null && disk.script === null) await placeDisk(disk);
    }
}
