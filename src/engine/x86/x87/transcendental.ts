/**
 * F2XM1, FYL2X, FYL2XP1, FPTAN, FPATAN, FSIN, FCOS, FSINCOS: operands and special cases. The mathematics is in fixed.ts.
 *
 * Results are correctly rounded by RC to 64 bits (precision control does not apply). A CPU promises less, an error below one unit
 * in the last place, and each model has its own last bits. Against Zen 4 no result of 4 million was more than one unit off,
 * no flag but C1 differed, and this many were equal to the last bit, C1 included (all kinds of operands, RC and masks | ordinary
 * operands, to nearest):
 *
 *   F2XM1 99.0 | 94.0 %   FYL2X 98.4 | 95.5 %   FYL2XP1 98.4 | 93.9 %   FPATAN 98.6 | 96.7 %
 *   FSIN  99.5 | 97.9 %   FCOS  99.5 | 98.8 %   FSINCOS 99.2 | 97.5 %   FPTAN  86.9 | 94.5 %
 *
 * (FPTAN of a tiny angle x is x plus or minus a bit far below, which way depending on all bits of x; directed rounding shows it.)
 *
 * Outside of the ranges where the instructions are defined, the answers are those of that CPU: F2XM1 of |x| > 1 and FYL2XP1 of
 * x <= -1 return x. PE is always set unless the result is one of the special cases.
 * Source: Intel SDM vol. 1, 8.3.7-10; vol. 2, the instructions' pages.
 */

import type { X87Core } from './core.ts';
import { C1_WORD, CONTROL_STATUS } from './core.ts';
import type { Real } from './fixed.ts';
import { arcTangent, leadingBits, log2, log2Plus1, piQuarters, powerMinusOne, quotient, reduceAngle } from './fixed.ts';
import {
  KIND_DENORMAL,
  KIND_INFINITY,
  KIND_QNAN,
  KIND_UNSUPPORTED,
  KIND_ZERO,
  kindOf,
  QUIET_BIT,
  storeInvalid,
  storeNaN,
  storeNaN1,
} from './nan.ts';
import { roundWithPrecision } from './round.ts';
import { C2, DE, ES, PC_64, PE, UE, ZE } from './state.ts';

const TOP_BIT = 0x80000000 | 0;
const ONE_EXPONENT = 16383;

/** The unbiased exponent of a register's significand as an integer. */
function integerExponent(x: X87Core, at: number): number {
  return (x.words[at + 2] & 0x7fff || 1) - 16383 - 63;
}

function significand(x: X87Core, at: number): bigint {
  return (BigInt(x.words[at + 1] >>> 0) << 32n) | BigInt(x.words[at] >>> 0);
}

function kindAt(x: X87Core, at: number): number {
  return kindOf(x.words[at + 2], x.words[at + 1], x.words[at]);
}

/** Rounds a result into a register. All of them count as inexact, also the few that are exact (measured). */
function storeReal(x: X87Core, at: number, real: Real, negative: boolean): void {
  const exponent = leadingBits(x.temp, real);
  roundWithPrecision(x, at, negative ? 0x8000 : 0, exponent, x.temp[1], x.temp[2], x.temp[3], PC_64);
  x.raise(exponent <= 0 && (x.words[at + 2] & 0x7fff) === 0 ? UE | PE : PE);
}

/** F2XM1. */
export function power(x: X87Core): void {
  x.clearC1();
  if (x.isEmpty(0)) {
    if (x.underflow()) x.setIndefinite(0);
    return;
  }
  const at = x.register(0);
  const words = x.words;
  const kind = kindAt(x, at);
  if (kind >= KIND_QNAN) {
    storeNaN1(x, at, kind, words[at + 2], words[at + 1], words[at]);
    return;
  }
  const sign = words[at + 2] & 0x8000;
  if (kind === KIND_INFINITY) {
    if (sign !== 0) x.store(at, 0x8000 | ONE_EXPONENT, TOP_BIT, 0);
    return;
  }
  if (kind === KIND_ZERO || (kind === KIND_DENORMAL && x.raise(DE) !== 0)) return;
  if ((words[at + 2] & 0x7fff) >= ONE_EXPONENT) {
    // 2^-1 - 1 is -1/2, 2^1 - 1 is 1; what is larger comes back as it is.
    if (sign !== 0 && words[at + 2] === (0x8000 | ONE_EXPONENT) && words[at + 1] === TOP_BIT && words[at] === 0) {
      x.store(at, 0x8000 | (ONE_EXPONENT - 1), TOP_BIT, 0);
    }
    x.raise(PE);
    return;
  }
  const real = powerMinusOne(sign !== 0, significand(x, at), integerExponent(x, at));
  storeReal(x, at, real, real.negative);
}

/** FSIN (sine = 1), FCOS (cosine = 1), FSINCOS (both). */
export function sineCosine(x: X87Core, sine: number, cosine: number): void {
  const both = sine + cosine === 2;
  const at = beginAngle(x, both);
  if (at < 0) return;
  const words = x.words;
  const negative = (words[at + 2] & 0x8000) !== 0;
  if (kindAt(x, at) === KIND_ZERO) {
    if (both) x.store(x.push(), ONE_EXPONENT, TOP_BIT, 0);
    else if (cosine) x.store(at, ONE_EXPONENT, TOP_BIT, 0);
    return;
  }
  const { quadrant, sin, cos } = reduceAngle(significand(x, at), integerExponent(x, at), sine, cosine);
  const isOdd = (quadrant & 1) !== 0;
  let roundedUp = 0;
  if (sine) {
    const real = isOdd ? cos : sin;
    storeReal(x, at, real, (real.negative !== quadrant >= 2) !== negative);
    roundedUp = words[CONTROL_STATUS] & C1_WORD;
  }
  if (cosine) {
    const real = isOdd ? sin : cos;
    const isNegative = real.negative !== (quadrant === 1 || quadrant === 2);
    storeReal(x, both ? x.push() : at, real, isNegative);
  }
  // FSINCOS leaves the C1 of the sine (measured).
  if (both) words[CONTROL_STATUS] = (words[CONTROL_STATUS] & ~C1_WORD) | roundedUp;
}

/** FPTAN: the tangent, then 1.0 pushed. */
export function tangent(x: X87Core): void {
  const at = beginAngle(x, true);
  if (at < 0) return;
  const negative = (x.words[at + 2] & 0x8000) !== 0;
  if (kindAt(x, at) !== KIND_ZERO) {
    const { quadrant, sin, cos } = reduceAngle(significand(x, at), integerExponent(x, at), 1, 1);
    const isOdd = (quadrant & 1) !== 0;
    const real = isOdd ? quotient(cos, sin) : quotient(sin, cos);
    storeReal(x, at, real, (real.negative !== isOdd) !== negative);
  }
  const roundedUp = x.words[CONTROL_STATUS] & C1_WORD;
  x.store(x.push(), ONE_EXPONENT, TOP_BIT, 0);
  x.words[CONTROL_STATUS] |= roundedUp;
}

/** Sorts out stack faults, NaNs, infinities and angles out of range. Returns the word index of ST(0), or -1 if all is done. */
function beginAngle(x: X87Core, pushes: boolean): number {
  const words = x.words;
  x.clearC1();
  words[CONTROL_STATUS] &= ~(C2 << 16);
  const at = x.register(0);
  if (x.isEmpty(0)) {
    if (x.underflow()) {
      x.setIndefinite(0);
      if (pushes) {
        x.setTop(((words[CONTROL_STATUS] >>> 27) + 7) & 7);
        x.setIndefinite(0);
      }
    }
    return -1;
  }
  if (pushes && !x.isEmpty(7)) {
    x.push();
    if (!(words[CONTROL_STATUS] & (ES << 16))) x.setIndefinite(1);
    return -1;
  }
  const kind = kindAt(x, at);
  if (kind >= KIND_QNAN) {
    const hi = words[at + 1];
    const lo = words[at];
    const signExponent = words[at + 2];
    if (!storeNaN1(x, at, kind, signExponent, hi, lo) || !pushes) return -1;
    if (kind === KIND_UNSUPPORTED) x.storeIndefinite(x.push());
    else x.store(x.push(), signExponent, hi | QUIET_BIT, lo);
    return -1;
  }
  if (kind === KIND_INFINITY) {
    if (storeInvalid(x, at) && pushes) x.storeIndefinite(x.push());
    return -1;
  }
  if ((words[at + 2] & 0x7fff) >= 16383 + 63) {
    words[CONTROL_STATUS] |= C2 << 16;
    return -1;
  }
  if (kind === KIND_DENORMAL && x.raise(DE) !== 0) return -1;
  return at;
}

/** The start of FPATAN, FYL2X and FYL2XP1: stack faults and NaNs. True if there is more to do. */
function beginTwo(x: X87Core): boolean {
  x.clearC1();
  if (x.isEmpty(0) || x.isEmpty(1)) {
    if (x.underflow()) {
      x.setIndefinite(1);
      x.pop();
    }
    return false;
  }
  const words = x.words;
  const a = x.register(0);
  const b = x.register(1);
  const kindA = kindAt(x, a);
  const kindB = kindAt(x, b);
  if (kindA < KIND_QNAN && kindB < KIND_QNAN) return true;
  if (storeNaN(x, b, kindA, words[a + 2], words[a + 1], words[a], kindB, words[b + 2], words[b + 1], words[b])) x.pop();
  return false;
}

/** FPATAN: ST(1) = atan(ST(1) / ST(0)) in the quadrant of the point (ST(0), ST(1)), then a pop. */
export function arcTangentTwo(x: X87Core): void {
  if (!beginTwo(x)) return;
  const words = x.words;
  const a = x.register(0);
  const b = x.register(1);
  const kindX = kindAt(x, a);
  const kindY = kindAt(x, b);
  if ((kindX === KIND_DENORMAL || kindY === KIND_DENORMAL) && x.raise(DE) !== 0) return;
  const xNegative = (words[a + 2] & 0x8000) !== 0;
  const ySign = words[b + 2] & 0x8000;
  if (kindY === KIND_ZERO || (kindX === KIND_INFINITY && kindY !== KIND_INFINITY)) {
    if (xNegative) storeReal(x, b, piQuarters(4n), ySign !== 0);
    else x.store(b, ySign, 0, 0);
  } else if (kindX === KIND_INFINITY) {
    storeReal(x, b, piQuarters(xNegative ? 3n : 1n), ySign !== 0);
  } else if (kindX === KIND_ZERO || kindY === KIND_INFINITY) {
    storeReal(x, b, piQuarters(2n), ySign !== 0);
  } else {
    const real = arcTangent(
      significand(x, b),
      integerExponent(x, b),
      xNegative,
      significand(x, a),
      integerExponent(x, a),
    );
    storeReal(x, b, real, ySign !== 0);
  }
  x.pop();
}

/** FYL2X (plusOne = false): ST(1) = ST(1) * log2(ST(0)); FYL2XP1: log2(ST(0) + 1); then a pop. */
export function timesLog(x: X87Core, plusOne: boolean): void {
  if (!beginTwo(x)) return;
  const words = x.words;
  const a = x.register(0);
  const b = x.register(1);
  const kindX = kindAt(x, a);
  const kindY = kindAt(x, b);
  const xNegative = (words[a + 2] & 0x8000) !== 0;
  const ySign = words[b + 2] & 0x8000;
  const xIsOne = words[a + 2] === ONE_EXPONENT && words[a + 1] === TOP_BIT && words[a] === 0;
  /** The logarithm is zero, or infinite; its sign. */
  const logIsZero = plusOne ? kindX === KIND_ZERO : xIsOne;
  const logIsInfinite = kindX === KIND_INFINITY || (!plusOne && kindX === KIND_ZERO);
  const isBelowDomain = xNegative && kindX !== KIND_ZERO && (!plusOne || kindX === KIND_INFINITY);
  if (isBelowDomain || (logIsZero && kindY === KIND_INFINITY) || (logIsInfinite && kindY === KIND_ZERO)) {
    if (storeInvalid(x, b)) x.pop();
    return;
  }
  const logNegative = plusOne ? xNegative : kindX === KIND_ZERO || (words[a + 2] & 0x7fff) < ONE_EXPONENT;
  const sign = ySign ^ (logNegative ? 0x8000 : 0);
  if (!plusOne && kindX === KIND_ZERO && kindY !== KIND_INFINITY) {
    if (x.raise(ZE) !== 0) return;
    x.store(b, sign | 0x7fff, TOP_BIT, 0);
    x.pop();
    return;
  }
  if ((kindX === KIND_DENORMAL || kindY === KIND_DENORMAL) && x.raise(DE) !== 0) return;
  if (logIsInfinite || kindY === KIND_INFINITY) {
    x.store(b, sign | 0x7fff, TOP_BIT, 0);
  } else if (logIsZero || kindY === KIND_ZERO) {
    x.store(b, sign, 0, 0);
  } else if (plusOne && xNegative && (words[a + 2] & 0x7fff) >= ONE_EXPONENT) {
    x.store(b, words[a + 2], words[a + 1], words[a]);
    x.raise(PE);
  } else {
    const magnitude = significand(x, a);
    const exponent = integerExponent(x, a);
    const log = plusOne ? log2Plus1(xNegative, magnitude, exponent) : log2(magnitude, exponent);
    const product = {
      negative: sign !== 0,
      magnitude: log.magnitude * significand(x, b),
      exponent: log.exponent + integerExponent(x, b),
    };
    storeReal(x, b, product, sign !== 0);
  }
  x.pop();
}
