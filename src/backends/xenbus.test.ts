import { setImmediate } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { XenbusStateClosed, XenbusStateClosing, XenbusStateConnected } from '../abi/io/xenbus.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { type BackendDevice, XenbusBackend } from './xenbus.ts';

const BACK = '/local/domain/0/backend/vbd/5/1';
const FRONT = '/local/domain/5/device/vbd/1';

test('a device that is unplugged while it is detached is closed when it is attached', async () => {
  const store = new XenstoreClient(linkToStore(createStore(), 0));
  const called: string[] = [];
  const say = async (what: string): Promise<void> => void called.push(what);
  const device: BackendDevice = {
    waitsForHotplug: false,
    announce: () => ({}),
    connect: async () => {
      await say('connect');
      return {};
    },
    disconnect: () => say('disconnect'),
    close: () => say('close'),
  };
  await store.write(`${BACK}/frontend`, FRONT);
  await store.write(`${BACK}/online`, '1');
  for (const path of [BACK, FRONT]) await store.write(`${path}/state`, String(XenbusStateConnected));
  const backend = new XenbusBackend({ store, path: BACK, device: () => device, log: () => {} });
  await backend.start(true);
  await backend.detach();
  expect(called.splice(0)).toEqual(['connect', 'disconnect']);

  await store.write(`${BACK}/online`, '0');
  await store.write(`${BACK}/state`, String(XenbusStateClosing));
  await store.write(`${FRONT}/state`, String(XenbusStateClosed));
  for (let turn = 0; turn < 50; turn++) await setImmediate();
  expect(called).toEqual([]);
  await backend.attach();
  await backend.gone;
  expect(called).toEqual(['connect', 'disconnect', 'disconnect', 'close']);
  store.close();
}, 5000);
