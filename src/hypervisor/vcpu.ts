/**
 * A vCPU as its own worker sees it: the block in shared memory, the engine that runs it, and the work objects that hypercalls
 * use. One object per worker, made once: nothing on the hot paths allocates.
 */

import type { Engine, Kicker } from '../engine/engine.ts';
import type { MachineMemory } from '../machine/memory.ts';
import { VCPU, type VcpuBlock } from '../machine/vcpu-block.ts';
import { DOMAIN, type Domain } from './domain.ts';
import type { ForeignDomains } from './foreign-domains.ts';
import { GuestAccess } from './guest-access.ts';
import { VcpuSchedule, type VcpuShares } from './scheduling.ts';

const BOOT_NS = DOMAIN.bootNs >> 3;
const DRIFT_NS = DOMAIN.driftNs >> 3;

/** What the hypervisor needs of the host, handed in. */
export interface Host {
  /** Host monotonic clock in ns (a double); the same clock in every thread. */
  monotonicNs(): number;
  /** One line for the domain's log. */
  log(line: string): void;
  /** The other domains of this host; null: there are none that could be reached. */
  readonly foreign: ForeignDomains | null;
  /** CPU time that this thread has used, ns. */
  threadCpuNs(): number;
  /** What vCPUs of all domains say to each other of their CPU time; null where nobody can hear it. */
  readonly shares: VcpuShares | null;
  /** FLAG_TELL_CODE: tells what the engine has noted. The guest does not run. */
  tellCode(): void;
  /** Gives this range of memory 0, whole pages, back to the host: it reads as zeros now. False where that cannot be done. */
  discard(offset: number, sizeBytes: number): boolean;
}

/** A handler leaves RAX alone: it has set it itself, or there is no answer (iret). */
export const RESULT_IN_RAX = Number.NEGATIVE_INFINITY;

export class Vcpu {
  readonly id: number;
  readonly domain: Domain;
  readonly machine: MachineMemory;
  readonly block: VcpuBlock;
  readonly engine: Engine;
  readonly kicker: Kicker;
  readonly host: Host;
  readonly access: GuestAccess;
  readonly schedule: VcpuSchedule;
  /** Hypercall arguments: six pairs of words, low word first: argument n is args[2n], args[2n + 1]. */
  readonly args = new Uint32Array(12);
  /** Set by the hypercalls that make the vCPU sleep: SCHEDOP_block and SCHEDOP_poll, VCPUOP_down. */
  blocked = false;
  /** A present L2..L4 entry was replaced in this hypercall: all vCPUs must flush before it returns. */
  flushAll = false;
  /** Ports and deadline (system time ns, 0 = none) of SCHEDOP_poll. */
  readonly pollPorts = new Uint32Array(128);
  pollCount = 0;
  pollDeadlineNs = 0;
  /** The last page fault that the page tables allow, and how often it came again. */
  readonly spurious = { cr2Lo: 0, cr2Hi: 0, ripLo: 0, ripHi: 0, count: 0 };
  /** While in a multicall: nested ones are refused. */
  inMulticall = false;

  constructor(domain: Domain, id: number, engine: Engine, kicker: Kicker, host: Host) {
    this.id = id;
    this.domain = domain;
    this.machine = domain.machine;
    this.block = domain.vcpus[id];
    this.engine = engine;
    this.kicker = kicker;
    this.host = host;
    this.schedule = new VcpuSchedule(domain, id, host);
    this.access = new GuestAccess(domain.machine, this.block, (offset, size) => engine.memoryStored(offset, size));
  }

  /** System time of the domain in ns: what the guest computes from vcpu_time_info. */
  systemTimeNs(): number {
    return this.host.monotonicNs() - this.domain.f64[BOOT_NS] + this.domain.f64[DRIFT_NS];
  }

  /** What the host's clock says at a system time. */
  monotonicAtNs(systemTimeNs: number): number {
    return systemTimeNs + this.domain.f64[BOOT_NS] - this.domain.f64[DRIFT_NS];
  }

  get inUserMode(): boolean {
    return this.block.u32[VCPU.userMode >> 2] !== 0;
  }
}

/** Something in Domus is wrong, not in the guest. Always on. */
export function bug(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`bug: ${message}`);
}
