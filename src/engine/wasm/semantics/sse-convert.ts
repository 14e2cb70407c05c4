/**
 * Conversions between floating point and integers and between the precisions, ROUNDPS and its like, and the approximations.
 * Source: Intel SDM vol. 1, 11.4.1.6; vol. 2, the page of each mnemonic. When the slow path is needed: sse-float.ts.
 */

import * as operations from '../../x86/sse-operations.ts';
import { operationNumber } from '../../x86/sse-operations.ts';
import type { Cpu } from '../cpu.ts';
import { STATE } from '../layout.ts';
import { choice, f32, f64, i32, i64, type Node, select } from '../nodes.ts';
import { f32x4, f64x2, i32x4, i64x2, v128 } from '../simd.ts';
import type { Meaning } from './common.ts';
import { enterMmx, requireMmx } from './mmx-state.ts';
import { fromI64, immediateByte, lanes, readAligned, vectors, writeI32, ZERO_VECTOR } from './sse-common.ts';
import { exactly, inexactCounts } from './sse-float.ts';
import { anyOf, isDenormal, isNan, SHAPE_PD, SHAPE_PS, SHAPE_SD, SHAPE_SS, SHAPES, type Shape } from './sse-lanes.ts';

const LOW_HALF = lanes(4, [-1, -1, 0, 0]);
const NEVER = i32.const(0);

const number = (operation: number, s: Shape, immediate = 0): Node =>
  i32.const(operationNumber(operation, s.number, immediate));

// --- from integers

/** CVTSI2SS, CVTSI2SD: from 32 or 64 bits. Only what has more bits than the result's precision is inexact. */
function scalarFromInteger(s: Shape): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const source = cpu.operands[1];
    const wide = source.kind !== 'other' && source.size === 8;
    const value = f.let(cpu.read(1));
    const left = f.let(cpu.readVector(0));
    const float = s.single ? f32 : f64;
    const result = s.put(left, wide ? float.convertI64S(value) : float.convertI32S(i32.wrap(value)));
    if (!wide && !s.single) {
      cpu.writeVector(0, result);
      return;
    }
    const bits = s.single ? i64.small(1 << 24) : i64.const(0, 1 << 21);
    const signed = f.let(wide ? value : i64.extend32S(value));
    const large = i64.gtU(i64.add(signed, bits), i64.shl(bits, i64.small(1)));
    const operation = wide ? operations.FROM_INT64 : operations.FROM_INT32;
    const slow = i32.and(large, inexactCounts(cpu));
    cpu.writeVector(0, exactly(cpu, result, slow, number(operation, s), left, fromI64(value)));
  };
}

const packedFromInteger: Meaning = (cpu) => {
  const right = readAligned(cpu, 1);
  const left = cpu.f.let(cpu.readVector(0));
  const operation = number(operations.FROM_INT32, SHAPE_PS);
  cpu.writeVector(0, exactly(cpu, f32x4.convertI32x4S(right), inexactCounts(cpu), operation, left, right));
};

/** Exact. */
const doublesFromInteger: Meaning = (cpu) => cpu.writeVector(0, f64x2.convertLowI32x4S(readAligned(cpu, 1)));

/**
 * CVTPI2PS and CVTPI2PD from memory leave the x87 state alone. Source: measured on AMD Zen; Intel SDM vol. 2, CVTPI2PD, says so of that
 * only.
 */
const mmxSource =
  (convert: (cpu: Cpu, right: Node) => void): Meaning =>
  (cpu) => {
    if (cpu.operands[1].kind === 'memory') {
      cpu.requireVectors();
      convert(cpu, readAligned(cpu, 1));
      return;
    }
    requireMmx(cpu);
    enterMmx(cpu);
    convert(cpu, readAligned(cpu, 1));
  };

/** CVTPI2PS: the upper half stays. */
const pairFromInteger = mmxSource((cpu, right) => {
  const left = cpu.f.let(cpu.readVector(0));
  const result = i64x2.replaceLane(left, 0, i64x2.extractLane(f32x4.convertI32x4S(right), 0));
  const operation = number(operations.FROM_INT32_PAIR, SHAPE_PS);
  cpu.writeVector(0, exactly(cpu, result, inexactCounts(cpu), operation, left, right));
});

// --- to integers

/** A mask of the lanes that do not fit, or that are not the same as before and it matters. */
function doubtfulInteger(cpu: Cpu, s: Shape, value: Node, integral: Node, bound: number): Node {
  const outside = s.any(s.not(s.lt(s.abs(integral), s.constant(bound))));
  return i32.or(outside, i32.and(i32.ne(s.any(s.ne(value, integral)), NEVER), inexactCounts(cpu)));
}

/** 2^31 and 2^63, which fit only when negative: the slow path says so. */
const bound = (s: Shape, bits: 32 | 64): number => (s.single ? (bits - 1 + 127) << 23 : (bits - 1 + 1023) << 20);

function scalarToInteger(s: Shape, truncate: boolean): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const right = readAligned(cpu, 1);
    const value = f.let(s.take(right));
    const integral = f.let(truncate ? s.trunc(value) : s.nearest(value));
    const wide = cpu.size === 8;
    const operation = wide ? operations.TO_INT64 : operations.TO_INT32;
    const fast = wide
      ? fromI64(s.single ? i64.truncSatF32S(integral) : i64.truncSatF64S(integral))
      : i32x4.replaceLane(ZERO_VECTOR, 0, s.single ? i32.truncSatF32S(integral) : i32.truncSatF64S(integral));
    const slow = doubtfulInteger(cpu, s, value, integral, bound(s, wide ? 64 : 32));
    const result = exactly(cpu, fast, slow, number(operation, s, truncate ? 1 : 0), ZERO_VECTOR, right);
    if (wide) cpu.write(0, i64x2.extractLane(result, 0));
    else writeI32(cpu, 0, i32x4.extractLane(result, 0));
  };
}

/** Four or two lanes. `mmx`: of singles the low two; the x87 state changes even if #XM is raised (measured). */
function packedToInteger(s: Shape, truncate: boolean, mmx: boolean): Meaning {
  return (cpu) => {
    const { f } = cpu;
    if (mmx) requireMmx(cpu);
    const read = readAligned(cpu, 1);
    if (mmx) enterMmx(cpu);
    const pair = mmx && s.single;
    const right = pair ? f.let(v128.and(read, LOW_HALF)) : read;
    const integral = f.let(truncate ? s.trunc(right) : s.nearest(right));
    const fast = s.single ? i32x4.truncSatF32x4S(integral) : i32x4.truncSatF64x2SZero(integral);
    const slow = doubtfulInteger(cpu, s, right, integral, bound(s, 32));
    const operation = pair ? operations.TO_INT32_PAIR : operations.TO_INT32;
    cpu.writeVector(0, exactly(cpu, fast, slow, number(operation, s, truncate ? 1 : 0), ZERO_VECTOR, right));
  };
}

// --- between the precisions

/** Exact but for NaNs and denormals. */
function widening(s: Shape): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const read = readAligned(cpu, 1);
    const right = s.scalar ? read : f.let(v128.and(read, LOW_HALF));
    const left = f.let(cpu.readVector(0));
    const value = f.let(s.take(right));
    const result = s.scalar ? SHAPE_SD.put(left, f64.promoteF32(value)) : f64x2.promoteLowF32x4(right);
    const slow = s.any(s.or(isDenormal(s, value), isNan(s, value)));
    cpu.writeVector(0, exactly(cpu, result, slow, number(operations.CONVERT_PRECISION, s), left, right));
  };
}

/** Upper halves of 2^127 and 2^-125: between them a single is normal, whatever is rounded. */
const SINGLE_GREATEST = 0x47e00000;
const SINGLE_LEAST = 0x38200000;

function narrowing(s: Shape): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const right = readAligned(cpu, 1);
    const left = f.let(cpu.readVector(0));
    const value = f.let(s.take(right));
    const result = s.scalar ? SHAPE_SS.put(left, f32.demoteF64(value)) : f32x4.demoteF64x2Zero(right);
    const magnitude = f.let(s.abs(value));
    const doubtful = s.or(
      s.not(s.lt(magnitude, s.constant(SINGLE_GREATEST))),
      s.and(s.lt(magnitude, s.constant(SINGLE_LEAST)), s.ne(value, s.zero)),
    );
    const slow = i32.or(s.any(doubtful), inexactCounts(cpu));
    cpu.writeVector(0, exactly(cpu, result, slow, number(operations.CONVERT_PRECISION, s), left, right));
  };
}

// --- rounding

/** Immediate: bits 0-1 the mode, 2 that of MXCSR instead, 3 no precision exception. */
function rounding(s: Shape): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const right = readAligned(cpu, 1);
    const left = f.let(cpu.readVector(0));
    const immediate = immediateByte(cpu, 2);
    const value = f.let(s.take(right));
    const ofMxcsr = i32.and(i32.shrU(cpu.state(STATE.mxcsr, 4), i32.const(13)), i32.const(3));
    const mode = f.let(i32.and(select(ofMxcsr, immediate, i32.and(immediate, i32.const(4))), i32.const(3)));
    const is = (wanted: number): Node => i32.eq(mode, i32.const(wanted));
    const directed = choice(is(1), s.floor(value), choice(is(2), s.ceil(value), s.trunc(value)));
    const result = f.let(choice(is(0), s.nearest(value), directed));
    const inexact = i32.and(i32.ne(s.any(s.ne(value, result)), NEVER), i32.eqz(i32.and(immediate, i32.const(8))));
    const special = s.any(anyOf(s, isNan(s, value), isDenormal(s, value)));
    const slow = i32.or(special, i32.and(inexact, inexactCounts(cpu)));
    const operation = i32.or(number(operations.ROUND, s), i32.shl(immediate, i32.const(16)));
    cpu.writeVector(0, exactly(cpu, s.put(left, result), slow, operation, left, right));
  };
}

/** RCPPS and RSQRTPS are tables. */
function approximation(s: Shape, operation: number): Meaning {
  return (cpu) => {
    const right = readAligned(cpu, 1);
    cpu.writeVector(0, cpu.exactVector(number(operation, s), cpu.f.let(cpu.readVector(0)), right));
  };
}

const table: Record<string, Meaning> = {
  cvtsi2ss: scalarFromInteger(SHAPE_SS),
  cvtsi2sd: scalarFromInteger(SHAPE_SD),
  cvtdq2ps: packedFromInteger,
  cvtdq2pd: doublesFromInteger,
  cvtss2si: scalarToInteger(SHAPE_SS, false),
  cvtsd2si: scalarToInteger(SHAPE_SD, false),
  cvttss2si: scalarToInteger(SHAPE_SS, true),
  cvttsd2si: scalarToInteger(SHAPE_SD, true),
  cvtps2dq: packedToInteger(SHAPE_PS, false, false),
  cvttps2dq: packedToInteger(SHAPE_PS, true, false),
  cvtpd2dq: packedToInteger(SHAPE_PD, false, false),
  cvttpd2dq: packedToInteger(SHAPE_PD, true, false),
  cvtps2pd: widening(SHAPE_PS),
  cvtss2sd: widening(SHAPE_SS),
  cvtpd2ps: narrowing(SHAPE_PD),
  cvtsd2ss: narrowing(SHAPE_SD),
};
for (const [suffix, s] of SHAPES) {
  table[`round${suffix}`] = rounding(s);
}
for (const s of [SHAPE_PS, SHAPE_SS]) {
  table[s.scalar ? 'rcpss' : 'rcpps'] = approximation(s, operations.RECIPROCAL);
  table[s.scalar ? 'rsqrtss' : 'rsqrtps'] = approximation(s, operations.RECIPROCAL_SQRT);
}

export const SSE_CONVERT: Readonly<Record<string, Meaning>> = vectors(table);

/** With an MMX register, or memory in its place. */
export const MMX_CONVERT: Readonly<Record<string, Meaning>> = {
  cvtpi2ps: pairFromInteger,
  cvtpi2pd: mmxSource((cpu, right) => cpu.writeVector(0, f64x2.convertLowI32x4S(right))),
  cvtps2pi: packedToInteger(SHAPE_PS, false, true),
  cvttps2pi: packedToInteger(SHAPE_PS, true, true),
  cvtpd2pi: packedToInteger(SHAPE_PD, false, true),
  cvttpd2pi: packedToInteger(SHAPE_PD, true, true),
};
