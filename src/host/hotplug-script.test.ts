import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { runHotplugScript } from './hotplug-script.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-script-'));
afterAll(() => rmSync(folder, { recursive: true }));

const BACKEND = '/local/domain/0/backend/vbd/3/51712';

function script(body: string): string {
  const path = join(folder, `script-${Math.random()}`);
  writeFileSync(path, `#!/bin/sh\n${body}\n`);
  chmodSync(path, 0o755);
  return path;
}

async function run(path: string, limitMs = 10_000): Promise<{ error: string | null; log: string[] }> {
  const log: string[] = [];
  const store = new XenstoreClient(linkToStore(createStore()));
  const host = { store, xenstoredPath: '/run/x/socket', log: (line: string) => log.push(line), limitMs };
  await store.write(`${BACKEND}/hotplug-error`, path.includes('says') ? 'no such LUN' : '');
  try {
    await runHotplugScript({ path, words: ['add'], backendPath: BACKEND, env: { vif: 'vif3.0' } }, host);
    return { error: null, log };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error), log };
  }
}

test.skipIf(process.platform === 'win32')(
  'a script gets the arguments and the environment that libxl gives',
  async () => {
    const path = script(
      'echo "$*|$script|$XENBUS_TYPE|$XENBUS_PATH|$XENBUS_BASE_PATH|$XENSTORED_PATH|$vif" > "$0.told"; echo a warning >&2',
    );
    const { error, log } = await run(path);
    expect(error).toBeNull();
    expect(readFileSync(`${path}.told`, 'utf8')).toBe(
      `add|${path}|vbd|backend/vbd/3/51712|backend|/run/x/socket|vif3.0\n`,
    );
    expect(log).toEqual([`${path} add: a warning`]);
  },
);

test.skipIf(process.platform === 'win32')('a script that fails is an error that says how', async () => {
  const failing = script('exit 3');
  expect((await run(failing)).error).toMatch(/script-[\d.]+ add \[\d+\] exited with error status 3$/);
  const killed = script('kill -9 $$');
  expect((await run(killed)).error).toMatch(/add \[\d+\] died due to fatal signal SIGKILL$/);
  expect((await run(join(folder, 'nosuch'))).error).toBe(
    `cannot execute ${join(folder, 'nosuch')}: No such file or directory`,
  );
  const says = join(folder, 'says');
  writeFileSync(says, '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  expect((await run(says)).error).toBe('script: no such LUN');
});

test.skipIf(process.platform === 'win32')(
  'a script that takes too long is killed with all it has started',
  async () => {
    const path = script('sleep 1000 & echo $! > "$0.pid"; wait');
    const { error } = await run(path, 300);
    expect(error).toBe(`killing execution of ${path} add because of timeout`);
    const pid = Number(readFileSync(`${path}.pid`, 'utf8'));
    // The kernel may take a moment.
    for (let turn = 0; turn < 100; turn++) {
      try {
        process.kill(pid, 0);
      } catch {
        return;
      }
      if (/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))) return;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect.fail(`process ${pid} lives`);
  },
);
