/**
 * 80 bits to memory formats: FST, FSTP, FIST, FISTP, FISTTP.
 *
 * The result goes to the first words of the transfer area, lowest first, and the function says whether it is to be written: an
 * unmasked stack fault, invalid operand, overflow or underflow leaves memory and the stack as they were. The caller has translated
 * the destination for writing before, so that a page fault finds the x87 state untouched.
 * Source: Intel SDM vol. 2, FST/FSTP, FIST/FISTP, FISTTP; vol. 1, 8.5.
 */

import type { X87Core } from './core.ts';
import { C1_WORD, CONTROL_STATUS, INDEFINITE_HI, INDEFINITE_SIGN_EXPONENT, TAGS_OPCODE, TOP_WORD } from './core.ts';
import { KIND_INFINITY, KIND_SNAN, KIND_UNSUPPORTED, KIND_ZERO, kindOf, normalize, QUIET_BIT } from './nan.ts';
import {
  CARRIED,
  INEXACT,
  overflowsToInfinity,
  ROUNDED_UP,
  roundSignificand,
  roundToInteger,
  shiftRightSticky,
} from './round.ts';
import { C1, IE, OE, PC_24, PC_53, PE, RC_ZERO, UE } from './state.ts';

/** FST(P) m32fp: one word. */
export function storeSingle(x: X87Core, pop: boolean): boolean {
  x.clearC1();
  if (!storeFloat(x, PC_24)) return false;
  if (pop) x.pop();
  return true;
}

/** FST(P) m64fp: two words. */
export function storeDouble(x: X87Core, pop: boolean): boolean {
  const words = x.words;
  const word = words[CONTROL_STATUS];
  const at = x.register(0);
  const signExponent = words[at + 2];
  const lo = words[at];
  const exponent = (signExponent & 0x7fff) - 15360;
  // A number that a double holds exactly: no rounding, no flags.
  if (exponent > 0 && exponent < 0x7ff && (lo & 0x7ff) === 0 && words[at + 1] < 0 && !x.isEmpty(0)) {
    const hi = words[at + 1];
    x.transfer[0] = (lo >>> 11) | (hi << 21);
    x.transfer[1] = ((signExponent & 0x8000) << 16) | (exponent << 20) | ((hi >>> 11) & 0xfffff);
    if (!pop) {
      x.clearC1();
      return true;
    }
    const top = (word >>> 27) & 7;
    words[TAGS_OPCODE] &= ~(1 << top);
    words[CONTROL_STATUS] = (word & ~(C1_WORD | TOP_WORD)) | (((top + 1) & 7) << 27);
    return true;
  }
  x.clearC1();
  if (!storeFloat(x, PC_53)) return false;
  if (pop) x.pop();
  return true;
}

/** ST(0) to a narrower format, given by its precision, in transfer[0] and [1]. */
function storeFloat(x: X87Core, precision: number): boolean {
  if (x.isEmpty(0)) {
    if (!x.underflow()) return false;
    pack(x, precision, 0x8000, 0x7ff, INDEFINITE_HI, 0);
    return true;
  }
  const words = x.words;
  const at = x.register(0);
  const sign = words[at + 2] & 0x8000;
  const kind = kindOf(words[at + 2], words[at + 1], words[at]);
  if (kind >= KIND_INFINITY || kind === KIND_ZERO) {
    if (kind >= KIND_SNAN && x.raise(IE) !== 0) return false;
    if (kind === KIND_UNSUPPORTED) pack(x, precision, 0x8000, 0x7ff, INDEFINITE_HI, 0);
    else if (kind === KIND_ZERO) pack(x, precision, sign, 0, 0, 0);
    else
      pack(
        x,
        precision,
        sign,
        0x7ff,
        kind === KIND_INFINITY ? 0 : words[at + 1] | QUIET_BIT,
        kind === KIND_INFINITY ? 0 : words[at],
      );
    return true;
  }
  const temp = x.temp;
  const control = words[CONTROL_STATUS];
  const rounding = (control >>> 10) & 3;
  const biasOffset = precision === PC_24 ? 16383 - 127 : 16383 - 1023;
  const exponentMax = precision === PC_24 ? 0xff : 0x7ff;
  const exponent = normalize(temp, words[at + 2] & 0x7fff, words[at + 1], words[at]) - biasOffset;
  const hi = temp[1];
  const lo = temp[2];
  let rounded = roundSignificand(temp, precision, rounding, sign, hi, lo, 0);
  let final = rounded & CARRIED ? exponent + 1 : exponent;
  let flags = 0;
  if (final >= exponentMax) {
    if (x.raise(OE) !== 0) return false;
    if (overflowsToInfinity(rounding, sign)) {
      pack(x, precision, sign, 0x7ff, 0, 0);
      x.raise(PE | C1);
    } else {
      pack(x, precision, sign, exponentMax - 1, -1, -1);
      x.raise(PE);
    }
    return true;
  }
  if (exponent <= 0) {
    if (final <= 0 && (control & UE) === 0) {
      x.raise(UE);
      return false;
    }
    shiftRightSticky(temp, hi, lo, 0, 1 - exponent);
    rounded = roundSignificand(temp, precision, rounding, sign, temp[1], temp[2], temp[3]);
    if (rounded & INEXACT && final <= 0) flags = UE;
    final = temp[1] < 0 ? 1 : 0;
  }
  pack(x, precision, sign, final, temp[1], temp[2]);
  if (rounded & INEXACT) flags |= PE;
  if (rounded & ROUNDED_UP) flags |= C1;
  if (flags !== 0) x.raise(flags);
  return true;
}

/** Sign, exponent and fraction (below the integer bit of hi.lo) of an m32fp or m64fp into the transfer area. */
function pack(x: X87Core, precision: number, sign: number, exponent: number, hi: number, lo: number): void {
  if (precision === PC_24) {
    x.transfer[0] = (sign << 16) | ((exponent & 0xff) << 23) | ((hi >>> 8) & 0x7fffff);
  } else {
    x.transfer[0] = (lo >>> 11) | (hi << 21);
    x.transfer[1] = (sign << 16) | (exponent << 20) | ((hi >>> 11) & 0xfffff);
  }
}

/** FSTP m80fp: two words and a half, in transfer[0..2]. */
export function storeExtended(x: X87Core): boolean {
  x.clearC1();
  const transfer = x.transfer;
  if (x.isEmpty(0)) {
    if (!x.underflow()) return false;
    transfer[0] = 0;
    transfer[1] = INDEFINITE_HI;
    transfer[2] = INDEFINITE_SIGN_EXPONENT;
  } else {
    const at = x.register(0);
    transfer[0] = x.words[at];
    transfer[1] = x.words[at + 1];
    transfer[2] = x.words[at + 2];
  }
  x.pop();
  return true;
}

/** FST(P) ST(i). */
export function storeToRegister(x: X87Core, i: number, pop: boolean): void {
  x.clearC1();
  if (x.isEmpty(0)) {
    if (!x.underflow()) return;
    x.setIndefinite(i);
  } else {
    const words = x.words;
    const from = x.register(0);
    x.store(x.register(i), words[from + 2], words[from + 1], words[from]);
    x.setTag(i);
  }
  if (pop) x.pop();
}

/** FIST(P) and, if `truncate`, FISTTP: m16int (bits = 16, in the low half of a word), m32int, m64int (two words). */
export function storeInteger(x: X87Core, bits: number, truncate: boolean, pop: boolean): boolean {
  x.clearC1();
  if (x.isEmpty(0)) {
    if (!x.underflow()) return false;
    storeIntegerIndefinite(x, bits);
  } else if (!integerOf(x, bits, truncate)) {
    if (x.raise(IE) !== 0) return false;
    storeIntegerIndefinite(x, bits);
  }
  if (pop) x.pop();
  return true;
}

/** ST(0), rounded, into the transfer area; false if it does not fit. */
function integerOf(x: X87Core, bits: number, truncate: boolean): boolean {
  const words = x.words;
  const temp = x.temp;
  const at = x.register(0);
  const sign = words[at + 2] & 0x8000;
  const exponent = words[at + 2] & 0x7fff;
  const hi = words[at + 1];
  // Unsupported values, and what is 2^64 or more, infinity and NaNs among it.
  if ((exponent !== 0 && hi >= 0) || exponent >= 16383 + 64) return false;
  const rounding = truncate ? RC_ZERO : (words[CONTROL_STATUS] >>> 10) & 3;
  const rounded = roundToInteger(temp, rounding, sign, exponent === 0 ? 1 : exponent, hi, words[at]);
  let high = temp[1];
  let low = temp[2];
  if (rounded & CARRIED) return false;
  if (sign !== 0) {
    low = -low | 0;
    high = (~high + (low === 0 ? 1 : 0)) | 0;
  }
  // The sign of the two's complement must be the sign of the number, but zero has none.
  if ((high | low) !== 0 && high < 0 !== (sign !== 0)) return false;
  if (bits !== 64 && (high !== low >> 31 || (bits === 16 && low !== (low << 16) >> 16))) return false;
  x.transfer[0] = bits === 16 ? low & 0xffff : low;
  if (bits === 64) x.transfer[1] = high;
  if (rounded !== 0) x.raise(rounded & ROUNDED_UP ? PE | C1 : PE);
  return true;
}

/** Source: Intel SDM vol. 1, table 4-1 (integer indefinite). */
function storeIntegerIndefinite(x: X87Core, bits: number): void {
  x.transfer[0] = bits === 16 ? 0x8000 : bits === 32 ? 0x80000000 : 0;
  if (bits === 64) x.transfer[1] = 0x80000000;
}
