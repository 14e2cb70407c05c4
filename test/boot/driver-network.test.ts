/**
 * Debian's xen-netback in a driver domain, for guests on the wasm engine: data both ways, a frontend that is torn away and comes
 * back under load, guests killed under load, and at last the driver domain killed under load, which its guest outlives.
 */

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { hostCalls } from '../../src/host/libc.ts';
import { cacheRoot } from '../../src/toolstack/cache.ts';
import { AptError, openApt } from '../../src/toolstack/guest-image/apt.ts';
import { buildGuest, DEFAULT_KERNEL_PACKAGE } from '../../src/toolstack/guest-image/build.ts';
import { type CpioEntry, writeCpio } from '../../src/toolstack/guest-image/cpio.ts';
import { readDeb } from '../../src/toolstack/guest-image/deb.ts';
import { unpackXz } from '../../src/toolstack/xz.ts';
import { consoleLog, consoleSays, endDomains, killDomain } from './domains.ts';
import { xl as runXl } from './guest.ts';

const XENSTORE_WRITE = fileURLToPath(new URL('../../bin/xenstore-write.js', import.meta.url));
const LIMIT_MS = 200_000;
const root = mkdtempSync(join(tmpdir(), 'domus-driver-'));
const env = { ...process.env, DOMUS_STATE_DIR: root };
afterAll(async () => {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

/** The kernel's netback. Throws AptError. */
async function module(): Promise<CpioEntry> {
  const apt = await openApt({ cacheDir: cacheRoot() });
  const kernel = (await apt.depends(DEFAULT_KERNEL_PACKAGE)).find((name) => /^linux-image-\d/.test(name));
  const files = await readDeb(await apt.download(kernel ?? ''), (name) => name.includes('/xen-netback.ko'));
  for (const [name, content] of files) {
    const bytes = name.endsWith('.xz') ? Buffer.concat(await Array.fromAsync(unpackXz([content], 'xz'))) : content;
    return { kind: 'file', name: 'xen-netback.ko', mode: 0o644, content: bytes };
  }
  throw new Error('the kernel has no xen-netback');
}

/** Gives every interface that comes the same address: there is one guest at a time. */
const DRIVER = `
insmod /xen-netback.ko
mkdir /tmp/w; dd if=/dev/urandom of=/tmp/w/z bs=1M count=4 2>/dev/null
echo "served: $(md5sum </tmp/w/z)"
httpd -h /tmp/w
mkfifo /tmp/open; sleep 100000 >/tmp/open &
(while :; do nc -l -p 5000 </tmp/open >/tmp/upload; md5sum </tmp/upload | sed 's/^/got: /'; done) &
echo driver is ready
while :; do
  for i in /sys/class/net/vif*; do
    [ -e $i ] && ! ip -4 address show dev \${i##*/} | grep -q inet && {
      ip address add 10.9.0.1/24 dev \${i##*/}; ip link set \${i##*/} up; echo "up: \${i##*/}"; }
  done 2>/dev/null
  sleep 0.2
done
`;

/** Gets the file until it is killed, says what it gets when that changes, and at a word unbinds and binds its frontend. */
const USER = `
until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
up() { ip address add 10.9.0.2/24 dev eth0; ip link set eth0 up; until ping -c 1 -W 1 10.9.0.1 >/dev/null; do sleep 0.2; done; }
get() { wget -q -O - http://10.9.0.1/z | md5sum; }
up
echo "down: $(get)"
dd if=/dev/urandom of=/tmp/u bs=1M count=2 2>/dev/null
echo "sent: $(md5sum </tmp/u)"
nc 10.9.0.1 5000 </tmp/u
(while :; do get >/dev/null 2>&1; done) & (while :; do get >/dev/null 2>&1; done) &
sleep 1
cd /sys/bus/xen/drivers/vif
for i in 1 2 3; do
  echo vif-0 >unbind; sleep 0.3; echo vif-0 >bind
  until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
  up
done
echo "again: $(get)"
until [ -e /tmp/never ]; do
  ping -c 1 -W 2 10.9.0.1 >/dev/null && S=here || S=gone
  [ "$S" = "$T" ] || echo "driver is $S"
  T=$S; sleep 0.2
done
`;

const log = (name: string): string => consoleLog(root, name);
const says = (name: string, pattern: RegExp): Promise<string> => consoleSays(root, name, pattern, LIMIT_MS);

async function create(
  name: string,
  entries: readonly CpioEntry[],
  script: string,
  ...settings: string[]
): Promise<string> {
  const { config, ramdisk } = await buildGuest();
  const path = join(root, `${name}.gz`);
  const file = { kind: 'file', name: 'script', mode: 0o755, content: Buffer.from(script) } as const;
  writeFileSync(path, Buffer.concat([readFileSync(ramdisk), gzipSync(writeCpio([...entries, file]))]));
  const cmdline = `cmdline="console=hvc0 domus.run=${Buffer.from('sh /script').toString('base64')}"`;
  const words = [`name="${name}"`, `ramdisk="${path}"`, cmdline, 'engine="wasm"', ...settings];
  expect(await runXl(['create', '-q', config, ...words], LIMIT_MS, env)).toEqual({ code: 0, console: '', log: '' });
  return (await runXl(['domid', name], LIMIT_MS, env)).console.trim();
}

/** What a script would do in the driver domain. */
async function connected(driver: string, user: string): Promise<void> {
  const node = `/local/domain/${driver}/backend/vif/${user}/0/hotplug-status`;
  const done = spawn(process.execPath, [XENSTORE_WRITE, node, 'connected'], { env, stdio: 'inherit' });
  await new Promise((resolve) => done.on('close', resolve));
}

test('netback in a driver domain bears frontends that come, go and are killed under load; its guest bears that it is killed', async (context) => {
  if (hostCalls() === null) context.skip('no koffi, or not Linux: pages cannot be shared');
  const netback = await module().catch((error: unknown) => {
    if (!(error instanceof AptError)) throw error;
    return context.skip(`Debian's kernel cannot be had: ${error.message}`);
  });
  const driver = await create('driver', [netback], DRIVER, 'driver_domain=1', 'vif=[]');
  await says('driver', /^driver is ready$/m);
  const served = await says('driver', /^served: (\w+)/m);
  for (const name of ['one', 'two']) {
    const user = await create(name, [], USER, 'vif=["backend=driver"]');
    await connected(driver, user);
    expect(await says(name, /^down: (\w+)/m)).toBe(served);
    const sent = await says(name, /^sent: (\w+)/m);
    await says('driver', new RegExp(`^got: ${sent}`, 'm'));
    expect(await says(name, /^again: (\w+)/m)).toBe(served);
    await says(name, /^driver is here$/m);
    // Both of its downloads are under way.
    await killDomain(name === 'one' ? 'one' : 'driver', root);
  }
  await says('two', /^driver is here\n[\s\S]*^driver is gone$/m);
  for (const name of ['driver', 'two']) expect(log(name)).not.toMatch(/Oops|BUG:|Call Trace/);
});
