/**
 * The run loop of a vCPU: requests of others, timers, sleep, pending events, guest code, its exit; and again until the domain ends.
 *
 * Nothing polls: a vCPU with nothing to do sleeps in Atomics.wait on its wake word until an event, a request or its next timer.
 */

import { VIRQ_TIMER } from '../abi/xen.ts';
import {
  EXIT_EXCEPTION,
  EXIT_HANDLED,
  EXIT_INTERNAL_ERROR,
  EXIT_SYSCALL,
  VECTOR_STATE_BYTES,
} from '../engine/engine.ts';
import { PTE_P, PTE_US } from '../machine/page-table.ts';
import {
  FLAG_FLUSH_TLB,
  FLAG_PAUSE,
  FLAG_STOP,
  FLAG_TELL_CODE,
  R8,
  R9,
  R10,
  RAX,
  RDI,
  RDX,
  RSI,
  VCPU,
  VCPU_STATE_UP,
} from '../machine/vcpu-block.ts';
import { offeredXcr0, XSTATE_SSE, XSTATE_X87 } from './cpuid-policy.ts';
import { DOMAIN, PARKED } from './domain.ts';
import { setPending } from './event-channels.ts';
import { emulateForcedCpuid } from './forced-cpuid.ts';
import { endPoll, pollDone } from './hypercalls/sched.ts';
import { HYPERCALL_HANDLERS } from './hypercalls/table.ts';
import { isSysenter } from './instruction.ts';
import { emulatePageTableWrite } from './page-table-write.ts';
import { emulatePrivileged } from './privileged-op.ts';
import {
  keepTime,
  RUNSTATE_blocked,
  RUNSTATE_offline,
  RUNSTATE_runnable,
  RUNSTATE_running,
  setRunstate,
  writeTimeInfo,
} from './time.ts';
import {
  crashDomain,
  deliverPending,
  deliverSyscall,
  deliverSysenter,
  deliverTrap,
  gprWord,
  upcallDue,
} from './traps.ts';
import { RESULT_IN_RAX, type Vcpu } from './vcpu.ts';

const ARGUMENTS = [RDI, RSI, RDX, R10, R8, R9].map(gprWord);
const RAX_WORD = gprWord(RAX);
/** Statistics slots in VCPU.stats: exits by kind. */
export const STAT_SYSCALL = 0;
export const STAT_HYPERCALL = 1;
export const STAT_INTERRUPTED = 2;
export const STAT_PAGE_FAULT = 3;
export const STAT_GENERAL_PROTECTION = 4;
export const STAT_INVALID_OPCODE = 5;
export const STAT_OTHER_TRAP = 6;
export const STAT_BLOCK = 7;
export const STAT_SPURIOUS = 8;
export const STAT_PT_WRITE = 9;
export const STAT_NAMES = [
  'user system calls',
  'hypercalls',
  'interruptions',
  'page faults',
  'general protection',
  'invalid opcodes',
  'other traps',
  'blocks',
  'spurious faults',
  'page-table writes emulated',
] as const;

const TF = 0x100;
const DR6 = (VCPU.dr >> 2) + 12;
const DR7 = (VCPU.dr >> 2) + 14;
/** Single step. */
const DR6_BS = 0x4000;
/** Which components of an XSAVE area are not in their initial state. Source: Intel SDM vol. 1, 13.4.2. */
const XSTATE_BV = 512;

/** A fault that the page tables allow may come back this often (a table changed under the walk) before the guest gets it. */
const SPURIOUS_MAX = 50;
/** The guest's clock is looked after so often, ... */
const TIME_INTERVAL_NS = 1e9;
/** ... which is noticed after so many exits at the latest. */
const EXITS_UNTIMED = 1024;

/** Runs until the domain shuts down or FLAG_STOP is set. */
export function runVcpu(v: Vcpu): void {
  const { block, engine, domain, schedule } = v;
  const i32 = block.i32;
  const stats = VCPU.stats >> 2;
  let nextTimeNs = v.host.monotonicNs() + TIME_INTERVAL_NS;
  let untimed = 0;
  engine.onHypercall = () => {
    const ripLo = block.u32[VCPU.rip >> 2];
    const ripHi = block.u32[(VCPU.rip >> 2) + 1];
    const singleshotNs = block.f64[VCPU.singleshotNs >> 3];
    const periodicNs = block.f64[VCPU.periodicNs >> 3];
    block.u32[stats + STAT_HYPERCALL]++;
    hypercall(v);
    return (
      ++untimed < EXITS_UNTIMED &&
      block.u32[VCPU.rip >> 2] === ripLo &&
      block.u32[(VCPU.rip >> 2) + 1] === ripHi &&
      block.u32[VCPU.userMode >> 2] === 0 &&
      // The engine's deadline is still the right one.
      block.f64[VCPU.singleshotNs >> 3] === singleshotNs &&
      block.f64[VCPU.periodicNs >> 3] === periodicNs &&
      !v.blocked &&
      schedule.holdUntilNs === 0 &&
      domain.shutdownReason === -1 &&
      Atomics.load(i32, VCPU.state >> 2) === VCPU_STATE_UP &&
      Atomics.load(i32, VCPU.nmiPending >> 2) === 0 &&
      !upcallDue(v)
    );
  };
  for (;;) {
    const flags = Atomics.exchange(i32, VCPU.flags >> 2, 0);
    if ((flags & FLAG_STOP) !== 0 || domain.shutdownReason !== -1) return;
    if ((flags & FLAG_FLUSH_TLB) !== 0) engine.flushTlb();
    if ((flags & FLAG_TELL_CODE) !== 0) v.host.tellCode();
    if ((flags & FLAG_PAUSE) !== 0) {
      waitUnpaused(v);
      continue;
    }
    if (Atomics.load(i32, VCPU.state >> 2) !== VCPU_STATE_UP) {
      offline(v);
      continue;
    }
    const deadlineNs = fireTimers(v);
    if (v.blocked) {
      block.u32[stats + STAT_BLOCK]++;
      sleep(v);
      continue;
    }
    if (schedule.holdUntilNs !== 0) {
      hold(v);
      continue;
    }
    deliverPending(v);
    if (domain.shutdownReason !== -1) return;
    const timerNs = deadlineNs === 0 ? nextTimeNs : v.monotonicAtNs(deadlineNs);
    engine.setRunDeadline(Math.min(timerNs, nextTimeNs, schedule.nextNs));
    const exit = engine.run();
    if (exit === EXIT_SYSCALL) {
      if (block.u32[VCPU.userMode >> 2] !== 0) {
        block.u32[stats + STAT_SYSCALL]++;
        deliverSyscall(v);
      } else {
        block.u32[stats + STAT_HYPERCALL]++;
        hypercall(v);
      }
    } else if (exit === EXIT_EXCEPTION) exception(v);
    else if (exit === EXIT_INTERNAL_ERROR)
      crashDomain(v, `the ${engine.facts.name} engine cannot run this guest any further: ${engine.describeError()}`);
    else if (exit !== EXIT_HANDLED) {
      block.u32[stats + STAT_INTERRUPTED]++;
      untimed = EXITS_UNTIMED;
    }
    // Those of `onHypercall` are counted there.
    if (exit !== EXIT_HANDLED) untimed++;
    if (untimed < EXITS_UNTIMED) continue;
    untimed = 0;
    const now = v.host.monotonicNs();
    if (now >= schedule.nextNs) schedule.account(now);
    if (now < nextTimeNs) continue;
    keepTime(v);
    nextTimeNs = now + TIME_INTERVAL_NS;
  }
}

function hypercall(v: Vcpu): void {
  const u = v.block.u32;
  const nr = u[RAX_WORD];
  const args = v.args;
  for (let i = 0; i < 6; i++) {
    const at = ARGUMENTS[i];
    args[i * 2] = u[at];
    args[i * 2 + 1] = u[at + 1];
  }
  let result = -38;
  if (nr < HYPERCALL_HANDLERS.length) {
    u[(VCPU.hypercallStats >> 2) + nr]++;
    result = HYPERCALL_HANDLERS[nr](v);
  }
  if (result === RESULT_IN_RAX) return;
  u[RAX_WORD] = result >>> 0;
  u[RAX_WORD + 1] = result < 0 ? 0xffffffff : Math.floor(result / 4294967296);
}

function exception(v: Vcpu): void {
  const u = v.block.u32;
  const stats = VCPU.stats >> 2;
  const vector = u[VCPU.exitVector >> 2];
  let error = u[VCPU.exitErrorCode >> 2];
  const kernel = u[VCPU.userMode >> 2] === 0;
  switch (vector) {
    case 14:
      u[stats + STAT_PAGE_FAULT]++;
      if (pageFaultHandled(v, error, kernel)) return;
      if (kernel) error &= ~4;
      else error |= 4;
      break;
    case 13:
      u[stats + STAT_GENERAL_PROTECTION]++;
      if ((error & 0xffff) === 0) {
        if (emulatePrivileged(v)) {
          carriedOut(v);
          return;
        }
        if (!kernel && isSysenter() && deliverSysenter(v)) return;
      } else if ((error & 7) === 2) {
        softwareInterrupt(v, (error >>> 3) & 0xff, error, kernel);
        return;
      }
      break;
    case 6:
      u[stats + STAT_INVALID_OPCODE]++;
      if (emulateForcedCpuid(v)) {
        carriedOut(v);
        return;
      }
      break;
    case 1:
      u[DR6] |= u[VCPU.exitDetail >> 2] & 0xe00f;
      u[stats + STAT_OTHER_TRAP]++;
      break;
    default:
      u[stats + STAT_OTHER_TRAP]++;
      if (vector >= 32 && !kernel && (u[(VCPU.traps >> 2) + vector * 4 + 2] & 3) !== 3) {
        back(v, 2);
        deliverTrap(v, 13, vector * 8 + 2);
        return;
      }
  }
  deliverTrap(v, vector, error);
}

/** Xen has carried out an instruction: a single step ends behind it. Source: xen/arch/x86/pv/emulate.c, pv_emul_instruction_done. */
function carriedOut(v: Vcpu): void {
  const u = v.block.u32;
  if ((u[VCPU.rflags >> 2] & TF) === 0) return;
  u[DR6] |= DR6_BS;
  deliverTrap(v, 1, 0);
}

/** INT n that the engine's gates refused: the guest's trap table decides. rip is still at the instruction. */
function softwareInterrupt(v: Vcpu, vector: number, error: number, kernel: boolean): void {
  const trap = (VCPU.traps >> 2) + vector * 4;
  const u = v.block.u32;
  if (!kernel && (u[trap + 2] & 3) !== 3) {
    deliverTrap(v, 13, error);
    return;
  }
  back(v, -2);
  deliverTrap(v, vector, 0);
}

function back(v: Vcpu, bytes: number): void {
  const u = v.block.u32;
  const rip = u[VCPU.rip >> 2] - bytes;
  u[VCPU.rip >> 2] = rip >>> 0;
  if (rip < 0) u[(VCPU.rip >> 2) + 1]--;
  else if (rip > 0xffffffff) u[(VCPU.rip >> 2) + 1]++;
}

/** True when nothing is left for the guest to see: the tables allow the access now, or Xen does the write itself. */
function pageFaultHandled(v: Vcpu, error: number, kernel: boolean): boolean {
  const u = v.block.u32;
  const lo = u[VCPU.cr2 >> 2];
  const hi = u[(VCPU.cr2 >> 2) + 1];
  const access = v.access;
  const page = access.translate(access.currentRoot(), lo, hi, false);
  if (page >= 0) {
    const allowed = ((error & 2) === 0 || access.writable) && ((error & 16) === 0 || access.executable);
    if (allowed) {
      const s = v.spurious;
      const ripLo = u[VCPU.rip >> 2];
      const ripHi = u[(VCPU.rip >> 2) + 1];
      if (s.cr2Lo === lo && s.cr2Hi === hi && s.ripLo === ripLo && s.ripHi === ripHi) s.count++;
      else s.count = 0;
      s.cr2Lo = lo;
      s.cr2Hi = hi;
      s.ripLo = ripLo;
      s.ripHi = ripHi;
      if (s.count < SPURIOUS_MAX) {
        u[(VCPU.stats >> 2) + STAT_SPURIOUS]++;
        repairWalk(v, lo, hi);
        v.engine.invalidatePage(lo, hi);
        return true;
      }
    } else if (kernel && (error & 3) === 3 && !access.writable && emulatePageTableWrite(v)) {
      u[(VCPU.stats >> 2) + STAT_PT_WRITE]++;
      carriedOut(v);
      return true;
    }
  }
  return false;
}

/** Gives every entry of a walk the U bit that a table in use must have, and tells the engine to look at it again. */
function repairWalk(v: Vcpu, lo: number, hi: number): void {
  const access = v.access;
  const root = access.currentRoot();
  const i32 = v.machine.i32;
  for (let level = 4; level >= 1; level--) {
    const offset = access.entryOffset(root, lo, hi, level);
    if (offset < 0) return;
    const entry = i32[offset >>> 2];
    if ((entry & PTE_P) !== 0 && (entry & PTE_US) === 0) Atomics.or(i32, offset >>> 2, PTE_US);
    v.engine.pageTableStored(offset);
  }
}

/** Raises VIRQ_TIMER for timers that are due; returns the next deadline in system time ns, 0 = none. */
function fireTimers(v: Vcpu): number {
  const f64 = v.block.f64;
  let next = f64[VCPU.singleshotNs >> 3];
  const period = f64[VCPU.periodicNs >> 3];
  if (next === 0 && period === 0 && v.pollDeadlineNs === 0) return 0;
  const now = v.systemTimeNs();
  let due = false;
  if (next !== 0 && now >= next) {
    f64[VCPU.singleshotNs >> 3] = 0;
    next = 0;
    due = true;
  }
  if (period !== 0) {
    if (now >= f64[VCPU.periodicNextNs >> 3]) {
      f64[VCPU.periodicNextNs >> 3] = now + period;
      due = true;
    }
    const periodic = f64[VCPU.periodicNextNs >> 3];
    if (next === 0 || periodic < next) next = periodic;
  }
  if (due) {
    const port = Atomics.load(v.block.u32, (VCPU.virqPorts >> 2) + VIRQ_TIMER);
    if (port !== 0) setPending(v.domain, port, v.kicker);
  }
  if (v.pollDeadlineNs !== 0 && (next === 0 || v.pollDeadlineNs < next)) next = v.pollDeadlineNs;
  return next;
}

/** True when a vCPU in SCHEDOP_block or SCHEDOP_poll goes on. */
function mayRun(v: Vcpu): boolean {
  return Atomics.load(v.block.i32, VCPU.polling >> 2) !== 0 ? pollDone(v) : upcallDue(v);
}

/** Atomics.wait. A deadline of the engine's that is still set may wake the thread again and again meanwhile. */
function rest(v: Vcpu, i32: Int32Array, word: number, value: number, ms?: number): void {
  v.engine.setRunDeadline(0);
  Atomics.wait(i32, word, value, ms);
}

function sleep(v: Vcpu): void {
  const { block, domain } = v;
  const i32 = block.i32;
  if (mayRun(v)) {
    wakeUp(v);
    return;
  }
  v.schedule.sleeps(v.host.monotonicNs());
  setRunstate(v, RUNSTATE_blocked);
  for (;;) {
    const ticket = Atomics.load(i32, VCPU.wake >> 2);
    const deadlineNs = fireTimers(v);
    const flags = Atomics.load(i32, VCPU.flags >> 2);
    // It goes on sleeping when the domain goes on.
    if ((flags & (FLAG_PAUSE | FLAG_TELL_CODE)) !== 0) return;
    if (mayRun(v) || domain.shutdownReason !== -1 || (flags & FLAG_STOP) !== 0) break;
    if (Atomics.load(i32, VCPU.state >> 2) !== VCPU_STATE_UP || Atomics.load(block.u32, VCPU.nmiPending >> 2) !== 0)
      break;
    const ms = deadlineNs === 0 ? Number.POSITIVE_INFINITY : Math.max(0, (deadlineNs - v.systemTimeNs()) / 1e6);
    rest(v, i32, VCPU.wake >> 2, ticket, ms);
  }
  v.schedule.wakes(v.host.monotonicNs());
  setRunstate(v, RUNSTATE_running);
  wakeUp(v);
}

function wakeUp(v: Vcpu): void {
  v.blocked = false;
  if (Atomics.load(v.block.i32, VCPU.polling >> 2) !== 0) endPoll(v);
}

/** A vCPU that has had its part (scheduling.ts). It wants to run all the same: to the guest the time is stolen. */
function hold(v: Vcpu): void {
  const { block, domain, schedule } = v;
  const i32 = block.i32;
  setRunstate(v, RUNSTATE_runnable);
  while (schedule.holdUntilNs !== 0) {
    const ticket = Atomics.load(i32, VCPU.wake >> 2);
    if (domain.shutdownReason !== -1 || (Atomics.load(i32, VCPU.flags >> 2) & (FLAG_STOP | FLAG_PAUSE)) !== 0) break;
    const now = v.host.monotonicNs();
    if (now >= schedule.holdUntilNs) schedule.account(now);
    else rest(v, i32, VCPU.wake >> 2, ticket, (schedule.holdUntilNs - now) / 1e6);
  }
  setRunstate(v, RUNSTATE_running);
}

/** A vCPU of a paused domain. What asks for its attention meanwhile waits in its flags. */
export function waitUnpaused(v: Vcpu): void {
  const { domain, block } = v;
  const paused = DOMAIN.paused >> 2;
  const isUp = Atomics.load(block.i32, VCPU.state >> 2) === VCPU_STATE_UP;
  if (isUp && !v.blocked) setRunstate(v, RUNSTATE_offline);
  park(v);
  while (Atomics.load(domain.i32, paused) !== 0) {
    if (domain.shutdownReason !== -1 || (Atomics.load(block.i32, VCPU.flags >> 2) & FLAG_STOP) !== 0) break;
    rest(v, domain.i32, paused, 1);
  }
  countParked(v, -1);
  domain.f64[DOMAIN.wentOnNs >> 3] = v.host.monotonicNs();
  if (isUp && !v.blocked) setRunstate(v, RUNSTATE_running);
}

/** Leaves what only this worker knows of the vCPU where others can read it. */
function park(v: Vcpu): void {
  const { domain } = v;
  const at = domain.parkedOffset(v.id);
  v.engine.saveVectorState(domain.u8.subarray(at + PARKED.vector, at + PARKED.vector + VECTOR_STATE_BYTES));
  domain.u32[(at + PARKED.blocked) >> 2] = v.blocked ? 1 : 0;
  domain.u32[(at + PARKED.pollCount) >> 2] = v.pollCount;
  domain.f64[(at + PARKED.pollDeadlineNs) >> 3] = v.pollDeadlineNs;
  domain.u32.set(v.pollPorts, (at + PARKED.pollPorts) >> 2);
  countParked(v, 1);
}

function countParked({ domain }: Vcpu, change: 1 | -1): void {
  Atomics.add(domain.i32, DOMAIN.parked >> 2, change);
  Atomics.notify(domain.i32, DOMAIN.parked >> 2);
}

/**
 * Takes up a vCPU as it was parked, in a domain that was restored: before `runVcpu`. The block, memory and the domain's clock are
 * in place.
 */
export function unpark(v: Vcpu): void {
  const { domain, engine, block } = v;
  const at = domain.parkedOffset(v.id);
  const area = domain.u8.subarray(at + PARKED.vector, at + PARKED.vector + VECTOR_STATE_BYTES);
  // What the guest's kernel does not switch begins as it is after a reset, for all of its programs.
  area[XSTATE_BV] &= offeredXcr0(v) | XSTATE_X87 | XSTATE_SSE;
  engine.loadVectorState(area);
  v.blocked = domain.u32[(at + PARKED.blocked) >> 2] !== 0;
  v.pollCount = domain.u32[(at + PARKED.pollCount) >> 2];
  v.pollDeadlineNs = domain.f64[(at + PARKED.pollDeadlineNs) >> 3];
  v.pollPorts.set(
    domain.u32.subarray((at + PARKED.pollPorts) >> 2, ((at + PARKED.pollPorts) >> 2) + v.pollPorts.length),
  );
  engine.descriptorTablesChanged();
  engine.xcr0Changed();
  if (block.u32[DR7] !== 0) engine.debugRegistersChanged();
  engine.flushTlb();
  writeTimeInfo(v);
}

/** A vCPU that is down waits here until VCPUOP_up. */
function offline(v: Vcpu): void {
  const i32 = v.block.i32;
  const wasInitialised = v.block.u32[VCPU.initialised >> 2] !== 0;
  if (wasInitialised) setRunstate(v, RUNSTATE_offline);
  for (;;) {
    const ticket = Atomics.load(i32, VCPU.wake >> 2);
    if (Atomics.load(i32, VCPU.state >> 2) === VCPU_STATE_UP) break;
    if (v.domain.shutdownReason !== -1 || (Atomics.load(i32, VCPU.flags >> 2) & (FLAG_STOP | FLAG_PAUSE)) !== 0) return;
    rest(v, i32, VCPU.wake >> 2, ticket);
  }
  v.engine.descriptorTablesChanged();
  v.engine.debugRegistersChanged();
  v.engine.flushTlb();
  setRunstate(v, RUNSTATE_running);
}
