/** A domain's VM: what the toolstack's main thread makes once, and posts to the vCPU workers. */

import type { MachineMemory } from '../../machine/memory.ts';
import { measureFacts } from './facts.ts';
import type { KvmDomainHandle } from './vm.ts';
import { createVm, destroyVm } from './vm.ts';

export type { KvmDomainHandle } from './vm.ts';

/**
 * Creates the VM of a domain with room for `vcpus` vCPUs. Throws when KVM cannot be used: ask `probeKvm` first.
 * The first call of a process measures the host (some 50 ms). Everything in the handle can be posted to workers of this process.
 */
export function createKvmDomain(machine: MachineMemory, vcpus: number): KvmDomainHandle {
  return createVm(machine, vcpus, measureFacts());
}

/** Closes the VM and whatever vCPU workers that ended without `close()` left open. The vCPUs must not be running. */
export function closeKvmDomain(handle: KvmDomainHandle): void {
  destroyVm(handle);
}
