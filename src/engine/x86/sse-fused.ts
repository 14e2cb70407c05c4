/**
 * a * b + c with one rounding, of one lane. Source: Intel SDM vol. 1, 14.5.3 (operations with NaNs, infinities and zeros) and 11.5.2;
 * vol. 2, VFMADD132PD.
 *
 * Of several NaNs the result is that of a, else of b, else of c; infinity times zero is invalid unless c is a quiet NaN (measured).
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
} from './sse-format.ts';

/** Negates the product, or the addend. */
export const NEGATE_PRODUCT = 1;
export const NEGATE_ADDEND = 2;

export function fused(
  e: Environment,
  f: Format,
  first: bigint,
  second: bigint,
  third: bigint,
  negations: number,
): bigint {
  const a = operand(e, f, first);
  const b = operand(e, f, second);
  const addend = operand(e, f, third);
  if (isNan(f, a) || isNan(f, b) || isNan(f, addend)) {
    if (isSignalling(f, a) || isSignalling(f, b) || isSignalling(f, addend)) e.before |= IE;
    return (isNan(f, a) ? a : isNan(f, b) ? b : addend) | f.quiet;
  }
  const c = (negations & NEGATE_ADDEND) !== 0 ? addend ^ f.sign : addend;
  const sign = (a ^ b ^ ((negations & NEGATE_PRODUCT) !== 0 ? f.sign : 0n)) & f.sign;
  const isInvalid = (isInfinite(f, a) && isZero(f, b)) || (isZero(f, a) && isInfinite(f, b));
  const isInfiniteProduct = isInfinite(f, a) || isInfinite(f, b);
  if (isInvalid || (isInfiniteProduct && isInfinite(f, c) && sign !== (c & f.sign))) {
    e.before |= IE;
    return f.defaultNan;
  }
  if (isDenormal(f, a) || isDenormal(f, b) || isDenormal(f, c)) e.before |= DE;
  if (isInfiniteProduct) return sign | f.infinity;
  if (isInfinite(f, c)) return c;
  const isZeroProduct = isZero(f, a) || isZero(f, b);
  if (isZeroProduct && isZero(f, c)) return sign === (c & f.sign) ? c : e.rounding === DOWN ? f.sign : 0n;
  const left = {
    magnitude: significandOf(f, a) * significandOf(f, b),
    exponent: exponentOf(f, a) + exponentOf(f, b),
    negative: sign !== 0n,
  };
  const right = { magnitude: significandOf(f, c), exponent: exponentOf(f, c), negative: isNegative(f, c) };
  if (left.magnitude === 0n) left.exponent = right.exponent;
  else if (right.magnitude === 0n) right.exponent = left.exponent;
  else if (!bound(left, right)) bound(right, left);
  const exponent = Math.min(left.exponent, right.exponent);
  const sum = signed(left, exponent) + signed(right, exponent);
  if (sum === 0n) return e.rounding === DOWN ? f.sign : 0n;
  return round(e, f, sum < 0n, sum < 0n ? -sum : sum, exponent, false);
}

interface Term {
  magnitude: bigint;
  exponent: number;
  readonly negative: boolean;
}

/** Bits below the greater term where a smaller one does nothing but break ties. */
const FAR = 130;

/** Moves a term that is far below the other up to where it does the same; else numbers would be of thousands of bits. */
function bound(small: Term, great: Term): boolean {
  if (small.exponent + bitLength(small.magnitude) >= great.exponent - FAR) return false;
  small.magnitude = 1n;
  small.exponent = great.exponent - FAR;
  return true;
}

function signed({ magnitude, exponent, negative }: Term, at: number): bigint {
  const value = magnitude << BigInt(exponent - at);
  return negative ? -value : value;
}
