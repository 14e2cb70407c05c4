import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { parseDisk } from '../toolstack/config/disk.ts';
import { makeUpMac, parseVif } from '../toolstack/config/network-interface.ts';
import { addDeviceNodes, diskNodes, vifNodes } from '../toolstack/device-nodes.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { runLastScripts } from './last-scripts.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-last-'));
afterAll(() => rmSync(folder, { recursive: true }));

test.skipIf(process.platform === 'win32')('a script of the user`s is told to let go, once, and no other', async () => {
  const script = join(folder, 'script');
  writeFileSync(
    script,
    '#!/bin/sh\necho "$*|$XENBUS_PATH|$XENSTORED_PATH|$vif|$netdev" >> $0.told\n[ $1 = offline ]\n',
  );
  chmodSync(script, 0o755);
  const store = new XenstoreClient(linkToStore(createStore()));
  const disk = async (vdev: string, id: number, word: string): Promise<void> => {
    await addDeviceNodes(store, 3, diskNodes(parseDisk('', `vdev=${vdev},${word}target=x`), id, 'x'));
  };
  await disk('xvda', 51712, `script=${script},`);
  await disk('xvdb', 51728, '');
  await disk('xvdc', 51744, 'format=qcow2,');
  await disk('xvdd', 51760, `script=${script},`);
  // Its process had done all but telling who unplugged it.
  await store.write('/local/domain/0/backend/vbd/3/51760/online', '0');
  await store.write('/local/domain/0/backend/vbd/3/51760/state', '6');
  for (const [devid, spec] of [`script=${script},gatewaydev=eth9`, 'script=vif-nat'].entries()) {
    const vif = parseVif('', spec, devid, () => {});
    await addDeviceNodes(store, 3, vifNodes(vif, makeUpMac()));
  }
  const log: string[] = [];
  await runLastScripts(3, { store, xenstoredPath: '/run/x', log: (line) => log.push(line) });
  const told = readFileSync(`${script}.told`, 'utf8').trim().split('\n');
  expect(told.sort()).toEqual([
    'offline type_if=vif|backend/vif/3/0|/run/x|vif3.0|eth9',
    'remove|backend/vbd/3/51712|/run/x||',
  ]);
  expect(log).toEqual([
    expect.stringMatching(
      /^\/local\/domain\/0\/backend\/vbd\/3\/51712: .*script remove \[\d+\] exited with error status 1$/,
    ),
  ]);
});
