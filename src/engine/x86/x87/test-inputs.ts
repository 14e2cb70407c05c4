/**
 * Inputs for the tests against a CPU: random states and operands from a seed, with all the special values among them.
 *
 * A case is CASE_WORDS words: the first 160 bytes of an FXSAVE64 image, the memory operand, then flags, AX and what happened.
 * The same layout holds what comes out.
 */

import type { MemoryKind } from './test-operations.ts';

export const CASE_WORDS = 80;
/** Word offsets in a case. */
export const STATE_WORDS = 40;
export const MEMORY = 40;
export const MEMORY_WORDS = 28;
/** Index of the operation, for the recorder. */
export const OPERATION = 68;
export const EFLAGS = 69;
export const AX = 70;
/** 0, or the signal that the instruction died of: 8 for #MF. */
export const FAULT = 71;
export const EFLAGS_MASK = 0x8d5;

/** sfc32, a small fast generator. Source: PractRand by Chris Doty-Humphrey, public domain. */
export class Random {
  private a: number;
  private b = 0x9e3779b9 | 0;
  private c = 0x243f6a88;
  private counter = 1;

  constructor(seed: number) {
    this.a = seed | 0;
    for (let round = 0; round < 20; round++) this.word();
  }

  /** 32 random bits, as an i32. */
  word(): number {
    const sum = (((this.a + this.b) | 0) + this.counter) | 0;
    this.counter = (this.counter + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) | 0;
    return sum;
  }

  below(limit: number): number {
    return (this.word() >>> 0) % limit;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)];
  }
}

const BIAS = 16383;
const TOP_BIT = 0x80000000 | 0;
/** Exponents at the edges of the integer formats and of packed BCD. */
const INTEGER_EXPONENTS = [14, 15, 16, 30, 31, 32, 59, 62, 63, 64];

/** A significand with its top bit set into to[at] (low) and to[at + 1]: bits that like to be ties, carries and short numbers. */
function randomSignificand(random: Random, to: Int32Array, at: number): void {
  let lo = random.word();
  let hi = random.word() | TOP_BIT;
  const bit = random.below(63);
  switch (random.below(10)) {
    case 0:
      lo = 0;
      hi = TOP_BIT;
      break;
    case 1:
      lo = hi = -1;
      break;
    case 2:
      lo = 0;
      break;
    case 3:
      lo = bit < 32 ? -1 << bit : 0;
      hi = bit < 32 ? -1 : -1 << (bit - 32);
      break;
    case 4:
      lo = bit < 32 ? 1 << bit : 0;
      hi = TOP_BIT | (bit < 32 ? 0 : 1 << (bit - 32));
      break;
    case 5:
      lo &= ~0x7ff;
      break;
    case 6:
      lo = (lo & ~0x7ff) | 0x400;
      break;
    case 7:
      hi = (hi & ~0xff) | (random.below(2) << 7);
      lo = random.below(3) - 1;
      break;
  }
  to[at] = lo;
  to[at + 1] = hi;
}

/** An 80-bit value into to[at..at + 2]; often with an exponent close to `near` (none if negative). */
function randomExtended(random: Random, to: Int32Array, at: number, near: number): void {
  randomSignificand(random, to, at);
  const sign = random.below(2) << 15;
  const kind = random.below(40);
  let exponent: number;
  if (kind < 14 && near >= 0) {
    const offset = kind < 10 ? random.below(140) - 70 : random.below(5) - 2;
    exponent = Math.max(1, Math.min(0x7ffe, near + offset));
  } else if (kind < 24) exponent = BIAS + random.below(140) - 70;
  else if (kind < 28) exponent = 1 + random.below(0x7ffe);
  else if (kind === 28) exponent = 1 + random.below(70);
  else if (kind === 29) exponent = 0x7ffe - random.below(70);
  else if (kind === 30) {
    exponent = to[at] = to[at + 1] = 0;
  } else if (kind === 31) {
    exponent = 0;
    to[at + 1] = (to[at + 1] & ~TOP_BIT) >>> random.below(32);
  } else if (kind === 32) exponent = 0;
  else if (kind === 33) {
    exponent = 0x7fff;
    to[at] = 0;
    to[at + 1] = TOP_BIT;
  } else if (kind === 34) {
    exponent = 0x7fff;
    to[at + 1] |= 0x40000000;
  } else if (kind === 35) {
    exponent = 0x7fff;
    to[at + 1] &= ~0x40000000;
    if (random.below(2)) {
      to[at] = random.below(3);
      to[at + 1] = TOP_BIT | random.below(3);
    }
  } else if (kind === 36) {
    exponent = 1 + random.below(0x7fff);
    to[at + 1] &= ~TOP_BIT;
    if (random.below(4) === 0) to[at] = to[at + 1] = 0;
  } else if (kind === 37) {
    exponent = BIAS + random.below(8);
    to[at] = 0;
    to[at + 1] = TOP_BIT | (random.below(256) << 23);
  } else exponent = BIAS + random.pick(INTEGER_EXPONENTS);
  to[at + 2] = sign | exponent;
}

/** Exponent field of a narrow format: near `near`, special, or any. */
function randomField(random: Random, near: number, bias: number, max: number): number {
  const kind = random.below(12);
  if (kind === 0) return 0;
  if (kind === 1) return max;
  if (kind < 4) return random.below(max + 1);
  const center = near < 0 ? bias : near - BIAS + bias;
  return Math.max(0, Math.min(max, center + random.below(140) - 70));
}

function randomFraction(random: Random): number {
  const kind = random.below(5);
  if (kind === 0) return 0;
  if (kind === 1) return -1;
  return kind === 2 ? 1 << random.below(32) : random.word();
}

function randomMemory(random: Random, kind: MemoryKind, to: Int32Array, at: number, near: number): void {
  for (let word = 0; word < MEMORY_WORDS; word++) to[at + word] = random.word();
  switch (kind) {
    case 'm32':
      to[at] = (random.word() & TOP_BIT) | (randomField(random, near, 127, 255) << 23);
      to[at] |= randomFraction(random) & 0x7fffff;
      break;
    case 'm64':
      to[at] = random.below(6) === 0 ? 0 : randomFraction(random);
      to[at + 1] = (random.word() & TOP_BIT) | (randomField(random, near, 1023, 2047) << 20);
      to[at + 1] |= randomFraction(random) & 0xfffff;
      break;
    case 'm80':
      randomExtended(random, to, at, near);
      break;
    case 'int': {
      const shift = random.below(32);
      to[at] = random.pick([to[at], to[at] >> shift, 0, TOP_BIT]);
      to[at + 1] = random.pick([to[at + 1], to[at + 1] >> shift, to[at] >> 31, TOP_BIT, 0]);
      break;
    }
    case 'bcd':
      for (let digit = 0; digit < 24; digit++) {
        const shift = 4 * (digit & 7);
        const value = random.below(16) === 0 ? 15 : random.below(10);
        to[at + (digit >> 3)] = (to[at + (digit >> 3)] & ~(15 << shift)) | (value << shift);
      }
      if (random.below(5) === 0) to[at] = to[at + 1] = 0;
      if (random.below(5) === 0) to[at + 2] &= ~0xff;
      break;
    case 'control':
      if (random.below(2)) to[at] |= 0x3f;
      break;
    case 'image':
    case 'none':
      break;
  }
}

/** Which of ST(0)-ST(7) are in use. */
const STACKS = [0x03, 0x03, 0x03, 0x03, 0x03, 0x7f, 0x7f, 0x7f, 0xff, 0x00, 0x01, 0x02];

/** Fills a case for an operation. */
export function randomCase(random: Random, memory: MemoryKind, operation: number, to: Int32Array, at: number): void {
  const masks = random.below(4) ? 0x3f : random.word() & 0x3f;
  const precision = random.below(3) ? 3 : random.below(4);
  const control = 0x40 | masks | (precision << 8) | (random.below(4) << 10);
  let status = random.word() & 0x7f00;
  if (random.below(3) === 0) status |= random.word() & masks;
  // Now and then an exception is pending.
  if (random.below(200) === 0) status |= random.word() & 0xff;
  to[at] = control | (status << 16);
  const stack = random.below(20) === 0 ? random.word() & 0xff : random.pick(STACKS);
  const top = (status >>> 11) & 7;
  to[at + 1] = ((stack << top) | (stack >>> (8 - top))) & 0xff;
  to.fill(0, at + 2, at + 8);
  randomExtended(random, to, at + 8, -1);
  const near = to[at + 10] & 0x7fff;
  for (let i = 1; i < 8; i++) {
    const register = at + 8 + 4 * i;
    if (i === 1 || i === 3) randomExtended(random, to, register, near);
    else {
      to[register] = i;
      to[register + 1] = TOP_BIT;
      to[register + 2] = BIAS + i;
    }
    to[register + 3] = 0;
  }
  to[at + 11] = 0;
  randomMemory(random, memory, to, at + MEMORY, near);
  to[at + OPERATION] = operation;
  to[at + EFLAGS] = random.word() & EFLAGS_MASK;
  to.fill(0, at + AX, at + CASE_WORDS);
}
