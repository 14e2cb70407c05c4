/** Threads of vCPUs that are told to go on while their domain ends. */

import { expect, test } from 'vitest';
import { createDomain } from '../hypervisor/domain.ts';
import { pauseDomain } from '../hypervisor/domain-state.ts';
import { createMachineMemory } from '../machine/memory.ts';
import { FLAG_STOP, VCPU } from '../machine/vcpu-block.ts';
import { createEngineDomain, createKicker } from './engines.ts';
import { startVcpuWorkers } from './vcpu-workers.ts';

const VCPUS = 3;

test('a restored domain that is stopped before it goes on ends with all its vCPUs', async () => {
  const domain = createDomain(createMachineMemory(64, 64), 5, VCPUS, new Uint8Array(16));
  const engine = createEngineDomain('wasm', domain.machine, VCPUS);
  const workers = startVcpuWorkers({
    ...{ domain, engine, doorbellFd: null, restored: true, rehearses: false, hasPeers: false, threads: null },
    log: () => {},
  });
  pauseDomain(domain, createKicker(engine));
  for (const vcpu of domain.vcpus) Atomics.or(vcpu.i32, VCPU.flags >> 2, FLAG_STOP);
  await workers.resume();
  await workers.ended;
  // They were stopped: none has failed.
  expect(domain.shutdownReason).toBe(-1);
});
