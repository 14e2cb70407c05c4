/**
 * `domus guest build --disk`: the disk boots by pygrub to a login, root gets in without a password, and the root file system is the
 * disk. It is booted from an image on top of it, of our own making, so that the built one stays as it is.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { openDiskImage } from '../../src/storage/disk-image.ts';
import { hostFiles } from '../../src/storage/host/node-file.ts';
import { createQcow2 } from '../../src/storage/qcow2/create.ts';
import { AptError } from '../../src/toolstack/guest-image/apt.ts';
import { type BuiltDisk, buildDisk } from '../../src/toolstack/guest-image/build-disk.ts';
import { checkImage, qemuTools } from '../qemu-tools.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 12 * 60_000;
const SIZE_MIB = 1200;
const folder = mkdtempSync(join(tmpdir(), 'domus-disk-guest-'));
afterAll(() => rmSync(folder, { recursive: true }));

const STEPS: readonly (readonly [RegExp, string])[] = [
  [/Log in as root; there is no password\.[\s\S]*login: $/, 'root\n'],
  [
    /root@domus:~# $/,
    'findmnt -no SOURCE,FSTYPE /; hostname; grep -c ^URIs /etc/apt/sources.list.d/*; echo AS-""BUILT; poweroff\n',
  ],
];

/** Types each answer when its question shows. */
function session(config: string): Promise<{ code: number | null; shown: string }> {
  return new Promise((resolve, reject) => {
    const xl = spawn(process.execPath, [XL, 'create', '-c', config], { stdio: ['pipe', 'pipe', 'inherit'] });
    const timer = setTimeout(() => xl.kill('SIGKILL'), LIMIT_MS - 60_000);
    let shown = '';
    let step = 0;
    xl.stdout.setEncoding('utf8').on('data', (text: string) => {
      shown = (shown + text).replace(/\x1b\[[0-9;?]*[A-Za-z]|\r/g, '');
      const next = STEPS[step];
      if (next?.[0].test(shown)) {
        step++;
        xl.stdin.write(next[1]);
      }
    });
    xl.on('error', reject);
    xl.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, shown });
    });
  });
}

test('a built disk boots to a login', { timeout: LIMIT_MS }, async (context) => {
  let built: BuiltDisk;
  try {
    built = await buildDisk({ sizeMiB: SIZE_MIB, format: 'qcow2' });
  } catch (error) {
    if (error instanceof AptError) return context.skip(error.message);
    throw error;
  }
  const path = join(folder, 'overlay.qcow2');
  writeFileSync(path, '');
  const file = await hostFiles.open(path, { readOnly: false, sharing: 'exclusive' });
  await createQcow2(file, SIZE_MIB << 20, { name: built.disk, format: 'qcow2' });
  await file.close();
  const config = join(folder, 'overlay.cfg');
  writeFileSync(
    config,
    `name = "overlay"\nmemory = 512\nbootloader = "pygrub"\ndisk = [ "format=qcow2,vdev=xvda,target=${path}" ]\n`,
  );
  const { code, shown } = await session(config);
  expect(shown).toMatch(/\n\/dev\/xvda\s+ext4\ndomus\n[1-9]\d*\nAS-BUILT\n/);
  expect(code).toBe(0);
  await (await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: true })).close();
  const qemu = await qemuTools();
  if (typeof qemu === 'string') return context.skip(qemu);
  await checkImage(qemu, path);
});
