import { expect, test } from 'vitest';
import { readDomainNodes } from '../toolstack/saved/saved-store.ts';
import { introduceDomain } from '../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { KnownNodes } from './known-nodes.ts';

const UUID = '6d0b4e0e-9b0b-4d4c-8d1f-0123456789ab';

async function host(): Promise<{
  readonly ours: XenstoreClient;
  readonly others: XenstoreClient;
  readonly asked: string[];
}> {
  const store = createStore();
  const ours = new XenstoreClient(linkToStore(store, 0));
  const others = new XenstoreClient(linkToStore(store, 0));
  for (const domid of [3, 4]) {
    const rings = { storePort: 1, storeMfn: 1, consolePort: 2, consoleMfn: 2 };
    const size = { memoryKiB: 1024, maxMemKiB: 1024, vcpus: 1 };
    await introduceDomain(others, {
      domid,
      uuid: UUID.replace('6', String(domid)),
      name: `d${domid}`,
      ...rings,
      ...size,
    });
    await others.write(`/local/domain/0/backend/vif/${domid}/0/state`, '4');
  }
  const asked: string[] = [];
  const readBytes = ours.readBytes.bind(ours);
  ours.readBytes = (path) => {
    asked.push(path);
    return readBytes(path);
  };
  return { ours, others, asked };
}

test('nodes that have not changed are not read again', async () => {
  const { ours, others, asked } = await host();
  const known = await KnownNodes.read(ours, 3);
  const first = await known.current();
  expect(first).toEqual(await readDomainNodes(others, 3));
  expect(first.length).toBeGreaterThan(50);
  asked.splice(0);
  await others.write('/local/domain/0/backend/vif/4/0/state', '5');
  await others.write('/local/domain/4/data/x', 'y');
  expect(await known.current()).toEqual(first);
  expect(asked.filter((path) => !path.endsWith('/domid'))).toEqual([]);
  known.close();
});

test.each<[string, (store: XenstoreClient) => Promise<unknown>]>([
  ['a value', (store) => store.write('/local/domain/3/control/shutdown', 'reboot')],
  ['a value of a backend', (store) => store.write('/local/domain/0/backend/vif/3/0/state', '5')],
  ['permissions', (store) => store.setPermissions('/local/domain/3/data', ['n3', 'r0', 'b7'])],
  ['a new node, with others above it', (store) => store.write('/local/domain/3/data/a/b/c', 'new')],
  ['a new backend', (store) => store.write('/local/domain/0/backend/vbd/3/51712/state', '1')],
  ['a node that is gone, with others below it', (store) => store.remove('/local/domain/3/memory')],
  ['a name below /vm', (store) => store.write(`/vm/${UUID.replace('6', '3')}/name`, 'other')],
  ['what the toolstack notes', (store) => store.write('/libxl/3/type', 'pvh')],
])('%s that changes is known', async (_, change) => {
  const { ours, others } = await host();
  const known = await KnownNodes.read(ours, 3);
  const before = await known.current();
  await change(others);
  const after = await known.current();
  expect(after).toEqual(await readDomainNodes(others, 3));
  expect(after).not.toEqual(before);
  expect(await known.current()).toEqual(after);
  known.close();
});
