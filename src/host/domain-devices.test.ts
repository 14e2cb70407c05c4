/** Interfaces with a script of the user's, on TAP devices in a network namespace of their own. */

import { execFile, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, expect, test } from 'vitest';

const run = promisify(execFile);
const SCENE = fileURLToPath(new URL('./test-vif-script.ts', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'domus-vif-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Why this machine cannot, or null. */
function unusable(): string | null {
  if (process.platform !== 'linux') return 'needs Linux';
  const words = ['-Urn', 'ip', 'tuntap', 'add', 'dev', 'tap9', 'mode', 'tap'];
  const made = spawnSync('unshare', words, { encoding: 'utf8' });
  return made.status === 0 ? null : `no network namespace with a TAP: ${made.error?.message ?? made.stderr.trim()}`;
}

function script(name: string, body: string): void {
  writeFileSync(join(folder, name), `#!/bin/sh\n${body}\n`);
  chmodSync(join(folder, name), 0o755);
}

test('a script of the user`s gets the interface before the guest does and until it is gone', async (context) => {
  const why = unusable();
  if (why !== null) return context.skip(why);
  script(
    'good',
    `echo "$*|$script|$vif|$netdev|$XENBUS_TYPE|$XENBUS_PATH|$XENBUS_BASE_PATH" >> ${folder}/told
ip -o link show dev $vif | sed 's/.*mtu \\([0-9]*\\).*ether \\([^ ]*\\).*/\\1 \\2/' >> ${folder}/told
case $1 in online) ip link set $vif up ;; offline) sleep 0.2; touch ${folder}/offline-done ;; esac`,
  );
  script('bad', 'exit 3');
  const { stdout } = await run('unshare', ['-Urn', process.execPath, SCENE, folder], { timeout: 50_000 });
  const told = readFileSync(join(folder, 'told'), 'utf8').trim().split('\n');
  const line = (action: string, netdev: string): string =>
    `${action} type_if=vif|${folder}/good|vif7.0|${netdev}|vif|backend/vif/7/0|backend`;
  const [small, usual] = ['1400 fe:ff:ff:ff:ff:ff', '1500 fe:ff:ff:ff:ff:ff'];
  expect(told).toEqual([
    ...[line('online', 'eth9'), small, line('offline', 'eth9'), small],
    ...[line('online', ''), usual, line('offline', ''), usual],
  ]);
  expect(JSON.parse(stdout)).toEqual({
    status: 'connected',
    state: '2',
    there: ['vif7.0'],
    released: true,
    toldEarly: false,
    afterUnplug: [],
    failed: expect.stringMatching(/bad online \[\d+\] exited with error status 3$/),
    afterFailure: [],
    nodesLeft: null,
    atEnd: [],
    log: [],
  });
});
