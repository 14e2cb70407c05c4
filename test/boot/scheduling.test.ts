/** A guest that computes all the time under a cap, and one that gives memory back; seen from the host. */

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { main } from '../../src/cli/xl/main.ts';
import { domainStateOf } from '../../src/host/domain-client.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { domainLogPath } from '../../src/host/state-dir.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { endDomains } from './domains.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-scheduling-'));
const before = process.env['DOMUS_STATE_DIR'];
beforeAll(() => {
  process.env['DOMUS_STATE_DIR'] = folder;
});
afterAll(async () => {
  await endDomains(folder);
  await stopDaemon(folder);
  if (before === undefined) delete process.env['DOMUS_STATE_DIR'];
  else process.env['DOMUS_STATE_DIR'] = before;
  rmSync(folder, { recursive: true });
});

async function xl(...words: string[]): Promise<string> {
  let text = '';
  const add = (more: string): void => {
    text += more;
  };
  const code = await main(words, { out: add, err: (line) => add(`${line}\n`) });
  expect(code, text).toBe(0);
  return text;
}

/** On the guest's console. */
async function untilSaid(name: string, text: string): Promise<void> {
  const log = domainLogPath(folder, 'console', name);
  while (!(existsSync(log) && readFileSync(log, 'latin1').includes(text))) await sleep(100);
}

/** Resolves when the guest's script runs. */
async function create(name: string, script: string, ...settings: string[]): Promise<number> {
  const { config } = await buildGuest();
  const run = Buffer.from(`echo READY-$((6*7))\n${script}`).toString('base64');
  await xl('create', config, `name="${name}"`, `cmdline="console=hvc0 domus.run=${run}"`, ...settings);
  await untilSaid(name, 'READY-42');
  return Number(await xl('domid', name));
}

for (const engine of ENGINES)
  test(`a busy guest on ${engine} gets no more of a CPU than its cap, on the CPU that it is pinned to`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    const domid = await create(
      `busy-${engine}`,
      'while :; do :; done',
      `engine="${engine}"`,
      'memory=192',
      'cpu_weight=512',
    );
    const usedMs = async (ms: number): Promise<number> => {
      const from = await domainStateOf(domid);
      await sleep(ms);
      const to = await domainStateOf(domid);
      return (to!.vcpus[0].timeNs - from!.vcpus[0].timeNs) / 1e6;
    };
    await xl('sched-credit2', '-d', String(domid), '-c', '20');
    const last = cpus().length - 1;
    await xl('vcpu-pin', String(domid), '0', String(last));
    await sleep(500);
    const used = await usedMs(4000);
    expect(used).toBeGreaterThan(0);
    // What is left of a few periods may come on top.
    expect(used).toBeLessThan(4000 * 0.2 + 100);
    expect(await xl('vcpu-list', String(domid))).toMatch(
      new RegExp(`^busy-${engine} +${domid} +0 +${last} +[r-]--`, 'm'),
    );
    expect(await xl('sched-credit2', '-d', String(domid))).toMatch(/ 512 {3}20$/m);
    await endDomains(folder);
  });

test("memory that a guest has used and gives back is the host's again", async () => {
  const engine = whyUnusable('kvm') === null ? 'kvm' : 'wasm';
  const fill =
    'mkdir /t; mount -t tmpfs -o size=200m t /t; dd if=/dev/zero of=/t/f bs=1M count=150; rm /t/f; echo FILLED-$((6*7)); while :; do sleep 1; done';
  const domid = await create('balloon', fill, `engine="${engine}"`, 'memory=256', 'maxmem=384');
  await untilSaid('balloon', 'FILLED-42');
  const resident = async (): Promise<number> => (await domainStateOf(domid))!.residentBytes / 2 ** 20;
  const full = await resident();
  await xl('mem-set', 'balloon', '128');
  while ((await domainStateOf(domid))!.pages > 128 * 256) await sleep(100);
  expect(full - (await resident())).toBeGreaterThan(60);
  // More than it had at first.
  await xl('mem-set', 'balloon', '384');
  while ((await domainStateOf(domid))!.pages < 383 * 256) await sleep(100);
});
