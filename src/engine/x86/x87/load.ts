/**
 * Memory formats to 80 bits, and the loads: FLD, FILD, constants, and what moves within the stack.
 * Source: Intel SDM vol. 1, 4.2 (formats) and 8.3.1-4; vol. 2, FLD, FILD, FLD1 and the rest.
 */

import type { X87Core } from './core.ts';
import { CONTROL_STATUS } from './core.ts';
import { QUIET_BIT } from './nan.ts';
import { DE, IE, RC_NEAREST, RC_UP } from './state.ts';

const TOP_BIT = 0x80000000 | 0;

/** m32fp into temp[0..2] (sign and exponent, significand high, low). SNaNs stay signaling. True if it was a denormal. */
export function loadSingle(temp: Int32Array, bits: number): boolean {
  const sign = (bits >>> 16) & 0x8000;
  const exponent = (bits >>> 23) & 0xff;
  const fraction = bits << 8;
  temp[2] = 0;
  if (exponent !== 0) {
    temp[0] = sign | (exponent === 0xff ? 0x7fff : exponent + 16256);
    temp[1] = fraction | TOP_BIT;
    return false;
  }
  const significand = fraction & 0x7fffffff;
  if (significand === 0) {
    temp[0] = sign;
    temp[1] = 0;
    return false;
  }
  const count = Math.clz32(significand);
  temp[0] = sign | (16257 - count);
  temp[1] = significand << count;
  return true;
}

/** m64fp into temp[0..2]. SNaNs stay signaling. True if it was a denormal. */
export function loadDouble(temp: Int32Array, lo: number, hi: number): boolean {
  const sign = (hi >>> 16) & 0x8000;
  const exponent = (hi >>> 20) & 0x7ff;
  const top = ((hi << 11) & 0x7fffffff) | (lo >>> 21);
  const low = lo << 11;
  if (exponent !== 0) {
    temp[0] = sign | (exponent === 0x7ff ? 0x7fff : exponent + 15360);
    temp[1] = top | TOP_BIT;
    temp[2] = low;
    return false;
  }
  if ((top | low) === 0) {
    temp[0] = sign;
    temp[1] = temp[2] = 0;
    return false;
  }
  if (top === 0) {
    const count = Math.clz32(low);
    temp[0] = sign | (15361 - 32 - count);
    temp[1] = low << count;
    temp[2] = 0;
  } else {
    const count = Math.clz32(top);
    temp[0] = sign | (15361 - count);
    temp[1] = (top << count) | (low >>> (32 - count));
    temp[2] = low << count;
  }
  return true;
}

/** A 64-bit two's-complement integer into temp[0..2]; always exact. */
export function loadInteger(temp: Int32Array, lo: number, hi: number): void {
  let sign = 0;
  if (hi < 0) {
    sign = 0x8000;
    lo = -lo | 0;
    hi = (~hi + (lo === 0 ? 1 : 0)) | 0;
  }
  if ((hi | lo) === 0) {
    temp[0] = temp[1] = temp[2] = 0;
    return;
  }
  let exponent = 16383 + 63;
  if (hi === 0) {
    hi = lo;
    lo = 0;
    exponent -= 32;
  }
  const count = Math.clz32(hi);
  if (count !== 0) {
    hi = (hi << count) | (lo >>> (32 - count));
    lo <<= count;
  }
  temp[0] = sign | (exponent - count);
  temp[1] = hi;
  temp[2] = lo;
}

/** FLD m32fp. */
export function pushSingle(x: X87Core, bits: number): void {
  pushConverted(x, loadSingle(x.temp, bits));
}

/** FLD m64fp. */
export function pushDouble(x: X87Core, lo: number, hi: number): void {
  pushConverted(x, loadDouble(x.temp, lo, hi));
}

/** Pushes temp, which came from a narrower format: a denormal or an SNaN raises its exception. */
function pushConverted(x: X87Core, wasDenormal: boolean): void {
  const temp = x.temp;
  const isSignaling =
    (temp[0] & 0x7fff) === 0x7fff && (temp[1] & QUIET_BIT) === 0 && ((temp[1] & 0x3fffffff) | temp[2]) !== 0;
  if (wasDenormal || isSignaling) {
    x.clearC1();
    if (!x.isEmpty(7)) {
      x.push();
      return;
    }
    if (x.raise(isSignaling ? IE : DE) !== 0 && isSignaling) return;
    if (isSignaling) temp[1] |= QUIET_BIT;
  }
  const at = x.push();
  if (at >= 0) x.store(at, temp[0], temp[1], temp[2]);
}

/** FLD m80fp: no exception but a full stack. */
export function pushExtended(x: X87Core, signExponent: number, hi: number, lo: number): void {
  const at = x.push();
  if (at >= 0) x.store(at, signExponent, hi, lo);
}

/** FILD m64int; m16int and m32int are sign-extended by the caller. */
export function pushInteger(x: X87Core, lo: number, hi: number): void {
  loadInteger(x.temp, lo, hi);
  pushExtended(x, x.temp[0], x.temp[1], x.temp[2]);
}

/** FLD ST(i). */
export function pushRegister(x: X87Core, i: number): void {
  if (x.isEmpty(i)) {
    x.clearC1();
    // An empty source is a stack underflow even where the push would overflow.
    if (x.underflow()) pushIndefinite(x);
    return;
  }
  const words = x.words;
  const from = x.register(i);
  const at = x.push();
  if (at >= 0) x.store(at, words[from + 2], words[from + 1], words[from]);
}

function pushIndefinite(x: X87Core): void {
  x.setTop(((x.words[CONTROL_STATUS] >>> 27) + 7) & 7);
  x.setIndefinite(0);
}

/**
 * The constants as exponent, high word, low word to nearest, and what directed rounding makes of it: -1 if rounding down gives
 * one less, +1 if rounding up gives one more. Source: Intel SDM vol. 2, FLD1/FLDL2T/FLDL2E/FLDPI/FLDLG2/FLDLN2/FLDZ.
 * In opcode order: 1, log2(10), log2(e), pi, log10(2), ln(2), 0.
 */
// biome-ignore format: a row each
const CONSTANTS = new Int32Array([
  0x3fff, 0x80000000, 0x00000000, 0,
  0x4000, 0xd49a784b, 0xcd1b8afe, 1,
  0x3fff, 0xb8aa3b29, 0x5c17f0bc, -1,
  0x4000, 0xc90fdaa2, 0x2168c235, -1,
  0x3ffd, 0x9a209a84, 0xfbcff799, -1,
  0x3ffe, 0xb17217f7, 0xd1cf79ac, -1,
  0x0000, 0x00000000, 0x00000000, 0,
]);

/** FLD1 (0), FLDL2T, FLDL2E, FLDPI, FLDLG2, FLDLN2, FLDZ (6), numbered as in D9 E8+n. */
export function pushConstant(x: X87Core, n: number): void {
  const at = 4 * n;
  const rounding = (x.words[CONTROL_STATUS] >>> 10) & 3;
  const adjustment = CONSTANTS[at + 3];
  let lo = CONSTANTS[at + 2];
  if (rounding !== RC_NEAREST && adjustment !== 0) {
    if (rounding === RC_UP) lo += adjustment > 0 ? 1 : 0;
    else lo -= adjustment < 0 ? 1 : 0;
  }
  pushExtended(x, CONSTANTS[at], CONSTANTS[at + 1], lo);
}

/** FXCH ST(i). Empty registers count as the indefinite value when masked. */
export function exchange(x: X87Core, i: number): void {
  x.clearC1();
  if (x.isEmpty(0) || x.isEmpty(i)) {
    if (!x.underflow()) return;
    if (x.isEmpty(0)) x.setIndefinite(0);
    if (x.isEmpty(i)) x.setIndefinite(i);
  }
  const words = x.words;
  const a = x.register(0);
  const b = x.register(i);
  const lo = words[a];
  const hi = words[a + 1];
  const signExponent = words[a + 2];
  x.store(a, words[b + 2], words[b + 1], words[b]);
  x.store(b, signExponent, hi, lo);
}
