/**
 * FCOM, FUCOM, FCOMI, FUCOMI, FTST, FXAM and FCMOVcc.
 * Source: Intel SDM vol. 1, 8.3.6; vol. 2, tables 3-21 (FCOM), 3-22 (FCOMI), 3-48 (FXAM).
 */

import type { X87Core } from './core.ts';
import { CONTROL_STATUS } from './core.ts';
import { loadDouble, loadInteger, loadSingle } from './load.ts';
import {
  KIND_DENORMAL,
  KIND_INFINITY,
  KIND_NORMAL,
  KIND_QNAN,
  KIND_SNAN,
  KIND_UNSUPPORTED,
  KIND_ZERO,
  kindOf,
} from './nan.ts';
import { C0, C1, C2, C3, DE, EFLAGS_CF, EFLAGS_PF, EFLAGS_ZF, IE } from './state.ts';

const CONDITIONS_WORD = (C0 | C2 | C3) << 16;
const UNORDERED = C0 | C2 | C3;

/** In the result of a compare: an unmasked exception; the conditions are set, but nothing is popped. */
const UNMASKED = 1;

/** FCOM/FUCOM ST(i), with 0, 1 or 2 pops. */
export function compareRegister(x: X87Core, i: number, quiet: boolean, pops: number): void {
  x.clearC1();
  const result = compareWithRegister(x, i, quiet);
  finish(x, result, pops);
}

/** FCOM(P) m32fp. */
export function compareSingle(x: X87Core, bits: number, pops: number): void {
  const wasDenormal = loadSingle(x.temp, bits);
  compareMemory(x, wasDenormal, pops);
}

/** FCOM(P) m64fp. */
export function compareDouble(x: X87Core, lo: number, hi: number, pops: number): void {
  const wasDenormal = loadDouble(x.temp, lo, hi);
  compareMemory(x, wasDenormal, pops);
}

/** FICOM(P) m16int, m32int, sign-extended by the caller. */
export function compareInteger(x: X87Core, value: number, pops: number): void {
  loadInteger(x.temp, value, value >> 31);
  compareMemory(x, false, pops);
}

/** FTST. */
export function test(x: X87Core): void {
  x.temp[0] = x.temp[1] = x.temp[2] = 0;
  compareMemory(x, false, 0);
}

/** FCOMI(P)/FUCOMI(P). Returns ZF, PF and CF as EFLAGS bits. */
export function compareToFlags(x: X87Core, i: number, quiet: boolean, pop: boolean): number {
  const result = compareWithRegister(x, i, quiet);
  if (pop && (result & UNMASKED) === 0) x.pop();
  return (result & C0 ? EFLAGS_CF : 0) | (result & C2 ? EFLAGS_PF : 0) | (result & C3 ? EFLAGS_ZF : 0);
}

function compareWithRegister(x: X87Core, i: number, quiet: boolean): number {
  if (x.isEmpty(0) || x.isEmpty(i)) {
    x.clearC1();
    return x.underflow() ? UNORDERED : UNORDERED | UNMASKED;
  }
  const words = x.words;
  const b = x.register(i);
  return compare(x, words[b + 2], words[b + 1], words[b], false, quiet);
}

/** Against temp. */
function compareMemory(x: X87Core, wasDenormal: boolean, pops: number): void {
  x.clearC1();
  const temp = x.temp;
  let result: number;
  if (x.isEmpty(0)) result = x.underflow() ? UNORDERED : UNORDERED | UNMASKED;
  else result = compare(x, temp[0], temp[1], temp[2], wasDenormal, false);
  finish(x, result, pops);
}

function finish(x: X87Core, result: number, pops: number): void {
  const conditions = result & UNORDERED;
  x.words[CONTROL_STATUS] = (x.words[CONTROL_STATUS] & ~CONDITIONS_WORD) | (conditions << 16);
  if (result & UNMASKED) return;
  if (pops > 0) x.pop();
  if (pops > 1) x.pop();
}

/** ST(0) against b: C3, C2, C0 as FCOM sets them. */
function compare(
  x: X87Core,
  signExponentB: number,
  hiB: number,
  loB: number,
  wasDenormal: boolean,
  quiet: boolean,
): number {
  const words = x.words;
  const a = x.register(0);
  const signExponentA = words[a + 2];
  const hiA = words[a + 1];
  const loA = words[a];
  const kindA = kindOf(signExponentA, hiA, loA);
  const kindB = kindOf(signExponentB, hiB, loB);
  if (kindA >= KIND_QNAN || kindB >= KIND_QNAN) {
    if ((!quiet || kindA >= KIND_SNAN || kindB >= KIND_SNAN) && x.raise(IE) !== 0) return UNORDERED | UNMASKED;
    return UNORDERED;
  }
  let stop = 0;
  if ((wasDenormal || kindA === KIND_DENORMAL || kindB === KIND_DENORMAL) && x.raise(DE) !== 0) stop = UNMASKED;
  if (kindA === KIND_ZERO && kindB === KIND_ZERO) return C3;
  if ((signExponentA ^ signExponentB) & 0x8000) return signExponentA & 0x8000 ? C0 | stop : stop;
  // A pseudo-denormal has the exponent 0, and the value of exponent 1.
  const exponentA = signExponentA & 0x7fff || (hiA < 0 ? 1 : 0);
  const exponentB = signExponentB & 0x7fff || (hiB < 0 ? 1 : 0);
  let isLess: boolean;
  if (exponentA !== exponentB) isLess = exponentA < exponentB;
  else if (hiA !== hiB) isLess = hiA >>> 0 < hiB >>> 0;
  else if (loA !== loB) isLess = loA >>> 0 < loB >>> 0;
  else return C3 | stop;
  return isLess === ((signExponentA & 0x8000) === 0) ? C0 | stop : stop;
}

/** FXAM: the class of ST(0) in C3, C2, C0, its sign in C1. Source: Intel SDM vol. 2, table 3-48. */
export function examine(x: X87Core): void {
  const words = x.words;
  const at = x.register(0);
  let result = words[at + 2] & 0x8000 ? C1 : 0;
  if (x.isEmpty(0)) {
    result |= C3 | C0;
  } else {
    switch (kindOf(words[at + 2], words[at + 1], words[at])) {
      case KIND_NORMAL:
        result |= C2;
        break;
      case KIND_ZERO:
        result |= C3;
        break;
      case KIND_DENORMAL:
        result |= C3 | C2;
        break;
      case KIND_INFINITY:
        result |= C2 | C0;
        break;
      case KIND_UNSUPPORTED:
        break;
      default:
        result |= C0;
    }
  }
  words[CONTROL_STATUS] = (words[CONTROL_STATUS] & ~(CONDITIONS_WORD | (C1 << 16))) | (result << 16);
}

/** FCMOVcc ST(0), ST(i); the condition is the caller's. An empty register is a stack fault whatever the condition. */
export function conditionalMove(x: X87Core, i: number, condition: boolean): void {
  if (x.isEmpty(0) || x.isEmpty(i)) {
    x.clearC1();
    if (x.underflow()) x.setIndefinite(0);
  } else if (condition) {
    const words = x.words;
    const from = x.register(i);
    x.store(x.register(0), words[from + 2], words[from + 1], words[from]);
  }
}
