import { beforeEach, expect, test } from 'vitest';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { parseDisk } from './config/disk.ts';
import { parseVif } from './config/network-interface.ts';
import { addDeviceNodes, diskNodes, removeDeviceNodes, unplugDevice, vifNodes } from './device-nodes.ts';
import { introduceDomain } from './xenstore-nodes.ts';

const DOMID = 27;
const DISK = diskNodes(parseDisk('', 'phy:/dev/loop0,xvda,w'), 51712, '/dev/loop0');
const VIF = vifNodes(
  parseVif('', 'mac=00:16:3e:11:22:33,bridge=xenbr0', 0, () => {}),
  Uint8Array.of(0, 0x16, 0x3e, 0x11, 0x22, 0x33),
);

let client: XenstoreClient;

beforeEach(async () => {
  const store = createStore();
  client = new XenstoreClient(linkToStore(store));
  await introduceDomain(client, {
    domid: DOMID,
    uuid: 'e29e0040-db4b-4e86-9413-deddcaa5c837',
    name: 'v3',
    memoryKiB: 1,
    maxMemKiB: 1,
    vcpus: 1,
    storePort: 1,
    storeMfn: 1,
    consolePort: 2,
    consoleMfn: 2,
  });
});

async function list(path: string): Promise<string[]> {
  const lines = [`${path} = "${await client.read(path)}"   (${(await client.getPermissions(path))?.join()})`];
  for (const name of ((await client.directory(path)) ?? []).sort()) lines.push(...(await list(`${path}/${name}`)));
  return lines;
}

/** `xenstore-ls -fp` recorded from Xen 4.17, without what the frontend, Linux's backends and the scripts wrote. */
test('a disk has the nodes that libxl made', async () => {
  expect(await addDeviceNodes(client, DOMID, DISK)).toBe(true);
  expect(await list('/libxl/27/device/vbd')).toEqual(
    `/libxl/27/device/vbd = ""   (n0)
/libxl/27/device/vbd/51712 = ""   (n0)
/libxl/27/device/vbd/51712/backend = "/local/domain/0/backend/vbd/27/51712"   (n0)
/libxl/27/device/vbd/51712/bootable = "1"   (n0)
/libxl/27/device/vbd/51712/dev = "xvda"   (n0)
/libxl/27/device/vbd/51712/device-type = "disk"   (n0)
/libxl/27/device/vbd/51712/discard-enable = "1"   (n0)
/libxl/27/device/vbd/51712/frontend = "/local/domain/27/device/vbd/51712"   (n0)
/libxl/27/device/vbd/51712/frontend-id = "27"   (n0)
/libxl/27/device/vbd/51712/mode = "w"   (n0)
/libxl/27/device/vbd/51712/online = "1"   (n0)
/libxl/27/device/vbd/51712/params = "/dev/loop0"   (n0)
/libxl/27/device/vbd/51712/removable = "0"   (n0)
/libxl/27/device/vbd/51712/script = "/etc/xen/scripts/block"   (n0)
/libxl/27/device/vbd/51712/specification = "xen"   (n0)
/libxl/27/device/vbd/51712/state = "1"   (n0)
/libxl/27/device/vbd/51712/type = "phy"   (n0)`.split('\n'),
  );
  expect(await list('/local/domain/0/backend/vbd')).toEqual(
    `/local/domain/0/backend/vbd = ""   (n0)
/local/domain/0/backend/vbd/27 = ""   (n0)
/local/domain/0/backend/vbd/27/51712 = ""   (n0,r27)
/local/domain/0/backend/vbd/27/51712/bootable = "1"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/dev = "xvda"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/device-type = "disk"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/discard-enable = "1"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/frontend = "/local/domain/27/device/vbd/51712"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/frontend-id = "27"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/mode = "w"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/online = "1"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/params = "/dev/loop0"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/removable = "0"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/script = "/etc/xen/scripts/block"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/specification = "xen"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/state = "1"   (n0,r27)
/local/domain/0/backend/vbd/27/51712/type = "phy"   (n0,r27)`.split('\n'),
  );
  expect(await list('/local/domain/27/device/vbd')).toEqual(
    `/local/domain/27/device/vbd = ""   (n0,r27)
/local/domain/27/device/vbd/51712 = ""   (n27,r0)
/local/domain/27/device/vbd/51712/backend = "/local/domain/0/backend/vbd/27/51712"   (n27,r0)
/local/domain/27/device/vbd/51712/backend-id = "0"   (n27,r0)
/local/domain/27/device/vbd/51712/device-type = "disk"   (n27,r0)
/local/domain/27/device/vbd/51712/state = "1"   (n27,r0)
/local/domain/27/device/vbd/51712/trusted = "1"   (n27,r0)
/local/domain/27/device/vbd/51712/virtual-device = "51712"   (n27,r0)`.split('\n'),
  );
});

test('an interface has the nodes that libxl and its script made', async () => {
  expect(await addDeviceNodes(client, DOMID, VIF)).toBe(true);
  expect(await list('/libxl/27/device/vif/0')).toEqual(
    `/libxl/27/device/vif/0 = ""   (n0)
/libxl/27/device/vif/0/backend = "/local/domain/0/backend/vif/27/0"   (n0)
/libxl/27/device/vif/0/bridge = "xenbr0"   (n0)
/libxl/27/device/vif/0/default-bridge = "0"   (n0)
/libxl/27/device/vif/0/frontend = "/local/domain/27/device/vif/0"   (n0)
/libxl/27/device/vif/0/frontend-id = "27"   (n0)
/libxl/27/device/vif/0/handle = "0"   (n0)
/libxl/27/device/vif/0/hotplug-status = ""   (n0)
/libxl/27/device/vif/0/mac = "00:16:3e:11:22:33"   (n0)
/libxl/27/device/vif/0/online = "1"   (n0)
/libxl/27/device/vif/0/script = "/etc/xen/scripts/vif-bridge"   (n0)
/libxl/27/device/vif/0/state = "1"   (n0)
/libxl/27/device/vif/0/type = "vif"   (n0)`.split('\n'),
  );
  expect(await list('/local/domain/27/device/vif')).toEqual(
    `/local/domain/27/device/vif = ""   (n0,r27)
/local/domain/27/device/vif/0 = ""   (n27,r0)
/local/domain/27/device/vif/0/backend = "/local/domain/0/backend/vif/27/0"   (n27,r0)
/local/domain/27/device/vif/0/backend-id = "0"   (n27,r0)
/local/domain/27/device/vif/0/handle = "0"   (n27,r0)
/local/domain/27/device/vif/0/mac = "00:16:3e:11:22:33"   (n27,r0)
/local/domain/27/device/vif/0/mtu = "1500"   (n0,r27)
/local/domain/27/device/vif/0/state = "1"   (n27,r0)
/local/domain/27/device/vif/0/trusted = "1"   (n27,r0)`.split('\n'),
  );
});

test('a disk that is not raw is one of the qdisk backend', async () => {
  const nodes = diskNodes(parseDisk('', '/a.qcow2,qcow2,xvdb,r'), 51728, '/a.qcow2');
  await addDeviceNodes(client, DOMID, nodes);
  const backend = '/local/domain/0/backend/qdisk/27/51728';
  expect(await client.read('/local/domain/27/device/vbd/51728/backend')).toBe(backend);
  expect(await client.read(`${backend}/params`)).toBe('qcow2:/a.qcow2');
  expect(await client.read(`${backend}/type`)).toBe('qdisk');
  expect(await client.read(`${backend}/script`)).toBeNull();
  expect(await client.read(`${backend}/discard-enable`)).toBe('0');
});

test('a device is there once; unplugged, its backend is told; removed, nothing is left', async () => {
  expect(await addDeviceNodes(client, DOMID, DISK)).toBe(true);
  expect(await addDeviceNodes(client, DOMID, DISK)).toBe(false);
  await unplugDevice(client, DOMID, DISK);
  expect(await client.read('/local/domain/0/backend/vbd/27/51712/online')).toBe('0');
  expect(await client.read('/local/domain/0/backend/vbd/27/51712/state')).toBe('5');
  await removeDeviceNodes(client, DOMID, DISK);
  expect(await client.directory('/local/domain/27/device/vbd')).toEqual([]);
  expect(await client.directory('/local/domain/0/backend/vbd')).toEqual([]);
  expect(await client.directory('/libxl/27/device/vbd')).toEqual([]);
  await unplugDevice(client, DOMID, DISK);
  expect(await client.directory('/local/domain/0/backend/vbd')).toEqual([]);
});
