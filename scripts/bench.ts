/**
 * `npm run bench`: the same Debian guest on each engine of Domus and on QEMU's TCG, side by side.
 *
 * Absolute times say little on a shared machine, so what counts is the ratio of two medians taken in one go: the runs of the
 * machines alternate, and what slows one slows the others. A ratio above 1 means that Domus is faster.
 *
 * Each run is a whole boot: from the start of the process (Node and xl; QEMU and its BIOS) to the first line of the guest's
 * script, then the loads, then poweroff. QEMU's guest also fails to load four Xen modules on the way, which costs it little.
 * `--loads gcc` takes another guest, one with gcc in its ramdisk, so its boots are not those of the others.
 * One boot of each machine before the runs, without loads, gives memory and the exits per boot; it also warms the host's caches.
 * Two boots of the wasm engine behind them, one under V8's profiler, one that counts instructions, say where its time goes.
 */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { probeKvm } from '../src/engine/kvm/self-test.ts';
import { stopDaemon } from '../src/host/domusd.ts';
import { translatedAt, untilMade } from '../src/host/translated-code.ts';
import { KernelImageError } from '../src/toolstack/builder/errors.ts';
import { AptError } from '../src/toolstack/guest-image/apt.ts';
import { type BuiltGuest, buildGuest, GuestBuildError } from '../src/toolstack/guest-image/build.ts';
import { DebError } from '../src/toolstack/guest-image/deb.ts';
import { generateProgram } from '../test/boot/programs/program-generator.ts';
import { makeDisk, startServers } from './bench/host-parts.ts';
import {
  DOMUS_ENGINES,
  type DomusEngine,
  guestMappingBytes,
  killMachines,
  MACHINE_TITLES,
  type MachineName,
  type MachineRun,
  QEMU,
  qemuVersion,
  RunError,
  type RunRequest,
  runMachine,
  startMachine,
} from './bench/machines.ts';
import { measureMoves, movesTable } from './bench/moves.ts';
import { HELP, type Options, readOptions, UsageError } from './bench/options.ts';
import { readMemory, readThreads, type ThreadTimes, threadsSince } from './bench/process-figures.ts';
import { profilerOptions, readVcpuProfile } from './bench/profile.ts';
import { compile, fileEntry, SCRIPT_PATH, virtioModules, writeRamdisk } from './bench/ramdisk.ts';
import {
  clockDifferenceMs,
  engineTable,
  exitsTable,
  instructionsTable,
  memoryTable,
  profileTable,
  type Results,
  threadsTable,
  timesTable,
} from './bench/report.ts';
import { parseEngineCounts, parseExitCounts } from './bench/statistics.ts';
import {
  IDLE_SCRIPT,
  LOADS,
  type Load,
  loadScript,
  needsDevices,
  needsOf,
  PEER_SCRIPT,
  PLAIN_LOADS,
  repeated,
  SHELL_MARK,
  SOURCE_FUNCTIONS,
  SOURCE_PATH,
  type Times,
  timesOf,
} from './bench/workload.ts';

/** Memory of the guest. */
const MEMORY_MIB = 256;
/** With gcc in its ramdisk, which makes the boot another one too. */
const GCC_PACKAGES = ['gcc', 'libc6-dev'];
const GCC_MEMORY_MIB = 1280;
const SOURCE_SEED = 1;
/** Where QEMU's guests meet. */
const PEER_PORT = 37_099;
/** Boots that translate for those that are measured. */
const WARMING_MAX = 5;
/** From the shell's mark to the look at memory. */
const SETTLE_MS = 1000;

const onExit: (() => void)[] = [killMachines];
/** Done before a regular end. */
const onEnd: (() => Promise<void>)[] = [];

function load(): string {
  return loadavg()
    .map((value) => value.toFixed(2))
    .join(' ');
}

/** True where the CPU says that it is itself a guest's, so that each exit costs many times what it does on the bare CPU. */
function isNested(): boolean {
  try {
    return /^flags\s*:.*\bhypervisor\b/m.test(readFileSync('/proc/cpuinfo', 'utf8'));
  } catch {
    return false;
  }
}

/** Which of the machines can run here, and why the others cannot. Throws RunError when one that was asked for cannot. */
function chooseMachines(options: Options): { machines: MachineName[]; absent: string[]; qemu: string | null } {
  const machines: MachineName[] = [];
  const absent: string[] = [];
  let qemu: string | null = null;
  for (const engine of options.engines ?? DOMUS_ENGINES) {
    const probe = engine === 'kvm' ? probeKvm() : null;
    if (probe === null || probe.usable) machines.push(engine);
    else if (options.engines !== null) throw new RunError(`${MACHINE_TITLES[engine]}: ${probe.reason}`);
    else absent.push(`${MACHINE_TITLES[engine]} left out: ${probe.reason}`);
  }
  if (options.qemu) {
    qemu = qemuVersion();
    if (qemu !== null) machines.push('tcg');
    else absent.push(`${MACHINE_TITLES.tcg} left out: there is no ${QEMU}; on Debian: apt-get install qemu-system-x86`);
  }
  return { machines, absent, qemu };
}

type Guest = BuiltGuest & {
  readonly memoryMiB: number;
  readonly loads: readonly Load[];
  /** For runs with loads: the script is in the ramdisk. */
  readonly loaded: Pick<RunRequest, 'ramdisk' | 'script' | 'disk' | 'networks'>;
  readonly compiler: string | null;
};

/** The guest, what the loads that were asked for need, made in a folder of its own; and what was left out, and why. */
async function prepareGuest(options: Options): Promise<{ guest: Guest; absent: string[] }> {
  let loads: readonly Load[] = LOADS.filter(({ name }) => options.loads?.includes(name));
  if (options.loads === null) loads = PLAIN_LOADS;
  loads = repeated(loads, options.again);
  const needs = needsOf(loads);
  const compiles = needs.has('gcc');
  const built = await buildGuest({
    ...(compiles ? { packages: GCC_PACKAGES } : {}),
    onProgress: (step, detail) => console.error(`guest: ${step} ${detail}`),
  });
  const absent: string[] = [];
  let programs = [...new Set(loads.flatMap((one) => one.programs ?? []))];
  const made = programs.length === 0 ? null : compile(programs);
  if (typeof made === 'string') {
    const left = loads.filter((one) => one.programs !== undefined).map(({ name }) => name);
    if (options.loads !== null) throw new RunError(`${left.join(', ')}: ${made}`);
    absent.push(`load ${left.join(', ')} left out: ${made}`);
    loads = loads.filter((one) => one.programs === undefined);
    programs = [];
  }
  const folder = mkdtempSync(join(tmpdir(), 'domus-bench-'));
  onExit.push(() => rmSync(folder, { recursive: true, force: true }));
  const servers = needs.has('host') ? await startServers() : null;
  if (servers !== null) onEnd.push(async () => servers.close());
  const ramdisk = join(folder, 'initrd.gz');
  writeRamdisk(ramdisk, built.ramdisk, [
    ...(made !== null && typeof made !== 'string' ? made.entries : []),
    ...(needsDevices(needs) && options.qemu ? await virtioModules() : []),
    ...(compiles ? [fileEntry(SOURCE_PATH, generateProgram(SOURCE_SEED, SOURCE_FUNCTIONS))] : []),
    fileEntry(SCRIPT_PATH, loadScript(loads, servers)),
  ]);
  const disk = join(folder, 'disk.qcow2');
  if (needs.has('disk')) await makeDisk(disk);
  if (needs.has('peer')) {
    // The switch is in a daemon, which is the bench's own.
    process.env['DOMUS_STATE_DIR'] = folder;
    onEnd.push(async () => void (await stopDaemon(folder)));
  }
  const loaded = {
    ramdisk,
    script: `. ${SCRIPT_PATH}`,
    ...(needs.has('disk') ? { disk } : {}),
    networks: [
      ...(needs.has('host') || needs.has('peer') ? [{ kind: 'host' } as const] : []),
      ...(needs.has('peer') ? [{ kind: 'guests', port: PEER_PORT, isFirst: false } as const] : []),
    ],
  };
  const compiler = made !== null && typeof made !== 'string' ? made.compiler : null;
  const memoryMiB = compiles ? GCC_MEMORY_MIB : MEMORY_MIB;
  return { guest: { ...built, memoryMiB, loads, loaded, compiler }, absent };
}

/** Prints how long a guest stands still that moves. @throws RunError */
async function benchMoves(engines: readonly DomusEngine[], { runs, cold }: Options): Promise<void> {
  const built = await buildGuest({ onProgress: (step, detail) => console.error(`guest: ${step} ${detail}`) });
  const made = compile(['busy']);
  if (typeof made === 'string') throw new RunError(made);
  const folder = mkdtempSync(join(tmpdir(), 'domus-bench-'));
  onExit.push(() => rmSync(folder, { recursive: true, force: true }));
  const ramdisk = join(folder, 'initrd.gz');
  writeRamdisk(ramdisk, built.ramdisk, made.entries);
  console.log(`load average ${load()}; Linux ${release()}; Node ${process.version}; runs of each: ${runs}`);
  const translated = ownTranslated(cold);
  for (const engine of engines) {
    // What is measured last is not measured beside the making of code.
    if (engine === 'wasm' && !cold)
      await warmUp(translated, async () => await measureMoves(engine, { kernel: built.kernel, ramdisk }, 1));
    const figures = await measureMoves(engine, { kernel: built.kernel, ramdisk }, runs);
    console.log(`\n${movesTable(engine, figures)}`);
  }
  console.log(`\nload average at the end ${load()}`);
}

/** Runs the guest with its loads, and beside it the one that they talk to. */
async function runLoads(
  name: MachineName,
  guest: Guest,
  more: Pick<RunRequest, 'onMark' | 'nodeOptions' | 'countInstructions'>,
): Promise<MachineRun> {
  const { ramdisk } = guest.loaded;
  const networks = [{ kind: 'guests', port: PEER_PORT, isFirst: true }] as const;
  const endPeer = needsOf(guest.loads).has('peer')
    ? await startMachine(name, { ...guest, ramdisk, script: PEER_SCRIPT, networks })
    : null;
  try {
    return await runMachine(name, { ...guest, ...guest.loaded, ...more });
  } finally {
    endPeer?.();
  }
}

/** Where the wasm engine keeps what it has translated: the bench's own folder, which stays empty with `cold`. */
function ownTranslated(cold: boolean): string {
  const folder = mkdtempSync(join(tmpdir(), 'domus-bench-'));
  onExit.push(() => rmSync(folder, { recursive: true, force: true }));
  process.env['DOMUS_TRANSLATED'] = cold ? 'off' : folder;
  return folder;
}

/** Boots until there is next to nothing left to translate; returns how often. */
async function warmUp(translated: string, boot: () => Promise<unknown>): Promise<number> {
  for (let boots = 1; ; boots++) {
    const before = translatedAt(translated);
    await boot();
    await untilMade(translated);
    if (boots === WARMING_MAX || translatedAt(translated) === before) return boots;
  }
}

/** A boot without loads. */
async function measureIdle(results: Results, guest: Guest): Promise<void> {
  let look: NodeJS.Timeout | undefined;
  const run = await runMachine(results.name, {
    ...guest,
    script: IDLE_SCRIPT,
    onMark: (mark, pid) => {
      if (mark.name !== SHELL_MARK) return;
      look = setTimeout(() => {
        results.memory = readMemory(pid, guestMappingBytes(results.name, guest.memoryMiB));
      }, SETTLE_MS);
    },
  });
  clearTimeout(look);
  results.idleExits = parseExitCounts(run.log);
  results.idleEngine = parseEngineCounts(run.log);
}

async function measure(results: Results, guest: Guest): Promise<{ times: Times; console: string }> {
  let boot: ThreadTimes | null = null;
  let end: ThreadTimes | null = null;
  const run = await runLoads(results.name, guest, {
    onMark: (mark, pid) => {
      if (results.name === 'tcg') return;
      end = readThreads(pid) ?? end;
      if (mark.name === SHELL_MARK) boot = end;
    },
  });
  const times = timesOf(run.marks, guest.loads);
  if (times === null) throw new RunError(`${MACHINE_TITLES[results.name]}: marks are missing on the guest's console`);
  const failed = /^(?:nbody: wrong result|[\w-]+: failed)$/m.exec(run.console)?.[0];
  if (failed !== undefined) throw new RunError(`${MACHINE_TITLES[results.name]}: ${failed}`);
  results.times.push(times);
  results.exits = parseExitCounts(run.log);
  results.engine = parseEngineCounts(run.log);
  results.bootThreads = boot;
  results.loadThreads = boot === null || end === null ? null : threadsSince(boot, end);
  return { times, console: run.console };
}

async function profileWasm(results: Results, guest: Guest): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'domus-bench-'));
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  onExit.push(remove);
  await runLoads('wasm', guest, { nodeOptions: profilerOptions(folder) });
  results.profile = readVcpuProfile(folder);
  remove();
}

async function countInstructions(results: Results, guest: Guest): Promise<void> {
  const run = await runLoads('wasm', guest, { countInstructions: true });
  const counts = parseEngineCounts(run.log)?.counts;
  const interpreted = counts?.['instructions interpreted'];
  const inRegions = counts?.['instructions executed in regions'];
  if (interpreted === undefined || inRegions === undefined) throw new RunError('xl printed no count of instructions');
  results.instructions = { interpreted, inRegions };
}

function print(all: readonly Results[], loads: readonly Load[]): void {
  const show = (text: string | null): void => {
    if (text !== null) console.log(`\n${text}`);
  };
  show(timesTable(all, loads));
  if (loads.length > 0)
    console.log(
      `\nThe guest's clock and the host's differ by at most ${clockDifferenceMs(all).toFixed(0)} ms in a load.`,
    );
  show(memoryTable(all));
  show(exitsTable(all));
  for (const results of all) {
    const threads = threadsTable(results);
    if (threads !== null) show(`Threads of ${MACHINE_TITLES[results.name]}, the last run:\n\n${threads}`);
    show(engineTable(results));
    if (results.profile !== null) show(profileTable(results.profile));
    if (results.instructions !== null) show(instructionsTable(results.instructions));
    if (results.name !== 'tcg' && results.exits === null)
      show(`xl printed no DOMUS_STATS lines for ${results.name}, so the exits are not known`);
  }
}

/** Returns the exit code. */
async function main(args: readonly string[]): Promise<number> {
  const options = readOptions(args);
  if (options === null) {
    process.stdout.write(HELP);
    return 0;
  }
  const { machines, absent, qemu } = chooseMachines(options);
  for (const line of absent) console.log(line);
  if (machines.length === 0) return 1;
  if (options.moves) {
    await benchMoves(
      machines.filter((name) => name !== 'tcg'),
      options,
    );
    return 0;
  }

  const { guest, absent: left } = await prepareGuest(options);
  for (const line of left) console.log(line);
  const loadAtStart = load();
  const cpu = `${cpus().length} x ${cpus()[0]?.model.trim() ?? 'unknown CPU'}${isNested() ? ', itself virtual' : ''}`;
  console.log(`load average ${loadAtStart}; ${cpu}; Linux ${release()}; Node ${process.version}`);
  if (qemu !== null) console.log(qemu);
  if (guest.compiler !== null) console.log(`programs made by ${guest.compiler}`);
  console.log(`runs of each, in turn: ${options.runs}; ${machines.map((name) => MACHINE_TITLES[name]).join(', ')}`);

  const all = machines.map(
    (name): Results => ({
      name,
      times: [],
      memory: null,
      idleExits: null,
      exits: null,
      idleEngine: null,
      engine: null,
      bootThreads: null,
      loadThreads: null,
      profile: null,
      instructions: null,
    }),
  );
  const translated = ownTranslated(options.cold);
  if (!options.cold && machines.includes('wasm')) {
    const boots = await warmUp(translated, async () => await runLoads('wasm', guest, {}));
    console.log(`${MACHINE_TITLES.wasm} begins with what ${boots} boots with the same loads have translated`);
  }
  for (const results of all) await measureIdle(results, guest);
  let kernel = '';
  for (let run = 1; run <= options.runs; run++) {
    for (const results of all) {
      const measured = await measure(results, guest);
      await untilMade(translated);
      kernel = /Linux version (\S+)/.exec(measured.console)?.[1] ?? kernel;
      const loads = guest.loads.map(({ name }) => `${name} ${(measured.times.loads[name].hostMs / 1000).toFixed(3)}`);
      const boot = (measured.times.bootMs / 1000).toFixed(3);
      console.log(`run ${run}  ${MACHINE_TITLES[results.name].padEnd(12)} boot ${boot}  ${loads.join('  ')}`);
    }
  }
  const wasm = all.find((results) => results.name === 'wasm');
  if (options.profile && wasm !== undefined) {
    await profileWasm(wasm, guest);
    await countInstructions(wasm, guest);
  }
  const loadAtEnd = load();
  console.log(`guest kernel ${kernel}; load average at the end ${loadAtEnd}`);
  print(all, guest.loads);

  if (options.json !== null) {
    const report = {
      date: new Date().toISOString(),
      load: { start: loadAtStart, end: loadAtEnd },
      host: { cpu, linux: release(), node: process.version, qemu, compiler: guest.compiler },
      guestKernel: kernel,
      runs: options.runs,
      machines: all,
    };
    writeFileSync(options.json, `${JSON.stringify(report, undefined, 2)}\n`);
  }
  return 0;
}

/** Failures of a machine, of building the guest, and of the host, such as a full disk. Anything else keeps its stack. */
function isExpected(error: Error): boolean {
  const kinds = [RunError, GuestBuildError, AptError, DebError, KernelImageError];
  return kinds.some((kind) => error instanceof kind) || 'syscall' in error;
}

process.on('exit', () => {
  for (const end of onExit) end();
});
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const)
  process.on(signal, () => process.exit(code));

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (error instanceof UsageError) console.error(`bench: ${error.message}\nTry 'npm run bench -- --help'.`);
  else if (error instanceof Error && isExpected(error)) console.error(`bench: ${error.message}`);
  else throw error;
  process.exitCode = 1;
} finally {
  for (const end of onEnd) await end();
}
