/**
 * Recorded outcomes of a real CPU: what a file of vectors holds, and how.
 *
 * The file is one line of JSON (a VectorsHead: which CPU, which seed) and then, deflated, for each operation of
 * test-operations.ts in its order `cases` outcomes. The inputs are not in the file: test-inputs.ts makes them again from the seed, one
 * Random for all. An outcome is what changed against the input: a count byte, then for each changed word its index (u8) and its
 * value (u32, little-endian). Registers are compared in physical order, so that a push changes one of them and not eight.
 *
 * How it was recorded: a C program outside of this repository assembled, for each operation,
 * `fxrstor64 [state]; push eflags; popfq; <code> [rsi]; pushfq; fxsave64 [state]`, ran each case with SIGFPE caught, and wrote the case
 * back. The same program compared many millions of further cases; the numbers are in x87.test.ts.
 */

import { CASE_WORDS } from './test-inputs.ts';

export interface VectorsHead {
  readonly cpu: string;
  readonly seed: number;
  /** Cases of each operation. */
  readonly cases: number;
  readonly operations: number;
}

const BYTES_PER_CHANGE = 5;
const REGISTERS = 8;
const REGISTER_WORDS = 4;

/** Turns the registers of a case from stack order to physical order, in place. */
export function toPhysicalOrder(words: Int32Array, at: number): void {
  const top = (words[at] >>> 27) & 7;
  const first = at + REGISTERS;
  const stack = words.slice(first, first + REGISTERS * REGISTER_WORDS);
  for (let i = 0; i < REGISTERS; i++) {
    const physical = (top + i) & 7;
    for (let word = 0; word < REGISTER_WORDS; word++) {
      words[first + physical * REGISTER_WORDS + word] = stack[i * REGISTER_WORDS + word];
    }
  }
}

/** Appends an outcome to bytes at offset; both cases in physical order. Returns the new offset. */
export function encodeOutcome(before: Int32Array, after: Int32Array, bytes: DataView, offset: number): number {
  const countAt = offset++;
  let count = 0;
  for (let word = 0; word < CASE_WORDS; word++) {
    if (before[word] === after[word]) continue;
    bytes.setUint8(offset, word);
    bytes.setInt32(offset + 1, after[word], true);
    offset += BYTES_PER_CHANGE;
    count++;
  }
  bytes.setUint8(countAt, count);
  return offset;
}

/** Applies an outcome to a case in physical order. Returns the new offset. */
export function decodeOutcome(words: Int32Array, bytes: DataView, offset: number): number {
  const count = bytes.getUint8(offset++);
  for (let change = 0; change < count; change++) {
    words[bytes.getUint8(offset)] = bytes.getInt32(offset + 1, true);
    offset += BYTES_PER_CHANGE;
  }
  return offset;
}
