/**
 * What xenstore holds of a domain, as a part of a saved domain: its own nodes, those of the toolstack and of its backends, with values
 * and permissions; and the watches of the guest.
 */

import type { XenstoreClient, XenstoreNodes } from '../../xenstore/client.ts';
import { translatePath } from '../../xenstore/domid-alias.ts';
import { bytesToText, textToBytes } from '../../xenstore/wire.ts';
import { nameMustBeFree } from '../xenstore-nodes.ts';
import { SaveFileError } from './save-file.ts';

const BACKENDS = '/local/domain/0/backend';
const UUID_PATH = /^\/vm\/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
/** Far above what quotas allow a domain. */
const NODES_MAX = 100_000;

/** Path, value (a character a byte), permissions. */
export type SavedNode = readonly [path: string, value: string, permissions: readonly string[]];

/** All that belongs to a domain, parents before children. */
export async function readDomainNodes(store: XenstoreClient, domid: number): Promise<SavedNode[]> {
  const nodes: SavedNode[] = [];
  const visit = async (path: string): Promise<void> => {
    const [value, permissions, names] = await Promise.all([
      store.readBytes(path),
      store.getPermissions(path),
      store.directory(path),
    ]);
    if (value === null || permissions === null || names === null) return;
    nodes.push([path, bytesToText(value), permissions]);
    for (const name of names) await visit(`${path}/${name}`);
  };
  const vm = await store.read(`/local/domain/${domid}/vm`);
  if (vm !== null && UUID_PATH.test(vm)) await visit(vm);
  await visit(`/local/domain/${domid}`);
  await visit(`/libxl/${domid}`);
  for (const kind of (await store.directory(BACKENDS)) ?? []) await visit(`${BACKENDS}/${kind}/${domid}`);
  return nodes;
}

/** Checks what was read from a file. @throws SaveFileError */
export function checkNodes(value: unknown, domid: number): SavedNode[] {
  if (!Array.isArray(value) || value.length > NODES_MAX)
    throw new SaveFileError('damaged: xenstore is no list of nodes');
  return value.map((node: unknown) => {
    if (!Array.isArray(node) || node.length !== 3) throw new SaveFileError('damaged: a node of xenstore is none');
    const [path, text, permissions] = node as unknown[];
    if (typeof path !== 'string' || !isOf(path, domid))
      throw new SaveFileError(`${JSON.stringify(path)} is no node of domain ${domid}`);
    const isSane =
      typeof text === 'string' &&
      !/[^\0-\xff]/.test(text) &&
      Array.isArray(permissions) &&
      permissions.length > 0 &&
      permissions.every((entry) => typeof entry === 'string' && /^[nrwb]\d{1,5}$/.test(entry));
    if (!isSane) throw new SaveFileError(`damaged: ${path}`);
    return [path, text, permissions as string[]];
  });
}

/** A path that a domain's nodes may have, so that a file touches nobody else's. */
function isOf(path: string, domid: number): boolean {
  if (path.length > 3072 || !/^(\/[A-Za-z0-9@_-]+)+$/.test(path)) return false;
  const words = path.split('/').slice(1);
  if (words[0] === 'vm') return UUID_PATH.test(`/vm/${words[1]}`);
  if (words[0] === 'libxl') return words[1] === String(domid);
  if (words[0] !== 'local' || words[1] !== 'domain') return false;
  if (words[2] === String(domid)) return domid !== 0;
  return words[2] === '0' && words[3] === 'backend' && words.length > 5 && words[5] === String(domid);
}

function isSame(a: SavedNode, b: SavedNode | undefined): boolean {
  return b !== undefined && a[1] === b[1] && a[2].join() === b[2].join();
}

/** The nodes as they are of a domain with another domid: in paths, in values that are such paths or the domid, in permissions. */
export function renumberNodes(nodes: readonly SavedNode[], from: number, to: number): readonly SavedNode[] {
  if (from === to) return nodes;
  const path = (text: string): string =>
    translatePath(text.replace(new RegExp(`^/libxl/${from}(?=/|$)`), `/libxl/${to}`), from, to);
  return nodes.map(([old, value, permissions]) => {
    const isDomid = old.endsWith('/frontend-id') || old === `/local/domain/${from}/domid`;
    return [
      path(old),
      isDomid && value === String(from) ? String(to) : path(value),
      permissions.map((entry) => (entry.slice(1) === String(from) ? `${entry[0]}${to}` : entry)),
    ];
  });
}

/**
 * Makes the nodes, all or none. `name`: what the domain is called now. `before`: what has been made of them already, with the name.
 * @throws DomainNameTaken
 */
export async function writeDomainNodes(
  store: XenstoreClient,
  domid: number,
  saved: readonly SavedNode[],
  name: string,
  before: readonly SavedNode[] = [],
): Promise<void> {
  const known = new Map(before.map((node) => [node[0], node]));
  const wanted = new Set(saved.map(([path]) => path));
  await store.transaction(async (nodes: XenstoreNodes) => {
    if (before.length === 0) await nameMustBeFree(nodes, name);
    const made: Promise<unknown>[] = [];
    for (const [path] of before) if (!wanted.has(path)) made.push(nodes.remove(path));
    for (const node of saved) {
      const [path, value, permissions] = node;
      if (isSame(node, known.get(path))) continue;
      const isName =
        path === `/local/domain/${domid}/name` || (UUID_PATH.test(path.slice(0, -5)) && path.endsWith('/name'));
      made.push(nodes.write(path, isName ? name : textToBytes(value)), nodes.setPermissions(path, permissions));
    }
    await Promise.all(made);
  });
}
