/** The meaning of every instruction that has one here, by mnemonic; the others are control flow (interpreter.ts) or rare (rare.ts). */

import { FORMS, type Form } from '../../x86/forms.ts';
import { OPERANDS } from '../../x86/operands.ts';
import { ARITHMETIC } from './arithmetic.ts';
import { AVX } from './avx.ts';
import { BITS } from './bits.ts';
import { BMI } from './bmi.ts';
import type { Meaning } from './common.ts';
import { MMX } from './mmx.ts';
import { MOVES } from './moves.ts';
import { SHIFTS } from './shifts.ts';
import { SSE_CONTROL } from './sse-control.ts';
import { SSE_CONVERT } from './sse-convert.ts';
import { SSE_FLOAT } from './sse-float.ts';
import { SSE_INTEGER } from './sse-integer.ts';
import { SSE_MOVES } from './sse-moves.ts';
import { SSE_SHUFFLE } from './sse-shuffle.ts';
import { SSE_STRINGS } from './sse-strings.ts';
import { STRINGS } from './strings.ts';

const INTEGER: Readonly<Record<string, Meaning>> = { ...ARITHMETIC, ...SHIFTS, ...BITS, ...BMI, ...MOVES };

/** By name, or by a form's key where a name means several things. Most names are both MMX and SSE. */
const SSE: Readonly<Record<string, Meaning>> = {
  ...SSE_MOVES,
  ...SSE_INTEGER,
  ...SSE_SHUFFLE,
  ...SSE_FLOAT,
  ...SSE_CONVERT,
  ...SSE_STRINGS,
  ...SSE_CONTROL,
};

const STEMS = FORMS.map((form) => form.mnemonic.split('/')[0]);

/** The first of a form's names. */
export const stem = (form: Form): string => STEMS[form.index];

/** An instruction that the interpreter has in its own function. */
export function integerMeaning(form: Form): Meaning | undefined {
  return Object.hasOwn(INTEGER, stem(form)) ? INTEGER[stem(form)] : undefined;
}

/** A string instruction without a segment, of 64-bit addresses. */
export function stringMeaning(form: Form): Meaning | undefined {
  return !form.vex && Object.hasOwn(STRINGS, stem(form)) ? STRINGS[stem(form)] : undefined;
}

/** An instruction that has a function of its own. */
export function vectorMeaning(form: Form): Meaning | undefined {
  const mmx = form.mnemonic === 'emms' || form.operands.some((type) => OPERANDS[type].class === 'mmx');
  const table = mmx ? MMX : SSE;
  if (Object.hasOwn(table, form.key)) return table[form.key];
  return Object.hasOwn(table, stem(form)) ? table[stem(form)] : undefined;
}

/** An instruction with VEX on vector registers, which has a function of its own. */
export function avxMeaning(form: Form): Meaning | undefined {
  if (Object.hasOwn(AVX, form.key)) return AVX[form.key];
  return Object.hasOwn(AVX, stem(form)) ? AVX[stem(form)] : undefined;
}
