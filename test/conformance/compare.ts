/** Finds what differs between two engines' results, down to one instruction, and says it in words. */

import { FORMS, formIndex } from '../../src/engine/x86/forms.ts';
import type { Instruction } from '../../src/engine/x86/instruction.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { disassemble, GPR_NAMES, hexBytes } from './describe.ts';
import { CR2_BY_PAGE, LAST_BIT_OPEN, undefinedFlags } from './exclusions.ts';
import { DATA_PAGES, DATA_VA, STATE, STATE_WORDS, slotVa } from './layout.ts';
import { type Batch, ENDED, isStray, OUTCOME, Result, runBatch, type Subject } from './machine.ts';

/** The instructions of a case that has several, in order of their addresses. */
export interface Sequence {
  readonly instructions: Instruction[];
  /** Where each starts. */
  readonly starts: number[];
  /** Flags that may be undefined before each, and at the end. */
  readonly undefinedBefore: number[];
}

/** A batch and what its instructions are. */
export interface Prepared {
  readonly batch: Batch;
  /** By slot; null = no instruction: #UD or #GP is expected. */
  readonly instructions: readonly (Instruction | null)[];
  /** By slot, where a case is more than one instruction. */
  readonly sequences?: readonly (Sequence | undefined)[];
  /** Wipes memory that is not to be compared. */
  maskData?(result: Result): void;
}

const FX = STATE.fx / 4;
const X87_FIRST = FX + 8;
const XMM_FIRST = FX + 40;
const XMM_END = FX + 104;
const UPPER_FIRST = STATE.upper / 4;

interface Ending {
  /** The instruction that faulted, or the last one. */
  readonly instruction: Instruction | null;
  /** Which one of a sequence that is. */
  readonly index: number;
  /** Flags whose values are nobody's. */
  readonly undefinedFlags: number;
}

/** With which instruction a case came to its end. */
export function whereItEnded(prepared: Prepared, slot: number, { outcomes }: Result): Ending {
  const { batch, instructions } = prepared;
  const o = slot * OUTCOME.WORDS;
  const faultAt = outcomes[o] === ENDED.normally ? -1 : outcomes[o + OUTCOME.ripLo];
  const sequence = prepared.sequences?.[slot];
  if (sequence === undefined) {
    const instruction = instructions[slot];
    // A fault changes no flags; what is reported behind the instruction is like its normal end.
    const isClear = instruction === null || faultAt === batch.starts[slot];
    const open = isClear ? 0 : undefinedFlags(instruction, batch.states[slot * STATE.SIZE + 8]);
    return { instruction, index: 0, undefinedFlags: open };
  }
  const found = sequence.starts.indexOf(faultAt);
  const last = sequence.instructions.length - 1;
  const index = found < 0 ? last : found;
  const instruction = sequence.instructions[index];
  return { instruction, index, undefinedFlags: sequence.undefinedBefore[found < 0 ? last + 1 : found] };
}

const UD = 6;
const SS = 12;
const GP = 13;

/**
 * On PVM a #GP of CPL 3 goes through KVM's emulator first, which makes #UD of instructions that it does not know. They are valid
 * here: so #UD of `b`, which is KVM, where `a` has #GP(0) or #SS(0) is the same.
 */
function sameOutcome(i: Instruction | null, slot: number, a: Result, b: Result): boolean {
  const o = slot * OUTCOME.WORDS;
  const x = a.outcomes;
  const y = b.outcomes;
  const mayBeEmulated = x[o + OUTCOME.vector] === GP || x[o + OUTCOME.vector] === SS;
  const emulated = mayBeEmulated && y[o + OUTCOME.vector] === UD && i !== null;
  const cr2Mask = i !== null && CR2_BY_PAGE[i.form] ? ~0xfff : -1;
  for (let k = 0; k < OUTCOME.cs; k++) {
    const difference = (x[o + k] ^ y[o + k]) & (k === OUTCOME.cr2Lo ? cr2Mask : -1);
    if (difference !== 0 && !(emulated && (k === OUTCOME.vector || k === OUTCOME.error))) return false;
  }
  return true;
}

const MMX: readonly boolean[] = FORMS.map((form) => form.operands.some((type) => OPERANDS[type].class === 'mmx'));

/** PVM's emulator enters MMX mode before it finds that an MMX instruction's address is bad. */
function isFaultOfMmx(i: Instruction, slot: number, a: Result): boolean {
  const vector = a.outcomes[slot * OUTCOME.WORDS + OUTCOME.vector];
  return MMX[i.form] && (vector === GP || vector === SS);
}

const LDMXCSR: readonly number[] = [formIndex('ldmxcsr Md'), formIndex('vldmxcsr Md')];
/** AMD's CPUs have a bit for misaligned operands. */
const MXCSR_MM = 0x20000;

/** Whether two engines agree about a slot; the real CPU is `b`. */
export function agree(prepared: Prepared, slot: number, a: Result, b: Result): boolean {
  const base = slot * STATE_WORDS;
  const x = a.states32;
  const y = b.states32;
  const ending = whereItEnded(prepared, slot, a);
  const i = ending.instruction;
  if (i !== null && LDMXCSR.includes(i.form) && (y[base + FX + 6] & MXCSR_MM) !== 0) return true;
  if (!sameOutcome(i, slot, a, b)) return false;
  for (let k = 0; k < 32; k++) if (x[base + k] !== y[base + k]) return false;
  const flags = base + STATE.rflags / 4;
  if (((x[flags] ^ y[flags]) & ~ending.undefinedFlags) !== 0) return false;
  let first = FX;
  if (i !== null && isFaultOfMmx(i, slot, a)) first = XMM_FIRST;
  else if (i !== null && LAST_BIT_OPEN[i.form]) {
    if (!isNear(x, y, base)) return false;
    first = X87_FIRST + 8;
  }
  for (let k = base + first; k < base + STATE_WORDS; k++) if (x[k] !== y[k]) return false;
  return true;
}

/** C1 of FSW, in the word of FCW and FSW. */
const C1 = 0x200 << 16;

/** Whether control, status and ST0 and ST1 are the same but for C1 and the last bit. */
function isNear(x: Uint32Array, y: Uint32Array, base: number): boolean {
  const fx = base + FX;
  if (((x[fx] ^ y[fx]) & ~C1) !== 0) return false;
  for (let k = fx + 1; k < fx + 8; k++) if (x[k] !== y[k]) return false;
  for (let k = base + X87_FIRST; k < base + X87_FIRST + 8; k += 4) {
    if (x[k + 2] !== y[k + 2] || x[k + 3] !== y[k + 3]) return false;
    const distance = (x[k + 1] - y[k + 1]) * 0x100000000 + (x[k] - y[k]);
    if (distance < -1 || distance > 1) return false;
  }
  return true;
}

function sameData(a: Result, b: Result): boolean {
  for (let i = 0; i < a.data32.length; i++) if (a.data32[i] !== b.data32[i]) return false;
  return true;
}

/** The first slot with a difference; -1 = none, -2 = of memory only, -3 = an engine failed. */
export function firstDifference(prepared: Prepared, slots: readonly number[], a: Result, b: Result): number {
  if (a.failure !== '' || b.failure !== '') return -3;
  for (const slot of slots) if (!agree(prepared, slot, a, b)) return slot;
  prepared.maskData?.(a);
  prepared.maskData?.(b);
  return sameData(a, b) ? -1 : -2;
}

export interface Difference {
  readonly slot: number;
  /** A line for each part that differs. */
  readonly parts: readonly string[];
  readonly text: string;
  readonly form: number;
}

/** For a case that one engine did not end in the usual time: the machine may be busy. */
const PATIENCE_NS = 10e9;

/** Batches in which the real CPU gave two answers. */
export const unstable = { count: 0 };

const single = [new Result(), new Result()] as const;

/** Runs the batch on both engines; null when they agree, else the first instruction alone, or the batch if none differs alone. */
export function compareBatch(
  a: Subject,
  b: Subject,
  prepared: Prepared,
  results: readonly [Result, Result],
): Difference | null {
  const { batch } = prepared;
  runBatch(a, batch, batch.slots, batch.data, results[0]);
  runBatch(b, batch, batch.slots, batch.data, results[1]);
  let found = firstDifference(prepared, batch.slots, results[0], results[1]);
  if (found === -1) return null;
  // Case by case they do not stray; one alone may have been too slow.
  if (found === -3 && (isStray(results[0]) || isStray(results[1]))) return firstAlone(a, b, prepared);
  // PVM sometimes emulates an instruction at the first touch of a page, and does not know it.
  for (let again = 0; again < 3 && found !== -3; again++) {
    runBatch(b, batch, batch.slots, batch.data, results[1]);
    found = firstDifference(prepared, batch.slots, results[0], results[1]);
    if (found !== -1) continue;
    unstable.count++;
    return null;
  }
  const alone = firstAlone(a, b, prepared);
  if (alone !== null) return alone;
  const text =
    found === -3
      ? `${results[0].failure} ${results[1].failure}`
      : found === -2
        ? 'memory differs after the batch, after no single case'
        : `differs in the batch only:\n${describe(prepared, found, batch.data, [a.name, b.name], results).text}`;
  return { slot: found, parts: ['batch'], text, form: found >= 0 ? (prepared.instructions[found]?.form ?? -1) : -1 };
}

/** The first case that differs when each runs alone, on the memory that the real CPU left. */
function firstAlone(a: Subject, b: Subject, prepared: Prepared): Difference | null {
  let data: Uint8Array = prepared.batch.data.slice();
  for (const slot of prepared.batch.slots) {
    const difference = compareOne(a, b, prepared, slot, data);
    if (difference !== null) return difference;
    if (single[1].failure === '') data = single[1].data.slice();
  }
  return null;
}

/** Runs one case of the batch on memory as given. */
export function compareOne(
  a: Subject,
  b: Subject,
  prepared: Prepared,
  slot: number,
  data: Uint8Array,
): Difference | null {
  const both = (patienceNs?: number): void => {
    runBatch(a, prepared.batch, [slot], data, single[0], patienceNs);
    runBatch(b, prepared.batch, [slot], data, single[1], patienceNs);
  };
  both();
  if (isStray(single[0]) !== isStray(single[1])) both(PATIENCE_NS);
  if (isStray(single[0]) && isStray(single[1])) return null;
  return firstDifference(prepared, [slot], single[0], single[1]) === -1
    ? null
    : describe(prepared, slot, data, [a.name, b.name], single);
}

const hex64 = (lo: number, hi: number): string =>
  (hi >>> 0).toString(16).padStart(8, '0') + (lo >>> 0).toString(16).padStart(8, '0');
const hex32 = (value: number): string => (value >>> 0).toString(16);

function wordName(k: number): string {
  if (k < 32) return `${GPR_NAMES[k >> 1]}`;
  if (k < FX) return 'rflags';
  if (k === FX) return 'fsw:fcw';
  if (k === FX + 1) return 'ftw';
  if (k === FX + 6) return 'mxcsr';
  if (k >= X87_FIRST && k < XMM_FIRST) return `st${(k - X87_FIRST) >> 2}`;
  if (k >= XMM_FIRST && k < XMM_END) return `xmm${(k - XMM_FIRST) >> 2}`;
  if (k >= UPPER_FIRST) return `ymm${(k - UPPER_FIRST) >> 2} upper`;
  return `fx+${(k - FX) * 4}`;
}

function valueText(words: Uint32Array, base: number, k: number): string {
  if (k < 32) return hex64(words[base + (k & ~1)], words[base + (k | 1)]);
  if (k < X87_FIRST || (k >= XMM_END && k < UPPER_FIRST)) return hex32(words[base + k]);
  const at = base + X87_FIRST + ((k - X87_FIRST) & ~3);
  return `${hex64(words[at + 2], words[at + 3])}_${hex64(words[at], words[at + 1])}`;
}

function outcomeText(result: Result, slot: number): string {
  const o = slot * OUTCOME.WORDS;
  const w = result.outcomes;
  if (w[o] === ENDED.normally) return 'no exception';
  const rip = hex64(w[o + OUTCOME.ripLo], w[o + OUTCOME.ripHi]);
  if (w[o] === ENDED.syscall) return `SYSCALL, rip ${rip}`;
  const cr2 = w[o + OUTCOME.vector] === 14 ? ` cr2 ${hex64(w[o + OUTCOME.cr2Lo], w[o + OUTCOME.cr2Hi])}` : '';
  return `vector ${w[o + OUTCOME.vector]} error ${hex32(w[o + OUTCOME.error])}${cr2} rip ${rip}`;
}

/** Virtual address (of the low window) of an offset of the data. */
function dataName(offset: number): string {
  let at = offset;
  for (let i = 0; i < DATA_PAGES.length; i++) {
    if (DATA_PAGES[i] === 'absent') continue;
    if (at < 4096) return hex32(DATA_VA + i * 4096 + at);
    at -= 4096;
  }
  return `${['7fffe000', 'ffffffff', 'page 0 '][at >> 12]}+${hex32(at & 0xfff)}`;
}

const listing = (sequence: Sequence | undefined): string[] =>
  sequence?.instructions.map((i, n) => `  ${hex32(sequence.starts[n])}  ${disassemble(i)}`) ?? [];

function describe(
  prepared: Prepared,
  slot: number,
  data: Uint8Array,
  names: readonly [string, string],
  results: readonly [Result, Result],
): Difference {
  const { batch } = prepared;
  const [a, b] = results;
  const ending = whereItEnded(prepared, slot, a);
  const i = ending.instruction;
  const at = batch.starts[slot] - slotVa(0);
  const bytes = batch.code.subarray(at, at + batch.lengths[slot]);
  const form = i === null ? -1 : i.form;
  const parts: string[] = [];
  const lines = [
    `${hexBytes(bytes)}   ${i === null ? '(no instruction)' : disassemble(i)}`,
    `at ${hex32(batch.starts[slot])}`,
    ...listing(prepared.sequences?.[slot]),
  ];
  const failure = a.failure + b.failure;
  if (failure !== '') return { slot, parts: ['failure'], text: [...lines, failure].join('\n'), form };
  const outcomes = [outcomeText(a, slot), outcomeText(b, slot)];
  if (outcomes[0] !== outcomes[1]) {
    parts.push('outcome');
    lines.push(`outcome: ${names[0]}: ${outcomes[0]}; ${names[1]}: ${outcomes[1]}`);
  } else lines.push(`outcome: ${outcomes[0]}`);
  const base = slot * STATE_WORDS;
  const seen = new Set<string>();
  for (let k = 0; k < STATE_WORDS; k++) {
    const name = wordName(k);
    if (a.states32[base + k] === b.states32[base + k] || seen.has(name)) continue;
    const changed = name === 'rflags' ? (a.states32[base + k] ^ b.states32[base + k]) & ~ending.undefinedFlags : 1;
    seen.add(name);
    if (changed !== 0) parts.push(name);
    lines.push(
      `${name}: before ${valueText(batch.states32, base, k)}, ${names[0]} ${valueText(a.states32, base, k)}, ` +
        `${names[1]} ${valueText(b.states32, base, k)}${name === 'rflags' ? ` (defined difference ${hex32(changed)})` : ''}`,
    );
  }
  let shown = 0;
  for (let k = 0; k < a.data.length; k++) {
    if (a.data[k] === b.data[k]) continue;
    if (shown++ === 0) parts.push('memory');
    if (shown <= 16) lines.push(`[${dataName(k)}]: before ${hex32(data[k])}, ${hex32(a.data[k])}, ${hex32(b.data[k])}`);
  }
  lines.push('before:');
  for (let r = 0; r < 16; r += 4)
    lines.push(
      `  ${[0, 1, 2, 3].map((n) => `${GPR_NAMES[r + n]} ${valueText(batch.states32, base, (r + n) * 2)}`).join('  ')}`,
    );
  const fx = base + FX;
  const w = batch.states32;
  lines.push(
    `  rflags ${hex32(w[base + 32])}  fcw ${hex32(w[fx] & 0xffff)}  fsw ${hex32(w[fx] >>> 16)}  ftw ${hex32(w[fx + 1])}  mxcsr ${hex32(w[fx + 6])}` +
      `  fs ${batch.fsBase.toString(16)}  gs ${batch.gsBase.toString(16)}`,
  );
  const sequence = prepared.sequences?.[slot]?.instructions ?? (i === null ? [] : [i]);
  const name = sequence.map(disassemble).join(' ');
  for (let r = 0; r < 8; r++)
    if (/st|\bf/.test(name)) lines.push(`  st${r} ${valueText(w, base, X87_FIRST + 4 * r)}`);
    else if (name.includes(`mm${r}`)) lines.push(`  mm${r} ${valueText(w, base, X87_FIRST + 4 * r)}`);
  for (let r = 0; r < 16; r++)
    if (new RegExp(`[xy]mm${r}\\b`).test(name) || r === 0)
      lines.push(`  ymm${r} ${valueText(w, base, UPPER_FIRST + 4 * r)} ${valueText(w, base, XMM_FIRST + 4 * r)}`);
  return { slot, parts, text: lines.join('\n'), form };
}

/** What differs in a slot, or after the batch (slot -2), or what failed (-3). */
export function describeSlot(
  prepared: Prepared,
  slot: number,
  data: Uint8Array,
  names: readonly [string, string],
  results: readonly [Result, Result],
): string {
  if (slot === -3) return `${results[0].failure} ${results[1].failure}`;
  if (slot >= 0) return describe(prepared, slot, data, names, results).text;
  const at = results[0].data.findIndex((byte, k) => byte !== results[1].data[k]);
  return `memory differs after the batch, first at ${dataName(at)}: ${results[0].data[at]}, ${results[1].data[at]}`;
}
