import { beforeEach, expect, test } from 'vitest';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { isShutdownTaken, requestShutdown, sendSysrq, setMemoryTarget, setOnlineVcpus } from './domain-control.ts';
import { introduceDomain } from './xenstore-nodes.ts';

let dom0: XenstoreClient;
let guest: XenstoreClient;

beforeEach(async () => {
  const store = createStore();
  dom0 = new XenstoreClient(linkToStore(store));
  await introduceDomain(dom0, {
    domid: 2,
    uuid: 'e29e0040-db4b-4e86-9413-deddcaa5c837',
    name: 'u2',
    memoryKiB: 262144,
    maxMemKiB: 307200,
    vcpus: 1,
    vcpusMax: 3,
    storePort: 1,
    storeMfn: 1,
    consolePort: 2,
    consoleMfn: 2,
  });
  guest = new XenstoreClient(linkToStore(store, 2));
});

test('a shutdown is asked for, and the guest takes it', async () => {
  await requestShutdown(dom0, 2, 'reboot');
  expect(await guest.read('control/shutdown')).toBe('reboot');
  expect(await isShutdownTaken(dom0, 2)).toBe(false);
  await guest.write('control/shutdown', '');
  expect(await isShutdownTaken(dom0, 2)).toBe(true);
  await expect(requestShutdown(dom0, 9, 'poweroff')).rejects.toThrow('Domain 9:Non-existant domain');
  expect(await dom0.directory('/local/domain/9')).toBeNull();
});

test('a SysRq key is one character', async () => {
  await sendSysrq(dom0, 2, 'h');
  expect(await guest.read('control/sysrq')).toBe('h');
  for (const key of ['', 'ab', ' ', '\n', 'ä']) await expect(sendSysrq(dom0, 2, key)).rejects.toThrow('one letter');
});

test('a memory target is at most what the domain was given at most', async () => {
  await setMemoryTarget(dom0, 2, 286720);
  expect(await guest.read('memory/target')).toBe('286720');
  // Recorded from xl 4.17.
  for (const target of [307201, -1, Number.NaN, 1.5])
    await expect(setMemoryTarget(dom0, 2, target)).rejects.toThrow(
      'Domain 2:memory_dynamic_max must be less than or equal to memory_static_max',
    );
  await setMemoryTarget(dom0, 2, 0);
  expect(await guest.read('memory/target')).toBe('0');
});

test('vCPUs go online and offline, those that change only', async () => {
  const events: string[] = [];
  await guest.watch('cpu', 't', (path) => events.push(path));
  await setOnlineVcpus(dom0, 2, 2);
  await setOnlineVcpus(dom0, 2, 2);
  expect(await guest.read('cpu/1/availability')).toBe('online');
  expect(await guest.read('cpu/2/availability')).toBe('offline');
  expect(events).toEqual(['cpu', 'cpu/1/availability']);
  // Recorded from xl 4.17.
  await expect(setOnlineVcpus(dom0, 2, 4)).rejects.toThrow(
    'Domain 2:Requested 4 VCPUs, however maxcpus is 3!: Function not implemented',
  );
  await expect(setOnlineVcpus(dom0, 2, 0)).rejects.toThrow('Requested 0 VCPUs');
});
