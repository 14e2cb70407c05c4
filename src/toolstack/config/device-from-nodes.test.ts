import { expect, test } from 'vitest';
import { diskNodes, vifNodes } from '../device-nodes.ts';
import { diskFromNodes, vifFromNodes } from './device-from-nodes.ts';
import { parseDisk } from './disk.ts';
import { parseVif } from './network-interface.ts';

test.each([
  'phy:/dev/loop0,xvda,w',
  '/a b:c.img,raw,hdc,cdrom',
  '/d:e.qcow2,qcow2,xvdb,r',
  '/f.vhd,vhd,xvdb,w,no-discard',
  'vdev=xvda1,direct-io-safe,target=/g,h',
])('the nodes of disk %s say all that its backend needs', (spec) => {
  const disk = parseDisk('', spec);
  const { backend } = diskNodes(disk, 1, disk.target ?? '');
  expect(diskFromNodes(backend)).toEqual({
    ...disk,
    backend: disk.format === 'raw' ? 'phy' : 'qdisk',
    discard: disk.discard ?? disk.writable,
  });
});

test('what a script has made is the disk', () => {
  const disk = parseDisk('', 'vdev=xvda,script=block-iscsi,target=iqn.2001-05.com:x');
  const nodes = { ...diskNodes(disk, 1, 'iqn.2001-05.com:x').backend, 'physical-device-path': '/dev/sdx' };
  expect(diskFromNodes(nodes)?.target).toBe('/dev/sdx');
});

test.each([
  'mac=00:16:3e:0a:0b:0c',
  'mac=00:16:3e:0a:0b:0c,bridge=br1,script=vif-nat,ip=10.0.3.4,rate=8Mb/s,vifname=v1',
])('the nodes of interface %s say all that its backend needs', (spec) => {
  const vif = parseVif('', spec, 3, () => {});
  const { backend } = vifNodes(vif, vif.mac!);
  expect(vifFromNodes(backend)).toEqual({ ...vif, script: `/etc/xen/scripts/${vif.script ?? 'vif-bridge'}` });
});

test('nodes that describe nothing are nothing', () => {
  const disk = diskNodes(parseDisk('', '/a,qcow2,xvda,w'), 1, '/a').backend;
  expect(diskFromNodes({})).toBeNull();
  expect(diskFromNodes({ ...disk, params: 'nbd:/a' })).toBeNull();
  const vif = vifNodes(
    parseVif('', '', 0, () => {}),
    new Uint8Array(6),
  ).backend;
  expect(vifFromNodes({ ...vif, mac: '00:16:3e:1:2' })).toBeNull();
  expect(vifFromNodes({ ...vif, handle: '-1' })).toBeNull();
});
