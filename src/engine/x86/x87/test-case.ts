/** Runs one case of test-inputs.ts on X87, as the recorder runs it on a CPU: FXRSTOR64, the instruction, FXSAVE64. */

import { AX, CASE_WORDS, EFLAGS, EFLAGS_MASK, FAULT, MEMORY, MEMORY_WORDS, STATE_WORDS } from './test-inputs.ts';
import type { IntegerState, Operation } from './test-operations.ts';
import type { X87 } from './x87.ts';

/** The signal of #MF, as the recorder notes it. */
const MATH_FAULT = 8;
const memory = new Int32Array(MEMORY_WORDS);
const integer: IntegerState = { eflags: 0, ax: 0 };

/** From input[at...] into output[0 ... CASE_WORDS - 1]. */
export function runCase(x: X87, operation: Operation, input: Int32Array, at: number, output: Int32Array): void {
  for (let word = 0; word < CASE_WORDS; word++) output[word] = input[at + word];
  for (let word = 0; word < STATE_WORDS; word++) x.transfer[word] = input[at + word];
  x.fxrstor(true);
  if (x.pending() && !operation.isNonWaiting) {
    output[FAULT] = MATH_FAULT;
    return;
  }
  for (let word = 0; word < MEMORY_WORDS; word++) memory[word] = input[at + MEMORY + word];
  integer.eflags = input[at + EFLAGS];
  if (operation.run(x, memory, integer) && operation.written !== 0) {
    const words = operation.written >>> 2;
    for (let word = 0; word < words; word++) output[MEMORY + word] = x.transfer[word];
    if (operation.written & 2) {
      const rest = MEMORY + words;
      output[rest] = (output[rest] & ~0xffff) | (x.transfer[words] & 0xffff);
    }
  }
  x.fxsave(true);
  for (let word = 0; word < STATE_WORDS; word++) output[word] = x.transfer[word];
  output[EFLAGS] = integer.eflags & EFLAGS_MASK;
  if (operation.name === 'fnstsw ax') output[AX] = integer.ax;
}

/**
 * Makes the outcome of a CPU, or of X87, comparable: FOP, FIP and FDP go (CPUs keep them differently, X87 leaves them to the
 * engine), and so does AX where the instruction does not write it.
 */
export function normalizeOutcome(operation: Operation, words: Int32Array, at: number): void {
  words[at + 1] &= 0xff;
  words.fill(0, at + 2, at + 8);
  words[at + EFLAGS] &= EFLAGS_MASK;
  words[at + AX] = operation.name === 'fnstsw ax' ? words[at + AX] & 0xffff : 0;
  if (operation.name === 'fnstenv' || operation.name === 'fnsave') words.fill(0, at + MEMORY + 3, at + MEMORY + 7);
  if (operation.name === 'fnstenv 16' || operation.name === 'fnsave 16') {
    words[at + MEMORY + 1] &= 0xffff;
    words[at + MEMORY + 2] = 0;
    words[at + MEMORY + 3] &= ~0xffff;
  }
}
