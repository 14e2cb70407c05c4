import { expect, test } from 'vitest';
import { diskNodes, scriptPath, vifNodes } from '../device-nodes.ts';
import { diskFromNodes, vifFromNodes } from './device-from-nodes.ts';
import { FORMATS, parseDisk } from './disk.ts';
import { parseVif, type VifConfig } from './network-interface.ts';

test.each([
  'phy:/dev/loop0,xvda,w',
  '/a b:c.img,raw,hdc,cdrom',
  '/d:e.qcow2,qcow2,xvdb,r',
  '/f.vhd,vhd,xvdb,w,no-discard',
  'vdev=xvda1,access=ro,discard,target=/a',
  'vdev=sda,access=rw,backendtype=phy,target=/a',
  'vdev=xvda1,direct-io-safe,backendtype=qdisk,target=/g,h i',
  'vdev=xvda,script=block-iscsi,target=iqn.2001-05.com:x,y z',
  'vdev=d5p6,script=/opt/a script,target=raw:x',
  ...FORMATS.filter((format) => format !== 'empty').map((format) => `vdev=xvda,format=${format},target=/a,${format}:c`),
])('the nodes of disk %s say all that its backend needs, and who starts it again', (spec) => {
  const disk = parseDisk('', spec);
  const { backend } = diskNodes(disk, 1, disk.target ?? '');
  expect(diskFromNodes(backend)).toEqual({
    ...disk,
    backend: disk.format === 'raw' && disk.backend !== 'qdisk' ? 'phy' : 'qdisk',
    discard: disk.discard ?? disk.writable,
    script: disk.script === null ? null : scriptPath(disk.script),
  });
});

test('what a script has made is the disk', () => {
  const disk = parseDisk('', 'vdev=xvda,script=block-iscsi,target=iqn.2001-05.com:x');
  const nodes = { ...diskNodes(disk, 1, 'iqn.2001-05.com:x').backend, 'physical-device-path': '/dev/sdx' };
  expect(diskFromNodes(nodes)?.target).toBe('/dev/sdx');
});

/** Every key of an interface, and what its nodes say of it; null for what is none of its backend's business. */
const VIF_KEYS: Record<keyof VifConfig, [spec: string, value: unknown] | null> = {
  devid: ['devid=7', 7],
  mtu: ['mtu=9000', 9000],
  model: null,
  mac: ['mac=00:16:3e:01:02:03', Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3)],
  ip: ['ip=10.0.3.4', '10.0.3.4'],
  bridge: ['bridge=br1', 'br1'],
  ifname: ['vifname=v1', 'v1'],
  script: ['script=vif-nat', '/etc/xen/scripts/vif-nat'],
  type: null,
  backendDomain: null,
  gatewaydev: ['gatewaydev=eth9', 'eth9'],
  rate: ['rate=8Mb/s', { bytesPerInterval: 50_000, intervalUs: 50_000 }],
  trusted: null,
  forwards: ['forward=tcp::8022-:22,forward=udp::53-:53', ['tcp::8022-:22', 'udp::53-:53']],
  loopback: ['loopback=0', false],
  macFilter: ['macfilter=1', true],
};

const vifOf = (spec: string): VifConfig => parseVif('', spec, 3, () => {});
const MAC = Uint8Array.of(0, 0x16, 0x3e, 10, 11, 12);
const backendOf = (vif: VifConfig): Record<string, string> => vifNodes(vif, vif.mac ?? MAC).backend;
const PLAIN: VifConfig = { ...vifOf(''), mac: MAC, script: '/etc/xen/scripts/vif-bridge' };

test('the nodes of an interface say each key of it, and of none what was not said', () => {
  expect(vifFromNodes(backendOf(vifOf('')))).toEqual(PLAIN);
  const said = Object.entries(VIF_KEYS).filter((entry) => entry[1] !== null) as [string, [string, unknown]][];
  for (const [key, [spec, value]] of said)
    expect(vifFromNodes(backendOf(vifOf(spec))), spec).toEqual({ ...PLAIN, [key]: value });
  const all = vifOf(said.map(([, [spec]]) => spec).join());
  expect(vifFromNodes(backendOf(all))).toEqual(
    Object.fromEntries(
      said
        .map(([key, [, value]]) => [key, value])
        .concat([
          ['model', null],
          ['type', null],
          ['backendDomain', null],
          ['trusted', null],
        ]),
    ),
  );
});

test('a bridge that was named is never taken for the default, whatever its name is', () => {
  expect(vifFromNodes(backendOf(vifOf('bridge=xenbr0')))?.bridge).toBe('xenbr0');
  expect(vifFromNodes(backendOf(vifOf('')))?.bridge).toBeNull();
  // The config may be of an interface that has been unplugged since.
  expect(vifFromNodes(backendOf(vifOf('bridge=xenbr0')), vifOf('loopback=0,forward=tcp::1-:1'))).toEqual({
    ...PLAIN,
    bridge: 'xenbr0',
  });
});

test('what the nodes of an older Domus do not say is what the config says, and else the safe way', () => {
  const { 'default-bridge': _, ...old } = backendOf(vifOf(''));
  expect(old['bridge']).toBe('xenbr0');
  const config = vifOf('mtu=1400,forward=tcp::1-:1,loopback=0');
  expect(vifFromNodes(old, config)).toEqual({ ...PLAIN, mtu: 1400, forwards: ['tcp::1-:1'], loopback: false });
  expect(vifFromNodes(old, vifOf('bridge=xenbr0'))?.bridge).toBe('xenbr0');
  expect(vifFromNodes({ ...old, bridge: 'br1' }, config)?.bridge).toBe('br1');
  expect(vifFromNodes(old)?.bridge).toBe('xenbr0');
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
