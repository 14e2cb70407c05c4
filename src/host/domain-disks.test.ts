/** Disks of a domain without a guest: each format by its nodes alone, scripts and the time they may take. */

import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type QemuTools, qemuTools } from '../../test/qemu-tools.ts';
import { FakeGuest } from '../backends/testing.ts';
import { QEMU_FORMATS } from '../storage/formats.ts';
import { type DiskConfig, parseDisk } from '../toolstack/config/disk.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import { type DeviceNodes, diskNodes } from '../toolstack/device-nodes.ts';
import { plugDevice, unplugAndRemove } from '../toolstack/device-plug.ts';
import { installedTool } from '../toolstack/guest-image/debian-tool.ts';
import { introduceControlDomain } from '../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { DomainDevices } from './domain-devices.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-disks-'));
afterAll(() => rmSync(folder, { recursive: true }));

const DOMID = 7;
const CONFIG = { disks: [], vifs: [], vfbs: [], channels: [] } as unknown as DomainConfig;

let store: XenstoreClient;
const devicesOf = (): DomainDevices =>
  new DomainDevices({ store, port: new FakeGuest(), name: 'guest', xenstoredPath: null, log: () => {} });
beforeEach(async () => {
  const real = createStore();
  store = new XenstoreClient(linkToStore(real));
  await introduceControlDomain(store);
  real.introduceDomain(DOMID, { gfn: 1, port: 1 }, null);
});

function nodesOf(spec: string): { disk: DiskConfig; nodes: DeviceNodes; path: string } {
  const disk = parseDisk('', spec);
  const nodes = diskNodes(disk, 51728, disk.target ?? '');
  return { disk, nodes, path: `/local/domain/0/backend/${nodes.backendKind}/${DOMID}/51728` };
}

describe('a disk by qemu-nbd', () => {
  let qemu: QemuTools | string;
  beforeAll(async () => {
    // Domus looks for it in PATH only.
    qemu = (await installedTool('qemu-nbd')) === undefined ? 'no qemu-nbd here' : await qemuTools();
  });

  test.for(QEMU_FORMATS)(
    'of format %s is plugged, and goes on when its domain is restored',
    async (format, context) => {
      if (typeof qemu === 'string') return context.skip(qemu);
      const image = join(folder, `disk.${format}`);
      await qemu.img('create', '-q', '-f', format, image, String(8 << 20));
      const { nodes } = nodesOf(`${image},${format},xvdb,w`);
      const first = devicesOf();
      await first.watch();
      await plugDevice(store, DOMID, nodes);
      expect(first.disks.map(({ device }) => device.image.sizeBytes)).toEqual([8 << 20]);
      await first.detach();
      await first.release(CONFIG);
      const second = devicesOf();
      await second.restore(CONFIG);
      expect(second.disks.map(({ device, place }) => [place.format, device.image.sizeBytes])).toEqual([
        [format, 8 << 20],
      ]);
      await second.close();
    },
  );
});

describe.skipIf(process.platform === 'win32')('a script', () => {
  /** Waits at each call until `proceed`; what it was called with stands in `FILE.told`. */
  function slowScript(): { path: string; called: (words: string) => Promise<void>; proceed: () => void } {
    const path = join(folder, `slow-${Math.random()}`);
    writeFileSync(path, `#!/bin/sh\necho "$*" >> $0.told\nuntil rm $0.go 2>/dev/null; do sleep 0.02; done\n`);
    chmodSync(path, 0o755);
    const told = (): string => (existsSync(`${path}.told`) ? readFileSync(`${path}.told`, 'utf8') : '');
    const called = async (words: string): Promise<void> => {
      while (!told().endsWith(`${words}\n`)) await sleep(5);
    };
    return { path, called, proceed: () => writeFileSync(`${path}.go`, '') };
  }
  const image = join(folder, 'raw.img');
  writeFileSync(image, new Uint8Array(1 << 20));
  /** Far less than what the script takes. */
  const LIMIT_MS = 1;

  test.each([false, true])(
    'has its own time, and its nodes as long as it runs; the guest holds the disk: %s',
    async (held) => {
      const { path: script, called, proceed } = slowScript();
      const { nodes, path } = nodesOf(`vdev=xvdb,script=${script},target=${image}`);
      const devices = devicesOf();
      await devices.watch();
      const plugged = plugDevice(store, DOMID, nodes, LIMIT_MS);
      await called('add');
      proceed();
      await plugged;
      expect(await store.read(`${path}/state`)).toBe('2');
      if (held) await store.write(`/local/domain/${DOMID}/device/vbd/51728/state`, '2');

      const unplugged = unplugAndRemove(store, DOMID, nodes, LIMIT_MS);
      await called('remove');
      expect(await store.read(`${path}/params`)).toBe(image);
      proceed();
      await unplugged;
      expect(await store.read(`${path}/params`)).toBeNull();
      await devices.close();
    },
  );

  test('that fails leaves no disk, and nobody takes it for one while its nodes are there', async () => {
    const { nodes, path } = nodesOf(`vdev=xvdb,script=/bin/false,target=${image}`);
    const devices = devicesOf();
    await devices.watch();
    const online: (string | null)[] = [];
    await store.watch(`${path}/online`, 'test', async () => void online.push(await store.read(`${path}/online`)));
    await expect(plugDevice(store, DOMID, nodes)).rejects.toThrow(
      /unable to add device vbd 51728: \/bin\/false add .*exited/,
    );
    expect(await store.read(`${path}/params`)).toBeNull();
    expect(online).toContain('0');
    expect(devices.disks).toEqual([]);
    await devices.close();
  });

  test('that works on a disk of another format than raw is refused', async () => {
    const devices = devicesOf();
    const { disk } = nodesOf(`vdev=xvdb,format=qcow2,script=/bin/true,target=${image}`);
    await expect(devices.addDisk(disk)).rejects.toThrow(
      'Disk vdev=xvdb, backend qdisk not compatible with script=/bin/true',
    );
  });
});
