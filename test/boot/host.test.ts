/** One host, many domains: what docs/first-steps.md and docs/service.md say, and a slice of chaos (scripts/chaos.ts runs it for longer). */

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { runChaos } from './chaos.ts';
import { endDomains } from './domains.ts';
import { Walk } from './walk.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-host-'));
const roots = ['walk', 'chaos'].map((name) => join(folder, name));
afterAll(async () => {
  for (const root of roots) {
    await endDomains(root);
    await stopDaemon(root);
  }
  rmSync(folder, { recursive: true });
});

test('a reader of docs/first-steps.md has three guests on a bridge, and of docs/service.md one that is always there', async () => {
  const home = join(folder, 'home');
  // What a first try has left.
  await endDomains(roots[0]);
  rmSync(home, { recursive: true, force: true });
  mkdirSync(home);
  const walk = new Walk(home, roots[0]);
  const page = (name: string): string => fileURLToPath(new URL(`../../docs/${name}`, import.meta.url));
  expect(await walk.through(page('first-steps.md'))).toBeGreaterThan(20);
  expect(await walk.through(page('service.md'))).toBeGreaterThan(4);
}, 600_000);

test('after random commands and kills all agrees, and who was not touched has not noticed', async (context) => {
  if (process.platform !== 'linux') return context.skip('processes are looked for in /proc');
  mkdirSync(roots[1]);
  const seed = Date.now() % 1_000_000;
  const report = await runChaos({
    root: roots[1],
    durationMs: 15_000,
    guests: 6,
    shells: 3,
    seed,
    log: (line) => console.log(`chaos, seed ${seed}: ${line}`),
  });
  expect(report.faults).toEqual([]);
  expect(report.undisturbed).toBeGreaterThan(0);
});
