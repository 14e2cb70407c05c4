import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { giveUpProcess, startProcess } from './start-domain.ts';

const root = mkdtempSync(join(tmpdir(), 'domus-start-'));
afterAll(() => rmSync(root, { recursive: true }));

it('a process that was started for a domain ends when there will be none, and leaves nothing', async () => {
  const early = startProcess('none', { root });
  expect(readdirSync(join(root, 'log'))).toEqual([`xl-none.log.${process.pid}`]);
  const ended = once(early.child, 'exit');
  giveUpProcess(early);
  expect(await ended).toEqual([0, null]);
  expect(readdirSync(join(root, 'log'))).toEqual([]);
});
