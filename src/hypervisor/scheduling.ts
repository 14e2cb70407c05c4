/**
 * How much of the host's CPUs a vCPU gets, by the notions of Xen's credit2 scheduler: weight and cap. The host's kernel chooses among
 * threads and knows of neither, so a vCPU that has had more than its part holds still for a while. Nothing here needs any right.
 *
 * Cap: percent of one CPU that the vCPUs of a domain may use together, 0 for no limit. The domain has a budget of CPU time that is
 * filled up each PERIOD; a vCPU that finds it used up waits for the next period. What was used too much is owed, so the cap holds
 * however late a vCPU looks. The budget is a word of the domain's state that its vCPUs change with Atomics.
 *
 * Weight: a vCPU has a virtual time, which is its CPU time divided by its weight. vCPUs that want a CPU all the time tell theirs to all
 * others of the host (`VcpuShares`). One that has to wait for CPUs lets them to others while as many as there are CPUs are behind it
 * in virtual time. So vCPUs of double the weight get double the time where CPUs are short, and no CPU is idle for it. vCPUs that often
 * sleep take no part in this: the host's kernel serves those first by itself.
 *
 * Source: docs/misc/sched_credit2.pandoc, xl(1) sched-credit2 (behaviour). A period of the cap is Xen's (CSCHED2_BDGT_REPL_PERIOD).
 */

import { VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN, type Domain, WEIGHT_DEFAULT } from './domain.ts';
import { RUNSTATE_blocked, RUNSTATE_offline, RUNSTATE_running } from './time.ts';
import type { Host } from './vcpu.ts';

const PERIOD_NS = 10e6;
/** Periods whose budget may be left over: a vCPU that the host lets wait finds it later. */
const PERIODS_KEPT = 4;
/** A vCPU looks at its account so often while it runs, ... */
const SLICE_NS = 100e6;
/** ... when it competes for a CPU, ... */
const CONTENDED_SLICE_NS = 20e6;
/** ... and at least. */
const SLICE_MIN_NS = 1e6;
/** No more often than so when it goes to sleep. */
const SLEEP_SLICE_NS = 10e6;
/** It takes part if it wants a CPU for so much of the time, and holds still only if it waits for one for so much of it. */
const WANTS = 0.8;
const WAITS = 0.05;
/** For how long it counts as waiting since it was seen so. */
const WAITING_NS = 200e6;
/** Virtual time that one may be ahead of others, ... */
const AHEAD_NS = 5e6;
/** ... and that one may be behind: what was not used is not kept. */
const BEHIND_MAX_NS = 1e9;
const HOLD_MAX_NS = 20e6;
const OFFLINE_NS = (VCPU.runstateTimeNs >> 3) + RUNSTATE_offline;

/** What the vCPUs of all domains of the host say to each other. Times are ns; virtual times are those of `WEIGHT_DEFAULT`. */
export interface VcpuShares {
  /** Looks what the other vCPUs that want a CPU have said lately. */
  read(nowNs: number): void;
  /** How many they are, and of each what its virtual time has come to by now, and the CPUs that it may use. */
  readonly count: number;
  readonly virtualNs: Float64Array;
  readonly cpus: Uint32Array;
  /** `rate`: of virtual time from now on, ns a ns. */
  write(nowNs: number, virtualNs: number, rate: number, wants: boolean, cpus: number): void;
}

/** The account of one vCPU, kept by its own thread. Its clock is the host's monotonic one. */
export class VcpuSchedule {
  /** When `account` is due. From the beginning: a vCPU may run for long before its first exit, and 0 would be no deadline to it. */
  nextNs: number;
  /** The vCPU must not run before; 0: it may. */
  holdUntilNs = 0;
  readonly #domain: Domain;
  readonly #f64: Float64Array;
  readonly #u32: Uint32Array;
  readonly #host: Host;
  #accountedNs = 0;
  #usedNs = 0;
  #wantedNs = 0;
  #runningNs = 0;
  #offlineNs = 0;
  #virtualNs = 0;
  /** Of the time since the last account, what the cap took. */
  #cappedNs = 0;
  #waitedNs = Number.NEGATIVE_INFINITY;
  #wants = false;
  #cap = 0;

  constructor(domain: Domain, vcpuId: number, host: Host) {
    this.#domain = domain;
    this.#f64 = domain.vcpus[vcpuId].f64;
    this.#u32 = domain.vcpus[vcpuId].u32;
    this.#host = host;
    this.#usedNs = host.threadCpuNs();
    this.nextNs = host.monotonicNs() + SLICE_NS;
  }

  /** Takes note of what was used since the last time. Sets `nextNs` and `holdUntilNs`. */
  account(nowNs: number): void {
    const usedNs = this.#host.threadCpuNs();
    const used = usedNs - this.#usedNs;
    this.#usedNs = usedNs;
    this.#f64[VCPU.cpuNs >> 3] = usedNs;
    if (this.#cap !== 0 && this.holdUntilNs !== 0) this.#cappedNs = nowNs - this.#accountedNs;
    this.holdUntilNs = 0;
    let slice = SLICE_NS;
    const cap = Atomics.load(this.#domain.i32, DOMAIN.cap >> 2);
    if (cap !== 0) {
      // What it used before it had this cap is not owed.
      const left = this.#spend(cap, cap === this.#cap ? used : 0, nowNs);
      if (left > 0) slice = Math.min(PERIOD_NS, Math.max(SLICE_MIN_NS, left / this.#running()));
    }
    this.#cap = cap;
    slice = Math.min(slice, this.#share(used, nowNs));
    this.#accountedNs = nowNs;
    this.nextNs = nowNs + slice;
  }

  /** Before the vCPU sleeps: others may have the CPU. */
  sleeps(nowNs: number): void {
    if (this.#cap === 0 && !this.#wants && nowNs - this.#accountedNs < SLEEP_SLICE_NS) return;
    this.account(nowNs);
  }

  /** After it has slept: an account that fell due meanwhile has time. */
  wakes(nowNs: number): void {
    this.nextNs = Math.max(this.nextNs, nowNs + (this.#cap === 0 ? SLICE_NS : SLICE_MIN_NS));
  }

  /** Takes from the domain's budget, in ns. What is left; sets `holdUntilNs` if that is nothing. */
  #spend(cap: number, used: number, nowNs: number): number {
    const { i32 } = this.#domain;
    const budget = DOMAIN.budgetUs >> 2;
    const perPeriodUs = (cap * PERIOD_NS) / 1e5;
    const period = Math.floor(nowNs / PERIOD_NS);
    const before = Atomics.load(i32, DOMAIN.budgetPeriod >> 2);
    const passed = (period - before) | 0;
    if (passed > 0 && Atomics.compareExchange(i32, DOMAIN.budgetPeriod >> 2, before, period | 0) === before) {
      let old = Atomics.load(i32, budget);
      for (;;) {
        const filled = Math.min(old + Math.min(passed, 1e6) * perPeriodUs, PERIODS_KEPT * perPeriodUs);
        const found = Atomics.compareExchange(i32, budget, old, filled);
        if (found === old) break;
        old = found;
      }
    }
    const usedUs = Math.round(used / 1000);
    const left = Atomics.sub(i32, budget, usedUs) - usedUs;
    if (left > 0) return left * 1000;
    this.holdUntilNs = (period + Math.ceil((1 - left) / perPeriodUs)) * PERIOD_NS;
    return 0;
  }

  /** vCPUs of the domain that run now, this one included. */
  #running(): number {
    let count = 0;
    for (const { u32 } of this.#domain.vcpus) if (u32[VCPU.runstate >> 2] === RUNSTATE_running) count++;
    return Math.max(count, 1);
  }

  /** Compares with the other vCPUs of the host. When to do so again, in ns; may set `holdUntilNs`. */
  #share(used: number, nowNs: number): number {
    const { shares } = this.#host;
    const wanted = this.#stateNs(nowNs, false);
    const running = this.#stateNs(nowNs, true);
    // What it would have wanted while its toolstack had it paused, nobody knows. Whoever forgot it for that would have it wait for those who came meanwhile.
    const offline = this.#f64[OFFLINE_NS];
    const passed = Math.max(1, nowNs - this.#accountedNs - (offline - this.#offlineNs));
    this.#offlineNs = offline;
    const wants = wanted - this.#wantedNs;
    const waits = running - this.#runningNs - used;
    this.#wantedNs = wanted;
    this.#runningNs = running;
    // While the cap holds it, it wants nothing.
    const wantsCpu = wants - this.#cappedNs >= WANTS * passed;
    this.#cappedNs = 0;
    if (shares === null) return SLICE_NS;
    const weight = Math.max(1, Atomics.load(this.#domain.i32, DOMAIN.weight >> 2));
    const cpus = Atomics.load(this.#u32, VCPU.affinity >> 2);
    if (waits > WAITS * passed) this.#waitedNs = nowNs;
    const waiting = wantsCpu && nowNs - this.#waitedNs < WAITING_NS;
    shares.read(nowNs);
    this.#virtualNs += (used * WEIGHT_DEFAULT) / weight;
    this.#join(shares, cpus, waiting);
    const aheadNs = waiting ? this.#ahead(shares, cpus) : 0;
    if (aheadNs > 0 && this.holdUntilNs === 0) {
      const holdNs = Math.min((aheadNs * weight) / WEIGHT_DEFAULT, HOLD_MAX_NS);
      this.holdUntilNs = nowNs + Math.max(holdNs, SLICE_MIN_NS);
      // It has to wait: for them.
      this.#waitedNs = nowNs;
    }
    const rate = this.holdUntilNs !== 0 ? 0 : WEIGHT_DEFAULT / weight;
    if (wantsCpu || this.#wants) shares.write(nowNs, this.#virtualNs, rate, wantsCpu, cpus);
    this.#wants = wantsCpu;
    if (!waiting) return SLICE_NS;
    return Math.max(SLICE_MIN_NS, CONTENDED_SLICE_NS * Math.min(1, weight / WEIGHT_DEFAULT));
  }

  /** What was not used is not kept for long. */
  #join({ count, virtualNs, cpus }: VcpuShares, own: number, waiting: boolean): void {
    let least = Number.POSITIVE_INFINITY;
    let most = 0;
    for (let i = 0; i < count; i++) {
      if ((cpus[i] & own) === 0) continue;
      least = Math.min(least, virtualNs[i]);
      most = Math.max(most, virtualNs[i]);
    }
    this.#virtualNs = Math.max(this.#virtualNs, most - BEHIND_MAX_NS);
    if (!waiting && least !== Number.POSITIVE_INFINITY) this.#virtualNs = Math.max(this.#virtualNs, least);
  }

  /** By how much it is ahead of so many others that they take all CPUs that it may use; 0 if they do not. */
  #ahead({ count, virtualNs, cpus }: VcpuShares, own: number): number {
    let behind = 0;
    let theirs = 0;
    let nearest = 0;
    for (let i = 0; i < count; i++) {
      if ((cpus[i] & own) === 0 || virtualNs[i] >= this.#virtualNs - AHEAD_NS) continue;
      behind++;
      theirs |= cpus[i];
      nearest = Math.max(nearest, virtualNs[i]);
    }
    const covered = (own & ~theirs) === 0;
    return covered && behind > 0 && behind >= Atomics.load(this.#u32, VCPU.affinityCount >> 2)
      ? this.#virtualNs - nearest
      : 0;
  }

  /** Time so far in the running state or, if not `running`, in all in which a vCPU wants a CPU. */
  #stateNs(nowNs: number, running: boolean): number {
    const { f64 } = this.#domain;
    const times = VCPU.runstateTimeNs >> 3;
    const state = this.#u32[VCPU.runstate >> 2];
    const counts = running ? state === RUNSTATE_running : state !== RUNSTATE_blocked && state !== RUNSTATE_offline;
    const systemNs = nowNs - f64[DOMAIN.bootNs >> 3] + f64[DOMAIN.driftNs >> 3];
    const since = counts ? Math.max(0, systemNs - this.#f64[VCPU.runstateEntryNs >> 3]) : 0;
    // Running stands first, runnable behind it.
    return this.#f64[times] + (running ? 0 : this.#f64[times + 1]) + since;
  }
}
