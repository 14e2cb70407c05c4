/**
 * Conversions of one lane, exactly (see sse-format.ts). Source: Intel SDM vol. 1, 4.8.4 and 11.4.1.6; vol. 2, the page of each
 * mnemonic.
 */

import {
  DE,
  DOUBLE,
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
  PE,
  round,
  SINGLE,
  shiftRight,
  significandOf,
  TO_ZERO,
  wasExact,
} from './sse-format.ts';

/** Fractions of a double that a single does not have. */
const NARROWED = BigInt(DOUBLE.fraction - SINGLE.fraction);

export function widen(e: Environment, value: bigint): bigint {
  const a = operand(e, SINGLE, value);
  const sign = isNegative(SINGLE, a) ? DOUBLE.sign : 0n;
  if (isNan(SINGLE, a)) {
    if (isSignalling(SINGLE, a)) e.before |= IE;
    return sign | DOUBLE.infinity | DOUBLE.quiet | ((a & SINGLE.fractionMask) << NARROWED);
  }
  if (isInfinite(SINGLE, a)) return sign | DOUBLE.infinity;
  if (isZero(SINGLE, a)) return sign;
  if (isDenormal(SINGLE, a)) e.before |= DE;
  return round(e, DOUBLE, sign !== 0n, significandOf(SINGLE, a), exponentOf(SINGLE, a), false);
}

export function narrow(e: Environment, value: bigint): bigint {
  const a = operand(e, DOUBLE, value);
  const sign = isNegative(DOUBLE, a) ? SINGLE.sign : 0n;
  if (isNan(DOUBLE, a)) {
    if (isSignalling(DOUBLE, a)) e.before |= IE;
    return sign | SINGLE.infinity | SINGLE.quiet | ((a & DOUBLE.fractionMask) >> NARROWED);
  }
  if (isInfinite(DOUBLE, a)) return sign | SINGLE.infinity;
  if (isZero(DOUBLE, a)) return sign;
  if (isDenormal(DOUBLE, a)) e.before |= DE;
  return round(e, SINGLE, sign !== 0n, significandOf(DOUBLE, a), exponentOf(DOUBLE, a), false);
}

/** As a two's complement number of `bits`; what does not fit is the least one. */
export function toInteger(e: Environment, f: Format, value: bigint, bits: number, truncate: boolean): bigint {
  const a = operand(e, f, value);
  const indefinite = 1n << BigInt(bits - 1);
  // Whatever is too great is so by its exponent: do not shift it.
  if (isNan(f, a) || isInfinite(f, a) || exponentOf(f, a) + f.fraction > 64) {
    e.before |= IE;
    return indefinite;
  }
  if (isZero(f, a)) return 0n;
  const negative = isNegative(f, a);
  const magnitude = shiftRight(
    significandOf(f, a),
    -exponentOf(f, a),
    false,
    truncate ? TO_ZERO : e.rounding,
    negative,
  );
  const inexact = !wasExact;
  if (magnitude > (negative ? indefinite : indefinite - 1n)) {
    e.before |= IE;
    return indefinite;
  }
  if (inexact) e.after |= PE;
  return BigInt.asUintN(bits, negative ? -magnitude : magnitude);
}

export function fromInteger(e: Environment, f: Format, value: bigint): bigint {
  if (value === 0n) return 0n;
  return round(e, f, value < 0n, value < 0n ? -value : value, 0, false);
}

/** ROUNDPS and its like. Immediate: bits 0-1 the mode, 2 that of MXCSR instead, 3 without the precision exception. */
export function roundToIntegral(e: Environment, f: Format, value: bigint, immediate: number): bigint {
  const a = operand(e, f, value);
  if (isNan(f, a)) {
    if (isSignalling(f, a)) e.before |= IE;
    return a | f.quiet;
  }
  const exponent = exponentOf(f, a);
  if (isInfinite(f, a) || isZero(f, a) || exponent >= 0) return a;
  const negative = isNegative(f, a);
  const mode = (immediate & 4) !== 0 ? e.rounding : immediate & 3;
  const magnitude = shiftRight(significandOf(f, a), -exponent, false, mode, negative);
  if (!wasExact && (immediate & 8) === 0) e.after |= PE;
  const sign = a & f.sign;
  return magnitude === 0n ? sign : round(e, f, negative, magnitude, 0, false);
}
