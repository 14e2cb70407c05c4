/**
 * `bootloader="pygrub"`: Debian's kernel boots from a disk in each format, as the disk's own grub.cfg says, and writes to it. What
 * it wrote is there for qemu-img and e2fsprogs, and what it was told is safe survives kill -9.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type BuiltGuest, buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { debianTool } from '../../src/toolstack/guest-image/debian-tool.ts';
import { checkImage, type QemuTools, qemuTools } from '../qemu-tools.ts';
import { killDomain, uniqueName } from './domains.ts';
import { xl } from './guest.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'domus-pygrub-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Written twice: the second time over what is there. Then a discard, and more. */
const SCRIPT = `
mount -t ext4 -o discard /dev/xvda /mnt || exit
for round in 1 2; do seq 1 200000 > /mnt/numbers; sync; done
head -c 6000000 /dev/urandom > /mnt/gone; sync; rm /mnt/gone; sync
seq 1 100000 | dd of=/mnt/synced conv=fsync 2>/dev/null
cat /proc/cmdline
dmesg | grep -iE 'oops|BUG:|Call Trace|I/O error' && echo "KERNEL TROUBLE"
echo FSYNCED
[ "$(cat /proc/cmdline | grep -c stay)" = 1 ] && sleep 1000
umount /mnt
`;

let guest: BuiltGuest;
let qemu: QemuTools | string;
let raw: string;
beforeAll(async () => {
  guest = await buildGuest();
  qemu = await qemuTools();
  const tree = join(folder, 'tree');
  mkdirSync(join(tree, 'boot/grub'), { recursive: true });
  copyFileSync(guest.kernel, join(tree, 'boot/vmlinuz'));
  copyFileSync(guest.ramdisk, join(tree, 'boot/initrd.gz'));
  const run = Buffer.from(SCRIPT).toString('base64');
  writeFileSync(
    join(tree, 'boot/grub/grub.cfg'),
    `set default=1
menuentry 'Wrong' { linux /boot/none }
menuentry 'Right' {
  set root='hd0'
  linux /boot/vmlinuz console=hvc0 from-the-disk domus.run=${run}
  initrd /boot/initrd.gz
}
`,
  );
  raw = join(folder, 'disk.raw');
  const mke2fs = await debianTool('mke2fs', 'e2fsprogs');
  execFileSync(mke2fs.path, ['-q', '-F', '-t', 'ext4', '-d', tree, raw, '96M'], { env: mke2fs.env });
});

const numbers = (last: number): Buffer =>
  Buffer.from(Array.from({ length: last }, (_, index) => `${index + 1}\n`).join(''));

/** Checks the image, and gives the files of the file system in it. */
async function inspect(
  tools: QemuTools,
  path: string,
  format: string,
  mayLeak: boolean,
): Promise<(name: string) => Buffer> {
  if (format === 'qcow2') await checkImage(tools, path, mayLeak);
  const copy = join(folder, 'copy.raw');
  await tools.img('convert', '-f', format, '-O', 'raw', path, copy);
  const env = { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin`, LC_ALL: 'C' };
  const fsck = spawnSync('e2fsck', ['-f', '-y', copy], { env, encoding: 'utf8' });
  // 1: something was put in order, which after a kill is the journal.
  expect([fsck.status! <= (mayLeak ? 1 : 0), fsck.stdout]).toEqual([true, expect.anything()]);
  return (name) => spawnSync('debugfs', ['-R', `cat ${name}`, copy], { env, maxBuffer: 1 << 26 }).stdout;
}

const DISKS = [
  { format: 'qcow2', xlFormat: 'qcow2', options: ['-c', '-o', 'compression_type=zstd,cluster_size=16k'] },
  { format: 'vpc', xlFormat: 'vhd', options: ['-o', 'subformat=dynamic,force_size=on'] },
] as const;

function configOf(path: string, format: string, extra: string): string {
  const config = join(folder, 'disk.cfg');
  writeFileSync(
    config,
    `name = "pygrub"\nmemory = 256\nbootloader = "pygrub"\nextra = "${extra}"\ndisk = [ "format=${format},vdev=xvda,target=${path}" ]\n`,
  );
  return config;
}

describe('a disk of its own', () => {
  test.for(DISKS)(
    'in format $format $options boots, and is written to',
    async ({ format, xlFormat, options }, context) => {
      if (typeof qemu === 'string') return context.skip(qemu);
      const path = join(folder, `boots.${format}`);
      await qemu.img('convert', ...options, '-f', 'raw', '-O', format, raw, path);
      const run = await xl(['create', '-c', configOf(path, xlFormat, 'and-from-the-config')]);
      expect([run.code, run.log]).toEqual([0, expect.anything()]);
      expect(run.console).toMatch(/console=hvc0 from-the-disk domus\.run=\S+ and-from-the-config/);
      expect(run.console).toContain('FSYNCED');
      expect(run.console).not.toContain('KERNEL TROUBLE');
      const file = await inspect(qemu, path, format, false);
      expect(file('numbers').equals(numbers(200_000))).toBe(true);
      expect(file('synced').equals(numbers(100_000))).toBe(true);
    },
  );

  test('is sound after kill -9, with all that was synced', async (context) => {
    if (typeof qemu === 'string') return context.skip(qemu);
    const path = join(folder, 'killed.qcow2');
    await qemu.img('convert', '-f', 'raw', '-O', 'qcow2', raw, path);
    const { name, setting } = uniqueName();
    const child = spawn(process.execPath, [XL, 'create', '-c', configOf(path, 'qcow2', 'stay'), setting], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const ended = new Promise((resolve) => child.once('close', resolve));
    let shown = '';
    for await (const text of child.stdout.setEncoding('utf8')) {
      shown += text;
      if (shown.includes('FSYNCED')) break;
    }
    await killDomain(name);
    await ended;
    expect(shown).toContain('FSYNCED');
    const file = await inspect(qemu, path, 'qcow2', true);
    expect(file('synced').equals(numbers(100_000))).toBe(true);
    expect(file('numbers').equals(numbers(200_000))).toBe(true);
  });

  test('that cannot be booted is an error of one line', async () => {
    const none = join(folder, 'none.raw');
    writeFileSync(none, new Uint8Array(1 << 20));
    const run = await xl(['create', '-c', configOf(none, 'raw', '')]);
    expect(run.code).toBe(3);
    expect(run.log.trim().split('\n').at(-1)).toMatch(
      /^libxl: error: bootloader failed: Unable to find partition containing kernel: at 0: no ext2\/3\/4, FAT or ISO 9660 file system$/,
    );
  });
});
