/**
 * The four shapes of SSE's floating point (PS, PD, SS, SD) in one notation, so that the meaning of an operation, and the test of
 * what WebAssembly does not do, is written once. A mask is a vector of lanes of ones, or an i32 for scalars.
 */

import { PD, PS, SD, SS } from '../../x86/sse-operations.ts';
import { f32, f32Const, f64, f64Const, i32, type Node } from '../nodes.ts';
import { f32x4, f64x2, v128 } from '../simd.ts';
import { repeated } from './sse-common.ts';

type Unary = (a: Node) => Node;
type Binary = (a: Node, b: Node) => Node;

export interface Shape {
  readonly number: number;
  readonly single: boolean;
  readonly scalar: boolean;
  /** The lanes that count of a vector, and a vector with them in their places. */
  readonly take: Unary;
  readonly put: (old: Node, value: Node) => Node;
  /** The same value in all lanes, by the bits of a single or by the upper half of a double's. */
  readonly constant: (bits: number) => Node;
  readonly zero: Node;
  readonly leastNormal: Node;
  readonly infinity: Node;
  readonly abs: Unary;
  readonly add: Binary;
  readonly sub: Binary;
  readonly mul: Binary;
  readonly div: Binary;
  readonly sqrt: Unary;
  readonly ceil: Unary;
  readonly floor: Unary;
  readonly trunc: Unary;
  readonly nearest: Unary;
  readonly eq: Binary;
  readonly ne: Binary;
  readonly lt: Binary;
  readonly le: Binary;
  readonly and: Binary;
  readonly or: Binary;
  readonly not: Unary;
  /** A mask as i32: 0 or not. */
  readonly any: Unary;
}

const LEAST_SINGLE = 0x00800000;
const INFINITY_SINGLE = 0x7f800000;
/** High words. */
const LEAST_DOUBLE = 0x00100000;
const INFINITY_DOUBLE = 0x7ff00000;

const same: Unary = (a) => a;
const packedMasks = { and: v128.and, or: v128.or, not: v128.not, any: v128.anyTrue };
const scalarMasks = { and: i32.and, or: i32.or, not: i32.eqz, any: same };

export const SHAPE_PS: Shape = {
  ...f32x4,
  ...packedMasks,
  number: PS,
  single: true,
  scalar: false,
  take: same,
  put: (_old, value) => value,
  constant: (bits) => repeated(4, bits),
  zero: repeated(4, 0),
  leastNormal: repeated(4, LEAST_SINGLE),
  infinity: repeated(4, INFINITY_SINGLE),
};

export const SHAPE_PD: Shape = {
  ...f64x2,
  ...packedMasks,
  number: PD,
  single: false,
  scalar: false,
  take: same,
  put: (_old, value) => value,
  constant: (high) => repeated(4, 0, high),
  zero: repeated(4, 0),
  leastNormal: repeated(4, 0, LEAST_DOUBLE),
  infinity: repeated(4, 0, INFINITY_DOUBLE),
};

export const SHAPE_SS: Shape = {
  ...f32,
  ...scalarMasks,
  number: SS,
  single: true,
  scalar: true,
  take: (a) => f32x4.extractLane(a, 0),
  put: (old, value) => f32x4.replaceLane(old, 0, value),
  constant: f32Const,
  zero: f32Const(0),
  leastNormal: f32Const(LEAST_SINGLE),
  infinity: f32Const(INFINITY_SINGLE),
};

export const SHAPE_SD: Shape = {
  ...f64,
  ...scalarMasks,
  number: SD,
  single: false,
  scalar: true,
  take: (a) => f64x2.extractLane(a, 0),
  put: (old, value) => f64x2.replaceLane(old, 0, value),
  constant: f64Const,
  zero: f64Const(0),
  leastNormal: f64Const(LEAST_DOUBLE),
  infinity: f64Const(INFINITY_DOUBLE),
};

export const SHAPES: readonly (readonly [string, Shape])[] = [
  ['ps', SHAPE_PS],
  ['pd', SHAPE_PD],
  ['ss', SHAPE_SS],
  ['sd', SHAPE_SD],
];

/** Neither zero nor normal: a denormal. */
export const isDenormal = (s: Shape, a: Node): Node => s.and(s.lt(s.abs(a), s.leastNormal), s.ne(a, s.zero));
/** Infinity or NaN. */
export const isSpecial = (s: Shape, a: Node): Node => s.not(s.lt(s.abs(a), s.infinity));
export const isNan = (s: Shape, a: Node): Node => s.ne(a, a);

export function anyOf(s: Shape, ...masks: readonly Node[]): Node {
  return masks.reduce((all, mask) => s.or(all, mask));
}
