/**
 * The interpreter alone, with translated regions, and with regions that the boot before has translated: one boot of Debian each, the
 * same state of the vCPU at every exit.
 */

import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { JUMP_USER_HI, STATE, TLB_SIZE } from '../../src/engine/wasm/layout.ts';
import { writeRegion } from '../../src/engine/wasm/region.ts';
import { discover, INSTRUCTIONS_MAX } from '../../src/engine/wasm/region-graph.ts';
import { type RegionCode, type RegionStore, storedRegions } from '../../src/engine/wasm/region-library.ts';
import type { WasmHost } from '../../src/engine/wasm/wasm-vcpu.ts';
import { cacheRoot } from '../../src/toolstack/cache.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { loadKernel } from '../../src/toolstack/kernel-image.ts';
import { bootInLockstep, type LockstepGuest } from './lockstep.ts';

const SCRIPT =
  'uname -a; head -c 262144 /dev/zero | sha256sum; i=0; while [ $i -lt 5 ]; do /bin/busybox true; i=$((i+1)); done; poweroff -f';
/** SHA-256 of 256 KiB of zeros. */
const ZEROS = '8a39d2abd3999ab73c34db2476849cddf303ce389b35826850f9a700589b4a90';
/** Entries of an address before the boot that fills the library translates it: more regions than a boot of its own makes. */
const EARLY = 4096;

/** Pages before the entry's, of the memory that a region's code is put into. */
const PAGES_BEFORE = 4;

/** A store with these chunks; what is to be kept goes to `kept`. */
function storeOf(chunks: readonly Uint8Array[], kept: Uint8Array[]): RegionStore {
  const all = Buffer.concat(chunks);
  return {
    sizeBytes: all.length,
    read: (at, into) => {
      into.set(all.subarray(at, at + into.length));
      return true;
    },
    keep: (chunk) => void kept.push(chunk),
  };
}

/** What the translator makes of a region's code, following the branches that were followed. */
function translate({ entry, user, pieces, starts, code }: RegionCode): Uint8Array {
  const u8 = new Uint8Array(4096 * 10);
  let n = 0;
  for (let i = 0; i < pieces.length; i += 2)
    for (let at = pieces[i]; at < pieces[i + 1]; at++) u8[PAGES_BEFORE * 4096 + at] = code[n++];
  const isWarm = (frame: number, offset: number): boolean => starts.includes((frame - PAGES_BEFORE) * 4096 + offset);
  const graph = discover({ u8, frame: (relative) => PAGES_BEFORE + relative, isWarm }, entry);
  if (graph === null) throw new Error('a stored region cannot be translated');
  const tlb = STATE.tlb + (user ? TLB_SIZE : 0);
  return writeRegion(graph, { tlb, userBit: user ? JUMP_USER_HI : 0, counting: false });
}

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

  const boot = async (name: string, host: Partial<WasmHost>): Promise<string> => {
    let seen = 0;
    let differs = -1;
    const atExit = (exit: number, hash: number): boolean => {
      if (states[seen] !== exit || states[seen + 1] !== hash) differs = seen / 2;
      seen += 2;
      return differs < 0;
    };
    const { console, counts } = await bootInLockstep(guest, false, atExit, host);
    expect(differs, `${name}: exit ${differs} of ${states.length / 2} differs`).toBe(-1);
    expect(seen).toBe(states.length);
    expect(console).toBe(interpreted.console);
    return counts.join('\n');
  };

  const kept: Uint8Array[] = [];
  const counts = await boot('translated', { regions: storeOf([], kept), entriesToTranslate: EARLY });
  // That regions ran at all.
  expect(counts).toMatch(/regions [1-9]\d\d/);
  expect(await boot('kept', { regions: storeOf(kept, []) })).toMatch(/regions kept from before [1-9]\d\d/);

  // What is kept is what the translator makes of the same code now.
  let same = 0;
  let skipped = 0;
  for (const { code, body } of storedRegions(storeOf(kept, []))) {
    // How one ends that found no room for more depends on bytes that are not part of it.
    if (code.instructions >= INSTRUCTIONS_MAX - 1) skipped++;
    else {
      expect(translate(code)).toEqual(body);
      same++;
    }
  }
  expect(same).toBeGreaterThan(100);
  expect(skipped).toBeLessThan(same / 4);
});
