/**
 * Guests that move from one state folder to another in the middle of their work, with every page compared at the target, and back by TLS, on each
 * engine that this machine has. And what becomes of them when something on the way dies.
 */

import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { domidsIn, pidOf } from '../../src/host/domain-client.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { createKeys, forget, trust } from '../../src/host/keys/host-keys.ts';
import { PROTOCOL_VERSION, READY } from '../../src/host/migration-protocol.ts';
import { pidIn } from '../../src/host/state-dir.ts';
import { openXenstored } from '../../src/host/xenstored.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { checkedRounds } from './checked-rounds.ts';
import { endDomains } from './domains.ts';
import { freePort } from './free-port.ts';
import { type GuestRun, xl as runXl } from './guest.ts';
import { untilListening } from './listening.ts';

const LIMIT_MS = 120_000;
const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'domus-migrate-'));
const here = join(folder, 'a');
const there = join(folder, 'b');
mkdirSync(here);
mkdirSync(there);
afterAll(async () => {
  for (const root of [here, there]) {
    await endDomains(root);
    await stopDaemon(root);
  }
  rmSync(folder, { recursive: true });
});

const port = await freePort();
writeFileSync(join(here, 'xl.conf'), `migration_listen="127.0.0.1:${port}"\n`);
trust(there, createKeys(here, ['127.0.0.1'], 1, false).toString(), 'here');
trust(here, createKeys(there, ['there.example'], 1, false).toString(), 'there');

function xl(root: string, ...words: string[]): Promise<GuestRun> {
  return runXl(words, LIMIT_MS, { ...process.env, DOMUS_STATE_DIR: root });
}

/** The command that reaches a target, without ssh. */
function receive(root: string, more = ''): string {
  return `DOMUS_STATE_DIR=${root} ${more === '' ? 'exec ' : ''}${process.execPath} ${XL} migrate-receive${more}`;
}

const SCRIPT = checkedRounds('.');

/** What a guest has said, at one place after the other: lines may have begun at one and ended at the next. */
class Rounds {
  readonly #name: string;
  #text = '';
  #root: string;

  constructor(name: string, root: string) {
    this.#name = name;
    this.#root = root;
  }

  /** It goes on there, where nothing is to be seen of it yet. */
  moved(root: string): void {
    this.#text += this.#there();
    rmSync(this.#path(), { force: true });
    this.#root = root;
  }

  #path(): string {
    return join(this.#root, 'log', `console-${this.#name}.log`);
  }

  #there(): string {
    return existsSync(this.#path()) ? readFileSync(this.#path(), 'utf8').replaceAll('\r', '') : '';
  }

  lines(): string[] {
    return (this.#text + this.#there()).split('\n').filter((line) => /^round .*\.$/.test(line));
  }

  async goOn(): Promise<void> {
    const before = this.lines().length;
    const endMs = performance.now() + LIMIT_MS;
    while (this.lines().length < before + 2) {
      if (performance.now() > endMs) throw new Error(`no more rounds: ${JSON.stringify(this.lines().at(-1))}`);
      await sleep(50);
    }
  }

  async standStill(): Promise<void> {
    const before = this.lines().length;
    await sleep(1000);
    expect(this.lines().length).toBe(before);
  }

  expectUnbroken(): void {
    expect(this.lines()).toEqual(this.lines().map((_, i) => `round ${i + 1} same answered trouble=0.`));
  }
}

async function boot(name: string, engine: string): Promise<Rounds> {
  const { config } = await buildGuest();
  const disk = join(folder, `${name}.img`);
  writeFileSync(disk, '');
  truncateSync(disk, 1 << 22);
  const run = Buffer.from(SCRIPT).toString('base64');
  const { log } = await xl(
    ...[here, 'create', '-q', config, `name="${name}"`, `engine="${engine}"`, `vcpus=${engine === 'kvm' ? 2 : 1}`],
    ...[`cmdline="console=hvc0 domus.run=${run}"`, `disk=["${disk},raw,xvda,w"]`, 'vif=["script=vif-nat"]'],
  );
  expect(log).toBe('');
  const rounds = new Rounds(name, here);
  await rounds.goOn();
  return rounds;
}

const states = async (root: string): Promise<string[]> =>
  (await xl(root, 'list')).console
    .split('\n')
    .slice(2, -1)
    .map((line) => line.replace(/^(\S+) .* (\S{6}) +\S+$/, '$1 $2'));

/** Its kernel does what a node says that it watches, and empties it. */
async function hearsXenstore(root: string, name: string): Promise<void> {
  const store = new XenstoreClient(await openXenstored(root));
  try {
    const [domid] = domidsIn(root);
    expect((await xl(root, 'sysrq', name, 'h')).code).toBe(0);
    const endMs = performance.now() + LIMIT_MS;
    while ((await store.read(`/local/domain/${domid}/control/sysrq`)) !== '') {
      if (performance.now() > endMs) throw new Error('the guest does not take what xenstore says');
      await sleep(20);
    }
  } finally {
    store.close();
  }
}

const SAID = [
  'Saving to migration stream',
  'migration target: Ready to receive domain.',
  'Loading new save file <incoming migration stream>',
  'Parsing config from <saved>',
  'migration target: Transfer complete, requesting permission to start domain.',
  'migration sender: Target has acknowledged transfer.',
  'migration sender: Giving target permission to start.',
  'migration target: Got permission, starting domain.',
  'migration target: Domain started successsfully.',
  'migration sender: Target reports successful startup.',
  'Migration successful.',
].sort();

const linesOf = ({ log }: GuestRun): string[] => log.split('\n').slice(0, -1);

for (const engine of ENGINES)
  test(`a guest on ${engine} moves while it works, and back`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    const name = `moves-${engine}`;
    const rounds = await boot(name, engine);

    const gone = await xl(here, '-v', 'migrate', '--debug', '-s', '', name, receive(there));
    const said = linesOf(gone);
    console.log(said.filter((line) => line.startsWith('xc: detail: ')).join('\n'));
    // The ends write at the same time.
    expect(said.filter((line) => !line.startsWith('xc: detail: ')).sort()).toEqual(SAID);
    expect(gone.code).toBe(0);
    rounds.moved(there);
    expect(await states(here)).toEqual([]);
    expect(await states(there)).toEqual([expect.stringMatching(/^moves-\w+ [r-][b-]----$/)]);
    await rounds.goOn();
    await hearsXenstore(there, name);

    // Back by TLS, though the daemon was killed meanwhile; and it waits there.
    process.kill(pidIn(here) ?? NaN, 'SIGKILL');
    expect(await states(here)).toEqual([]);
    await untilListening(port, LIMIT_MS);
    const back = await xl(there, 'migrate', '-p', name, `tls:127.0.0.1:${port}`);
    expect(linesOf(back).sort()).toEqual(SAID);
    rounds.moved(here);
    expect(await states(there)).toEqual([]);
    expect(await states(here)).toEqual([expect.stringMatching(new RegExp(`^${name} -[b-]p---$`))]);
    await rounds.standStill();
    await xl(here, 'unpause', name);
    await rounds.goOn();
    rounds.expectUnbroken();
    await endDomains(here);
  });

test('whatever dies on the way, a guest lives on one side', async () => {
  const name = 'stays';
  const rounds = await boot(name, 'wasm');
  const goesOnHere = async (): Promise<void> => {
    await rounds.goOn();
    expect(await states(here)).toEqual([expect.stringMatching(/^stays [r-][b-]----$/)]);
    // What was to become of it there is gone soon.
    for (let i = 0; i < 100 && (await states(there)).length > 0; i++) await sleep(50);
    expect(await states(there)).toEqual([]);
  };

  // No target.
  const none = await xl(here, 'migrate', '-s', '', name, 'exit 7');
  expect(none.code).toBe(1);
  expect(none.log).toMatch(
    /^Saving to migration stream\nlibxl: error: file\/stream truncated reading banner from migration receiver stream\nlibxl: info: migration transport process \[\d+\] exited with error status 7\n$/,
  );

  // One that speaks another language.
  const other = "echo 'domus migration receiver, version 9: send the domain'; cat >/dev/null";
  expect((await xl(here, 'migrate', '-s', '', name, other)).log).toContain(
    `migration target has version 9 of the migration stream, and this Domus has ${PROTOCOL_VERSION}\n`,
  );

  // By TLS, to one that is not trusted, and one where nobody listens.
  forget(here, 'there.example');
  trust(here, createKeys(there, ['there.example'], 1, true).toString(), 'there');
  expect((await xl(here, 'migrate', name, `tls:127.0.0.1:${port}`)).log).toMatch(
    /^Saving to migration stream\nlibxl: error: 127\.0\.0\.1:\d+: its certificate \(127\.0\.0\.1, SHA256 \w+\) is not trusted here: domus keys trust\n$/,
  );
  expect((await xl(here, 'migrate', name, 'tls://127.0.0.1:1')).log).toMatch(
    /: connect ECONNREFUSED 127\.0\.0\.1:1\n$/,
  );
  expect((await xl(here, 'migrate', name, 'tls:a:b')).log).toMatch(/tls:a:b: expected tls:HOST or tls:HOST:PORT/);

  // One that lacks the disk.
  const disk = join(folder, `${name}.img`);
  renameSync(disk, `${disk}.away`);
  const lacking = await xl(here, 'migrate', '-s', '', name, receive(there));
  renameSync(`${disk}.away`, disk);
  expect(lacking.code).toBe(1);
  expect(lacking.log).toContain(`libxl: error: Disk vdev=xvda failed to stat: ${disk}: No such file or directory\n`);
  expect(lacking.log).toContain('\nMigration failed, resuming at sender.\n');
  await goesOnHere();

  // The target's process is killed while pages come.
  const unlucky = xl(here, 'migrate', '-s', '', name, receive(there));
  process.kill(await incomingPid(), 'SIGKILL');
  const { code, log } = await unlucky;
  expect(code).toBe(1);
  expect(log).toContain('\nmigration sender: libxl_domain_suspend failed (rc=-3)\n');
  expect(log).toMatch(/\nMigration failed, resuming at sender\.\n$/);
  await goesOnHere();

  // xl migrate is.
  const child = spawn(process.execPath, [XL, 'migrate', '-s', '', name, receive(there)], {
    stdio: 'ignore',
    env: { ...process.env, DOMUS_STATE_DIR: here },
  });
  await incomingPid();
  child.kill('SIGKILL');
  await goesOnHere();
  rounds.expectUnbroken();

  // One on the same host, which may have taken the name, does not come to say that it has it all.
  const calledOff = await xl(here, 'migrate', '-s', '', name, receive(here, ` | sed -u '/^${READY}$/Q'`));
  expect(calledOff.code).toBe(1);
  expect(calledOff.log).toContain('\nmigration target: Transfer complete, requesting permission to start domain.\n');
  expect(calledOff.log).toMatch(/\nMigration failed, resuming at sender\.\n$/);
  await goesOnHere();

  // The target runs it, and nobody here hears of that.
  const mute = receive(there, " | sed -u '/^my copy unpause/q'");
  const lost = await xl(here, 'migrate', '-s', '', name, mute);
  expect(lost.code).toBe(1);
  expect(lost.log).toContain('\n** Migration failed during final handshake **\nDomain state is now undefined !\n');
  expect(await states(here)).toEqual([expect.stringMatching(new RegExp(`^${name}--migratedaway -[b-]-ss-$`))]);
  expect(await states(there)).toEqual([expect.stringMatching(/^stays [r-][b-]----$/)]);
  await rounds.standStill();
  await xl(here, 'destroy', `${name}--migratedaway`);
  rounds.moved(there);
  await rounds.goOn();
  rounds.expectUnbroken();
});

/** The process of a domain that comes. */
async function incomingPid(): Promise<number> {
  const endMs = performance.now() + LIMIT_MS;
  for (;;) {
    const [domid] = domidsIn(there);
    const pid = domid === undefined ? null : pidOf(there, domid);
    if (pid !== null) return pid;
    if (performance.now() > endMs) throw new Error('nothing comes');
    await sleep(5);
  }
}
