import { expect, test } from 'vitest';
import { XenstoreClient } from '../../xenstore/client.ts';
import { linkToStore } from '../../xenstore/link.ts';
import { createStore } from '../../xenstore/store.ts';
import { changeDomainNodes, readDomainNodes, type SavedNode } from './saved-store.ts';
import { WatchedNodes } from './watched-nodes.ts';

const HOME = '/local/domain/5';
const VIF = '/local/domain/0/backend/vif/5/0';
const VM = '/vm/00000000-0000-0000-0000-000000000005';

async function storeWithDomain(): Promise<{ store: XenstoreClient; counted: { reads: number } }> {
  const store = new XenstoreClient(linkToStore(createStore()));
  await store.write(`${HOME}/vm`, VM);
  await store.write(`${HOME}/name`, 'guest');
  await store.write(`${HOME}/device/vif/0/state`, '4');
  await store.write(`${VIF}/state`, '4');
  await store.write(`${VM}/name`, 'guest');
  await store.write('/libxl/5/type', 'pv');
  const counted = { reads: 0 };
  const readBytes = store.readBytes.bind(store);
  store.readBytes = (path) => {
    counted.reads++;
    return readBytes(path);
  };
  return { store, counted };
}

const sorted = (nodes: readonly SavedNode[]): SavedNode[] => [...nodes].sort(([a], [b]) => (a < b ? -1 : 1));

test('nodes that nobody has changed are not read again', async () => {
  const { store, counted } = await storeWithDomain();
  const watched = new WatchedNodes(store, 5);
  const first = await watched.start();
  expect(first).toEqual(sorted(await readDomainNodes(store, 5)));
  counted.reads = 0;
  expect(await watched.now()).toEqual(first);
  // One read makes the events come.
  expect(counted.reads).toBeLessThanOrEqual(1);
  watched.stop();
});

test('what was changed, made, removed, or got other permissions is read again, and nothing else', async () => {
  const { store } = await storeWithDomain();
  const watched = new WatchedNodes(store, 5);
  const first = await watched.start();
  await store.write(`${HOME}/data/new/leaf`, 'x');
  await store.write(`${VIF}/state`, '5');
  await store.remove(`${HOME}/device/vif/0`);
  await store.setPermissions(`${HOME}/name`, ['n5', 'r0']);
  await store.write('/local/domain/6/name', 'other');
  const now = await watched.now();
  expect(now).toEqual(sorted(await readDomainNodes(store, 5)));
  expect(now).not.toEqual(first);
  // Parents come before their children.
  const paths = now.map(([path]) => path);
  expect(paths.indexOf(`${HOME}/data`)).toBeLessThan(paths.indexOf(`${HOME}/data/new/leaf`));
  watched.stop();

  // A copy elsewhere becomes the same by the differences alone.
  const copy = new XenstoreClient(linkToStore(createStore()));
  await changeDomainNodes(copy, [], first);
  expect(sorted(await readDomainNodes(copy, 5))).toEqual(first);
  await changeDomainNodes(copy, first, now);
  expect(sorted(await readDomainNodes(copy, 5))).toEqual(now);
  // What it is called is for others to say.
  await changeDomainNodes(
    copy,
    now,
    now.map(([path, value, permissions]) => [path, /5\/name$/.test(path) ? 'another' : value, permissions]),
  );
  expect(sorted(await readDomainNodes(copy, 5))).toEqual(now);
});
