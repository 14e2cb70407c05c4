/**
 * For linux.test.ts: interfaces in bridges of Open vSwitch. Run by `unshare -Urn`, with the programs of Open vSwitch in PATH and a folder for
 * its sockets in OVS_RUNDIR; arguments: the path of its daemon, and that of its schema. Prints one JSON object.
 */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Frame } from '../frame.ts';
import { openVswitched } from './host-interface.ts';
import type { TapPort } from './tap-port.ts';

const [daemon, schema] = process.argv.slice(2);
const folder = process.env['OVS_RUNDIR'] ?? '';
const socket = `unix:${join(folder, 'db.sock')}`;
const database = join(folder, 'conf.db');
const run = (program: string, ...words: string[]): string =>
  execFileSync(program, words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();
const vsctl = (...words: string[]): string => run('ovs-vsctl', '--timeout=20', ...words);
/** /sys is that of the namespace in which it was mounted. */
const isThere = (name: string): boolean => readFileSync('/proc/self/net/dev', 'latin1').includes(`${name}:`);
const until = async (isSo: () => boolean): Promise<boolean> => {
  for (let turn = 0; turn < 500 && !isSo(); turn++) await sleep(20);
  return isSo();
};
const out: Record<string, unknown> = {};

/** Type of an Ethernet frame with a VLAN tag. Source: IEEE 802.1Q. */
const TAGGED = 0x8100;
/** One for experiments. Source: IEEE 802. */
const PLAIN = 0x88b5;
const MARK_AT = 14;

/** A guest's interface: what it has received, as the VLAN tag (0 = none) and the mark of each frame. */
class Interface {
  readonly port: TapPort;
  readonly received: string[] = [];
  readonly #mac: number;

  constructor(port: TapPort, mac: number) {
    this.port = port;
    this.#mac = mac;
    port.connect({
      send: (frame) => {
        const bytes = Buffer.alloc(frame.length);
        bytes.set(frame.head.subarray(0, frame.headLength));
        bytes.set(frame.tail.subarray(frame.tailStart, frame.tailStart + frame.tailLength), frame.headLength);
        const tag = bytes.readUInt16BE(12) === TAGGED ? bytes.readUInt16BE(14) & 0xfff : 0;
        const at = tag === 0 ? 12 : 16;
        if (bytes.readUInt16BE(at) === PLAIN) this.received.push(`${tag}:${bytes[at + 2]}`);
        return true;
      },
      flush: () => {},
      room: () => {},
    });
  }

  /** To everybody. */
  broadcast(mark: number, tag = 0): void {
    const bytes = new Uint8Array(64).fill(0xff, 0, 6);
    bytes.set([0, 0x16, 0x3e, 0, 0, this.#mac], 6);
    const header = tag === 0 ? [] : [TAGGED >> 8, TAGGED & 0xff, tag >> 8, tag & 0xff];
    bytes.set([...header, PLAIN >> 8, PLAIN & 0xff, mark], MARK_AT - 2);
    this.port.send(new Frame().set(bytes, bytes.length));
  }
}

/** Broadcasts until somebody else has heard it: a switch that has just got a port may lose what comes first. */
async function heard(from: Interface, mark: number, tag: number, by: readonly Interface[]): Promise<string[][]> {
  const has = ({ received }: Interface): boolean => received.some((one) => one.endsWith(`:${mark}`));
  for (let turn = 0; turn < 100 && !by.every(has); turn++) {
    from.broadcast(mark, tag);
    await sleep(50);
  }
  // Those who should not hear it have had the same time.
  await sleep(100);
  return all.map(({ received }) => [...new Set(received.filter((one) => one.endsWith(`:${mark}`)))]);
}

const children: ChildProcess[] = [];
const start = (program: string, ...words: string[]): void =>
  void children.push(spawn(program, words, { stdio: 'ignore' }));
const all: Interface[] = [];
try {
  run('ip', 'link', 'set', 'lo', 'up');
  run('ovsdb-tool', 'create', database, schema);
  start('ovsdb-server', database, `--remote=p${socket}`);
  await until(() => existsSync(join(folder, 'db.sock')));
  vsctl('--no-wait', 'init');
  start(daemon, socket);
  vsctl('add-br', 'ovs0', '--', 'set', 'bridge', 'ovs0', 'datapath_type=netdev');

  const bridges = ['ovs0.7', 'ovs0.7', 'ovs0.8', 'ovs0:7:9'];
  for (const [i, bridge] of bridges.entries())
    all.push(new Interface(await openVswitched(`tap${i}`, bridge, i === 0 ? 1400 : null), i + 1));
  const [one, same, other, trunk] = all;
  out['ports'] = vsctl('list-ports', 'ovs0').split('\n');
  out['tags'] = all.map(({ port }) => vsctl('get', 'port', port.name, 'tag'));
  out['trunks'] = vsctl('get', 'port', trunk.port.name, 'trunks');
  out['mtu'] = /mtu (\d+)/.exec(run('ip', 'link', 'show', 'tap0'))?.[1];
  out['fromVlan'] = await heard(one, 1, 0, [same, trunk]);
  out['fromTrunk'] = await heard(trunk, 2, 7, [one, same]);
  out['fromOther'] = await heard(other, 3, 0, []);

  // Its name is free again, and the next one of that name takes the place of one that was left behind.
  same.port.close();
  await until(() => !isThere('tap1') && !vsctl('list-ports', 'ovs0').includes('tap1'));
  out['afterClose'] = vsctl('list-ports', 'ovs0').split('\n');
  vsctl('--', 'add-port', 'ovs0', 'tap1', 'tag=9');
  all[1] = new Interface(await openVswitched('tap1', 'ovs0.8', null), 9);
  out['again'] = [vsctl('get', 'port', 'tap1', 'tag'), await heard(other, 4, 0, [all[1]])];

  const failure = (bridge: string): Promise<string> =>
    Promise.resolve()
      .then(() => openVswitched('tap9', bridge, null))
      .then(
        () => 'opened',
        (error: Error) => `${error.name}: ${error.message}`,
      );
  out['noBridge'] = await failure('nowhere.7');
  out['noName'] = await failure('ovs0.x');
  out['leftBehind'] = !(await until(() => !isThere('tap9')));
} finally {
  for (const { port } of all) port.close();
  // Both run, so there is somebody to ask.
  if (all.length > 0) await until(() => vsctl('list-ports', 'ovs0') === '');
  for (const child of children.reverse()) {
    child.kill();
    await once(child, 'exit');
  }
}
process.stdout.write(`${JSON.stringify(out)}\n`);
process.exit(0);
