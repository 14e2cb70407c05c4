/**
 * The operations of SSE on one lane, exactly (see sse-format.ts). Source: Intel SDM vol. 1, 4.8.3 and 11.5.2, table 4-7 (results of
 * operations with NaNs); vol. 2, the page of each mnemonic.
 */

import {
  bitLength,
  DE,
  DOWN,
  type Environment,
  exponentOf,
  type Format,
  IE,
  isDenormal,
  isInfinite,
  isNan,
  isNegative,
  isSignalling,
  isZero,
  operand,
  round,
  significandOf,
  ZE,
} from './sse-format.ts';

export type LaneOperation = (e: Environment, f: Format, a: bigint, b: bigint) => bigint;

/** One operand is a NaN: the first that is, made quiet. */
function nanOf(e: Environment, f: Format, a: bigint, b: bigint): bigint {
  if (isSignalling(f, a) || isSignalling(f, b)) e.before |= IE;
  return (isNan(f, a) ? a : b) | f.quiet;
}

function invalid(e: Environment, f: Format): bigint {
  e.before |= IE;
  return f.defaultNan;
}

function noteDenormals(e: Environment, f: Format, a: bigint, b: bigint): void {
  if (isDenormal(f, a) || isDenormal(f, b)) e.before |= DE;
}

export function add(e: Environment, f: Format, first: bigint, second: bigint): bigint {
  const a = operand(e, f, first);
  const b = operand(e, f, second);
  if (isNan(f, a) || isNan(f, b)) return nanOf(e, f, a, b);
  if (isInfinite(f, a) && isInfinite(f, b)) return a === b ? a : invalid(e, f);
  noteDenormals(e, f, a, b);
  if (isInfinite(f, a)) return a;
  if (isInfinite(f, b)) return b;
  const exponent = Math.min(exponentOf(f, a), exponentOf(f, b));
  const term = (value: bigint): bigint => {
    const magnitude = significandOf(f, value) << BigInt(exponentOf(f, value) - exponent);
    return isNegative(f, value) ? -magnitude : magnitude;
  };
  const sum = term(a) + term(b);
  if (sum !== 0n) return round(e, f, sum < 0n, sum < 0n ? -sum : sum, exponent, false);
  if (isZero(f, a) && a === b) return a;
  return e.rounding === DOWN ? f.sign : 0n;
}

export function subtract(e: Environment, f: Format, a: bigint, b: bigint): bigint {
  return add(e, f, a, isNan(f, b) ? b : b ^ f.sign);
}

export function multiply(e: Environment, f: Format, first: bigint, second: bigint): bigint {
  const a = operand(e, f, first);
  const b = operand(e, f, second);
  if (isNan(f, a) || isNan(f, b)) return nanOf(e, f, a, b);
  const sign = (a ^ b) & f.sign;
  if (isInfinite(f, a) || isInfinite(f, b)) {
    if (isZero(f, a) || isZero(f, b)) return invalid(e, f);
    noteDenormals(e, f, a, b);
    return sign | f.infinity;
  }
  noteDenormals(e, f, a, b);
  if (isZero(f, a) || isZero(f, b)) return sign;
  const product = significandOf(f, a) * significandOf(f, b);
  return round(e, f, sign !== 0n, product, exponentOf(f, a) + exponentOf(f, b), false);
}

export function divide(e: Environment, f: Format, first: bigint, second: bigint): bigint {
  const a = operand(e, f, first);
  const b = operand(e, f, second);
  if (isNan(f, a) || isNan(f, b)) return nanOf(e, f, a, b);
  const sign = (a ^ b) & f.sign;
  if (isInfinite(f, a)) {
    if (isInfinite(f, b)) return invalid(e, f);
    noteDenormals(e, f, a, b);
    return sign | f.infinity;
  }
  if (isZero(f, b)) {
    if (isZero(f, a)) return invalid(e, f);
    e.before |= ZE;
    return sign | f.infinity;
  }
  noteDenormals(e, f, a, b);
  if (isInfinite(f, b) || isZero(f, a)) return sign;
  const divisor = significandOf(f, b);
  // Two bits more than the precision, whatever the lengths are.
  const shift = f.precision + 3 + bitLength(divisor) - bitLength(significandOf(f, a));
  const dividend = significandOf(f, a) << BigInt(Math.max(shift, 0));
  const quotient = dividend / divisor;
  const exponent = exponentOf(f, a) - exponentOf(f, b) - Math.max(shift, 0);
  return round(e, f, sign !== 0n, quotient, exponent, quotient * divisor !== dividend);
}

/** Integer square root, by Newton. */
function squareRoot(value: bigint): bigint {
  let root = 1n << BigInt((bitLength(value) + 1) >> 1);
  for (;;) {
    const next = (root + value / root) >> 1n;
    if (next >= root) return root;
    root = next;
  }
}

/** Of the second operand. */
export function sqrt(e: Environment, f: Format, _first: bigint, second: bigint): bigint {
  const a = operand(e, f, second);
  if (isNan(f, a)) return nanOf(e, f, a, a);
  if (isZero(f, a)) return a;
  if (isNegative(f, a)) return invalid(e, f);
  noteDenormals(e, f, a, a);
  if (isInfinite(f, a)) return a;
  let exponent = exponentOf(f, a) - 2 * f.precision - 6;
  let value = significandOf(f, a) << BigInt(2 * f.precision + 6);
  if ((exponent & 1) !== 0) {
    exponent--;
    value <<= 1n;
  }
  const root = squareRoot(value);
  return round(e, f, false, root, exponent / 2, root * root !== value);
}

/** a < b for numbers that are no NaNs. */
export function isLess(f: Format, a: bigint, b: bigint): boolean {
  if (isZero(f, a) && isZero(f, b)) return false;
  const ordinal = (value: bigint): bigint => (isNegative(f, value) ? -(value & ~f.sign) : value);
  return ordinal(a) < ordinal(b);
}

/** The second operand unless the first is less (greater): NaNs are not, and neither is a zero of the other sign. */
const extreme =
  (greater: boolean): LaneOperation =>
  (e, f, first, second) => {
    const a = operand(e, f, first);
    const b = operand(e, f, second);
    if (isNan(f, a) || isNan(f, b)) {
      e.before |= IE;
      return b;
    }
    noteDenormals(e, f, a, b);
    return (greater ? isLess(f, b, a) : isLess(f, a, b)) ? a : b;
  };
export const minimum = extreme(false);
export const maximum = extreme(true);

/** Relations, as two bits: 0 less, 1 equal, 2 greater, 3 unordered. `quietSignals`: quiet NaNs are invalid as well. */
export function compare(e: Environment, f: Format, first: bigint, second: bigint, quietSignals: boolean): number {
  const a = operand(e, f, first);
  const b = operand(e, f, second);
  if (isNan(f, a) || isNan(f, b)) {
    if (quietSignals || isSignalling(f, a) || isSignalling(f, b)) e.before |= IE;
    return 3;
  }
  noteDenormals(e, f, a, b);
  return isLess(f, a, b) ? 0 : isLess(f, b, a) ? 2 : 1;
}

/**
 * Bit n: the predicate holds for relation n. EQ LT LE UNORD NEQ NLT NLE ORD, and with VEX EQ_UQ NGE NGT FALSE NEQ_OQ GE GT TRUE; the
 * next 16 are the same with the others' idea of quiet NaNs. Source: Intel SDM vol. 2, CMPPD, table 3-1.
 */
const PREDICATES = [
  ...[0b0010, 0b0001, 0b0011, 0b1000, 0b1101, 0b1110, 0b1100, 0b0111],
  ...[0b1010, 0b1001, 0b1011, 0b0000, 0b0101, 0b0110, 0b0100, 0b1111],
];

/** CMPPS and its like: all ones or zero. */
export function comparePredicate(e: Environment, f: Format, a: bigint, b: bigint, predicate: number): bigint {
  const ordering = (predicate & 3) === 1 || (predicate & 3) === 2;
  const quietSignals = ordering !== predicate >= 16;
  const relation = compare(e, f, a, b, quietSignals);
  return (PREDICATES[predicate & 15] >> relation) & 1 ? (1n << f.bits) - 1n : 0n;
}
