/** The tables that the bench prints. */

import { HYPERCALLS } from '../../src/hypervisor/hypercalls/table.ts';
import { minAndMedian, ratio, table } from './figures.ts';
import { MACHINE_TITLES, type MachineName } from './machines.ts';
import type { MemoryFigures, ThreadTimes } from './process-figures.ts';
import type { EngineCounts, ExitCounts } from './statistics.ts';
import { BOOT_WANTED, type Load, type Times } from './workload.ts';

/** What was measured of a machine. */
export interface Results {
  readonly name: MachineName;
  /** One entry a run. */
  readonly times: Times[];
  /** One second after the shell is there, in a boot without loads. */
  memory: MemoryFigures | null;
  /** In that boot, and in the last run with loads. Of Domus only. */
  idleExits: ExitCounts | null;
  exits: ExitCounts | null;
  idleEngine: EngineCounts | null;
  engine: EngineCounts | null;
  /** In the last run: up to the shell, and from there to the end of the last load. */
  bootThreads: ThreadTimes | null;
  loadThreads: ThreadTimes | null;
  /** Microseconds by what the vCPU did, in a boot with loads of its own. */
  profile: Readonly<Record<string, number>> | null;
  /** Instructions of the guest, in another boot with loads that counts them. */
  instructions: { readonly interpreted: number; readonly inRegions: number } | null;
}

const EXIT_CALLS_SHOWN = 8;
const RARE_SHOWN = 8;

/** A column of times for each machine, and for each engine of Domus the ratio; by the host's clock. */
export function timesTable(results: readonly Results[], loads: readonly Load[]): string {
  const tcg = results.find((one) => one.name === 'tcg');
  const engines = tcg === undefined ? [] : results.filter((one) => one.name !== 'tcg');
  const row = (title: string, wanted: number | null, pick: (times: Times) => number): string[] => [
    title,
    ...results.map((one) => minAndMedian(one.times.map(pick))),
    ...engines.map((one) => ratio(one.times.map(pick), (tcg?.times ?? []).map(pick))),
    wanted === null ? '' : wanted.toFixed(1),
  ];
  return table([
    [
      'seconds, min / median',
      ...results.map((one) => MACHINE_TITLES[one.name]),
      ...engines.map((one) => `tcg : ${one.name}`),
      'wanted',
    ],
    row('boot to shell', BOOT_WANTED, (times) => times.bootMs),
    ...loads.map(({ name, title, wanted }) => row(title, wanted, (times) => times.loads[name].hostMs)),
  ]);
}

/** The largest difference between the two clocks in one load, in ms: steps of 10 ms, plus the way of a mark through the console. */
export function clockDifferenceMs(results: readonly Results[]): number {
  const differences = results.flatMap((one) =>
    one.times.flatMap((times) => Object.values(times.loads).map((load) => Math.abs(load.guestMs - load.hostMs))),
  );
  return Math.max(0, ...differences);
}

export function memoryTable(results: readonly Results[]): string | null {
  const known = results.filter((one) => one.memory !== null);
  if (known.length === 0) return null;
  const mb = (kib: number | null): string => (kib === null ? '?' : ((kib * 1024) / 1e6).toFixed(1));
  const row = (title: string, pick: (memory: MemoryFigures) => number | null): string[] => [
    title,
    ...known.map((one) => mb(one.memory === null ? null : pick(one.memory))),
  ];
  return table([
    ['MB after boot', ...known.map((one) => MACHINE_TITLES[one.name])],
    row('resident in all', (memory) => memory.residentKiB),
    row("the guest's memory, as far as touched", (memory) => memory.guestKiB),
    row('beyond it', (memory) => (memory.guestKiB === null ? null : memory.residentKiB - memory.guestKiB)),
    row('of that, mapped from files', (memory) => memory.fileKiB),
    row('of that, code made at run time', (memory) => memory.codeKiB),
    row("of that, pages of V8's heap", (memory) => memory.heapPagesKiB),
  ]);
}

/** CPU seconds of each kind of thread. */
export function threadsTable({ bootThreads, loadThreads }: Results): string | null {
  if (bootThreads === null || loadThreads === null) return null;
  const seconds = (ms = 0): string => (ms / 1000).toFixed(2);
  const names = [...new Set([...Object.keys(bootThreads), ...Object.keys(loadThreads)])];
  const total = (name: string): number => sum(bootThreads, name) + sum(loadThreads, name);
  const rows = names
    .sort((a, b) => total(b) - total(a))
    .map((name) => {
      const cells = [bootThreads[name], loadThreads[name]].flatMap((time) => [
        seconds(time?.userMs),
        seconds(time?.systemMs),
        seconds(time?.guestMs),
      ]);
      return [name, ...cells];
    });
  const heads = ['boot'].concat('loads').flatMap((when) => ['user', 'kernel', 'guest'].map((how) => `${when}: ${how}`));
  return table([['CPU seconds', ...heads], ...rows]);

  function sum(times: ThreadTimes, name: string): number {
    const time = times[name];
    return time === undefined ? 0 : time.userMs + time.systemMs + time.guestMs;
  }
}

/** Two columns for each engine: a boot without loads, and with them. */
export function exitsTable(results: readonly Results[]): string | null {
  const columns = results.flatMap((one) => [
    { title: `${one.name}: boot`, exits: one.idleExits },
    { title: `${one.name}: with loads`, exits: one.exits },
  ]);
  const known = columns.filter((column): column is { title: string; exits: ExitCounts } => column.exits !== null);
  if (known.length === 0) return null;
  const rows = [['all', ...known.map(({ exits }) => String(exits.total))]];
  for (const kind of Object.keys(known[0].exits.kinds))
    rows.push([kind, ...known.map(({ exits }) => String(exits.kinds[kind] ?? 0))]);
  const calls = Object.entries(known[0].exits.hypercalls).sort((a, b) => b[1] - a[1]);
  for (const [nr] of calls.slice(0, EXIT_CALLS_SHOWN)) {
    const name = HYPERCALLS.find((call) => call.nr === Number(nr))?.name ?? nr;
    rows.push([`hypercall ${name}`, ...known.map(({ exits }) => String(exits.hypercalls[nr] ?? 0))]);
  }
  return table([['exits of Domus', ...known.map(({ title }) => title)], ...rows]);
}

export function engineTable({ name, idleEngine, engine }: Results): string | null {
  if (idleEngine === null || engine === null) return null;
  const rows = Object.keys(engine.counts).map((key) => [
    key,
    String(idleEngine.counts[key] ?? 0),
    String(engine.counts[key]),
  ]);
  rows.push(['instructions by TypeScript', String(idleEngine.rareTotal), String(engine.rareTotal)]);
  const rare = Object.keys(engine.rare).sort((a, b) => engine.rare[b] - engine.rare[a]);
  // One that is not among the most frequent of the boot is not known there.
  for (const key of rare.slice(0, RARE_SHOWN))
    rows.push([`of these, ${key}`, String(idleEngine.rare[key] ?? '-'), String(engine.rare[key])]);
  return table([[`${name} engine`, 'boot', 'with loads'], ...rows]);
}

export function profileTable(profile: Readonly<Record<string, number>>): string {
  const total = Object.values(profile).reduce((sum, us) => sum + us, 0);
  const rows = Object.entries(profile).map(([bucket, us]) => [bucket, ((100 * us) / total).toFixed(1)]);
  return table([["the vCPU's time, boot and loads", '%'], ...rows]);
}

export function instructionsTable({ interpreted, inRegions }: NonNullable<Results['instructions']>): string {
  const all = interpreted + inRegions;
  return table([
    ['instructions executed, boot and loads', 'millions', '%'],
    ['interpreted', (interpreted / 1e6).toFixed(1), ((100 * interpreted) / all).toFixed(1)],
    ['in regions', (inRegions / 1e6).toFixed(1), ((100 * inRegions) / all).toFixed(1)],
  ]);
}
