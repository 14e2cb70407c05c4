/**
 * What the meanings of vector instructions share.
 *
 * A 16-byte memory operand must be aligned, or it is #GP(0) before its pages are looked at; the few instructions that allow any
 * address say so. Source: Intel SDM vol. 1, 10.4.1.1, and vol. 2, 2.4 (exception types).
 */

import type { Cpu } from '../cpu.ts';
import { CONST, i32, i64, type Node, shuffle, v128Const } from '../nodes.ts';
import { i8x16, i64x2 } from '../simd.ts';
import type { Meaning } from './common.ts';

/** A vector from vectors. All that stands there twice is kept (`f.let`). */
export type Binary = (a: Node, b: Node, cpu: Cpu) => Node;
export type Unary = (a: Node, cpu: Cpu) => Node;

/** A register's value in halves of 128 bits, low first: one of XMM, two of YMM. All are kept. */
export type Vector = readonly Node[];
/** All lanes at once: for operations whose exceptions are those of all lanes together. */
export type Whole = (a: Vector, b: Vector, cpu: Cpu) => Vector;
export type WholeUnary = (a: Vector, cpu: Cpu) => Vector;
export type WholeByImmediate = (a: Vector, b: Vector, immediate: Node, cpu: Cpu) => Vector;
/** Of 128 bits, with an immediate byte (i32). */
export type ByImmediate = (a: Node, b: Node, immediate: Node, cpu: Cpu) => Node;

export const ZERO_VECTOR: Node = v128Const(new Array<number>(16).fill(0));

/** A constant of lanes, lowest first. */
export function lanes(size: 1 | 2 | 4, values: readonly number[]): Node {
  const bytes: number[] = [];
  for (const value of values) for (let i = 0; i < size; i++) bytes.push((value >> (8 * i)) & 0xff);
  return v128Const(bytes);
}

/** The same lanes over and over. */
export const repeated = (size: 1 | 2 | 4, ...values: number[]): Node => {
  const count = 16 / size / values.length;
  return lanes(size, new Array<number[]>(count).fill(values).flat());
};

/** 0, 1 ... 15. */
export const IOTA: Node = lanes(1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

/** The value in the low lane, the rest zero. */
export const fromI64 = (value: Node): Node => i64x2.replaceLane(ZERO_VECTOR, 0, value);

/** The low halves of two vectors. */
export const joinLow = (low: Node, high: Node): Node =>
  shuffle(low, high, [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23]);
/** The high half of a vector, twice. */
export const highHalf = (value: Node): Node =>
  shuffle(value, value, [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15]);

/** A vector operand, kept; aligned if it is 16 bytes of memory. */
export function readAligned(cpu: Cpu, index: number): Node {
  const operand = cpu.operands[index];
  if (operand.kind !== 'memory') return cpu.f.let(cpu.readVector(index));
  if (operand.size === 2) return cpu.f.let(fromI64(cpu.read(index)));
  if (operand.size !== 16) return cpu.readVector(index);
  const address = cpu.address(index);
  cpu.requireAligned(address);
  return cpu.loadVector(cpu.translate(address, 16, 'read'));
}

/** A vector operand, kept, wherever it is. */
export function readUnaligned(cpu: Cpu, index: number): Node {
  return cpu.operands[index].kind === 'memory' ? cpu.readVector(index) : cpu.f.let(cpu.readVector(index));
}

export function writeAligned(cpu: Cpu, index: number, value: Node): void {
  const operand = cpu.operands[index];
  if (operand.kind !== 'memory' || operand.size !== 16) {
    cpu.writeVector(index, value);
    return;
  }
  const address = cpu.address(index);
  cpu.requireAligned(address);
  cpu.storeVector(cpu.translate(address, 16, 'write'), 16, value);
}

/** operand 0 = compute(operand 0, operand 1). */
export const binary =
  (compute: Binary): Meaning =>
  (cpu) => {
    const b = readAligned(cpu, 1);
    const a = cpu.f.let(cpu.readVector(0));
    cpu.writeVector(0, compute(a, b, cpu));
  };

/** operand 0 = compute(operand 1). */
export const unary =
  (compute: Unary): Meaning =>
  (cpu) => {
    cpu.writeVector(0, compute(readAligned(cpu, 1), cpu));
  };

/** The same of operations on all lanes. */
export const whole =
  (compute: Whole): Meaning =>
  (cpu) => {
    const b = readAligned(cpu, 1);
    const a = cpu.f.let(cpu.readVector(0));
    cpu.writeVector(0, compute([a], [b], cpu)[0]);
  };
export const wholeUnary =
  (compute: WholeUnary): Meaning =>
  (cpu) => {
    cpu.writeVector(0, compute([readAligned(cpu, 1)], cpu)[0]);
  };
/** operand 0 = compute(operand 0, operand 1, immediate). */
export const wholeByImmediate =
  (compute: WholeByImmediate): Meaning =>
  (cpu) => {
    const b = readAligned(cpu, 1);
    const immediate = immediateByte(cpu, 2);
    const a = cpu.f.let(cpu.readVector(0));
    cpu.writeVector(0, compute([a], [b], immediate, cpu)[0]);
  };
export const byImmediateByte = (compute: ByImmediate): Meaning =>
  wholeByImmediate((a, b, immediate, cpu) => a.map((half, i) => compute(half, b[i], immediate, cpu)));

/** A table of meanings made from a table of operations. */
export const mapTo = <T>(table: Readonly<Record<string, T>>, make: (value: T) => Meaning): Record<string, Meaning> =>
  Object.fromEntries(Object.entries(table).map(([name, value]) => [name, make(value)]));

/** An immediate byte as i32: a constant where the instruction is known, as in translated code. Kept. */
export function immediateByte(cpu: Cpu, index: number): Node {
  const value = cpu.read(index);
  if (value.kind === CONST) return i32.const(value.lo & 0xff);
  return cpu.f.let(i32.and(i32.wrap(value), i32.const(0xff)));
}

/** One way for an immediate that is known, another for one that is read at run time. */
export function byImmediate(immediate: Node, known: (value: number) => Node, read: (value: Node) => Node): Node {
  return immediate.kind === CONST ? known(immediate.lo) : read(immediate);
}

/** Bytes of a vector, by numbers that may be computed; 0 where one is above 15. */
export const pick = (value: Node, indexes: Node): Node => i8x16.swizzle(value, indexes);

/** Sets operand `index`, a general register or memory, to an i32. */
export const writeI32 = (cpu: Cpu, index: number, value: Node): void => cpu.write(index, i64.extendI32U(value));

/** All names get the meaning, with #NM checked first. */
export function vectors(table: Readonly<Record<string, Meaning>>): Readonly<Record<string, Meaning>> {
  return Object.fromEntries(
    Object.entries(table).map(([name, meaning]): [string, Meaning] => [
      name,
      (cpu) => {
        cpu.requireVectors();
        meaning(cpu);
      },
    ]),
  );
}
