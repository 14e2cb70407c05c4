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
import { f32x4, f64x2, i32x4, i64x2, v128 } from '../simd.ts';
import { readHalves, withVex, writeHalves } from './avx-common.ts';
import type { Meaning } from './common.ts';
import { highHalf, joinLow, repeated, type Vector } from './sse-common.ts';
import { inexactCounts, keepAll, replaceAll } from './sse-float.ts';
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
/** Half a unit of the 26th bit, and the bits from there on. */
const HALF_OF_LOW = repeated(4, 0x04000000, 0);
const HIGH_BITS = repeated(4, -0x08000000, -1);
/** What a single does not have of a double, and the middle of it. */
const BELOW_SINGLE = repeated(4, 0x1fffffff, 0);
const MIDDLE = repeated(4, 0x10000000, 0);
const LEAST_NORMAL_SINGLE = repeated(4, 0x00800000);
/** 2^-125 and 2^126. */
const LEAST_SINGLE = repeated(4, 0x01000000);
const GREATEST_SINGLE = repeated(4, 0x7e800000);

/** A result, and a mask: where it is not zero the result may be wrong. */
interface Result {
  readonly value: Node;
  readonly doubt: Node;
}

/** What is quick to compute and nearly always right; and all of it. */
interface Attempt {
  readonly first: Result;
  readonly second: () => Result;
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

  /** The upper 26 bits, rounded, and the rest. */
  split(a: Node): readonly [high: Node, low: Node] {
    const high = this.keep(v128.and(i64x2.add(a, HALF_OF_LOW), HIGH_BITS));
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

  abs(a: Node): Node {
    return v128.and(a, ABSOLUTE);
  }

  /** Neither zero nor between the powers of two; also of NaNs. */
  outside(a: Node, least: number, greatest: number): Node {
    const magnitude = this.keep(this.abs(a));
    const inside = v128.and(f64x2.ge(magnitude, power(least)), f64x2.le(magnitude, power(greatest)));
    return v128.andNot(f64x2.ne(a, ZERO), inside);
  }

  /**
   * Bounds: no product's error is lost, and no sum comes near the ends of the range. The first attempt rounds what is left over as it
   * comes, which matters only where that makes the sum the middle of two numbers; and takes zeros for doubtful.
   */
  ofDoubles(a: Node, b: Node, c: Node): Attempt {
    const product = this.keep(f64x2.mul(a, b));
    const rest = this.productError(a, b, product);
    const low = this.keep(f64x2.add(c, rest));
    const lowError = this.sumError(c, rest, low);
    const high = this.keep(f64x2.add(product, low));
    const highError = this.sumError(product, low, high);
    const tail = this.keep(f64x2.add(lowError, highError));
    const value = this.keep(f64x2.add(high, tail));
    const missing = this.keep(f64x2.sub(tail, f64x2.sub(value, high)));
    const twice = this.keep(f64x2.add(missing, missing));
    const isMiddle = v128.and(f64x2.eq(f64x2.sub(f64x2.add(value, twice), value), twice), f64x2.ne(twice, ZERO));
    const least = f64x2.pmin(f64x2.pmin(this.abs(a), this.abs(b)), this.abs(c));
    const inside = v128.and(f64x2.ge(least, power(-450)), f64x2.lt(this.abs(value), power(900)));
    return {
      first: { value, doubt: v128.or(isMiddle, v128.not(inside)) },
      second: () => {
        const last = this.odd(tail, this.sumError(lowError, highError, tail));
        // The product of a zero is exact, and the sign of a sum of zeros right.
        const isZero = this.keep(v128.or(f64x2.eq(a, ZERO), f64x2.eq(b, ZERO)));
        const doubt = v128.or(
          v128.or(this.outside(a, -450, 450), this.outside(b, -450, 450)),
          this.outside(c, -900, 900),
        );
        return { value: this.keep(v128.bitselect(f64x2.add(product, c), f64x2.add(high, last), isZero)), doubt };
      },
    };
  }

  /** Of two singles as doubles: their sum, and where that is the middle of two singles. */
  ofSingles(a: Node, b: Node, c: Node): Sum {
    const product = this.keep(f64x2.mul(a, b));
    const sum = this.keep(f64x2.add(product, c));
    return {
      sum,
      isMiddle: i64x2.eq(v128.and(sum, BELOW_SINGLE), MIDDLE),
      odd: () => this.odd(sum, this.sumError(product, c, sum)),
    };
  }
}

interface Sum {
  readonly sum: Node;
  readonly isMiddle: Node;
  readonly odd: () => Node;
}

const isDenormal = (a: Node): Node =>
  v128.and(f32x4.lt(f32x4.abs(a), LEAST_NORMAL_SINGLE), f32x4.ne(a, repeated(4, 0)));

const SIGNS = { single: [-0x80000000], double: [0, -0x80000000] };

/** Signs of the lanes that are negated. */
function signs(s: Shape, [even, odd]: readonly [number, number], bit: number): Node {
  const sign = s.single ? SIGNS.single : SIGNS.double;
  const none = sign.map(() => 0);
  if ((even & bit) === (odd & bit)) return repeated(4, ...((even & bit) !== 0 ? sign : none));
  const pair = [...((even & bit) !== 0 ? sign : none), ...((odd & bit) !== 0 ? sign : none)];
  return repeated(4, ...pair);
}

/** One half of a register. */
function half(cpu: Cpu, s: Shape, a: Node, b: Node, c: Node): Attempt {
  const w = new Writer(cpu);
  if (!s.single) return w.ofDoubles(a, b, c);
  const widened = (part: (value: Node) => Node): Sum => {
    const [x, y, z] = [a, b, c].map((value) => cpu.f.let(f64x2.promoteLowF32x4(part(value))));
    return w.ofSingles(x, y, z);
  };
  const sums = s.scalar ? [widened((value) => value)] : [widened((value) => value), widened(highHalf)];
  const narrowed = (values: readonly Node[]): Node => {
    const [low, high] = values.map(f32x4.demoteF64x2Zero);
    return w.keep(high === undefined ? low : joinLow(low, high));
  };
  const isOutside = (value: Node): Node =>
    v128.not(v128.and(f32x4.ge(f32x4.abs(value), LEAST_SINGLE), f32x4.lt(f32x4.abs(value), GREATEST_SINGLE)));
  const value = narrowed(sums.map(({ sum }) => sum));
  const least = f32x4.pmin(f32x4.pmin(f32x4.abs(a), f32x4.abs(b)), f32x4.abs(c));
  const isSuspicious = v128.or(isOutside(value), f32x4.lt(least, LEAST_NORMAL_SINGLE));
  const isMiddle = sums.map((one) => one.isMiddle).reduce((all, one) => v128.or(all, one));
  return {
    first: { value, doubt: v128.or(isMiddle, isSuspicious) },
    second: () => {
      const denormal = v128.or(v128.or(isDenormal(a), isDenormal(b)), isDenormal(c));
      const outside = sums.map(({ sum }) => w.outside(sum, -125, 126)).reduce((all, one) => v128.or(all, one));
      return { value: narrowed(sums.map(({ odd }) => odd())), doubt: v128.or(outside, denormal) };
    },
  };
}

function multiplyAdd(s: Shape, negations: readonly [number, number], order: readonly number[]): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const last = readHalves(cpu, 2);
    const operands: readonly Vector[] = [readHalves(cpu, 0), readHalves(cpu, 1), last];
    const [a, b, c] = order.map((index) => operands[index]);
    // All lanes of scalars are the first: nothing else to doubt.
    const spread = (value: Node): Node => (s.single ? i32x4.splat(i32x4.extractLane(value, 0)) : joinLow(value, value));
    const lane = (value: Node): Node => f.let(s.scalar ? spread(value) : value);
    const negated = (value: Node, bit: number): Node =>
      negations.every((one) => (one & bit) === 0) ? value : v128.xor(value, signs(s, negations, bit));
    const attempts = a.map((value, i) =>
      half(cpu, s, lane(negated(value, NEGATE_PRODUCT)), lane(b[i]), lane(negated(c[i], NEGATE_ADDEND))),
    );
    const anyDoubt = (results: readonly Result[]): Node =>
      i32.or(
        v128.anyTrue(results.map(({ doubt }) => doubt).reduce((all, one) => v128.or(all, one))),
        inexactCounts(cpu),
      );
    const firsts = attempts.map(({ first }) => first);
    const kept = keepAll(
      cpu,
      firsts.map(({ value }) => value),
    );
    f.if(anyDoubt(firsts), () => {
      const seconds = attempts.map(({ second }) => second());
      const doubt = f.let(anyDoubt(seconds));
      replaceAll(
        cpu,
        kept,
        seconds.map(({ value }) => value),
      );
      const number = i32.const(operationNumber(operations.FUSED, s.number, negations[0] | (negations[1] << 2)));
      f.if(doubt, () => replaceAll(cpu, kept, cpu.exactVectors(number, a, b, c)));
    });
    // The other lanes of a scalar are those of the destination.
    writeHalves(cpu, 0, s.scalar ? [s.put(operands[0][0], s.take(kept[0]))] : kept);
  };
}

const table: Record<string, Meaning> = {};
for (const [suffix, s] of SHAPES)
  for (const [name, negations] of Object.entries(KINDS))
    for (const [order, indexes] of Object.entries(ORDERS))
      table[`${name}${order}${suffix}`] = multiplyAdd(s, negations, indexes);

export const FMA: Readonly<Record<string, Meaning>> = withVex(table);
