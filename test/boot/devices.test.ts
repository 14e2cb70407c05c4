/** A guest's disks and interfaces over its lives: what is plugged and unplugged while it runs holds behind a reboot, kill -9, and `xl restore`. */

import { execFile } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { consoleLog, endDomains, killDomain } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const BIN = fileURLToPath(new URL('../../bin/', import.meta.url));
const LIMIT_MS = 120_000;
const root = mkdtempSync(join(tmpdir(), 'domus-devices-'));
afterAll(async () => {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

/** In the folder of the images. What went wrong is empty if nothing did. */
function xl(...words: string[]): Promise<{ code: unknown; out: string; err: string }> {
  const options = { cwd: root, env: { ...process.env, DOMUS_STATE_DIR: root }, timeout: LIMIT_MS };
  return new Promise((done) => {
    execFile(process.execPath, [XL, ...words], options, (error, out, err) =>
      done({ code: error?.code ?? 0, out, err }),
    );
  });
}
const SILENT = { code: 0, out: '', err: '' };

const NAME = 'owner';
/** Says again and again which boot it is, and what it has. */
const SCRIPT = `
while :; do
  echo "boot=$(cut -c1-8 /proc/sys/kernel/random/boot_id) disks=$(ls /sys/block | tr '\\n' ,) macs=$(cat /sys/class/net/eth*/address 2>/dev/null | tr '\\n' ,) end"
  sleep 0.3
done
`;

/** Waits for another boot than `before`, or the same, with these disks and as many interfaces. */
async function guestHas(disks: string, vifs: number, before = ''): Promise<{ boot: string; macs: string[] }> {
  const endMs = performance.now() + LIMIT_MS;
  for (;;) {
    const log = consoleLog(root, NAME);
    const [, boot, seen, macs] = [...log.matchAll(/^boot=(\w+) disks=(\S*) macs=(\S*) end$/gm)].at(-1) ?? [];
    const found = (macs ?? '').split(',').filter((mac) => mac !== '');
    if (boot !== undefined && boot !== before && seen === disks && found.length === vifs) return { boot, macs: found };
    if (performance.now() > endMs) throw new Error(`not there: ${disks}, ${vifs} interfaces\n${log.slice(-3000)}`);
    await sleep(100);
  }
}

test('devices are what they were, whatever the guest goes through', async () => {
  const { config } = await buildGuest();
  for (const name of ['a.img', 'b.img', 'c.img']) writeFileSync(join(root, name), new Uint8Array(1 << 20));
  const script = join(root, 'block-mine');
  writeFileSync(
    script,
    `#!/bin/sh
set -e
xs() { node=$1; shift; "${process.execPath}" "${BIN}xenstore-$node.js" "$@"; }
echo "$1 $(xs read "$XENBUS_PATH/params")" >> $0.told
[ $1 != add ] || xs write "$XENBUS_PATH/physical-device-path" "${root}/c.img"
`,
  );
  chmodSync(script, 0o755);
  const told = (): string[] => readFileSync(`${script}.told`, 'utf8').trim().split('\n');
  const [add, remove] = ['add foo:bar', 'remove foo:bar'];

  const run = Buffer.from(SCRIPT).toString('base64');
  const settings = [
    ...[`name="${NAME}"`, `cmdline="console=hvc0 domus.run=${run}"`, 'on_crash="restart"'],
    ...['disk=["a.img,raw,xvda,w"]', 'vif=["script=vif-nat"]'],
  ];
  expect(await xl('create', '-q', config, ...settings)).toEqual(SILENT);
  const first = await guestHas('xvda,', 1);

  const missing = await xl('block-attach', NAME, 'nosuch.img,raw,xvdd,w');
  expect(missing).toMatchObject({
    code: 1,
    err: expect.stringContaining('xvdd failed to stat: /dev/nosuch.img: No such'),
  });
  expect(await xl('block-attach', NAME, 'b.img,raw,xvdb,r')).toEqual(SILENT);
  expect(await xl('block-attach', NAME, `vdev=xvdc,script=${script},target=foo:bar`)).toEqual(SILENT);
  expect(await xl('network-attach', NAME, 'script=vif-nat', 'mac=00:16:3e:01:02:03')).toEqual(SILENT);
  const macs = [first.macs[0], '00:16:3e:01:02:03'];
  expect(await guestHas('xvda,xvdb,xvdc,', 2)).toEqual({ boot: first.boot, macs });
  const long = JSON.parse((await xl('list', '-l', NAME)).out)[0].config;
  expect(long.disks).toMatchObject([
    { pdev_path: join(root, 'a.img'), vdev: 'xvda', readwrite: 1 },
    { pdev_path: join(root, 'b.img'), vdev: 'xvdb' },
    { pdev_path: 'foo:bar', vdev: 'xvdc', script },
  ]);
  expect(long.nics).toMatchObject([
    { devid: 0, mac: macs[0] },
    { devid: 1, mac: macs[1] },
  ]);

  expect(await xl('reboot', NAME)).toMatchObject({ code: 0 });
  const second = await guestHas('xvda,xvdb,xvdc,', 2, first.boot);
  expect(second.macs).toEqual(macs);
  expect(told()).toEqual([add, remove, add]);

  // The nodes go with the file; there are no more of them in the next life, and no fewer.
  const file = join(root, 'saved');
  expect((await xl('save', NAME, file)).code).toBe(0);
  expect((await xl('restore', file)).code).toBe(0);
  expect(await xl('block-detach', NAME, 'xvdb')).toEqual(SILENT);
  expect(await xl('network-detach', NAME, '0')).toEqual(SILENT);
  await guestHas('xvda,xvdc,', 1);
  expect((await xl('reboot', NAME)).code).toBe(0);
  const third = await guestHas('xvda,xvdc,', 1, second.boot);
  expect(third.macs).toEqual([macs[1]]);
  expect(told()).toEqual([add, remove, add, remove, add, remove, add]);

  expect(await xl('block-attach', NAME, 'b.img,raw,xvdb,w')).toEqual(SILENT);
  const before = told().length;
  await killDomain(NAME, root);
  const fourth = await guestHas('xvda,xvdb,xvdc,', 1, third.boot);
  expect(fourth.macs).toEqual([macs[1]]);
  expect(told().slice(before)).toEqual([remove, add]);
  expect(await xl('destroy', NAME)).toEqual(SILENT);
  expect(told().at(-1)).toBe(remove);
});
