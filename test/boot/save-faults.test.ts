/**
 * kill -9 of each process at moments of a save and a restore, and disks without room: the guest is in its file or runs, never both and never
 * neither, and what is said is so. It counts on its console, so it tells whether it has gone on where it was.
 */

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { domidsIn, processIdOf } from '../../src/host/domain-client.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { pidIn } from '../../src/host/state-dir.ts';
import { heartbeat } from '../guests/heartbeat.ts';
import { processesOf } from './chaos.ts';
import { consoleLog, endDomains } from './domains.ts';
import { type GuestRun, xl as runXl, startXl } from './guest.ts';
import { randomOf } from './random.ts';

const LIMIT_MS = 60_000;
const SEED = 20_251_122;
const NAME = 'counts';
const root = mkdtempSync(join(tmpdir(), 'domus-faults-'));
const env = { ...process.env, DOMUS_STATE_DIR: root, DOMUS_ENGINE: 'wasm' };
const config = join(root, 'counts.cfg');
const file = join(root, 'counts.save');

beforeAll(() => {
  const kernel = join(root, 'heartbeat');
  writeFileSync(kernel, heartbeat().elf());
  // So that there is something to write.
  const ramdisk = join(root, 'ramdisk');
  writeFileSync(ramdisk, randomBytes(24 << 20));
  const lines = [
    `name="${NAME}"`,
    `kernel="${kernel}"`,
    `ramdisk="${ramdisk}"`,
    'memory=48',
    'extra="earlyprintk=xen"',
  ];
  writeFileSync(config, [...lines, 'on_crash="restart"', ''].join('\n'));
});

afterEach(() => endDomains(root));

afterAll(async () => {
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const xl = (...words: string[]): Promise<GuestRun> => runXl(words, LIMIT_MS, env);

/** What the guest has counted, from a place of its log on. */
function beats(from = 0): number[] {
  const lines = consoleLog(root, NAME)
    .slice(from)
    .matchAll(/^([0-9a-f]{16})$/gm);
  return [...lines].map(([, digits]) => Number.parseInt(digits, 16));
}

const logEnd = (): number => consoleLog(root, NAME).length;

async function until<T>(what: string, look: () => T | null | Promise<T | null>): Promise<T> {
  const endMs = performance.now() + LIMIT_MS;
  for (;;) {
    const found = await look();
    if (found !== null) return found;
    if (performance.now() > endMs) throw new Error(`it never comes to this: ${what}`);
    await sleep(20);
  }
}

/** Waits until the guest has counted three times from a place of its log on; what it has. */
const untilBeats = (from: number): Promise<number[]> =>
  until('the guest counts', () => (beats(from).length < 3 ? null : beats(from)));

interface Running {
  readonly domid: number;
  readonly pid: number;
}

/** The domain whose process lives. */
function running(): Running | null {
  const alive = new Set(processesOf(root));
  for (const domid of domidsIn(root)) {
    const pid = processIdOf(root, domid)?.pid;
    if (pid !== undefined && alive.has(pid)) return { domid, pid };
  }
  return null;
}

/** Looks whether the guest is in the file (true), or runs and goes on running (false); null: neither, or both. */
function settled(): () => boolean | null {
  let from = logEnd();
  return () => {
    const lives = running() !== null;
    if (lives === existsSync(file)) from = logEnd();
    else if (lives && beats(from).length >= 3) return false;
    else if (!lives && domidsIn(root).length === 0) return true;
    return null;
  };
}

const parts = (): string[] => readdirSync(root).filter((name) => name.endsWith('.part'));

type Victim = 'xl' | 'domain' | 'daemon';

/** Kills one process `delayMs` after a command has begun, or after what `since` says has happened, unless the command was faster. */
async function killDuring(
  words: readonly string[],
  victim: Victim,
  delayMs: number,
  since: () => boolean,
): Promise<GuestRun & { readonly killed: boolean }> {
  const { child, done } = startXl(words, env);
  let hasEnded = false;
  const ended = done.then((run) => {
    hasEnded = true;
    return run;
  });
  while (!since() && !hasEnded) await sleep(1);
  await sleep(delayMs);
  const pid = victim === 'xl' ? child.pid : victim === 'daemon' ? pidIn(root) : processesOf(root)[0];
  let killed = false;
  try {
    if (!hasEnded && typeof pid === 'number') killed = process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
  return { ...(await ended), killed };
}

/** How long a command takes when nothing happens to it, and from what moment on it was at work. */
async function timeOf(words: readonly string[], since: () => boolean): Promise<{ all: number; work: number }> {
  const beganMs = performance.now();
  const { done } = startXl(words, env);
  let sinceMs = 0;
  void done.then(() => {
    sinceMs ||= performance.now();
  });
  while (!since() && sinceMs === 0) await sleep(1);
  sinceMs ||= performance.now();
  const { code, log } = await done;
  expect({ code, log }).toMatchObject({ code: 0 });
  return { all: performance.now() - beganMs, work: performance.now() - sinceMs };
}

/** Goes on where it was. */
async function restores(savedAt: number): Promise<void> {
  const from = logEnd();
  const { code, log } = await xl('restore', file);
  expect({ code, log }).toEqual({ code: 0, log: expect.not.stringContaining('error') });
  const counted = await untilBeats(from);
  expect(counted).toEqual(counted.map((_, i) => savedAt + 1 + i));
}

test('each process is killed at moments of a save: the guest runs, or is in the file', async () => {
  const random = randomOf(SEED);
  expect((await xl('create', '-q', config, `name="${NAME}"`)).log).toBe('');
  await untilBeats(0);
  const isWriting = (): boolean => parts().length > 0 || existsSync(file);
  const { all, work } = await timeOf(['save', NAME, file], isWriting);
  await restores(beats().at(-1)!);
  const moments = [
    { from: 'the start', since: () => true, ms: all },
    { from: 'the first byte', since: isWriting, ms: work },
    { from: 'the whole file', since: () => existsSync(file), ms: 20 },
  ];
  for (const victim of ['xl', 'daemon', 'domain'] as const)
    for (const { from, since, ms } of moments) {
      rmSync(file, { force: true });
      const mark = logEnd();
      const before = running();
      const last = beats().at(-1)!;
      const delayMs = random() * ms;
      const what = `${victim}, ${delayMs.toFixed(1)} ms from ${from}`;
      const { code, log, killed } = await killDuring(['save', NAME, file], victim, delayMs, since);

      const isSaved = await until(`${what}: the guest runs, or is in the file`, settled());
      if (code === 0) expect(isSaved, what).toBe(true);
      if (code === 1) expect(log, what).toMatch(/\nlibxl: error: .+\n/);
      if (code === 1 && victim === 'daemon') expect(isSaved, what).toBe(false);
      const counted = beats(mark);
      if (victim === 'domain' && killed && !isSaved) {
        // As after any crash, since its on_crash is restart.
        expect(counted, what).toContain(0);
        for (const name of parts()) rmSync(join(root, name));
      } else {
        expect(counted, what).toEqual(counted.map((_, i) => last + 1 + i));
        if (!isSaved) expect(running(), what).toEqual(before);
      }
      expect(parts(), what).toEqual([]);
      if (isSaved) await restores(beats().at(-1)!);
    }
});

test('each process is killed at moments of a restore: the guest runs, or nothing is left but the file', async () => {
  const random = randomOf(SEED + 1);
  rmSync(file, { force: true });
  expect((await xl('create', '-q', config, `name="${NAME}"`)).log).toBe('');
  await untilBeats(logEnd());
  expect((await xl('save', NAME, file)).code).toBe(0);
  const savedAt = beats().at(-1)!;
  const isMade = (): boolean => domidsIn(root).length > 0;
  const { all, work } = await timeOf(['restore', file], isMade);
  expect((await xl('destroy', NAME)).code).toBe(0);
  const moments = [
    { from: 'the start', since: () => true, ms: all },
    { from: 'when there is a domain', since: isMade, ms: work },
    { from: 'when there is a domain', since: isMade, ms: work / 4 },
  ];
  for (const victim of ['xl', 'daemon', 'domain'] as const)
    for (const { from, since, ms } of moments) {
      const mark = logEnd();
      const delayMs = random() * ms;
      const what = `${victim}, ${delayMs.toFixed(1)} ms from ${from}`;
      const { code, log, killed } = await killDuring(['restore', file], victim, delayMs, since);

      const lives = await until(`${what}: the guest runs, or nothing is left`, () => {
        if (running() !== null) return beats(mark).length < 3 ? null : true;
        return domidsIn(root).length > 0 || processesOf(root).length > 0 ? null : false;
      });
      if (code === 0) expect(lives, what).toBe(true);
      if (code === 1) {
        expect(lives, what).toBe(false);
        expect(log, what).toMatch(/error: .+\n/);
      }
      const { code: found } = await xl('list', NAME);
      expect(found, what).toBe(lives ? 0 : 1);
      const counted = beats(mark);
      if (victim === 'domain' && counted.includes(0)) expect(killed, what).toBe(true);
      else expect(counted, what).toEqual(counted.map((_, i) => savedAt + 1 + i));
      expect(log, what).not.toContain('already exists');
      if (!lives) await restores(savedAt);
      expect((await xl('destroy', NAME)).code, what).toBe(0);
    }
  await restores(savedAt);
});

test('a disk without room: one line, no part of a file, and the guest goes on', async (context) => {
  const small = join(root, 'small');
  mkdirSync(small);
  // Of a namespace of the domain's process, so nobody has to be root for it.
  const script = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"';
  const within = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', script, small];
  const [command, ...words] = [...within, 'true'];
  const isAllowed = spawnSync(command, words).status === 0;
  const mark = logEnd();
  const { done } = startXl(['create', '-q', config, `name="${NAME}"`], env, isAllowed ? within : []);
  expect(await done).toMatchObject({ code: 0, log: '' });
  await untilBeats(mark);
  const { domid, pid } = running()!;
  const said = 'ENOSPC: no space left on device, write';
  for (const path of isAllowed ? [join(small, 'counts.save'), '/dev/full'] : ['/dev/full']) {
    expect(await xl('save', NAME, path)).toEqual({
      ...{ code: 1, console: '' },
      log: `Saving to ${path}\nlibxl: error: Domain ${domid}:${said}\nFailed to save domain, resuming domain\n`,
    });
    const dumped = `libxl: error: Domain ${domid}:Core dumping domain to ${path}: Domain ${domid}:${said}`;
    expect(await xl('dump-core', NAME, path)).toEqual({
      ...{ code: 1, console: '' },
      log: `${dumped}\ncore dump failed (rc=-3)\n`,
    });
    await untilBeats(logEnd());
  }
  if (isAllowed) expect(readdirSync(`/proc/${pid}/root${small}`)).toEqual([]);
  const counted = beats(mark);
  expect(counted).toEqual(counted.map((_, i) => i));
  if (!isAllowed) context.skip('a file that fills a disk: namespaces are not allowed here; /dev/full was');
});
