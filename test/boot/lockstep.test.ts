/** The interpreter alone and with translated regions: one boot of Debian, the same state of the vCPU at every exit. */

import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { cacheRoot } from '../../src/toolstack/cache.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { loadKernel } from '../../src/toolstack/kernel-image.ts';
import { bootInLockstep, type LockstepGuest } from './lockstep.ts';

const SCRIPT =
  'uname -a; head -c 262144 /dev/zero | sha256sum; i=0; while [ $i -lt 5 ]; do /bin/busybox true; i=$((i+1)); done; poweroff -f';
/** SHA-256 of 256 KiB of zeros. */
const ZEROS = '8a39d2abd3999ab73c34db2476849cddf303ce389b35826850f9a700589b4a90';

test('interpreted and translated code agree at every exit of a boot', async () => {
  const folder = dirname((await buildGuest({})).config);
  const { elf } = await loadKernel(join(folder, 'vmlinuz'), { cacheDir: cacheRoot(), onProgress: () => {} });
  const guest: LockstepGuest = {
    kernel: elf,
    name: 'vmlinuz',
    ramdisk: await readFile(join(folder, 'initrd.gz')),
    cmdline: `console=hvc0 quiet domus.run=${Buffer.from(SCRIPT).toString('base64')}`,
  };
  const states: number[] = [];
  const interpreted = await bootInLockstep(guest, true, (exit, hash) => {
    states.push(exit, hash);
    return true;
  });
  expect(interpreted.console).toContain(ZEROS);
  let seen = 0;
  let differs = -1;
  const translated = await bootInLockstep(guest, false, (exit, hash) => {
    if (states[seen] !== exit || states[seen + 1] !== hash) differs = seen / 2;
    seen += 2;
    return differs < 0;
  });
  expect(differs, `exit ${differs} of ${states.length / 2} differs`).toBe(-1);
  expect(seen).toBe(states.length);
  expect(translated.console).toBe(interpreted.console);
  expect(states.length / 2).toBeGreaterThan(50_000);
  // That regions ran at all.
  expect(translated.counts.join('\n')).toMatch(/regions [1-9]\d\d/);
});
