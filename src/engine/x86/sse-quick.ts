/**
 * The arithmetic of sse-arithmetic.ts for ordinary operands, in numbers: the rounded result and the sign of its error, from which
 * any rounding mode and the precision flag follow. What is not ordinary (NaN, infinity, denormals, results near the ends of the
 * range) is refused.
 *
 * A sum's error is exact in a double (Knuth's TwoSum), and so is a product's (Dekker); those of quotients and roots come from the
 * product with the divisor or of the root with itself. Singles are computed in doubles, which is exact for products and does no harm
 * for the others: 53 bits are more than twice 24 and two. Source: Handbook of Floating-Point Arithmetic, 4.3, 4.4 and 3.3.1.
 *
 * Measured: 30 to 55 ns an operation on SD, 75 to 170 on PS, call included; 1.0 to 1.9 us on SD in bigints.
 */

import { DOWN, type Environment, NEAREST, PE, UP } from './sse-format.ts';

/** An operation that is refused. Results are no NaNs otherwise. */
export const REFUSED: number = Number.NaN;

const double = new Float64Array(1);
const words = new Int32Array(double.buffer);
const single = new Float32Array(1);
const singleWord = new Int32Array(single.buffer);

/** Exponents of doubles between which products and their errors are in range. */
const LEAST = 2 ** -450;
const GREATEST = 2 ** 450;
const LEAST_NORMAL_SINGLE = 2 ** -126;
/** Results: rounding must not reach the ends of the range. */
const LEAST_SINGLE = 2 ** -125;
const GREATEST_SINGLE = 2 ** 127;

/** What of the exact result is missing in the rounded one: its sign counts. */
let error = 0;

const inRange = (a: number): boolean => {
  const magnitude = Math.abs(a);
  return (magnitude > LEAST && magnitude < GREATEST) || a === 0;
};

/** a * b - product, for operands in range. */
function productError(a: number, b: number, product: number): number {
  const splitA = 134217729 * a;
  const highA = splitA - (splitA - a);
  const lowA = a - highA;
  const splitB = 134217729 * b;
  const highB = splitB - (splitB - b);
  const lowB = b - highB;
  return lowA * lowB - (product - highA * highB - lowA * highB - highA * lowB);
}

/** The result rounded to nearest, with `error` left, or REFUSED. */
export type QuickOperation = (a: number, b: number) => number;

export function add(a: number, b: number): number {
  if (!inRange(a) || !inRange(b)) return REFUSED;
  const sum = a + b;
  const part = sum - a;
  error = a - (sum - part) + (b - part);
  return sum;
}

export const subtract: QuickOperation = (a, b) => add(a, -b);

export const multiply: QuickOperation = (a, b) => {
  if (!inRange(a) || !inRange(b)) return REFUSED;
  const product = a * b;
  error = product === 0 ? 0 : productError(a, b, product);
  return product;
};

export const divide: QuickOperation = (a, b) => {
  if (!inRange(a) || !inRange(b) || b === 0) return REFUSED;
  const quotient = a / b;
  if (!inRange(quotient)) return REFUSED;
  const product = quotient * b;
  const rest = a - product - productError(quotient, b, product);
  error = b < 0 ? -rest : rest;
  return quotient;
};

/** Of the second operand. */
export const sqrt: QuickOperation = (_a, b) => {
  if (!inRange(b) || b < 0) return REFUSED;
  const root = Math.sqrt(b);
  const square = root * root;
  error = b - square - productError(root, root, square);
  return root;
};

/** The sum of two numbers whose error is in `error` made odd in its last bit if there is one: no rounding of it can go wrong. */
function odd(sum: number): number {
  if (error === 0) return sum;
  double[0] = sum;
  if ((words[0] & 1) !== 0) return sum;
  const away = sum > 0 === error > 0;
  // Even: no carry.
  if (away) words[0]++;
  else {
    words[0]--;
    if (words[0] === -1) words[1]--;
  }
  return double[0];
}

/** The error of `sum`, which is a + b rounded. */
function sumError(a: number, b: number, sum: number): number {
  const part = sum - a;
  return a - (sum - part) + (b - part);
}

/**
 * a * b + c, rounded once. Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
 * rounding to odd", 2008.
 */
function fusedOfDoubles(a: number, b: number, c: number): number {
  if (!inRange(a) || !inRange(b) || !inRange(c) || a === 0 || b === 0) return REFUSED;
  const product = a * b;
  const rest = productError(a, b, product);
  const low = c + rest;
  const lowError = sumError(c, rest, low);
  const high = product + low;
  const highError = sumError(product, low, high);
  const tail = lowError + highError;
  error = sumError(lowError, highError, tail);
  const last = odd(tail);
  const value = high + last;
  error = sumError(high, last, value);
  return value;
}

/** Of singles: their products are exact. */
function fusedOfSingles(a: number, b: number, c: number): number {
  const product = a * b;
  const sum = product + c;
  error = sumError(product, c, sum);
  return odd(sum);
}

/** Which way a result with this error must move, if any. */
function direction(e: Environment, value: number): number {
  if (error === 0) return 0;
  e.after |= PE;
  const { rounding } = e;
  if (rounding === NEAREST) return 0;
  const up = rounding === UP || (rounding !== DOWN && value < 0);
  return up ? (error > 0 ? 1 : 0) : error < 0 ? -1 : 0;
}

/**
 * The result in the environment's rounding mode, or REFUSED. A zero that is a sum has its sign from the mode: it is refused unless
 * that is nearest.
 */
export function quickDouble(e: Environment, operation: QuickOperation, a: number, b: number): number {
  return directedDouble(e, operation(a, b));
}

export function quickFusedDouble(e: Environment, a: number, b: number, c: number): number {
  return directedDouble(e, fusedOfDoubles(a, b, c));
}

function directedDouble(e: Environment, value: number): number {
  if (!inRange(value)) return REFUSED;
  if (value === 0) return e.rounding === NEAREST ? value : REFUSED;
  const way = direction(e, value);
  if (way === 0) return value;
  double[0] = value;
  if (value > 0 === way > 0) {
    words[0]++;
    if (words[0] === 0) words[1]++;
  } else {
    words[0]--;
    if (words[0] === -1) words[1]--;
  }
  return double[0];
}

/** Normal as a single, or zero. */
const ordinarySingle = (a: number): boolean => Math.abs(a) >= LEAST_NORMAL_SINGLE || a === 0;

export function quickSingle(e: Environment, operation: QuickOperation, a: number, b: number): number {
  if (!ordinarySingle(a) || !ordinarySingle(b)) return REFUSED;
  return directedSingle(e, operation(a, b));
}

export function quickFusedSingle(e: Environment, a: number, b: number, c: number): number {
  if (!ordinarySingle(a) || !ordinarySingle(b) || !ordinarySingle(c) || a === 0 || b === 0) return REFUSED;
  const wide = fusedOfSingles(a, b, c);
  // Exactly what is left of the sum counts below: it is in `wide`.
  error = 0;
  return directedSingle(e, wide);
}

function directedSingle(e: Environment, wide: number): number {
  const value = Math.fround(wide);
  if (value === 0) return wide === 0 && e.rounding === NEAREST ? value : REFUSED;
  const magnitude = Math.abs(value);
  if (!(magnitude > LEAST_SINGLE && magnitude < GREATEST_SINGLE)) return REFUSED;
  error = wide - value || error;
  const way = direction(e, value);
  if (way === 0) return value;
  single[0] = value;
  singleWord[0] += value > 0 === way > 0 ? 1 : -1;
  return single[0];
}
