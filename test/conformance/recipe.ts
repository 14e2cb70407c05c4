/** What a directed case is made from, and helpers of the lists (recipes.ts, recipes-special.ts). */

import type { Form } from '../../src/engine/x86/forms.ts';
import type { Instruction } from '../../src/engine/x86/instruction.ts';
import { OPERANDS, type OperandInfo } from '../../src/engine/x86/operands.ts';
import { type Choices, type MemoryChoice, modrmOperand } from './encode.ts';
import { DATA_VA, HIGH_ALIAS } from './layout.ts';
import { memorySize } from './steer.ts';
import type { Values } from './values.ts';

export type Value = readonly [lo: number, hi: number];

export const RAX = 0;
export const RCX = 1;
export const RDX = 2;
export const RBX = 3;
export const RSP = 4;
export const RBP = 5;
export const RSI = 6;
export const RDI = 7;

/** Bytes of data that are each slot's own, from DATA_VA + one page on. */
export const OWN_BYTES = 64;
export const OWN_VA = DATA_VA + 4096;

export interface Recipe {
  readonly form: Form;
  /** Which of the form's rows; default 0. */
  readonly row?: number;
  readonly operandSize: number;
  /** Beside random ones. */
  readonly choices?: Partial<Choices>;
  /** The ModRM operand (or the stack, if `stack`): in the slot's own bytes at this offset, or at an address, or anywhere. */
  readonly target?: { readonly own: number } | { readonly at: bigint } | 'random';
  /** Values of the first three operands. */
  readonly first?: Value;
  readonly second?: Value;
  readonly third?: Value;
  /** General registers, after all else. */
  readonly registers?: readonly (readonly [reg: number, value: bigint])[];
  /** Arithmetic flags and DF. */
  readonly flags?: number;
  /** At the slot's own bytes. */
  readonly bytes?: readonly number[];
  /** Writes to the batch's memory. */
  readonly memory?: (data: Uint32Array) => void;
  /** RSP points to the slot's own bytes at this offset. */
  readonly stack?: number;
  /** Image parts that each CPU fills in its own way: bytes of the slot's own data that are not compared. */
  readonly masked?: readonly (readonly [from: number, to: number])[];
  /** Changes the state at last. */
  readonly state?: (words: Uint32Array, at: number) => void;
}

/** Raw bytes that are no instruction. */
export interface Invalid {
  readonly invalid: readonly number[];
}

export const nameOf = (form: Form): string => form.mnemonic.split('/')[0];
export const operandsOf = (form: Form): OperandInfo[] => form.operands.map((type) => OPERANDS[type]);
export const big = ([lo, hi]: Value): bigint => (BigInt(hi) << 32n) | BigInt(lo);

/** Operands are registers, memory and immediates only. */
export function isInteger(form: Form): boolean {
  if (form.privilege !== 'none' || form.operands.length === 0) return false;
  if (STACK.has(nameOf(form)) || BRANCHES.test(nameOf(form))) return false;
  return operandsOf(form).every((operand) => ['gpr', 'immediate', 'one'].includes(operand.class));
}

export const STACK = new Set('push pop pushf popf call ret enter leave retf iret'.split(' '));
export const BRANCHES = /^(j|loop|call|ret)/;

/** Register, memory, memory with LOCK: what the form has. */
export function places(form: Form): readonly ('register' | 'memory' | 'locked')[] {
  const operand = modrmOperand(form);
  const memory: readonly ('memory' | 'locked')[] = form.lockable ? ['memory', 'locked'] : ['memory'];
  if (operand === null || operand.mod === 'register') return ['register'];
  return operand.mod === 'memory' ? memory : ['register', ...memory];
}

/** The corners of a width. */
export const CORNERS_OF: Readonly<Record<number, readonly Value[]>> = {
  1: [0, 1, 0xff, 0x7f, 0x80, 2, 0x10, 0xf5].map((lo) => [lo, 0]),
  2: [0, 1, 0xffff, 0x7fff, 0x8000, 0x80, 0x100, 0xabcd].map((lo) => [lo, 0]),
  4: [0, 1, 0xffffffff, 0x7fffffff, 0x80000000, 0x8000, 0x10000, 0x9abcdef1].map((lo) => [lo, 0]),
  8: [
    [0, 0],
    [1, 0],
    [0xffffffff, 0xffffffff],
    [0xffffffff, 0x7fffffff],
    [0, 0x80000000],
    [0x80000000, 0],
    [0, 1],
    [0x89abcdef, 0x01234567],
  ],
};

export const own = (offset: number): { readonly own: number } => ({ own: offset });

export const plainMemory = (values: Values): MemoryChoice => ({
  base: [RAX, RBX, RSI, RDI, 8, 9, 12, 13][values.below(8)],
  index: -1,
  scale: 0,
  displacement: (values.random() << 24) >> 24,
  displacementBytes: 1,
});

/** `choices` for a place, without surprises. */
export function at(place: 'register' | 'memory' | 'locked', values: Values): Partial<Choices> {
  const quiet = { segment: 0, address32: false, rep: 0 };
  return place === 'register'
    ? { ...quiet, rm: values.below(16), lock: false }
    : { ...quiet, rm: plainMemory(values), lock: place === 'locked' };
}

/** Addresses at which an operand of some bytes meets the edges of pages. */
export function edges(size: number): bigint[] {
  const page = (n: number): number => DATA_VA + n * 4096;
  const half = Math.max(1, size >> 1);
  const result: number[] = [];
  for (const n of [2, 3, 4, 5, 6, 7, 8]) result.push(page(n) - size, page(n) - 1, page(n) - half);
  result.push(page(3), page(4) - size, page(4), page(6), page(6) + 128);
  return result.flatMap((address, i) => [BigInt(address) + (i % 3 === 0 ? HIGH_ALIAS : 0n)]);
}

export function sizeOf(form: Form, operandSize: number, wide = false): number {
  return Math.max(1, memorySize({ form: form.index, operandSize, vexL: wide ? 1 : 0 } as Instruction));
}
