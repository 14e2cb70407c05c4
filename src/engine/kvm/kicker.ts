/**
 * Makes a vCPU on another thread leave the guest: sets immediate_exit in its kvm_run page, so that a KVM_RUN about to start returns
 * at once, and sends its thread the kick signal, so that one already running returns too.
 */

import type { Kicker } from '../engine.ts';
import { KICK_SIGNAL, RUN_IMMEDIATE_EXIT } from './abi.ts';
import { requireHost } from './host.ts';
import { lockRecord, RECORD_WORDS, REGISTRY, unlockRecord } from './registry.ts';
import type { KvmDomainHandle } from './vm.ts';

/** Usable from any thread of the process that created the domain; make one a thread. Kicking a vCPU that is not open does nothing. */
export function createKvmKicker(handle: KvmDomainHandle): Kicker {
  const host = requireHost();
  const registry = new Int32Array(handle.registry);
  const pages: (Uint8Array | undefined)[] = new Array(handle.vcpus);
  const addresses = new Float64Array(handle.vcpus);

  return {
    kick(vcpuId: number): void {
      if (!(vcpuId >= 0 && vcpuId < handle.vcpus)) return;
      if (!lockRecord(registry, vcpuId)) return;
      const record = vcpuId * RECORD_WORDS;
      const tid = Atomics.load(registry, record + REGISTRY.tid);
      if (tid !== 0) {
        const lo = Atomics.load(registry, record + REGISTRY.runAddressLo) >>> 0;
        const address = (Atomics.load(registry, record + REGISTRY.runAddressHi) >>> 0) * 2 ** 32 + lo;
        let page = pages[vcpuId];
        if (page === undefined || addresses[vcpuId] !== address) {
          page = new Uint8Array(host.view(address, 4096));
          pages[vcpuId] = page;
          addresses[vcpuId] = address;
        }
        Atomics.store(page, RUN_IMMEDIATE_EXIT, 1);
        host.tgkill(handle.pid, tid, KICK_SIGNAL);
      }
      unlockRecord(registry, vcpuId);
    },
  };
}
