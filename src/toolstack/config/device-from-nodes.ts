/** The way back from a backend's nodes to what was asked for: for devices that another toolstack has made. */

import type { DiskConfig, DiskFormat } from './disk.ts';
import type { VifConfig } from './network-interface.ts';

type Nodes = Readonly<Record<string, string>>;

/** Null when the nodes describe no disk. A script has run already: what it has made stands in physical-device-path. */
export function diskFromNodes(nodes: Nodes): DiskConfig | null {
  const { params, dev, type } = nodes;
  if (params === undefined || dev === undefined) return null;
  let format: DiskFormat = 'raw';
  let target = nodes['physical-device-path'] ?? params;
  if (type === 'qdisk') {
    const match = /^(aio|raw|qcow2|vhd):(.*)$/s.exec(params);
    if (match === null) return null;
    format = match[1] === 'aio' ? 'raw' : (match[1] as DiskFormat);
    target = match[2];
  }
  return {
    backendDomain: null,
    target,
    vdev: dev,
    backend: type === 'qdisk' ? 'qdisk' : 'phy',
    format,
    script: null,
    writable: nodes['mode'] === 'w',
    cdrom: nodes['device-type'] === 'cdrom',
    directIoSafe: nodes['direct-io-safe'] === '1',
    discard: nodes['discard-enable'] === undefined ? null : nodes['discard-enable'] === '1',
    specification: null,
    trusted: null,
  };
}

/** Null when the nodes describe no interface. */
export function vifFromNodes(nodes: Nodes): VifConfig | null {
  const { handle, mac, bridge } = nodes;
  const bytes = mac?.split(':').map((byte) => (/^[0-9a-f]{2}$/i.test(byte) ? Number.parseInt(byte, 16) : -1));
  if (!/^\d{1,9}$/.test(handle ?? '') || bytes?.length !== 6 || bytes.includes(-1)) return null;
  const rate = /^(\d{1,15}),(\d{1,9})$/.exec(nodes['rate'] ?? '');
  return {
    devid: Number(handle),
    mtu: null,
    model: null,
    mac: Uint8Array.from(bytes),
    ip: nodes['ip'] ?? null,
    // The default is written out, too.
    bridge: bridge === undefined || bridge === 'xenbr0' ? null : bridge,
    ifname: nodes['vifname'] ?? null,
    script: nodes['script'] ?? null,
    type: null,
    backendDomain: null,
    gatewaydev: nodes['gatewaydev'] ?? null,
    rate: rate === null ? null : { bytesPerInterval: Number(rate[1]), intervalUs: Number(rate[2]) },
    trusted: null,
    forwards: [],
    loopback: true,
  };
}
