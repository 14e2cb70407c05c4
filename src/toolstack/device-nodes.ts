/**
 * The xenstore nodes of a split device, as libxl makes them: the frontend's, which the guest owns; the backend's, which Dom0 or a
 * driver domain owns and the guest may read; and a copy of what was asked for below /libxl, by which the toolstack finds its devices again.
 *
 * Paths, values and permissions are those recorded from Xen 4.17. Deviations: there is no loop device behind an image file, so
 * `physical-device` and `node` are missing, and `params` is the file. An interface's backend also has `default-bridge`, and, where they
 * were said, `mtu`, `forward-N`, `loopback` and `macfilter`: whoever finds the device by its nodes alone is to know all of it.
 *
 * Source: tools/libs/light/libxl_device.c libxl__device_generic_add, libxl_disk.c, libxl_nic.c (behaviour).
 */

import { XenbusStateClosing, XenbusStateInitialising } from '../abi/io/xenbus.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import type { ChannelConfig } from './config/channel.ts';
import type { DiskConfig } from './config/disk.ts';
import type { VfbConfig } from './config/framebuffer.ts';
import { formatMac, type VifConfig } from './config/network-interface.ts';

export interface DeviceNodes {
  /** Below device/ of the guest and /libxl; and below backend/ of Dom0, where they differ for disks that are not raw. */
  readonly kind: string;
  readonly backendKind: string;
  readonly id: number;
  readonly backend: Readonly<Record<string, string>>;
  readonly frontend: Readonly<Record<string, string>>;
  /** Nodes of the frontend that the guest may only read. */
  readonly frontendReadOnly?: Readonly<Record<string, string>>;
  /** Who serves it; Dom0 if left out. */
  readonly backendDomid?: number;
}

/** Source: libxl_create.c, xl.conf(5) vif.default.bridge. */
export const DEFAULT_BRIDGE = 'xenbr0';
const SCRIPTS = '/etc/xen/scripts';
const flag = (value: boolean): string => (value ? '1' : '0');

/** The script's path: names are relative to Xen's folder. */
export function scriptPath(name: string): string {
  return name.startsWith('/') ? name : `${SCRIPTS}/${name}`;
}

/** A disk; `target` is the file, as an absolute path, `id` its number (config/disk.ts, vdevNumber). */
export function diskNodes(disk: DiskConfig, id: number, target: string): DeviceNodes {
  const raw = disk.format === 'raw' && disk.backend !== 'qdisk';
  const type = disk.cdrom ? 'cdrom' : 'disk';
  return {
    kind: 'vbd',
    backendKind: raw ? 'vbd' : 'qdisk',
    id,
    backend: {
      ...(raw
        ? { params: target, script: scriptPath(disk.script ?? 'block') }
        : { params: `${disk.format === 'raw' ? 'aio' : disk.format}:${target}` }),
      type: raw ? 'phy' : 'qdisk',
      removable: flag(disk.cdrom),
      bootable: '1',
      dev: disk.vdev,
      mode: disk.writable ? 'w' : 'r',
      'device-type': type,
      'discard-enable': flag(disk.discard ?? disk.writable),
      specification: 'xen',
      ...(disk.directIoSafe ? { 'direct-io-safe': '1' } : {}),
    },
    frontend: {
      'virtual-device': String(id),
      'device-type': type,
      trusted: flag(disk.trusted ?? true),
    },
  };
}

/** A network interface with the address that it was given or that was made up for it. */
export function vifNodes(vif: VifConfig, mac: Uint8Array): DeviceNodes {
  return {
    kind: 'vif',
    backendKind: 'vif',
    id: vif.devid,
    backend: {
      script: scriptPath(vif.script ?? 'vif-bridge'),
      ...(vif.ifname === null ? {} : { vifname: vif.ifname }),
      mac: formatMac(mac),
      ...(vif.ip === null ? {} : { ip: vif.ip }),
      ...(vif.gatewaydev === null ? {} : { gatewaydev: vif.gatewaydev }),
      ...(vif.rate === null ? {} : { rate: `${vif.rate.bytesPerInterval},${vif.rate.intervalUs}` }),
      bridge: vif.bridge ?? DEFAULT_BRIDGE,
      'default-bridge': flag(vif.bridge === null),
      ...(vif.mtu === null ? {} : { mtu: String(vif.mtu) }),
      ...Object.fromEntries(vif.forwards.map((text, i) => [`forward-${i}`, text])),
      ...(vif.loopback ? {} : { loopback: '0' }),
      ...(vif.macFilter ? { macfilter: '1' } : {}),
      handle: String(vif.devid),
      type: 'vif',
      'hotplug-status': '',
    },
    frontend: {
      handle: String(vif.devid),
      mac: formatMac(mac),
      trusted: flag(vif.trusted ?? true),
    },
    frontendReadOnly: { mtu: String(vif.mtu ?? 1500) },
  };
}

/** A screen, and the keyboard and pointer that go with it. `domainName` is what a viewer shows. */
export function screenNodes(
  vfb: VfbConfig,
  domainName: string,
): { readonly vfb: DeviceNodes; readonly vkbd: DeviceNodes } {
  const vnc = vfb.vnc ?? true;
  const device = (kind: string, backend: Readonly<Record<string, string>>): DeviceNodes => {
    return { kind, backendKind: kind, id: vfb.devid, backend: { domain: domainName, ...backend }, frontend: {} };
  };
  return {
    vfb: device('vfb', {
      vnc: flag(vnc),
      ...(vnc
        ? {
            vnclisten: vfb.listen ?? '127.0.0.1',
            vncdisplay: String(vfb.display),
            vncunused: flag(vfb.findUnused ?? true),
            ...(vfb.keymap === null ? {} : { keymap: vfb.keymap }),
            ...(vfb.password === null ? {} : { vncpasswd: vfb.password }),
          }
        : {}),
      sdl: flag(vfb.sdl ?? false),
    }),
    vkbd: device('vkbd', {}),
  };
}

/** Source: libxl_internal.h, LIBXL_XENCONSOLE_LIMIT and LIBXL_XENCONSOLE_PROTOCOL. */
const CONSOLE_LIMIT = '1048576';
const CONSOLE_PROTOCOL = 'vt100';

/** A channel, which is a console with a name. `tty`: the host's end of one that is a pty. */
export function channelNodes({ devid, name, connection }: ChannelConfig, tty: string): DeviceNodes {
  return {
    kind: 'console',
    backendKind: 'console',
    id: devid,
    backend: {
      protocol: CONSOLE_PROTOCOL,
      name,
      connection: connection.kind,
      ...(connection.kind === 'socket' ? { path: connection.path } : {}),
    },
    frontend: { protocol: CONSOLE_PROTOCOL },
    frontendReadOnly: {
      name,
      limit: CONSOLE_LIMIT,
      // Of consoles below device/, Linux serves those only.
      type: 'ioemu',
      output: connection.kind === 'pty' ? 'pty' : `chardev:libxl-channel${devid}`,
      tty,
    },
  };
}

export function backendPath(domid: number, nodes: DeviceNodes): string {
  return `/local/domain/${nodes.backendDomid ?? 0}/backend/${nodes.backendKind}/${domid}/${nodes.id}`;
}

export function frontendPath(domid: number, nodes: DeviceNodes): string {
  return `/local/domain/${domid}/device/${nodes.kind}/${nodes.id}`;
}

function libxlPath(domid: number, nodes: DeviceNodes): string {
  return `/libxl/${domid}/device/${nodes.kind}/${nodes.id}`;
}

/** Makes the nodes of both ends, which are Initialising. False when the domain has this device. */
export async function addDeviceNodes(store: XenstoreClient, domid: number, nodes: DeviceNodes): Promise<boolean> {
  const backend = backendPath(domid, nodes);
  const frontend = frontendPath(domid, nodes);
  const libxl = libxlPath(domid, nodes);
  const state = String(XenbusStateInitialising);
  const backendDomid = nodes.backendDomid ?? 0;
  const backendNodes = { frontend, 'frontend-id': String(domid), online: '1', state, ...nodes.backend };
  const frontendNodes = { backend, 'backend-id': String(backendDomid), state, ...nodes.frontend };
  return await store.transaction(async (t) => {
    if ((await t.read(libxl)) !== null) return false;
    const folder = async (path: string, permissions: readonly string[]): Promise<void> => {
      await t.mkdir(path);
      await t.setPermissions(path, permissions);
    };
    const guestReads = ['n0', `r${domid}`];
    await folder(`/local/domain/${domid}/device/${nodes.kind}`, guestReads);
    // What is written below has the permissions of its folder.
    await folder(frontend, [`n${domid}`, `r${backendDomid}`]);
    await folder(backend, [`n${backendDomid}`, `r${domid}`]);
    for (const [name, value] of Object.entries(frontendNodes)) await t.write(`${frontend}/${name}`, value);
    for (const [name, value] of Object.entries(nodes.frontendReadOnly ?? {})) {
      await t.write(`${frontend}/${name}`, value);
      await t.setPermissions(`${frontend}/${name}`, guestReads);
    }
    for (const [name, value] of Object.entries(backendNodes)) await t.write(`${backend}/${name}`, value);
    for (const [name, value] of Object.entries({ ...backendNodes, backend })) await t.write(`${libxl}/${name}`, value);
    return true;
  });
}

/** Asks both ends to let go of the device. Its nodes stay until `removeDeviceNodes`. */
export async function unplugDevice(store: XenstoreClient, domid: number, nodes: DeviceNodes): Promise<void> {
  const backend = backendPath(domid, nodes);
  await store.transaction(async (t) => {
    if ((await t.read(`${backend}/state`)) === null) return;
    await t.write(`${backend}/online`, '0');
    await t.write(`${backend}/state`, String(XenbusStateClosing));
  });
}

export async function removeDeviceNodes(store: XenstoreClient, domid: number, nodes: DeviceNodes): Promise<void> {
  await store.transaction(async (t) => {
    await t.remove(frontendPath(domid, nodes));
    await t.remove(backendPath(domid, nodes));
    await t.remove(libxlPath(domid, nodes));
    // As libxl does, folders that are empty now go too.
    const parent = `/local/domain/${nodes.backendDomid ?? 0}/backend/${nodes.backendKind}/${domid}`;
    if ((await t.directory(parent))?.length === 0) await t.remove(parent);
  });
}
