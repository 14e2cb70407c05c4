/** What a build does without packages; builds from packages are part of the boot tests. */

import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { KernelImageError } from '../builder/errors.ts';
import { buildGuest, GuestBuildError } from './build.ts';

let folder = '';
let kernel = '';
let initrd = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-build-'));
  kernel = join(folder, 'vmlinux');
  initrd = join(folder, 'initrd');
  await writeFile(kernel, '\x7fELF, or so it says');
  await writeFile(initrd, 'ramdisk');
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

describe('buildGuest() with files of the user', () => {
  test('writes a configuration that names them, once', async () => {
    const outDir = join(folder, 'out');
    const guest = await buildGuest({ kernel, initrd, outDir });
    expect(guest).toEqual({ kernel, ramdisk: initrd, config: join(outDir, 'domus.cfg') });
    const config = await readFile(guest.config, 'utf8');
    for (const line of [
      'name = "domus"',
      'type = "pv"',
      `kernel = "${kernel}"`,
      `ramdisk = "${initrd}"`,
      'memory = 256',
      'vcpus = 1',
    ]) {
      expect(config.split('\n')).toContain(line);
    }
    const { mtimeMs } = await stat(guest.config);
    await buildGuest({ kernel, initrd, outDir });
    expect((await stat(guest.config)).mtimeMs).toBe(mtimeMs);
    await rm(guest.config);
    await buildGuest({ kernel, initrd, outDir });
    expect(await readFile(guest.config, 'utf8')).toBe(config);
  });

  test('wants both or neither', async () => {
    await expect(buildGuest({ kernel, outDir: folder })).rejects.toThrow(GuestBuildError);
    await expect(buildGuest({ initrd, outDir: folder })).rejects.toThrow(/go together/);
  });

  test('refuses a file that is no kernel, and one that is not there', async () => {
    const outDir = join(folder, 'bad');
    await expect(buildGuest({ kernel: initrd, initrd, outDir })).rejects.toThrow(KernelImageError);
    await expect(buildGuest({ kernel, initrd: join(folder, 'none'), outDir })).rejects.toThrow(/none: cannot read it/);
  });
});
