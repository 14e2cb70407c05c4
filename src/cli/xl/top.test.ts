import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HOST_CPUS, TestHost, testState } from '../../../test/xl-host.ts';
import { keysIn, pressed, screen, type TopView } from './top-screen.ts';
import { COLUMNS, type TopDomain, type TopSample, topSummary, topTable } from './top-table.ts';

const VIEW: TopView = {
  networks: true,
  vbds: true,
  vcpus: true,
  repeatHeader: false,
  fullNames: false,
  sort: 0,
  first: 0,
  delaySeconds: 3,
  typed: null,
};

function domain(
  domid: number,
  name: string,
  memoryMiB: number,
  seconds: number[],
  more: Partial<TopDomain> = {},
): TopDomain {
  return {
    domid,
    name,
    uuid: '',
    memoryKiB: memoryMiB * 1024,
    maxMemoryKiB: memoryMiB * 1024,
    promisedKiB: 0,
    residentKiB: 0,
    weight: 256,
    cap: 0,
    vcpus: seconds.map((one) => ({
      online: true,
      running: false,
      blocked: false,
      seconds: one,
      cpu: 0,
      hard: [],
      soft: [],
    })),
    seconds: seconds.reduce((sum, one) => sum + one, 0),
    backendSeconds: 0,
    running: false,
    blocked: false,
    paused: false,
    shutdownReason: -1,
    dying: false,
    devices: { disks: [], vifs: [] },
    ...more,
  };
}

const none = { bytes: 0, frames: 0, errors: 0, dropped: 0 };
const devices = {
  disks: [{ id: 51712, reads: 3, writes: 0, readSectors: 24, writtenSectors: 0, outOfRequests: 0 }],
  vifs: [{ id: 0, received: none, sent: { bytes: 976, frames: 12, errors: 0, dropped: 1 } }],
};

function sample(atMs: number, dom0: number, u2: number): TopSample {
  return {
    atMs,
    domains: [
      domain(0, 'Domain-0', 1024, [154.2, dom0 - 154.2], { running: true }),
      domain(1, 'u1', 128, [0], { paused: true }),
      domain(2, 'u2', 256, [u2], { blocked: true, devices }),
    ],
    memory: { totalKiB: 3071 * 1024, freeKiB: 1758 * 1024 },
  };
}

// Recorded from xentop 4.17: xentop -b -n -x -v -i 2 -d 2
const RECORDED = `      NAME  STATE   CPU(sec) CPU(%)     MEM(k) MEM(%)  MAXMEM(k) MAXMEM(%) VCPUS NETS NETTX(k) NETRX(k) VBDS   VBD_OO   VBD_RD   VBD_WR  VBD_RSECT  VBD_WSECT SSID
  Domain-0 -----r        309    0.0    1048576   33.3    1048576      33.3     2    0        0        0    0        0        0        0          0          0    0
VCPUs(sec):   0:        154s  1:        155s
        u1 ----p-          0    0.0     131072    4.2     132096       4.2     1    0        0        0    0        0        0        0          0          0    0
VCPUs(sec):   0:          0s
        u2 --b---         39    0.0     262144    8.3     263168       8.4     1    1        0        0    1        0        3        0         24          0    0
VCPUs(sec):   0:         39s
Net0 RX:        0bytes        0pkts        0err        0drop  TX:      976bytes       12pkts        0err        1drop
VBD BlkBack 51712 [ca: 0]  OO:        0   RD:        3   WR:        0   RSECT:         24   WSECT:          0`;
const RECORDED_LATER = RECORDED.replace('309    0.0', '310   13.9').replace('39    0.0', '39    2.8');

describe('the table', () => {
  it('is what was recorded, at first and two seconds later', () => {
    const first = sample(1000, 309.9, 39.2);
    expect(topTable(first, null, VIEW).join('\n')).toBe(RECORDED);
    expect(topTable(sample(3000, 309.9 + 0.278, 39.2 + 0.056), first, VIEW).join('\n')).toBe(RECORDED_LATER);
  });

  it('has headers, vCPUs, devices and whole names as asked for', () => {
    const few = { ...VIEW, networks: false, vbds: false, vcpus: false };
    expect(topTable(sample(0, 1, 1), null, few)).toHaveLength(4);
    expect(topTable(sample(0, 1, 1), null, { ...few, repeatHeader: true })).toHaveLength(6);
    expect(topTable(sample(0, 1, 1), null, { ...few, first: 1 })[1]).toMatch(/^ {8}u1 /);
    expect(topTable(sample(0, 1, 1), null, { ...few, first: 99 })).toHaveLength(2);
    const long = { ...sample(0, 1, 1), domains: [domain(7, 'a-rather-long-name', 1, [0, 0, 0, 0, 0, 1])] };
    expect(topTable(long, null, few)[1]).toMatch(/^a-rather-l ------ /);
    expect(topTable(long, null, { ...few, fullNames: true })[1]).toMatch(/^a-rather-long-name ------ /);
    expect(topTable(long, null, { ...few, vcpus: true }).at(-1)).toBe('          5:          1s');
  });

  it('sorts by any column: names upwards, numbers downwards', () => {
    const ids = (header: string): string[] => {
      const sort = COLUMNS.findIndex((column) => column.header === header);
      return topTable(sample(0, 309, 39), null, { ...VIEW, networks: false, vbds: false, vcpus: false, sort })
        .slice(1)
        .map((line) => line.trim().split(' ')[0]);
    };
    expect(ids('NAME')).toEqual(['Domain-0', 'u1', 'u2']);
    expect(ids('MEM(k)')).toEqual(['Domain-0', 'u2', 'u1']);
    expect(ids('VBD_RD')).toEqual(['u2', 'Domain-0', 'u1']);
    expect(ids('STATE')).toEqual(['u2', 'u1', 'Domain-0']);
  });

  it('tells how domains have ended', () => {
    const state = (more: Partial<TopDomain>): string | undefined => {
      const one = { ...sample(0, 1, 1), domains: [domain(1, 'a', 1, [0], more)] };
      return /a (\S{6}) /.exec(topTable(one, null, VIEW)[1])?.[1];
    };
    expect(state({ shutdownReason: 0 })).toBe('-s----');
    expect(state({ shutdownReason: 3, dying: true })).toBe('d--c--');
  });

  it('has a summary above it on a terminal', () => {
    const lines = topSummary(sample(0, 309, 39), { version: '4.17-domus', cpus: 2, mhz: 2445 });
    expect(lines[0]).toMatch(/^xentop - \d\d:\d\d:\d\d {3}Xen 4\.17-domus$/);
    expect(lines.slice(1)).toEqual([
      '3 domains: 1 running, 1 blocked, 1 paused, 0 crashed, 0 dying, 0 shutdown ',
      'Mem: 3144704k total, 1344512k used, 1800192k free    CPUs: 2 @ 2445MHz',
    ]);
  });
});

describe('the screen', () => {
  const typing = (text: string): TopView | null => {
    let view: TopView | null = VIEW;
    for (const key of keysIn(text)) if (view !== null) view = pressed(view, key);
    return view;
  };

  it('does what keys say', () => {
    expect(typing('nBvR')).toMatchObject({ networks: false, vbds: false, vcpus: false, repeatHeader: true });
    expect(typing('\x1b[B\x1bOB\x1b[A')).toMatchObject({ first: 1 });
    expect(typing('\x1b[A')).toMatchObject({ first: 0 });
    expect(typing('s'.repeat(COLUMNS.length + 1))).toMatchObject({ sort: 1 });
    expect(typing('d12\x7f5\r')).toMatchObject({ delaySeconds: 15, typed: null });
    expect(typing('d0\r')).toMatchObject({ delaySeconds: 3, typed: null });
    expect(typing('d7\x1bn')).toMatchObject({ delaySeconds: 3, typed: null, networks: false });
    for (const end of ['q', 'Q', '\x1b', '\x03', 'd1\x03']) expect(typing(end)).toBeNull();
  });

  it('shows what fits, and the keys below', () => {
    const text = screen(['summary', 'header', 'one', 'two'], new Set(['header']), { ...VIEW, networks: false }, 4, 5);
    expect(text).toBe(
      '\x1b[Hsumma\x1b[K\r\n\x1b[7mheade\x1b[0m\x1b[K\r\none\x1b[K\x1b[J\x1b[4;1H  \x1b[7mD\x1b[0melay  \x1b[7mN\x1b[0metworks  ' +
        '\x1b[43mv\x1b[0m\x1b[7mB\x1b[0m\x1b[43mds\x1b[0m  \x1b[7mV\x1b[0m\x1b[43mCPUs\x1b[0m  \x1b[7mR\x1b[0mepeat header  ' +
        '\x1b[7mS\x1b[0mort order  \x1b[7mQ\x1b[0muit',
    );
    expect(screen([], new Set(), { ...VIEW, typed: '12' }, 2, 80)).toMatch(/Delay\(sec\): 12$/);
  });
});

describe('xl top', () => {
  let host: TestHost;
  beforeAll(async () => {
    host = await TestHost.open();
    await host.addDomain(1, 'u1', 'e29e0040-db4b-4e86-9413-deddcaa5c837', 'kernel="k"\nmemory=256\n');
    host.states.set(1, testState(256));
    host.devices.set(1, devices);
  });
  afterAll(() => host.close());

  it('-b -i prints so many times what domains say of themselves', async () => {
    const { code, out, err } = await host.xl('top', '-b', '-n', '-x', '-v', '-i', '2', '-d', '0');
    expect({ code, err }).toEqual({ code: 0, err: '' });
    const lines = out.split('\n');
    expect(lines.filter((line) => /^ {6}NAME {2}STATE/.test(line))).toHaveLength(2);
    expect(lines.filter((line) => line.startsWith('        u1 --b---          9    0.0     262144 '))).toHaveLength(2);
    expect(lines.filter((line) => line === RECORDED.split('\n').at(-1))).toHaveLength(2);
    expect(lines.filter((line) => /^ {2}Domain-0 -----r +\d+ +[\d.]+ +\d+ /.test(line))).toHaveLength(2);
    expect(lines[2]).toMatch(new RegExp(`^VCPUs\\(sec\\):( +\\d+: +\\d+s){${Math.min(HOST_CPUS.length, 5)}}`));
  });

  it('refuses options that it does not have', async () => {
    expect(await host.xl('top', '-d', 'x')).toMatchObject({ code: 2, out: '' });
    expect(await host.xl('top', '-b', '-i', '-1')).toMatchObject({ code: 2 });
    expect(await host.xl('top', '-Y')).toMatchObject({ code: 2 });
    expect((await host.xl('top', '-V')).out).toMatch(/^xentop of Domus, Xen 4\.17/);
  });
});
