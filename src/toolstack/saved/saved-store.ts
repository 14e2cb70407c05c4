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
    nodes.push(...(await readNodesBelow(store, path)));
  };
  const vm = await store.read(`/local/domain/${domid}/vm`);
  if (vm !== null && UUID_PATH.test(vm)) await visit(vm);
  await visit(`/local/domain/${domid}`);
  await visit(`/libxl/${domid}`);
  for (const kind of (await store.directory(BACKENDS)) ?? []) await visit(`${BACKENDS}/${kind}/${domid}`);
  return nodes;
}

/** A node and all below it, parents before children; nothing if it is not there. */
export async function readNodesBelow(store: XenstoreClient, path: string): Promise<SavedNode[]> {
  const [value, permissions, names] = await Promise.all([
    store.readBytes(path),
    store.getPermissions(path),
    store.directory(path),
  ]);
  if (value === null || permissions === null || names === null) return [];
  const below = await Promise.all(names.map((name) => readNodesBelow(store, `${path}/${name}`)));
  return [[path, bytesToText(value), permissions], ...below.flat()];
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

/** Of a path of a domain's: it tells what the domain is called. */
function isName(path: string): boolean {
  return /^\/local\/domain\/\d+\/name$/.test(path) || (UUID_PATH.test(path.slice(0, -5)) && path.endsWith('/name'));
}

/** Makes the nodes of a domain from `before` into `after`, all or none. Its name stays. */
export async function changeDomainNodes(
  store: XenstoreClient,
  before: readonly SavedNode[],
  after: readonly SavedNode[],
): Promise<void> {
  const old = new Map(before.map((node) => [node[0], JSON.stringify(node)]));
  const wanted = new Set(after.map(([path]) => path));
  const gone = [...old.keys()].filter((path) => !wanted.has(path));
  const stays = (path: string): boolean => isName(path) && old.has(path);
  const changed = after.filter((node) => old.get(node[0]) !== JSON.stringify(node));
  if (gone.length === 0 && changed.length === 0) return;
  await store.transaction(async (nodes: XenstoreNodes) => {
    const made: Promise<unknown>[] = [];
    // Children first: a node goes with all below it.
    for (const path of gone.reverse()) made.push(nodes.remove(path));
    for (const [path, value, permissions] of changed) {
      if (!stays(path)) made.push(nodes.write(path, textToBytes(value)));
      made.push(nodes.setPermissions(path, permissions));
    }
    await Promise.all(made);
  });
}

/**
 * Makes the nodes, all or none. `name`: what the domain is called now.
 * @throws DomainNameTaken
 */
export async function writeDomainNodes(
  store: XenstoreClient,
  saved: readonly SavedNode[],
  name: string,
): Promise<void> {
  await store.transaction(async (nodes: XenstoreNodes) => {
    await nameMustBeFree(nodes, name);
    const made: Promise<void>[] = [];
    for (const [path, value, permissions] of saved) {
      made.push(nodes.write(path, isName(path) ? name : textToBytes(value)), nodes.setPermissions(path, permissions));
    }
    await Promise.all(made);
  });
}
