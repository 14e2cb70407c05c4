/** The thread of one vCPU: opens its engine, says it is ready, and runs the vCPU until the domain ends. */

import { parentPort, workerData } from 'node:worker_threads';
import { Domain } from '../hypervisor/domain.ts';
import { runVcpu } from '../hypervisor/run-vcpu.ts';
import { startClock, writeTimeInfo } from '../hypervisor/time.ts';
import { crashDomain } from '../hypervisor/traps.ts';
import { Vcpu } from '../hypervisor/vcpu.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { monotonicNs } from './clock.ts';
import { createKicker, openVcpu } from './engines.ts';
import type { VcpuWorkerData, VcpuWorkerMessage } from './worker-messages.ts';

const say = (message: VcpuWorkerMessage): void => parentPort?.postMessage(message);

async function main(data: VcpuWorkerData): Promise<void> {
  const domain = new Domain(data.domain);
  const block = domain.vcpus[data.vcpuId];
  const engine = await openVcpu(data.engine, domain, data.vcpuId);
  try {
    const host = { monotonicNs, log: (line: string) => say({ kind: 'log', line }) };
    const v = new Vcpu(domain, data.vcpuId, engine, createKicker(data.engine), host);
    if (data.vcpuId === 0) {
      engine.prepareRoot(block.u32[VCPU.kernelRoot >> 2] * 4096);
      startClock(domain, engine, Date.now() * 1e6);
      writeTimeInfo(v);
    }
    say({ kind: 'ready' });
    try {
      runVcpu(v);
    } catch (error) {
      crashDomain(v, `bug in Domus: ${error instanceof Error ? error.stack : String(error)}`);
    }
    if (process.env['DOMUS_STATS'])
      for (const line of engine.statistics()) say({ kind: 'log', line: `d${domain.domid}v${data.vcpuId}: ${line}` });
  } finally {
    engine.close();
  }
}

try {
  await main(workerData as VcpuWorkerData);
} catch (error) {
  say({ kind: 'failed', message: error instanceof Error ? (error.stack ?? error.message) : String(error) });
}
