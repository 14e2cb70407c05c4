/**
 * FMA: a * b + c with one rounding. Source: Intel SDM vol. 1, 14.5; vol. 2, VFMADD132PD and its neighbours.
 *
 * WebAssembly has none that is sure to round once. Of doubles the error of the product is computed, and those of two sums; what is left
 * over is made odd in its last bit, so that the last rounding cannot go wrong. Singles are computed as doubles, in which their products
 * are exact. Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
 * That holds within bounds; outside of them, and where exceptions count (sse-float.ts), the slow path computes.
 */

import { NEGATE_ADDEND, NEGATE_PRODUCT } from '../../x86/sse-fused.ts';
import * as operations from '../../x86/sse-operations.ts';
import { operationNumber } from '../../x86/sse-operations.ts';
import type { Cpu } from '../cpu.ts';
import { i32, type Node } from '../nodes.ts';
import { f32x4, f64x2, i64x2, v128 } from '../simd.ts';
import { readHalves, withVex, writeHalves } from './avx-common.ts';
import type { Meaning } from './common.ts';
import { highHalf, joinLow, lanes, repeated, type Vector } from './sse-common.ts';
import { exactlyAll, inexactCounts } from './sse-float.ts';
import { SHAPES, type Shape } from './sse-lanes.ts';

/** Even lanes, odd lanes. */
const KINDS: Readonly<Record<string, readonly [even: number, odd: number]>> = {
  fmadd: [0, 0],
  fmsub: [NEGATE_ADDEND, NEGATE_ADDEND],
  fnmadd: [NEGATE_PRODUCT, NEGATE_PRODUCT],
  fnmsub: [NEGATE_PRODUCT | NEGATE_ADDEND, NEGATE_PRODUCT | NEGATE_ADDEND],
  fmaddsub: [NEGATE_ADDEND, 0],
  fmsubadd: [0, NEGATE_ADDEND],
};

/** Which operands are multiplied, and which is added. */
const ORDERS: Readonly<Record<string, readonly [a: number, b: number, c: number]>> = {
  '132': [0, 2, 1],
  '213': [1, 0, 2],
  '231': [1, 2, 0],
};

const ZERO = repeated(4, 0);
const ABSOLUTE = repeated(4, -1, 0x7fffffff);
const ONE = repeated(4, 1, 0);
/** High words of doubles: 2^n. */
const power = (n: number): Node => repeated(4, 0, (n + 1023) << 20);
const SPLITTER = repeated(4, 0x02000000, 0x41a00000);

/** A result of two doubles, and a mask of the lanes where it may be wrong. */
interface Result {
  readonly value: Node;
  readonly doubt: Node;
}

class Writer {
  readonly #cpu: Cpu;

  constructor(cpu: Cpu) {
    this.#cpu = cpu;
  }

  keep(value: Node): Node {
    return this.#cpu.f.let(value);
  }

  /** a + b - sum, exactly. Source: Knuth, TAOCP vol. 2, 4.2.2. */
  sumError(a: Node, b: Node, sum: Node): Node {
    const part = this.keep(f64x2.sub(sum, a));
    return this.keep(f64x2.add(f64x2.sub(a, f64x2.sub(sum, part)), f64x2.sub(b, part)));
  }

  /** The upper 26 bits, and the rest. */
  split(a: Node): readonly [high: Node, low: Node] {
    const scaled = this.keep(f64x2.mul(a, SPLITTER));
    const high = this.keep(f64x2.sub(scaled, f64x2.sub(scaled, a)));
    return [high, this.keep(f64x2.sub(a, high))];
  }

  /** a * b - product, exactly. Source: Dekker, "A floating-point technique for extending the available precision", 1971. */
  productError(a: Node, b: Node, product: Node): Node {
    const [highA, lowA] = this.split(a);
    const [highB, lowB] = this.split(b);
    const first = f64x2.sub(f64x2.mul(highA, highB), product);
    const middle = f64x2.add(f64x2.add(first, f64x2.mul(highA, lowB)), f64x2.mul(lowA, highB));
    return this.keep(f64x2.add(middle, f64x2.mul(lowA, lowB)));
  }

  /** The sum with its last bit odd where it has an error: towards the error by one unit where it is even. */
  odd(sum: Node, error: Node): Node {
    const apart = i64x2.shrS(v128.xor(sum, error), i32.const(63));
    const even = i64x2.eq(v128.and(sum, ONE), ZERO);
    const moves = v128.and(f64x2.ne(error, ZERO), even);
    return this.keep(i64x2.add(sum, v128.and(v128.or(apart, ONE), moves)));
  }

  /** Neither zero nor between the powers of two; also of NaNs. */
  outside(a: Node, least: number, greatest: number): Node {
    const magnitude = this.keep(v128.and(a, ABSOLUTE));
    const inside = v128.and(f64x2.ge(magnitude, power(least)), f64x2.le(magnitude, power(greatest)));
    return v128.andNot(f64x2.ne(a, ZERO), inside);
  }

  /** Bounds: no product's error is lost, and no sum comes near the ends of the range. */
  ofDoubles(a: Node, b: Node, c: Node): Result {
    const product = this.keep(f64x2.mul(a, b));
    const rest = this.productError(a, b, product);
    const low = this.keep(f64x2.add(c, rest));
    const lowError = this.sumError(c, rest, low);
    const high = this.keep(f64x2.add(product, low));
    const highError = this.sumError(product, low, high);
    const tail = this.keep(f64x2.add(lowError, highError));
    const last = this.odd(tail, this.sumError(lowError, highError, tail));
    // The product of a zero is exact, and the sign of a sum of zeros right.
    const isZero = v128.or(f64x2.eq(a, ZERO), f64x2.eq(b, ZERO));
    const value = this.keep(v128.bitselect(f64x2.add(product, c), f64x2.add(high, last), this.keep(isZero)));
    const doubt = v128.or(v128.or(this.outside(a, -450, 450), this.outside(b, -450, 450)), this.outside(c, -900, 900));
    return { value, doubt: this.keep(doubt) };
  }

  /** Of two singles as doubles: a sum that is made a single is odd, or exact. */
  ofSingles(a: Node, b: Node, c: Node): Result {
    const product = this.keep(f64x2.mul(a, b));
    const sum = this.keep(f64x2.add(product, c));
    const value = this.odd(sum, this.sumError(product, c, sum));
    return { value, doubt: this.keep(this.outside(sum, -125, 126)) };
  }
}

const isDenormal = (a: Node): Node =>
  v128.and(f32x4.lt(f32x4.abs(a), repeated(4, 0x00800000)), f32x4.ne(a, repeated(4, 0)));

const FIRST_LANE = { single: lanes(4, [-1, 0, 0, 0]), double: lanes(4, [-1, -1, 0, 0]) };
const SIGNS = { single: [-0x80000000], double: [0, -0x80000000] };

/** Signs of the lanes that are negated. */
function signs(s: Shape, [even, odd]: readonly [number, number], bit: number): Node {
  const sign = s.single ? SIGNS.single : SIGNS.double;
  const none = sign.map(() => 0);
  if ((even & bit) === (odd & bit)) return repeated(4, ...((even & bit) !== 0 ? sign : none));
  const pair = [...((even & bit) !== 0 ? sign : none), ...((odd & bit) !== 0 ? sign : none)];
  return repeated(4, ...pair);
}

/** One half of a register: the result, and whether it may be wrong. */
function half(cpu: Cpu, s: Shape, a: Node, b: Node, c: Node): Result {
  const w = new Writer(cpu);
  if (!s.single) return w.ofDoubles(a, b, c);
  const [x, y, z] = [a, b, c].map((value) => cpu.f.let(f64x2.promoteLowF32x4(value)));
  const low = w.ofSingles(x, y, z);
  const denormal = v128.or(v128.or(isDenormal(a), isDenormal(b)), isDenormal(c));
  if (s.scalar) return { value: f32x4.demoteF64x2Zero(low.value), doubt: v128.or(low.doubt, denormal) };
  const [p, q, r] = [a, b, c].map((value) => cpu.f.let(f64x2.promoteLowF32x4(highHalf(value))));
  const high = w.ofSingles(p, q, r);
  return {
    value: joinLow(f32x4.demoteF64x2Zero(low.value), f32x4.demoteF64x2Zero(high.value)),
    doubt: v128.or(v128.or(low.doubt, high.doubt), denormal),
  };
}

function multiplyAdd(s: Shape, negations: readonly [number, number], order: readonly number[]): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const last = readHalves(cpu, 2);
    const operands: readonly Vector[] = [readHalves(cpu, 0), readHalves(cpu, 1), last];
    const [a, b, c] = order.map((index) => operands[index]);
    const first = s.single ? FIRST_LANE.single : FIRST_LANE.double;
    // Other lanes of scalars are zeros, which disturb nothing.
    const lane = (value: Node): Node => f.let(s.scalar ? v128.and(value, first) : value);
    const negated = (value: Node, bit: number): Node =>
      negations.every((one) => (one & bit) === 0) ? value : v128.xor(value, signs(s, negations, bit));
    const results = a.map((value, i) =>
      half(cpu, s, lane(negated(value, NEGATE_PRODUCT)), lane(b[i]), lane(negated(c[i], NEGATE_ADDEND))),
    );
    const doubt = results.map((result) => result.doubt).reduce((all, one) => v128.or(all, one));
    const slow = i32.or(v128.anyTrue(doubt), inexactCounts(cpu));
    const number = i32.const(operationNumber(operations.FUSED, s.number, negations[0] | (negations[1] << 2)));
    const values = results.map((result) => result.value);
    const result = exactlyAll(cpu, values, slow, number, a, b, c);
    // The other lanes of a scalar are those of the destination.
    writeHalves(cpu, 0, s.scalar ? [s.put(operands[0][0], s.take(result[0]))] : result);
  };
}

const table: Record<string, Meaning> = {};
for (const [suffix, s] of SHAPES)
  for (const [name, negations] of Object.entries(KINDS))
    for (const [order, indexes] of Object.entries(ORDERS))
      table[`${name}${order}${suffix}`] = multiplyAdd(s, negations, indexes);

export const FMA: Readonly<Record<string, Meaning>> = withVex(table);
