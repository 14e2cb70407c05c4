/** The way back from a backend's nodes to what was asked for: for devices that another process has made. */

import { DEFAULT_BRIDGE, scriptPath } from '../device-nodes.ts';
import { type DiskConfig, type DiskFormat, FORMATS } from './disk.ts';
import type { VifConfig } from './network-interface.ts';

type Nodes = Readonly<Record<string, string>>;

/** What stands before the file in a qdisk's `params`. */
const QDISK_PARAMS = new RegExp(`^(aio|${FORMATS.filter((format) => format !== 'empty').join('|')}):(.*)$`, 's');

/**
 * Null when the nodes describe no disk. Where a script has run already, what it has made stands in physical-device-path, and is the
 * target; in the toolstack's own copy of the nodes it is what the script was given.
 */
export function diskFromNodes(nodes: Nodes): DiskConfig | null {
  const { params, dev, type } = nodes;
  if (params === undefined || dev === undefined) return null;
  let format: DiskFormat = 'raw';
  let target = nodes['physical-device-path'] ?? params;
  if (type === 'qdisk') {
    const match = QDISK_PARAMS.exec(params);
    if (match === null) return null;
    format = match[1] === 'aio' ? 'raw' : (match[1] as DiskFormat);
    target = match[2];
  }
  // A disk that was moved into another image keeps the node.
  const script = type === 'qdisk' || nodes['script'] === scriptPath('block') ? undefined : nodes['script'];
  return {
    backendDomain: null,
    target,
    vdev: dev,
    backend: type === 'qdisk' ? 'qdisk' : 'phy',
    format,
    script: script ?? null,
    writable: nodes['mode'] === 'w',
    cdrom: nodes['device-type'] === 'cdrom',
    directIoSafe: nodes['direct-io-safe'] === '1',
    discard: nodes['discard-enable'] === undefined ? null : nodes['discard-enable'] === '1',
    specification: null,
    trusted: null,
  };
}

/**
 * Null when the nodes describe no interface. `configured` is the one of that number in the domain's config, and counts where the nodes are
 * those of a Domus that did not write all down (a saved domain's): forwards, loopback, mtu, and whether the bridge xenbr0 was named. Without
 * it, it was: a guest is rather on an Ethernet of its own than on the host's network unasked.
 *
 * Nothing of a PV interface's backend are `type`, `model` and `trusted`; whose it is (`backend`) its path says.
 */
export function vifFromNodes(nodes: Nodes, configured: VifConfig | null = null): VifConfig | null {
  const { handle, mac, bridge } = nodes;
  const bytes = mac?.split(':').map((byte) => (/^[0-9a-f]{2}$/i.test(byte) ? Number.parseInt(byte, 16) : -1));
  if (!/^\d{1,9}$/.test(handle ?? '') || bytes?.length !== 6 || bytes.includes(-1)) return null;
  const rate = /^(\d{1,15}),(\d{1,9})$/.exec(nodes['rate'] ?? '');
  const vif: VifConfig = {
    devid: Number(handle),
    mtu: /^\d{1,9}$/.test(nodes['mtu'] ?? '') ? Number(nodes['mtu']) : null,
    model: null,
    mac: Uint8Array.from(bytes),
    ip: nodes['ip'] ?? null,
    bridge: bridge === undefined || nodes['default-bridge'] === '1' ? null : bridge,
    ifname: nodes['vifname'] ?? null,
    script: nodes['script'] ?? null,
    type: null,
    backendDomain: null,
    gatewaydev: nodes['gatewaydev'] ?? null,
    rate: rate === null ? null : { bytesPerInterval: Number(rate[1]), intervalUs: Number(rate[2]) },
    trusted: null,
    forwards: forwardsIn(nodes),
    loopback: nodes['loopback'] !== '0',
    macFilter: nodes['macfilter'] === '1',
  };
  if (nodes['default-bridge'] !== undefined || configured === null) return vif;
  const { mtu, forwards, loopback } = configured;
  return { ...vif, mtu, forwards, loopback, bridge: bridge === DEFAULT_BRIDGE ? configured.bridge : vif.bridge };
}

function forwardsIn(nodes: Nodes): string[] {
  const forwards: string[] = [];
  for (let text = nodes['forward-0']; text !== undefined; text = nodes[`forward-${forwards.length}`])
    forwards.push(text);
  return forwards;
}
