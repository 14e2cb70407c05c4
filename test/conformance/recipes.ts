/**
 * Directed cases for every form: corner values, ways to address memory, edges of pages, counts, flags.
 *
 * A recipe is one case; generators below list them by what they are about. The list is the same in every run of one version, so that
 * every nth of it (`stride`) can be compared with recorded answers.
 */

import { FORMS, type Form } from '../../src/engine/x86/forms.ts';
import { type MemoryChoice, modrmOperand, ROWS_OF_FORM } from './encode.ts';
import {
  at,
  big,
  CORNERS_OF,
  edges,
  type Invalid,
  isInteger,
  nameOf,
  operandsOf,
  own,
  places,
  plainMemory,
  RAX,
  RBP,
  RBX,
  RCX,
  RDX,
  type Recipe,
  RSI,
  RSP,
  sizeOf,
  type Value,
} from './recipe.ts';
import { fused } from './recipes-float.ts';
import { invalid, special, stack, strings } from './recipes-special.ts';
import { Values } from './values.ts';

/** Pairs of corner values for the integer forms: 64 for two operands, 8 with the other registers varying for one. */
function* corners(form: Form, values: Values): Iterable<Recipe> {
  if (!isInteger(form) || form.flagsConditional) return;
  const name = nameOf(form);
  const wide = name === 'mul' || name === 'imul' || name === 'div' || name === 'idiv' || name === 'cmpxchg';
  for (const operandSize of form.operandSizes)
    for (const place of places(form))
      for (let row = 0; row < ROWS_OF_FORM[form.index].length; row++) {
        const corner = CORNERS_OF[operandSize];
        for (const first of corner)
          for (const second of form.operands.length > 1 || wide ? corner : corner.slice(0, 2)) {
            const [lo, hi] = second;
            const recipe = {
              form,
              row,
              operandSize,
              choices: { ...at(place, values), immediateLo: lo, immediateHi: hi },
              target: own(values.below(48)),
              first,
              second,
            };
            // With VEX the first one is only written.
            if (form.vex) yield { ...recipe, second: first, third: second };
            else if (!wide) yield recipe;
            // The accumulator, and with it rDX, takes the other value.
            else if (form.operands.length === 1)
              yield { ...recipe, registers: accumulator(operandSize, second, values) };
            else {
              yield recipe;
              if (name === 'cmpxchg') yield { ...recipe, registers: [[RAX, big(first)]] };
            }
          }
      }
}

function accumulator(size: number, value: Value, values: Values): [number, bigint][] {
  const wide = big(value);
  const high = [0n, 0n, 0n, -1n, 1n, wide >> 1n][values.below(6)];
  if (size === 1) return [[RAX, BigInt.asUintN(64, (wide & 0xffn) | (high << 8n))]];
  return [
    [RAX, wide],
    [RDX, BigInt.asUintN(64, high)],
  ];
}

/** Shifts and rotates by 0 to 65. */
function* shifts(form: Form, values: Values): Iterable<Recipe> {
  const last = form.operands[form.operands.length - 1];
  if (!form.flagsConditional && last !== 'One') return;
  if (form.privilege !== 'none') return;
  for (const operandSize of form.operandSizes)
    for (const place of places(form))
      for (let count = 0; count <= (last === 'One' ? 4 : 65); count++)
        for (const value of [3, 4, 6, 7])
          yield {
            form,
            operandSize,
            choices: { ...at(place, values), immediateLo: count },
            target: own(values.below(48)),
            first: CORNERS_OF[operandSize][value],
            second: CORNERS_OF[operandSize][values.below(8)],
            ...(last === 'CL' ? { registers: [[RCX, BigInt(count)]] as const } : {}),
          };
}

const BASES: readonly MemoryChoice[] = [
  ...[RAX, RSP, RBP, RSI, 12, 13, 15].flatMap((base): MemoryChoice[] => [
    { base, index: -1, scale: 0, displacement: 0, displacementBytes: 0 },
    { base, index: -1, scale: 0, displacement: -0x80, displacementBytes: 1 },
    { base, index: 9, scale: 3, displacement: -0x12345678, displacementBytes: 4 },
  ]),
  { base: 16, index: -1, scale: 0, displacement: 0, displacementBytes: 4 },
  { base: -1, index: -1, scale: 0, displacement: 0, displacementBytes: 4 },
  { base: -1, index: RBP, scale: 2, displacement: 0x40, displacementBytes: 4 },
  { base: RBX, index: RBX, scale: 1, displacement: 0, displacementBytes: 0 },
  { base: RSP, index: RBP, scale: 0, displacement: 8, displacementBytes: 1 },
];

/** Every way to address memory. */
function* addresses(form: Form, values: Values): Iterable<Recipe> {
  const operand = modrmOperand(form);
  if (operand === null || operand.mod === 'register') return;
  const sizes = form.operandSizes;
  let n = form.index;
  for (const rm of BASES)
    for (const [segment, address32] of [
      [0, false],
      [n % 2 === 0 ? 0x64 : 0x65, n % 3 === 0],
      [0, true],
    ] as const) {
      const operandSize = sizes[n++ % sizes.length];
      const choices = { rm, segment, address32, rep: 0, lock: form.lockable && n % 4 === 0 };
      // Operands of 16 bytes must be aligned, most of the time.
      yield { form, operandSize, choices, target: own(values.below(4) === 0 ? values.below(32) : 16) };
    }
}

function* pageEdges(form: Form, values: Values): Iterable<Recipe> {
  const operand = modrmOperand(form);
  if (operand === null || operand.mod === 'register') return;
  for (const operandSize of form.operandSizes)
    for (const lock of form.lockable ? [false, true] : [false])
      for (const wide of form.vex ? [false, true] : [false])
        for (const address of edges(sizeOf(form, operandSize, wide))) {
          const choices = { ...at('memory', values), lock, wide, rm: plainMemory(values) };
          yield { form, operandSize, choices, target: { at: address } };
        }
}

/** Random state, each form alone. */
function* anything(form: Form, values: Values): Iterable<Recipe> {
  const vector = operandsOf(form).some((operand) => ['xmm', 'mmx', 'st'].includes(operand.class));
  const count = vector || form.feature === 'FPU' ? 24 : 8;
  for (const operandSize of form.operandSizes)
    for (const place of places(form))
      for (let n = 0; n < count; n++)
        yield {
          form,
          row: n % ROWS_OF_FORM[form.index].length,
          operandSize,
          choices: at(place, values),
          target: n % 8 === 7 ? 'random' : own(16),
        };
}

/** Conditions with all flags, and the flag instructions. */
function* flags(form: Form, values: Values): Iterable<Recipe> {
  const name = nameOf(form);
  const reads = form.flagsRead !== 0 && form.privilege === 'none' && !form.flagsConditional;
  if (!reads && !/^(lahf|sahf|cmc|clc|stc|cld|std|inc|dec)$/.test(name)) return;
  for (let bits = 0; bits < 64; bits++) {
    const status =
      (bits & 1) | ((bits & 2) << 1) | ((bits & 4) << 2) | ((bits & 8) << 3) | ((bits & 16) << 3) | ((bits & 32) << 6);
    const operandSize = form.operandSizes[bits % form.operandSizes.length];
    yield { form, operandSize, target: own(8), flags: status, choices: { segment: 0, rep: 0 } };
    yield {
      form,
      operandSize,
      target: own(8),
      flags: status | (bits % 3 === 0 ? 0x400 : 0),
      choices: { segment: 0 },
      registers: [[RAX, (BigInt(bits) << 8n) | 0xff00_0000_0000_0000n | BigInt(values.below(256))]],
    };
  }
}

const BY_FORM = [corners, shifts, addresses, pageEdges, anything, flags, strings, stack, special, fused];

export function* recipes(forms: readonly number[]): Iterable<Recipe | Invalid> {
  for (const index of forms) {
    const form = FORMS[index];
    const values = new Values(index + 1);
    for (const list of BY_FORM) yield* list(form, values);
  }
  yield* invalid();
}
