/** Two guests under one daemon, and what one does with them every day: xl's commands, with processes killed in between. */

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { pidIn } from '../../src/host/state-dir.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { endDomains, killDomain } from './domains.ts';
import { type GuestRun, xl as runXl } from './guest.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 90_000;
const root = mkdtempSync(join(tmpdir(), 'domus-xl-'));
const env = { ...process.env, DOMUS_STATE_DIR: root };
afterAll(async () => {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const xl = (...words: string[]): Promise<GuestRun> => runXl(words, LIMIT_MS, env);

/** Name, id and state of all but domain 0, as `xl list` has them. */
async function listed(): Promise<string[]> {
  const { code, console } = await xl('list');
  expect(code).toBe(0);
  const [header, host, ...rows] = console.trimEnd().split('\n');
  expect(header).toBe('Name                                        ID   Mem VCPUs\tState\tTime(s)');
  expect(host).toMatch(/^Domain-0 {37}0 +\d+ +\d+ {5}r----- +\d+\.\d$/);
  return rows.map((row) => {
    const [name, id, , , state] = row.split(/\s+/);
    return `${name} ${id} ${state}`;
  });
}

/** Types at a console until the text shows, then leaves by ending xl. */
async function atConsole(name: string, typed: string, text: RegExp): Promise<string> {
  const child = spawn(process.execPath, [XL, 'console', name], { stdio: ['pipe', 'pipe', 'inherit'], env });
  const ended = new Promise((resolve) => child.once('close', resolve));
  let shown = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    shown += chunk.replaceAll('\r', '');
  });
  child.stdin.write(typed);
  const endMs = performance.now() + LIMIT_MS;
  while (!text.test(shown) && performance.now() < endMs && child.exitCode === null) await sleep(50);
  child.kill('SIGTERM');
  await ended;
  expect(shown).toMatch(text);
  return shown;
}

async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const endMs = performance.now() + LIMIT_MS;
  while (!(await isSo())) {
    if (performance.now() > endMs) throw new Error(`not in ${LIMIT_MS / 1000} s: ${what}`);
    await sleep(200);
  }
}

function killDaemon(): void {
  const pid = pidIn(root);
  if (pid === null) throw new Error('no daemon');
  process.kill(pid, 'SIGKILL');
}

test('two guests are created, looked at, paused, shut down, destroyed and killed', async () => {
  const { config } = await buildGuest();
  const [one, two] = await Promise.all([
    xl('create', '-q', config, 'name="one"'),
    xl('create', '-q', config, 'name="two"'),
  ]);
  expect([one, two]).toEqual([
    { code: 0, console: '', log: '' },
    { code: 0, console: '', log: '' },
  ]);
  expect((await listed()).map((row) => row.replace(/ \S+$/, '').replace(/ \d$/, '')).sort()).toEqual(['one', 'two']);
  const taken = await xl('create', '-q', config, 'name="one"');
  expect(taken).toEqual({ code: 3, console: '', log: 'libxl: error: Domain with name "one" already exists.\n' });

  const idOf = async (name: string): Promise<string> => (await xl('domid', name)).console.trim();
  const [first, second] = [await idOf('one'), await idOf('two')];

  // Who comes later sees what was before, and each console is its own guest's.
  const shown = await atConsole('one', 'echo "I am $((20 + 1))"\n', /^I am 21$/m);
  expect(shown).toMatch(/Linux version /);
  expect(readFileSync(join(root, 'log', 'console-one.log'), 'utf8')).toContain('I am 21');
  await atConsole('two', 'echo "I am $((20 + 2))"\n', /^I am 22$/m);
  expect(readFileSync(join(root, 'log', 'console-two.log'), 'utf8')).not.toContain('I am 21');

  // Devices come and go, and the guest sees them.
  const silent = { code: 0, console: '', log: '' };
  const image = join(root, 'image');
  writeFileSync(image, new Uint8Array(1 << 20));
  expect(await xl('block-attach', 'one', `file:${image},xvdb,r`)).toEqual(silent);
  expect(await xl('network-attach', 'one', 'bridge=xl0', 'mac=00:16:3e:44:55:66')).toEqual(silent);
  await atConsole('one', 'while ! [ -e /sys/block/xvdb ]; do sleep 0.1; done; echo "has $((20 + 4))"\n', /^has 24$/m);
  const seen = async (command: string): Promise<string> => (await xl(command, 'one')).console.replaceAll(/ +/g, ' ');
  await until('xvdb is connected', async () =>
    new RegExp(`^51728 0 ${first} 4 \\d+ \\d+ /local/domain/0/backend/(?:vbd|qdisk)/${first}/51728 ?$`, 'm').test(
      await seen('block-list'),
    ),
  );
  await until('the interface is connected', async () =>
    new RegExp(`^0 0 00:16:3e:44:55:66 0 4 -1 \\d+/\\d+ /local/domain/0/backend/vif/${first}/0 ?$`, 'm').test(
      await seen('network-list'),
    ),
  );
  expect(await xl('sysrq', 'one', 'h')).toEqual(silent);
  expect(await xl('block-detach', 'one', 'xvdb')).toEqual(silent);
  expect(await xl('block-detach', 'one', 'xvdb')).toEqual({
    ...silent,
    code: 1,
    log: 'Error: Device xvdb not connected.\n',
  });
  expect(await xl('network-detach', 'one', '0')).toEqual(silent);
  await atConsole('one', 'while [ -e /sys/block/xvdb ]; do sleep 0.1; done; echo "lost $((20 + 5))"\n', /^lost 25$/m);

  expect(await xl('pause', 'one')).toEqual({ code: 0, console: '', log: '' });
  expect(await listed()).toContainEqual(expect.stringMatching(new RegExp(`^one ${first} -[b-]p---$`)));
  const before = (await xl('vcpu-list', 'one')).console;
  await sleep(1500);
  expect((await xl('vcpu-list', 'one')).console).toBe(before);
  expect((await xl('unpause', 'one')).code).toBe(0);
  await atConsole('one', 'echo "on $((20 + 3))"\n', /^on 23$/m);

  // The daemon may go at any time.
  killDaemon();
  expect((await listed()).length).toBe(2);
  await atConsole('two', 'echo "on $((20 + 4))"\n', /^on 24$/m);

  // A reboot gives it a new domid, the same console, and the config that it has been given meanwhile.
  const updated = await xl('config-update', 'two', config, 'name="two"', 'memory=192');
  expect(updated).toMatchObject({ code: 0, console: '', log: expect.stringMatching(/^WARNING: .*\nParsing config/) });
  expect((await xl('trigger', 'two', 'nmi')).code).toBe(0);
  expect((await xl('trigger', 'two', 'nmi', '7')).code).toBe(1);
  await atConsole('two', 'echo rebooting; reboot -f\n', /^rebooting$/m);
  await until('two has a new domid', async () => ![second, ''].includes(await idOf('two')));
  const third = await idOf('two');
  expect((await xl('list', 'two')).console).toMatch(/^two +\d+ +192 /m);

  const down = await xl('shutdown', '-w', 'one');
  expect(down).toEqual({
    code: 0,
    console: '',
    log: `Shutting down domain ${first}\nWaiting for 1 domains\nDomain ${first} has been shut down, reason code 0\n`,
  });
  await until('one is gone', async () => (await listed()).length === 1);
  expect(readFileSync(join(root, 'log', 'xl-one.log'), 'utf8')).toMatch(
    new RegExp(
      `^Waiting for domain one \\(domid ${first}\\) to die \\[pid \\d+\\]\\n` +
        `Domain ${first} has shut down, reason code 0 0x0\\nAction for shutdown reason code 0 is destroy\\n` +
        `Domain ${first} needs to be cleaned up: destroying the domain\\nDone. Exiting now\\n$`,
    ),
  );

  expect(await xl('destroy', 'two')).toEqual({ code: 0, console: '', log: '' });
  expect(await listed()).toEqual([]);
  expect(Number(third)).toBeGreaterThan(Number(second));

  // -e: it stays after its end until it is destroyed.
  const run = Buffer.from('echo ran').toString('base64');
  const kept = await xl('create', '-qe', config, 'name="kept"', `cmdline="console=hvc0 domus.run=${run}"`);
  expect(kept.code).toBe(0);
  for (const onCrash of ['destroy', 'restart', 'preserve'])
    expect((await xl('create', '-qp', config, `name="victim-${onCrash}"`, `on_crash="${onCrash}"`)).code).toBe(0);
  for (const onCrash of ['destroy', 'restart', 'preserve'])
    expect(await listed()).toContainEqual(expect.stringMatching(new RegExp(`^victim-${onCrash} \\d+ --p---$`)));
  const fourth = Number(await idOf('victim-restart'));
  await until('kept has shut down', async () => (await listed()).some((row) => /^kept \d+ ---s--$/.test(row)));
  for (const onCrash of ['destroy', 'restart', 'preserve']) await killDomain(`victim-${onCrash}`, root);
  await until('domusd takes away what was killed', async () => (await idOf('victim-destroy')) === '');
  await until('domusd starts again what was killed', async () => Number(await idOf('victim-restart')) > fourth);
  expect(await listed()).toContainEqual(expect.stringMatching(/^victim-preserve \d+ ---sc-$/));
  await atConsole('victim-restart', 'echo "on $((20 + 5))"\n', /^on 25$/m);
  for (const name of ['kept', 'victim-restart', 'victim-preserve'])
    expect(await xl('destroy', name)).toEqual({ code: 0, console: '', log: '' });
  expect(await listed()).toEqual([]);
});
