/**
 * Guests that are copied and set back while they run, on each engine that this machine has: memory (a variable of the guest's shell) and
 * disks (a raw one and a qcow2 one) are those of one moment, and each copy's own from then on; whoever is killed, the disks are whole.
 */

import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, expect, test } from 'vitest';
import { connectConsole, destroyDomain, domainStateOf, domidsIn, setPaused } from '../../src/host/domain-client.ts';
import { readRecord } from '../../src/host/domain-record.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import type { EngineKind } from '../../src/host/engines.ts';
import { allSnapshots } from '../../src/host/snapshots.ts';
import { openXenstored } from '../../src/host/xenstored.ts';
import { openDiskImage } from '../../src/storage/disk-image.ts';
import { hostFiles } from '../../src/storage/host/node-file.ts';
import { createOverlay, topOf } from '../../src/storage/host/overlay.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { checkImage, qemuTools } from '../qemu-tools.ts';
import { endDomains, killDomain } from './domains.ts';
import { type GuestRun, xl as runXl } from './guest.ts';

const LIMIT_MS = 120_000;
/** How long a snapshot is old before a guest goes back to it. */
const AWAY_MS = 3000;
const DOMUS = fileURLToPath(new URL('../../src/cli/domus/main.ts', import.meta.url));
const qemu = await qemuTools();
const root = mkdtempSync(join(tmpdir(), 'domus-fork-'));
const env = { ...process.env, DOMUS_STATE_DIR: root };
afterEach(() => endDomains(root));
afterAll(async () => {
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const xl = (...words: string[]): Promise<GuestRun> => runXl(words, LIMIT_MS, env);

interface Run {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

function domus(...words: string[]): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [DOMUS, ...words], { stdio: ['ignore', 'pipe', 'pipe'], env });
    const said = { out: '', err: '' };
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said.out += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said.err += text;
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS);
    child.on('error', reject);
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, ...said });
    });
  });
}

/** Does what it is told on its console: `n` is in its memory, `put` and `get` are a sector of a disk. */
const SCRIPT = `
dmesg -n 1
stty -echo
put() { printf '%-511s\\n' "$2" | dd of=/dev/$1 bs=512 seek=9 count=1 conv=fsync,notrunc 2>/dev/null; }
get() { echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/$1 bs=512 skip=9 count=1 2>/dev/null | tr -d ' \\n\\0'; }
show() { echo "<$1: n=$n a=$(get xvda) b=$(get xvdb)>"; }
n=0
echo '<up>'
while read -r line; do eval "$line"; done
`;

/** Has the guest do something, and gives back what it says then. */
async function tell(domid: number, command: string, answer: RegExp): Promise<string> {
  const console = await connectConsole(domid, root);
  if (console === null) throw new Error(`domain ${domid} has no console`);
  let text = '';
  console.setEncoding('utf8').on('data', (part: string) => {
    text += part;
  });
  try {
    if (command !== '') console.write(`${command}\n`);
    for (const endMs = performance.now() + LIMIT_MS; ; await sleep(10)) {
      const match = answer.exec(text);
      if (match !== null) return match[0];
      if (performance.now() > endMs) throw new Error(`domain ${domid} does not answer ${command}: ${text.slice(-500)}`);
    }
  } finally {
    console.destroy();
  }
}

let questions = 0;
/** What memory and disks of a guest are: `n=1 a=x b=y`. */
async function stateOf(domid: number): Promise<string> {
  const question = `q${questions++}`;
  const answer = await tell(domid, `show ${question}`, new RegExp(`<${question}: [^>]*>`));
  return answer.slice(question.length + 3, -1);
}

/** The guest's time, in seconds. */
async function clockOf(domid: number): Promise<number> {
  const question = `q${questions++}`;
  const answer = await tell(domid, `echo "<${question} $(date +%s)>"`, new RegExp(`<${question} \\d+>`));
  return Number(answer.slice(question.length + 2, -1));
}

/** Writes everywhere. */
async function change(domid: number, n: number, word: string): Promise<void> {
  await tell(domid, `n=${n}; put xvda ${word}; put xvdb ${word}; echo "<put ${word}>"`, new RegExp(`<put ${word}>`));
}

function domidOf(name: string): number {
  const found = domidsIn(root).find((domid) => readRecord(root, domid)?.config.name === name);
  if (found === undefined) throw new Error(`there is no domain ${name}`);
  return found;
}

async function checkDisks(paths: readonly string[]): Promise<void> {
  if (typeof qemu !== 'string') for (const path of paths) await checkImage(qemu, path, true);
}

interface Web {
  readonly name: string;
  readonly domid: number;
  readonly raw: string;
  readonly qcow2: string;
  readonly config: string;
}

/** Boots a guest with a raw disk and a qcow2 one. */
async function boot(name: string, engine: EngineKind): Promise<Web> {
  const { config } = await buildGuest();
  const raw = join(root, `${name}.img`);
  const under = join(root, `${name}.under`);
  const qcow2 = join(root, `${name}.qcow2`);
  for (const path of [raw, under]) {
    writeFileSync(path, '');
    truncateSync(path, 1 << 22);
  }
  await createOverlay(qcow2, { path: under, format: 'raw', sizeBytes: 1 << 22 });
  const run = Buffer.from(SCRIPT).toString('base64');
  const created = await xl(
    ...['create', '-q', config, `name="${name}"`, `engine="${engine}"`, `vcpus=${engine === 'kvm' ? 2 : 1}`],
    'memory=128',
    ...[`cmdline="console=hvc0 domus.run=${run}"`, `disk=["${raw},raw,xvda,w", "${qcow2},qcow2,xvdb,w"]`],
    'vif=["script=vif-nat"]',
  );
  expect(created.log).toBe('');
  const domid = domidOf(name);
  await tell(domid, '', /<up>/);
  return { name, domid, raw, qcow2, config };
}

/** A domain that is none of these. */
function isNew(...known: readonly number[]): (domid: number) => boolean {
  return (domid) => !known.includes(domid);
}

/** All qcow2 images that there are. */
function images(): string[] {
  return readdirSync(root, { recursive: true, encoding: 'utf8' })
    .filter((path) => /\.qcow2(\.base-\d+)?$/.test(path))
    .map((path) => join(root, path));
}

for (const engine of ENGINES)
  test(`a guest on ${engine} is copied, and set back`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    const { name, domid: parent, raw } = await boot(`web-${engine}`, engine);
    await change(parent, 1, 'before');

    // Each has what was, and then its own.
    const forked = await domus('fork', name, '-n', '2');
    expect(forked.code, forked.err).toBe(0);
    expect(forked.out).toMatch(new RegExp(`^${name}-fork-1 is domain \\d+; .*\n${name}-fork-2 is domain \\d+; .*\n$`));
    expect(forked.err).toMatch(new RegExp(`^domus: xvda of ${name} goes on in .*; ${raw} is what it is based on`));
    const all = [parent, domidOf(`${name}-fork-1`), domidOf(`${name}-fork-2`)];
    expect(new Set(all).size).toBe(3);
    for (const domid of all) expect(await stateOf(domid), `domain ${domid}`).toBe('n=1 a=before b=before');
    await Promise.all(all.map((domid, i) => change(domid, 10 + i, `own${i}`)));
    for (const [i, domid] of all.entries()) expect(await stateOf(domid)).toBe(`n=${10 + i} a=own${i} b=own${i}`);

    // Who they are.
    const store = new XenstoreClient(await openXenstored(root));
    const read = (path: string) => Promise.all(all.map((domid) => store.read(path.replaceAll('DOMID', String(domid)))));
    const macs = await read('/local/domain/0/backend/vif/DOMID/0/mac');
    expect(new Set(macs).size).toBe(3);
    expect(await read('/local/domain/DOMID/device/vif/0/mac')).toEqual(macs);
    expect(new Set(await read('/local/domain/DOMID/vm')).size).toBe(3);
    const generations = (await read('/local/domain/DOMID/platform/generation-id')).slice(1);
    expect(new Set(generations).size).toBe(2);
    for (const generation of generations) expect(generation).toMatch(/^\d+:\d+$/);
    store.close();

    // What the raw image had is what it is based on.
    expect(
      readFileSync(raw)
        .subarray(9 * 512, 9 * 512 + 6)
        .toString(),
    ).toBe('before');
    expect(await topOf(raw)).toBe(readRecord(root, parent)?.config.disks[0].target);

    // A copy is copied, and stays paused when that is asked for.
    if (engine === 'wasm') {
      const again = await domus('fork', `${name}-fork-1`, '--name', `${name}-again`, '-p');
      expect(again.code, again.err).toBe(0);
      const domid = domidOf(`${name}-again`);
      expect((await domainStateOf(domid, root))?.paused).toBe(true);
      await setPaused(domid, false, root);
      expect(await stateOf(domid)).toBe('n=11 a=own1 b=own1');
    }
    for (const domid of all.slice(1)) await destroyDomain(domid, root);

    // A snapshot, and back. Linux' clock may be late since it has booted.
    const saidSeconds = await clockOf(parent);
    const behindSeconds = Math.ceil(Date.now() / 1000) - saidSeconds;
    expect(await domus('snapshot', name, 'one')).toMatchObject({ code: 0, out: `snapshot one of ${name} is taken\n` });
    await change(parent, 20, 'later');
    await sleep(AWAY_MS);
    const reverted = await domus('revert', name, 'one');
    expect(reverted.code, reverted.err).toBe(0);
    expect(await stateOf(domidOf(name))).toBe('n=10 a=own0 b=own0');
    // No time is lost to its clock.
    const askedSeconds = Math.floor(Date.now() / 1000);
    expect(askedSeconds - (await clockOf(domidOf(name)))).toBeLessThanOrEqual(behindSeconds + 1);
    await endDomains(root);
    await checkDisks(images());
  });

test('whoever is killed, the others go on, and disks are whole', async () => {
  const { name, domid, raw, qcow2, config } = await boot('victim', 'wasm');
  await change(domid, 1, 'one');
  expect((await domus('snapshot', name, 'one')).code).toBe(0);
  await change(domid, 2, 'two');
  expect((await domus('fork', name)).code).toBe(0);
  const copy = domidOf(`${name}-fork-1`);

  // While a copy is made: its process, or that of the domain, before and while it stands still.
  for (const [i, victim] of [`${name}-0`, name, name].entries()) {
    await change(domidOf(name), 3, `kept${i}`);
    const bases = images().length;
    const forking = domus('fork', name, '--name', `${name}-${i}`);
    // The overlays of the domain are made last before it is frozen.
    while (i < 2 ? !domidsIn(root).some(isNew(copy, domidOf(name))) : images().length === bases) await sleep(1);
    await killDomain(victim, root);
    await forking;
    if (i === 0) expect(await stateOf(domidOf(name))).toBe('n=3 a=kept0 b=kept0');
    else {
      // All that it was told is written.
      for (const path of [(await topOf(raw)) ?? raw, qcow2]) {
        await checkDisks([path]);
        const image = await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: true });
        const sector = Buffer.alloc(512);
        await image.read(9 * 512, [sector]);
        await image.close();
        expect(sector.toString().trim()).toBe(`kept${i}`);
      }
      const reverted = await domus('revert', name, 'one');
      expect(reverted.code, reverted.err).toBe(0);
      expect(await stateOf(domidOf(name))).toBe('n=1 a=one b=one');
    }
    expect(await stateOf(copy)).toBe('n=2 a=two b=two');
  }

  // What is damaged ends no domain.
  expect(await domus('snapshot', name)).toMatchObject({ code: 0, out: `snapshot 1 of ${name} is taken\n` });
  expect((await domus('snapshots', name)).out).toMatch(/^Name .*\none .* xvda xvdb\n1 .* xvda xvdb\n$/);
  const { folder } = allSnapshots(root).find((one) => one.domain === name && one.name === 'one') ?? {};
  truncateSync(join(folder ?? '', 'memory'), 100_000);
  expect(await domus('revert', name, 'one')).toMatchObject({
    code: 1,
    err: expect.stringMatching(/^domus: snapshot one of victim: truncated: it ends after \d+ bytes\n$/),
  });
  expect(await stateOf(domidOf(name))).toBe('n=1 a=one b=one');
  expect((await domus('snapshots', 'remove', name, 'one')).code).toBe(0);
  expect((await domus('revert', name, 'one')).err).toBe(`domus: victim has no snapshot "one"; there are: 1\n`);
  await endDomains(root);
  await checkDisks(images());

  // Its own config starts a copy that has ended; a base is no disk of another guest.
  expect((await xl('create', '-q', join(root, 'disks', `${name}-fork-1`, 'domain.cfg'))).code).toBe(0);
  const refused = await xl('create', '-q', config, `disk=["${raw},raw,xvda,w"]`);
  expect(refused.code).toBe(3);
  expect(refused.log).toContain('is the base of other images, and its disk goes on in');
});
