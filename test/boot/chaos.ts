/**
 * Chaos: random commands of xl from several shells at once on some small guests, while processes of domains, commands and the daemon are killed.
 * Now and then all hold still, and then `xl list`, the processes, xenstore and the files must agree, and a guest that nobody has touched must have
 * counted on as if nothing had been.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { domidsIn, endedReasonOf, processIdOf } from '../../src/host/domain-client.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { domainLogPath, pidIn } from '../../src/host/state-dir.ts';
import { openXenstored } from '../../src/host/xenstored.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { heartbeat, lastBeat } from '../guests/heartbeat.ts';
import { randomOf } from './random.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const COMMAND_LIMIT_MS = 120_000;
const SETTLE_LIMIT_MS = 60_000;
const ROUND_MS = 15_000;

export interface ChaosOptions {
  /** An empty folder: state, images, configs. */
  readonly root: string;
  readonly durationMs: number;
  readonly guests: number;
  readonly shells: number;
  readonly seed: number;
  readonly log: (line: string) => void;
}

export interface ChaosReport {
  readonly commands: number;
  readonly rounds: number;
  readonly domainsKilled: number;
  readonly daemonsKilled: number;
  /** How often a guest was found to have gone on undisturbed. */
  readonly undisturbed: number;
  /** How often a guest that was killed, and no more, was found as its on_crash wants it. */
  readonly afterCrash: number;
  /** What was wrong; the run ends with the first that lasts. */
  readonly faults: readonly string[];
}

const ON_CRASH = ['destroy', 'restart', 'preserve'] as const;

interface GuestModel {
  readonly name: string;
  readonly config: string;
  readonly onCrash: (typeof ON_CRASH)[number];
  /** What was done to it since the last look that it may notice. */
  touched: string[];
  before: Seen | null;
}

interface Seen {
  readonly domid: number;
  readonly pid: number;
  readonly beat: number;
}

class Chaos {
  readonly #options: ChaosOptions;
  readonly #random: () => number;
  readonly #guests: GuestModel[] = [];
  readonly #faults: string[] = [];
  readonly #running = new Set<ChildProcess>();
  #commands = 0;
  #rounds = 0;
  #domainsKilled = 0;
  #daemonsKilled = 0;
  #undisturbed = 0;
  #afterCrash = 0;

  constructor(options: ChaosOptions) {
    this.#options = options;
    this.#random = randomOf(options.seed);
    const folder = join(options.root, 'configs');
    mkdirSync(folder, { recursive: true });
    const kernel = join(folder, 'heartbeat');
    writeFileSync(kernel, heartbeat().elf());
    for (let i = 0; i < options.guests; i++) {
      const name = `chaos-${i}`;
      const [image, spare] = ['disk', 'spare'].map((what) => join(folder, `${name}.${what}`));
      for (const file of [image, spare]) writeFileSync(file, new Uint8Array(1 << 20));
      const onCrash = ON_CRASH[i % ON_CRASH.length];
      const config = join(folder, `${name}.cfg`);
      const devices = `disk = ["${image},raw,xvda,w"]\nvif = ["bridge=chaos0"]`;
      writeFileSync(
        config,
        `name = "${name}"\nkernel = "${kernel}"\nmemory = 16\nextra = "earlyprintk=xen"\non_crash = "${onCrash}"\n${devices}\n`,
      );
      this.#guests.push({ name, config, onCrash, touched: [], before: null });
    }
  }

  async run(): Promise<ChaosReport> {
    const endMs = performance.now() + this.#options.durationMs;
    await Promise.all(this.#guests.map((guest) => this.#command('create', '-q', guest.config)));
    await this.#look();
    while (performance.now() < endMs && this.#faults.length === 0) {
      const roundEndMs = Math.min(endMs, performance.now() + ROUND_MS);
      const shells = Array.from({ length: this.#options.shells }, () => this.#shell(roundEndMs));
      await Promise.all([...shells, this.#killer(roundEndMs)]);
      await this.#look();
    }
    await this.#end();
    return {
      commands: this.#commands,
      rounds: this.#rounds,
      domainsKilled: this.#domainsKilled,
      daemonsKilled: this.#daemonsKilled,
      undisturbed: this.#undisturbed,
      afterCrash: this.#afterCrash,
      faults: this.#faults,
    };
  }

  #pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.#random() * items.length)];
  }

  async #shell(endMs: number): Promise<void> {
    while (performance.now() < endMs) {
      await this.#act();
      await sleep(this.#random() * 200);
    }
  }

  /** All but the last, which sees it all and must never notice. */
  get #victims(): readonly GuestModel[] {
    return this.#guests.slice(0, -1);
  }

  /** Kills at its own pace, however long commands take on a busy machine. */
  async #killer(endMs: number): Promise<void> {
    while (performance.now() < endMs) {
      await sleep(300 + this.#random() * 2500);
      const dice = this.#random();
      if (dice < 0.5) this.#killDomain(this.#pick(this.#victims));
      else if (dice < 0.75) this.#killDaemon();
      else this.#killCommand();
    }
  }

  async #act(): Promise<void> {
    const guest = this.#pick(this.#guests);
    const { name, config } = guest;
    const spare = config.replace(/cfg$/, 'spare');
    const dice = this.#random();
    const victim = this.#pick(this.#victims);
    if (dice < 0.02) await stopDaemon(this.#options.root).catch(() => null);
    else if (dice < 0.18) await this.#touch(victim, 'create', '-q', victim.config);
    else if (dice < 0.26) await this.#touch(victim, 'destroy', victim.name);
    else if (dice < 0.4) await this.#command(this.#pick(['pause', 'unpause']), name);
    else if (dice < 0.5) await this.#command('block-attach', name, `${spare},raw,xvdb,w`);
    else if (dice < 0.56) await this.#command('block-detach', name, 'xvdb');
    else if (dice < 0.61) await this.#command('network-attach', name, 'bridge=chaos1');
    else if (dice < 0.65) await this.#command('network-detach', name, '1');
    else if (dice < 0.68) await this.#command('config-update', name, config);
    else if (dice < 0.71) await this.#command('trigger', name, 'nmi');
    else if (dice < 0.73) await this.#command('sysrq', name, 'h');
    else await this.#read(name);
  }

  /** What only looks must work at any time. */
  async #read(name: string): Promise<void> {
    const words = this.#pick([
      ['list'],
      ['list', '-l'],
      ['vcpu-list'],
      ['vm-list'],
      ['uptime'],
      ['info'],
      ['block-list', name],
    ]);
    const { code, err, wasKilled } = await this.#command(...words);
    if (code !== 0 && !wasKilled) this.#fault(`xl ${words.join(' ')}: exit code ${code}: ${err}`);
  }

  async #touch(guest: GuestModel, ...words: string[]): Promise<void> {
    guest.touched.push(words[0]);
    await this.#command(...words);
    guest.touched.push(words[0]);
  }

  #fault(what: string): void {
    this.#options.log(`FAULT: ${what}`);
    this.#faults.push(what);
  }

  #command(...words: string[]): Promise<{ code: number | null; out: string; err: string; wasKilled: boolean }> {
    this.#commands++;
    const child = spawn(process.execPath, [XL, ...words], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, DOMUS_STATE_DIR: this.#options.root },
    });
    this.#running.add(child);
    let out = '';
    let err = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      err += text;
    });
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#fault(`xl ${words.join(' ')} does not end: ${out}${err}`);
        child.kill('SIGKILL');
      }, COMMAND_LIMIT_MS);
      child.on('close', (code, signal) => {
        clearTimeout(timer);
        this.#running.delete(child);
        if (/defect/.test(err)) this.#fault(`xl ${words.join(' ')}: ${err}`);
        resolve({ code, out, err, wasKilled: signal !== null });
      });
    });
  }

  #killCommand(): void {
    const running = [...this.#running];
    if (running.length > 0) this.#pick(running).kill('SIGKILL');
  }

  #killDomain(guest: GuestModel): void {
    const found = this.#domidsOf(guest.name);
    const domid = found.length === 0 ? undefined : this.#pick(found);
    const id = domid === undefined ? null : processIdOf(this.#options.root, domid);
    if (id === null) return;
    guest.touched.push('kill');
    try {
      process.kill(id.pid, 'SIGKILL');
      this.#domainsKilled++;
    } catch {
      // It has ended by itself.
    }
  }

  #killDaemon(): void {
    const pid = pidIn(this.#options.root);
    if (pid === null) return;
    try {
      process.kill(pid, 'SIGKILL');
      this.#daemonsKilled++;
    } catch {
      // Another one was faster.
    }
  }

  #domidsOf(name: string): number[] {
    const { root } = this.#options;
    return domidsIn(root).filter((domid) => {
      try {
        return readFileSync(join(root, 'domains', String(domid), 'config.json'), 'utf8').includes(`"name": "${name}"`);
      } catch {
        return false;
      }
    });
  }

  /** What does not agree when what is under way has been done: a process ends a moment after its domain. */
  async #settled(): Promise<string[]> {
    const endMs = performance.now() + SETTLE_LIMIT_MS;
    let wrong = await this.#disagreements();
    while (wrong.length > 0 && performance.now() < endMs) {
      await sleep(500);
      wrong = await this.#disagreements();
    }
    return wrong;
  }

  /** All hold still: does everything agree, and what have the guests noticed? */
  async #look(): Promise<void> {
    this.#rounds++;
    for (const { name } of this.#guests) await this.#command('unpause', name);
    const wrong = await this.#settled();
    for (const one of wrong) this.#fault(one);
    if (wrong.length > 0) return;
    for (const guest of this.#guests) await this.#lookAt(guest);
  }

  async #lookAt(guest: GuestModel): Promise<void> {
    const { root } = this.#options;
    const { name, before, touched, onCrash } = guest;
    guest.touched = [];
    const [domid] = this.#domidsOf(name);
    const isKept = domid !== undefined && endedReasonOf(domid, root) !== null;
    if (before !== null && touched.length === 1 && touched[0] === 'kill') {
      const found = domid === undefined ? 'destroy' : isKept ? 'preserve' : 'restart';
      if (found === onCrash) this.#afterCrash++;
      else this.#fault(`${name} was killed, on_crash is ${onCrash}, and what is seen is ${found}`);
    }
    guest.before = null;
    if (domid === undefined || isKept) {
      if (before !== null && touched.length === 0) this.#fault(`${name} is gone, and nobody has touched it`);
      return;
    }
    const pid = processIdOf(root, domid)?.pid ?? 0;
    const from = touched.length === 0 ? (before?.beat ?? -1) : -1;
    const now = await this.#beatOf(name, from);
    if (now === null) return;
    guest.before = { domid, pid, beat: now.beat };
    if (before === null || touched.length > 0) return;
    if (before.domid !== domid || before.pid !== pid)
      this.#fault(`${name} was domain ${before.domid} of process ${before.pid}, and is ${domid} of ${pid}`);
    else if (!now.isWhole || now.beat <= before.beat)
      this.#fault(`${name} has counted from ${before.beat} to ${now.beat} with gaps`);
    else this.#undisturbed++;
  }

  /** Waits until the guest has counted on. */
  async #beatOf(name: string, from: number): Promise<ReturnType<typeof lastBeat>> {
    const path = domainLogPath(this.#options.root, 'console', name);
    const endMs = performance.now() + SETTLE_LIMIT_MS;
    for (;;) {
      let text = '';
      for (const file of [`${path}.1`, path]) {
        try {
          text += readFileSync(file, 'utf8');
        } catch {
          // It has not grown that much.
        }
      }
      const last = lastBeat(text, from);
      if (last !== null && last.beat > from) return last;
      if (performance.now() > endMs) {
        this.#fault(`${name} counts no more; its last was ${last?.beat}`);
        return last;
      }
      await sleep(100);
    }
  }

  async #disagreements(): Promise<string[]> {
    const { root } = this.#options;
    const wrong: string[] = [];
    const { code, out, err } = await this.#command('list');
    if (code !== 0) return [`xl list: exit code ${code}: ${err}`];
    const rows = out.trimEnd().split('\n').slice(2);
    const listed = rows.map((row) => Number(row.split(/\s+/)[1]));
    const store = new XenstoreClient(await openXenstored(root));
    try {
      const inStore = await numbersIn(store, '/local/domain');
      const folders = domidsIn(root);
      const alive = processesOf(root);
      const same = (what: string, found: readonly number[], expected: readonly number[]): void => {
        const [a, b] = [found, expected].map((list) => [...list].sort((x, y) => x - y).join(' '));
        if (a !== b) wrong.push(`${what}: [${a}], but [${b}] expected`);
      };
      same('xl list and xenstore', listed, inStore);
      same('folders and xenstore', folders, inStore);
      same('/libxl and xenstore', await numbersIn(store, '/libxl'), inStore);
      for (const kind of (await store.directory('/local/domain/0/backend')) ?? [])
        for (const domid of await numbersIn(store, `/local/domain/0/backend/${kind}`))
          if (!inStore.includes(domid)) wrong.push(`backend/${kind}/${domid} is of no domain`);
      const vms = (await store.directory('/vm')) ?? [];
      if (vms.length !== inStore.length) wrong.push(`/vm has ${vms.length} of ${inStore.length} domains`);
      const living = folders.filter((domid) => endedReasonOf(domid, root) === null);
      const pids = living.map((domid) => processIdOf(root, domid)?.pid ?? -1);
      same('processes and their pid files', alive, pids);
      for (const domid of living)
        if (!(await store.isDomainIntroduced(domid))) wrong.push(`domain ${domid} is not introduced`);
      for (const row of rows) {
        const state = row.split(/\s+/)[4];
        const isKept = endedReasonOf(Number(row.split(/\s+/)[1]), root) !== null;
        if (!(isKept ? /^---sc-$/ : /^[r-][b-]----$/).test(state)) wrong.push(`xl list: ${row}`);
      }
      for (const name of readdirSync(root)) if (/\.tmp|\.new$/.test(name)) wrong.push(`${name} is left`);
    } finally {
      store.close();
    }
    return wrong;
  }

  /** Everything can be taken away, and made again: no lock is left. */
  async #end(): Promise<void> {
    for (const pass of ['destroyed', 'made again'] as const) {
      for (const { name } of this.#guests) if (this.#domidsOf(name).length > 0) await this.#command('destroy', name);
      const wrong = await this.#settled();
      if (domidsIn(this.#options.root).length > 0) wrong.push('not all domains could be destroyed');
      for (const one of wrong) this.#fault(`after all were ${pass}: ${one}`);
      if (pass === 'made again') break;
      const made = await Promise.all(this.#guests.map(({ config }) => this.#command('create', '-q', config)));
      for (const { code, err } of made) if (code !== 0) this.#fault(`create at the end: exit code ${code}: ${err}`);
    }
  }
}

async function numbersIn(store: XenstoreClient, path: string): Promise<number[]> {
  return ((await store.directory(path)) ?? []).map(Number).filter((domid) => domid !== 0);
}

/** Processes of domains of a state folder. */
export function processesOf(root: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        if (!/\/domain-process\.[tj]s\0/.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))) return false;
        return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0').includes(`DOMUS_STATE_DIR=${root}`);
      } catch {
        return false;
      }
    });
}

export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  return await new Chaos(options).run();
}
