import { expect, test } from 'vitest';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { backendDomid } from './backend-domain.ts';
import { parseDisk } from './config/disk.ts';
import { readDomainConfig } from './config/domain-config.ts';
import { addDeviceNodes, backendPath, diskNodes } from './device-nodes.ts';
import { plugDevice } from './device-plug.ts';
import { introduceDomain, removeDomain } from './xenstore-nodes.ts';

/** Domain 3 is a driver domain, domain 4 has a disk of it. */
async function makeStore(): Promise<XenstoreClient> {
  const store = new XenstoreClient(linkToStore(createStore()));
  for (const [domid, name] of [
    [3, 'driver'],
    [4, 'user'],
  ] as const)
    await introduceDomain(store, {
      domid,
      name,
      uuid: `00000000-0000-4000-8000-00000000000${domid}`,
      memoryKiB: 65536,
      maxMemKiB: 65536,
      vcpus: 1,
      storePort: 1,
      storeMfn: 0x100010,
      consolePort: 2,
      consoleMfn: 0x100011,
      driverDomain: name === 'driver',
    });
  return store;
}

const disk = {
  ...diskNodes(parseDisk('test', 'phy:/dev/ram0,xvda,w,backend=driver'), 51712, '/dev/ram0'),
  backendDomid: 3,
};

test('`backend=` is a name or a number, and Dom0 if there is none', async () => {
  const store = await makeStore();
  for (const [word, domid] of [
    [null, 0],
    ['0', 0],
    ['Domain-0', 0],
    ['driver', 3],
    ['3', 3],
  ] as const)
    expect(await backendDomid(store, word)).toBe(domid);
  for (const word of ['nobody', '7', '']) await expect(backendDomid(store, word)).rejects.toThrow('no such domain');
});

test("a driver domain owns its end of a device, and reads the guest's", async () => {
  const store = await makeStore();
  expect(await addDeviceNodes(store, 4, disk)).toBe(true);
  const path = backendPath(4, disk);
  expect(path).toBe('/local/domain/3/backend/vbd/4/51712');
  expect(await store.read(`${path}/params`)).toBe('/dev/ram0');
  expect(await store.getPermissions(path)).toEqual(['n3', 'r4']);
  const frontend = '/local/domain/4/device/vbd/51712';
  expect(await store.getPermissions(frontend)).toEqual(['n4', 'r3']);
  expect(await store.read(`${frontend}/backend`)).toBe(path);
  expect(await store.read(`${frontend}/backend-id`)).toBe('3');
  for (const folder of ['libxl', 'device-model', 'backend'])
    expect(await store.getPermissions(`/local/domain/3/${folder}`)).toEqual(['n3']);
  expect(await store.directory('/local/domain/4/backend')).toBe(null);
});

test('a device that the driver domain does not serve leaves nothing behind', async () => {
  const store = await makeStore();
  await expect(plugDevice(store, 4, disk, 20)).rejects.toThrow('its backend is in state 1 still');
  expect(await store.directory('/local/domain/3/backend/vbd')).toEqual([]);
  expect(await store.directory('/libxl/4/device/vbd')).toEqual([]);
});

test('it is for the driver domain to say that its script has run', async () => {
  const store = await makeStore();
  const plugged = plugDevice(store, 4, disk);
  const path = backendPath(4, disk);
  while ((await store.read(`${path}/state`)) === null);
  await store.write(`${path}/state`, '2');
  await plugged;
  expect(await store.read(`${path}/hotplug-status`)).toBe(null);
});

test("a domain that ends takes its devices' nodes out of driver domains, and no others", async () => {
  const store = await makeStore();
  await addDeviceNodes(store, 4, disk);
  await addDeviceNodes(store, 3, { ...disk, backendDomid: 4 });
  await removeDomain(store, 4);
  expect(await store.directory('/local/domain/3/backend/vbd')).toEqual([]);
  expect(await store.read('/libxl/3/device/vbd/51712/backend')).toBe('/local/domain/4/backend/vbd/3/51712');
  expect(await store.read('/local/domain/3/name')).toBe('driver');
});

test('`driver_domain` of a config', () => {
  const read = (more: string) =>
    readDomainConfig('test', `name = "a"\nkernel = "k"\n${more}`, { warn: () => {} }).driverDomain;
  expect([read(''), read('driver_domain = 0'), read('driver_domain = 1')]).toEqual([false, false, true]);
});
