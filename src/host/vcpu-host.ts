/** What the thread of a vCPU hands in to the hypervisor (hypervisor/vcpu.ts, Host). */

import { readlinkSync } from 'node:fs';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import type { VcpuShares } from '../hypervisor/scheduling.ts';
import type { Host } from '../hypervisor/vcpu.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { monotonicNs } from './clock.ts';
import { SharesFile } from './cpu-shares.ts';
import type { ForeignCalls } from './foreign-calls.ts';
import { hostCalls } from './libc.ts';
import { stateRoot } from './state-dir.ts';

/** CPU time that the calling thread has used, ns. */
export function threadCpuNs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) * 1000;
}

/** In the thread that runs the vCPU. Writes its id into the vCPU's block. */
export function createVcpuHost(
  domain: Domain,
  vcpuId: number,
  foreign: ForeignCalls | null,
  log: (line: string) => void,
  tellCode: () => void,
): Host {
  domain.vcpus[vcpuId].i32[VCPU.threadId >> 2] = threadId();
  const calls = hostCalls();
  const { u8 } = domain.machine;
  return {
    monotonicNs,
    log,
    tellCode,
    foreign,
    threadCpuNs,
    shares: openShares(vcpuId),
    discard: (offset, sizeBytes) => {
      if (calls === null) return false;
      if (Atomics.load(domain.i32, DOMAIN.memoryIsCopy >> 2) === 0)
        return calls.discard(u8.subarray(offset, offset + sizeBytes));
      Atomics.store(domain.i32, DOMAIN.mappedAnew >> 2, 1);
      return calls.mapAt(calls.addressOf(u8) + offset, sizeBytes, -1, 0, 'write') === 0;
    },
  };
}

/** Linux's id of the calling thread; 0 elsewhere. */
function threadId(): number {
  try {
    // "PID/task/TID"
    return Number(/\/task\/(\d+)$/.exec(readlinkSync('/proc/thread-self'))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/** Without a place for the file, a domain's weight means nothing. */
function openShares(vcpuId: number): VcpuShares | null {
  try {
    return new SharesFile(stateRoot(), process.pid * 64 + vcpuId);
  } catch (error) {
    if (error instanceof Error && 'syscall' in error) return null;
    throw error;
  }
}
