import { setImmediate } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { PlugWatcher } from './plug-watcher.ts';

const FOLDER = '/local/domain/0/backend/vbd/5';

/** All that follows from what has been asked for is done. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await setImmediate();
}

test('what is plugged while a watcher is held is served when it is released', async () => {
  const store = createStore();
  const client = new XenstoreClient(linkToStore(store, 0));
  const seen: number[] = [];
  const onDevice = async (_kind: string, id: number): Promise<void> => void seen.push(id);
  const watcher = new PlugWatcher({ store: client, domid: 5, onDevice, log: () => {} });
  await watcher.start();
  await client.write(`${FOLDER}/1/state`, '1');
  await settle();
  expect(seen.splice(0)).toContain(1);

  for (const id of [2, 3]) {
    await watcher.hold();
    await client.write(`${FOLDER}/${id}/state`, '1');
    await settle();
    expect(seen).toEqual([]);
    watcher.release();
    await settle();
    expect(seen.splice(0)).toContain(id);
  }

  // Without news there is nothing to look for.
  await watcher.hold();
  watcher.release();
  await settle();
  expect(seen).toEqual([]);
  await watcher.stop();
  await client.write(`${FOLDER}/4/state`, '1');
  await settle();
  expect(seen).toEqual([]);
  client.close();
});
