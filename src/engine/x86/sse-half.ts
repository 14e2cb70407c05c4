/**
 * Half precision: VCVTPH2PS and VCVTPS2PH of one lane. Source: Intel SDM vol. 1, 14.4; vol. 2, their pages.
 *
 * MXCSR.DAZ counts for singles only, MXCSR.FTZ for neither: halves keep their denormals, and raise no denormal-operand exception.
 */

import {
  DE,
  type Environment,
  exponentOf,
  type Format,
  format,
  IE,
  isDenormal,
  isInfinite,
  isNan,
  isNegative,
  isSignalling,
  isZero,
  operand,
  round,
  SINGLE,
  significandOf,
} from './sse-format.ts';

export const HALF: Format = format(16, 10);
const NARROWED = BigInt(SINGLE.fraction - HALF.fraction);

export function fromHalf(e: Environment, a: bigint): bigint {
  const sign = isNegative(HALF, a) ? SINGLE.sign : 0n;
  if (isNan(HALF, a)) {
    if (isSignalling(HALF, a)) e.before |= IE;
    return sign | SINGLE.infinity | SINGLE.quiet | ((a & HALF.fractionMask) << NARROWED);
  }
  if (isInfinite(HALF, a)) return sign | SINGLE.infinity;
  if (isZero(HALF, a)) return sign;
  return round(e, SINGLE, sign !== 0n, significandOf(HALF, a), exponentOf(HALF, a), false);
}

/** Immediate: bits 0-1 the rounding mode, 2 that of MXCSR instead. */
export function toHalf(e: Environment, value: bigint, immediate: number): bigint {
  const a = operand(e, SINGLE, value);
  const sign = isNegative(SINGLE, a) ? HALF.sign : 0n;
  if (isNan(SINGLE, a)) {
    if (isSignalling(SINGLE, a)) e.before |= IE;
    return sign | HALF.infinity | HALF.quiet | ((a & SINGLE.fractionMask) >> NARROWED);
  }
  if (isInfinite(SINGLE, a)) return sign | HALF.infinity;
  if (isZero(SINGLE, a)) return sign;
  if (isDenormal(SINGLE, a)) e.before |= DE;
  const { rounding, flushToZero } = e;
  if ((immediate & 4) === 0) e.rounding = immediate & 3;
  e.flushToZero = false;
  const result = round(e, HALF, sign !== 0n, significandOf(SINGLE, a), exponentOf(SINGLE, a), false);
  e.rounding = rounding;
  e.flushToZero = flushToZero;
  return result;
}
