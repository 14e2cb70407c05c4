/**
 * A guest that serves another: Debian's xen-blkback in a driver domain, its vchan tool between the two, and a channel to the host; then
 * the guest that is served is killed. The driver domain runs on wasm, where the thousands of hypercalls by which Linux makes room for foreign
 * pages cost less, the other one on the best engine there is.
 */

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { hostCalls } from '../../src/host/libc.ts';
import { cacheRoot } from '../../src/toolstack/cache.ts';
import { AptError, openApt } from '../../src/toolstack/guest-image/apt.ts';
import { buildGuest, DEFAULT_KERNEL_PACKAGE } from '../../src/toolstack/guest-image/build.ts';
import { type CpioEntry, writeCpio } from '../../src/toolstack/guest-image/cpio.ts';
import { readDeb, unpackDeb } from '../../src/toolstack/guest-image/deb.ts';
import { unpackXz } from '../../src/toolstack/xz.ts';
import { consoleSays, endDomains, killDomain } from './domains.ts';
import { xl as runXl } from './guest.ts';

const LIMIT_MS = 200_000;
const root = mkdtempSync(join(tmpdir(), 'domus-driver-'));
const env = { ...process.env, DOMUS_STATE_DIR: root };
afterAll(async () => {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const MODULES = ['xen-evtchn', 'xen-gntdev', 'xen-gntalloc', 'xen-blkback', 'brd'];
const LIBRARIES = [
  ...['libxenmisc4.17', 'libxengnttab1', 'libxenevtchn1', 'libxentoollog1', 'libxencall1', 'libxenforeignmemory1'],
  ...['libxendevicemodel1', 'libxenstore4', 'libxentoolcore1', 'libc6', 'libgcc-s1'],
];
const TOOLS = ['xen-utils-4.17', 'xenstore-utils'];
const WANTED =
  /vchan-socket-proxy$|bin\/xenstore$|lib\/x86_64-linux-gnu\/(libxen\w+|libc|libgcc_s)\.so[.\d]*$|ld-linux-x86-64\.so\.2$/;

/** Modules and Debian's programs, in /x, as an archive that is kept beside the guest it goes with. Throws AptError. */
async function makeExtras(folder: string): Promise<Uint8Array> {
  const path = join(folder, 'driver-domain.gz');
  const stamp = join(folder, 'driver-domain.stamp');
  const made = `${readFileSync(join(folder, 'stamp.json'), 'utf8')}${[...MODULES, ...TOOLS, ...LIBRARIES].join()}`;
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === made) return readFileSync(path);
  const apt = await openApt({ cacheDir: cacheRoot() });
  const entries: CpioEntry[] = [{ kind: 'directory', name: 'x', mode: 0o755 }];
  const kernel = (await apt.depends(DEFAULT_KERNEL_PACKAGE)).find((name) => /^linux-image-\d/.test(name));
  const isModule = (name: string): boolean => MODULES.some((module) => name.includes(`/${module}.ko`));
  for (const [name, content] of await readDeb(await apt.download(kernel ?? ''), isModule)) {
    const bytes = name.endsWith('.xz') ? Buffer.concat(await Array.fromAsync(unpackXz([content], 'xz'))) : content;
    const file = name.split('/').at(-1)?.replace('.xz', '') ?? '';
    entries.push({ kind: 'file', name: `x/${file}`, mode: 0o644, content: bytes });
  }
  for (const name of [...TOOLS, ...LIBRARIES])
    for (const entry of (await unpackDeb(await apt.download(name), (file) => WANTED.test(file))).entries)
      if (WANTED.test(entry.name) && (entry.kind === 'file' || entry.kind === 'symlink')) {
        const place = `x/${entry.name.split('/').at(-1)}`;
        // The loader is a file, and a link to that file.
        if (!entries.some((other) => other.name === place)) entries.push({ ...entry, name: place });
      }
  writeFileSync(path, gzipSync(writeCpio(entries)));
  writeFileSync(stamp, made);
  return readFileSync(path);
}

/** The demo guest's ramdisk with those, and a script. The kernel unpacks one archive after the other. */
function ramdiskWith(ramdisk: string, extras: Uint8Array, name: string, script: string): string {
  const path = join(root, `${name}.gz`);
  const entry = { kind: 'file', name: 'x/script', mode: 0o755, content: Buffer.from(script) } as const;
  writeFileSync(path, Buffer.concat([readFileSync(ramdisk), extras, gzipSync(writeCpio([entry]))]));
  return path;
}

const COMMON = `
run() { program=$1; shift; /x/ld-linux-x86-64.so.2 --library-path /x /x/$program "$@"; }
until_is() { until [ "$(run xenstore read $1 2>/dev/null)" = "$2" ]; do sleep 0.2; done; }
for module in xen-evtchn xen-gntdev xen-gntalloc; do insmod /x/$module.ko; done
mkfifo /tmp/words
`;

const DRIVER = `${COMMON}
run xenstore read domid || echo "Debian's programs do not run"
insmod /x/brd.ko rd_nr=1 rd_size=16384
insmod /x/xen-blkback.ko
echo driver is ready
until D=$(run xenstore list backend/vbd 2>/dev/null) && [ "$D" ]; do sleep 0.2; done
B=backend/vbd/$D/$(run xenstore list backend/vbd/$D)
run xenstore write $B/physical-device 1:0 $B/hotplug-status connected
until_is $B/state 4
(echo "words of the driver"; sleep 1000) > /tmp/words &
run vchan-socket-proxy --mode=server $D data/vchan - < /tmp/words > /tmp/heard &
until grep -q words /tmp/heard; do sleep 0.2; done
echo "driver heard: $(cat /tmp/heard)"
while run xenstore read $B/state > /dev/null 2>&1; do sleep 0.2; done
echo "frontend is gone: $(dd if=/dev/ram0 bs=1M count=4 2>/dev/null | md5sum)"
`;

const USER = (driver: string): string => `${COMMON}
(echo "words of the user"; sleep 1000) > /tmp/words &
until run xenstore read /local/domain/${driver}/data/vchan/ring-ref > /dev/null 2>&1; do sleep 0.2; done
run vchan-socket-proxy --mode=client ${driver} /local/domain/${driver}/data/vchan - < /tmp/words > /tmp/heard &
until grep -q words /tmp/heard; do sleep 0.2; done
echo "user heard: $(cat /tmp/heard)"
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
dd if=/tmp/data of=/dev/xvda bs=1M oflag=direct 2>/dev/null
echo "written: $(md5sum < /tmp/data)"
echo "read: $(dd if=/dev/xvda bs=1M count=4 iflag=direct 2>/dev/null | md5sum)"
exec 3<>/dev/hvc1
stty raw -echo <&3
echo channel is open
head -n 1 <&3 > /tmp/line
echo "from the guest: $(cat /tmp/line)" >&3
sleep 1000
`;

const says = (name: string, pattern: RegExp): Promise<string> => consoleSays(root, name, pattern, LIMIT_MS);

async function create(name: string, extras: Uint8Array, script: string, ...settings: string[]): Promise<void> {
  const { config, ramdisk } = await buildGuest();
  const run = Buffer.from('sh /x/script').toString('base64');
  const cmdline = `cmdline="console=hvc0 domus.run=${run}"`;
  const words = [`name="${name}"`, `ramdisk="${ramdiskWith(ramdisk, extras, name, script)}"`, cmdline, ...settings];
  expect(await runXl(['create', '-q', config, ...words], LIMIT_MS, env)).toEqual({ code: 0, console: '', log: '' });
}

test('a driver domain serves a disk, talks by vchan, and outlives the guest that it serves', async (context) => {
  if (hostCalls() === null) context.skip('no koffi, or not Linux: pages cannot be shared');
  let extras: Uint8Array = new Uint8Array(0);
  try {
    extras = await makeExtras(dirname((await buildGuest()).ramdisk));
  } catch (error) {
    if (!(error instanceof AptError)) throw error;
    context.skip(`Debian's programs cannot be had: ${error.message}`);
  }
  await create('driver', extras, DRIVER, 'driver_domain=1', 'engine="wasm"');
  await says('driver', /^driver is ready$/m);
  const driver = (await runXl(['domid', 'driver'], LIMIT_MS, env)).console.trim();
  const path = join(root, 'channel');
  const devices = [
    "disk=['phy:/dev/ram0,xvda,w,backend=driver']",
    `channel=['name=test,connection=socket,path=${path}']`,
  ];
  await create('user', extras, USER(driver), ...devices);
  const user = (await runXl(['domid', 'user'], LIMIT_MS, env)).console.trim();

  expect(await says('user', /^user heard: (.*)$/m)).toBe('words of the driver');
  expect(await says('driver', /^driver heard: (.*)$/m)).toBe('words of the user');
  const written = await says('user', /^written: (\w+)/m);
  expect(await says('user', /^read: (\w+)/m)).toBe(written);
  const blocks = (await runXl(['block-list', 'user'], LIMIT_MS, env)).console;
  expect(blocks).toMatch(
    new RegExp(`^51712 ${driver} +${user} +4 .*/local/domain/${driver}/backend/vbd/${user}/51712`, 'm'),
  );

  // The terminal echoes before.
  await says('user', /^channel is open$/m);
  const channel = connect(path);
  let heard = '';
  channel.setEncoding('utf8').on('data', (text: string) => {
    heard += text;
  });
  channel.write('hello\n');
  const endMs = performance.now() + LIMIT_MS;
  while (!heard.includes('\n') && performance.now() < endMs) await sleep(50);
  channel.destroy();
  expect(heard).toBe('from the guest: hello\n');
  const listed = (await runXl(['channel-list', 'user'], LIMIT_MS, env)).console;
  expect(listed).toMatch(/^0 {3}0 {2}4 +\d+ +\d+ +socket/m);

  await killDomain('user', root);
  expect(await says('driver', /^frontend is gone: (\w+)/m)).toBe(written);
});
