import { expect, test } from 'vitest';
import { diskJson, parseDisk, vdevNumber } from './disk.ts';
import { parseVfb, vncPlace } from './framebuffer.ts';
import { parseVif, vifJson } from './network-interface.ts';

const disk = (...specs: string[]): unknown => JSON.parse(JSON.stringify(diskJson(parseDisk('f.cfg', ...specs))));
const DISK_ERROR = 'f.cfg: config parsing error in disk specification: ';

// Source: the vectors that Xen's own tools are tested with (check-xl-disk-parse), and xl-disk-configuration(5).
const VOLUME = { pdev_path: '/dev/vg/guest-volume', vdev: 'hda', format: 'raw', readwrite: 1 };
const ISO = { pdev_path: '/root/image.iso', vdev: 'hdc', format: 'raw', removable: 1, is_cdrom: 1 };
const EMPTY = { pdev_path: '', vdev: 'hdc', format: 'empty', removable: 1, is_cdrom: 1 };
const { pdev_path: _, ...NO_TARGET } = EMPTY;
const ISCSI = {
  pdev_path: 'iqn.2001-05.com.equallogic:0-8a0906-23fe93404-c82797962054a96d-examplehost',
  vdev: 'xvda',
  format: 'raw',
  script: 'block-iscsi',
  readwrite: 1,
};
const IMAGE = { pdev_path: '/some/disk/image.raw', vdev: 'hda', format: 'raw', readwrite: 1 };

test.each<[unknown, string[]]>([
  [VOLUME, ['/dev/vg/guest-volume,,hda']],
  [VOLUME, ['/dev/vg/guest-volume,raw,hda,rw']],
  [VOLUME, ['format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume']],
  [VOLUME, ['format=raw', 'vdev=hda', 'access=rw', 'target=/dev/vg/guest-volume']],
  [VOLUME, ['raw:/dev/vg/guest-volume,hda,w']],
  [VOLUME, ['phy:/dev/vg/guest-volume,hda,w']],
  [ISO, ['/root/image.iso,,hdc,cdrom']],
  [ISO, ['/root/image.iso,,hdc,,cdrom']],
  [ISO, ['/root/image.iso,raw,hdc,devtype=cdrom']],
  [ISO, ['format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso']],
  [ISO, ['raw:/root/image.iso,hdc:cdrom,ro']],
  [{ ...VOLUME, vdev: 'xvdb', backend: 'phy' }, ['backendtype=phy,vdev=xvdb,access=w,target=/dev/vg/guest-volume']],
  [EMPTY, ['devtype=cdrom,,,hdc']],
  [EMPTY, [',,hdc:cdrom,r']],
  [EMPTY, [',hdc:cdrom,r']],
  [EMPTY, ['vdev=hdc,access=r,devtype=cdrom,target=']],
  [EMPTY, [',empty,hdc:cdrom,r']],
  [NO_TARGET, ['vdev=hdc,access=r,devtype=cdrom,format=empty']],
  [NO_TARGET, ['vdev=hdc,access=r,devtype=cdrom']],
  [ISCSI, [`iscsi:${ISCSI.pdev_path},xvda,w`]],
  [ISCSI, [`vdev=xvda,access=w,script=block-iscsi,target=${ISCSI.pdev_path}`]],
  [{ pdev_path: 'app01', vdev: 'hda', format: 'raw', script: 'block-drbd', readwrite: 1 }, ['drbd:app01,hda,w']],
  [{ ...IMAGE, discard_enable: 'True' }, ['discard', 'vdev=hda', 'target=/some/disk/image.raw']],
  [{ ...IMAGE, trusted: 'True' }, ['trusted', 'vdev=hda', 'target=/some/disk/image.raw']],
  [{ ...IMAGE, trusted: 'False' }, ['untrusted', 'vdev=hda', 'target=/some/disk/image.raw']],
  [{ ...IMAGE, pdev_path: '/a,b=c,ro' }, ['vdev=hda,target=/a,b=c,ro']],
  [{ pdev_path: '/a', vdev: 'xvda', format: 'qcow2' }, ['/a,qcow2,xvda,r']],
  // Domus's own.
  [{ pdev_path: '/a', vdev: 'xvda', format: 'vmdk', readwrite: 1 }, ['/a,vmdk,xvda,w']],
])('disk %j', (expected, specs) => {
  expect(disk(...specs)).toEqual(expected);
});

test.each([
  // Recorded from xl 4.17.
  ['garbage', "no vdev specified in `garbage'"],
  ['/root/vmlinuz,blah,xvda,w', "unknown value for format: near `blah' in `/root/vmlinuz,blah,xvda,w'"],
  // From the same parser's texts.
  ['vdev=xvda', "no target specified (and device not removable) in `vdev=xvda'"],
  ['/a,raw,xvda,x', "unknown value for access: near `x' in `/a,raw,xvda,x'"],
  ['/a,raw,xvda,w,more', "too many positional parameters: near `more' in `/a,raw,xvda,w,more'"],
  ['/a,raw,xvda,backendtype=loop', "unknown value for backendtype: near `loop' in `/a,raw,xvda,backendtype=loop'"],
  ['/a,raw,xvda,format=vhd', "format respecified: near `vhd' in `/a,raw,xvda,format=vhd'"],
  ['/a,raw,xvda,target=/b', "target respecified: near `/b' in `/a,raw,xvda,target=/b'"],
  ['foo:/a,xvda,w', "unknown deprecated disk prefix: near `foo:' in `foo:/a,xvda,w'"],
  ['/a,raw,xvda,w,nosuch=1', "unknown parameter: near `nosuch=1' in `/a,raw,xvda,w,nosuch=1'"],
])('disk %s is refused', (spec, error) => {
  expect(() => disk(spec)).toThrow(DISK_ERROR + error);
});

test('names of virtual devices are those of xen-vbd-interface(7)', () => {
  const expected: Record<string, number | null> = {
    xvda: 51712,
    xvda1: 51713,
    xvdb: 51728,
    xvdp15: 51967,
    xvda16: (1 << 28) | 16,
    xvdq: (1 << 28) | (16 << 8),
    xvdaa: (1 << 28) | (26 << 8),
    d0: 51712,
    d1p3: 51731,
    sda: 2048,
    sdb1: 2065,
    hda: 768,
    hdb: 832,
    hdc: 5632,
    hdd2: 5698,
    '51712': 51712,
    '0xca00': 51712,
    '0145000': 51712,
    qqq: null,
    xvd: null,
    xvda01: null,
    sdq: null,
    hde: null,
    '': null,
    '-1': null,
    '089': null,
    '4294967296': null,
  };
  for (const [name, number] of Object.entries(expected)) expect(vdevNumber(name), name).toBe(number);
});

function vif(spec: string): { json: unknown; warnings: string[] } {
  const warnings: string[] = [];
  const { devid, ...json } = JSON.parse(
    JSON.stringify(vifJson(parseVif('f.cfg', spec, 0, (line) => warnings.push(line)))),
  ) as Record<string, unknown>;
  expect(devid).toBe(0);
  return { json, warnings };
}

test('an interface has what was said of it', () => {
  expect(vif('')).toEqual({ json: {}, warnings: [] });
  expect(
    vif('mac=00:16:3E:11:22:33, bridge=xenbr0,script=vif-nat,ip=10.0.0.2,vifname=v1,model=e1000,type=vif,mtu=9000'),
  ).toEqual({
    json: {
      mtu: 9000,
      model: 'e1000',
      mac: '00:16:3e:11:22:33',
      ip: '10.0.0.2',
      bridge: 'xenbr0',
      ifname: 'v1',
      script: 'vif-nat',
      nictype: 'vif',
    },
    warnings: [],
  });
  expect(vif('trusted').json).toEqual({ trusted: 'True' });
});

test.each(['ff:ff:ff:ff:ff:ff', '01:00:5e:00:00:01', '33:33:00:00:00:01'])(
  'an address of a group is refused: %s',
  (mac) => {
    expect(() => vif(`mac=${mac}`)).toThrow(
      `f.cfg: vif: mac=${mac}: expected the address of one interface, found one of a group`,
    );
  },
);

test('only frames from its own address, for whom the back end is ours', () => {
  expect(vif('macfilter=1').json).toEqual({ macfilter: 'True' });
  expect(vif('macfilter=0').json).toEqual({});
  expect(() => vif('macfilter=yes')).toThrow('f.cfg: vif: macfilter=yes: expected 0 or 1');
  expect(() => vif('backend=net,macfilter=1')).toThrow('f.cfg: vif: macfilter=1: not with backend=');
});

test('what nobody knows is told and passed over', () => {
  // Recorded from xl 4.17.
  expect(vif('foo=bar')).toEqual({ json: {}, warnings: ["unrecognized argument `foo=bar'"] });
  expect(vif('garbage')).toEqual({ json: {}, warnings: ["unrecognized argument `garbage'"] });
  expect(vif('mac=zz:zz')).toEqual({ json: {}, warnings: ["Invalid parameter `mac'."] });
  expect(vif('type=x').warnings).toEqual(["Invalid parameter `type'."]);
});

// Source: the vectors of check-xl-vif-parse.
test.each([
  ['16000000b/s', 100000, 50000],
  ['2000000B/s@50ms', 100000, 50000],
  ['16Kb/s', 100, 50000],
  ['2MB/s', 100000, 50000],
  ['8Gb/s@50ms', 50000000, 50000],
  ['80Mb/s@1s', 10000000, 1000000],
])('rate %s', (rate, bytes, us) => {
  expect(vif(`rate=${rate}`).json).toEqual({ rate_bytes_per_interval: bytes, rate_interval_usecs: us });
});

test.each([
  ['foo', "invalid rate in `foo'"],
  ['10MB', "invalid rate in `10MB'"],
  ['10ZB/s', "invalid rate in `10ZB/s'"],
  ['4294967296b/s', "rate overflow in `4294967296b/s'"],
  ['0B/s', "rate overflow in `0B/s'"],
  ['10Mb/s@10h', "invalid replenishment interval in `10h'"],
  ['1B/s@4294967296us', "replenishment interval overflow in `4294967296us'"],
  ['1B/s@4295s', "replenishment interval overflow in `4295s'"],
  ['1B/s@0us', "replenishment interval overflow in `0us'"],
  ['4294967295GB/s@5us', "rate overflow in `4294967295GB/s@5us'"],
  ['@', "no rate specified in `@'"],
])('rate %s is refused', (rate, error) => {
  expect(() => vif(`rate=${rate}`)).toThrow(`f.cfg: config parsing error in vif: ${error}`);
});

test('a screen has what was said of it; what nobody knows is passed over', () => {
  const nothing = {
    devid: 0,
    vnc: null,
    listen: null,
    password: null,
    display: 0,
    findUnused: null,
    websocket: false,
    keymap: null,
    sdl: null,
  };
  expect(parseVfb('f.cfg', '', 0)).toEqual(nothing);
  expect(
    parseVfb(
      'f.cfg',
      'vnc=1,vnclisten=0.0.0.0,vncpasswd=a b,vncdisplay=7,vncunused=0,vncwebsocket=1,keymap=de,sdl=0,foo=1',
      2,
    ),
  ).toEqual({
    devid: 2,
    vnc: true,
    listen: '0.0.0.0',
    password: 'a b',
    display: 7,
    findUnused: false,
    websocket: true,
    keymap: 'de',
    sdl: false,
  });
  expect(parseVfb('f.cfg', 'vnc=0,nonsense,vncdisplay=3', 0)).toEqual({ ...nothing, vnc: false });
  expect(parseVfb('f.cfg', 'vncdisplay=-3', 0).display).toBe(0);
});

test.each([
  ['', '127.0.0.1', 0],
  ['vncdisplay=3', '127.0.0.1', 3],
  ['vnclisten=127.0.0.1:1', '127.0.0.1', 1],
  ['vnclisten=0.0.0.0:12,vncdisplay=3', '0.0.0.0', 12],
  ['vnclisten=host.example', 'host.example', 0],
  ['vnclisten=,vncdisplay=2', '127.0.0.1', 2],
  ['vnclisten=:2', '127.0.0.1', 2],
  ['vnclisten=::1,vncdisplay=5', '::1', 5],
  ['vnclisten=[::1],vncdisplay=5', '::1', 5],
  ['vnclisten=[fe80::1%eth0]:7', 'fe80::1%eth0', 7],
  ['vncdisplay=59635', '127.0.0.1', 59635],
])('a VNC server of %j listens at %s, display %i', (spec, address, display) => {
  expect(vncPlace(parseVfb('f.cfg', spec, 0))).toEqual({ address, display });
});

test.each([
  ['vncdisplay=59636', 'f.cfg: vfb: VNC display 59636: expected 0 to 59635 (its port is 5900 and that)'],
  ['vncdisplay=70000,vncunused=0', 'f.cfg: vfb: VNC display 70000: expected 0 to 59635'],
  ['vnclisten=127.0.0.1:65000', 'f.cfg: vfb: VNC display 65000: expected 0 to 59635'],
  ['vnclisten=127.0.0.1:x', 'f.cfg: vfb: vnclisten=127.0.0.1:x: expected ADDRESS or ADDRESS:DISPLAY'],
  ['vnclisten=[::1', 'f.cfg: vfb: vnclisten=[::1: expected ADDRESS or ADDRESS:DISPLAY'],
  ['vnclisten=[::1]:', 'f.cfg: vfb: vnclisten=[::1]:: expected ADDRESS or ADDRESS:DISPLAY'],
])('a screen with %s is refused', (spec, error) => {
  expect(() => parseVfb('f.cfg', spec, 0)).toThrow(error);
});
