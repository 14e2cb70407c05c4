/**
 * What a copy of a domain is, where it must not be what the other is: name, UUID, addresses of its interfaces, files of its disks, and the
 * generation by which its guest can tell that it is another one.
 *
 * Source: docs/misc/xenstore-paths.pandoc, "~/platform/generation-id = INTEGER ":" INTEGER", which Xen gives HVM guests only.
 */

import { formatUuid } from '../config/domain-config.ts';
import { formatMac } from '../config/network-interface.ts';
import type { Description } from './saved-description.ts';
import type { SavedNode } from './saved-store.ts';

export interface ForkIdentity {
  readonly name: string;
  /** 16 bytes. */
  readonly uuid: Uint8Array;
  /** By number of the interface: six bytes. */
  readonly macs: Readonly<Record<number, Uint8Array>>;
  /** By number of the virtual disk: a qcow2 image of its own. The others cannot be written to. */
  readonly disks: Readonly<Record<number, string>>;
  readonly generation: Generation;
}

/** Two 64-bit words. */
export type Generation = readonly [low: bigint, high: bigint];

export const GENERATION_NODE = 'platform/generation-id';

export function formatGeneration([low, high]: Generation): string {
  return `${low}:${high}`;
}

export function makeUpGeneration(): Generation {
  const [low, high] = crypto.getRandomValues(new BigUint64Array(2));
  return [low, high];
}

/** The description of the copy, by which it is restored. */
export function forkedDescription(from: Description, identity: ForkIdentity): Description {
  return { ...from, name: identity.name, nodes: forkedNodes(from.nodes, from.domid, identity) };
}

/** The nodes of the copy, still with the domid of the other one. */
export function forkedNodes(nodes: readonly SavedNode[], domid: number, identity: ForkIdentity): SavedNode[] {
  const vm = `/vm/${formatUuid(identity.uuid)}`;
  const domain = `/local/domain/${domid}`;
  const generation = `${domain}/${GENERATION_NODE}`;
  const forked: SavedNode[] = [];
  for (const [path, value, permissions] of nodes) {
    if (path === generation || path === `${domain}/platform`) continue;
    const to = path.replace(/^\/vm\/[0-9a-f-]+/, vm);
    const text = forkedValue(to, value, vm, domain, identity);
    if (text !== null) forked.push([to, text, permissions]);
  }
  const guestReads = ['n0', `r${domid}`];
  forked.push([`${domain}/platform`, '', guestReads]);
  forked.push([generation, formatGeneration(identity.generation), guestReads]);
  return forked;
}

/** Null: the copy has no such node. */
function forkedValue(path: string, value: string, vm: string, domain: string, identity: ForkIdentity): string | null {
  if (path === `${vm}/uuid`) return vm.slice('/vm/'.length);
  if (path === `${domain}/vm`) return vm;
  const device = /\/(vif|vbd|qdisk)\/(?:\d+\/)?(\d+)\/([\w-]+)$/.exec(path);
  if (device === null) return value;
  const [, kind, id, name] = device;
  if (kind === 'vif') {
    const mac = identity.macs[Number(id)];
    // Each interface of the host has a name of its own, and its ports lead to the other one.
    if (name === 'vifname' || name.startsWith('forward-')) return null;
    return name === 'mac' && mac !== undefined ? formatMac(mac) : value;
  }
  const disk = identity.disks[Number(id)];
  if (disk === undefined) return value;
  if (name === 'params') return `qcow2:${disk}`;
  return name === 'type' ? 'qdisk' : value;
}
