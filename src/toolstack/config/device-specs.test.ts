import { describe, expect, test } from 'vitest';
import { formatDisk, formatVif, movedDisk, withDevices, withMovedDisk } from './device-specs.ts';
import { parseDisk } from './disk.ts';
import { readDomainConfig } from './domain-config.ts';
import { parseVif } from './network-interface.ts';

const noWarning = (line: string): void => expect.fail(line);

describe('a disk', () => {
  test.each([
    '/a,raw,xvda,w',
    '/a b,qcow2,xvdb,r',
    'vdev=hdc,devtype=cdrom,target=/x,y=z.iso',
    'hdc:cdrom,r'.replace(/^/, ',,'),
    '/dev/vg/lv,vhd,sda1,rw,backendtype=qdisk,direct-io-safe,no-discard,untrusted',
    'vdev=xvda,script=block-nbd,backend=storage,discard,trusted,specification=xen,target=host:10809,with,commas',
  ])('is the same when it is read again: %s', (spec) => {
    const disk = parseDisk('test', spec.startsWith(',,') ? 'vdev=hdc,devtype=cdrom' : spec);
    expect(parseDisk('test', formatDisk(disk))).toEqual(disk);
  });
});

describe('an interface', () => {
  test.each([
    '',
    'mac=00:16:3e:01:02:03,bridge=br1,ip=10.0.0.1,script=vif-nat,vifname=v1,model=e1000,devid=3,mtu=9000,trusted',
    'type=vif,backend=net,gatewaydev=eth1,untrusted,loopback=0,forward=tcp:2222:22,forward=udp:53:53',
    'bridge=br1,macfilter=1',
    'rate=10Mb/s@20ms',
    'rate=333333B/s@7us',
    'rate=1Gb/s',
  ])('is the same when it is read again: %s', (spec) => {
    const vif = parseVif('test', spec, 2, noWarning);
    expect(parseVif('test', formatVif(vif), 0, noWarning)).toEqual(vif);
  });
});

test('a config whose disk is in another image means that image, as an object and as a text', () => {
  const text =
    'name="a"\nkernel="/k"\ndisk=["/a \\"b\\".img,raw,xvda,w", "/c,raw,xvdb,r"]\nuuid="6d0b4e0e-9b0b-4d4c-8d1f-0123456789ab"\n';
  const config = readDomainConfig('test', text, { warn: noWarning });
  const to = movedDisk(config.disks[0], '/d/"e",f.qcow2');
  const moved = withMovedDisk({ config, text }, { ...to, id: 51712 });
  expect(moved.config.disks[0]).toMatchObject({
    target: '/d/"e",f.qcow2',
    format: 'qcow2',
    vdev: 'xvda',
    writable: true,
  });
  expect(moved.config.disks[1]).toEqual(config.disks[1]);
  expect(readDomainConfig('test', moved.text, { warn: noWarning })).toEqual(moved.config);
  // One that was plugged in.
  expect(withMovedDisk({ config, text }, { ...to, id: 51744 }).config).toEqual(config);
});

test('other interfaces replace all that there were', () => {
  const text = 'name="a"\nkernel="/k"\nvif=["bridge=b,forward=tcp:1:1"]\nuuid="6d0b4e0e-9b0b-4d4c-8d1f-0123456789ab"\n';
  const config = readDomainConfig('test', text, { warn: noWarning });
  const next = withDevices({ config, text }, { vifs: config.vifs.map((vif) => ({ ...vif, forwards: [] })) });
  expect(readDomainConfig('test', next.text, { warn: noWarning })).toEqual(next.config);
  expect(next.config.vifs[0]).toMatchObject({ bridge: 'b', forwards: [] });
});
