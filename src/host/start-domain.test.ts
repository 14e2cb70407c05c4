import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { giveUpProcess, startProcess } from './start-domain.ts';

const root = mkdtempSync(join(tmpdir(), 'domus-start-'));
afterAll(() => rmSync(root, { recursive: true }));

it('a process that was started for a domain ends when there will be none, and leaves nothing', async () => {
  const log = join(root, 'log');
  mkdirSync(log);
  // Of a process that was killed; of one that lives; of an older domain of that name; of another name.
  const gone = `xl-none.log.${2 ** 30}`;
  const others = [`xl-none.log.${process.ppid}`, 'xl-none.log.3', `xl-none.log.cfg.log.${2 ** 30}`];
  for (const name of [gone, ...others]) writeFileSync(join(log, name), '');
  const early = startProcess('none', { root });
  expect(readdirSync(log).sort()).toEqual([`xl-none.log.${process.pid}`, ...others].sort());
  for (const name of others) rmSync(join(log, name));
  const ended = once(early.child, 'exit');
  giveUpProcess(early);
  expect(await ended).toEqual([0, null]);
  expect(readdirSync(join(root, 'log'))).toEqual([]);
});
