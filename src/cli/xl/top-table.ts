/** What `xl top` prints: a line or more for each domain, as xentop has them. Source: recorded output of xentop 4.17; xentop(1). */

import { SHUTDOWN_crash } from '../../abi/xen.ts';
import type { ControlDevices } from '../../host/control-protocol.ts';
import type { HostMemory } from '../../host/host-memory.ts';
import type { DomainReport } from './domain-report.ts';

export interface TopDomain extends DomainReport {
  /** What it may have at most. */
  readonly maxMemoryKiB: number;
  readonly devices: ControlDevices;
}

/** The host and its domains at one time. */
export interface TopSample {
  readonly atMs: number;
  readonly domains: readonly TopDomain[];
  readonly memory: HostMemory;
}

export interface TopOptions {
  readonly networks: boolean;
  readonly vbds: boolean;
  readonly vcpus: boolean;
  readonly repeatHeader: boolean;
  readonly fullNames: boolean;
  /** Index of the column that domains are sorted by. */
  readonly sort: number;
  /** Domains before this one are left out. */
  readonly first: number;
}

interface Row {
  readonly domain: TopDomain;
  /** Percent of a CPU since the sample before. */
  readonly cpuPercent: number;
  readonly totalKiB: number;
  readonly fullNames: boolean;
}

interface Column {
  readonly header: string;
  readonly width: number;
  readonly text: (row: Row) => string;
  /** What it is sorted by: the greatest first. Names are sorted by themselves. */
  readonly rank?: (row: Row) => number;
}

/** What libxl lets a domain have beyond its maximum. Source: libxl, LIBXL_MAXMEM_CONSTANT. */
const SLACK_KIB = 1024;
const NAME_WIDTH = 10;
const VCPUS_PER_LINE = 5;
const STATE_LETTERS = 'dsbcpr';

const maxMemoryKiB = ({ domain }: Row): number => domain.maxMemoryKiB + (domain.domid === 0 ? 0 : SLACK_KIB);
const percent = (part: number, whole: number): string => ((part / whole) * 100).toFixed(1);
const sumKiB = (row: Row, way: 'sent' | 'received'): number =>
  Math.floor(row.domain.devices.vifs.reduce((sum, vif) => sum + vif[way].bytes, 0) / 1024);

type DiskCount = 'outOfRequests' | 'reads' | 'writes' | 'readSectors' | 'writtenSectors';

function number(header: string, width: number, value: (row: Row) => number): Column {
  return { header, width, text: (row) => String(value(row)), rank: value };
}

function disks(header: string, width: number, count: DiskCount): Column {
  return number(header, width, ({ domain }) => domain.devices.disks.reduce((sum, disk) => sum + disk[count], 0));
}

export const COLUMNS: readonly Column[] = [
  {
    header: 'NAME',
    width: NAME_WIDTH,
    text: ({ domain, fullNames }) => (fullNames ? domain.name : domain.name.slice(0, NAME_WIDTH)),
  },
  { header: 'STATE', width: 6, text: ({ domain }) => stateText(domain), rank: ({ domain }) => stateRank(domain) },
  number('CPU(sec)', 10, ({ domain }) => Math.floor(domain.seconds)),
  { header: 'CPU(%)', width: 6, text: ({ cpuPercent }) => cpuPercent.toFixed(1), rank: ({ cpuPercent }) => cpuPercent },
  number('MEM(k)', 10, ({ domain }) => domain.memoryKiB),
  {
    header: 'MEM(%)',
    width: 6,
    text: ({ domain, totalKiB }) => percent(domain.memoryKiB, totalKiB),
    rank: ({ domain }) => domain.memoryKiB,
  },
  number('MAXMEM(k)', 10, maxMemoryKiB),
  { header: 'MAXMEM(%)', width: 9, text: (row) => percent(maxMemoryKiB(row), row.totalKiB), rank: maxMemoryKiB },
  number('VCPUS', 5, ({ domain }) => domain.vcpus.length),
  number('NETS', 4, ({ domain }) => domain.devices.vifs.length),
  number('NETTX(k)', 8, (row) => sumKiB(row, 'sent')),
  number('NETRX(k)', 8, (row) => sumKiB(row, 'received')),
  number('VBDS', 4, ({ domain }) => domain.devices.disks.length),
  disks('VBD_OO', 8, 'outOfRequests'),
  disks('VBD_RD', 8, 'reads'),
  disks('VBD_WR', 8, 'writes'),
  disks('VBD_RSECT', 10, 'readSectors'),
  disks('VBD_WSECT', 10, 'writtenSectors'),
  number('SSID', 4, () => 0),
];

function stateFlags({ dying, shutdownReason, blocked, paused, running }: DomainReport): boolean[] {
  const crashed = shutdownReason === SHUTDOWN_crash;
  return [dying, shutdownReason !== -1 && !crashed, blocked, crashed, paused, running];
}

function stateText(domain: DomainReport): string {
  return stateFlags(domain)
    .map((isSet, i) => (isSet ? STATE_LETTERS[i] : '-'))
    .join('');
}

function stateRank(domain: DomainReport): number {
  return stateFlags(domain).reduce((rank, isSet) => rank * 2 + Number(isSet), 0);
}

/** Lines, without newlines. `before`: the sample before this one, if there is one. */
export function topTable(sample: TopSample, before: TopSample | null, options: TopOptions): string[] {
  const rows = sample.domains.map((domain) => ({
    domain,
    cpuPercent: cpuPercent(domain, sample, before),
    totalKiB: sample.memory.totalKiB,
    fullNames: options.fullNames,
  }));
  const { rank } = COLUMNS[options.sort];
  const byName = (row: Row): string => row.domain.name.toLowerCase();
  rows.sort((a, b) => {
    if (rank !== undefined) return rank(b) - rank(a);
    return byName(a) < byName(b) ? -1 : Number(byName(a) > byName(b));
  });
  const shown = rows.slice(Math.min(options.first, rows.length - 1));
  // A number that does not fit makes its column wider, for all.
  const widths = COLUMNS.map(({ width, text }) => Math.max(width, ...shown.map((row) => text(row).length)));
  const line = (cells: readonly string[]): string => cells.map((cell, i) => cell.padStart(widths[i])).join(' ');
  const header = line(COLUMNS.map((column) => column.header));
  return shown.flatMap((row, i) => [
    ...(i === 0 || options.repeatHeader ? [header] : []),
    line(COLUMNS.map(({ text }) => text(row))),
    ...(options.vcpus ? vcpuLines(row.domain) : []),
    ...(options.networks ? row.domain.devices.vifs.map(networkLine) : []),
    ...(options.vbds ? row.domain.devices.disks.map(diskLine) : []),
  ]);
}

function cpuPercent(domain: TopDomain, sample: TopSample, before: TopSample | null): number {
  const old = before?.domains.find(({ domid }) => domid === domain.domid);
  if (old === undefined || before === null) return 0;
  // What a domain's process has used for domain 0 goes with it.
  const seconds = Math.max(0, domain.seconds - old.seconds);
  return (seconds / ((sample.atMs - before.atMs) / 1000)) * 100;
}

function vcpuLines({ vcpus }: TopDomain): string[] {
  let text = 'VCPUs(sec): ';
  vcpus.forEach(({ online, seconds }, vcpu) => {
    if (!online) return;
    if (vcpu !== 0 && vcpu % VCPUS_PER_LINE === 0) text += '\n        ';
    text += ` ${String(vcpu).padStart(2)}: ${String(Math.floor(seconds)).padStart(10)}s`;
  });
  return text.split('\n');
}

function networkLine({ received, sent }: ControlDevices['vifs'][number], index: number): string {
  const counts = ({ bytes, frames, errors, dropped }: typeof sent): string =>
    [
      `${bytes}`.padStart(8),
      'bytes ',
      `${frames}`.padStart(8),
      'pkts ',
      `${errors}`.padStart(8),
      'err ',
      `${dropped}`.padStart(8),
      'drop',
    ].join('');
  return `Net${index} RX: ${counts(received)}  TX: ${counts(sent)}`;
}

function diskLine(disk: ControlDevices['disks'][number]): string {
  const field = (name: string, value: number, width: number): string => `${name}: ${String(value).padStart(width)}`;
  const major = ((disk.id >> 8) & 0xfff).toString(16).padStart(2);
  const minor = ((disk.id & 0xff) | ((disk.id >> 12) & 0xfff00)).toString(16).padStart(2);
  const counts = [
    field('OO', disk.outOfRequests, 8),
    field('RD', disk.reads, 8),
    field('WR', disk.writes, 8),
    field('RSECT', disk.readSectors, 10),
    field('WSECT', disk.writtenSectors, 10),
  ];
  return `VBD BlkBack ${String(disk.id).padStart(4)} [${major}:${minor}]  ${counts.join('   ')}`;
}

/** The lines above the table of a full screen. */
export function topSummary(
  { atMs, domains, memory }: TopSample,
  host: { readonly version: string; readonly cpus: number; readonly mhz: number },
): string[] {
  const states = domains.map((domain) => {
    const { running, blocked, paused, shutdownReason } = domain;
    if (running) return 'running';
    if (blocked) return 'blocked';
    if (paused) return 'paused';
    if (shutdownReason === SHUTDOWN_crash) return 'crashed';
    return shutdownReason === -1 ? 'dying' : 'shutdown';
  });
  const counts = ['running', 'blocked', 'paused', 'crashed', 'dying', 'shutdown'].map(
    (name) => `${states.filter((state) => state === name).length} ${name}`,
  );
  const { totalKiB, freeKiB } = memory;
  return [
    `xentop - ${new Date(atMs).toTimeString().slice(0, 8)}   Xen ${host.version}`,
    `${domains.length} domains: ${counts.join(', ')} `,
    `Mem: ${totalKiB}k total, ${totalKiB - freeKiB}k used, ${freeKiB}k free    CPUs: ${host.cpus} @ ${host.mhz}MHz`,
  ];
}
