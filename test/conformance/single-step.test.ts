/**
 * TF: each engine and the real CPU trap behind one instruction, or one turn of a repeated one, with the same registers.
 *
 * PVM runs some single steps in its emulator, which does not know every instruction (#UD) and repeats string instructions to their
 * end; so forms are compared where it does not say #UD, and string instructions are a list of their own on pages where it does not.
 */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { EXIT_INTERRUPTED } from '../../src/engine/engine.ts';
import { FORMS, type Form } from '../../src/engine/x86/forms.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { VCPU } from '../../src/machine/vcpu-block.ts';
import { disassemble } from './describe.ts';
import { DirectedCases } from './directed-cases.ts';
import { undefinedFlags } from './exclusions.ts';
import { DATA_OFFSET, DATA_VA, STAGING_OFFSET, START_VA, STATE, slotVa, TRAPS_VA } from './layout.ts';
import { Batch, type Subject, setBlock } from './machine.ts';
import { comparedForms } from './random-cases.ts';
import { CANDIDATES, createRealCpu, noRealCpu } from './subjects.ts';

const TF = 0x100;
const RF = 0x10000;
const UD = 6;
const STRIDE = 17;
const SLOT = 5;
const SHOWN_MAX = 5;

const reason = noRealCpu();
let real: ReturnType<typeof createRealCpu>;

beforeAll(() => {
  if (reason === undefined) real = createRealCpu();
});

afterAll(() => real?.close());

function run({ engine }: Subject): void {
  while (engine.run() === EXIT_INTERRUPTED);
}

/** Puts the batch's code into its slots. */
function stage(subject: Subject, batch: Batch): void {
  const { machine, block } = subject;
  machine.u8.set(batch.code, STAGING_OFFSET);
  setBlock(block, START_VA, batch);
  block.u64[VCPU.gpr / 8 + 8] = BigInt(TRAPS_VA);
  run(subject);
}

/** One step from what is in the block; vector and registers, as text. */
function step(subject: Subject, ignored: number): string {
  const { block } = subject;
  block.u32[VCPU.rflags / 4] |= TF;
  run(subject);
  const { u32, u64 } = block;
  const registers = Array.from(u64.slice(VCPU.gpr / 8, VCPU.gpr / 8 + 16), (value) => value.toString(16));
  const flags = u32[VCPU.rflags / 4] & ~(RF | ignored);
  return `vector ${u32[VCPU.exitVector / 4]} rip ${u64[VCPU.rip / 8].toString(16)} flags ${flags.toString(16)} ${registers.join(' ')}`;
}

/** General registers only: the FP state is whatever it is. */
function isGeneral(form: Form): boolean {
  if (form.feature === 'FPU' || /^(f|emms|.*mxcsr|syscall|wait)/.test(form.mnemonic)) return false;
  // PVM's emulator goes on after these.
  if (/^(nop|endbr|prefetch|pause|.fence|clflush)/.test(form.mnemonic)) return false;
  // It takes TZCNT and LZCNT for BSF and BSR, and leaves the upper half of a 32-bit register that CMPXCHG writes.
  if (/^(tzcnt|lzcnt|cmpxchg)/.test(form.mnemonic)) return false;
  const classes = form.operands.map((type) => OPERANDS[type].class);
  return !classes.some((name) => ['xmm', 'mmx', 'st', 'segment', 'source', 'destination'].includes(name));
}

const STRINGS: readonly (readonly [name: string, code: readonly number[], rcx: bigint, rax: bigint])[] = [
  ['stosb', [0xaa], 3n, 9n],
  ['rep stosb', [0xf3, 0xaa], 3n, 1n],
  ['rep stosb, none', [0xf3, 0xaa], 0n, 1n],
  ['rep stosq', [0xf3, 0x48, 0xab], 2n, 1n],
  ['rep movsb', [0xf3, 0xa4], 2n, 1n],
  ['rep movsd', [0xf3, 0xa5], 4n, 1n],
  ['rep lodsb', [0xf3, 0xac], 2n, 1n],
  ['repe cmpsb, equal', [0xf3, 0xa6], 3n, 0n],
  ['repne cmpsb, equal', [0xf2, 0xa6], 3n, 0n],
  ['repne scasb, not found', [0xf2, 0xae], 3n, 9n],
  ['repe scasb, differs', [0xf3, 0xae], 3n, 9n],
];
const STEPS = 6;

function stepString(subject: Subject, code: readonly number[], rcx: bigint, rax: bigint): string[] {
  const batch = new Batch();
  batch.clear();
  batch.put(SLOT, code, code.length, 0, true);
  stage(subject, batch);
  const { machine, block } = subject;
  machine.u8.fill(0, DATA_OFFSET, DATA_OFFSET + 8192);
  setBlock(block, slotVa(SLOT), batch);
  block.u64.fill(0n, VCPU.gpr / 8, VCPU.gpr / 8 + 16);
  block.u64.set([rax, rcx], VCPU.gpr / 8);
  block.u64.set([BigInt(DATA_VA + 4096), BigInt(DATA_VA + 4096 + 512)], VCPU.gpr / 8 + 6);
  return Array.from({ length: STEPS }, () => step(subject, 0));
}

describe.each(CANDIDATES)('$name', ({ create }) => {
  let subject: Subject;
  beforeAll(() => {
    if (reason === undefined) subject = create();
  });
  afterAll(() => subject?.close());

  test('one instruction', (context) => {
    if (reason !== undefined) context.skip(reason);
    const cases = new DirectedCases(
      comparedForms(real.pvm).filter((form) => isGeneral(FORMS[form])),
      STRIDE,
    );
    const found: string[] = [];
    while (cases.next() && found.length < SHOWN_MAX) {
      const { batch } = cases;
      for (const each of [subject, real]) stage(each, batch);
      for (const slot of batch.slots) {
        const i = cases.instructions[slot];
        if (i === null) continue;
        const ignored = undefinedFlags(i, batch.states[slot * STATE.SIZE + 8]);
        const [ours, theirs] = [subject, real].map((each) => {
          each.machine.u8.set(batch.data, DATA_OFFSET);
          setBlock(each.block, batch.starts[slot], batch);
          const at = (slot * STATE.SIZE) / 8;
          each.block.u64.set(batch.states64.subarray(at, at + 16), VCPU.gpr / 8);
          each.block.u32[VCPU.rflags / 4] = batch.states32[(slot * STATE.SIZE + STATE.rflags) / 4];
          return step(each, ignored);
        });
        if (ours !== theirs && !theirs.startsWith(`vector ${UD} `)) found.push(`${disassemble(i)}\n${ours}\n${theirs}`);
      }
    }
    expect(found.join('\n')).toBe('');
  });

  test.each(STRINGS)('%s', (_name, code, rcx, rax) => {
    if (reason !== undefined) return;
    expect(stepString(subject, code, rcx, rax)).toEqual(stepString(real, code, rcx, rax));
  });
});
