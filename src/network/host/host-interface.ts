/**
 * TAP devices where the host's network wants them: in a bridge, routed, or in Open vSwitch. What Xen's scripts do, with the same
 * tools: iproute2's ip, ovs-vsctl. Source: tools/hotplug/Linux/vif-bridge, vif-route, vif-openvswitch, xen-network-common.sh
 * (behaviour).
 */

import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { TapError } from './tap-device.ts';
import { TapPort } from './tap-port.ts';

const run = promisify(execFile);
const TIMEOUT_MS = 30_000;
/** So that a bridge never takes this address for its own. Source: vif-bridge. */
const BRIDGED_MAC = 'fe:ff:ff:ff:ff:ff';

async function call(program: string, words: readonly string[]): Promise<string> {
  try {
    const { stdout } = await run(program, words, { timeout: TIMEOUT_MS, env: { ...process.env, LC_ALL: 'C' } });
    return stdout;
  } catch (error) {
    const { code, stderr } = error as NodeJS.ErrnoException & { stderr?: string };
    const why =
      code === 'ENOENT' ? `${program} is not installed` : (stderr ?? '').trim().split('\n')[0] || String(code);
    throw new TapError(`${program} ${words.join(' ')}: ${why}`);
  }
}

async function open(name: string, mtu: number | null, set: (tap: TapPort) => Promise<void>): Promise<TapPort> {
  const tap = new TapPort(name);
  try {
    if (mtu !== null) await call('ip', ['link', 'set', 'dev', name, 'mtu', String(mtu)]);
    await set(tap);
    await call('ip', ['link', 'set', 'dev', name, 'up']);
    return tap;
  } catch (error) {
    await tap.close();
    throw error;
  }
}

/** An interface in a Linux bridge. Throws TapError. */
export function openBridged(name: string, bridge: string, mtu: number | null): Promise<TapPort> {
  return open(name, mtu, async () => {
    await call('ip', ['link', 'set', 'dev', name, 'address', BRIDGED_MAC]);
    // Nothing on the host speaks IPv6 through it. Some kernels have none.
    await writeFile(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, '1').catch(() => undefined);
    await call('ip', ['link', 'set', 'dev', name, 'master', bridge]);
  });
}

/** An interface as Linux's backend makes it, down, for a script that does the rest. Throws TapError. */
export async function openForScript(name: string, mtu: number | null): Promise<TapPort> {
  const tap = new TapPort(name);
  try {
    await call('ip', ['link', 'set', 'dev', name, 'address', BRIDGED_MAC]);
    if (mtu !== null) await call('ip', ['link', 'set', 'dev', name, 'mtu', String(mtu)]);
    return tap;
  } catch (error) {
    await tap.close();
    throw error;
  }
}

/** An interface in a bridge of Open vSwitch, as `bridge`, `bridge.VLAN` or `bridge.VLAN:TRUNK...`. Throws TapError. */
export function openVswitched(name: string, bridge: string, mtu: number | null): Promise<TapPort> {
  const match = /^([^.:]+)(?:\.(\d+))?(?::(\d+(?::\d+)*))?$/.exec(bridge);
  if (match === null) throw new TapError(`bridge=${bridge}: expected NAME, NAME.VLAN or NAME.VLAN:TRUNK:TRUNK`);
  const words = ['--timeout=30', '--', '--if-exists', 'del-port', name, '--', 'add-port', match[1], name];
  if (match[2] !== undefined) words.push(`tag=${match[2]}`);
  if (match[3] !== undefined) words.push(`trunks=${match[3].replaceAll(':', ',')}`);
  return open(name, mtu, async (tap) => {
    await call('ip', ['link', 'set', 'dev', name, 'address', BRIDGED_MAC]);
    await call('ovs-vsctl', words);
    tap.onClose = async () => {
      await call('ovs-vsctl', ['--timeout=30', '--', '--if-exists', 'del-port', name]).catch(() => undefined);
    };
  });
}

/**
 * An interface with routes to the guest's addresses, which the host answers ARP for on its own network. `gatewaydev` is the
 * device whose address the guest sees as its router; that of the default route when it is null. Throws TapError.
 */
export function openRouted(
  name: string,
  addresses: readonly string[],
  gatewaydev: string | null,
  mtu: number | null,
): Promise<TapPort> {
  return open(name, mtu, async () => {
    const device = gatewaydev ?? (await defaultDevice());
    const own = device === null ? null : await addressOf(device);
    if (own !== null) await call('ip', ['address', 'add', `${own}/32`, 'dev', name]);
    await call('ip', ['link', 'set', 'dev', name, 'up']);
    await writeFile(`/proc/sys/net/ipv4/conf/${name}/proxy_arp`, '1').catch(() => undefined);
    for (const address of addresses)
      await call('ip', ['route', 'add', address, 'dev', name, ...(own === null ? [] : ['src', own])]);
  });
}

async function defaultDevice(): Promise<string | null> {
  const routes = JSON.parse((await call('ip', ['-json', 'route', 'list', 'default'])) || '[]') as { dev?: string }[];
  return routes[0]?.dev ?? null;
}

async function addressOf(device: string): Promise<string | null> {
  const links = JSON.parse(await call('ip', ['-json', '-4', 'address', 'show', 'dev', device])) as {
    addr_info?: { local: string; scope: string }[];
  }[];
  return links[0]?.addr_info?.find((info) => info.scope === 'global')?.local ?? null;
}
