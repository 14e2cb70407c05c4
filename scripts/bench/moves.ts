/**
 * `npm run bench -- --moves`: how long a guest stands still that is saved and restored, moves to another host while it runs, or is copied.
 *
 * The guest has 256 MiB, one process that writes to 32 MiB of them over and over, and one that looks at the clock (busy.c). What it says is a
 * line every few milliseconds, so that its pauses are seen from two sides: the longest time between two looks, by its own clock; and the time
 * between two lines, by the host's. Both hosts are this one, with a state folder each.
 */

import { execFile } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { stopDaemon } from '../../src/host/domusd.ts';
import { endDomains } from '../../test/boot/domains.ts';
import { minAndMedian, table } from './figures.ts';
import { type DomusEngine, MACHINE_TITLES, RunError } from './machines.ts';

/** What users start. */
const XL = fileURLToPath(new URL('../../bin/xl.js', import.meta.url));
const DOMUS = fileURLToPath(new URL('../../bin/domus.js', import.meta.url));
const MEMORY_MIB = 256;
const POLL_MS = 1;
const TICKS_LIMIT_MS = 120_000;
/** Ticks that show that it runs as before. */
const STEADY = 60;
/** Lines in which a pause may show: the terminal may hold one back. */
const NEAR = 4;

interface Tick {
  readonly number: number;
  readonly longestMs: number;
  /** When its line was seen. */
  readonly atMs: number;
}

/** The lines of a guest's console log as they come. */
class Ticks {
  readonly all: Tick[] = [];
  readonly #path: string;
  readonly #buffer = Buffer.alloc(1 << 16);
  #position: number;
  #rest = '';

  /** From what the log has by now. */
  constructor(root: string, name: string) {
    this.#path = join(root, 'log', `console-${name}.log`);
    this.#position = statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
  }

  look(): void {
    const atMs = performance.now();
    const size = statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
    // A new log has taken its place.
    if (size < this.#position) this.#position = 0;
    if (size === this.#position) return;
    const file = openSync(this.#path, 'r');
    const count = readSync(file, this.#buffer, 0, this.#buffer.length, this.#position);
    closeSync(file);
    this.#position += count;
    const lines = (this.#rest + this.#buffer.toString('latin1', 0, count)).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) {
      const [, tick, us] = /^tick (\d+) (\d+)\r?$/.exec(line) ?? [];
      if (us !== undefined) this.all.push({ number: Number(tick), longestMs: Number(us) / 1000, atMs });
    }
  }
}

const longest = (ticks: readonly Tick[]): number => Math.max(...ticks.map(({ longestMs }) => longestMs));

/** Names of figures, each with a value a run, in ms. */
export type MoveFigures = Map<string, number[]>;

export interface MovedGuest {
  readonly kernel: string;
  /** With /busy in it. */
  readonly ramdisk: string;
}

/** @throws RunError */
export async function measureMoves(engine: DomusEngine, guest: MovedGuest, runs: number): Promise<MoveFigures> {
  const folder = mkdtempSync(join(tmpdir(), 'domus-bench-'));
  const roots = [join(folder, 'a'), join(folder, 'b')];
  for (const root of roots) mkdirSync(root);
  const figures: MoveFigures = new Map();
  const note = (name: string, ms: number): void => void figures.set(name, [...(figures.get(name) ?? []), ms]);
  const watched = new Set<Ticks>();
  const poll = setInterval(() => {
    for (const ticks of watched) ticks.look();
  }, POLL_MS);
  const watch = (root: string, name: string): Ticks => {
    const ticks = new Ticks(root, name);
    watched.add(ticks);
    return ticks;
  };
  try {
    let [here, there] = roots;
    await run(here, XL, 'create', '-q', '/dev/null', ...configOf(engine, guest));
    let ticks = watch(here, 'mover');
    await steady(ticks);
    for (let i = 0; i < runs; i++) {
      note('busy, nothing done: longest pause seen inside', longest(ticks.all.slice(-STEADY)));

      const file = join(folder, 'saved');
      const saved = await run(here, XL, 'save', 'mover', file);
      note('save', saved.ms);
      const startMs = performance.now();
      ticks = watch(here, 'mover');
      const restored = await run(here, XL, 'restore', file);
      await steady(ticks);
      note('restore', restored.ms);
      note('restore, to the first line of the guest', ticks.all[0].atMs - startMs);

      let before = ticks;
      ticks = watch(there, 'mover');
      const receive = `DOMUS_STATE_DIR=${there} exec ${process.execPath} ${XL} migrate-receive`;
      const moved = await run(here, XL, '-v', 'migrate', '-s', '', 'mover', receive);
      await steady(ticks);
      note('migrate, all of it', moved.ms);
      note('migrate: it stands still, by the source', Number(/stood still for (\d+) ms/.exec(moved.text)?.[1]));
      note('migrate: longest pause seen inside', longest(ticks.all.slice(0, NEAR)));
      note('migrate: longest pause seen outside', ticks.all[0].atMs - (before.all.at(-1)?.atMs ?? 0));
      [here, there] = [there, here];

      before = ticks;
      ticks = watch(here, 'copy');
      const forked = await run(here, DOMUS, 'fork', 'mover', '--name', 'copy');
      await steady(ticks);
      const [first] = ticks.all;
      const last = before.all.findLast(({ number }) => number < first.number);
      note('fork, all of it', forked.ms);
      const [, asked, stopped] = /first instruction came (\d+) ms .*, (\d+) ms/.exec(logOf(here, 'copy')) ?? [];
      note('fork: to the first instruction of the copy, since it was asked for', Number(asked));
      note('fork: to the first instruction of the copy, since the other one was stopped', Number(stopped));
      note('fork: to the first line of the copy', first.atMs - (last?.atMs ?? Number.NaN));
      const during = before.all.filter(({ number }) => number >= first.number && number < first.number + STEADY);
      note('fork: longest pause of the one that is copied, seen inside', longest(during));
      await run(here, XL, 'destroy', 'copy');
      rmSync(join(here, 'disks'), { recursive: true, force: true });
      ticks = before;
    }
  } finally {
    clearInterval(poll);
    for (const root of roots) {
      await endDomains(root);
      await stopDaemon(root);
    }
    rmSync(folder, { recursive: true, force: true });
  }
  return figures;
}

export function movesTable(engine: DomusEngine, figures: MoveFigures): string {
  const rows = [...figures].map(([name, values]) => [name, minAndMedian(values)]);
  return table([[MACHINE_TITLES[engine], 'minimum / median, s'], ...rows]);
}

function configOf(engine: DomusEngine, { kernel, ramdisk }: MovedGuest): string[] {
  const script = Buffer.from('dmesg -n 1; exec /busy').toString('base64');
  return [
    ...['name="mover"', `kernel="${kernel}"`, `ramdisk="${ramdisk}"`, `memory=${MEMORY_MIB}`, `engine="${engine}"`],
    `cmdline="console=hvc0 domus.run=${script}"`,
  ];
}

/** What a domain's process has logged. */
function logOf(root: string, name: string): string {
  return readFileSync(join(root, 'log', `xl-${name}.log`), 'utf8');
}

/** Waits until it has run for a while from now on. @throws RunError */
async function steady(ticks: Ticks): Promise<void> {
  const wanted = ticks.all.length + STEADY;
  const endMs = performance.now() + TICKS_LIMIT_MS;
  while (ticks.all.length < wanted) {
    if (performance.now() > endMs) throw new RunError('the guest says nothing');
    await sleep(POLL_MS);
  }
}

/** @throws RunError for another exit code than 0 */
function run(root: string, program: string, ...words: readonly string[]): Promise<{ ms: number; text: string }> {
  const env = { ...process.env, DOMUS_STATE_DIR: root };
  const startMs = performance.now();
  return new Promise((resolve, reject) => {
    execFile(process.execPath, [program, ...words], { env }, (error, out, err) => {
      if (error !== null) reject(new RunError(`${words.join(' ')}: ${err}`));
      else resolve({ ms: performance.now() - startMs, text: out + err });
    });
  });
}
