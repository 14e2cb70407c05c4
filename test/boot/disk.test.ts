/**
 * Debian's kernel on disks of the host: what it writes is on the host's image, whole and readable by the host's own tools, a disk
 * grows while it is in use, and what it was told is safe survives kill -9 of the domain's process.
 */

import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type BuiltGuest, buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { writeCpio } from '../../src/toolstack/guest-image/cpio.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { killDomain, uniqueName } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const DOMUS = fileURLToPath(new URL('../../src/cli/domus/main.ts', import.meta.url));
const LIMIT_MS = 200_000;
const MIB = 2 ** 20;

/** xvda is unmounted, xvdb is not; xvdc is a CD; xvdd is given back piece by piece. */
const SCRIPT = `
set -e
[ $(cat /sys/block/xvdc/ro) = 1 ]
sha256sum < /dev/xvdc | sed 's/^/cd: /'
dd if=/dev/zero of=/dev/xvdc bs=512 count=1 conv=notrunc 2>/dev/null && echo "WROTE TO A CD"
mount -t ext4 /dev/xvda /mnt
sha256sum < /mnt/from-host | sed 's/^/read: /'
cp /bin/busybox /mnt/busybox
seq 1 300000 > /mnt/numbers
echo GROW
until [ $(cat /sys/block/xvda/size) = 98304 ]; do usleep 100000; done
dmesg | grep 'xvda: detected capacity change'
echo behind | dd of=/dev/xvda bs=1M seek=47 conv=fsync 2>/dev/null
sync
echo 3 > /proc/sys/vm/drop_caches
/mnt/busybox sha256sum < /mnt/numbers | sed 's/^/wrote: /'
umount /mnt
mount -t ext4 -o discard /dev/xvdd /mnt
head -c 8000000 /dev/urandom > /mnt/gone
sync
rm /mnt/gone
sync
umount /mnt
mount -t ext4 /dev/xvdb /mnt
seq 1 100000 | dd of=/mnt/synced conv=fsync 2>/dev/null
dmesg | grep -iE 'oops|BUG:|Call Trace|I/O error|unmapped grant' && echo "KERNEL TROUBLE"
echo FSYNCED
sleep 1000
`;

const folder = mkdtempSync(join(tmpdir(), 'domus-disk-'));
afterAll(() => rmSync(folder, { recursive: true }));

let guest: BuiltGuest;
/** With the script, which is too long for the kernel's command line: the kernel unpacks one archive after the other. */
const ramdisk = join(folder, 'initrd.gz');
beforeAll(async () => {
  guest = await buildGuest();
  const script = writeCpio([{ kind: 'file', name: 'disk.sh', mode: 0o644, content: Buffer.from(SCRIPT) }]);
  writeFileSync(ramdisk, Buffer.concat([readFileSync(guest.ramdisk), gzipSync(script)]));
});

/** A tool of e2fsprogs: exit code and output; null where there is none. */
function tool(name: string, ...words: string[]): { code: number | null; text: string; bytes: Buffer } | null {
  const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C' };
  const run = spawnSync(name, words, { env, maxBuffer: 64 * MIB });
  return run.error ? null : { code: run.status, text: `${run.stdout}${run.stderr}`, bytes: run.stdout };
}

function makeImage(name: string, sizeBytes: number): string {
  const path = join(folder, name);
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  expect(tool('mke2fs', '-q', '-t', 'ext4', path)?.code).toBe(0);
  return path;
}

/** A file of an image, as the host's tools see it. */
const dump = (image: string, name: string): Buffer => tool('debugfs', '-R', `cat ${name}`, image)!.bytes;
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const numbers = (last: number): Buffer => Buffer.from(Array.from({ length: last }, (_, i) => `${i + 1}\n`).join(''));
const blocksOf = (path: string): number => Number(spawnSync('stat', ['-c', '%b', path], { encoding: 'utf8' }).stdout);

/** Runs the guest until the text shows, then kills its process, which ends xl. What the console had shown. */
function runUntilKilled(words: readonly string[], text: string, onGrow: (name: string) => void): Promise<string> {
  return new Promise((resolve, reject) => {
    const { name, setting } = uniqueName();
    let grown = false;
    const child = spawn(process.execPath, [XL, ...words, setting], { stdio: ['ignore', 'pipe', 'pipe'] });
    let shown = '';
    let killed = false;
    const kill = (): void => {
      if (!killed) killDomain(name).catch(reject);
      killed = true;
    };
    const timer = setTimeout(kill, LIMIT_MS);
    const take = (chunk: string): void => {
      shown += chunk.replaceAll('\r', '');
      if (!grown && shown.includes('GROW\n')) {
        grown = true;
        onGrow(name);
      }
      if (shown.includes(text)) kill();
    };
    child.stdout.setEncoding('utf8').on('data', take);
    child.stderr.setEncoding('utf8').on('data', take);
    child.on('error', reject);
    child.on('close', () => {
      clearTimeout(timer);
      resolve(shown);
    });
  });
}

for (const engine of ENGINES)
  test(`a guest on ${engine} mounts, writes, syncs and gives back; nothing that was synced is lost by kill -9`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    if (tool('mke2fs', '-V') === null || tool('debugfs', '-V') === null) return context.skip('no e2fsprogs here');
    const a = makeImage(`${engine}-a.img`, 32 * MIB);
    const b = makeImage(`${engine}-b.img`, 16 * MIB);
    const d = makeImage(`${engine}-d.img`, 32 * MIB);
    const blocksBefore = blocksOf(d);
    const cd = join(folder, `${engine}.iso`);
    const fromHost = randomBytes(3 * MIB + 17);
    writeFileSync(cd, randomBytes(64 * 2048));
    writeFileSync(join(folder, 'from-host'), fromHost);
    expect(tool('debugfs', '-w', '-R', `write ${join(folder, 'from-host')} from-host`, a)?.code).toBe(0);
    const cdBefore = readFileSync(cd);

    let said = '';
    const shown = await runUntilKilled(
      [
        'create',
        '-c',
        guest.config,
        `ramdisk="${ramdisk}"`,
        `cmdline="console=hvc0 domus.run=${Buffer.from('. /disk.sh').toString('base64')}"`,
        `engine="${engine}"`,
        `disk=["${a},raw,xvda,w", "file:${b},xvdb,w", "${cd},,xvdc,cdrom", "vdev=xvdd,access=rw,target=${d}"]`,
      ],
      'FSYNCED\n',
      (name) => {
        const words = [DOMUS, 'disk', 'resize', name, 'xvda', '48M'];
        const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] });
        child.stdout.setEncoding('utf8').on('data', (text: string) => {
          said += text;
        });
      },
    );
    expect(shown).toContain('FSYNCED\n');
    expect(shown).not.toContain('KERNEL TROUBLE');
    expect(shown).not.toContain('WROTE TO A CD');
    expect(shown).toContain(`cd: ${sha256(cdBefore)}`);
    expect(shown).toContain(`read: ${sha256(fromHost)}`);
    expect(shown).toContain(`wrote: ${sha256(numbers(300_000))}`);

    expect(said).toMatch(/^xvda of domain \d+ has 50331648 bytes\n$/);
    expect(shown).toMatch(/xvda: detected capacity change from 65536 to 98304/);
    expect(readFileSync(a).length).toBe(48 * MIB);
    expect(readFileSync(a).subarray(47 * MIB, 47 * MIB + 7)).toEqual(Buffer.from('behind\n'));
    const checked = tool('e2fsck', '-fn', a)!;
    expect(checked.code, checked.text).toBe(0);
    expect(dump(a, 'numbers').equals(numbers(300_000))).toBe(true);
    expect(sha256(dump(a, 'from-host'))).toBe(sha256(fromHost));
    expect(readFileSync(cd).equals(cdBefore)).toBe(true);

    // Its file system was in use: the journal is replayed first, as by the next mount.
    const replayed = tool('e2fsck', '-fp', b)!;
    expect([0, 1], replayed.text).toContain(replayed.code);
    expect(tool('e2fsck', '-fn', b)!.code).toBe(0);
    expect(dump(b, 'synced').equals(numbers(100_000))).toBe(true);

    expect(tool('e2fsck', '-fn', d)!.code).toBe(0);
    // 8 MB were written and given back; the journal may hold some more than before.
    expect((blocksOf(d) - blocksBefore) * 512).toBeLessThan(5 * MIB);
  });
