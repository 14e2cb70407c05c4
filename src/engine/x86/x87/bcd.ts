/**
 * Packed BCD: FBLD and FBSTP. Ten bytes: 18 digits, two a byte, lowest first; the sign is bit 7 of the last byte.
 * bigint is at home here: nothing but old COBOL run-time systems uses these.
 * Source: Intel SDM vol. 1, 4.7 and table 4-4; vol. 2, FBLD, FBSTP.
 */

import type { X87Core } from './core.ts';
import { CONTROL_STATUS } from './core.ts';
import { loadInteger, pushExtended } from './load.ts';
import { CARRIED, ROUNDED_UP, roundToInteger } from './round.ts';
import { C1, IE, PE } from './state.ts';

const BCD_MAX = 999_999_999_999_999_999n;

/** FBLD: operand in transfer[0..2] (10 bytes). Digits above 9 count as what they are; the CPU's result is undefined. */
export function pushBcd(x: X87Core): void {
  const transfer = x.transfer;
  let value = 0n;
  for (let digit = 17; digit >= 0; digit--) {
    value = value * 10n + BigInt((transfer[digit >> 3] >>> (4 * (digit & 7))) & 15);
  }
  const sign = transfer[2] & 0x8000;
  loadInteger(x.temp, Number(BigInt.asIntN(32, value)), Number(value >> 32n));
  pushExtended(x, sign | x.temp[0], x.temp[1], x.temp[2]);
}

/** FBSTP: result in transfer[0..2] (10 bytes). False: nothing is written or popped. */
export function storeBcd(x: X87Core): boolean {
  x.clearC1();
  if (x.isEmpty(0)) {
    if (!x.underflow()) return false;
    storeBcdIndefinite(x);
  } else if (!bcdOf(x)) {
    if (x.raise(IE) !== 0) return false;
    storeBcdIndefinite(x);
  }
  x.pop();
  return true;
}

function storeBcdIndefinite(x: X87Core): void {
  x.transfer[0] = 0;
  x.transfer[1] = 0xc0000000;
  x.transfer[2] = 0xffff;
}

function bcdOf(x: X87Core): boolean {
  const words = x.words;
  const at = x.register(0);
  const sign = words[at + 2] & 0x8000;
  const exponent = words[at + 2] & 0x7fff;
  const hi = words[at + 1];
  if ((exponent !== 0 && hi >= 0) || exponent >= 16383 + 63) return false;
  const rounding = (words[CONTROL_STATUS] >>> 10) & 3;
  const rounded = roundToInteger(x.temp, rounding, sign, exponent === 0 ? 1 : exponent, hi, words[at]);
  let value = (BigInt(x.temp[1] >>> 0) << 32n) | BigInt(x.temp[2] >>> 0);
  if (rounded & CARRIED || value > BCD_MAX) return false;
  const transfer = x.transfer;
  transfer[0] = transfer[1] = 0;
  transfer[2] = sign;
  for (let digit = 0; value !== 0n; digit++) {
    transfer[digit >> 3] |= Number(value % 10n) << (4 * (digit & 7));
    value /= 10n;
  }
  if (rounded !== 0) x.raise(rounded & ROUNDED_UP ? PE | C1 : PE);
  return true;
}
