/** What the thread of one vCPU does: opens its engine, waits for the domain to be built, and runs the vCPU until the domain ends. */

import { parentPort, workerData } from 'node:worker_threads';
import type { Engine, Kicker } from '../engine/engine.ts';
import { cpuFeatures } from '../hypervisor/cpu-features.ts';
import { createDomain, DOMAIN, Domain, rootFrames } from '../hypervisor/domain.ts';
import { runVcpu, unpark, waitUnpaused } from '../hypervisor/run-vcpu.ts';
import { startClock, writeTimeInfo } from '../hypervisor/time.ts';
import { crashDomain } from '../hypervisor/traps.ts';
import { type Host, Vcpu } from '../hypervisor/vcpu.ts';
import { createMachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import { FLAG_STOP, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { ringByPipe } from './doorbell.ts';
import { createKicker, loadEngine, openVcpu } from './engines.ts';
import { ForeignCalls } from './foreign-calls.ts';
import { createVcpuHost } from './vcpu-host.ts';
import type { EarlyThreadData, VcpuWorkerCommand, VcpuWorkerData, VcpuWorkerMessage } from './worker-messages.ts';

const REHEARSED_PAGES = 16;

const say = (message: VcpuWorkerMessage): void => parentPort?.postMessage(message);

/** Resolves when the domain is built. `prepare`: what may be done before. */
function toldToRun(prepare: (noted: Uint32Array) => void): Promise<void> {
  const port = parentPort;
  if (port === null) throw new Error('bug: the thread of a vCPU is no worker');
  return new Promise((resolve) => {
    const onCommand = (command: VcpuWorkerCommand): void => {
      if (command !== 'run') {
        prepare(command.noted);
        return;
      }
      port.off('message', onCommand);
      resolve();
    };
    port.on('message', onCommand);
  });
}

/** All roots that the guest has made, of which this engine has not seen one. */
function prepareRoots(domain: Domain, engine: Engine): void {
  for (const frame of rootFrames(domain)) engine.prepareRoot(frame * PAGE_SIZE);
}

/** What comes back later does so for a small domain first, so that JavaScript has compiled it. All that the engine is told here it is told again. */
function rehearse(engine: Engine, kicker: Kicker, host: Host): void {
  const domain = createDomain(createMachineMemory(REHEARSED_PAGES, REHEARSED_PAGES), 0, 1, new Uint8Array(16));
  prepareRoots(domain, engine);
  startClock(domain, engine, Date.now() * 1e6, 0);
  const v = new Vcpu(domain, 0, engine, kicker, host);
  unpark(v);
  Atomics.store(v.block.i32, VCPU.state >> 2, VCPU_STATE_UP);
  waitUnpaused(v);
  Atomics.store(v.block.i32, VCPU.flags >> 2, FLAG_STOP);
  runVcpu(v);
}

async function main(data: VcpuWorkerData): Promise<void> {
  // It may come before the engine is open.
  const opened: { engine: Engine | null } = { engine: null };
  const isBuilt = toldToRun((noted) => {
    try {
      opened.engine?.prepareCode?.(noted);
    } catch (error) {
      // The guest has lost nothing.
      say({ kind: 'log', line: `code is not prepared: ${error instanceof Error ? error.message : String(error)}` });
    }
    say({ kind: 'prepared' });
  });
  const domain = new Domain(data.domain);
  ringByPipe(domain, data.doorbellFd);
  const block = domain.vcpus[data.vcpuId];
  const engine = await openVcpu(data.engine, domain, data.vcpuId, data.rehearses);
  opened.engine = engine;
  try {
    const foreign = data.hasPeers ? new ForeignCalls(domain, block, (call) => say({ kind: 'foreign', call })) : null;
    const log = (line: string): void => say({ kind: 'log', line });
    const tellCode = (): void => say({ kind: 'code', noted: engine.notedCode?.() ?? new Uint32Array(0) });
    const host = createVcpuHost(domain, data.vcpuId, foreign, log, tellCode);
    const kicker = createKicker(data.engine);
    const v = new Vcpu(domain, data.vcpuId, engine, kicker, host);
    if (data.rehearses) rehearse(engine, kicker, host);
    say({ kind: 'ready', cpu: cpuFeatures(v) });
    await isBuilt;
    if (data.vcpuId === 0) {
      engine.prepareRoot(block.u32[VCPU.kernelRoot >> 2] * 4096);
      if (data.restored) prepareRoots(domain, engine);
      // That of a restored domain goes on from where the main thread has set it.
      startClock(domain, engine, Date.now() * 1e6, data.restored ? domain.f64[DOMAIN.bootNs >> 3] : null);
      writeTimeInfo(v);
    }
    if (data.restored) unpark(v);
    try {
      runVcpu(v);
    } catch (error) {
      crashDomain(v, `bug in Domus: ${error instanceof Error ? error.stack : String(error)}`);
    }
    if (process.env['DOMUS_STATS'])
      for (const line of engine.statistics()) say({ kind: 'log', line: `d${domain.domid}v${data.vcpuId}: ${line}` });
    const kept = engine.keptRegions?.();
    if (kept !== undefined) say({ kind: 'kept', kept });
  } finally {
    engine.close();
  }
}

async function start(data: VcpuWorkerData): Promise<void> {
  try {
    await main(data);
  } catch (error) {
    say({ kind: 'failed', message: error instanceof Error ? (error.stack ?? error.message) : String(error) });
  }
}

if (workerData === null) {
  const port = parentPort;
  const onFirst = (first: EarlyThreadData | VcpuWorkerData): void => {
    if ('early' in first) {
      void loadEngine(first.early);
      return;
    }
    port?.off('message', onFirst);
    // It listens before it waits for anything.
    void start(first);
  };
  port?.on('message', onFirst);
} else await start(workerData as VcpuWorkerData);
