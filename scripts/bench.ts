/**
 * `npm run bench`: the same Debian guest on Domus and on QEMU's TCG, side by side.
 *
 * Absolute times say little on a shared machine, so what counts is the ratio of two medians taken in one go: the runs of the two
 * alternate, and what slows one slows the other. A ratio above 1 means that Domus is faster.
 *
 * Each run is a whole boot: from the start of the process (Node and xl; QEMU and its BIOS) to the first line of the guest's
 * script, then the loads, then poweroff. QEMU's guest also fails to load four Xen modules on the way, which costs it little.
 * One boot of Domus before the runs, without loads, gives the exits per boot; it also warms the caches, as QEMU's `--version` does.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, loadavg, release } from 'node:os';
import { parseArgs } from 'node:util';
import { probeKvm } from '../src/engine/kvm/self-test.ts';
import { HYPERCALLS } from '../src/hypervisor/hypercalls/table.ts';
import { KernelImageError } from '../src/toolstack/builder/errors.ts';
import { AptError } from '../src/toolstack/guest-image/apt.ts';
import { type BuiltGuest, buildGuest, GuestBuildError } from '../src/toolstack/guest-image/build.ts';
import { DebError } from '../src/toolstack/guest-image/deb.ts';
import { type ExitCounts, minAndMedian, parseExitCounts, ratio, table } from './bench/figures.ts';
import {
  killMachines,
  MACHINE_TITLES,
  type MachineName,
  type MachineRun,
  QEMU,
  qemuVersion,
  RunError,
  runMachine,
} from './bench/machines.ts';
import { IDLE_SCRIPT, LOADS, loadScript, type Times, timesOf } from './bench/workload.ts';

const HELP = `usage: npm run bench -- [OPTIONS]

Boots a Debian guest on Domus and on QEMU (tcg) in turn and compares boot time and three loads.

Options:
  --runs N          runs of each machine (default 3)
  --only kvm|tcg    one machine only: Domus (kvm) or QEMU (tcg)
  --json FILE       also write every single time to FILE
  -h, --help        print this text
`;

const RUNS_MAX = 1000;

interface Options {
  readonly runs: number;
  readonly only: MachineName | null;
  readonly json: string | null;
}

/** The command line is wrong. */
class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** Null stands for --help. */
function readOptions(args: readonly string[]): Options | null {
  const { values } = parse(args);
  if (values.help) return null;
  const runs = values.runs ?? '3';
  if (!/^\d+$/.test(runs) || Number(runs) < 1 || Number(runs) > RUNS_MAX)
    throw new UsageError(`--runs: expected a number from 1 to ${RUNS_MAX}, found \`${runs}'`);
  const only = values.only ?? null;
  if (only !== null && only !== 'kvm' && only !== 'tcg')
    throw new UsageError(`--only: expected kvm or tcg, found \`${only}'`);
  return { runs: Number(runs), only, json: values.json ?? null };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        runs: { type: 'string' },
        only: { type: 'string' },
        json: { type: 'string' },
        help: { type: 'boolean', short: 'h' },
      },
    });
  } catch (error) {
    // What parseArgs throws is about the command line only.
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

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

/** Which of the machines can run here, and why the others cannot. */
function chooseMachines(only: MachineName | null): { machines: MachineName[]; absent: string[]; qemu: string | null } {
  const machines: MachineName[] = [];
  const absent: string[] = [];
  let qemu: string | null = null;
  if (only !== 'tcg') {
    const probe = probeKvm();
    if (probe.usable) machines.push('kvm');
    else absent.push(`${MACHINE_TITLES.kvm} left out: ${probe.reason}`);
  }
  if (only !== 'kvm') {
    qemu = qemuVersion();
    if (qemu !== null) machines.push('tcg');
    else absent.push(`${MACHINE_TITLES.tcg} left out: there is no ${QEMU}; on Debian: apt-get install qemu-system-x86`);
  }
  return { machines, absent, qemu };
}

async function measure(name: MachineName, guest: BuiltGuest): Promise<{ times: Times; run: MachineRun }> {
  const run = await runMachine(name, guest, loadScript());
  const times = timesOf(run.marks);
  if (times === null) throw new RunError(`${MACHINE_TITLES[name]}: marks are missing on the guest's console`);
  return { times, run };
}

function timesTable(results: Readonly<Record<MachineName, readonly Times[]>>): string {
  const rows = [
    ['seconds, min / median', MACHINE_TITLES.kvm, MACHINE_TITLES.tcg, 'QEMU : Domus'],
    row('boot to shell', (times) => times.bootMs),
  ];
  for (const { name, title } of LOADS) {
    rows.push(row(`${title}, guest's clock`, (times) => times.loads[name].guestMs));
    rows.push(row(`${title}, host's clock`, (times) => times.loads[name].hostMs));
  }
  return table(rows);

  function row(title: string, pick: (times: Times) => number): string[] {
    const kvm = results.kvm.map(pick);
    const tcg = results.tcg.map(pick);
    return [title, minAndMedian(kvm), minAndMedian(tcg), ratio(kvm, tcg)];
  }
}

function exitsTable(idle: ExitCounts, loaded: ExitCounts): string {
  const rows = [
    ['exits of Domus', 'boot to poweroff', 'the same with loads'],
    ['all', String(idle.total), String(loaded.total)],
  ];
  for (const kind of Object.keys(idle.kinds))
    rows.push([kind, String(idle.kinds[kind]), String(loaded.kinds[kind] ?? 0)]);
  const calls = Object.entries(idle.hypercalls).sort((a, b) => b[1] - a[1]);
  for (const [nr, count] of calls.slice(0, 8)) {
    const name = HYPERCALLS.find((call) => call.nr === Number(nr))?.name ?? nr;
    rows.push([`hypercall ${name}`, String(count), String(loaded.hypercalls[nr] ?? 0)]);
  }
  return table(rows);
}

/** Returns the exit code. */
async function main(args: readonly string[]): Promise<number> {
  const options = readOptions(args);
  if (options === null) {
    process.stdout.write(HELP);
    return 0;
  }
  const { machines, absent, qemu } = chooseMachines(options.only);
  for (const line of absent) console.log(line);
  if (machines.length === 0) return 1;

  const guest = await buildGuest({ onProgress: (step, detail) => console.error(`guest: ${step} ${detail}`) });
  const loadAtStart = load();
  const cpu = `${cpus().length} x ${cpus()[0]?.model.trim() ?? 'unknown CPU'}${isNested() ? ', itself virtual' : ''}`;
  console.log(`load average ${loadAtStart}; ${cpu}; Linux ${release()}; Node ${process.version}`);
  if (qemu !== null) console.log(qemu);
  console.log(`runs of each, in turn: ${options.runs}; ${machines.map((name) => MACHINE_TITLES[name]).join(', ')}`);

  const idle = machines.includes('kvm') ? parseExitCounts((await runMachine('kvm', guest, IDLE_SCRIPT)).log) : null;
  const results: Record<MachineName, Times[]> = { kvm: [], tcg: [] };
  let loaded: ExitCounts | null = null;
  let kernel = '';
  for (let run = 1; run <= options.runs; run++) {
    for (const name of machines) {
      const measured = await measure(name, guest);
      results[name].push(measured.times);
      kernel = /Linux version (\S+)/.exec(measured.run.console)?.[1] ?? kernel;
      if (name === 'kvm') loaded = parseExitCounts(measured.run.log);
      const loads = LOADS.map((one) => `${one.name} ${(measured.times.loads[one.name].hostMs / 1000).toFixed(3)}`);
      const boot = (measured.times.bootMs / 1000).toFixed(3);
      console.log(`run ${run}  ${MACHINE_TITLES[name].padEnd(12)} boot ${boot}  ${loads.join('  ')}`);
    }
  }
  const loadAtEnd = load();
  console.log(`guest kernel ${kernel}; load average at the end ${loadAtEnd}`);
  console.log(`\n${timesTable(results)}`);
  if (idle !== null && loaded !== null) console.log(`\n${exitsTable(idle, loaded)}`);
  else if (machines.includes('kvm')) console.log('\nxl printed no DOMUS_STATS lines, so the exits are not known');

  if (options.json !== null) {
    const report = {
      date: new Date().toISOString(),
      load: { start: loadAtStart, end: loadAtEnd },
      host: { cpu, linux: release(), node: process.version, qemu },
      guestKernel: kernel,
      runs: options.runs,
      results,
      exits: { boot: idle, withLoads: loaded },
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

process.on('exit', killMachines);
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
}
