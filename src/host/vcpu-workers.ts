/** The worker threads of a domain's vCPUs, as the main thread sees them. */

import { setTimeout as sleep } from 'node:timers/promises';
import type { Worker } from 'node:worker_threads';
import { SHUTDOWN_crash } from '../abi/xen.ts';
import type { KeptRegions } from '../engine/wasm/kept-regions.ts';
import type { CpuFeatures } from '../hypervisor/cpu-features.ts';
import type { Domain } from '../hypervisor/domain.ts';
import { untilParked } from '../hypervisor/domain-state.ts';
import { notifyVcpu } from '../hypervisor/event-channels.ts';
import { FLAG_TELL_CODE, VCPU } from '../machine/vcpu-block.ts';
import { type EarlyThreads, startVcpuThread } from './early-threads.ts';
import { createKicker, type EngineHandle } from './engines.ts';
import { type ForeignCall, refuseForeignCall } from './foreign-calls.ts';
import { HostError } from './host-error.ts';
import { keepTranslated } from './translated-code.ts';
import type { VcpuWorkerCommand, VcpuWorkerData, VcpuWorkerMessage } from './worker-messages.ts';

export interface VcpuWorkers {
  /** All have opened their engine: what it shows of a CPU. Rejects with a HostError. */
  readonly ready: Promise<CpuFeatures>;
  readonly ended: Promise<void>;
  /** The domain is built: they may run it as soon as they are ready. */
  run(): void;
  /** The domain is restored, and paused: resolves when all have taken up their vCPU and wait, or when the domain has ended. */
  resume(): Promise<void>;
  /** Of each vCPU, what code has run since this was called last (Engine.notedCode); nothing of one that does not answer soon. */
  notedCode(): Promise<readonly Uint32Array[]>;
  /** Before `resume`: resolves when a vCPU has prepared for what `notedCode` has told elsewhere. */
  prepareCode(vcpuId: number, noted: Uint32Array): Promise<void>;
  /** From now on, who does what a vCPU asks of other domains. */
  serveForeign(serve: (call: ForeignCall) => void): void;
  /** The domain will not run. */
  abandon(): Promise<void>;
}

export interface VcpuWorkersOptions {
  readonly domain: Domain;
  readonly engine: EngineHandle;
  /** What wakes the main thread (doorbell.ts). */
  readonly doorbellFd: number | null;
  /** They take up vCPUs that were saved. */
  readonly restored: boolean;
  /** The guest stands still until it runs here. */
  readonly rehearses: boolean;
  /** They may ask for what belongs to other domains. */
  readonly hasPeers: boolean;
  /** Threads that have been started for it. */
  readonly threads: EarlyThreads | null;
  readonly log: (line: string) => void;
}

/** A vCPU that runs looks at its flags more often. */
const NOTED_LIMIT_MS = 50;

/** Starts a worker for each vCPU; the domain need not be built yet. */
export function startVcpuWorkers(options: VcpuWorkersOptions): VcpuWorkers {
  const { domain, engine, threads, log, ...more } = options;
  const workers: Worker[] = [];
  const ready: Promise<CpuFeatures>[] = [];
  const ended: Promise<void>[] = [];
  // Before somebody serves them, other domains are as good as gone.
  const served: { serve: (call: ForeignCall) => void } = { serve: refuseForeignCall };
  const kept: KeptRegions[] = [];
  let hasEnded = false;
  /** By vCPU: who waits for what it says next of code. */
  const waiting: ((noted: Uint32Array) => void)[] = domain.vcpus.map(() => () => {});
  for (const vcpu of domain.vcpus) {
    const data: VcpuWorkerData = { ...more, domain: domain.handle(), vcpuId: vcpu.vcpuId, engine };
    const worker = threads?.take(data) ?? startVcpuThread(data);
    workers.push(worker);
    ready.push(
      new Promise((resolve, reject) => {
        const fail = (message: string): void => {
          reject(new HostError(`vCPU ${vcpu.vcpuId} cannot start: ${message}`));
          log(`d${domain.domid}v${vcpu.vcpuId}: ${message}`);
          domain.shutdown(SHUTDOWN_crash);
        };
        worker.on('message', (message: VcpuWorkerMessage) => {
          if (message.kind === 'ready') resolve(message.cpu);
          else if (message.kind === 'log') log(`(XEN) ${message.line}`);
          else if (message.kind === 'code') waiting[vcpu.vcpuId](message.noted);
          else if (message.kind === 'prepared') waiting[vcpu.vcpuId](new Uint32Array(0));
          else if (message.kind === 'foreign') served.serve(message.call);
          else if (message.kind === 'kept') kept.push(message.kept);
          else fail(message.message);
        });
        worker.on('error', (error) => fail(error.stack ?? error.message));
      }),
    );
    const end = new Promise<void>((resolve) => worker.on('exit', () => resolve()));
    void end.then(() => {
      hasEnded = true;
    });
    ended.push(end);
  }
  threads?.end();
  const allEnded = Promise.all(ended).then(() => {
    try {
      keepTranslated(kept);
    } catch (error) {
      // The domain has lost nothing.
      log(`translated code is not kept: ${error instanceof Error ? error.message : String(error)}`);
    }
  });
  const allReady = Promise.all(ready).then(([first]) => first);
  allReady.catch(() => undefined);
  const command = (worker: Worker, what: VcpuWorkerCommand): void => worker.postMessage(what);
  const start = (some: readonly Worker[]): void => {
    for (const worker of some) command(worker, 'run');
  };
  const answerOf = (vcpuId: number): Promise<Uint32Array> =>
    new Promise((resolve) => {
      waiting[vcpuId] = resolve;
    });
  return {
    ready: allReady,
    ended: allEnded,
    serveForeign: (serve) => {
      served.serve = serve;
    },
    notedCode: async () => {
      if (engine.kind !== 'wasm') return [];
      const kicker = createKicker(engine);
      const late = sleep(NOTED_LIMIT_MS, new Uint32Array(0));
      const told = domain.vcpus.map(({ vcpuId, i32 }) => {
        const answer = answerOf(vcpuId);
        Atomics.or(i32, VCPU.flags >> 2, FLAG_TELL_CODE);
        notifyVcpu(domain, vcpuId, kicker);
        return Promise.race([answer, late]);
      });
      return await Promise.all(told);
    },
    prepareCode: async (vcpuId, noted) => {
      const done = answerOf(vcpuId);
      command(workers[vcpuId], { noted });
      await Promise.race([done, ended[vcpuId]]);
    },
    run: () => start(workers),
    resume: async () => {
      // vCPU 0 starts the clock by which the others set theirs.
      start(workers.slice(0, 1));
      // One that is to end does not park, and the others end when they have been told to run.
      await untilParked(domain, 1, () => hasEnded);
      start(workers.slice(1));
      await untilParked(domain, workers.length, () => hasEnded);
    },
    abandon: async () => {
      await Promise.all(workers.map((worker) => worker.terminate()));
    },
  };
}
