/** A guest that gets another name, another config and other disks while it moves: it has them where it goes on, and when it is started again there. */

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { domidsIn, pidOf } from '../../src/host/domain-client.ts';
import { readRecord } from '../../src/host/domain-record.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { ACCEPTED } from '../../src/host/migration-protocol.ts';
import { heartbeat } from '../guests/heartbeat.ts';
import { consoleSays, endDomains } from './domains.ts';

const LIMIT_MS = 60_000;
const program = (name: string): string => fileURLToPath(new URL(`../../src/cli/${name}/main.ts`, import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'domus-changes-'));
const [here, there] = ['a', 'b'].map((name) => join(folder, name));
for (const root of [here, there]) mkdirSync(root);
afterAll(async () => {
  for (const root of [here, there]) {
    await endDomains(root);
    await stopDaemon(root);
  }
  rmSync(folder, { recursive: true });
});

/** What it writes, to both. Rejects unless it succeeds. */
function run(root: string, name: 'xl' | 'domus', words: readonly string[]): Promise<string> {
  const child = spawn(process.execPath, [program(name), ...words], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, DOMUS_STATE_DIR: root },
  });
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (more: string) => {
      text += more;
    });
  return new Promise((resolve, reject) => {
    child.on('close', (code) => {
      if (code === 0) resolve(text);
      else reject(new Error(`${name} ${words.join(' ')}: ${code}: ${text}`));
    });
  });
}

test('a name, a config and disks that change while a guest moves go with it', async () => {
  const kernel = join(folder, 'heartbeat');
  const disk = join(folder, 'disk.img');
  writeFileSync(kernel, heartbeat().elf());
  writeFileSync(disk, new Uint8Array(1 << 20));
  const settings = `kernel="${kernel}"\nmemory=16\nextra="earlyprintk=xen"\nengine="wasm"\ndisk=["${disk},raw,xvda,w"]\n`;
  const [config, updated] = ['first.cfg', 'updated.cfg'].map((name) => join(folder, name));
  writeFileSync(config, `name="first"\n${settings}`);
  writeFileSync(updated, `name="first"\non_crash="restart"\n${settings}`);
  await run(here, 'xl', ['create', '-q', config]);
  await consoleSays(here, 'first', /^[0-9a-f]{16}$/m, LIMIT_MS);

  // The source waits in the middle of its rounds until the answers come.
  const [held, goOn] = ['held', 'go-on'].map((name) => join(folder, name));
  const answers = `while IFS= read -r line; do echo "$line"; [ "$line" = '${ACCEPTED}' ] && break; done; : >${held}; until [ -e ${goOn} ]; do sleep 0.05; done; exec cat`;
  const receive = `DOMUS_STATE_DIR=${there} ${process.execPath} ${program('xl')} migrate-receive | { ${answers}; }`;
  const moving = run(here, 'xl', ['migrate', '-s', '', 'first', receive]);
  await Promise.race([moving, until(held)]);
  await run(here, 'xl', ['rename', 'first', 'second']);
  await run(here, 'xl', ['config-update', 'second', updated]);
  await run(here, 'domus', ['snapshot', 'second', 's1']);
  writeFileSync(goOn, '');
  expect(await moving).toMatch(/^Migration successful\.$/m);

  const names = async (): Promise<string[]> =>
    (await run(there, 'xl', ['list']))
      .split('\n')
      .slice(2, -1)
      .map((line) => line.split(' ')[0]);
  expect(await names()).toEqual(['second']);
  const [domid] = domidsIn(there);
  const record = readRecord(there, domid);
  expect(record?.config).toMatchObject({ name: 'second', onCrash: 'restart' });
  const [target] = record?.config.disks.map((one) => one.target) ?? [];
  expect(target).not.toBe(disk);

  // What it is started again from is good for that.
  process.kill(pidOf(there, domid) ?? NaN, 'SIGKILL');
  const endMs = performance.now() + LIMIT_MS;
  while (domidsIn(there).every((one) => one === domid)) {
    if (performance.now() > endMs) throw new Error('it is not started again');
    await sleep(50);
  }
  await consoleSays(there, 'second', /^0000000000000000$/m, LIMIT_MS);
  expect(await names()).toEqual(['second']);
});

async function until(path: string): Promise<void> {
  const endMs = performance.now() + LIMIT_MS;
  while (!existsSync(path)) {
    if (performance.now() > endMs) throw new Error(`${path} does not come`);
    await sleep(20);
  }
}
