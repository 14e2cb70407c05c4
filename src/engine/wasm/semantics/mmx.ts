/**
 * MMX. Source: Intel SDM vol. 1, chapter 9; vol. 2, the page of each mnemonic. The conversions are in sse-convert.ts.
 *
 * Registers come as vectors whose high half is zero, or nothing: only the low half of what is written counts.
 */

import { i32, i64, shuffle } from '../nodes.ts';
import { i8x16, i16x8, i64x2, v128 } from '../simd.ts';
import type { Meaning } from './common.ts';
import { enterMmx, leaveMmx, requireMmx } from './mmx-state.ts';
import {
  type Binary,
  binary,
  byImmediate,
  fromI64,
  highHalf,
  IOTA,
  immediateByte,
  joinLow,
  pick,
  readUnaligned,
  repeated,
  unary,
  writeI32,
} from './sse-common.ts';
import { MMX_CONVERT } from './sse-convert.ts';
import { HORIZONTAL, LANEWISE, LANEWISE_UNARY, SHIFT_BY_IMMEDIATE, SHIFT_BY_VECTOR } from './sse-integer.ts';
import { maskedStore } from './sse-moves.ts';
import { extract, insert, shuffleBytes, UNPACK_LOW } from './sse-shuffle.ts';

/** An instruction that reads or writes an MMX register. */
const withMmx =
  (meaning: Meaning): Meaning =>
  (cpu) => {
    requireMmx(cpu);
    meaning(cpu);
    enterMmx(cpu);
  };

/** The operation of XMM registers on both operands joined gives both halves at once. */
const joined =
  (compute: Binary): Binary =>
  (a, b, cpu) => {
    const both = cpu.f.let(joinLow(a, b));
    return compute(both, both, cpu);
  };

const shuffleWords: Meaning = (cpu) => {
  const value = readUnaligned(cpu, 1);
  const result = byImmediate(
    immediateByte(cpu, 2),
    (known) => {
      const numbers = [0, 1, 2, 3, 0, 1, 2, 3].map((at) => (known >> (2 * at)) & 3);
      return shuffle(
        value,
        value,
        numbers.flatMap((number) => [2 * number, 2 * number + 1]),
      );
    },
    (read) => {
      const fields = i16x8.shrU(i16x8.mul(i16x8.splat(read), repeated(2, 64, 16, 4, 1)), i32.const(6));
      const twice = i16x8.mul(v128.and(fields, repeated(2, 3)), repeated(2, 0x0202));
      return pick(value, i16x8.add(twice, repeated(2, 0x0100)));
    },
  );
  cpu.writeVector(0, result);
};

/** Bytes from number `immediate` on of b, then a. */
const alignRight: Meaning = (cpu) => {
  const b = readUnaligned(cpu, 1);
  const both = cpu.f.let(joinLow(b, cpu.readVector(0)));
  const count = i8x16.splat(immediateByte(cpu, 2));
  cpu.writeVector(0, pick(both, i8x16.addSatU(IOTA, count)));
};

const copy: Meaning = (cpu) => cpu.writeVector(0, readUnaligned(cpu, 1));
const fromInteger: Meaning = (cpu) => cpu.writeVector(0, fromI64(cpu.read(1)));
const toInteger: Meaning = (cpu) => cpu.write(0, i64x2.extractLane(cpu.readVector(1), 0));
const byteMask: Meaning = (cpu) => writeI32(cpu, 0, i32.and(i8x16.bitmask(cpu.readVector(1)), i32.const(0xff)));

/** MOVQ2DQ clears the upper half; the register's vector has it clear. */
const mmxToXmm: Meaning = (cpu) => cpu.writeVector(0, i64x2.replaceLane(cpu.readVector(1), 1, i64.small(0)));

const empty: Meaning = (cpu) => {
  requireMmx(cpu);
  leaveMmx(cpu);
};

/** The x87 state has changed even if the store faults. Source: measured on AMD Zen. */
const storeMasked: Meaning = (cpu) => {
  requireMmx(cpu);
  enterMmx(cpu);
  maskedStore(8)(cpu);
};

const mapTo = <T>(table: Readonly<Record<string, T>>, make: (value: T) => Meaning): Record<string, Meaning> =>
  Object.fromEntries(Object.entries(table).map(([name, value]) => [name, make(value)]));

const unpacks = Object.fromEntries(
  Object.entries(UNPACK_LOW).flatMap(([suffix, low]): [string, Meaning][] => [
    [`punpckl${suffix}`, binary(low)],
    [`punpckh${suffix}`, binary((a, b, cpu) => highHalf(low(a, b, cpu)))],
  ]),
);

const REGISTERS: Readonly<Record<string, Meaning>> = {
  ...mapTo({ ...LANEWISE, ...SHIFT_BY_VECTOR }, binary),
  ...mapTo(HORIZONTAL, (compute) => binary(joined(compute))),
  ...mapTo(LANEWISE_UNARY, unary),
  ...Object.fromEntries(Object.entries(SHIFT_BY_IMMEDIATE).map(([name, meaning]) => [`${name} Nq,Ib`, meaning])),
  ...unpacks,
  pshufb: binary(shuffleBytes(7)),
  pshufw: shuffleWords,
  palignr: alignRight,
  pextrw: extract(2, 3),
  pinsrw: insert(2, 3),
  pmovmskb: byteMask,
  movq: copy,
  movntq: copy,
  'movd/movq Pq,Ey': fromInteger,
  'movd/movq Ey,Pq': toInteger,
  movq2dq: mmxToXmm,
  movdq2q: copy,
};

export const MMX: Readonly<Record<string, Meaning>> = {
  ...mapTo(REGISTERS, withMmx),
  ...MMX_CONVERT,
  maskmovq: storeMasked,
  emms: empty,
};
