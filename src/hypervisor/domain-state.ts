/** A domain as its toolstack sees and steers it from the main thread: what its vCPUs do, and pausing them all. */

import { SHUTDOWN_suspend } from '../abi/xen.ts';
import type { Kicker } from '../engine/engine.ts';
import { FLAG_PAUSE, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { DOMAIN, type Domain } from './domain.ts';
import { notifyVcpu } from './event-channels.ts';
import { RUNSTATE_blocked, RUNSTATE_running } from './time.ts';

export interface VcpuState {
  readonly online: boolean;
  readonly running: boolean;
  readonly blocked: boolean;
  /** CPU time that its thread has used, ns; some 100 ms old at most. */
  readonly timeNs: number;
}

export interface DomainState {
  readonly paused: boolean;
  /** SHUTDOWN_*, or -1 while it runs. */
  readonly shutdownReason: number;
  /** Pages that it owns now. */
  readonly pages: number;
  /** Pages that it may own: those of its target, or what it has still above that. */
  readonly promisedPages: number;
  /** Scheduling parameters: 1 to 65535; percent of one CPU, 0 for no limit. */
  readonly weight: number;
  readonly cap: number;
  readonly vcpus: readonly VcpuState[];
}

/** Source: libxl, LIBXL_MAXMEM_CONSTANT: what a domain may have beyond its target, in pages. */
const MEMORY_SLACK_PAGES = 256;

/** The words that tell it: of a domain of this process, or copied from another's. */
export interface StateWords extends Pick<Domain, 'shutdownReason'> {
  readonly i32: Int32Array;
  readonly f64: Float64Array;
  readonly vcpus: readonly { readonly i32: Int32Array; readonly u32: Uint32Array; readonly f64: Float64Array }[];
}

export function domainState(domain: StateWords): DomainState {
  const { i32, f64 } = domain;
  // 0: no vCPU has started the clock yet.
  const started = f64[DOMAIN.bootNs >> 3] !== 0;
  const suspended = domain.shutdownReason === -1 && isSuspended(domain);
  const paused = Atomics.load(i32, DOMAIN.paused >> 2) !== 0 && !suspended;
  const shutdownReason = suspended ? SHUTDOWN_suspend : domain.shutdownReason;
  const vcpus = domain.vcpus.map((vcpu) => {
    const online = Atomics.load(vcpu.i32, VCPU.state >> 2) === VCPU_STATE_UP;
    const runstate = Atomics.load(vcpu.u32, VCPU.runstate >> 2);
    return {
      online,
      running: online && started && shutdownReason === -1 && runstate === RUNSTATE_running && !paused,
      blocked: online && shutdownReason === -1 && runstate === RUNSTATE_blocked,
      timeNs: vcpu.f64[VCPU.cpuNs >> 3],
    };
  });
  const load = (offset: number): number => Atomics.load(i32, offset >> 2);
  return {
    paused,
    shutdownReason,
    pages: load(DOMAIN.totalPages),
    promisedPages: Math.max(load(DOMAIN.totalPages), load(DOMAIN.maxPages) - MEMORY_SLACK_PAGES),
    weight: load(DOMAIN.weight),
    cap: load(DOMAIN.cap),
    vcpus,
  };
}

/** Sets weight, 1 to 65535, and cap, 0 or more. vCPUs that run see it within some 100 ms. */
export function setSchedule(domain: Domain, weight: number, cap: number): void {
  Atomics.store(domain.i32, DOMAIN.weight >> 2, weight);
  Atomics.store(domain.i32, DOMAIN.cap >> 2, cap);
}

/** From now on, the domain may have so many pages, and a little more. What it has already it keeps. */
export function allowMemory(domain: Domain, pages: number): void {
  Atomics.store(domain.i32, DOMAIN.maxPages >> 2, Math.min(pages + MEMORY_SLACK_PAGES, 0x7fffffff));
}

/** Stops all vCPUs, soon. Nothing happens if they are stopped. */
export function pauseDomain(domain: Domain, kicker: Kicker): void {
  Atomics.store(domain.i32, DOMAIN.paused >> 2, 1);
  for (const vcpu of domain.vcpus) {
    Atomics.or(vcpu.i32, VCPU.flags >> 2, FLAG_PAUSE);
    notifyVcpu(domain, vcpu.vcpuId, kicker);
  }
}

/** Resolves when `count` vCPUs of a paused domain are parked, or the domain has shut down, or `isEnding` says so, within 100 ms. */
export async function untilParked(domain: Domain, count: number, isEnding = () => false): Promise<void> {
  const index = DOMAIN.parked >> 2;
  for (;;) {
    const parked = Atomics.load(domain.i32, index);
    if (parked >= count || domain.shutdownReason !== -1 || isEnding()) return;
    // An end does not change the count.
    const wait = Atomics.waitAsync(domain.i32, index, parked, 100);
    if (wait.async) await wait.value;
  }
}

/**
 * SCHEDOP_shutdown with SHUTDOWN_suspend: the domain stands still until it is resumed, which the guest takes for a suspend that was
 * cancelled. Its devices and event channels are as they were, so there is nothing that it would have to connect anew.
 * Source: xen/include/public/sched.h, "suspend_cancel"; xen/common/domain.c, domain_resume (behaviour).
 */
export function suspendDomain(domain: Domain, kicker: Kicker): void {
  Atomics.store(domain.i32, DOMAIN.suspended >> 2, 1);
  pauseDomain(domain, kicker);
  domain.ringDoorbell();
}

export function isSuspended(domain: Pick<StateWords, 'i32'>): boolean {
  return Atomics.load(domain.i32, DOMAIN.suspended >> 2) !== 0;
}

/** A suspended domain goes on. Nothing happens to others. */
export function resumeDomain(domain: Domain): void {
  if (Atomics.exchange(domain.i32, DOMAIN.suspended >> 2, 0) !== 0) unpauseDomain(domain);
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
