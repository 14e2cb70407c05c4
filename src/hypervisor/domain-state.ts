/** A domain as its toolstack sees and steers it from the main thread: what its vCPUs do, and pausing them all. */

import type { Kicker } from '../engine/engine.ts';
import { FLAG_PAUSE, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { DOMAIN, type Domain } from './domain.ts';
import { notifyVcpu } from './event-channels.ts';
import { RUNSTATE_blocked, RUNSTATE_running } from './time.ts';

export interface VcpuState {
  readonly online: boolean;
  readonly running: boolean;
  readonly blocked: boolean;
  /** Time that it has run, ns. */
  readonly timeNs: number;
}

export interface DomainState {
  readonly paused: boolean;
  /** SHUTDOWN_*, or -1 while it runs. */
  readonly shutdownReason: number;
  /** Pages that it owns now. */
  readonly pages: number;
  readonly vcpus: readonly VcpuState[];
}

/** `monotonicNs`: the host's clock now. */
export function domainState(domain: Domain, monotonicNs: number): DomainState {
  const { i32, f64 } = domain;
  const bootNs = f64[DOMAIN.bootNs >> 3];
  // 0: no vCPU has started the clock yet.
  const nowNs = bootNs === 0 ? 0 : monotonicNs - bootNs + f64[DOMAIN.driftNs >> 3];
  const paused = Atomics.load(i32, DOMAIN.paused >> 2) !== 0;
  const { shutdownReason } = domain;
  const vcpus = domain.vcpus.map((vcpu) => {
    const online = Atomics.load(vcpu.i32, VCPU.state >> 2) === VCPU_STATE_UP;
    const runstate = Atomics.load(vcpu.u32, VCPU.runstate >> 2);
    const running = online && bootNs !== 0 && shutdownReason === -1 && runstate === RUNSTATE_running;
    const before = vcpu.f64[(VCPU.runstateTimeNs >> 3) + RUNSTATE_running];
    const since = running ? Math.max(0, nowNs - vcpu.f64[VCPU.runstateEntryNs >> 3]) : 0;
    return {
      online,
      running: running && !paused,
      blocked: online && shutdownReason === -1 && runstate === RUNSTATE_blocked,
      timeNs: before + since,
    };
  });
  return { paused, shutdownReason, pages: Atomics.load(i32, DOMAIN.totalPages >> 2), vcpus };
}

/** Stops all vCPUs, soon. Nothing happens if they are stopped. */
export function pauseDomain(domain: Domain, kicker: Kicker): void {
  Atomics.store(domain.i32, DOMAIN.paused >> 2, 1);
  for (const vcpu of domain.vcpus) {
    Atomics.or(vcpu.i32, VCPU.flags >> 2, FLAG_PAUSE);
    notifyVcpu(domain, vcpu.vcpuId, kicker);
  }
}

/** Resolves when `count` vCPUs of a paused domain are parked, or the domain has shut down. */
export async function untilParked(domain: Domain, count: number): Promise<void> {
  const index = DOMAIN.parked >> 2;
  for (;;) {
    const parked = Atomics.load(domain.i32, index);
    if (parked >= count || domain.shutdownReason !== -1) return;
    // A shutdown does not change the count.
    const wait = Atomics.waitAsync(domain.i32, index, parked, 100);
    if (wait.async) await wait.value;
  }
}

/** Lets them go on. */
export function unpauseDomain(domain: Domain): void {
  Atomics.store(domain.i32, DOMAIN.paused >> 2, 0);
  Atomics.notify(domain.i32, DOMAIN.paused >> 2);
}

/** Raises an NMI, which goes before events; false if there is no such vCPU. A guest without a handler takes none. */
export function raiseNmi(domain: Domain, vcpuId: number, kicker: Kicker): boolean {
  const vcpu = domain.vcpus[vcpuId];
  if (vcpu === undefined) return false;
  Atomics.store(vcpu.u32, VCPU.nmiPending >> 2, 1);
  notifyVcpu(domain, vcpuId, kicker);
  return true;
}
