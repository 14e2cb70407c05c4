/** Disks and interfaces as specifications again: what `parseDisk` and `parseVif` read as the same. For a config whose devices have changed. */

import { type DiskConfig, vdevNumber } from './disk.ts';
import type { DomainConfig } from './domain-config.ts';
import { formatMac, type VifConfig } from './network-interface.ts';
import { appendOverrides } from './xl-cfg.ts';

export function formatDisk(disk: DiskConfig): string {
  const { backend, backendDomain, script, specification, discard, trusted } = disk;
  const words = [`vdev=${disk.vdev}`];
  if (disk.format !== 'empty') words.push(`format=${disk.format}`);
  if (disk.cdrom) words.push('devtype=cdrom');
  else words.push(`access=${disk.writable ? 'rw' : 'ro'}`);
  if (backendDomain !== null) words.push(`backend=${backendDomain}`);
  if (backend !== null) words.push(`backendtype=${backend}`);
  if (script !== null) words.push(`script=${script}`);
  if (specification !== null) words.push(`specification=${specification}`);
  if (disk.directIoSafe) words.push('direct-io-safe');
  if (discard !== null) words.push(discard ? 'discard' : 'no-discard');
  if (trusted !== null) words.push(trusted ? 'trusted' : 'untrusted');
  // It takes the rest, whatever that is.
  if (disk.target !== null) words.push(`target=${disk.target}`);
  return words.join(',');
}

export function formatVif(vif: VifConfig): string {
  const { mac, rate, trusted } = vif;
  const words = [`devid=${vif.devid}`];
  const say = (key: string, value: string | number | null): void => {
    if (value !== null) words.push(`${key}=${value}`);
  };
  say('type', vif.type === 'vif_ioemu' ? 'ioemu' : vif.type);
  say('mac', mac === null ? null : formatMac(mac));
  say('bridge', vif.bridge);
  say('gatewaydev', vif.gatewaydev);
  say('ip', vif.ip);
  say('script', vif.script);
  say('backend', vif.backendDomain);
  say('vifname', vif.ifname);
  say('model', vif.model);
  // Bytes a second that come to so many bytes in that interval.
  if (rate !== null)
    say('rate', `${Math.ceil((rate.bytesPerInterval * 1e6) / rate.intervalUs)}B/s@${rate.intervalUs}us`);
  say('mtu', vif.mtu);
  for (const forward of vif.forwards) say('forward', forward);
  if (!vif.loopback) say('loopback', 0);
  if (vif.macFilter) say('macfilter', 1);
  if (trusted !== null) words.push(trusted ? 'trusted' : 'untrusted');
  return words.join(',');
}

/** A string of xl.cfg. */
function quote(text: string): string {
  const escaped = text.replace(/[\\"]/g, '\\$&').replaceAll('\n', '\\n');
  return `"${escaped}"`;
}

const listOf = (specs: readonly string[]): string => `[${specs.map(quote).join(', ')}]`;

/** A config and the text that it was read from. */
export interface ConfigAndText {
  readonly config: DomainConfig;
  readonly text: string;
}

/** The same with these disks or interfaces instead of its own. */
export function withDevices(
  { config, text }: ConfigAndText,
  devices: Partial<Pick<DomainConfig, 'disks' | 'vifs'>>,
): ConfigAndText {
  const lines: string[] = [];
  if (devices.disks !== undefined) lines.push(`disk=${listOf(devices.disks.map(formatDisk))}`);
  if (devices.vifs !== undefined) lines.push(`vif=${listOf(devices.vifs.map(formatVif))}`);
  return { config: { ...config, ...devices }, text: appendOverrides(text, lines) };
}

/** A disk, by its number, that is in another image now. */
export interface MovedDisk extends Pick<DiskConfig, 'target' | 'format' | 'backend' | 'script'> {
  readonly id: number;
}

/** The same with a disk that is in another image now. One that the config has not, somebody has plugged in. */
export function withMovedDisk(from: ConfigAndText, { id, target, format, backend, script }: MovedDisk): ConfigAndText {
  const disks = from.config.disks.map((disk) =>
    vdevNumber(disk.vdev) === id ? { ...disk, target, format, backend, script } : disk,
  );
  return withDevices(from, { disks });
}

/** The disk in a qcow2 image. */
export function movedDisk(disk: DiskConfig, path: string): DiskConfig {
  return { ...disk, target: path, format: 'qcow2', backend: null, script: null };
}
