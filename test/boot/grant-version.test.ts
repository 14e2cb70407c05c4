/** Debian's kernel with a grant table of version 2: its disk and its network work, behind `xl save`, `xl restore` and `xl migrate` too. */

import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { checkedRounds } from './checked-rounds.ts';
import { consoleLog, consoleSays, endDomains } from './domains.ts';
import { type GuestRun, xl as runXl } from './guest.ts';

const LIMIT_MS = 120_000;
const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
/** Two hosts. */
const here = mkdtempSync(join(tmpdir(), 'domus-grants-'));
const there = mkdtempSync(join(tmpdir(), 'domus-grants-there-'));
afterAll(async () => {
  for (const root of [here, there]) {
    await endDomains(root);
    await stopDaemon(root);
    rmSync(root, { recursive: true });
  }
});

const xl = (...words: string[]): Promise<GuestRun> => runXl(words, LIMIT_MS, { ...process.env, DOMUS_STATE_DIR: here });
const DONE = { code: 0, console: '', log: '' };

/** Lines of the rounds that the guest has said. */
const rounds = (root: string, name: string): string[] => consoleLog(root, name).match(/^round \d+ .*\n/gm) ?? [];

for (const engine of ENGINES)
  test(`Linux with version 2 on ${engine}`, { timeout: LIMIT_MS }, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    const { config } = await buildGuest();
    const name = `grants-${engine}`;
    const disk = join(here, `${name}.img`);
    writeFileSync(disk, '');
    truncateSync(disk, 1 << 22);
    const run = Buffer.from(`dmesg | grep 'Grant tables'\n${checkedRounds('')}`).toString('base64');
    const created = await xl(
      ...['create', '-q', config, `name="${name}"`, `engine="${engine}"`],
      ...[`cmdline="console=hvc0 grant_table.version=2 domus.run=${run}"`],
      ...[`disk=["${disk},raw,xvda,w"]`, 'vif=["script=vif-nat"]'],
    );
    expect(created).toEqual(DONE);
    expect(await consoleSays(here, name, /Grant tables using version (\d)/, LIMIT_MS)).toBe('2');
    await consoleSays(here, name, /^round 2 /m, LIMIT_MS);
    const file = join(here, `${name}.saved`);
    expect((await xl('save', name, file)).code).toBe(0);
    const before = rounds(here, name).length;
    expect((await xl('restore', file)).code).toBe(0);
    await consoleSays(here, name, new RegExp(`^round ${before + 2} `, 'm'), LIMIT_MS);

    // Its memory is compared at the end.
    const receive = `DOMUS_STATE_DIR=${there} exec ${process.execPath} ${XL} migrate-receive`;
    expect((await xl('migrate', '--debug', '-s', '', name, receive)).code).toBe(0);
    const moved = rounds(here, name).length;
    await consoleSays(there, name, new RegExp(`^round ${moved + 2} `, 'm'), LIMIT_MS);
    const all = [...rounds(here, name), ...rounds(there, name)];
    expect(all.filter((line) => !/ same answered trouble=0/.test(line))).toEqual([]);
    await endDomains(there);
  });

test("the limits of the first host's xl.conf go with the domain to another host, and hold behind a reboot", {
  timeout: LIMIT_MS,
}, async (context) => {
  const engine = ENGINES.find((one) => whyUnusable(one) === null);
  if (engine === undefined) return context.skip('no engine');
  const { config } = await buildGuest();
  const limited = mkdtempSync(join(tmpdir(), 'domus-grants-limited-'));
  const inLimited = { ...process.env, DOMUS_STATE_DIR: limited };
  try {
    writeFileSync(join(limited, 'xl.conf'), 'max_grant_version=1\n');
    const run = Buffer.from("dmesg | grep 'Grant tables'; echo is up; sleep 1000").toString('base64');
    const created = await runXl(
      ['create', '-q', config, 'name="limited"', `cmdline="console=hvc0 grant_table.version=2 domus.run=${run}"`],
      LIMIT_MS,
      inLimited,
    );
    expect(created).toEqual(DONE);
    expect(await consoleSays(limited, 'limited', /Grant tables using version (\d)/, LIMIT_MS)).toBe('1');
    await consoleSays(limited, 'limited', /^is up/m, LIMIT_MS);
    const file = join(limited, 'saved');
    expect((await runXl(['save', 'limited', file], LIMIT_MS, inLimited)).code).toBe(0);
    expect((await xl('restore', file)).code).toBe(0);
    expect((await xl('sysrq', 'limited', 'b')).code).toBe(0);
    // A guest that has suspended itself says it as well.
    expect(
      await consoleSays(
        here,
        'limited',
        /Linux version [\s\S]*Grant tables using version (\d)[\s\S]*^is up/m,
        LIMIT_MS,
      ),
    ).toBe('1');
    expect((await xl('destroy', 'limited')).code).toBe(0);
  } finally {
    await endDomains(limited);
    await stopDaemon(limited);
    rmSync(limited, { recursive: true });
  }
});
