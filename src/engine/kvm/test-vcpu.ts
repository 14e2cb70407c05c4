/** For tests: a vCPU on a thread of its own. */

import { Worker } from 'node:worker_threads';
import type { MachineMemory } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { monotonicNs } from './host.ts';
import type { TestVcpuData, TestVcpuReport, TestVcpuWork } from './test-vcpu-worker.ts';
import type { KvmDomainHandle } from './vm.ts';

export interface RunningVcpu {
  readonly worker: Worker;
  readonly report: Promise<TestVcpuReport>;
  /** Of the worker; 'exit' may come in the same turn as the report. */
  readonly exited: Promise<unknown>;
}

/** Fulfilled once the vCPU is open; rejected when the worker throws. */
export function startTestVcpu(
  domain: KvmDomainHandle,
  machine: MachineMemory,
  block: VcpuBlock,
  options: { readonly work?: TestVcpuWork; readonly leak?: boolean } = {},
): Promise<RunningVcpu> {
  const data: TestVcpuData = {
    domain,
    machine: machine.handle(),
    block: block.memory,
    vcpuId: block.vcpuId,
    work: options.work ?? 'run',
    leak: options.leak ?? false,
  };
  const worker = new Worker(new URL('./test-vcpu-worker.ts', import.meta.url), { workerData: data });
  const exited = new Promise((resolve) => worker.on('exit', resolve));
  return new Promise((resolve, reject) => {
    worker.on('error', reject);
    const report = new Promise<TestVcpuReport>((reported) => {
      worker.on('message', (message: 'open' | TestVcpuReport) => {
        if (message === 'open') resolve({ worker, report, exited });
        else reported(message);
      });
    });
  });
}

/** Throws when the condition does not become true in 10 s. */
export async function until(condition: () => boolean): Promise<void> {
  const end = monotonicNs() + 10e9;
  while (!condition()) {
    if (monotonicNs() > end) throw new Error('nothing happened for 10 s');
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
