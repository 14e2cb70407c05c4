/**
 * A CPU suite that nobody here wrote: DOMUS_CPU_SUITE=<folder> names FEX-Emu's unittests/ASM (foreign-suite.ts); nasm must be
 * installed. A test that the real CPU here does not pass says nothing about the engines: it is left out, and named.
 */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  Assembler,
  type ForeignResult,
  ForeignRunner,
  type ForeignSuite,
  type ForeignTest,
  hasNasm,
  loadSuite,
} from './foreign-suite.ts';
import { CANDIDATES, createRealCpu, noRealCpu } from './subjects.ts';

const FOLDER = process.env['DOMUS_CPU_SUITE'];
const reason =
  FOLDER === undefined ? 'DOMUS_CPU_SUITE names no folder' : hasNasm() ? undefined : 'nasm is not installed';
const MINUTES_MS = 20 * 60_000;

let suite: ForeignSuite;
let assembler: Assembler;
const binaries = new Map<string, Uint8Array>();
/** Tests that the real CPU does not pass. */
const foreign = new Set<string>();

beforeAll(() => {
  if (FOLDER === undefined || reason !== undefined) return;
  suite = loadSuite(FOLDER);
  assembler = new Assembler(FOLDER);
  const real = noRealCpu() === undefined ? new ForeignRunner(createRealCpu) : null;
  for (const item of suite.tests) {
    binaries.set(item.name, assembler.assemble(item));
    if (real !== null && run(real, item).lines.length > 0) foreign.add(item.name);
  }
  real?.close();
  const skipped = [...suite.skipped].map(([why, count]) => `${count} ${why}`).join(', ');
  console.log(`${suite.tests.length} tests; skipped: ${skipped}`);
  if (foreign.size > 0) console.log(`not passed by the real CPU: ${[...foreign].join(' ')}`);
}, MINUTES_MS);

afterAll(() => assembler?.close());

const run = (runner: ForeignRunner, item: ForeignTest): ForeignResult =>
  runner.run(item, binaries.get(item.name) ?? new Uint8Array());

describe.each(CANDIDATES)('$name', ({ create }) => {
  test('passes what the real CPU passes', { timeout: MINUTES_MS }, (context) => {
    if (reason !== undefined) context.skip(reason);
    const runner = new ForeignRunner(create);
    const failed: string[] = [];
    const skipped = new Map<string, number>();
    let passed = 0;
    for (const item of suite.tests) {
      if (foreign.has(item.name)) continue;
      const { skipped: why, lines } = run(runner, item);
      if (why !== undefined) skipped.set(why, (skipped.get(why) ?? 0) + 1);
      else if (lines.length === 0) passed++;
      else failed.push(`${item.name}\n  ${lines.join('\n  ')}`);
    }
    runner.close();
    const others = [...skipped].map(([why, count]) => `${count} ${why}`).join(', ');
    console.log(`${passed} of ${suite.tests.length} passed, ${foreign.size} left out; skipped: ${others}`);
    expect(failed.join('\n')).toBe('');
  });
});
