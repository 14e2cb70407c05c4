/**
 * FABS, FCHS, FRNDINT, FSCALE, FXTRACT.
 * Source: Intel SDM vol. 2, the instructions' pages and table 3-32 (FSCALE).
 */

import type { X87Core } from './core.ts';
import { CONTROL_STATUS } from './core.ts';
import { loadInteger } from './load.ts';
import {
  KIND_DENORMAL,
  KIND_INFINITY,
  KIND_QNAN,
  KIND_UNSUPPORTED,
  KIND_ZERO,
  kindOf,
  normalize,
  QUIET_BIT,
  shiftUp,
  storeInvalid,
  storeNaN,
  storeNaN1,
} from './nan.ts';
import { ROUNDED_UP, roundToInteger, roundWithPrecision } from './round.ts';
import { C1, DE, ES, PC_64, PE, ZE } from './state.ts';

const TOP_BIT = 0x80000000 | 0;
/** Any FSCALE by more than this overflows or underflows whatever its operand. */
const SCALE_MAX = 0x10000;

/** FABS (clear = 0x8000, flip = 0) and FCHS (clear = 0, flip = 0x8000). */
export function changeSign(x: X87Core, clear: number, flip: number): void {
  x.clearC1();
  if (x.isEmpty(0)) {
    if (x.underflow()) x.setIndefinite(0);
    return;
  }
  const at = x.register(0) + 2;
  x.words[at] = (x.words[at] & ~clear) ^ flip;
}

/** FRNDINT. */
export function roundInteger(x: X87Core): void {
  x.clearC1();
  if (x.isEmpty(0)) {
    if (x.underflow()) x.setIndefinite(0);
    return;
  }
  const words = x.words;
  const temp = x.temp;
  const at = x.register(0);
  const signExponent = words[at + 2];
  const exponent = signExponent & 0x7fff;
  const hi = words[at + 1];
  const lo = words[at];
  const kind = kindOf(signExponent, hi, lo);
  if (kind >= KIND_QNAN) {
    storeNaN1(x, at, kind, signExponent, hi, lo);
    return;
  }
  if (kind === KIND_ZERO || exponent >= 16383 + 63) return;
  if (kind === KIND_DENORMAL && x.raise(DE) !== 0) return;
  const sign = signExponent & 0x8000;
  const rounding = (words[CONTROL_STATUS] >>> 10) & 3;
  const rounded = roundToInteger(temp, rounding, sign, exponent === 0 ? 1 : exponent, hi, lo);
  if (rounded !== 0) {
    x.raise(rounded & ROUNDED_UP ? PE | C1 : PE);
    const isZero = (temp[1] | temp[2]) === 0;
    const normalized = isZero ? 0 : shiftUp(temp, 16383 + 63, temp[1], temp[2]);
    x.store(at, sign | normalized, temp[1], temp[2]);
  }
}

/** FSCALE. */
export function scale(x: X87Core): void {
  x.clearC1();
  if (x.isEmpty(0) || x.isEmpty(1)) {
    if (x.underflow()) x.setIndefinite(0);
    return;
  }
  const words = x.words;
  const a = x.register(0);
  const b = x.register(1);
  const hiA = words[a + 1];
  const loA = words[a];
  const hiB = words[b + 1];
  const loB = words[b];
  const kindA = kindOf(words[a + 2], hiA, loA);
  const kindB = kindOf(words[b + 2], hiB, loB);
  if (kindA >= KIND_QNAN || kindB >= KIND_QNAN) {
    storeNaN(x, a, kindA, words[a + 2], hiA, loA, kindB, words[b + 2], hiB, loB);
    return;
  }
  const sign = words[a + 2] & 0x8000;
  const isDown = (words[b + 2] & 0x8000) !== 0;
  if (kindB === KIND_INFINITY && kindA === (isDown ? KIND_INFINITY : KIND_ZERO)) {
    storeInvalid(x, a);
    return;
  }
  if ((kindA === KIND_DENORMAL || kindB === KIND_DENORMAL) && x.raise(DE) !== 0) return;
  if (kindA === KIND_INFINITY || kindA === KIND_ZERO) return;
  if (kindB === KIND_INFINITY) {
    if (isDown) x.store(a, sign, 0, 0);
    else x.store(a, sign | 0x7fff, TOP_BIT, 0);
    return;
  }
  const exponentB = words[b + 2] & 0x7fff;
  let count = 0;
  if (exponentB >= 16383 + 16) count = SCALE_MAX;
  else if (exponentB >= 16383) count = hiB >>> (31 - (exponentB - 16383));
  const exponent = normalize(x.temp, words[a + 2] & 0x7fff, hiA, loA);
  roundWithPrecision(x, a, sign, isDown ? exponent - count : exponent + count, x.temp[1], x.temp[2], 0, PC_64);
}

/** FXTRACT: ST(0) becomes its exponent, and its significand is pushed. */
export function extract(x: X87Core): void {
  x.clearC1();
  const words = x.words;
  if (x.isEmpty(0)) {
    if (!x.underflow()) return;
    x.setIndefinite(0);
    x.setTop(((words[CONTROL_STATUS] >>> 27) + 7) & 7);
    x.setIndefinite(0);
    return;
  }
  if (!x.isEmpty(7)) {
    // Stack overflow: both results are indefinite.
    x.push();
    if (!(x.words[CONTROL_STATUS] & (ES << 16))) x.setIndefinite(1);
    return;
  }
  const at = x.register(0);
  const signExponent = words[at + 2];
  const hi = words[at + 1];
  const lo = words[at];
  const sign = signExponent & 0x8000;
  const kind = kindOf(signExponent, hi, lo);
  const temp = x.temp;
  if (kind >= KIND_QNAN) {
    if (!storeNaN1(x, at, kind, signExponent, hi, lo)) return;
    const isUnsupported = kind === KIND_UNSUPPORTED;
    x.store(
      x.push(),
      isUnsupported ? 0xffff : signExponent,
      isUnsupported ? 0xc0000000 | 0 : hi | QUIET_BIT,
      isUnsupported ? 0 : lo,
    );
    return;
  }
  if (kind === KIND_INFINITY) {
    x.store(at, 0x7fff, hi, lo);
    x.store(x.push(), signExponent, hi, lo);
    return;
  }
  if (kind === KIND_ZERO) {
    if (x.raise(ZE) !== 0) return;
    x.store(at, 0xffff, TOP_BIT, 0);
    x.store(x.push(), sign, 0, 0);
    return;
  }
  if (kind === KIND_DENORMAL && x.raise(DE) !== 0) return;
  const exponent = normalize(temp, signExponent & 0x7fff, hi, lo) - 16383;
  const significandHi = temp[1];
  const significandLo = temp[2];
  loadInteger(temp, exponent, exponent >> 31);
  x.store(at, temp[0], temp[1], temp[2]);
  x.store(x.push(), sign | 16383, significandHi, significandLo);
}
