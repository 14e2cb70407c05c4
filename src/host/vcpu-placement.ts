/**
 * Where the host runs the vCPUs of a domain: on which of its CPUs the thread of each may run, and on which one it has run last. The
 * main thread of the domain's process asks for it.
 *
 * Hard affinity is what sched_setaffinity(2) lets an unprivileged process do with its own threads: CPUs outside the process's own set
 * cannot be had. Soft affinity is kept and shown only; the host's scheduler has no such notion.
 */

import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import type { Domain } from '../hypervisor/domain.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import type { CpuSet } from '../toolstack/config/cpu-set.ts';
import { HostError } from './host-error.ts';
import { hostCalls } from './libc.ts';

export interface VcpuPlace {
  /** The CPU that its thread has run on last; -1 if that is not known. */
  readonly cpu: number;
  readonly hard: CpuSet;
  readonly soft: CpuSet;
}

export class VcpuPlacement {
  readonly #domain: Domain;
  readonly #all: CpuSet;
  readonly #hard: CpuSet[];
  readonly #soft: CpuSet[];
  /** Threads that were told where to run. */
  readonly #pinned = new Set<number>();

  /** `hard` and `soft` may have less than a set for each vCPU: the others may use all CPUs. */
  constructor(domain: Domain, hard: readonly CpuSet[], soft: readonly CpuSet[]) {
    this.#domain = domain;
    const all = cpus().map((_, cpu) => cpu);
    this.#all = all;
    // A config may name more CPUs than the host has.
    const here = (set: CpuSet = all): CpuSet => (all.every((cpu) => set.includes(cpu)) ? all : set);
    this.#hard = domain.vcpus.map((_, vcpu) => here(hard[vcpu]));
    this.#soft = domain.vcpus.map((_, vcpu) => here(soft[vcpu]));
    for (const { vcpuId } of domain.vcpus) this.#note(vcpuId);
  }

  /** The threads run now. What cannot be had is told, and all CPUs are used instead. */
  apply(log: (line: string) => void): void {
    for (const { vcpuId } of this.#domain.vcpus) {
      try {
        this.#apply(vcpuId);
      } catch (error) {
        if (!(error instanceof HostError)) throw error;
        log(`xl: warning: ${error.message}`);
        this.#hard[vcpuId] = this.#all;
        this.#note(vcpuId);
      }
    }
  }

  /** Null leaves a set as it is. @throws HostError; nothing has changed then */
  pin(vcpu: number, hard: CpuSet | null, soft: CpuSet | null): void {
    const before = this.#hard[vcpu];
    if (hard !== null) {
      this.#hard[vcpu] = hard;
      try {
        this.#apply(vcpu);
      } catch (error) {
        this.#hard[vcpu] = before;
        throw error;
      }
      this.#note(vcpu);
    }
    if (soft !== null) this.#soft[vcpu] = soft;
  }

  places(): VcpuPlace[] {
    return this.#domain.vcpus.map(({ vcpuId, i32 }) => ({
      cpu: cpuOf(Atomics.load(i32, VCPU.threadId >> 2)),
      hard: this.#hard[vcpuId],
      soft: this.#soft[vcpuId],
    }));
  }

  #apply(vcpu: number): void {
    const set = this.#hard[vcpu];
    if (set.length === this.#all.length && !this.#pinned.has(vcpu)) return;
    const threadId = Atomics.load(this.#domain.vcpus[vcpu].i32, VCPU.threadId >> 2);
    const calls = hostCalls();
    if (threadId === 0 || calls === null)
      throw new HostError(`vCPU ${vcpu} cannot be pinned: that needs Linux and the optional package koffi`);
    if (!calls.setAffinity(threadId, set))
      throw new HostError(
        `vCPU ${vcpu} cannot be pinned: the host does not give this process any of CPU ${set.join(',')}`,
      );
    this.#pinned.add(vcpu);
  }

  /** For the vCPU's own account (hypervisor/scheduling.ts). */
  #note(vcpu: number): void {
    const { u32, i32 } = this.#domain.vcpus[vcpu];
    let bits = 0;
    for (const cpu of this.#hard[vcpu]) bits |= 1 << (cpu & 31);
    Atomics.store(i32, VCPU.affinityCount >> 2, this.#hard[vcpu].length);
    Atomics.store(u32, VCPU.affinity >> 2, bits >>> 0);
  }
}

/** Source: proc_pid_stat(5), field 39. */
function cpuOf(threadId: number): number {
  if (threadId === 0) return -1;
  try {
    const stat = readFileSync(`/proc/self/task/${threadId}/stat`, 'latin1');
    // The thread's name, field 2, may hold anything.
    const cpu = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[39 - 3]);
    return Number.isSafeInteger(cpu) ? cpu : -1;
  } catch {
    return -1;
  }
}
