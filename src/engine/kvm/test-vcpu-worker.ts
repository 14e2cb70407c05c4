/**
 * Runs one vCPU of a test until FLAG_STOP: nothing is handled, flushes are obeyed. Or reads its TSC until then. Posts 'open' and then
 * { exits, lastExit, error }.
 */

import { parentPort, workerData } from 'node:worker_threads';
import type { MachineMemoryHandle } from '../../machine/memory.ts';
import { MachineMemory } from '../../machine/memory.ts';
import { FLAG_FLUSH_TLB, FLAG_STOP, VCPU, VcpuBlock } from '../../machine/vcpu-block.ts';
import { EXIT_INTERRUPTED } from '../engine.ts';
import { openKvmVcpu } from './kvm-vcpu.ts';
import { prepareTestRoot } from './test-guest.ts';
import type { KvmDomainHandle } from './vm.ts';

export type TestVcpuWork = 'run' | 'readTsc';

export interface TestVcpuData {
  readonly domain: KvmDomainHandle;
  readonly machine: MachineMemoryHandle;
  readonly block: WebAssembly.Memory;
  readonly vcpuId: number;
  readonly work: TestVcpuWork;
  /** Leave without closing the vCPU. */
  readonly leak: boolean;
}

export interface TestVcpuReport {
  readonly exits: number;
  readonly lastExit: number;
  readonly error: string;
}

const data = workerData as TestVcpuData;
const block = new VcpuBlock(data.vcpuId, data.block);
const vcpu = openKvmVcpu(data.domain, new MachineMemory(data.machine), block);
prepareTestRoot(vcpu);
parentPort?.postMessage('open');
let exits = 0;
let lastExit: number = EXIT_INTERRUPTED;
for (;;) {
  const flags = Atomics.exchange(block.i32, VCPU.flags / 4, 0);
  if ((flags & FLAG_STOP) !== 0) break;
  if ((flags & FLAG_FLUSH_TLB) !== 0) vcpu.flushTlb();
  if (data.work === 'run') lastExit = vcpu.run();
  else vcpu.readTsc();
  exits++;
  if (lastExit !== EXIT_INTERRUPTED) break;
}
const report: TestVcpuReport = { exits, lastExit, error: vcpu.describeError() };
if (!data.leak) vcpu.close();
parentPort?.postMessage(report);
