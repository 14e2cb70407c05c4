/**
 * FADD, FSUB, FSUBR, FMUL, FDIV, FDIVR and FSQRT: operands, special cases, and the way to the arithmetic proper.
 * Source: Intel SDM vol. 2, the instructions' own tables of special cases.
 */

import { addNormalized } from './add.ts';
import type { X87Core } from './core.ts';
import { CONTROL_STATUS, REGISTER_WORDS, TAGS_OPCODE } from './core.ts';
import { loadDouble, loadInteger, loadSingle } from './load.ts';
import { divideNormalized, multiplyNormalized, squareRootNormalized } from './multiply.ts';
import {
  KIND_DENORMAL,
  KIND_INFINITY,
  KIND_QNAN,
  KIND_ZERO,
  kindOf,
  normalize,
  storeInvalid,
  storeNaN,
  storeNaN1,
} from './nan.ts';
import { roundToRegister } from './round.ts';
import { DE, RC_DOWN, ZE } from './state.ts';

/** Operations, numbered as in the reg field of opcodes D8 and DC with a memory operand. Source: Intel SDM vol. 2, table A-8. */
export const FADD = 0;
export const FMUL = 1;
export const FSUB = 4;
export const FSUBR = 5;
export const FDIV = 6;
export const FDIVR = 7;

const TOP_BIT = 0x80000000 | 0;

/** ST(destination) = ST(destination) op ST(source). False if an exception kept it from happening (then nothing is popped). */
export function arithRegisters(x: X87Core, op: number, destination: number, source: number): boolean {
  const words = x.words;
  const top = words[CONTROL_STATUS] >>> 27;
  const numberA = (top + destination) & 7;
  const numberB = (top + source) & 7;
  const tags = words[TAGS_OPCODE];
  if (((tags >>> numberA) & (tags >>> numberB) & 1) === 0) return arithUnderflow(x, destination);
  const a = REGISTER_WORDS + (numberA << 2);
  const b = REGISTER_WORDS + (numberB << 2);
  return arith(x, op, a, words[b + 2], words[b + 1], words[b]);
}

/** ST(0) = ST(0) op m32fp. */
export function arithSingle(x: X87Core, op: number, bits: number): boolean {
  if (x.isEmpty(0)) return arithUnderflow(x, 0);
  const temp = x.temp;
  return loadSingle(temp, bits) ? arithDenormal(x, op) : arith(x, op, x.register(0), temp[0], temp[1], temp[2]);
}

/** ST(0) = ST(0) op m64fp. */
export function arithDouble(x: X87Core, op: number, lo: number, hi: number): boolean {
  if (x.isEmpty(0)) return arithUnderflow(x, 0);
  const temp = x.temp;
  return loadDouble(temp, lo, hi) ? arithDenormal(x, op) : arith(x, op, x.register(0), temp[0], temp[1], temp[2]);
}

/** ST(0) = ST(0) op m16int or m32int, sign-extended by the caller. */
export function arithInteger(x: X87Core, op: number, value: number): boolean {
  if (x.isEmpty(0)) return arithUnderflow(x, 0);
  const temp = x.temp;
  loadInteger(temp, value, value >> 31);
  return arith(x, op, x.register(0), temp[0], temp[1], temp[2]);
}

function arithUnderflow(x: X87Core, destination: number): boolean {
  x.clearC1();
  if (!x.underflow()) return false;
  x.setIndefinite(destination);
  return true;
}

/** With a denormal memory operand, which is a normal number by now (in temp). */
function arithDenormal(x: X87Core, op: number): boolean {
  const temp = x.temp;
  const at = x.register(0);
  const words = x.words;
  return arithSpecial(x, op, at, words[at + 2], words[at + 1], words[at], temp[0], temp[1], temp[2], true);
}

function arith(x: X87Core, op: number, a: number, signExponentB: number, hiB: number, loB: number): boolean {
  const words = x.words;
  const signExponentA = words[a + 2];
  const hiA = words[a + 1];
  const loA = words[a];
  const exponentA = signExponentA & 0x7fff;
  const exponentB = signExponentB & 0x7fff;
  if ((hiA & hiB) < 0 && exponentA !== 0 && exponentB !== 0 && exponentA !== 0x7fff && exponentB !== 0x7fff) {
    const headA = (exponentA << 1) | ((signExponentA >>> 15) & 1);
    const headB = (exponentB << 1) | ((signExponentB >>> 15) & 1);
    compute(x, op, a, headA, hiA, loA, headB, hiB, loB);
    return true;
  }
  return arithSpecial(x, op, a, signExponentA, hiA, loA, signExponentB, hiB, loB, false);
}

/** Two finite normalized numbers; a head is exponent * 2 + sign. */
function compute(
  x: X87Core,
  op: number,
  at: number,
  headA: number,
  hiA: number,
  loA: number,
  headB: number,
  hiB: number,
  loB: number,
): void {
  switch (op) {
    case FADD:
      addNormalized(x, at, headA, hiA, loA, headB, hiB, loB);
      break;
    case FMUL:
      multiplyNormalized(x, at, headA, hiA, loA, headB, hiB, loB);
      break;
    case FSUB:
      addNormalized(x, at, headA, hiA, loA, headB ^ 1, hiB, loB);
      break;
    case FSUBR:
      addNormalized(x, at, headA ^ 1, hiA, loA, headB, hiB, loB);
      break;
    case FDIV:
      divideNormalized(x, at, headA, hiA, loA, headB, hiB, loB);
      break;
    default:
      divideNormalized(x, at, headB, hiB, loB, headA, hiA, loA);
  }
}

/**
 * At least one operand is not a normal number. `wasDenormal`: one of them was a denormal in memory, and is a normal number by now.
 */
function arithSpecial(
  x: X87Core,
  op: number,
  at: number,
  signExponentA: number,
  hiA: number,
  loA: number,
  signExponentB: number,
  hiB: number,
  loB: number,
  wasDenormal: boolean,
): boolean {
  if (op === FDIVR || op === FSUBR) {
    return arithSpecial(x, op - 1, at, signExponentB, hiB, loB, signExponentA, hiA, loA, wasDenormal);
  }
  const kindA = kindOf(signExponentA, hiA, loA);
  const kindB = kindOf(signExponentB, hiB, loB);
  if (kindA >= KIND_QNAN || kindB >= KIND_QNAN) {
    return storeNaN(x, at, kindA, signExponentA, hiA, loA, kindB, signExponentB, hiB, loB);
  }
  const signA = signExponentA & 0x8000;
  const signB = (signExponentB & 0x8000) ^ (op === FSUB ? 0x8000 : 0);
  const sign = signA ^ signB;
  const infinities = (kindA === KIND_INFINITY ? 1 : 0) + (kindB === KIND_INFINITY ? 1 : 0);
  const zeros = (kindA === KIND_ZERO ? 1 : 0) + (kindB === KIND_ZERO ? 1 : 0);
  const isSum = op === FADD || op === FSUB;
  if (isSum) {
    if (infinities === 2 && sign !== 0) return storeInvalid(x, at);
  } else if (op === FMUL) {
    if (infinities === 1 && zeros === 1) return storeInvalid(x, at);
  } else {
    if (infinities === 2 || zeros === 2) return storeInvalid(x, at);
    if (kindB === KIND_ZERO && kindA !== KIND_INFINITY) {
      x.clearC1();
      if (x.raise(ZE) !== 0) return false;
      x.store(at, sign | 0x7fff, TOP_BIT, 0);
      return true;
    }
  }
  x.clearC1();
  if ((wasDenormal || kindA === KIND_DENORMAL || kindB === KIND_DENORMAL) && x.raise(DE) !== 0) return false;

  if (infinities !== 0) {
    if (isSum) x.store(at, (kindA === KIND_INFINITY ? signA : signB) | 0x7fff, TOP_BIT, 0);
    else if (op === FDIV && kindB === KIND_INFINITY) x.store(at, sign, 0, 0);
    else x.store(at, sign | 0x7fff, TOP_BIT, 0);
    return true;
  }
  if (zeros === 2 && isSum) {
    const rounding = (x.words[CONTROL_STATUS] >>> 10) & 3;
    x.store(at, sign === 0 ? signA : rounding === RC_DOWN ? 0x8000 : 0, 0, 0);
    return true;
  }
  if (zeros !== 0 && !isSum) {
    x.store(at, sign, 0, 0);
    return true;
  }
  const temp = x.temp;
  const exponentA = normalize(temp, signExponentA & 0x7fff, hiA, loA);
  hiA = temp[1];
  loA = temp[2];
  const exponentB = normalize(temp, signExponentB & 0x7fff, hiB, loB);
  hiB = temp[1];
  loB = temp[2];
  if (kindA === KIND_ZERO) roundToRegister(x, at, signB, exponentB, hiB, loB, 0);
  else if (kindB === KIND_ZERO) roundToRegister(x, at, signA, exponentA, hiA, loA, 0);
  else {
    const headA = (exponentA << 1) | ((signExponentA >>> 15) & 1);
    const headB = (exponentB << 1) | ((signExponentB >>> 15) & 1);
    compute(x, op, at, headA, hiA, loA, headB, hiB, loB);
  }
  return true;
}

/** ST(0) = square root of ST(0). Source: Intel SDM vol. 2, FSQRT. */
export function squareRoot(x: X87Core): void {
  x.clearC1();
  if (x.isEmpty(0)) {
    if (x.underflow()) x.setIndefinite(0);
    return;
  }
  const at = x.register(0);
  const signExponent = x.words[at + 2];
  const hi = x.words[at + 1];
  const lo = x.words[at];
  const kind = kindOf(signExponent, hi, lo);
  if (kind >= KIND_QNAN) {
    storeNaN1(x, at, kind, signExponent, hi, lo);
    return;
  }
  if (kind === KIND_ZERO) return;
  if (signExponent & 0x8000) {
    storeInvalid(x, at);
    return;
  }
  if (kind === KIND_INFINITY) return;
  if (kind === KIND_DENORMAL && x.raise(DE) !== 0) return;
  const exponent = normalize(x.temp, signExponent, hi, lo);
  squareRootNormalized(x, at, exponent, x.temp[1], x.temp[2]);
}
