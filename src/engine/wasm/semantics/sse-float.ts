/**
 * Floating-point arithmetic and comparisons of SSE. Source: Intel SDM vol. 1, 11.5; vol. 2, the page of each mnemonic.
 *
 * WebAssembly rounds to nearest and has no flags. Its result is the CPU's, and MXCSR stays as it is, when
 * - no operand or result is a denormal, an infinity or a NaN, nor a result so small that it may have been one before rounding
 *   (a zero operand is fine): then only the precision flag can come up;
 * - that flag is set already and masked, and the rounding mode is nearest. A program sets it with its first inexact operation.
 * In all other cases `exactVector` (x86/sse-exact.ts) does the operation again. DAZ and FTZ need no test of their own: without
 * denormals they change nothing.
 */

import * as operations from '../../x86/sse-operations.ts';
import { operationNumber } from '../../x86/sse-operations.ts';
import type { Cpu } from '../cpu.ts';
import { STATE } from '../layout.ts';
import { i32, i64, type Node, shuffle, V128 } from '../nodes.ts';
import { f32x4, f64x2, i32x4, i64x2, v128 } from '../simd.ts';
import type { Meaning } from './common.ts';
import {
  byImmediate,
  mapTo,
  readAligned,
  repeated,
  type Vector,
  vectors,
  type Whole,
  type WholeByImmediate,
  whole,
  wholeByImmediate,
} from './sse-common.ts';
import { anyOf, isDenormal, isNan, isSpecial, SHAPE_PD, SHAPE_PS, SHAPES, type Shape } from './sse-lanes.ts';

/** RC, the precision mask and the precision flag; what they must be to forget about them. */
const INEXACT_BITS = 0x7020;
const INEXACT_MASKED = 0x1020;

/** i32: inexact results need the slow path. */
export function inexactCounts(cpu: Cpu): Node {
  return i32.ne(i32.and(cpu.state(STATE.mxcsr, 4), i32.const(INEXACT_BITS)), i32.const(INEXACT_MASKED));
}

/** `result`, or what the slow path makes of the operands if `slow`. Kept. */
export function exactly(cpu: Cpu, result: Node, slow: Node, operation: Node, a: Node, b: Node): Node {
  return exactlyAll(cpu, [result], slow, operation, [a], [b])[0];
}

/** The same for vectors in halves. */
export function exactlyAll(
  cpu: Cpu,
  results: Vector,
  slow: Node,
  operation: Node,
  ...operands: readonly Vector[]
): Vector {
  const { f } = cpu;
  const kept = keepAll(cpu, results);
  f.seldom(slow, () => replaceAll(cpu, kept, cpu.exactVectors(operation, ...operands)));
  return kept;
}

/** Locals with the values, to be changed. */
export function keepAll(cpu: Cpu, values: Vector): Vector {
  return values.map((value) => {
    const kept = cpu.f.temporary(V128);
    cpu.f.set(kept, value);
    return kept;
  });
}

export function replaceAll(cpu: Cpu, kept: Vector, values: Vector): void {
  kept.forEach((half, i) => {
    cpu.f.set(half, values[i]);
  });
}

type Compute = (s: Shape, a: Node, b: Node) => Node;
/** A mask of the lanes where more than the precision flag may matter. */
type Doubtful = (s: Shape, a: Node, b: Node, result: Node) => Node;

/** Operands and results of a test for doubts; what the slow path needs. */
interface Arithmetic {
  readonly s: Shape;
  /** As operationNumber makes it. */
  readonly operation: Node;
  readonly doubtful: Doubtful;
  readonly left: Vector;
  readonly right: Vector;
}

/** A mask for each half becomes one i32: 0 or not. */
function anyHalf(s: Shape, halves: Vector, mask: (i: number) => Node): Node {
  return s.any(anyOf(s, ...halves.map((_half, i) => mask(i))));
}

/**
 * `results` (in their lanes), or what the slow path says. All nodes are kept.
 *
 * The first test is cheap and takes zeros for doubtful; few values but zeros get to the second. Measured on chains of MULSD and ADDSD
 * (MULPD and ADDPD): 1.5 (1.6) ns an operation, 2.1 (3.2) with the second test alone, 1.1 (0.8) with none.
 */
function finish(cpu: Cpu, work: Arithmetic, a: Vector, b: Vector, results: Vector): Vector {
  const { f } = cpu;
  const { s, operation, doubtful, left, right } = work;
  const kept = keepAll(
    cpu,
    results.map((result, i) => s.put(left[i], result)),
  );
  f.block((done) => {
    f.block((suspicious) => {
      // A square root is of the right operand alone; horizontal operations are of other lanes than their operands'.
      const [x, y] = s.scalar ? [a === b ? right : left, right] : [a, b];
      kept.forEach((z, i) => {
        f.brIf(suspicious, isSuspicious(s, x[i], y[i], z), false);
      });
      f.brIf(done, i32.eqz(inexactCounts(cpu)), true);
    });
    const doubts = anyHalf(s, results, (i) => doubtful(s, a[i], b[i], results[i]));
    f.if(i32.or(doubts, inexactCounts(cpu)), () => replaceAll(cpu, kept, cpu.exactVectors(operation, left, right)));
  });
  return kept;
}

/**
 * Some value is tiny or zero, or the result infinite or a NaN: then result - result is a NaN, which makes the least of their absolute
 * values one. Of vectors, whose lowest lane counts if they are scalars. i32: 0 or not.
 */
function isSuspicious(s: Shape, a: Node, b: Node, result: Node): Node {
  const packed = s.single ? f32x4 : f64x2;
  const [x, y, z] = [a, b, result].map(packed.abs);
  const least = a === b ? packed.pmin(x, z) : packed.pmin(packed.pmin(x, y), z);
  const lane = s.take(result);
  const isNormal = s.lt(s.leastNormal, s.add(s.take(least), s.sub(lane, lane)));
  if (s.scalar) return i32.eqz(isNormal);
  return s.single ? i32.ne(i32x4.bitmask(isNormal), i32.const(15)) : i32.ne(i64x2.bitmask(isNormal), i32.const(3));
}

/** a op b. */
function arithmetic(s: Shape, operation: number, compute: Compute, doubtful: Doubtful): Whole {
  return (left, right, cpu) => {
    const { f } = cpu;
    const b = right.map((half) => f.let(s.take(half)));
    const a = operation === operations.SQRT ? b : left.map((half) => f.let(s.take(half)));
    const results = b.map((value, i) => f.let(compute(s, a[i], value)));
    const number = i32.const(operationNumber(operation, s.number));
    return finish(cpu, { s, operation: number, doubtful, left, right }, a, b, results);
  };
}

const operandsDenormal = (s: Shape, a: Node, b: Node): Node => s.or(isDenormal(s, a), isDenormal(s, b));

/** A denormal sum is exact, but FTZ would clear it. */
const doubtfulSum: Doubtful = (s, a, b, result) =>
  anyOf(s, operandsDenormal(s, a, b), isDenormal(s, result), isSpecial(s, result));

/** The least normal number may be what a smaller one was rounded to. */
const isTiny = (s: Shape, result: Node): Node => s.le(s.abs(result), s.leastNormal);
const doubtfulProduct: Doubtful = (s, a, b, result) =>
  anyOf(
    s,
    operandsDenormal(s, a, b),
    isSpecial(s, result),
    s.and(isTiny(s, result), s.and(s.ne(a, s.zero), s.ne(b, s.zero))),
  );
const doubtfulQuotient: Doubtful = (s, a, b, result) =>
  anyOf(s, operandsDenormal(s, a, b), isSpecial(s, result), s.and(isTiny(s, result), s.ne(a, s.zero)));
const doubtfulRoot: Doubtful = (s, _a, b, result) => s.or(isDenormal(s, b), isSpecial(s, result));

/** Some operand is a NaN or a denormal. */
function anyUnusual(cpu: Cpu, s: Shape, left: Vector, right: Vector): Node {
  const take = (half: Node): Node => cpu.f.let(s.take(half));
  const a = left.map(take);
  const b = right.map(take);
  return anyHalf(s, left, (i) => anyOf(s, operandsDenormal(s, a[i], b[i]), isNan(s, a[i]), isNan(s, b[i])));
}

/** MINPS is `a < b ? a : b`: exact with any operands, but NaNs and denormals are told. */
function extreme(s: Shape, greater: boolean): Whole {
  const packed = s.single ? f32x4 : f64x2;
  const operation = greater ? operations.MAXIMUM : operations.MINIMUM;
  return (left, right, cpu) => {
    const slow = anyUnusual(cpu, s, left, right);
    const results = left.map((a, i) => {
      const chosen = greater ? packed.pmax(right[i], a) : packed.pmin(right[i], a);
      return s.scalar ? mergeLow(s, a, chosen) : chosen;
    });
    return exactlyAll(cpu, results, slow, i32.const(operationNumber(operation, s.number)), left, right);
  };
}

const LOW_SINGLE = [16, 17, 18, 19, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const LOW_DOUBLE = [16, 17, 18, 19, 20, 21, 22, 23, 8, 9, 10, 11, 12, 13, 14, 15];
/** The lowest lane of `value`, the others of `old`. */
const mergeLow = (s: Shape, old: Node, value: Node): Node => shuffle(old, value, s.single ? LOW_SINGLE : LOW_DOUBLE);

/** Predicates of CMPPS; with VEX there are more. */
const PREDICATES = 8;
const PREDICATES_VEX = 32;

/**
 * CMPPS and its like. Without NaNs a predicate and its opposite are 4 apart, and those from 8 on are the same again.
 * Source: Intel SDM vol. 2, CMPPD, table 3-1.
 */
function comparison(s: Shape, predicates: number): WholeByImmediate {
  const shape = s.single ? SHAPE_PS : SHAPE_PD;
  const relation = (a: Node, b: Node, immediate: Node): Node =>
    byImmediate(
      immediate,
      (known) => {
        const plain = [shape.eq, shape.lt, shape.le, () => repeated(4, 0)][known & 3](a, b);
        return (known & 4) !== 0 ? v128.not(plain) : plain;
      },
      (read) => {
        const bit = (number: number): Node =>
          i32x4.splat(i32.shrS(i32.shl(read, i32.const(31 - number)), i32.const(31)));
        // Bits 0 and 1 choose among EQ, LT, LE and never.
        const low = v128.bitselect(shape.lt(a, b), shape.eq(a, b), bit(0));
        const plain = v128.bitselect(v128.andNot(shape.le(a, b), bit(0)), low, bit(1));
        return v128.xor(plain, bit(2));
      },
    );
  return (left, right, immediate, cpu) => {
    const slow = anyUnusual(cpu, s, left, right);
    const results = left.map((a, i) => {
      const mask = relation(a, right[i], immediate);
      return s.scalar ? mergeLow(s, a, mask) : mask;
    });
    const number = i32.or(
      i32.const(operationNumber(operations.COMPARE, s.number)),
      i32.shl(i32.and(immediate, i32.const(predicates - 1)), i32.const(16)),
    );
    return exactlyAll(cpu, results, slow, number, left, right);
  };
}

const ZERO = 0x40;

/** COMISS and its like: ZF equal, CF less, all three unordered. */
function compareFlags(s: Shape, operation: number): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const right = readAligned(cpu, 1);
    const left = f.let(cpu.readVector(0));
    const a = f.let(s.take(left));
    const b = f.let(s.take(right));
    const flags = f.let(i32.or(s.lt(a, b), i32.mul(s.eq(a, b), i32.const(ZERO))));
    const bits = f.let(i64.extendI32U(flags));
    const slow = anyOf(s, operandsDenormal(s, a, b), isNan(s, a), isNan(s, b));
    f.if(slow, () => {
      const answer = cpu.exactVector(i32.const(operationNumber(operation, s.number)), left, right);
      f.set(bits, i64.extendI32U(i32x4.extractLane(answer, 0)));
    });
    cpu.flags.explicit(bits);
  };
}

/** Even and odd lanes of both operands. */
const neighbours = (s: Shape, a: Node, b: Node): readonly [Node, Node] => {
  const size = s.single ? 4 : 8;
  const pick = (first: number): Node =>
    shuffle(
      a,
      b,
      Array.from({ length: 16 }, (_, byte) => (2 * Math.floor(byte / size) + first) * size + (byte % size)),
    );
  return [pick(0), pick(1)];
};

function horizontal(s: Shape, operation: number, compute: Compute): Whole {
  return (left, right, cpu) => {
    const { f } = cpu;
    const pairs = left.map((half, i) => neighbours(s, half, right[i]));
    const a = pairs.map(([even]) => f.let(even));
    const b = pairs.map(([, odd]) => f.let(odd));
    const results = a.map((value, i) => f.let(compute(s, value, b[i])));
    const number = i32.const(operationNumber(operation, s.number));
    return finish(cpu, { s, operation: number, doubtful: doubtfulSum, left, right }, a, b, results);
  };
}

/** Differences in the even lanes. */
const addSubtract: Compute = (s, a, b) =>
  v128.bitselect(s.sub(a, b), s.add(a, b), s.single ? repeated(4, -1, 0) : repeated(4, -1, -1, 0, 0));

/** DPPS, DPPD. Lanes that are not chosen are zeros, which disturb nothing. */
function dotProduct(s: Shape): WholeByImmediate {
  return (left, right, immediate, cpu) => {
    const { f } = cpu;
    const chosen = (at: number): Node => {
      const bits = s.single ? repeated(4, 1, 2, 4, 8) : repeated(4, 1, 1, 2, 2);
      return i32x4.eq(v128.and(i32x4.splat(i32.shrU(immediate, i32.const(at))), bits), bits);
    };
    const factors = f.let(chosen(4));
    const doubts: Node[] = [];
    const sums = left.map((half, i) => {
      const a = f.let(v128.and(half, factors));
      const b = f.let(v128.and(right[i], factors));
      const products = f.let(s.mul(a, b));
      doubts.push(doubtfulProduct(s, a, b, products));
      let sum = products;
      for (const distance of s.single ? [4, 8] : [8]) {
        const other = f.let(
          shuffle(
            sum,
            sum,
            Array.from({ length: 16 }, (_, byte) => byte ^ distance),
          ),
        );
        const next = f.let(s.add(sum, other));
        doubts.push(doubtfulSum(s, sum, other, next));
        sum = next;
      }
      return sum;
    });
    const slow = i32.or(s.any(anyOf(s, ...doubts)), inexactCounts(cpu));
    const number = i32.or(
      i32.const(operationNumber(operations.DOT_PRODUCT, s.number)),
      i32.shl(immediate, i32.const(16)),
    );
    const results = sums.map((sum) => v128.and(sum, chosen(0)));
    return exactlyAll(cpu, results, slow, number, left, right);
  };
}

const arithmetics: Record<string, Whole> = {};
const byImmediates: Record<string, WholeByImmediate> = {};
const comparisons: Record<string, WholeByImmediate> = {};
const comparisonsVex: Record<string, WholeByImmediate> = {};
const flags: Record<string, Meaning> = {};
for (const [suffix, s] of SHAPES) {
  arithmetics[`add${suffix}`] = arithmetic(s, operations.ADD, (_s, a, b) => s.add(a, b), doubtfulSum);
  arithmetics[`sub${suffix}`] = arithmetic(s, operations.SUBTRACT, (_s, a, b) => s.sub(a, b), doubtfulSum);
  arithmetics[`mul${suffix}`] = arithmetic(s, operations.MULTIPLY, (_s, a, b) => s.mul(a, b), doubtfulProduct);
  arithmetics[`div${suffix}`] = arithmetic(s, operations.DIVIDE, (_s, a, b) => s.div(a, b), doubtfulQuotient);
  arithmetics[`sqrt${suffix}`] = arithmetic(s, operations.SQRT, (_s, _a, b) => s.sqrt(b), doubtfulRoot);
  arithmetics[`min${suffix}`] = extreme(s, false);
  arithmetics[`max${suffix}`] = extreme(s, true);
  comparisons[`cmp${suffix}`] = comparison(s, PREDICATES);
  comparisonsVex[`cmp${suffix}`] = comparison(s, PREDICATES_VEX);
  if (s.scalar) {
    flags[`comi${suffix}`] = compareFlags(s, operations.COMPARE_ORDERED);
    flags[`ucomi${suffix}`] = compareFlags(s, operations.COMPARE_UNORDERED);
  } else {
    arithmetics[`hadd${suffix}`] = horizontal(s, operations.HORIZONTAL_ADD, (_s, a, b) => s.add(a, b));
    arithmetics[`hsub${suffix}`] = horizontal(s, operations.HORIZONTAL_SUBTRACT, (_s, a, b) => s.sub(a, b));
    arithmetics[`addsub${suffix}`] = arithmetic(s, operations.ADD_SUBTRACT, addSubtract, doubtfulSum);
    byImmediates[`dp${suffix}`] = dotProduct(s);
  }
}

/** a op b; square roots are of b alone. */
export const FLOAT: Readonly<Record<string, Whole>> = arithmetics;
/** With VEX. */
export const FLOAT_BY_IMMEDIATE: Readonly<Record<string, WholeByImmediate>> = { ...byImmediates, ...comparisonsVex };
/** COMISS and its like, of operands 0 and 1. */
export const FLOAT_FLAGS: Readonly<Record<string, Meaning>> = flags;

export const SSE_FLOAT: Readonly<Record<string, Meaning>> = vectors({
  ...mapTo(FLOAT, whole),
  ...mapTo({ ...byImmediates, ...comparisons }, wholeByImmediate),
  ...flags,
});
