/** What one domain of the wasm engine has translated serves the next: a boot of Debian that finds its code made. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { hasMachineCode } from '../../src/host/machine-code.ts';
import { translatedAt, untilMade } from '../../src/host/translated-code.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { xl } from './guest.ts';

const SCRIPT = Buffer.from('head -c 1000000 /dev/zero | sha256sum; poweroff -f').toString('base64');
/** SHA-256 of a million zeros. */
const ZEROS = 'd29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025';

test('a boot takes what the boots before have translated, each vCPU', async (context) => {
  if (!hasMachineCode()) return context.skip(`V8 ${process.versions.v8} may not give machine code away`);
  const folder = mkdtempSync(join(tmpdir(), 'domus-translated-'));
  const env = { ...process.env, DOMUS_TRANSLATED: folder, DOMUS_STATS: '1' };
  const { config } = await buildGuest({});
  const boot = async (vcpus: number): Promise<{ made: number; taken: number }> => {
    const settings = ['engine="wasm"', `vcpus=${vcpus}`, `cmdline="console=hvc0 domus.run=${SCRIPT}"`];
    const { code, console, log } = await xl(['create', '-c', config, ...settings], 120_000, env);
    expect(console, log).toContain(ZEROS);
    expect(code).toBe(0);
    await untilMade(folder);
    const [, made, taken] = /d\d+v0: engine: .*\bregions (\d+), regions of the library (\d+)/.exec(log) ?? [];
    return { made: Number(made), taken: Number(taken) };
  };
  try {
    const first = await boot(1);
    expect(first.taken).toBe(0);
    expect(first.made).toBeGreaterThan(100);
    expect(translatedAt(folder)).toBeGreaterThan(0);
    const second = await boot(1);
    expect(second.taken).toBeGreaterThan(first.made / 2);
    expect(second.made).toBeLessThan(first.made / 2);
    expect((await boot(2)).taken).toBeGreaterThan(first.made / 2);
  } finally {
    await untilMade(folder);
    rmSync(folder, { recursive: true, force: true });
  }
}, 400_000);
