/**
 * Kinds of 80-bit values, and what comes out when one of the operands is not a number.
 *
 * Unsupported encodings (an exponent above 0 without the integer bit: unnormals, pseudo-infinities, pseudo-NaNs) are invalid operands
 * everywhere. Pseudo-denormals (exponent 0 with the integer bit) are denormal operands whose exponent counts as 1.
 * Source: Intel SDM vol. 1, 4.8.3.5 and table 4-7 (NaNs), 8.2.2 and table 8-3 (unsupported encodings).
 */

import type { X87Core } from './core.ts';
import { IE } from './state.ts';

export const KIND_NORMAL = 0;
export const KIND_ZERO = 1;
export const KIND_DENORMAL = 2;
export const KIND_INFINITY = 3;
export const KIND_QNAN = 4;
export const KIND_SNAN = 5;
export const KIND_UNSUPPORTED = 6;

export const QUIET_BIT = 0x40000000;

export function kindOf(signExponent: number, hi: number, lo: number): number {
  const exponent = signExponent & 0x7fff;
  if (exponent === 0) return (hi | lo) === 0 ? KIND_ZERO : KIND_DENORMAL;
  if (hi >= 0) return KIND_UNSUPPORTED;
  if (exponent !== 0x7fff) return KIND_NORMAL;
  if (((hi & 0x7fffffff) | lo) === 0) return KIND_INFINITY;
  return hi & QUIET_BIT ? KIND_QNAN : KIND_SNAN;
}

/**
 * A finite number's significand, shifted up until its top bit is set, into temp[1] and temp[2]. Takes the exponent field and returns
 * the exponent that goes with the result (below 1 for denormals). A zero comes out as zero.
 */
export function normalize(temp: Int32Array, exponentField: number, hi: number, lo: number): number {
  return shiftUp(temp, exponentField === 0 ? 1 : exponentField, hi, lo);
}

/** As normalize, with an exponent that means itself. */
export function shiftUp(temp: Int32Array, exponent: number, hi: number, lo: number): number {
  if (hi === 0) {
    hi = lo;
    lo = 0;
    exponent -= 32;
  }
  const count = Math.clz32(hi) & 31;
  if (count !== 0) {
    hi = (hi << count) | (lo >>> (32 - count));
    lo <<= count;
  }
  temp[1] = hi;
  temp[2] = lo;
  return exponent - count;
}

/**
 * The result of an operation one of whose operands is a NaN or unsupported, into the register at a word index: the indefinite
 * value for unsupported ones, else the NaN, made quiet. Of two, a quiet one goes before a signaling one, then the larger
 * significand, then the positive one. False if the invalid operand exception is unmasked: nothing is stored.
 */
export function storeNaN(
  x: X87Core,
  at: number,
  kindA: number,
  signExponentA: number,
  hiA: number,
  loA: number,
  kindB: number,
  signExponentB: number,
  hiB: number,
  loB: number,
): boolean {
  x.clearC1();
  if ((kindA >= KIND_SNAN || kindB >= KIND_SNAN) && x.raise(IE) !== 0) return false;
  if (kindA === KIND_UNSUPPORTED || kindB === KIND_UNSUPPORTED) {
    x.storeIndefinite(at);
    return true;
  }
  let takeA = kindB < KIND_QNAN;
  if (kindA >= KIND_QNAN && kindB >= KIND_QNAN) {
    if (kindA !== kindB) takeA = kindA === KIND_QNAN;
    else if (hiA !== hiB) takeA = hiA >>> 0 > hiB >>> 0;
    else if (loA !== loB) takeA = loA >>> 0 > loB >>> 0;
    else takeA = signExponentA <= signExponentB;
  }
  if (takeA) x.store(at, signExponentA, hiA | QUIET_BIT, loA);
  else x.store(at, signExponentB, hiB | QUIET_BIT, loB);
  return true;
}

/** storeNaN for operations of one operand. */
export function storeNaN1(x: X87Core, at: number, kind: number, signExponent: number, hi: number, lo: number): boolean {
  return storeNaN(x, at, kind, signExponent, hi, lo, 0, 0, 0, 0);
}

/** The invalid operation exception: the indefinite value into a register. False if unmasked: nothing is stored. */
export function storeInvalid(x: X87Core, at: number): boolean {
  x.clearC1();
  if (x.raise(IE) !== 0) return false;
  x.storeIndefinite(at);
  return true;
}
