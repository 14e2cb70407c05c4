/**
 * FPREM and FPREM1: exact remainders, by shift and subtract.
 *
 * Where the exponents differ by 64 or more, one step takes off N bits of the quotient and sets C2.
 * Source: Intel SDM vol. 2, FPREM, FPREM1 (N is left to the implementation, 32 to 63; here as measured, see PARTIAL).
 */

import type { X87Core } from './core.ts';
import { CONTROL_STATUS } from './core.ts';
import {
  KIND_DENORMAL,
  KIND_INFINITY,
  KIND_QNAN,
  KIND_ZERO,
  kindOf,
  normalize,
  shiftUp,
  storeInvalid,
  storeNaN,
} from './nan.ts';
import { roundWithPrecision } from './round.ts';
import { C0, C1, C2, C3, DE, PC_64 } from './state.ts';

const CONDITIONS_WORD = (C0 | C1 | C2 | C3) << 16;

/** FPREM (nearest = false: quotient toward zero) and FPREM1 (nearest = true). */
export function remainder(x: X87Core, nearest: boolean): void {
  x.words[CONTROL_STATUS] &= ~((C1 | C2) << 16);
  if (x.isEmpty(0) || x.isEmpty(1)) {
    if (x.underflow()) x.setIndefinite(0);
    return;
  }
  const words = x.words;
  const temp = x.temp;
  const a = x.register(0);
  const b = x.register(1);
  const kindA = kindOf(words[a + 2], words[a + 1], words[a]);
  const kindB = kindOf(words[b + 2], words[b + 1], words[b]);
  if (kindA >= KIND_QNAN || kindB >= KIND_QNAN) {
    storeNaN(x, a, kindA, words[a + 2], words[a + 1], words[a], kindB, words[b + 2], words[b + 1], words[b]);
    return;
  }
  if (kindA === KIND_INFINITY || kindB === KIND_ZERO) {
    storeInvalid(x, a);
    return;
  }
  if ((kindA === KIND_DENORMAL || kindB === KIND_DENORMAL) && x.raise(DE) !== 0) return;
  setConditions(x, 0, 0);
  if (kindA === KIND_ZERO) return;
  const sign = words[a + 2] & 0x8000;
  if (kindB === KIND_INFINITY) {
    const exponent = normalize(temp, words[a + 2] & 0x7fff, words[a + 1], words[a]);
    roundWithPrecision(x, a, sign, exponent, temp[1], temp[2], 0, PC_64);
    return;
  }
  const exponentB = normalize(temp, words[b + 2] & 0x7fff, words[b + 1], words[b]);
  const hiB = temp[1];
  const loB = temp[2];
  const exponentA = normalize(temp, words[a + 2] & 0x7fff, words[a + 1], words[a]);
  let hi = temp[1];
  let lo = temp[2];
  const distance = exponentA - exponentB;
  if (distance < (nearest ? -1 : 0)) {
    roundWithPrecision(x, a, sign, exponentA, hi, lo, 0, PC_64);
    return;
  }
  const isPartial = distance >= 64;
  const steps = isPartial ? PARTIAL | (distance & 31) : distance;
  const exponent = exponentA - Math.max(steps, 0);
  let quotient = 0;
  let resultSign = sign;
  if (steps >= 0) {
    // hi.lo < 2 * divisor throughout; overflow is the 65th bit.
    let overflow = 0;
    for (let step = 0; ; step++) {
      quotient <<= 1;
      if (overflow !== 0 || (hi === hiB ? lo >>> 0 >= loB >>> 0 : hi >>> 0 > hiB >>> 0)) {
        quotient |= 1;
        const difference = (lo - loB) | 0;
        const borrow = lo >>> 0 < loB >>> 0 ? 1 : 0;
        lo = difference;
        hi = (hi - hiB - borrow) | 0;
      }
      if (step === steps) break;
      overflow = hi < 0 ? 1 : 0;
      hi = (hi << 1) | (lo >>> 31);
      lo <<= 1;
    }
  }
  if (nearest && !isPartial) {
    // Rounds the quotient: compare twice the remainder with the divisor. At distance -1 hi.lo is twice the remainder already.
    let twiceHi = hi;
    let twiceLo = lo;
    let isMore = false;
    if (steps >= 0) {
      isMore = hi < 0;
      twiceHi = (hi << 1) | (lo >>> 31);
      twiceLo = lo << 1;
    }
    if (!isMore) {
      if (twiceHi === hiB && twiceLo === loB) isMore = (quotient & 1) !== 0;
      else isMore = twiceHi === hiB ? twiceLo >>> 0 > loB >>> 0 : twiceHi >>> 0 > hiB >>> 0;
    }
    if (isMore) {
      // divisor - remainder; at distance -1 both doubled, so that it comes with the lower exponent.
      quotient++;
      resultSign ^= 0x8000;
      const minuendHi = steps >= 0 ? hiB : (hiB << 1) | (loB >>> 31);
      const minuendLo = steps >= 0 ? loB : loB << 1;
      const borrow = minuendLo >>> 0 < lo >>> 0 ? 1 : 0;
      lo = (minuendLo - lo) | 0;
      hi = (minuendHi - hi - borrow) | 0;
      // Twice the divisor less the dividend is below the dividend, so it fits in 64 bits.
    }
  }
  if ((hi | lo) === 0) {
    x.store(a, sign, 0, 0);
  } else {
    const normalized = shiftUp(temp, exponent, hi, lo);
    roundWithPrecision(x, a, resultSign, normalized, temp[1], temp[2], 0, PC_64);
  }
  setConditions(x, isPartial ? C2 : 0, isPartial ? 0 : quotient);
}

/** Bit 5 of the number of quotient bits of a partial step; the low five come from the distance. */
const PARTIAL = 0x20;

/** Quotient bits 2, 1, 0 go to C0, C3, C1. */
function setConditions(x: X87Core, incomplete: number, quotient: number): void {
  const bits = (quotient & 4 ? C0 : 0) | (quotient & 2 ? C3 : 0) | (quotient & 1 ? C1 : 0) | incomplete;
  x.words[CONTROL_STATUS] = (x.words[CONTROL_STATUS] & ~CONDITIONS_WORD) | (bits << 16);
}
