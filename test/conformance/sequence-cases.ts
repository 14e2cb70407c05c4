/**
 * Batches of random sequences: what instructions leave for each other. Registers that stay in locals, flags that nobody asks for
 * and branches within a region are seen only where several instructions run one behind the other.
 *
 * A case is a sequence without a break, in some cases a loop, with short branches forward. Memory operands are at registers that no
 * instruction of the sequence changes (BASES, INDEX), else most sequences would end early. A form whose result is nobody's, such as
 * a flag that an instruction before it left undefined, is not taken. Most sequences have forms of one kind and few registers: so
 * what one instruction writes the next ones read.
 */

import { FORMS, type Form } from '../../src/engine/x86/forms.ts';
import { Instruction } from '../../src/engine/x86/instruction.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { CaseWriter } from './case-writer.ts';
import { type Sequence, whereItEnded } from './compare.ts';
import { type Choices, encode, modrmOperand, ROWS_OF_FORM } from './encode.ts';
import { LAST_BIT_OPEN, undefinedFlags } from './exclusions.ts';
import {
  CROSSING_SLOT,
  DATA_VA,
  HIGH_ALIAS,
  SLOT_BYTES,
  SLOTS,
  SPILL_SLOT,
  STATE,
  STATE_WORDS,
  slotVa,
} from './layout.ts';
import type { Result } from './machine.ts';
import { randomChoices } from './random-cases.ts';
import { pickAddress } from './steer.ts';

const RSP = 4;
const BASES = [RSP, 5, 12, 13];
const INDEX = 14;
const COUNTER = 15;
/** RAX, RCX, R9, RDX; XMM registers of these numbers. */
const FEW = [0, 1, 9, 2];
const RESERVED = new Set([...BASES, INDEX, COUNTER]);

/** Forms with a sense alone only, that would end most sequences, or whose order of faults is peculiar (Steering.isPeculiar). */
const ALONE = new Set(
  (
    'call jmp ret retf iret loop loope loopne jcxz syscall sysret int int1 int3 into hlt ud2 rsm popf enter leave ' +
    'lss lfs lgs ldmxcsr vldmxcsr xrstor fxrstor fldenv frstor cmpxchg16b endbr32 cmpsb cmpsw'
  ).split(' '),
);
/** Operands that are where their form wants them. */
const PLACED = new Set<string>(['source', 'destination', 'mask-destination', 'translate', 'vsib']);
const KEPT_OUT = new Set<string>(['segment', 'control', 'debug', 'far', 'moffs']);
const BYTES_OF_JUMP = 5;
/** sub r15d, 1; jnz */
const BYTES_OF_TURN = 6;
const FAILURES_MAX = 40;
const DIVISIONS = new Set(['div', 'idiv']);

/** Instructions that a branch leaves out, at most. */
const SKIPPED_MAX = 4;

const isBranch = (form: Form): boolean => form.operands[0] === 'Jb' && form.mnemonic.startsWith('j');

function mayJoin(form: Form): boolean {
  if (form.privilege !== 'none' || ALONE.has(form.mnemonic.split('/')[0].split(' ')[0]) || LAST_BIT_OPEN[form.index])
    return false;
  if (form.operands.some((type) => KEPT_OUT.has(OPERANDS[type].class))) return false;
  return isBranch(form) || !form.operands.some((type) => OPERANDS[type].class === 'relative');
}

/** Whether an operand is a register that must stay as it is. */
function touchesReserved(form: Form, i: Instruction): boolean {
  for (const type of form.operands) {
    const info = OPERANDS[type];
    if (info.class !== 'gpr' || info.place === 'fixed') continue;
    if (info.place === 'rm' && i.mod !== 3 && !type.startsWith('Z')) continue;
    const number = info.place === 'reg' ? i.reg : info.place === 'vvvv' ? i.vvvv : i.rm;
    const isHigh = info.size === 1 && i.rex === 0 && !form.vex && number < 8;
    if (RESERVED.has(isHigh ? number & 3 : number)) return true;
  }
  return false;
}

const isOf = (form: Form, classes: readonly string[]): boolean =>
  form.operands.some((type) => classes.includes(OPERANDS[type].class));

export class SequenceCases extends CaseWriter {
  readonly sequences: (Sequence | undefined)[] = [];
  readonly #forms: readonly number[];
  /** All forms, those of integers, those of vectors; none of them empty. */
  readonly #kinds: readonly (readonly number[])[];
  /** What the sequence that is being made takes: forms, and how many of the registers. */
  #kind: readonly number[] = [];
  #registers = 16;
  readonly #code = new Uint8Array(2 * SLOT_BYTES);
  readonly #scratch = new Uint8Array(16);

  constructor(forms: readonly number[]) {
    super();
    this.#forms = forms.filter((form) => mayJoin(FORMS[form]));
    const integers = this.#forms.filter(
      (form) => !isOf(FORMS[form], ['xmm', 'mmx', 'st']) && FORMS[form].feature !== 'FPU',
    );
    const vectors = this.#forms.filter((form) => isOf(FORMS[form], ['xmm']));
    this.#kinds = [this.#forms, integers, integers, vectors].map((kind) => (kind.length === 0 ? this.#forms : kind));
  }

  get forms(): number {
    return this.#forms.length;
  }

  /** Makes the batch of a seed. */
  fill(seed: number): void {
    this.begin(seed);
    this.sequences.length = 0;
    for (let slot = 0; slot < SLOTS; slot++) if (slot !== SPILL_SLOT) this.#case(slot);
  }

  again(seed: number): string {
    return `node test/conformance/long-run.ts --sequences --seed=${seed} --count=1`;
  }

  /** Instructions of a case that ran for certain. */
  executed(slot: number, result: Result): number {
    const sequence = this.sequences[slot];
    if (sequence === undefined) return 0;
    const { index } = whereItEnded(this, slot, result);
    const ran = sequence.instructions.slice(0, index + 1);
    const branches = ran.filter((i) => isBranch(FORMS[i.form])).length;
    return Math.max(1, ran.length - SKIPPED_MAX * branches);
  }

  #case(slot: number): void {
    const { values } = this;
    const crossing = slot === CROSSING_SLOT;
    const start = crossing ? SLOT_BYTES - 1 - values.below(40) : 0;
    const loops = !crossing && values.once(3);
    const room = crossing ? SLOT_BYTES : SLOT_BYTES - BYTES_OF_JUMP - (loops ? BYTES_OF_TURN : 0);
    const sequence: Sequence = { instructions: [], starts: [], undefinedBefore: [0] };
    this.#kind = this.#kinds[values.below(4)];
    this.#registers = values.once(3) ? 16 : 2 + values.below(3);
    this.#randomState(slot);
    const va = slotVa(slot) + start;
    /** Branches whose target is still to come: where their distance is, after how many instructions, with which flags undefined. */
    const open: { at: number; left: number; undefinedFlags: number }[] = [];
    let bytes = 0;
    for (let failures = 0; failures < FAILURES_MAX; ) {
      const i = new Instruction();
      const n = sequence.instructions.length;
      const before = sequence.undefinedBefore[n];
      if (!this.#choose(slot, n, va + bytes, before, i) || bytes + i.length > room) {
        failures++;
        continue;
      }
      failures = 0;
      this.#code.set(this.#scratch.subarray(0, i.length), bytes);
      sequence.instructions.push(i);
      sequence.starts.push(va + bytes);
      bytes += i.length;
      let after = flagsAfter(i, before);
      for (const branch of open)
        if (--branch.left === 0) {
          this.#code[branch.at] = bytes - branch.at - 1;
          after |= branch.undefinedFlags;
        }
      if (isBranch(FORMS[i.form]))
        open.push({ at: bytes - 1, left: 1 + values.below(SKIPPED_MAX), undefinedFlags: before });
      sequence.undefinedBefore.push(after);
    }
    const last = sequence.instructions.length;
    for (const branch of open) {
      if (branch.left <= 0) continue;
      this.#code[branch.at] = bytes - branch.at - 1;
      sequence.undefinedBefore[last] |= branch.undefinedFlags;
    }
    if (loops) {
      this.#code.set([0x41, 0x83, 0xef, 1, 0x75, -(bytes + BYTES_OF_TURN)], bytes);
      bytes += BYTES_OF_TURN;
      // Compared with 0, AF too.
      sequence.undefinedBefore[last] = 0;
    }
    this.sequences[slot] = sequence;
    this.instructions[slot] = sequence.instructions[0];
    this.batch.put(slot, this.#code, bytes, start, false);
  }

  /** Random state with good addresses in the reserved registers. */
  #randomState(slot: number): void {
    const { values } = this;
    this.state(slot);
    const words = this.batch.states32;
    const at = slot * STATE_WORDS;
    // Unmasked exceptions now and then only.
    if (!values.once(4)) {
      words[at + STATE.fx / 4] |= 0x3f;
      words[at + STATE.fx / 4] &= ~(0x8080 << 16);
      words[at + STATE.fx / 4 + 6] |= 0x1f80;
    }
  }

  #reserve(slot: number): void {
    const { values, steering } = this;
    for (const base of BASES) {
      const bits = values.random();
      const page = BigInt(DATA_VA + 0x1000 * (1 + (bits & 1))) + ((bits & 2) !== 0 ? HIGH_ALIAS : 0n);
      // Some have what is near them in two pages.
      const isEdge = values.once(4);
      const inside = page + BigInt(isEdge ? 0xf80 + ((bits >>> 4) & 0xff) : 0x200 + ((bits >>> 4) & 0xbf0));
      const near = base === RSP || !values.once(12);
      steering.set(slot, base, near ? inside : pickAddress(values, 16, false));
    }
    steering.set(slot, INDEX, BigInt(values.once(4) ? values.below(64) : 16 * values.below(4)));
    steering.set(slot, COUNTER, BigInt(2 + values.below(3)));
  }

  /** Encodes a random instruction for an address into the scratch bytes; false when it cannot stand there. */
  #choose(slot: number, n: number, va: number, undefinedBefore: number, out: Instruction): boolean {
    const { values } = this;
    const form = FORMS[this.#kind[values.below(this.#kind.length)]];
    if ((form.flagsRead & undefinedBefore) !== 0) return false;
    if (DIVISIONS.has(form.mnemonic) && !values.once(4)) return false;
    const rows = ROWS_OF_FORM[form.index];
    const row = rows[values.below(rows.length)];
    const operandSize = form.operandSizes[values.below(form.operandSizes.length)];
    const isMemory = values.once(3);
    if (modrmOperand(form)?.mod === 'memory' && !values.once(2)) return false;
    const choices = this.#choices(randomChoices(values, form.index, row, operandSize, isMemory), form);
    let length = encode(form, row, choices, this.#scratch, out);
    if (length === 0 || touchesReserved(form, out)) return false;
    const { rm } = choices;
    if (typeof rm !== 'number' && rm.base === 16) {
      const target = DATA_VA + 0x1000 + (values.below(0x1f00) & (values.once(4) ? -1 : ~15));
      const again = { ...choices, rm: { ...rm, displacement: target - va - length } };
      length = encode(form, row, again, this.#scratch, out);
    }
    if (isLeftOut(form, out)) return false;
    const isPlaced = form.operands.some((type) => PLACED.has(OPERANDS[type].class));
    if (n > 0) return !isPlaced;
    // The first one finds the registers as the state has them.
    if (isPlaced) this.steering.prepare(slot, out);
    this.#reserve(slot);
    return true;
  }

  #choices(random: Choices, form: Form): Choices {
    const { values } = this;
    const few = (register: number): number => (this.#registers === 16 ? register : FEW[register % this.#registers]);
    const plain = {
      ...random,
      reg: few(random.reg),
      vvvv: few(random.vvvv),
      segment: 0,
      address32: false,
      immediateLo: isBranch(form) ? 0 : random.immediateLo,
    };
    if (typeof random.rm === 'number') return { ...plain, rm: few(random.rm) };
    if (form.operands.some((type) => OPERANDS[type].class === 'vsib'))
      return { ...plain, rm: { ...random.rm, base: BASES[1 + values.below(3)] } };
    const displacement = ((values.random() << 24) >> 24) & (values.once(4) ? -1 : ~15);
    const index = values.once(3) ? INDEX : -1;
    const base = values.once(5) ? 16 : BASES[values.below(BASES.length)];
    const rm = { base, index: base === 16 ? -1 : index, scale: values.below(4), displacement, displacementBytes: 1 };
    return { ...plain, rm };
  }
}

/** A result that is nobody's, or an address far away. */
function isLeftOut(form: Form, i: Instruction): boolean {
  const { mnemonic } = form;
  if (i.mod !== 3 && /^bt[src]? Ev,Gv$/.test(form.key)) return true;
  if (mnemonic === 'movsxd' && i.operandSize === 2) return true;
  return i.operandSize === 2 && (mnemonic === 'shld' || mnemonic === 'shrd');
}

/** Flags that may be undefined behind an instruction. */
function flagsAfter(i: Instruction, before: number): number {
  const form = FORMS[i.form];
  const last = form.operands[form.operands.length - 1];
  // The count may be zero.
  if (form.flagsConditional && last === 'CL') return before | form.flagsUndefined;
  const isNone = form.flagsConditional && undefinedFlags(i, 0) === 0 && form.flagsUndefined !== 0;
  if (isNone) return before;
  const repeats = i.rep !== 0 && form.flagsWritten !== 0;
  return (repeats ? before : before & ~form.flagsWritten) | undefinedFlags(i, 0);
}
