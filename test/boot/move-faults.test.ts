/**
 * A guest that counts moves between two state folders of this machine, and something that has to do with it is killed at a moment by chance. Afterwards it lives on one side,
 * on which it has gone on or, if it was its own process that died, does what on_crash says; or it stands still where docs/migration.md says so. What
 * `xl migrate` says must be what has happened. `DOMUS_SEED=N` gives the same moments again, as far as the machine does.
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { domidsIn, pidOf } from '../../src/host/domain-client.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { createKeys, trust } from '../../src/host/keys/host-keys.ts';
import { domainLogPath, pidIn } from '../../src/host/state-dir.ts';
import { heartbeat } from '../guests/heartbeat.ts';
import { endDomains } from './domains.ts';
import { freePort } from './free-port.ts';
import { xl as runXl } from './guest.ts';
import { untilListening } from './listening.ts';
import { randomOf } from './random.ts';
import { childrenOf, doorOf, whereItIs } from './where-it-is.ts';

const LIMIT_MS = 60_000;
const ROUNDS_OF_EACH = 2;
const NAME = 'mover';
const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'domus-faults-'));
const roots = ['a', 'b'].map((name) => join(folder, name));
const ports = [await freePort(), await freePort()];
for (const [i, root] of roots.entries()) {
  mkdirSync(root);
  writeFileSync(join(root, 'xl.conf'), `migration_listen="127.0.0.1:${ports[i]}"\n`);
}
const certificates = roots.map((root) => createKeys(root, ['127.0.0.1'], 1, false).toString());
for (const root of roots) trust(root, certificates.join('\n'), 'both');
afterAll(async () => {
  for (const root of roots) {
    await endDomains(root);
    await stopDaemon(root);
  }
  rmSync(folder, { recursive: true });
});

const seed = Number(process.env['DOMUS_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
const random = randomOf(seed);
const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)];

async function xl(root: string, ...words: string[]): Promise<string> {
  const { code, console: out, log } = await runXl(words, LIMIT_MS, { ...process.env, DOMUS_STATE_DIR: root });
  if (code !== 0) throw new Error(`xl ${words.join(' ')}: ${code ?? 'killed'}: ${log}`);
  return out;
}

const VICTIMS = ['source', 'source daemon', 'target', 'target daemon', 'xl migrate', 'receiver'] as const;
type Victim = (typeof VICTIMS)[number];

/** What xl says in this order: moments at which something may die. */
const LINES = [
  'Ready to receive domain',
  'Parsing config from',
  'Transfer complete',
  'Target has acknowledged transfer',
  'Giving target permission',
  'Got permission',
  'Domain started',
  'Target reports successful startup',
] as const;

/** Where the guest is, by what `xl migrate` has said last of it. */
const OUTCOMES: readonly {
  readonly text: RegExp;
  readonly code: number;
  readonly is: 'there' | 'here' | 'nobody knows';
}[] = [
  { text: /^Migration successful\.$/m, code: 0, is: 'there' },
  { text: /Domain state is now undefined !/, code: 1, is: 'nobody knows' },
  { text: /the target had permission to start: look there$/m, code: 1, is: 'nobody knows' },
  { text: /the target had no permission to start, and throws its copy away$/m, code: 1, is: 'here' },
  { text: /^Migration failed, (?:resuming|failed to suspend) at sender\.$/m, code: 1, is: 'here' },
  { text: /^Migration failed due to problems at target\.$/m, code: 1, is: 'here' },
  {
    text: /^libxl: error: .*(?:reading banner from migration receiver|ECONNREFUSED|connection was closed|ECONNRESET)/m,
    code: 1,
    is: 'here',
  },
];

const logPaths = roots.map((root) => domainLogPath(root, 'console', NAME));
const sizes = (): number[] => logPaths.map((path) => (existsSync(path) ? statSync(path).size : 0));
/** What it has counted at the one side and then at the other, since these sizes. */
function beatsSince(from: readonly number[], sides: readonly number[]): number[] {
  const text = sides.map((side) =>
    existsSync(logPaths[side]) ? readFileSync(logPaths[side]).subarray(from[side]) : '',
  );
  return [...text.join('').matchAll(/^([0-9a-f]{16})\r?$/gm)].map((match) => Number.parseInt(match[1], 16));
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const endMs = performance.now() + LIMIT_MS;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`in vain: ${what}`);
    await sleep(5);
  }
}

interface Migration {
  readonly code: number | null;
  readonly log: string;
  readonly ms: number;
}

/** Moves it, and has `kill` called at that moment: after so many ms, or so many behind a line of xl's. */
async function migrate(
  from: number,
  byTls: boolean,
  moment: { readonly line: string | null; readonly ms: number },
  kill: (xlPid: number, hasEnded: () => boolean) => Promise<void>,
): Promise<Migration> {
  const to = 1 - from;
  const command = `DOMUS_STATE_DIR=${roots[to]} exec ${process.execPath} ${XL} migrate-receive`;
  const way = byTls ? [NAME, `tls:127.0.0.1:${ports[to]}`] : ['-s', '', NAME, command];
  const startMs = performance.now();
  const child = spawn(process.execPath, [XL, 'migrate', ...way], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, DOMUS_STATE_DIR: roots[from] },
  });
  const ended = once(child, 'exit');
  const hasEnded = (): boolean => child.exitCode !== null || child.signalCode !== null;
  let log = '';
  const said = Promise.withResolvers<void>();
  if (moment.line === null) said.resolve();
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    log += text;
    if (moment.line !== null && log.includes(moment.line)) said.resolve();
  });
  await Promise.race([said.promise, ended]);
  if (moment.ms > 0) await sleep(moment.ms);
  await kill(child.pid ?? NaN, hasEnded);
  await ended;
  const ms = performance.now() - startMs;
  // What it has started may hold its standard error for some time.
  await sleep(50);
  return { code: child.exitCode, log, ms };
}

/** Null: there is none. */
function victimPid(victim: Victim, from: number, byTls: boolean, source: number, xlPid: number): number | null {
  const [here, there] = [roots[from], roots[1 - from]];
  if (victim === 'source') return source;
  if (victim === 'source daemon') return pidIn(here);
  if (victim === 'target daemon') return pidIn(there);
  if (victim === 'xl migrate') return xlPid;
  if (victim === 'receiver') return byTls ? doorOf(there) : (childrenOf(xlPid)[0] ?? null);
  const [domid] = domidsIn(there);
  return domid === undefined ? null : pidOf(there, domid);
}

function kill(pid: number): boolean {
  try {
    return process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
    return false;
  }
}

test('whatever is killed when, a guest lives on one side, and xl says on which', async () => {
  console.log(`DOMUS_SEED=${seed}`);
  const kernel = join(folder, 'heartbeat');
  const disk = join(folder, 'disk.img');
  writeFileSync(kernel, heartbeat().elf());
  writeFileSync(disk, new Uint8Array(1 << 20));
  const config = join(folder, 'mover.cfg');
  writeFileSync(
    config,
    `kernel="${kernel}"\nmemory=16\nextra="earlyprintk=xen"\non_crash="restart"\nengine="wasm"\ndisk=["${disk},raw,xvda,w"]\n`,
  );
  await xl(roots[0], 'create', '-q', config, `name="${NAME}"`);
  await xl(roots[1], 'list');
  let here = 0;
  /** How long a migration takes that nothing happens to. */
  let usualMs = 0;
  const undisturbed = await migrate(0, false, { line: null, ms: 0 }, async () => {});
  expect(undisturbed.code, undisturbed.log).toBe(0);
  usualMs = undisturbed.ms;
  here = 1;

  for (const victim of VICTIMS.flatMap((one) => new Array<Victim>(ROUNDS_OF_EACH).fill(one))) {
    const from = here;
    const to = 1 - from;
    const byTls = random() < 0.5;
    const moment =
      random() < 0.7
        ? { line: pick(LINES), ms: Math.floor(random() * 4) }
        : { line: null, ms: Math.floor(random() * usualMs) };
    const what = `${victim}, ${byTls ? 'by TLS' : 'by a command'}, ${moment.ms} ms after ${moment.line ?? 'the start'}`;
    for (const port of ports) await untilListening(port, LIMIT_MS);
    const before = sizes();
    await until('it counts', () => beatsSince(before, [from]).length > 1);
    const [domid] = domidsIn(roots[from]);
    const source = pidOf(roots[from], domid) ?? NaN;
    let wasKilled = false;
    const { code, log } = await migrate(from, byTls, moment, async (xlPid, hasEnded) => {
      let pid: number | null = null;
      // The target's process is not there from the beginning.
      while (pid === null && !hasEnded()) {
        pid = victimPid(victim, from, byTls, source, xlPid);
        if (pid === null) await sleep(1);
      }
      wasKilled = pid !== null && !(victim === 'xl migrate' && hasEnded()) && kill(pid);
    });
    const { at, how } = await whereItIs({ roots, name: NAME, xl, limitMs: LIMIT_MS }, from).catch((error: Error) => {
      throw new Error(`${what}: ${error.message}\n${log}`);
    });
    console.log(
      `${what}: ${wasKilled ? '' : 'too late, '}${at === from ? 'stayed' : 'moved'}${how === null ? '' : `, after xl ${how}`}`,
    );

    // It goes on there, without a gap and nowhere else; or from the beginning, if it was killed itself.
    const since = sizes();
    await until(`${what}: it counts`, () => beatsSince(since, [at]).length > 1);
    const beats = beatsSince(before, at === from ? [from] : [from, to]);
    const isWhole = beats.every((beat, i) => beat === beats[0] + i);
    const crashed = wasKilled && ((victim === 'source' && at === from) || (victim === 'target' && at === to));
    expect({ what, isWhole: isWhole || crashed, beats: isWhole || crashed ? [] : beats, log }).toEqual({
      what,
      isWhole: true,
      beats: [],
      log,
    });
    if (crashed) expect(beatsSince(since, [at])[0]).toBeLessThan(beats[0] + 1000);
    if (at === from) expect({ what, elsewhere: beatsSince(before, [to]) }).toEqual({ what, elsewhere: [] });

    // What is left to the user is what docs/migration.md says, and xl says the truth.
    if (how !== null)
      expect(['target', 'xl migrate', 'receiver'], `${what}: after xl ${how}\n${log}`).toContain(victim);
    if (!(wasKilled && victim === 'xl migrate')) {
      const outcome = OUTCOMES.find(({ text }) => text.test(log));
      expect(outcome, `${what}: code ${code}, ${at === from ? 'stayed' : 'moved'}\n${log}`).toBeDefined();
      const is = how !== null ? 'nobody knows' : at === from ? 'here' : 'there';
      expect({ what, code, is, log }).toEqual({ what, code: outcome?.code, is: outcome?.is, log });
    }
    here = at;
  }
});
