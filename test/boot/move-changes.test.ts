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

const kernel = join(folder, 'heartbeat');
writeFileSync(kernel, heartbeat().elf());

/** Creates a guest that counts; its settings but for its name, and the file of its disk. */
async function boot(name: string): Promise<{ readonly settings: string; readonly disk: string }> {
  const disk = join(folder, `${name}.img`);
  writeFileSync(disk, new Uint8Array(1 << 20));
  const settings = `kernel="${kernel}"\nmemory=16\nextra="earlyprintk=xen"\nengine="wasm"\ndisk=["${disk},raw,xvda,w"]\n`;
  const config = join(folder, `${name}.cfg`);
  writeFileSync(config, `name="${name}"\n${settings}`);
  await run(here, 'xl', ['create', '-q', config]);
  await consoleSays(here, name, /^[0-9a-f]{16}$/m, LIMIT_MS);
  return { settings, disk };
}

/** Begins to move it; the source waits in the middle of its rounds, for answers that come when `goOn` is called. */
async function beginToMove(name: string): Promise<{ readonly moved: Promise<string>; readonly goOn: () => void }> {
  const [held, free] = ['held', 'free'].map((what) => join(folder, `${name}.${what}`));
  const answers = `while IFS= read -r line; do echo "$line"; [ "$line" = '${ACCEPTED}' ] && break; done; : >${held}; until [ -e ${free} ]; do sleep 0.05; done; exec cat`;
  const receive = `DOMUS_STATE_DIR=${there} ${process.execPath} ${program('xl')} migrate-receive | { ${answers}; }`;
  const moved = run(here, 'xl', ['migrate', '-s', '', name, receive]);
  moved.catch(() => undefined);
  await Promise.race([moved, until(held)]);
  return { moved, goOn: () => writeFileSync(free, '') };
}

const names = async (root: string): Promise<string[]> =>
  (await run(root, 'xl', ['list']))
    .split('\n')
    .slice(2, -1)
    .map((line) => line.split(' ')[0]);

test('a name, a config and disks that change while a guest moves go with it', async () => {
  const { settings, disk } = await boot('first');
  const updated = join(folder, 'updated.cfg');
  writeFileSync(updated, `name="first"\non_crash="restart"\n${settings}`);
  const { moved, goOn } = await beginToMove('first');
  await run(here, 'xl', ['rename', 'first', 'second']);
  await run(here, 'xl', ['config-update', 'second', updated]);
  await run(here, 'domus', ['snapshot', 'second', 's1']);
  goOn();
  expect(await moved).toMatch(/^Migration successful\.$/m);

  expect(await names(there)).toEqual(['second']);
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
  expect(await names(there)).toEqual(['second']);
});

test('of a guest that is destroyed while it moves, xl says so, and it is nowhere', async () => {
  await boot('third');
  const { moved, goOn } = await beginToMove('third');
  await run(here, 'xl', ['destroy', 'third']);
  goOn();
  await expect(moved).rejects.toThrow(
    /libxl: error: Domain (\d+): it has been destroyed\nlibxl: error: Domain \1: it has ended here meanwhile; the target had no permission to start, and throws its copy away\n/,
  );
  expect(await names(here)).toEqual([]);
  for (const endMs = performance.now() + LIMIT_MS; (await names(there)).some((name) => name.startsWith('third')); )
    if (performance.now() > endMs) throw new Error('the target keeps its copy');
});

async function until(path: string): Promise<void> {
  const endMs = performance.now() + LIMIT_MS;
  while (!existsSync(path)) {
    if (performance.now() > endMs) throw new Error(`${path} does not come`);
    await sleep(20);
  }
}
