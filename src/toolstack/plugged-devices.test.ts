import { beforeEach, expect, test } from 'vitest';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import type { ConfigAndText } from './config/device-specs.ts';
import { FORMATS, parseDisk, vdevNumber } from './config/disk.ts';
import { readDomainConfig } from './config/domain-config.ts';
import { formatMac, parseVif, type VifConfig } from './config/network-interface.ts';
import {
  addDeviceNodes,
  type DeviceNodes,
  diskNodes,
  removeDeviceNodes,
  unplugDevice,
  vifNodes,
} from './device-nodes.ts';
import { readPlugged, withPlugged } from './plugged-devices.ts';

const DOMID = 5;
const MAC = Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3);
const noWarning = (line: string): void => expect.fail(line);
const read = (text: string) => readDomainConfig('test', text, { warn: noWarning });

let store: XenstoreClient;
beforeEach(async () => {
  store = new XenstoreClient(linkToStore(createStore()));
  await store.write(`/local/domain/${DOMID}/vm`, '/vm/x');
});

function configOf(disks: readonly string[], vifs: readonly string[]): ConfigAndText {
  const list = (specs: readonly string[]): string => `[${specs.map((spec) => `'${spec}'`).join(', ')}]`;
  const text = `name="a"\nkernel="/k"\nuuid="6d0b4e0e-9b0b-4d4c-8d1f-0123456789ab"\ndisk=${list(disks)}\nvif=${list(vifs)}\n`;
  return { text, config: read(text) };
}

const disk = (spec: string, path?: string): DeviceNodes => {
  const parsed = parseDisk('', spec);
  return diskNodes(parsed, vdevNumber(parsed.vdev)!, path ?? parsed.target ?? '');
};
const vifConfig = (spec: string, devid = 0): VifConfig => parseVif('', spec, devid, noWarning);
const vif = (spec: string, devid = 0): DeviceNodes => {
  const config = vifConfig(spec, devid);
  return vifNodes(config, config.mac ?? MAC);
};
const add = (nodes: DeviceNodes): Promise<boolean> => addDeviceNodes(store, DOMID, nodes);
/** The config that the domain would be started again with, which is what its text says. */
async function now(from: ConfigAndText): Promise<ConfigAndText> {
  const next = withPlugged(from, (await readPlugged(store, DOMID))!);
  expect(read(next.text)).toEqual(next.config);
  return next;
}

test('a domain that is not there has no devices to tell of', async () => {
  expect(await readPlugged(store, DOMID + 1)).toBeNull();
});

test('what has not changed is the same, byte by byte', async () => {
  const specs = ['vdev=xvda,script=block-nbd,discard,target=a:1,b c', '/b,qcow2,xvdb,r', '/c,raw,hdc,cdrom'];
  const nets = [
    'mac=00:16:3e:01:02:03,bridge=b,forward=tcp:1:1,rate=1Mb/s',
    'mac=00:16:3e:01:02:04,script=vif-nat,ip=10.0.9.9',
  ];
  const from = configOf(specs, nets);
  for (const spec of specs) await add(disk(spec));
  for (const [devid, spec] of nets.entries()) await add(vif(spec, devid));
  expect(await now(from)).toBe(from);
});

test('an address that was made up stays, and a file is that of the folder where it was found', async () => {
  const from = configOf(['d.img,raw,xvda,w'], ['bridge=b,forward=tcp:1:1,loopback=0']);
  await add(disk('d.img,raw,xvda,w', '/home/me/d.img'));
  await add(vif('bridge=b,forward=tcp:1:1,loopback=0'));
  const next = await now(from);
  expect(next.config.disks).toEqual([{ ...from.config.disks[0], target: '/home/me/d.img' }]);
  expect(next.config.vifs).toEqual([{ ...from.config.vifs[0], mac: MAC }]);
  expect(await now(next)).toBe(next);
});

test('what was plugged is there, what was unplugged is not, and another one in its place is that one', async () => {
  const from = configOf(
    ['/a,raw,xvda,w', '/b,raw,xvdb,w', '/c,raw,xvdc,w'],
    ['mac=00:16:3e:01:02:03', 'mac=00:16:3e:01:02:04'],
  );
  for (const spec of ['/a,raw,xvda,w', '/other,qcow2,xvdc,r', '/d,vmdk,xvdd,w']) await add(disk(spec));
  await add(vif('mac=00:16:3e:01:02:09,bridge=c', 1));
  await add(vif('mac=00:16:3e:01:02:05,script=vif-nat,mtu=1400,untrusted', 2));
  const next = await now(from);
  expect(next.config.disks.map(({ vdev, target, format, writable }) => [vdev, target, format, writable])).toEqual([
    ['xvda', '/a', 'raw', true],
    ['xvdc', '/other', 'qcow2', false],
    ['xvdd', '/d', 'vmdk', true],
  ]);
  expect(
    next.config.vifs.map(({ devid, mac, bridge, mtu, trusted }) => [devid, formatMac(mac!), bridge, mtu, trusted]),
  ).toEqual([
    [1, '00:16:3e:01:02:09', 'c', null, null],
    [2, '00:16:3e:01:02:05', null, 1400, false],
  ]);
  await removeDeviceNodes(store, DOMID, disk('/d,vmdk,xvdd,w'));
  expect((await now(next)).config.disks.map(({ vdev }) => vdev)).toEqual(['xvda', 'xvdc']);
});

test.each(['loopback=0', 'forward=tcp::8022-:22', 'macfilter=1', 'bridge=xenbr0', 'mtu=1400', 'rate=1Mb/s'])(
  'an interface that was plugged in the place of another one is all that was said of it: %s',
  async (spec) => {
    await add(vif(spec));
    const [again] = (await now(configOf([], ['']))).config.vifs;
    expect(again).toEqual({ ...vifConfig(spec), mac: MAC, script: '/etc/xen/scripts/vif-bridge' });
    const [plain] = (await now(configOf([], [`mac=${formatMac(MAC)},${spec}`]))).config.vifs;
    expect(plain).toMatchObject(vifConfig(`mac=${formatMac(MAC)},${spec}`));
    await removeDeviceNodes(store, DOMID, vif(spec));
    await add(vif(''));
    const [other] = (await now(configOf([], [spec]))).config.vifs;
    expect(other).toEqual({ ...vifConfig(''), mac: MAC, script: '/etc/xen/scripts/vif-bridge' });
  },
);

test('what the nodes of an older Domus do not say of an interface is what the config says', async () => {
  const spec = 'forward=tcp::8022-:22,loopback=0,mtu=1400';
  await add(vif(''));
  await store.remove(`/libxl/${DOMID}/device/vif/0/default-bridge`);
  expect((await now(configOf([], [spec]))).config.vifs).toEqual([{ ...vifConfig(spec), mac: MAC }]);
});

test('what is on its way out is gone', async () => {
  const spec = '/a,raw,xvda,w';
  await add(disk(spec));
  await unplugDevice(store, DOMID, disk(spec));
  expect((await now(configOf([spec], []))).config.disks).toEqual([]);
});

test('a device of a driver domain is that domain`s, by its name', async () => {
  await store.write('/local/domain/9/name', 'storage');
  await add({ ...disk('/dev/vg/a,raw,xvda,w'), backendDomid: 9 });
  await add({ ...vif('bridge=b'), backendDomid: 8 });
  const { config } = await now(configOf([], []));
  expect(config.disks[0]).toMatchObject({ backendDomain: 'storage', target: '/dev/vg/a' });
  expect(config.vifs[0]).toMatchObject({ backendDomain: '8', bridge: 'b' });
});

test.each([
  ...FORMATS.filter((format) => format !== 'empty').map((format) => `vdev=xvda,format=${format},target=/a b,c:d`),
  'vdev=xvda,access=ro,target=/a',
  'vdev=hdc,devtype=cdrom,target=/a',
  'vdev=xvda,discard,target=/a',
  'vdev=xvda,access=ro,discard,target=/a',
  'vdev=xvda,no-discard,target=/a',
  'vdev=xvda,direct-io-safe,target=/a',
  'vdev=xvda,backendtype=phy,target=/a',
  'vdev=xvda,backendtype=qdisk,target=/a',
  'vdev=xvda,untrusted,target=/a',
  'vdev=d7p8,script=/opt/block x,target=/a,b',
  'vdev=xvda,script=block-iscsi,target=iqn=x,y',
])('a disk that was plugged is plugged as the same again: %s', async (spec) => {
  const nodes = disk(spec);
  await add(nodes);
  const [again] = (await now(configOf([], []))).config.disks;
  expect(diskNodes(again, nodes.id, again.target!)).toEqual(nodes);
});
