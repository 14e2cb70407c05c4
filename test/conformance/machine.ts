/**
 * Runs a batch of cases on an engine and reads everything back: general registers, flags, FP and vector state, memory, exceptions.
 *
 * A case is an instruction in a slot with the state before it. Cases of a batch run one after the other on the same data pages, so
 * what one of them stores the next may load. That is fine as long as engines agree; when they do not, the batch is run again case
 * by case to find the first that differs (compare.ts).
 */

import { type Engine, EXIT_EXCEPTION, EXIT_INTERRUPTED, EXIT_SYSCALL } from '../../src/engine/engine.ts';
import { monotonicNs } from '../../src/engine/kvm/host.ts';
import { FLAT_CS64, FLAT_SS } from '../../src/engine/kvm/hypervisor-area.ts';
import type { MachineMemory } from '../../src/machine/memory.ts';
import { RSP, VCPU, type VcpuBlock } from '../../src/machine/vcpu-block.ts';
import {
  CONTROL_OFFSET,
  CROSSING_SLOT,
  caseVa,
  DATA_BYTES,
  DATA_OFFSET,
  END_OF_CASES,
  following,
  IN_OFFSET,
  jumpAfter,
  OUT_OFFSET,
  SLOT_BYTES,
  SLOTS,
  STAGING_OFFSET,
  START_VA,
  STATE,
  slotVa,
  XCR0,
} from './layout.ts';

/** How a case ended. */
export const ENDED = { normally: 0, exception: 1, syscall: 2 } as const;
export const OUTCOME = {
  ended: 0,
  vector: 1,
  error: 2,
  cr2Lo: 3,
  cr2Hi: 4,
  ripLo: 5,
  ripHi: 6,
  cs: 7,
  ss: 8,
  ds: 9,
  es: 10,
  fs: 11,
  gs: 12,
  fsBaseLo: 13,
  fsBaseHi: 14,
  gsBaseLo: 15,
  gsBaseHi: 16,
  WORDS: 17,
} as const;

const RF = 0x10000;
const INT3 = 0xcc;
/** CPU time. A batch takes a few milliseconds, one of which everything is translated up to half a second; engines keep to it. */
const RUN_NS = 2e9;
/** Failures that are nobody's fault: a return address of one case, popped by another, leads back. */
export const LOOPS = 'does not come to an end';
export const STRAYED = 'stopped outside of the cases';
export const isStray = (result: Result): boolean => result.failure === LOOPS || result.failure === STRAYED;

/** What runs: the input of both engines. */
export class Batch {
  /** Slots with a case, in order; all others hold INT3. */
  readonly slots: number[] = [];
  /** Bytes of all slots. */
  readonly code = new Uint8Array(SLOTS * SLOT_BYTES);
  readonly states = new Uint8Array(SLOTS * STATE.SIZE);
  readonly data = new Uint8Array(DATA_BYTES);
  readonly states64 = new BigUint64Array(this.states.buffer);
  readonly states32 = new Uint32Array(this.states.buffer);
  readonly data64 = new BigUint64Array(this.data.buffer);
  readonly data32 = new Uint32Array(this.data.buffer);
  /** Where the instruction of a slot starts, and its bytes. */
  readonly starts = new Uint32Array(SLOTS);
  readonly lengths = new Uint8Array(SLOTS);
  fsBase = 0n;
  gsBase = 0n;

  clear(): void {
    this.slots.length = 0;
    this.code.fill(INT3);
  }

  /**
   * Puts an instruction into a slot. `start`: bytes of NOP before it. `stops`: no code is behind it but INT3, so that segment
   * registers are compared and given their values again.
   */
  put(slot: number, bytes: Uint8Array | readonly number[], length: number, start: number, stops: boolean): void {
    const at = slot * SLOT_BYTES;
    this.code.fill(0x90, at, at + start);
    for (let i = 0; i < length; i++) if (at + start + i < this.code.length) this.code[at + start + i] = bytes[i];
    const end = at + start + length;
    if (!stops && end + 5 <= this.code.length) {
      const jump = jumpAfter(slotVa(0) + end, slot);
      for (let i = 0; i < 5; i++) this.code[end + i] = jump[i];
    }
    this.starts[slot] = slotVa(slot) + start;
    this.lengths[slot] = length;
    this.slots.push(slot);
  }
}

/** What came out. */
export class Result {
  readonly states = new Uint8Array(SLOTS * STATE.SIZE);
  readonly states32 = new Uint32Array(this.states.buffer);
  readonly states64 = new BigUint64Array(this.states.buffer);
  readonly outcomes = new Uint32Array(SLOTS * OUTCOME.WORDS);
  readonly data = new Uint8Array(DATA_BYTES);
  readonly data32 = new Uint32Array(this.data.buffer);
  /** Set when the engine gave up. */
  failure = '';
}

/** An engine with a machine of its own. */
export interface Subject {
  readonly name: string;
  readonly machine: MachineMemory;
  readonly block: VcpuBlock;
  readonly engine: Engine;
  /** Runs of each batch before the one that counts, each followed by a call: an engine may want to have seen the code. */
  readonly rehearsals?: readonly (() => void)[];
  close(): void;
}

/** A block about to run at CPL 3 at an address. */
export function setBlock(block: VcpuBlock, va: number, bases: { fsBase: bigint; gsBase: bigint }): void {
  const { u32, u64 } = block;
  u64[VCPU.rip / 8] = BigInt(va);
  // See Steering.prepare.
  u64[VCPU.gpr / 8 + RSP] = 0n;
  u32[VCPU.rflags / 4] = 0x202;
  u32[VCPU.cs / 4] = FLAT_CS64;
  u32[VCPU.ss / 4] = FLAT_SS;
  u32[VCPU.ds / 4] = 0;
  u32[VCPU.es / 4] = 0;
  u32[VCPU.fs / 4] = 0;
  u32[VCPU.gs / 4] = 0;
  u64[VCPU.fsBase / 8] = bases.fsBase;
  u64[VCPU.gsBase / 8] = bases.gsBase;
}

/** Runs the cases in `slots` (of the batch's, in order) on the data as `data` has it. */
export function runBatch(
  subject: Subject,
  batch: Batch,
  slots: readonly number[],
  data: Uint8Array,
  result: Result,
  patienceNs = RUN_NS,
): void {
  stageCode(subject, batch, slots);
  runCases(subject, batch, slots, data, result, START_VA, patienceNs);
  for (const rehearsed of subject.rehearsals ?? []) {
    if (result.failure !== '') return;
    rehearsed();
    runCases(subject, batch, slots, data, result, caseVa(slots[0]), patienceNs);
  }
}

/** Puts the instructions where the stub will take them from. */
function stageCode({ machine }: Subject, batch: Batch, slots: readonly number[]): void {
  const { u8 } = machine;
  const first = slots[0];
  const last = slots[slots.length - 1];
  u8.set(batch.code, STAGING_OFFSET);
  const blank = (from: number, to: number): void => {
    u8.fill(INT3, STAGING_OFFSET + from * SLOT_BYTES, STAGING_OFFSET + to * SLOT_BYTES);
  };
  // The end, and what is no case: INT3. A branch may come to other cases of the batch.
  const end = following(last);
  if (slots.length < batch.slots.length) {
    blank(0, first);
    blank(last === CROSSING_SLOT ? last + 2 : last + 1, SLOTS);
  } else if (end < SLOTS) blank(end, end + 1);
}

/** `from`: the stub, or the first case. */
function runCases(
  subject: Subject,
  batch: Batch,
  slots: readonly number[],
  data: Uint8Array,
  result: Result,
  from: number,
  patienceNs: number,
): void {
  const { machine, block, engine } = subject;
  const { u8, u32 } = machine;
  const first = slots[0];
  const last = slots[slots.length - 1];
  const end = following(last);
  const endVa = BigInt(end < SLOTS ? slotVa(end) + 1 : END_OF_CASES);
  u8.set(data, DATA_OFFSET);
  u8.set(batch.states.subarray(first * STATE.SIZE, (last + 1) * STATE.SIZE), IN_OFFSET + first * STATE.SIZE);
  result.failure = '';
  result.outcomes.fill(0, first * OUTCOME.WORDS, (last + 1) * OUTCOME.WORDS);
  setBlock(block, from, batch);
  block.u64[VCPU.gpr / 8 + 8] = BigInt(caseVa(first));
  u32[CONTROL_OFFSET / 4] = first;
  let index = 0;
  const start = process.cpuUsage();
  let deadline = monotonicNs() + patienceNs;
  engine.setRunDeadline(deadline);
  for (;;) {
    const exit = runOnce(subject, result);
    if (result.failure !== '') return;
    if (exit === EXIT_INTERRUPTED) {
      if (monotonicNs() < deadline) continue;
      // On a busy machine most of the time is others'.
      const { user, system } = process.cpuUsage(start);
      const left = patienceNs - (user + system) * 1000;
      if (left > 0) {
        deadline = monotonicNs() + left;
        engine.setRunDeadline(deadline);
        continue;
      }
      result.failure = LOOPS;
      return;
    }
    if (exit !== EXIT_EXCEPTION && exit !== EXIT_SYSCALL) {
      result.failure = `${subject.name}: exit ${exit}: ${engine.describeError()}`;
      return;
    }
    if (block.u64[VCPU.rip / 8] === endVa) {
      read(subject, first, last, result, batch);
      return;
    }
    const slot = u32[CONTROL_OFFSET / 4];
    while (index < slots.length && slots[index] !== slot) index++;
    if (index === slots.length) {
      result.failure = STRAYED;
      return;
    }
    fault(subject, slot, exit, result);
    setBlock(block, caseVa(following(slot)), batch);
  }
}

/** An engine that throws has a bug; which case brought it about is worth knowing. */
function runOnce({ name, machine, block, engine }: Subject, result: Result): number {
  try {
    return engine.run();
  } catch (error) {
    const where = `slot ${machine.u32[CONTROL_OFFSET / 4]}`;
    result.failure = `${name} threw in ${where}: ${error instanceof Error ? error.stack : String(error)}`;
    Atomics.store(block.i32, VCPU.inGuest / 4, 0);
    return EXIT_INTERRUPTED;
  }
}

/** The vCPU left in a case: its registers stand in the block; FP state will be saved by the next case. */
function fault(subject: Subject, slot: number, exit: number, result: Result): void {
  const { block, machine } = subject;
  const b = block.u32;
  const o = slot * OUTCOME.WORDS;
  const { outcomes } = result;
  outcomes[o + OUTCOME.ended] = exit === EXIT_SYSCALL ? ENDED.syscall : ENDED.exception;
  if (exit === EXIT_EXCEPTION) {
    const vector = b[VCPU.exitVector / 4];
    outcomes[o + OUTCOME.vector] = vector;
    // Others push none.
    if (vector === 8 || (vector >= 10 && vector <= 14) || vector === 17)
      outcomes[o + OUTCOME.error] = b[VCPU.exitErrorCode / 4];
    if (vector === 14) {
      outcomes[o + OUTCOME.cr2Lo] = b[VCPU.cr2 / 4];
      outcomes[o + OUTCOME.cr2Hi] = b[VCPU.cr2 / 4 + 1];
    }
  }
  outcomes[o + OUTCOME.ripLo] = b[VCPU.rip / 4];
  outcomes[o + OUTCOME.ripHi] = b[VCPU.rip / 4 + 1];
  const selectors = [VCPU.cs, VCPU.ss, VCPU.ds, VCPU.es, VCPU.fs, VCPU.gs];
  for (let i = 0; i < 6; i++) outcomes[o + OUTCOME.cs + i] = b[selectors[i] / 4];
  outcomes[o + OUTCOME.fsBaseLo] = b[VCPU.fsBase / 4];
  outcomes[o + OUTCOME.fsBaseHi] = b[VCPU.fsBase / 4 + 1];
  outcomes[o + OUTCOME.gsBaseLo] = b[VCPU.gsBase / 4];
  outcomes[o + OUTCOME.gsBaseHi] = b[VCPU.gsBase / 4 + 1];
  const out = (OUT_OFFSET + slot * STATE.SIZE) / 4;
  const m = machine.u32;
  for (let i = 0; i < 32; i++) m[out + i] = b[VCPU.gpr / 4 + i];
  // RF in the image says how the exception came about, not what the instruction did.
  m[out + STATE.rflags / 4] = b[VCPU.rflags / 4] & ~RF;
  m[out + STATE.rflags / 4 + 1] = 0;
}

function read(subject: Subject, first: number, last: number, result: Result, batch: Batch): void {
  const { u8 } = subject.machine;
  const from = first * STATE.SIZE;
  const to = (last + 1) * STATE.SIZE;
  result.states.set(u8.subarray(OUT_OFFSET + from, OUT_OFFSET + to), from);
  result.data.set(u8.subarray(DATA_OFFSET, DATA_OFFSET + DATA_BYTES));
  for (const slot of batch.slots) {
    if (slot < first || slot > last) continue;
    const fx = (slot * STATE.SIZE + STATE.fx) / 4;
    const s = result.states32;
    // FOP, FIP and FDP: AMD's CPUs save them only with an exception pending (APM vol. 2, 11.4.4). MXCSR_MASK: DAZ and AMD's MM.
    s[fx + 1] &= 0xffff;
    for (let i = 2; i < 6; i++) s[fx + i] = 0;
    s[fx + 7] = 0;
    // Which of the state counts as in use.
    s[(slot * STATE.SIZE + STATE.header) / 4] = XCR0;
  }
}
