/**
 * What the meanings of instructions with VEX share: three operands, and registers of one or two halves.
 *
 * Memory operands may be anywhere (but for the moves that say "aligned"). Whatever writes an XMM register clears the upper half of the
 * YMM register. Source: Intel SDM vol. 1, 14.9; vol. 2, 2.4.
 */

import type { Cpu } from '../cpu.ts';
import { i32, type Node } from '../nodes.ts';
import type { Meaning } from './common.ts';
import {
  type Binary,
  type ByImmediate,
  byImmediate,
  fromI64,
  immediateByte,
  type Unary,
  type Vector,
  type Whole,
  type WholeByImmediate,
  type WholeUnary,
  ZERO_VECTOR,
} from './sse-common.ts';

const YMM = 32;

/** A vector operand in its halves, kept. Less than 16 bytes of memory: the rest is zero. */
export function readHalves(cpu: Cpu, index: number): Vector {
  const { f } = cpu;
  const operand = cpu.operands[index];
  if (operand.kind !== 'memory') {
    const low = f.let(cpu.readVector(index));
    return operand.kind !== 'other' && operand.size === YMM ? [low, f.let(cpu.readUpper(index))] : [low];
  }
  if (operand.size < 4) return [f.let(fromI64(cpu.read(index)))];
  if (operand.size !== YMM) return [cpu.readVector(index)];
  return loadHalves(cpu, cpu.translate(cpu.address(index), YMM, 'read'));
}

/** 32 bytes at an offset of memory 0. */
export const loadHalves = (cpu: Cpu, at: Node): Vector => [
  cpu.loadVector(at),
  cpu.loadVector(i32.add(at, i32.const(16))),
];

/** Sets a register or memory. What a register's upper half does not get is zero. */
export function writeHalves(cpu: Cpu, index: number, value: Vector): void {
  const operand = cpu.operands[index];
  if (operand.kind !== 'memory') {
    const kept = value.map((half) => cpu.f.let(half));
    cpu.writeVector(index, kept[0]);
    cpu.writeUpper(index, kept.length === 2 ? kept[1] : ZERO_VECTOR);
  } else if (operand.size !== YMM) cpu.writeVector(index, value[0]);
  else {
    const [low, high] = value.map((half) => cpu.f.let(half));
    cpu.storeHalves(cpu.translate(cpu.address(index), YMM, 'write'), low, high);
  }
}

/** The last operand, and the one between it and the destination if there is one: of scalars what the other lanes come from. */
function sources(cpu: Cpu, last: number): readonly [a: Vector, b: Vector] {
  const b = readHalves(cpu, last);
  return [last > 1 ? readHalves(cpu, 1) : b, b];
}

/** operand 0 = compute(operand 1, operand 2), or of operand 1 alone. */
export const wholeOf =
  (compute: Whole): Meaning =>
  (cpu) => {
    const [a, b] = sources(cpu, cpu.operands.length - 1);
    writeHalves(cpu, 0, compute(a, b, cpu));
  };

export const wholeOfOne =
  (compute: WholeUnary): Meaning =>
  (cpu) =>
    writeHalves(cpu, 0, compute(readHalves(cpu, 1), cpu));

/** The same with an immediate byte behind. */
export const wholeOfImmediate =
  (compute: WholeByImmediate): Meaning =>
  (cpu) => {
    const [a, b] = sources(cpu, cpu.operands.length - 2);
    const immediate = immediateByte(cpu, cpu.operands.length - 1);
    writeHalves(cpu, 0, compute(a, b, immediate, cpu));
  };

/** Half by half. `b` may be of 128 bits: the count of a shift. */
export const halvesOf = (compute: Binary): Meaning =>
  wholeOf((a, b, cpu) => a.map((half, i) => compute(half, b[i] ?? b[0], cpu)));

export const halvesOfOne = (compute: Unary): Meaning => wholeOfOne((a, cpu) => a.map((half) => compute(half, cpu)));

/** The second half takes the immediate moved down by `shift`. */
export const halvesOfImmediate = (compute: ByImmediate, shift = 0): Meaning =>
  wholeOfImmediate((a, b, immediate, cpu) =>
    a.map((half, i) => {
      const own = i === 0 || shift === 0 ? immediate : shiftedDown(immediate, shift);
      return compute(half, b[i], own, cpu);
    }),
  );

/** Of an immediate that may be known. */
export const shiftedDown = (immediate: Node, by: number): Node =>
  byImmediate(
    immediate,
    (known) => i32.const(known >> by),
    (read) => i32.shrU(read, i32.const(by)),
  );

/** A meaning that writes 128 bits of operand 0. */
export const clearingUpper =
  (meaning: Meaning): Meaning =>
  (cpu) => {
    meaning(cpu);
    if (cpu.operands[0].kind === 'xmm') cpu.writeUpper(0, ZERO_VECTOR);
  };

/** All names get the meaning and a `v` before them, with #UD and #NM checked first. */
export function withVex(table: Readonly<Record<string, Meaning>>): Readonly<Record<string, Meaning>> {
  return Object.fromEntries(
    Object.entries(table).map(([name, meaning]): [string, Meaning] => [
      `v${name}`,
      (cpu) => {
        cpu.requireAvx();
        meaning(cpu);
      },
    ]),
  );
}
