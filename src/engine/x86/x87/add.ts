/**
 * Addition and subtraction of finite numbers with normalized significands.
 *
 * A number comes as a head, biased exponent * 2 + sign (the exponent is below 1 for what was a denormal), and a significand hi.lo
 * with its top bit set. The head is there to keep the arguments few: each costs about a nanosecond where V8 does not inline.
 * 96 bits are enough: when the operands are two or more binades apart, the difference loses one bit at most, and the 32 bits
 * below hold it, a rounding bit and the sticky bit.
 */

import type { X87Core } from './core.ts';
import { CONTROL_STATUS } from './core.ts';
import { roundToRegister } from './round.ts';
import { RC_DOWN } from './state.ts';

const TOP_BIT = 0x80000000 | 0;

/** a + b into the register at a word index. */
export function addNormalized(
  x: X87Core,
  at: number,
  headA: number,
  hiA: number,
  loA: number,
  headB: number,
  hiB: number,
  loB: number,
): void {
  let exponent = headA >> 1;
  let distance = exponent - (headB >> 1);
  // a becomes the one of the larger magnitude.
  if (
    distance < 0 ||
    (distance === 0 && (hiA === hiB ? (loA ^ TOP_BIT) < (loB ^ TOP_BIT) : (hiA ^ TOP_BIT) < (hiB ^ TOP_BIT)))
  ) {
    distance = -distance;
    const hi = hiA;
    hiA = hiB;
    hiB = hi;
    const lo = loA;
    loA = loB;
    loB = lo;
    const head = headA;
    headA = headB;
    headB = head;
    exponent = headA >> 1;
  }
  let ext = 0;
  if (distance !== 0) {
    if (distance < 32) {
      ext = loB << (32 - distance);
      loB = (loB >>> distance) | (hiB << (32 - distance));
      hiB >>>= distance;
    } else if (distance < 64) {
      const count = distance & 31;
      if (count === 0) {
        ext = loB;
        loB = hiB;
      } else {
        ext = (loB >>> count) | (hiB << (32 - count));
        if (loB << (32 - count) !== 0) ext |= 1;
        loB = hiB >>> count;
      }
      hiB = 0;
    } else {
      if (distance === 64) ext = loB === 0 ? hiB : hiB | 1;
      else if (distance < 96) {
        ext = hiB >>> (distance & 31);
        if ((loB | (hiB << (96 - distance))) !== 0) ext |= 1;
      } else ext = 1;
      loB = hiB = 0;
    }
  }
  const sign = (headA & 1) << 15;
  if (((headA ^ headB) & 1) === 0) {
    let lo = (loA + loB) | 0;
    const carryLo = ((loA & loB) | ((loA | loB) & ~lo)) >>> 31;
    let hi = (hiA + hiB + carryLo) | 0;
    if (((hiA & hiB) | ((hiA | hiB) & ~hi)) < 0) {
      ext = (lo << 31) | (ext >>> 1) | (ext & 1);
      lo = (lo >>> 1) | (hi << 31);
      hi = (hi >>> 1) | TOP_BIT;
      exponent++;
    }
    roundToRegister(x, at, sign, exponent, hi, lo, ext);
    return;
  }
  const borrowExt = ext === 0 ? 0 : 1;
  ext = -ext | 0;
  let lo = (loA - loB - borrowExt) | 0;
  const borrowLo = ((~loA & loB) | ((~loA | loB) & lo)) >>> 31;
  let hi = (hiA - hiB - borrowLo) | 0;
  if (hi >= 0) {
    if (hi === 0) {
      if ((lo | ext) === 0) {
        x.clearC1();
        const rounding = (x.words[CONTROL_STATUS] >>> 10) & 3;
        x.store(at, rounding === RC_DOWN ? 0x8000 : 0, 0, 0);
        return;
      }
      hi = lo;
      lo = ext;
      ext = 0;
      exponent -= 32;
      if (hi === 0) {
        hi = lo;
        lo = 0;
        exponent -= 32;
      }
    }
    const count = Math.clz32(hi);
    if (count !== 0) {
      hi = (hi << count) | (lo >>> (32 - count));
      lo = (lo << count) | (ext >>> (32 - count));
      ext <<= count;
      exponent -= count;
    }
  }
  roundToRegister(x, at, sign, exponent, hi, lo, ext);
}
