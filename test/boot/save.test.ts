/**
 * Guests that are saved in the middle of their work and go on in another process: a counter, a writer that checks what it reads back,
 * the gateway pinged; on each engine that this machine has, and from one to the other where the CPU allows it.
 */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { openSaved } from '../../src/host/restore-domain.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { KEEPS_TO_BOTH } from './both-engines.ts';
import { checkedRounds } from './checked-rounds.ts';
import { endDomains, killDomain } from './domains.ts';
import { type GuestRun, xl as runXl } from './guest.ts';

const LIMIT_MS = 120_000;
const root = mkdtempSync(join(tmpdir(), 'domus-save-'));
afterAll(async () => {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

function xl(words: readonly string[], engine = ''): Promise<GuestRun> {
  return runXl(words, LIMIT_MS, { ...process.env, DOMUS_STATE_DIR: root, DOMUS_ENGINE: engine });
}

const SCRIPT = checkedRounds(' at $(cut -d. -f1 /proc/uptime)');

interface Round {
  readonly number: number;
  readonly line: string;
  readonly uptime: number;
}

/** What the guest has said, all its processes together. */
function rounds(name: string): Round[] {
  const path = join(root, 'log', `console-${name}.log`);
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, 'utf8').replaceAll('\r', '').split('\n').slice(0, -1);
  return lines.flatMap((line) => {
    const match = /^round (\d+) .* at (\d+)$/.exec(line);
    return match === null ? [] : [{ number: Number(match[1]), line, uptime: Number(match[2]) }];
  });
}

async function untilRound(name: string, number: number): Promise<void> {
  const endMs = performance.now() + LIMIT_MS;
  while ((rounds(name).at(-1)?.number ?? 0) < number) {
    if (performance.now() > endMs) throw new Error(`no round ${number}: ${JSON.stringify(rounds(name).at(-1))}`);
    await sleep(100);
  }
}

const last = (name: string): number => rounds(name).at(-1)?.number ?? 0;

/** Nothing is wrong, nothing is missing, and no time has passed unseen. */
function expectUnbroken(name: string): void {
  const all = rounds(name);
  expect(all.filter(({ line }) => !/ same answered trouble=0 /.test(line))).toEqual([]);
  expect(all.map(({ number }) => number)).toEqual(all.map((_, i) => i + 1));
  expect(all.map(({ uptime }) => uptime)).toEqual(all.map(({ uptime }) => uptime).sort((a, b) => a - b));
}

for (const engine of ENGINES)
  test(`a guest on ${engine} is saved, and goes on`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    const { config } = await buildGuest();
    const name = `saved-${engine}`;
    const disk = join(root, `${name}.img`);
    writeFileSync(disk, '');
    truncateSync(disk, 1 << 22);
    const run = Buffer.from(SCRIPT).toString('base64');
    const created = await xl([
      ...['create', '-q', config, `name="${name}"`, `engine="${engine}"`, `vcpus=${engine === 'kvm' ? 2 : 1}`],
      ...[`cmdline="console=hvc0 domus.run=${run}"`, `disk=["${disk},raw,xvda,w"]`, 'vif=["script=vif-nat"]'],
    ]);
    expect(created.log).toBe('');
    await untilRound(name, 2);

    // It goes on as if nothing had been. With the file goes another config.
    const checkpoint = join(root, `${name}.checkpoint`);
    const other = join(root, `${name}.cfg`);
    writeFileSync(other, 'name="x"\nkernel="/x"\ndisk=[\n');
    expect((await xl(['save', '-c', name, checkpoint, other])).code).toBe(1);
    expect(existsSync(checkpoint)).toBe(false);
    writeFileSync(other, '# another one\nname="x"\nkernel="/x"\n');
    expect(await xl(['save', '-c', name, checkpoint, other])).toEqual({
      code: 0,
      console: '',
      log: `Saving to ${checkpoint}\n`,
    });
    const withOther = await openSaved(checkpoint);
    expect(withOther.domain.description.config).toMatch(new RegExp(`^# another one\nname="x"[^]*\nname="${name}"\n`));
    withOther.close();
    expect(await xl(['save', '-c', '-D', name, checkpoint])).toEqual({
      code: 0,
      console: '',
      log: `Saving to ${checkpoint}\n`,
    });
    await untilRound(name, last(name) + 1);
    const domid = (await xl(['domid', name])).console;

    // With its help: it goes on as after a suspend that was cancelled.
    if (engine === 'wasm') {
      expect(await xl(['suspend', name])).toEqual({ code: 0, console: '', log: '' });
      expect((await xl(['list', name])).console).toMatch(/ ---ss- /);
      expect(await xl(['resume', name])).toEqual({ code: 0, console: '', log: '' });
      expect((await xl(['resume', name])).log).toMatch(/^libxl: error: Domain \d+:it is not suspended\n$/);
      await untilRound(name, last(name) + 1);
    }

    const file = join(root, `${name}.save`);
    expect(await xl(['save', name, file])).toEqual({ code: 0, console: '', log: `Saving to ${file}\n` });
    expect((await xl(['list', name])).log).toBe(`${name} is an invalid domain identifier (rc=-6)\n`);
    const before = last(name);

    // What is not whole starts nothing.
    const bytes = readFileSync(file);
    const bad = join(root, `${name}.bad`);
    writeFileSync(bad, bytes.subarray(0, bytes.length - 1));
    expect(await xl(['restore', bad])).toMatchObject({
      code: 1,
      log: expect.stringMatching(/\nlibxl: error: truncated: it ends after \d+ bytes\n$/),
    });
    bytes[bytes.length >> 1] ^= 4;
    writeFileSync(bad, bytes);
    expect(await xl(['restore', bad])).toMatchObject({
      code: 1,
      log: expect.stringMatching(
        /\nlibxl: error: damaged: a part(?:'s header)? does not match its checksum at byte \d+\n$/,
      ),
    });
    expect((await xl(['list', name])).code).toBe(1);

    const restored = await xl(['restore', '-p', file]);
    expect(restored).toEqual({
      code: 0,
      console: '',
      log: `Loading new save file ${file}\nParsing config from <saved>\n`,
    });
    expect((await xl(['domid', name])).console).toBe(domid);
    expect((await xl(['list', name])).console).toMatch(/ -[-b]p--- /);
    expect(await xl(['restore', file])).toMatchObject({
      code: 1,
      log: expect.stringContaining(`libxl: error: Domain with name "${name}" already exists.\n`),
    });
    expect(last(name)).toBe(before);
    await xl(['unpause', name]);
    await untilRound(name, before + 2);
    expectUnbroken(name);

    // A process that is killed leaves no file that is none.
    const never = join(root, `${name}.never`);
    const saving = xl(['save', name, never]);
    const partial = (): boolean => readdirSync(root).some((entry) => entry.startsWith(`${name}.never.`));
    while (!partial() && !existsSync(never)) await sleep(1);
    await killDomain(name, root);
    expect(existsSync(never)).toBe(false);
    expect((await saving).code).toBe(1);
  });

test('a guest goes from one engine to the other where it finds the CPU that it has seen', async (context) => {
  const unusable = whyUnusable('kvm');
  if (unusable !== null) return context.skip(unusable);
  for (const [from, to] of [
    ['wasm', 'kvm'],
    ['kvm', 'wasm'],
  ]) {
    const name = `saved-${from}`;
    const checkpoint = join(root, `${name}.checkpoint`);
    await endDomains(root);
    const { code, log } = await xl(['restore', checkpoint], to);
    if (code === 1) {
      // This machine's CPU is another one.
      expect(log).toMatch(
        new RegExp(`(CPU features that engine ${to} does not have here: \\w|which the guest's kernel does not save)`),
      );
      continue;
    }
    expect(log).not.toContain('error');
    await untilRound(name, last(name) + 1);
    expect(rounds(name).at(-1)?.line).toMatch(/ same answered trouble=0 /);
  }
});

test('a guest whose engine may change goes on by the other one, and back', async (context) => {
  const unusable = whyUnusable('kvm');
  if (unusable !== null) return context.skip(unusable);
  const { config } = await buildGuest();
  const name = 'changes';
  const disk = join(root, `${name}.img`);
  writeFileSync(disk, '');
  truncateSync(disk, 1 << 22);
  const run = Buffer.from(SCRIPT).toString('base64');
  const created = await xl([
    ...['create', '-q', config, `name="${name}"`, 'engine_may_change=1', 'engine="kvm"', 'vcpus=2'],
    ...[
      `cmdline="console=hvc0 ${KEEPS_TO_BOTH} domus.run=${run}"`,
      `disk=["${disk},raw,xvda,w"]`,
      'vif=["script=vif-nat"]',
    ],
  ]);
  expect(created.log).toBe('');
  await untilRound(name, 2);
  const file = join(root, `${name}.save`);
  for (const [from, to] of [
    ['kvm', 'wasm'],
    ['wasm', 'kvm'],
  ]) {
    expect((await xl(['save', name, file])).code).toBe(0);
    const { domain, close } = await openSaved(file);
    close();
    expect(domain.description).toMatchObject({ engine: from, cpu: { xcr0: 7 } });
    expect(await xl(['restore', file], to)).toMatchObject({ code: 0, log: expect.not.stringContaining('error') });
    await untilRound(name, last(name) + 2);
  }
  expectUnbroken(name);
  expect((await xl(['destroy', name])).code).toBe(0);
});
