/**
 * Single and double precision as the SSE unit rounds them: with any rounding mode, denormals as zeros, flush to zero, and the six
 * exceptions. Values are bit patterns in bigints; speed does not count here, see sse-quick.ts.
 *
 * MXCSR:  15 FTZ | 14-13 RC | 12-7 masks PM UM OM ZM DM IM | 6 DAZ | 5-0 flags PE UE OE ZE DE IE
 *
 * Exceptions come in two kinds: invalid, denormal operand and divide by zero are found in all lanes before any is computed, the
 * others after it. When one of the first kind is not masked, nothing of the second is seen. Source: Intel SDM vol. 1, 10.2.3, 11.5.1
 * to 11.5.3. With an overflow that is not masked, or an underflow, the precision flag tells of a result with exponents of any size.
 * Source: measured.
 */

export const IE = 0x01;
export const DE = 0x02;
export const ZE = 0x04;
export const OE = 0x08;
export const UE = 0x10;
export const PE = 0x20;
const MASK_SHIFT = 7;
const DAZ = 0x40;
const FTZ = 0x8000;

export const NEAREST = 0;
export const DOWN = 1;
export const UP = 2;
export const TO_ZERO = 3;

export interface Format {
  readonly bits: bigint;
  /** Bits of the significand that are stored. */
  readonly fraction: number;
  readonly precision: number;
  /** Exponents of the least and greatest normal numbers. */
  readonly least: number;
  readonly greatest: number;
  readonly sign: bigint;
  readonly exponentMask: bigint;
  readonly fractionMask: bigint;
  /** Makes a NaN quiet. */
  readonly quiet: bigint;
  readonly defaultNan: bigint;
  readonly infinity: bigint;
}

export function format(bits: number, fraction: number): Format {
  const exponentBits = bits - 1 - fraction;
  const greatest = 2 ** (exponentBits - 1) - 1;
  const exponentMask = (1n << BigInt(exponentBits)) - 1n;
  const infinity = exponentMask << BigInt(fraction);
  const quiet = 1n << BigInt(fraction - 1);
  const sign = 1n << BigInt(bits - 1);
  return {
    bits: BigInt(bits),
    fraction,
    precision: fraction + 1,
    least: 1 - greatest,
    greatest,
    sign,
    exponentMask,
    fractionMask: (1n << BigInt(fraction)) - 1n,
    quiet,
    defaultNan: sign | infinity | quiet,
    infinity,
  };
}

export const SINGLE = format(32, 23);
export const DOUBLE = format(64, 52);

/** One instruction's view of MXCSR, and what it finds. */
export class Environment {
  rounding = NEAREST;
  denormalsAreZeros = false;
  flushToZero = false;
  /** Mask bits at the places of the flags. */
  masks = 0x3f;
  /** Exceptions found before and after the operations. */
  before = 0;
  after = 0;
  /** Those of earlier steps of an instruction that does several operations in turn. */
  #settled = 0;

  begin(mxcsr: number): void {
    this.rounding = (mxcsr >>> 13) & 3;
    this.denormalsAreZeros = (mxcsr & DAZ) !== 0;
    this.masks = (mxcsr >>> MASK_SHIFT) & 0x3f;
    this.flushToZero = (mxcsr & FTZ) !== 0 && (this.masks & UE) !== 0;
    this.before = 0;
    this.after = 0;
    this.#settled = 0;
  }

  /** Flags to set. */
  get flags(): number {
    const now = (this.before & ~this.masks) !== 0 ? this.before : this.before | this.after;
    return this.#settled | now;
  }

  /** Whether one of them is not masked. */
  get raises(): boolean {
    return (this.flags & ~this.masks) !== 0;
  }

  /** The next operation of the instruction takes the results of this one. False if an exception ends it here. */
  nextStep(): boolean {
    if (this.raises) return false;
    this.#settled = this.flags;
    this.before = 0;
    this.after = 0;
    return true;
  }
}

export const isNan = (f: Format, a: bigint): boolean => (a & ~f.sign) > f.infinity;
export const isSignalling = (f: Format, a: bigint): boolean => isNan(f, a) && (a & f.quiet) === 0n;
export const isInfinite = (f: Format, a: bigint): boolean => (a & ~f.sign) === f.infinity;
export const isZero = (f: Format, a: bigint): boolean => (a & ~f.sign) === 0n;
export const isNegative = (f: Format, a: bigint): boolean => (a & f.sign) !== 0n;
export function isDenormal(f: Format, a: bigint): boolean {
  const magnitude = a & ~f.sign;
  return magnitude !== 0n && magnitude <= f.fractionMask;
}

/** An operand as the operation sees it. */
export function operand(e: Environment, f: Format, a: bigint): bigint {
  return e.denormalsAreZeros && isDenormal(f, a) ? a & f.sign : a;
}

/** Of a finite number: significand * 2 ^ exponent. */
export function significandOf(f: Format, a: bigint): bigint {
  const fraction = a & f.fractionMask;
  return ((a >> BigInt(f.fraction)) & f.exponentMask) === 0n ? fraction : fraction | (f.fractionMask + 1n);
}
export function exponentOf(f: Format, a: bigint): number {
  const biased = Number((a >> BigInt(f.fraction)) & f.exponentMask);
  return (biased === 0 ? 1 : biased) - f.greatest - f.fraction;
}

/** Leading zeros of a digit. */
const HEX_ZEROS = [4, 3, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0];

export function bitLength(value: bigint): number {
  if (value === 0n) return 0;
  const digits = value.toString(16);
  return 4 * digits.length - HEX_ZEROS[Number.parseInt(digits[0], 16)];
}

/** Whether a magnitude that lies between two numbers goes to the upper one. */
function roundsUp(rounding: number, negative: boolean, odd: boolean, half: boolean, rest: boolean): boolean {
  switch (rounding) {
    case NEAREST:
      return half && (rest || odd);
    case DOWN:
      return negative && (half || rest);
    case UP:
      return !negative && (half || rest);
    default:
      return false;
  }
}

/** value / 2 ^ shift as an integer; `rest`: a little more than value. Whether it was exact is left in `wasExact`. */
export function shiftRight(value: bigint, shift: number, rest: boolean, rounding: number, negative: boolean): bigint {
  if (shift <= 0) {
    wasExact = !rest;
    return value << BigInt(-shift);
  }
  const quotient = value >> BigInt(shift);
  const below = value & ((1n << BigInt(shift)) - 1n);
  const halfBit = 1n << BigInt(shift - 1);
  const half = (below & halfBit) !== 0n;
  const more = rest || (below & (halfBit - 1n)) !== 0n;
  wasExact = !half && !more;
  return roundsUp(rounding, negative, (quotient & 1n) !== 0n, half, more) ? quotient + 1n : quotient;
}
export let wasExact = true;

/**
 * The number nearest to ±(significand * 2 ^ exponent) in the sense of the rounding mode. `rest`: the true magnitude is a little
 * more; the significand must then have two bits more than the precision. It is not 0.
 */
export function round(
  e: Environment,
  f: Format,
  negative: boolean,
  significand: bigint,
  exponent: number,
  rest: boolean,
): bigint {
  const sign = negative ? f.sign : 0n;
  const length = bitLength(significand);
  let top = exponent + length - 1;
  let rounded = shiftRight(significand, length - f.precision, rest, e.rounding, negative);
  if (rounded > f.fractionMask * 2n + 1n) {
    rounded >>= 1n;
    top++;
  }
  if (top >= f.least) {
    if (!wasExact) e.after |= PE;
    if (top <= f.greatest) return sign | (BigInt(top + f.greatest) << BigInt(f.fraction)) | (rounded & f.fractionMask);
    e.after |= wasExact && (e.masks & OE) === 0 ? OE : OE | PE;
    const toInfinity = e.rounding === NEAREST || e.rounding === (negative ? DOWN : UP);
    return sign | (toInfinity ? f.infinity : f.infinity - 1n);
  }
  // Tiny, as it would be with exponents of any size.
  if ((e.masks & UE) === 0) {
    e.after |= wasExact ? UE : UE | PE;
    return sign;
  }
  if (e.flushToZero) {
    e.after |= UE | PE;
    return sign;
  }
  const denormal = shiftRight(significand, f.least - f.fraction - exponent, rest, e.rounding, negative);
  if (!wasExact) e.after |= UE | PE;
  return sign | denormal;
}
