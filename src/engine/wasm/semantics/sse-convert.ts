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
import {
  fromI64,
  lanes,
  mapTo,
  readAligned,
  type Vector,
  vectors,
  type Whole,
  type WholeByImmediate,
  type WholeUnary,
  whole,
  wholeByImmediate,
  wholeUnary,
  writeI32,
  ZERO_VECTOR,
} from './sse-common.ts';
import { exactly, exactlyAll, inexactCounts } from './sse-float.ts';
import { anyOf, isDenormal, isNan, SHAPE_PD, SHAPE_PS, SHAPE_SD, SHAPE_SS, SHAPES, type Shape } from './sse-lanes.ts';

const LOW_HALF = lanes(4, [-1, -1, 0, 0]);
const NEVER = i32.const(0);

const number = (operation: number, s: Shape, immediate = 0): Node =>
  i32.const(operationNumber(operation, s.number, immediate));

// --- from integers

/**
 * CVTSI2SS, CVTSI2SD: from 32 or 64 bits. Only what has more bits than the result's precision is inexact. `from`: the operand behind the
 * one that keeps its other lanes.
 */
export function scalarFromInteger(s: Shape, from: 1 | 2): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const source = cpu.operands[from];
    const wide = source.kind !== 'other' && source.size === 8;
    const value = f.let(cpu.read(from));
    const left = f.let(cpu.readVector(from - 1));
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

const packedFromInteger: WholeUnary = (right, cpu) =>
  exactlyAll(
    cpu,
    right.map(f32x4.convertI32x4S),
    inexactCounts(cpu),
    number(operations.FROM_INT32, SHAPE_PS),
    right,
    right,
  );

/** Exact. */
const doublesFromInteger: WholeUnary = (right) => right.map(f64x2.convertLowI32x4S);

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

/** A mask of the lanes that do not fit, or that are inexact and it matters. */
function anyDoubtfulInteger(cpu: Cpu, s: Shape, values: Vector, integrals: Vector): Node {
  return values
    .map((value, i) => doubtfulInteger(cpu, s, value, integrals[i], bound(s, 32)))
    .reduce((all, one) => i32.or(all, one));
}

/** Four or two lanes of each half, to its low end. */
const packedToInteger =
  (s: Shape, truncate: boolean, operation: number = operations.TO_INT32): WholeUnary =>
  (right, cpu) => {
    const integrals = right.map((half) => cpu.f.let(truncate ? s.trunc(half) : s.nearest(half)));
    const fast = integrals.map(s.single ? i32x4.truncSatF32x4S : i32x4.truncSatF64x2SZero);
    const slow = anyDoubtfulInteger(cpu, s, right, integrals);
    return exactlyAll(cpu, fast, slow, number(operation, s, truncate ? 1 : 0), right, right);
  };

/** To an MMX register: of singles the low two. The x87 state changes even if #XM is raised (measured). */
function toMmx(s: Shape, truncate: boolean): Meaning {
  return (cpu) => {
    const { f } = cpu;
    requireMmx(cpu);
    const read = readAligned(cpu, 1);
    enterMmx(cpu);
    const right = s.single ? f.let(v128.and(read, LOW_HALF)) : read;
    const operation = s.single ? operations.TO_INT32_PAIR : operations.TO_INT32;
    cpu.writeVector(0, packedToInteger(s, truncate, operation)([right], cpu)[0]);
  };
}

// --- between the precisions

/** Exact but for NaNs and denormals. Packed: the low two lanes of each half; a scalar goes into `left`. */
const widening =
  (s: Shape): Whole =>
  (left, read, cpu) => {
    const { f } = cpu;
    const right = s.scalar ? read : read.map((half) => f.let(v128.and(half, LOW_HALF)));
    const values = right.map((half) => f.let(s.take(half)));
    const results = values.map((value, i) =>
      s.scalar ? SHAPE_SD.put(left[i], f64.promoteF32(value)) : f64x2.promoteLowF32x4(right[i]),
    );
    const slow = s.any(anyOf(s, ...values.map((value) => s.or(isDenormal(s, value), isNan(s, value)))));
    return exactlyAll(cpu, results, slow, number(operations.CONVERT_PRECISION, s), left, right);
  };

/** Upper halves of 2^127 and 2^-125: between them a single is normal, whatever is rounded. */
const SINGLE_GREATEST = 0x47e00000;
const SINGLE_LEAST = 0x38200000;

/** Packed: to the low end of each half. */
const narrowing =
  (s: Shape): Whole =>
  (left, right, cpu) => {
    const { f } = cpu;
    const values = right.map((half) => f.let(s.take(half)));
    const results = values.map((value, i) =>
      s.scalar ? SHAPE_SS.put(left[i], f32.demoteF64(value)) : f32x4.demoteF64x2Zero(right[i]),
    );
    const doubts = values.map((value) => {
      const magnitude = f.let(s.abs(value));
      return s.or(
        s.not(s.lt(magnitude, s.constant(SINGLE_GREATEST))),
        s.and(s.lt(magnitude, s.constant(SINGLE_LEAST)), s.ne(value, s.zero)),
      );
    });
    const slow = i32.or(s.any(anyOf(s, ...doubts)), inexactCounts(cpu));
    return exactlyAll(cpu, results, slow, number(operations.CONVERT_PRECISION, s), left, right);
  };

// --- rounding

/** Immediate: bits 0-1 the mode, 2 that of MXCSR instead, 3 no precision exception. A scalar goes into `left`. */
const rounding =
  (s: Shape): WholeByImmediate =>
  (left, right, immediate, cpu) => {
    const { f } = cpu;
    const ofMxcsr = i32.and(i32.shrU(cpu.state(STATE.mxcsr, 4), i32.const(13)), i32.const(3));
    const mode = f.let(i32.and(select(ofMxcsr, immediate, i32.and(immediate, i32.const(4))), i32.const(3)));
    const is = (wanted: number): Node => i32.eq(mode, i32.const(wanted));
    const values = right.map((half) => f.let(s.take(half)));
    const rounded = values.map((value) => {
      const directed = choice(is(1), s.floor(value), choice(is(2), s.ceil(value), s.trunc(value)));
      return f.let(choice(is(0), s.nearest(value), directed));
    });
    const changed = s.any(anyOf(s, ...values.map((value, i) => s.ne(value, rounded[i]))));
    const inexact = i32.and(i32.ne(changed, NEVER), i32.eqz(i32.and(immediate, i32.const(8))));
    const special = s.any(anyOf(s, ...values.flatMap((value) => [isNan(s, value), isDenormal(s, value)])));
    const slow = i32.or(special, i32.and(inexact, inexactCounts(cpu)));
    const operation = i32.or(number(operations.ROUND, s), i32.shl(immediate, i32.const(16)));
    const results = rounded.map((value, i) => s.put(left[i], value));
    return exactlyAll(cpu, results, slow, operation, left, right);
  };

/** RCPPS and RSQRTPS are tables. */
const approximation =
  (s: Shape, operation: number): Whole =>
  (left, right, cpu) =>
    cpu.exactVectors(number(operation, s), left, right);

/** Of whole registers, or of halves to the low end of each half. */
export const CONVERT: Readonly<Record<string, WholeUnary>> = {
  cvtdq2ps: packedFromInteger,
  cvtps2dq: packedToInteger(SHAPE_PS, false),
  cvttps2dq: packedToInteger(SHAPE_PS, true),
};
export const NARROW: Readonly<Record<string, WholeUnary>> = {
  cvtpd2dq: packedToInteger(SHAPE_PD, false),
  cvttpd2dq: packedToInteger(SHAPE_PD, true),
  cvtpd2ps: (right, cpu) => narrowing(SHAPE_PD)(right, right, cpu),
};
/** Of the low half of each half. */
export const WIDEN_FLOAT: Readonly<Record<string, WholeUnary>> = {
  cvtdq2pd: doublesFromInteger,
  cvtps2pd: (right, cpu) => widening(SHAPE_PS)(right, right, cpu),
};
/** Of one lane of b into a. */
export const CONVERT_SCALAR: Readonly<Record<string, Whole>> = {
  cvtss2sd: widening(SHAPE_SS),
  cvtsd2ss: narrowing(SHAPE_SD),
};
/** To general registers, of operand 1. */
export const TO_INTEGER: Readonly<Record<string, Meaning>> = {
  cvtss2si: scalarToInteger(SHAPE_SS, false),
  cvtsd2si: scalarToInteger(SHAPE_SD, false),
  cvttss2si: scalarToInteger(SHAPE_SS, true),
  cvttsd2si: scalarToInteger(SHAPE_SD, true),
};
/** Scalars go into a, the others take b alone. */
export const ROUND: Readonly<Record<string, WholeByImmediate>> = Object.fromEntries(
  SHAPES.map(([suffix, s]) => [`round${suffix}`, rounding(s)]),
);
export const APPROXIMATE: Readonly<Record<string, Whole>> = {
  rcpps: approximation(SHAPE_PS, operations.RECIPROCAL),
  rcpss: approximation(SHAPE_SS, operations.RECIPROCAL),
  rsqrtps: approximation(SHAPE_PS, operations.RECIPROCAL_SQRT),
  rsqrtss: approximation(SHAPE_SS, operations.RECIPROCAL_SQRT),
};

export const SSE_CONVERT: Readonly<Record<string, Meaning>> = vectors({
  cvtsi2ss: scalarFromInteger(SHAPE_SS, 1),
  cvtsi2sd: scalarFromInteger(SHAPE_SD, 1),
  ...mapTo({ ...CONVERT, ...NARROW, ...WIDEN_FLOAT }, wholeUnary),
  ...mapTo({ ...CONVERT_SCALAR, ...APPROXIMATE }, whole),
  ...mapTo(ROUND, wholeByImmediate),
  ...TO_INTEGER,
});

/** With an MMX register, or memory in its place. */
export const MMX_CONVERT: Readonly<Record<string, Meaning>> = {
  cvtpi2ps: pairFromInteger,
  cvtpi2pd: mmxSource((cpu, right) => cpu.writeVector(0, f64x2.convertLowI32x4S(right))),
  cvtps2pi: toMmx(SHAPE_PS, false),
  cvttps2pi: toMmx(SHAPE_PS, true),
  cvtpd2pi: toMmx(SHAPE_PD, false),
  cvttpd2pi: toMmx(SHAPE_PD, true),
};
