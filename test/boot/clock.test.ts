/**
 * Guests that are saved with their own help: they are asked to suspend, so their clock is right when they go on, however long they were away. One that cannot
 * do it is saved without. One whose process is killed when its file is there lives in the file only.
 */

import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, expect, test } from 'vitest';
import { domidsIn } from '../../src/host/domain-client.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { openSaved } from '../../src/host/restore-domain.ts';
import { openXenstored } from '../../src/host/xenstored.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { consoleLog, endDomains, killDomain } from './domains.ts';
import { type GuestRun, xl as runXl } from './guest.ts';

const LIMIT_MS = 60_000;
/** How long a guest is away, and how old a line of it may be afterwards that was right. */
const AWAY_MS = 6000;
const OLD_MAX_MS = 4000;
const root = mkdtempSync(join(tmpdir(), 'domus-clock-'));
afterEach(() => endDomains(root));
afterAll(async () => {
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const xl = (...words: string[]): Promise<GuestRun> => runXl(words, LIMIT_MS, { ...process.env, DOMUS_STATE_DIR: root });
const DONE = (log: string) => ({ code: 0, console: '', log });

/** Its time, and how often it has suspended itself. */
const SCRIPT = `
dmesg -n 1
n=0
while :; do n=$((n+1)); echo "line $n clock $(date +%s) suspended $(dmesg | grep -c 'OOM killer enabled')"; usleep 100000; done
`;

interface Line {
  readonly n: number;
  readonly seconds: number;
  readonly suspended: number;
}

function lastLine(name: string): Line {
  const found = consoleLog(root, name).match(/line \d+ clock \d+ suspended \d+\n/g);
  const [n = 0, seconds = 0, suspended = 0] = found?.at(-1)?.match(/\d+/g)?.map(Number) ?? [];
  return { n, seconds, suspended };
}

async function until(name: string, isSo: (line: Line) => boolean): Promise<Line> {
  for (const endMs = performance.now() + LIMIT_MS; ; await sleep(50)) {
    const line = lastLine(name);
    if (isSo(line)) return line;
    if (performance.now() > endMs) throw new Error(`${name}, at ${Date.now() / 1000}: ${JSON.stringify(line)}`);
  }
}

/**
 * How far behind the host's a guest's clock is, at most. Linux' own: until it takes the time from Xen, late in its boot, it counts ticks, and misses some on a busy host; it
 * keeps that difference when it suspends. Source: kernel/time/timekeeping.c, timekeeping_suspend.
 */
async function behindMs(name: string): Promise<number> {
  const { n } = lastLine(name);
  const { seconds } = await until(name, (line) => line.n > n);
  return Math.max(0, Date.now() - seconds * 1000);
}

/** Some lines later. */
const goesOn = (name: string): Promise<Line> => {
  const { n } = lastLine(name);
  return until(name, (line) => line.n > n + 2);
};

async function boot(name: string, ...overrides: string[]): Promise<void> {
  const { config } = await buildGuest();
  const run = Buffer.from(SCRIPT).toString('base64');
  const created = await xl(
    'create',
    '-q',
    config,
    `name="${name}"`,
    `cmdline="console=hvc0 domus.run=${run}"`,
    ...overrides,
  );
  expect(created.log).toBe('');
  await until(name, ({ n }) => n > 0);
}

for (const engine of ENGINES)
  for (const vcpus of [1, 2])
    test(`the clock of a guest on ${engine} with ${vcpus} vCPUs is right when it was away`, async (context) => {
      const unusable = whyUnusable(engine);
      if (unusable !== null) return context.skip(unusable);
      const name = `clock-${engine}-${vcpus}`;
      const file = join(root, name);
      await boot(name, `engine="${engine}"`, `vcpus=${vcpus}`);
      const behind = await behindMs(name);
      const isRight = ({ seconds }: Line): boolean => Date.now() - seconds * 1000 < behind + OLD_MAX_MS;
      // It stays here.
      expect(await xl('save', '-c', name, file)).toEqual(DONE(`Saving to ${file}\n`));
      await until(name, (line) => line.suspended === 1 && isRight(line));
      expect(await xl('save', '-p', name, file)).toEqual(DONE(`Saving to ${file}\n`));
      expect((await xl('list', name)).console).toMatch(/ -[-b]p--- /);
      await xl('unpause', name);
      await until(name, (line) => line.suspended === 2 && isRight(line));

      expect(await xl('save', name, file)).toEqual(DONE(`Saving to ${file}\n`));
      const { domain, close } = await openSaved(file);
      close();
      const { nodes, domid } = domain.description;
      expect(nodes.find(([path]) => path === `/local/domain/${domid}/control/shutdown`)?.[1]).toBe('');
      await sleep(AWAY_MS);
      expect(await xl('restore', file)).toMatchObject({ code: 0, log: expect.not.stringContaining('error') });
      const line = await until(name, isRight);
      expect(line.suspended).toBe(3);

      // A paused one is not asked.
      await xl('pause', name);
      expect(await xl('save', name, file)).toEqual(DONE(`Saving to ${file}\n`));
      expect((await xl('restore', file)).code).toBe(0);
      expect((await goesOn(name)).suspended).toBe(3);
    });

test('a guest that does not take what it is asked for is saved without its help, and xl says so', async () => {
  const name = 'deaf';
  const file = join(root, name);
  await boot(name);
  const domid = (await xl('domid', name)).console.trim();
  const store = new XenstoreClient(await openXenstored(root));
  const node = `/local/domain/${domid}/control/shutdown`;
  // What has been changed since it was made goes with it.
  expect((await xl('sched-credit2', '-d', name, '-w', '300', '-c', '90')).code).toBe(0);
  expect((await xl('vcpu-pin', name, '0', '-', '0')).code).toBe(0);
  // Linux takes what it knows only.
  await store.write(node, 'nonsense');
  expect(await xl('save', name, file)).toEqual(
    DONE(
      `Saving to ${file}\nxl: Domain ${domid}: saved without the guest's help, so its clock will be late: it has not taken an earlier request: nonsense\n`,
    ),
  );
  expect((await xl('restore', file)).code).toBe(0);
  expect((await goesOn(name)).suspended).toBe(0);
  expect((await xl('sched-credit2', '-d', name)).console).toMatch(/ 300 +90\n$/);
  expect((await xl('vcpu-list', name)).console).toMatch(/ \/ 0\n$/);
  expect(await store.read(node)).toBe('nonsense');
  store.close();
});

test('a domain whose process is killed when its file is there lives in the file only', async () => {
  const name = 'once';
  const file = join(root, name);
  await boot(name, 'on_crash="restart"');
  const domid = Number((await xl('domid', name)).console);
  const saving = xl('save', name, file);
  while (!existsSync(file)) await setImmediate();
  await killDomain(name, root);
  const { code, log } = await saving;
  expect(log).toMatch(
    /^Saving to .*\n(libxl: error: Domain \d+: its process has ended meanwhile; .* is whole, and the domain is in it\n)?$/,
  );
  expect(code).toBe(0);
  // The daemon has done what there is to do.
  while (domidsIn(root).includes(domid)) await sleep(10);
  expect((await xl('list', name)).log).toBe(`${name} is an invalid domain identifier (rc=-6)\n`);
  expect((await xl('restore', file)).code).toBe(0);
  expect((await goesOn(name)).suspended).toBe(1);
});
