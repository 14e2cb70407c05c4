/**
 * The disks and interfaces that a domain has now, and its config with them: what was plugged since it was made is there, what was unplugged is
 * not, and an address that was made up is the interface's own. With that config it is started again, and `xl list -l` shows it.
 *
 * The toolstack's own copy of their nodes, /libxl/DOMID/device, is what tells. It is there from before a device is used until it is taken
 * away, it is on disk, and it goes with the domain when that is saved or moves. libxl keeps a second record, in a file, and brings both
 * together in the same way.
 *
 * Source: tools/libs/light/libxl.c, libxl_retrieve_domain_configuration (behaviour).
 */

import type { XenstoreClient } from '../xenstore/client.ts';
import { diskFromNodes, vifFromNodes } from './config/device-from-nodes.ts';
import { type ConfigAndText, formatDisk, formatVif, withDevices } from './config/device-specs.ts';
import { type DiskConfig, vdevNumber } from './config/disk.ts';
import type { DomainConfig } from './config/domain-config.ts';
import type { VifConfig } from './config/network-interface.ts';
import { diskNodes, vifNodes } from './device-nodes.ts';

type Nodes = Readonly<Record<string, string>>;

interface PluggedDevice {
  readonly id: number;
  /** Of its backend, as they were made. */
  readonly nodes: Nodes;
  /** Of its frontend now. The guest may have written to those that it owns. */
  readonly frontend: Nodes;
  /** Who serves it: a name, or a number where it has none; null for Dom0. */
  readonly backendDomain: string | null;
}

export interface PluggedDevices {
  readonly disks: readonly PluggedDevice[];
  readonly vifs: readonly PluggedDevice[];
}

/** By number. Those that are being unplugged, or could not be plugged, are left out. Null when the store has no such domain. */
export async function readPlugged(
  store: Pick<XenstoreClient, 'directory' | 'read'>,
  domid: number,
): Promise<PluggedDevices | null> {
  if ((await store.read(`/local/domain/${domid}/vm`)) === null) return null;
  const nodesOf = async (folder: string): Promise<Nodes> => {
    const names = (await store.directory(folder)) ?? [];
    const values = await Promise.all(names.map((name) => store.read(`${folder}/${name}`)));
    return Object.fromEntries(names.map((name, i) => [name, values[i] ?? '']));
  };
  const backendDomainOf = async (backend: string): Promise<string | null> => {
    const backendDomid = backend.split('/')[3];
    return backendDomid === '0' ? null : ((await store.read(`/local/domain/${backendDomid}/name`)) ?? backendDomid);
  };
  const devicesOf = async (kind: string): Promise<PluggedDevice[]> => {
    const folder = `/libxl/${domid}/device/${kind}`;
    const ids = ((await store.directory(folder)) ?? []).filter((id) => /^\d{1,9}$/.test(id)).map(Number);
    const devices = await Promise.all(
      ids
        .sort((a, b) => a - b)
        .map(async (id) => {
          const nodes = await nodesOf(`${folder}/${id}`);
          const backend = nodes['backend'] ?? '';
          if ((await store.read(`${backend}/online`)) === '0') return null;
          const frontend = await nodesOf(`/local/domain/${domid}/device/${kind}/${id}`);
          return { id, nodes, frontend, backendDomain: await backendDomainOf(backend) };
        }),
    );
    return devices.filter((device) => device !== null);
  };
  return { disks: await devicesOf('vbd'), vifs: await devicesOf('vif') };
}

/** The same config with these devices; the very same if it has them. */
export function withPlugged(from: ConfigAndText, plugged: PluggedDevices): ConfigAndText {
  const { disks, vifs } = from.config;
  const next = {
    disks: merged(disks, plugged.disks, ({ vdev }) => vdevNumber(vdev), diskOf),
    vifs: merged(vifs, plugged.vifs, ({ devid }) => devid, vifOf),
  };
  const changed: Partial<Pick<DomainConfig, 'disks' | 'vifs'>> = {
    ...(isSame(disks, next.disks, formatDisk) ? {} : { disks: next.disks }),
    ...(isSame(vifs, next.vifs, formatVif) ? {} : { vifs: next.vifs }),
  };
  return Object.keys(changed).length === 0 ? from : withDevices(from, changed);
}

/** Those of the config keep their order: the first disk may be the one that is booted. */
function merged<Device>(
  configured: readonly Device[],
  plugged: readonly PluggedDevice[],
  idOf: (device: Device) => number | null,
  deviceOf: (plugged: PluggedDevice, configured: Device | null) => Device | null,
): Device[] {
  const old = configured.flatMap((device) => {
    const one = plugged.find(({ id }) => id === idOf(device));
    return one === undefined ? [] : [deviceOf(one, device)];
  });
  const added = plugged.filter(({ id }) => !configured.some((device) => idOf(device) === id));
  return [...old, ...added.map((one) => deviceOf(one, null))].filter((device) => device !== null);
}

function isSame<Device>(a: readonly Device[], b: readonly Device[], format: (device: Device) => string): boolean {
  return a.map(format).join('\n') === b.map(format).join('\n');
}

/** What was said of it, where that comes to these nodes; a relative path is an absolute one now. */
function diskOf(
  { id, nodes, frontend, backendDomain }: PluggedDevice,
  configured: DiskConfig | null,
): DiskConfig | null {
  const disk = diskFromNodes(nodes);
  const target = disk?.target ?? '';
  if (configured !== null && isMadeOf(diskNodes(configured, id, target).backend, nodes))
    return { ...configured, target };
  return disk === null ? configured : { ...disk, backendDomain, trusted: trustIn(frontend) };
}

function vifOf({ nodes, frontend, backendDomain }: PluggedDevice, configured: VifConfig | null): VifConfig | null {
  const vif = vifFromNodes(nodes, configured);
  if (vif === null || vif.mac === null) return configured;
  const made = configured === null ? null : vifFromNodes(vifNodes(configured, configured.mac ?? vif.mac).backend);
  // What the nodes say beyond the config counts as much: `loopback=0` of one that was plugged in its place.
  if (configured !== null && made !== null && formatVif(made) === formatVif(vif))
    return { ...configured, mac: vif.mac };
  return { ...vif, macFilter: vif.macFilter && backendDomain === null, backendDomain, trusted: trustIn(frontend) };
}

function isMadeOf(made: Nodes, nodes: Nodes): boolean {
  return Object.entries(made).every(([name, value]) => nodes[name] === value);
}

function trustIn({ trusted }: Nodes): boolean | null {
  return trusted === '0' ? false : null;
}
