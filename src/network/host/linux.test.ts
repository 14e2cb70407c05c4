/** Linux itself as the other side: its TCP as the NAT's guest, Open vSwitch for TAP devices. In namespaces of their own. */

import { execFile, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { AptError } from '../../toolstack/guest-image/apt.ts';
import { debianTool } from '../../toolstack/guest-image/debian-tool.ts';

const run = promisify(execFile);
const OVS = fileURLToPath(new URL('./test-openvswitch.ts', import.meta.url));
const NAT = fileURLToPath(new URL('./test-linux-nat.ts', import.meta.url));

/** Why this machine cannot, or null. */
function unusable(): string | null {
  if (process.platform !== 'linux') return 'needs Linux';
  const made = spawnSync('unshare', ['-Urn', 'ip', 'tuntap', 'add', 'dev', 'tap9', 'mode', 'tap'], {
    encoding: 'utf8',
  });
  return made.status === 0 ? null : `no network namespace with a TAP: ${made.error?.message ?? made.stderr.trim()}`;
}
const reason = unusable();

for (const { name, words } of [
  { name: 'GSO frames', words: ['0', 'gso', '8388608', 'ipv4'] },
  { name: 'IPv6, GSO frames, one in fifty lost', words: ['2', 'gso', '2000000', 'ipv6'] },
  { name: 'IPv6, plain frames', words: ['0', 'plain', '2000000', 'ipv6'] },
  { name: 'GSO frames, one in fifty lost', words: ['2', 'gso', '2000000', 'ipv4'] },
  { name: 'plain frames, one in fifty lost', words: ['2', 'plain', '500000', 'ipv4'] },
])
  test(`Linux's TCP and UDP through the NAT: ${name}`, async (context) => {
    if (reason !== null) return context.skip(reason);
    const { stdout } = await run('unshare', ['-Urn', process.execPath, NAT, ...words], { timeout: 50_000 });
    const result = JSON.parse(stdout) as Record<string, unknown>;
    const { expected } = result;
    expect(result).toMatchObject({ down: expected, up: expected, forwarded: expected, refused: 'ECONNREFUSED' });
    expect(result['udp']).toEqual([1, 1472, 1473, 30_000]);
    if (words[0] !== '0') expect(result['dropped']).toBeGreaterThan(2);
  });

interface OpenVswitch {
  readonly daemon: string;
  readonly schema: string;
  readonly env: NodeJS.ProcessEnv;
}

/** Its programs, installed or of Debian's packages; or why there are none. */
async function openVswitch(): Promise<OpenVswitch | string> {
  try {
    const control = await debianTool('ovs-vsctl', 'openvswitch-switch');
    const server = await debianTool('ovsdb-server', 'openvswitch-common');
    // A package's usr folder. Administrators' tools are not in everybody's PATH.
    const folders = [control, server].map(({ path }) => dirname(dirname(path)));
    const find = (path: string): string | undefined =>
      folders.map((folder) => join(folder, path)).find((one) => existsSync(one));
    const daemon = find('lib/openvswitch-switch/ovs-vswitchd') ?? find('sbin/ovs-vswitchd');
    const schema = find('share/openvswitch/vswitch.ovsschema');
    if (daemon === undefined || schema === undefined) return 'no ovs-vswitchd beside ovs-vsctl';
    const programs = [...folders.flatMap((folder) => [join(folder, 'bin'), join(folder, 'sbin')])];
    const PATH = [...programs, control.env['PATH'] ?? ''].join(delimiter);
    return { daemon, schema, env: { ...control.env, PATH } };
  } catch (error) {
    if (error instanceof AptError) return `no Open vSwitch: ${error.message}`;
    throw error;
  }
}

test('interfaces in bridges of Open vSwitch, with a VLAN or several', { timeout: 180_000 }, async (context) => {
  if (reason !== null) return context.skip(reason);
  const found = await openVswitch();
  if (typeof found === 'string') return context.skip(found);
  const folder = mkdtempSync(join(tmpdir(), 'domus-ovs-'));
  try {
    const env = { ...found.env, OVS_RUNDIR: folder, OVS_DBDIR: folder, OVS_LOGDIR: folder };
    const words = ['-Urn', process.execPath, OVS, found.daemon, found.schema];
    const { stdout } = await run('unshare', words, { env, timeout: 60_000 });
    expect(JSON.parse(stdout)).toEqual({
      ports: ['tap0', 'tap1', 'tap2', 'tap3'],
      tags: ['7', '7', '8', '[]'],
      trunks: '[7, 9]',
      mtu: '1400',
      fromVlan: [[], ['0:1'], [], ['7:1']],
      fromTrunk: [['0:2'], ['0:2'], [], []],
      fromOther: [[], [], [], []],
      afterClose: ['tap0', 'tap2', 'tap3'],
      again: ['8', [[], ['0:4'], [], []]],
      noBridge: expect.stringMatching(/^TapError: ovs-vsctl .* add-port nowhere tap9 tag=7: .*no bridge named nowhere/),
      noName: 'TapError: bridge=ovs0.x: expected NAME, NAME.VLAN or NAME.VLAN:TRUNK:TRUNK',
      leftBehind: false,
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
});
