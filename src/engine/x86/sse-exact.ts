/**
 * The slow path of SSE's floating point: what WebAssembly does not do (other rounding modes, flags, unmasked exceptions, NaNs as x86
 * has them, denormals as zeros, flush to zero), for the operations of sse-operations.ts. Translated code and the interpreter come
 * here when a result or an operand is out of the ordinary, or when MXCSR's precision flag is not set yet.
 *
 * Only the vCPU's own thread touches its memory.
 */

import { reciprocal, reciprocalRoot } from './sse-approximate.ts';
import {
  add,
  compare,
  comparePredicate,
  divide,
  type LaneOperation,
  maximum,
  minimum,
  multiply,
  sqrt,
  subtract,
} from './sse-arithmetic.ts';
import { fromInteger, narrow, roundToIntegral, toInteger, widen } from './sse-convert.ts';
import { DOUBLE, Environment, type Format, SINGLE } from './sse-format.ts';
import { fused, NEGATE_ADDEND, NEGATE_PRODUCT } from './sse-fused.ts';
import { fromHalf, toHalf } from './sse-half.ts';
import * as operations from './sse-operations.ts';
import { PD, PS, SD, SS } from './sse-operations.ts';
import * as quick from './sse-quick.ts';

const CF = 1;
const PF = 4;
const ZF = 0x40;
/** By relation: less, equal, greater, unordered. Source: Intel SDM vol. 2, COMISD. */
const RELATION_FLAGS = [CF, ZF, 0, ZF | PF | CF];

const LANE_OPERATIONS: readonly LaneOperation[] = [add, subtract, multiply, divide, sqrt, minimum, maximum];
const QUICK: readonly quick.QuickOperation[] = [quick.add, quick.subtract, quick.multiply, quick.divide, quick.sqrt];

const e = new Environment();

/** The operands' halves of 128 bits, a, b and c, and the result, which starts as a. */
class Half {
  readonly operands = new Uint32Array(12);
  readonly singles = new Float32Array(this.operands.buffer);
  readonly doubles = new Float64Array(this.operands.buffer);
  readonly result = new Uint32Array(4);
  readonly resultSingles = new Float32Array(this.result.buffer);
  readonly resultDoubles = new Float64Array(this.result.buffer);
}

// No two vCPUs share a thread's module.
const HALVES: readonly Half[] = [new Half(), new Half()];
/** Those of this operation, and the one that it works on. */
let halves: readonly Half[] = HALVES;
let h: Half = HALVES[0];
const ONE_HALF: readonly Half[] = [HALVES[0]];

/** Lanes of a, b and c in one row: 0 to 3, 4 to 7 and 8 to 11, or 0 to 1, 2 to 3 and 4 to 5. */
function get(f: Format, lane: number): bigint {
  if (f === SINGLE) return BigInt(h.operands[lane]);
  return (BigInt(h.operands[2 * lane + 1]) << 32n) | BigInt(h.operands[2 * lane]);
}

function set(bits: 32 | 64, lane: number, value: bigint): void {
  if (bits === 32) h.result[lane] = Number(value);
  else {
    h.result[2 * lane] = Number(value & 0xffffffffn);
    h.result[2 * lane + 1] = Number(value >> 32n);
  }
}

/** Lane `to` of the result = lane `first` op lane `second`. */
function compute(operation: number, single: boolean, to: number, first: number, second: number): void {
  if (operation < QUICK.length) {
    if (single) {
      const value = quick.quickSingle(e, QUICK[operation], h.singles[first], h.singles[second]);
      if (!Number.isNaN(value)) {
        h.resultSingles[to] = value;
        return;
      }
    } else {
      const value = quick.quickDouble(e, QUICK[operation], h.doubles[first], h.doubles[second]);
      if (!Number.isNaN(value)) {
        h.resultDoubles[to] = value;
        return;
      }
    }
  }
  const f = single ? SINGLE : DOUBLE;
  set(single ? 32 : 64, to, LANE_OPERATIONS[operation](e, f, get(f, first), get(f, second)));
}

/** Lane of the result = a * b + c, some negated. */
function multiplyAdd(single: boolean, lane: number, negations: number): void {
  const values = single ? h.singles : h.doubles;
  const all = single ? 4 : 2;
  const a = (negations & NEGATE_PRODUCT) !== 0 ? -values[lane] : values[lane];
  const b = values[all + lane];
  const c = (negations & NEGATE_ADDEND) !== 0 ? -values[2 * all + lane] : values[2 * all + lane];
  const value = single ? quick.quickFusedSingle(e, a, b, c) : quick.quickFusedDouble(e, a, b, c);
  if (!Number.isNaN(value)) {
    (single ? h.resultSingles : h.resultDoubles)[lane] = value;
    return;
  }
  const f = single ? SINGLE : DOUBLE;
  const exact = fused(e, f, get(f, lane), get(f, all + lane), get(f, 2 * all + lane), negations);
  set(single ? 32 : 64, lane, exact);
}

/** Sums or differences of neighbours. */
function horizontal(operation: number, single: boolean): void {
  const count = single ? 4 : 2;
  for (let lane = 0; lane < count; lane++) compute(operation, single, lane, 2 * lane, 2 * lane + 1);
}

/** What was computed becomes an operand, unless an exception ends it. */
function nextStep(): boolean {
  for (const half of halves) half.operands.set(half.result);
  return e.nextStep();
}

function inEachHalf(body: () => void): void {
  for (const half of halves) {
    h = half;
    body();
  }
}

/** Products of the lanes in the immediate's high half, added in pairs; to the lanes in its low half. */
function dotProduct(single: boolean, immediate: number): void {
  const count = single ? 4 : 2;
  const words = single ? 1 : 2;
  inEachHalf(() => {
    h.result.fill(0);
    for (let lane = 0; lane < count; lane++)
      if ((immediate >> (4 + lane)) & 1) compute(operations.MULTIPLY, single, lane, lane, lane + count);
  });
  if (!nextStep()) return;
  inEachHalf(() => {
    for (let lane = 0; lane < count; lane += 2) compute(operations.ADD, single, lane, lane, lane + 1);
  });
  if (!nextStep()) return;
  inEachHalf(() => {
    if (single) {
      compute(operations.ADD, true, 0, 0, 2);
      h.operands[0] = h.result[0];
    }
    for (let lane = 0; lane < count; lane++)
      for (let word = 0; word < words; word++)
        h.result[lane * words + word] = (immediate >> lane) & 1 ? h.operands[word] : 0;
  });
}

function convert(operation: number, shape: number, immediate: number): void {
  const f = shape === PS || shape === SS ? SINGLE : DOUBLE;
  const b = f === SINGLE ? 4 : 2;
  const truncate = (immediate & 1) !== 0;
  switch (operation) {
    case operations.CONVERT_PRECISION:
      if (f === SINGLE)
        for (let lane = shape === PS ? 1 : 0; lane >= 0; lane--) set(64, lane, widen(e, get(f, b + lane)));
      else {
        if (shape === PD) h.result.fill(0);
        for (let lane = 0; lane < (shape === PD ? 2 : 1); lane++) set(32, lane, narrow(e, get(f, b + lane)));
      }
      return;
    case operations.TO_INT32: {
      if (shape === PD) h.result.fill(0);
      const count = shape === PS ? 4 : shape === PD ? 2 : 1;
      for (let lane = 0; lane < count; lane++) set(32, lane, toInteger(e, f, get(f, b + lane), 32, truncate));
      return;
    }
    case operations.TO_INT32_PAIR:
      h.result.fill(0);
      for (let lane = 0; lane < 2; lane++) set(32, lane, toInteger(e, f, get(f, b + lane), 32, truncate));
      return;
    case operations.TO_INT64:
      set(64, 0, toInteger(e, f, get(f, b), 64, truncate));
      return;
    case operations.FROM_INT32:
    case operations.FROM_INT32_PAIR: {
      const count = operation === operations.FROM_INT32_PAIR ? 2 : shape === PS ? 4 : shape === PD ? 2 : 1;
      const bits = f === SINGLE ? 32 : 64;
      for (let lane = 0; lane < count; lane++) set(bits, lane, fromInteger(e, f, BigInt(h.operands[4 + lane] | 0)));
      return;
    }
    case operations.FROM_INT64:
      set(f === SINGLE ? 32 : 64, 0, fromInteger(e, f, BigInt.asIntN(64, get(DOUBLE, 2))));
      return;
    default:
      throw new Error(`bug: exactVector ${operation}`);
  }
}

function perform(operation: number, shape: number, immediate: number): void {
  const single = shape === PS || shape === SS;
  const f = single ? SINGLE : DOUBLE;
  const bits = single ? 32 : 64;
  /** Lanes of one operand, and those that count. */
  const all = single ? 4 : 2;
  const count = shape === SS || shape === SD ? 1 : all;
  switch (operation) {
    case operations.COMPARE:
      for (let lane = 0; lane < count; lane++)
        set(bits, lane, comparePredicate(e, f, get(f, lane), get(f, all + lane), immediate));
      return;
    case operations.COMPARE_ORDERED:
    case operations.COMPARE_UNORDERED:
      h.result[0] = RELATION_FLAGS[compare(e, f, get(f, 0), get(f, all), operation === operations.COMPARE_ORDERED)];
      return;
    case operations.HORIZONTAL_ADD:
      horizontal(operations.ADD, single);
      return;
    case operations.HORIZONTAL_SUBTRACT:
      horizontal(operations.SUBTRACT, single);
      return;
    case operations.ADD_SUBTRACT:
      for (let lane = 0; lane < count; lane++)
        compute(lane & 1 ? operations.ADD : operations.SUBTRACT, single, lane, lane, all + lane);
      return;
    case operations.ROUND:
      for (let lane = 0; lane < count; lane++) set(bits, lane, roundToIntegral(e, f, get(f, all + lane), immediate));
      return;
    case operations.FUSED:
      for (let lane = 0; lane < count; lane++) multiplyAdd(single, lane, (lane & 1) !== 0 ? immediate >> 2 : immediate);
      return;
    case operations.FROM_HALF:
      for (let lane = 3; lane >= 0; lane--)
        h.result[lane] = Number(fromHalf(e, BigInt((h.operands[4 + (lane >> 1)] >>> (16 * (lane & 1))) & 0xffff)));
      return;
    case operations.TO_HALF: {
      const word = (lane: number): number => Number(toHalf(e, BigInt(h.operands[4 + lane]), immediate));
      h.result[0] = word(0) | (word(1) << 16);
      h.result[1] = word(2) | (word(3) << 16);
      h.result[2] = 0;
      h.result[3] = 0;
      return;
    }
    case operations.RECIPROCAL:
      for (let lane = 0; lane < count; lane++) h.result[lane] = reciprocal(h.operands[4 + lane]);
      return;
    case operations.RECIPROCAL_SQRT:
      for (let lane = 0; lane < count; lane++) h.result[lane] = reciprocalRoot(h.operands[4 + lane]);
      return;
    default:
      if (operation > operations.MAXIMUM) convert(operation, shape, immediate);
      else for (let lane = 0; lane < count; lane++) compute(operation, single, lane, lane, all + lane);
  }
}

/**
 * The import of that name. Byte offsets of the operands (the result takes the place of a) and of MXCSR in the vCPU's memory.
 * It returns 1 when an exception is not masked, with its flag set and no result.
 */
export function createExactVector(
  buffer: ArrayBufferLike,
  operandsOffset: number,
  mxcsrOffset: number,
): (operation: number) => number {
  const u32 = new Uint32Array(buffer);
  const at = operandsOffset >> 2;
  const mxcsr = mxcsrOffset >> 2;
  return (operation) => {
    const isWide = (operation & operations.TWO_HALVES) !== 0;
    halves = isWide ? HALVES : ONE_HALF;
    for (let n = 0; n < halves.length; n++) {
      const half = halves[n];
      for (let i = 0; i < 12; i++) half.operands[i] = u32[at + 4 * n + (i >> 2) * 8 + (i & 3)];
      for (let i = 0; i < 4; i++) half.result[i] = half.operands[i];
    }
    e.begin(u32[mxcsr]);
    const kind = operation & 0xff;
    const shape = (operation >>> 8) & 3;
    if (kind === operations.DOT_PRODUCT) dotProduct(shape === PS, operation >>> 16);
    else
      for (let n = 0; n < halves.length; n++) {
        h = halves[n];
        perform(kind, shape, operation >>> 16);
      }
    for (let n = 0; n < halves.length; n++) for (let i = 0; i < 4; i++) u32[at + 4 * n + i] = halves[n].result[i];
    u32[mxcsr] |= e.flags;
    return e.raises ? 1 : 0;
  };
}
