/**
 * What a network interface is plugged into, as its configuration says:
 *
 * | vif | network |
 * |---|---|
 * | no bridge, or `script=vif-nat` | NAT in this process (network/nat); the host's bridge xenbr0 instead, where there is one to use |
 * | `bridge=NAME`, a bridge of the host | a TAP device in it |
 * | `bridge=NAME`, no bridge of the host | the Ethernet switch of that name in domusd: guests that name it reach each other only |
 * | `bridge=passt` | passt(1), a process of its own |
 * | `script=vif-route` | a TAP device, and routes to the addresses in `ip` |
 * | `script=vif-openvswitch` | a TAP device as a port of the Open vSwitch bridge |
 * | any other `script` | a TAP device vifX.Y, which the script does with as it likes (domain-devices.ts runs it) |
 */

import { execFileSync } from 'node:child_process';
import { accessSync, constants, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import type { NetworkEnd } from '../network/frame.ts';
import { DOMUS_FORM } from '../network/frame-stream.ts';
import { openBridged, openForScript, openRouted, openVswitched } from '../network/host/host-interface.ts';
import { createNodeNetwork } from '../network/host/node-network.ts';
import { openPasst, PasstError } from '../network/host/passt.ts';
import { SocketPort } from '../network/host/socket-port.ts';
import type { StreamSocket } from '../network/host/stream-socket.ts';
import { connectSwitch, SWITCH_NAME } from '../network/host/switch-socket.ts';
import { TapError } from '../network/host/tap-device.ts';
import { type Forward, parseForward } from '../network/nat/forwards.ts';
import { parseIpv4 } from '../network/nat/ipv4.ts';
import { Nat, natAddresses } from '../network/nat/nat.ts';
import type { VifConfig } from '../toolstack/config/network-interface.ts';
import { DEFAULT_BRIDGE, scriptPath } from '../toolstack/device-nodes.ts';
import { HostError } from './host-error.ts';
import { stateRoot, switchPath } from './state-dir.ts';
import { openXenstored } from './xenstored.ts';

export type NetworkChoice =
  | { readonly kind: 'nat' }
  | { readonly kind: 'switch'; readonly name: string }
  | { readonly kind: 'bridge'; readonly name: string }
  | { readonly kind: 'route' }
  | { readonly kind: 'openvswitch'; readonly name: string }
  | { readonly kind: 'passt' }
  | { readonly kind: 'script' };

/** What matters of the host for the choice. */
export interface HostBridges {
  isBridge(name: string): boolean;
  /** This process may make network interfaces. */
  readonly mayUseTap: boolean;
}

/** Source: linux/capability.h. */
const CAP_NET_ADMIN = 12n;

/** Xen's scripts whose work Domus does itself. */
const OWN_SCRIPTS: readonly string[] = ['vif-bridge', 'vif-nat', 'vif-route', 'vif-openvswitch'];

/** The path of the user's own script, which has to be run; null where it is one of Xen's. */
export function userScript(vif: VifConfig): string | null {
  if (vif.script === null) return null;
  const path = scriptPath(vif.script);
  return OWN_SCRIPTS.some((name) => path === scriptPath(name)) ? null : path;
}

/** The name of an interface of the host, as Xen's Dom0 has it. */
export const vifName = (domid: number, vif: VifConfig): string => `vif${domid}.${vif.devid}`;

/** @throws HostError when the interface asks for what there is not */
export function chooseNetwork(vif: VifConfig, host: HostBridges): NetworkChoice {
  if (userScript(vif) !== null) {
    if (host.mayUseTap) return { kind: 'script' };
    throw new HostError(
      `${nameOf(vif)}: script=${vif.script}: this user may not make the network interface that a script works on (CAP_NET_ADMIN, ` +
        `/dev/net/tun); without one there are ${OWN_SCRIPTS.join(', ')}, which Domus does itself`,
    );
  }
  const script = vif.script === null ? 'vif-bridge' : basename(vif.script);
  switch (script) {
    case 'vif-nat':
      return { kind: 'nat' };
    case 'vif-route':
      return { kind: 'route' };
    case 'vif-openvswitch':
      return { kind: 'openvswitch', name: vif.bridge ?? DEFAULT_BRIDGE };
  }
  if (vif.bridge === 'passt') return { kind: 'passt' };
  const name = vif.bridge ?? DEFAULT_BRIDGE;
  if (host.isBridge(name)) {
    if (host.mayUseTap) return { kind: 'bridge', name };
    if (vif.bridge !== null)
      throw new HostError(
        `${nameOf(vif)}: ${name} is a bridge of the host, and this user may not add an interface to it (CAP_NET_ADMIN)`,
      );
  }
  return vif.bridge === null ? { kind: 'nat' } : { kind: 'switch', name };
}

export const nameOf = (vif: VifConfig): string => `vif devid=${vif.devid}`;

export function hostBridges(): HostBridges {
  return {
    isBridge,
    get mayUseTap() {
      try {
        accessSync('/dev/net/tun', constants.R_OK | constants.W_OK);
        const effective = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync('/proc/self/status', 'latin1'));
        return effective !== null && ((BigInt(`0x${effective[1]}`) >> CAP_NET_ADMIN) & 1n) === 1n;
      } catch {
        return false;
      }
    },
  };
}

/** Of this process's own network namespace, which /sys need not show. */
function isBridge(name: string): boolean {
  try {
    const names = readFileSync('/proc/self/net/dev', 'latin1')
      .split('\n')
      .map((line) => line.split(':')[0].trim());
    if (!names.includes(name)) return false;
    const shown = execFileSync('ip', ['-json', '-details', 'link', 'show', 'dev', name], { encoding: 'utf8' });
    const links = JSON.parse(shown) as { linkinfo?: { info_kind?: string } }[];
    return links[0]?.linkinfo?.info_kind === 'bridge';
  } catch {
    // No Linux, or no iproute2: no bridge that could be used.
    return false;
  }
}

/** What a network wants to know of its device, which is made after it. */
export interface DeviceFacts {
  readonly domid: number;
  readonly mac: Uint8Array;
  readonly takesGso: () => boolean;
  readonly log: (line: string) => void;
  /** Whether a forward that cannot be had is a line only: a guest that runs already is not to end of it. */
  readonly mayLackForwards: boolean;
}

/** `guestIp` is null where the guest's address is not ours to know. */
function readForwards(vif: VifConfig, guestIp: number | null): Forward[] {
  return vif.forwards.map((text) => {
    const forward = parseForward(text, guestIp);
    if (typeof forward === 'string') throw new HostError(`${nameOf(vif)}: forward: ${forward}`);
    return forward;
  });
}

/** The NAT for an interface: 10.0.(2 + devid).0/24, unless `ip` says where the guest is to be. */
export async function openNat(vif: VifConfig, facts: DeviceFacts): Promise<NetworkEnd> {
  let guestIp = (0x0a00000f + ((2 + vif.devid) & 0xff) * 0x100) >>> 0;
  if (vif.ip !== null) {
    guestIp = parseIpv4(vif.ip);
    if (guestIp < 0 || guestIp % 256 === 0 || guestIp % 256 === 255)
      throw new HostError(`${nameOf(vif)}: ip=${vif.ip}: expected one IPv4 address for the guest`);
  }
  const log = (line: string): void => facts.log(`${nameOf(vif)}: ${line}`);
  const nat = new Nat({
    host: createNodeNetwork(),
    addresses: natAddresses(guestIp),
    guestMac: facts.mac,
    loopback: vif.loopback,
    gso: facts.takesGso,
    forwards: readForwards(vif, guestIp),
    log,
  });
  const problems = await nat.openForwards();
  if (problems.length > 0 && !facts.mayLackForwards) {
    nat.close();
    throw new HostError(`${nameOf(vif)}: ${problems[0]}`);
  }
  for (const problem of problems) log(problem);
  return nat;
}

/** As NAT has it, forwards or none may be missing. Throws PasstError. */
async function openPasstFor(vif: VifConfig, facts: DeviceFacts): Promise<NetworkEnd> {
  const forwards = readForwards(vif, null);
  try {
    return await openPasst(forwards);
  } catch (error) {
    if (!(error instanceof PasstError && facts.mayLackForwards && forwards.length > 0)) throw error;
    facts.log(`${nameOf(vif)}: without its forwards: ${error.message}`);
    return await openPasst([]);
  }
}

/** Opens the network of an interface. @throws HostError */
export async function openNetwork(vif: VifConfig, facts: DeviceFacts): Promise<NetworkEnd> {
  const choice = chooseNetwork(vif, hostBridges());
  const name = vif.ifname ?? vifName(facts.domid, vif);
  try {
    switch (choice.kind) {
      case 'nat':
        return await openNat(vif, facts);
      case 'switch':
        return await openSwitch(vif, choice.name);
      case 'bridge':
        return await openBridged(name, choice.name, vif.mtu);
      case 'openvswitch':
        return await openVswitched(name, choice.name, vif.mtu);
      case 'route':
        return await openRouted(name, routedAddresses(vif), vif.gatewaydev, vif.mtu);
      case 'passt':
        return await openPasstFor(vif, facts);
      case 'script':
        // Under that name; giving it the one in `vifname` is the script's work too.
        return await openForScript(vifName(facts.domid, vif), vif.mtu);
    }
  } catch (error) {
    if (error instanceof TapError || error instanceof PasstError)
      throw new HostError(`${nameOf(vif)}: ${error.message}`);
    throw error;
  }
}

/** Source: vif-route, for which `ip` may name several, with or without a mask. */
function routedAddresses(vif: VifConfig): string[] {
  const addresses = (vif.ip ?? '').split(' ').filter((text) => text !== '');
  for (const address of addresses)
    if (!/^[0-9.]+(\/\d{1,2})?$/.test(address) || parseIpv4(address.split('/')[0]) < 0)
      throw new HostError(`${nameOf(vif)}: ip=${vif.ip}: expected IPv4 addresses, found \`${address}'`);
  if (addresses.length === 0) throw new HostError(`${nameOf(vif)}: script=vif-route needs ip=`);
  return addresses;
}

/** A port of the daemon's switch, which outlives the daemon: the next one is looked for when it is gone. */
async function openSwitch(vif: VifConfig, name: string): Promise<NetworkEnd> {
  if (!SWITCH_NAME.test(name))
    throw new HostError(`${nameOf(vif)}: bridge=${name}: expected up to 32 letters, digits and .:_-`);
  const path = switchPath(stateRoot());
  const open = async (): Promise<StreamSocket> => {
    try {
      return await connectSwitch(path, name);
    } catch {
      // Whoever asks for xenstored starts the daemon.
      (await openXenstored()).close();
      return await connectSwitch(path, name);
    }
  };
  try {
    return new SocketPort({ form: DOMUS_FORM, open, first: await open() });
  } catch (error) {
    throw new HostError(`${nameOf(vif)}: no switch ${name}: ${error instanceof Error ? error.message : error}`);
  }
}
