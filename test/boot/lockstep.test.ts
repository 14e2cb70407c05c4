/**
 * The interpreter alone, with translated regions, and with regions that the boot before has kept: one boot of Debian each, the same state of the vCPU
 * at every exit.
 */

import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { buildInterpreter } from '../../src/engine/wasm/interpreter.ts';
import { decodeKept } from '../../src/engine/wasm/kept-regions.ts';
import { writeLibrary } from '../../src/engine/wasm/region-library.ts';
import type { TranslatedCode } from '../../src/engine/wasm/wasm-domain.ts';
import { cacheRoot } from '../../src/toolstack/cache.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { loadKernel } from '../../src/toolstack/kernel-image.ts';
import { bootInLockstep, type LockstepGuest } from './lockstep.ts';

const SCRIPT =
  'uname -a; head -c 262144 /dev/zero | sha256sum; i=0; while [ $i -lt 5 ]; do /bin/busybox true; i=$((i+1)); done; poweroff -f';
/** SHA-256 of 256 KiB of zeros. */
const ZEROS = '8a39d2abd3999ab73c34db2476849cddf303ce389b35826850f9a700589b4a90';

test('interpreted, translated and kept code agree at every exit of a boot', async () => {
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
  expect(states.length / 2).toBeGreaterThan(50_000);

  const boot = async (name: string, known: TranslatedCode | null): ReturnType<typeof bootInLockstep> => {
    let seen = 0;
    let differs = -1;
    const atExit = (exit: number, hash: number): boolean => {
      if (states[seen] !== exit || states[seen + 1] !== hash) differs = seen / 2;
      seen += 2;
      return differs < 0;
    };
    const booted = await bootInLockstep(guest, false, atExit, known);
    expect(differs, `${name}: exit ${differs} of ${states.length / 2} differs`).toBe(-1);
    expect(seen).toBe(states.length);
    expect(booted.console).toBe(interpreted.console);
    return booted;
  };

  const translated = await boot('translated', null);
  // That regions ran at all.
  expect(translated.counts.join('\n')).toMatch(/regions [1-9]\d\d/);
  const { records, kernel, user } = writeLibrary(decodeKept(translated.kept.made));
  const regions = { records, kernel: new WebAssembly.Module(kernel), user: new WebAssembly.Module(user) };
  const interpreter = new WebAssembly.Module(buildInterpreter(false));
  const kept = await boot('kept', { interpreter, regions });
  expect(kept.counts.join('\n')).toMatch(/regions of the library [1-9]\d\d/);
});
