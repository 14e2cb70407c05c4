/** Runs a program as a domain in this process, and measures what the domain leaves behind. */

import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import type { EngineKind } from '../../src/host/engines.ts';
import type { LiveDomain } from '../../src/host/live-domain.ts';
import { runDomain } from '../../src/host/run-domain.ts';
import type { EndReason } from '../../src/host/run-options.ts';
import type { DomainState } from '../../src/hypervisor/domain-state.ts';
import type { DomainConfig } from '../../src/toolstack/config/domain-config.ts';
import { Program } from './program.ts';

export interface ProgramRun {
  /** 'detached' when the time limit ended it. */
  readonly reason: EndReason;
  readonly output: string;
  /** The words that it reported, signed. */
  readonly words: readonly bigint[];
  readonly log: readonly string[];
  readonly ms: number;
  /** Milliseconds from the abort to the end; 0 when it ended by itself. */
  readonly abortMs: number;
  /** CPU time of the whole process, in ms. */
  readonly cpuMs: number;
}

export interface ProgramOptions {
  /** Of the guest's own time: CPU time of its vCPUs, or none left that could run. On a busy machine that takes longer. */
  readonly timeoutMs?: number;
  readonly vcpus?: number;
}

function configFor(engine: EngineKind, kernel: string, vcpus: number): DomainConfig {
  return {
    name: 'hostile',
    uuid: new Uint8Array(16),
    type: 'pv',
    memoryMiB: 16,
    maxmemMiB: 16,
    vcpus,
    maxvcpus: vcpus,
    cpus: [],
    cpusSoft: [],
    cpuWeight: 256,
    cap: 0,
    limits: { maxGrantFrames: null, maxMaptrackFrames: null, maxGrantVersion: null, maxEventChannels: null },
    kernel,
    ramdisk: null,
    bootloader: null,
    bootloaderArgs: [],
    cmdline: 'earlyprintk=xen',
    onPoweroff: 'destroy',
    onReboot: 'destroy',
    onWatchdog: 'destroy',
    onCrash: 'destroy',
    onSoftReset: 'destroy',
    engine,
    cpuid: { cpuid: [], msr: [] },
    disks: [],
    vifs: [],
    vfbs: [],
    channels: [],
    engineMayChange: false,
    driverDomain: false,
  };
}

/** Workers compile the same sources for each domain: half of a short domain's time. Node reads it when a worker starts. */
process.env['NODE_COMPILE_CACHE'] ??= join(tmpdir(), 'domus-test-compile-cache');

/** No machine is that busy. */
const HANG_MS = 30_000;

/** A guest has had its time: what its vCPUs have used, or they wait for nothing that comes, or it is lost. */
function hasHad(timeoutMs: number, sinceMs: number, { vcpus }: DomainState): boolean {
  if (sinceMs < timeoutMs) return false;
  const usedMs = vcpus.reduce((sum, { timeNs }) => sum + timeNs / 1e6, 0);
  return usedMs >= timeoutMs || vcpus.every(({ online, blocked }) => !online || blocked) || sinceMs > 6 * timeoutMs;
}

/** Threads and open files of this process. */
async function held(): Promise<{ threads: number; files: number }> {
  return { threads: (await readdir('/proc/self/task')).length, files: (await readdir('/proc/self/fd')).length };
}

/** What a domain of each engine leaves in the process for good; another file of tests begins anew. */
const before = new Map<EngineKind, { threads: number; files: number }>();
let file: string | undefined;

/** Runs the program as it is; nothing is asserted but that the hypervisor found no bug of its own. */
async function runBare(engine: EngineKind, program: Program, options: ProgramOptions): Promise<ProgramRun> {
  const folder = await mkdtemp(join(tmpdir(), 'domus-hostile-'));
  const output: Uint8Array[] = [];
  const log: string[] = [];
  const abort = new AbortController();
  let abortedAt = 0;
  try {
    const kernel = join(folder, 'kernel');
    await writeFile(kernel, program.elf());
    let timer: NodeJS.Timeout | undefined;
    let live: LiveDomain | undefined;
    const started = performance.now();
    const cpu = process.cpuUsage();
    const end = await runDomain(configFor(engine, kernel, options.vcpus ?? 1), {
      console: {
        write: (bytes) => void output.push(Uint8Array.from(bytes)),
        onInput: () => undefined,
        close: () => undefined,
      },
      log: (line) => void log.push(line),
      quiet: true,
      signal: abort.signal,
      onLive: async (domain) => {
        live = domain;
        return {
          onRunning: () => undefined,
          onRuns: () => undefined,
          onEnding: () => undefined,
          onGone: () => undefined,
        };
      },
      onStart: () => {
        const startedAt = performance.now();
        timer = setInterval(() => {
          if (live && !hasHad(options.timeoutMs ?? 5000, performance.now() - startedAt, live.state())) return;
          clearInterval(timer);
          abortedAt = performance.now();
          abort.abort();
        }, 50);
      },
    });
    clearInterval(timer);
    const now = performance.now();
    const used = process.cpuUsage(cpu);
    const text = Buffer.concat(output).toString('latin1');
    const words = text.split('\n').filter((line) => /^[0-9a-f]{16}$/.test(line));
    return {
      reason: end.reason,
      output: text,
      words: words.map((word) => BigInt.asIntN(64, BigInt(`0x${word}`))),
      log,
      ms: now - started,
      abortMs: abortedAt === 0 ? 0 : now - abortedAt,
      cpuMs: (used.user + used.system) / 1000,
    };
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** A domain that does nothing wrong. */
async function runHarmless(engine: EngineKind): Promise<void> {
  const program = new Program();
  program.movImm('rax', 0x600d);
  program.report();
  program.shutdown();
  const run = await runBare(engine, program, {});
  expect(run, run.log.join('\n')).toMatchObject({ reason: 'poweroff', words: [0x600dn] });
}

/**
 * Runs a hostile program. Whatever it does: the hypervisor meets no bug of its own, the end comes soon after the time limit, no
 * thread and no open file stays, and the next domain runs.
 */
export async function runHostile(
  engine: EngineKind,
  program: Program,
  options: ProgramOptions = {},
): Promise<ProgramRun> {
  const { testPath } = expect.getState();
  if (testPath !== file) before.clear();
  file = testPath;
  let kept = before.get(engine);
  if (kept === undefined) {
    // Threads and files that the process makes once and keeps.
    await runHarmless(engine);
    kept = await held();
    before.set(engine, kept);
  }
  const run = await runBare(engine, program, options);
  const log = run.log.join('\n');
  expect(log).not.toMatch(/bug in Domus|cannot start|Error:/);
  expect(run.abortMs, log).toBeLessThan(HANG_MS);
  expect(run.log.length, log).toBeLessThan(200);
  // Elsewhere the next test's domain is the next one.
  if (run.reason === 'detached') await runHarmless(engine);
  let after = await held();
  for (let i = 0; i < 50 && (after.threads > kept.threads || after.files > kept.files); i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    after = await held();
  }
  expect(after.threads, 'threads').toBeLessThanOrEqual(kept.threads);
  expect(after.files, 'open files').toBeLessThanOrEqual(kept.files);
  return run;
}
