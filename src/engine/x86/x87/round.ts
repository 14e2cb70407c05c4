/**
 * Rounding: every result of more bits than its place has goes through here.
 *
 * An unrounded number is sign (0 or 0x8000), biased exponent (any integer), and a significand of 64 + 32 bits in three words, hi
 * with its top bit set, hi.lo being what a register holds and `ext` the bits below. Bit 0 of `ext` is sticky: it stands for all
 * bits further down. So value = hi.lo.ext * 2^(exponent - 16383 - 63).
 *
 * Tininess is detected after rounding. Precision control narrows the significand, never the exponent.
 * Source: Intel SDM vol. 1, 4.8.4 (rounding), 4.9.1.4-6 (overflow, underflow, inexact), 8.1.5.2-3 (PC, RC), 8.5.4-6.
 */

import type { X87Core } from './core.ts';
import { C1_WORD, CONTROL_STATUS } from './core.ts';
import { C1, OE, PC_24, PC_53, PC_64, PE, RC_DOWN, RC_NEAREST, RC_UP, RC_ZERO, UE } from './state.ts';

const MASK_PE = PE;
const TOP_BIT = 0x80000000 | 0;
/** What an unmasked overflow or underflow takes from, or adds to, the exponent. Source: Intel SDM vol. 1, 8.5.4. */
const EXPONENT_WRAP = 24576;

/** Bits of what roundSignificand returns. */
export const INEXACT = 1;
export const ROUNDED_UP = 2;
export const CARRIED = 4;

/**
 * Rounds hi.lo.ext to a precision (PC_*), into temp[1] and temp[2]. On a carry out of the top, the significand is 1.0 and the
 * caller adds one to its exponent.
 */
export function roundSignificand(
  temp: Int32Array,
  precision: number,
  rounding: number,
  sign: number,
  hi: number,
  lo: number,
  ext: number,
): number {
  let rest = ext;
  let ulpHi = 0;
  let ulpLo = 1;
  let odd = lo & 1;
  if (precision === PC_53) {
    rest = (lo << 21) | (ext >>> 11) | ((ext & 0x7ff) === 0 ? 0 : 1);
    lo &= ~0x7ff;
    ulpLo = 0x800;
    odd = lo & 0x800;
  } else if (precision === PC_24) {
    rest = (hi << 24) | (lo >>> 8) | (((lo & 0xff) | ext) === 0 ? 0 : 1);
    hi &= ~0xff;
    lo = 0;
    ulpHi = 0x100;
    ulpLo = 0;
    odd = hi & 0x100;
  }
  let result = 0;
  if (rest !== 0) {
    result = INEXACT;
    let up: boolean;
    if (rounding === RC_NEAREST) up = rest < 0 && ((rest & 0x7fffffff) | odd) !== 0;
    else if (rounding === RC_DOWN) up = sign !== 0;
    else up = rounding === RC_UP && sign === 0;
    if (up) {
      result = INEXACT | ROUNDED_UP;
      lo = (lo + ulpLo) | 0;
      if (lo === 0) {
        hi = (hi + (ulpLo === 0 ? ulpHi : 1)) | 0;
        if (hi === 0) {
          hi = TOP_BIT;
          result = INEXACT | ROUNDED_UP | CARRIED;
        }
      }
    }
  }
  temp[1] = hi;
  temp[2] = lo;
  return result;
}

/** hi.lo.ext shifted right by count >= 0, into temp[1..3], with what falls out kept in the sticky bit. */
export function shiftRightSticky(temp: Int32Array, hi: number, lo: number, ext: number, count: number): void {
  let sticky = 0;
  if (count >= 96) {
    sticky = hi | lo | ext;
    hi = lo = ext = 0;
  } else {
    for (; count >= 32; count -= 32) {
      sticky |= ext;
      ext = lo;
      lo = hi;
      hi = 0;
    }
    if (count !== 0) {
      sticky |= ext << (32 - count);
      ext = (ext >>> count) | (lo << (32 - count));
      lo = (lo >>> count) | (hi << (32 - count));
      hi >>>= count;
    }
  }
  temp[1] = hi;
  temp[2] = lo;
  temp[3] = sticky === 0 ? ext : ext | 1;
}

/** Rounds a result by FCW and writes it into the register at a word index, with flags and C1. */
export function roundToRegister(
  x: X87Core,
  at: number,
  sign: number,
  exponent: number,
  hi: number,
  lo: number,
  ext: number,
): void {
  const words = x.words;
  const word = words[CONTROL_STATUS] & ~C1_WORD;
  // 64 bits, to nearest, normal, inexact masked: nearly every result of compiled code.
  if ((word & (0xf00 | MASK_PE)) === (0x300 | MASK_PE) && exponent > 0 && exponent < 0x7ffe) {
    if (ext === 0) {
      words[CONTROL_STATUS] = word;
    } else {
      // Up or not is a coin's toss, so no branch: up = 1 if ext is more than half, or half and lo odd.
      const up = (ext & -((ext & 0x7fffffff) | (lo & 1))) >>> 31;
      words[CONTROL_STATUS] = word | (PE << 16) | (up << 25);
      lo = (lo + up) | 0;
      if (lo === 0 && up !== 0) {
        hi = (hi + 1) | 0;
        if (hi === 0) {
          hi = TOP_BIT;
          exponent++;
        }
      }
    }
    words[at] = lo;
    words[at + 1] = hi;
    words[at + 2] = sign | exponent;
    words[at + 3] = 0;
    return;
  }
  roundWithPrecision(x, at, sign, exponent, hi, lo, ext, (word >>> 8) & 3);
}

/** As roundToRegister, but with a precision of the caller's: PC_64 for all operations that precision control leaves alone. */
export function roundWithPrecision(
  x: X87Core,
  at: number,
  sign: number,
  exponent: number,
  hi: number,
  lo: number,
  ext: number,
  precision: number,
): void {
  const temp = x.temp;
  const control = x.words[CONTROL_STATUS];
  const rounding = (control >>> 10) & 3;
  x.clearC1();
  let rounded = roundSignificand(temp, precision, rounding, sign, hi, lo, ext);
  let flags = 0;
  const final = rounded & CARRIED ? exponent + 1 : exponent;
  if (final >= 0x7fff) {
    if (control & OE) {
      storeOverflow(x, at, sign, rounding, precision);
      return;
    }
    flags = OE;
    exponent = final - EXPONENT_WRAP;
    if (exponent >= 0x7fff) {
      // FSCALE only: too large even so.
      x.store(at, sign | 0x7fff, TOP_BIT, 0);
      x.raise(OE | PE | C1);
      return;
    }
  } else if (exponent > 0 || ((control & UE) === 0 && final > 0)) {
    exponent = final;
  } else if ((control & UE) === 0) {
    flags = UE;
    exponent = final + EXPONENT_WRAP;
    if (exponent <= 0) {
      x.store(at, sign, 0, 0);
      x.raise(UE | PE);
      return;
    }
  } else {
    shiftRightSticky(temp, hi, lo, ext, 1 - exponent);
    rounded = roundSignificand(temp, precision, rounding, sign, temp[1], temp[2], temp[3]);
    if (rounded & INEXACT && final <= 0) flags = UE;
    exponent = temp[1] < 0 ? 1 : 0;
  }
  x.store(at, sign | exponent, temp[1], temp[2]);
  if (rounded & INEXACT) flags |= PE;
  if (rounded & ROUNDED_UP) flags |= C1;
  if (flags !== 0) x.raise(flags);
}

/** The masked response to an overflow: infinity, or the largest number where the rounding never goes away from zero. */
function storeOverflow(x: X87Core, at: number, sign: number, rounding: number, precision: number): void {
  if (overflowsToInfinity(rounding, sign)) {
    x.store(at, sign | 0x7fff, TOP_BIT, 0);
    x.raise(OE | PE | C1);
  } else {
    const hi = precision === PC_24 ? 0xffffff00 | 0 : -1;
    x.store(at, sign | 0x7ffe, hi, precision === PC_24 ? 0 : precision === PC_53 ? ~0x7ff : -1);
    x.raise(OE | PE);
  }
}

/** Source: Intel SDM vol. 1, table 4-10. */
export function overflowsToInfinity(rounding: number, sign: number): boolean {
  if (rounding === RC_NEAREST) return true;
  if (rounding === RC_ZERO) return false;
  return (rounding === RC_DOWN) === (sign !== 0);
}

/**
 * The integer of a finite number, rounded: magnitude into temp[1] and temp[2] (as u64), and INEXACT | ROUNDED_UP. Numbers of
 * exponent 16383 + 64 or more do not fit; the caller has sorted them out.
 */
export function roundToInteger(
  temp: Int32Array,
  rounding: number,
  sign: number,
  exponent: number,
  hi: number,
  lo: number,
): number {
  shiftRightSticky(temp, hi, lo, 0, 16383 + 63 - exponent);
  return roundSignificand(temp, PC_64, rounding, sign, temp[1], temp[2], temp[3]);
}
