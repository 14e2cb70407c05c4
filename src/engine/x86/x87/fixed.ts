/**
 * Elementary functions to about 120 bits, in fixed point on bigint.
 *
 * Numbers come in as magnitude * 2^exponent and go out as a Real: more bits than a register holds, to be rounded once, so that the
 * result is the correctly rounded one but for about one case in 2^50. Every function keeps its relative precision where the
 * result is small, and stays on the right side of an exact value next to it (cos of a tiny angle is just below 1), so that directed
 * rounding is right too.
 *
 * Each reduces its argument by a small table (made at the first call) until a dozen terms of the series are enough. bigint
 * multiplications of 128 bits cost about 0.1 us, a call 2 to 3 us: transcendental instructions are rare in 64-bit code, where the
 * libraries do all this with SSE.
 */

/** (-1)^negative * magnitude * 2^exponent; not normalized. */
export interface Real {
  readonly negative: boolean;
  readonly magnitude: bigint;
  readonly exponent: number;
}

/** Fraction bits of the fixed-point numbers below. */
const F = 128;
const FN = 128n;
const ONE = 1n << FN;

/** pi, ln 2 and log2 e with 192 fraction bits. */
const C = 192;
const CN = 192n;
const PI = 0x3243f6a8885a308d313198a2e03707344a4093822299f31d0n;
const LN2 = 0xb17217f7d1cf79abc9e3b39803f2f6af40f343267298b62dn;
const LOG2E = 0x171547652b82fe1777d0ffda0d23a7d11d6aef551bad2b4b1n;

/**
 * The pi of the CPU: 66 bits, 3.243f6a8885a308d3 hexadecimal, scaled by 2^66. Angles are reduced by this number and not by pi, exactly.
 * Source: Intel SDM vol. 1, 8.3.8; AMD's CPUs do the same (measured: FSIN of pi rounded is -2^-64).
 */
const PI_66 = 0xc90fdaa22168c234cn;
/** Scale of pi/2 as PI_66. */
const HALF_PI_SCALE = 67;

/** sqrt(2) with 64 fraction bits, rounded down. */
const SQRT2_64 = 0x16a09e667f3bcc908n;

const FACTORIAL_TERMS = 34;
const ODD_TERMS = 14;
const SINE_TERMS = 16;
const EXP_TERMS = 16;
const LOG_TERMS = 10;
const ATAN_TERMS = 13;
/** Steps of the tables: 1/16 for exponents and arc tangents, 1/32 for logarithms. */
const EXP_STEPS = 16;
const LOG_STEPS = 32;
const ATAN_STEPS = 16;
const LOG_FIRST = -10;
const LOG_LAST = 14;

interface Tables {
  /** 1 / n!. */
  readonly inverseFactorial: readonly bigint[];
  /** 1 / (2n + 1). */
  readonly inverseOdd: readonly bigint[];
  /** 2^(i / EXP_STEPS), i from -EXP_STEPS. */
  readonly power: readonly bigint[];
  /** log2(1 + i / LOG_STEPS), i from LOG_FIRST. */
  readonly log: readonly bigint[];
  /** atan(i / ATAN_STEPS). */
  readonly atan: readonly bigint[];
}

let tables: Tables | undefined;

function makeTables(): Tables {
  const inverseFactorial: bigint[] = [ONE];
  for (let n = 1; n < FACTORIAL_TERMS; n++) inverseFactorial.push(inverseFactorial[n - 1] / BigInt(n));
  const inverseOdd: bigint[] = [];
  for (let n = 0; n < ODD_TERMS; n++) inverseOdd.push(ONE / BigInt(2 * n + 1));
  // The entries come from series of their own, run to the end with 64 bits to spare.
  const wide = F + 64;
  const power: bigint[] = [];
  for (let i = -EXP_STEPS; i <= EXP_STEPS; i++) {
    const y = (LN2 * BigInt(i)) / BigInt(EXP_STEPS);
    let term = 1n << BigInt(wide);
    let sum = term;
    for (let n = 1n; term !== 0n && n < 80n; n++) {
      term = (term * y) / (1n << CN) / n;
      sum += term;
    }
    power.push(sum >> 64n);
  }
  const log: bigint[] = [];
  for (let i = LOG_FIRST; i <= LOG_LAST; i++) {
    const u = (BigInt(i) << BigInt(wide)) / BigInt(2 * LOG_STEPS + i);
    log.push((2n * oddSeries(u, wide, 1n) * LOG2E) >> BigInt(C + 64));
  }
  const atan: bigint[] = [];
  for (let i = 0; i < ATAN_STEPS; i++) {
    atan.push(oddSeries((BigInt(i) << BigInt(wide)) / BigInt(ATAN_STEPS), wide, -1n) >> 64n);
  }
  atan.push(PI >> BigInt(C - F + 2));
  return { inverseFactorial, inverseOdd, power, log, atan };
}

/** u + sign * u^3/3 + u^5/5 ... to the last bit, for the tables. */
function oddSeries(u: bigint, scale: number, sign: bigint): bigint {
  const square = (u * u) >> BigInt(scale);
  let power = u;
  let sum = 0n;
  for (let n = 1n; power !== 0n && n < 20000n; n += 2n) {
    sum += power / n;
    power = sign * ((power * square) / (1n << BigInt(scale)));
  }
  return sum;
}

function ready(): Tables {
  tables ??= makeTables();
  return tables;
}

/** A number of scale 2^-from as one of scale 2^-F. */
function toFixed(value: bigint, from: number): bigint {
  return from >= F ? value >> BigInt(from - F) : value << BigInt(F - from);
}

function bitLength(value: bigint): number {
  const digits = value.toString(16);
  return 4 * digits.length - Math.clz32(Number.parseInt(digits[0], 16)) + 28;
}

// --- sine and cosine

/** Sum of (-1)^k z^k / (2k + odd)!, for sin r / r (odd = 1) and cos r (odd = 0); z = r^2 > 0. Below 1, always. */
function circularSeries(z: bigint, odd: number): bigint {
  const { inverseFactorial } = ready();
  let sum = 0n;
  for (let k = SINE_TERMS; k >= 0; k--) sum = inverseFactorial[2 * k + odd] - ((sum * z) >> FN);
  return sum >= ONE ? ONE - 1n : sum;
}

/** An angle, reduced: quadrant, and the rest r, |r| <= pi/4, never zero, with sin r and cos r. */
export interface Angle {
  readonly quadrant: number;
  readonly sin: Real;
  readonly cos: Real;
}

/** Reduces a positive angle below 2^63. Only the sine or the cosine is computed where only one is wanted. */
export function reduceAngle(magnitude: bigint, exponent: number, wantsSine: number, wantsCosine: number): Angle {
  let quadrant = 0;
  let negative = false;
  if (exponent >= -HALF_PI_SCALE) {
    const scaled = magnitude << BigInt(exponent + HALF_PI_SCALE);
    const turns = (2n * scaled + PI_66) / (2n * PI_66);
    quadrant = Number(turns & 3n);
    const rest = scaled - turns * PI_66;
    negative = rest < 0n;
    magnitude = negative ? -rest : rest;
    exponent = -HALF_PI_SCALE;
  }
  const z = exponent < -2 * F ? 0n : toFixed(magnitude * magnitude, -2 * exponent);
  const isOdd = (quadrant & 1) !== 0;
  const sine = (isOdd ? wantsCosine : wantsSine) ? magnitude * circularSeries(z, 1) : 0n;
  const cosine = (isOdd ? wantsSine : wantsCosine) ? circularSeries(z, 0) : 0n;
  return {
    quadrant,
    sin: { negative, magnitude: sine, exponent: exponent - F },
    cos: { negative: false, magnitude: cosine, exponent: -F },
  };
}

/** a / b to F bits. */
export function quotient(a: Real, b: Real): Real {
  const shift = F + Math.max(0, bitLength(b.magnitude) - bitLength(a.magnitude));
  return {
    negative: a.negative !== b.negative,
    magnitude: (a.magnitude << BigInt(shift)) / b.magnitude,
    exponent: a.exponent - b.exponent - shift,
  };
}

// --- powers and logarithms

/** 2^x - 1 for 0 < |x| < 1. */
export function powerMinusOne(negative: boolean, magnitude: bigint, exponent: number): Real {
  const { inverseFactorial, power } = ready();
  // x = step / EXP_STEPS + f, |f| <= 1/32.
  let step = 0;
  let f = negative ? -magnitude : magnitude;
  let scale = -exponent;
  if (scale <= F) {
    f <<= BigInt(F - scale);
    scale = F;
    step = Number((f * BigInt(2 * EXP_STEPS) + ONE) >> BigInt(F + 1));
    f -= (BigInt(step) << FN) / BigInt(EXP_STEPS);
  }
  if (f === 0n) {
    const exact = power[step + EXP_STEPS] - ONE;
    return { negative, magnitude: exact < 0n ? -exact : exact, exponent: -F };
  }
  const y = f * LN2;
  const fixed = toFixed(y, scale + C);
  let sum = 0n;
  for (let k = EXP_TERMS; k >= 0; k--) sum = inverseFactorial[k + 1] + ((sum * fixed) >> FN);
  // exp(y) - 1 = y * sum
  let result = y * sum;
  let resultScale = scale + C + F;
  if (step !== 0) {
    const factor = power[step + EXP_STEPS];
    result = ((factor - ONE) << BigInt(resultScale)) + result * factor;
    resultScale += F;
  }
  return { negative: result < 0n, magnitude: result < 0n ? -result : result, exponent: -resultScale };
}

/** log2(1 + u') where u = u' / (2 + u') is given with a scale: 2 atanh(u) log2 e; |u| < 1/64. */
function logSeries(u: bigint, scale: number): bigint {
  const { inverseOdd } = ready();
  const z = toFixed(u * u, 2 * scale);
  let sum = 0n;
  for (let k = LOG_TERMS; k >= 0; k--) sum = inverseOdd[k] + ((sum * z) >> FN);
  return 2n * u * sum * LOG2E;
}

/** log2 of a positive number that is not 1; of a power of two, exact. */
export function log2(magnitude: bigint, exponent: number): Real {
  // magnitude * 2^exponent = v * 2^k, v = magnitude / 2^scale in [0.707, 1.414].
  let scale = bitLength(magnitude) - 1;
  const isHigh =
    scale >= 64 ? magnitude >> BigInt(scale - 64) >= SQRT2_64 : magnitude << BigInt(64 - scale) >= SQRT2_64;
  if (isHigh) scale++;
  const k = exponent + scale;
  if ((magnitude & (magnitude - 1n)) === 0n) {
    return { negative: k < 0, magnitude: BigInt(Math.abs(k)), exponent: 0 };
  }
  const one = 1n << BigInt(scale);
  const step = Number((((magnitude - one) * BigInt(2 * LOG_STEPS)) / one + 1n) >> 1n);
  const difference = magnitude - one - (one * BigInt(step)) / BigInt(LOG_STEPS);
  const u = (difference << BigInt(F + 64)) / (2n * magnitude - difference);
  let result = logSeries(u, F + 64);
  const resultScale = F + 64 + F + C;
  const table = ready().log[step - LOG_FIRST] + (BigInt(k) << FN);
  result += table << BigInt(resultScale - F);
  return { negative: result < 0n, magnitude: result < 0n ? -result : result, exponent: -resultScale };
}

/** log2(1 + x) for x > -1, x != 0. */
export function log2Plus1(negative: boolean, magnitude: bigint, exponent: number): Real {
  const size = bitLength(magnitude) + exponent;
  if (size > 2 * F) return log2(magnitude, exponent);
  if (size >= -6) {
    // 1 + x is exact.
    const shift = Math.max(-exponent, 0);
    const x = magnitude << BigInt(exponent + shift);
    return log2((1n << BigInt(shift)) + (negative ? -x : x), -shift);
  }
  // u = x / (2 + x), with the exponent of x taken out of the numerator.
  const x = exponent < -2 * F - 64 ? 0n : toFixed(magnitude, -exponent);
  const u = (magnitude << BigInt(F + 64)) / (2n * ONE + (negative ? -x : x));
  const uScale = -exponent + 64;
  const result = logSeries(u, uScale);
  return { negative, magnitude: result, exponent: -(uScale + F + C) };
}

// --- arc tangent

/** The angle of the point (x, y), 0 to pi: x may be negative, both are non-zero. */
export function arcTangent(
  yMagnitude: bigint,
  yExponent: number,
  xNegative: boolean,
  xMagnitude: bigint,
  xExponent: number,
): Real {
  const { inverseOdd, atan } = ready();
  const distance = yExponent + bitLength(yMagnitude) - xExponent - bitLength(xMagnitude);
  let a = yMagnitude;
  let b = xMagnitude;
  let scaleA = yExponent;
  let scaleB = xExponent;
  const low = Math.min(scaleA, scaleB);
  let isSwapped = distance > 0;
  const isNear = distance > -2 * F && distance < 2 * F;
  if (isNear) {
    a <<= BigInt(scaleA - low);
    b <<= BigInt(scaleB - low);
    scaleA = scaleB = 0;
    isSwapped = a > b;
  }
  if (isSwapped) {
    [a, b] = [b, a];
    [scaleA, scaleB] = [scaleB, scaleA];
  }
  // tan of the angle to the nearer half axis: a/b <= 1. Less the nearest table entry: numerator / denominator.
  let step = 0n;
  let numerator = a;
  let denominator = b;
  if (isNear) {
    const steps = BigInt(ATAN_STEPS);
    step = (2n * steps * a + b) / (2n * b);
    if (step !== 0n) {
      numerator = steps * a - step * b;
      denominator = steps * b + step * a;
    }
  }
  const isBelow = numerator < 0n;
  if (isBelow) numerator = -numerator;
  const shift = F + Math.max(0, numerator === 0n ? 0 : bitLength(denominator) - bitLength(numerator));
  const u = (numerator << BigInt(shift)) / denominator;
  const uScale = shift - (scaleA - scaleB);
  const z = uScale > 3 * F ? 0n : toFixed(u * u, 2 * uScale);
  let sum = 0n;
  for (let k = ATAN_TERMS; k >= 0; k--) sum = inverseOdd[k] - ((sum * z) >> FN);
  if (sum >= ONE) sum = ONE - 1n;
  let result = u * sum;
  let resultScale = uScale + F;
  if (step === 0n && !isSwapped && !xNegative) return { negative: false, magnitude: result, exponent: -resultScale };
  // The rest has a magnitude of 1/32 or more: fixed point will do.
  result = resultScale > 4 * F ? 0n : toFixed(result, resultScale);
  resultScale = F;
  result = atan[Number(step)] + (isBelow ? -result : result);
  if (isSwapped) result = xNegative ? (PI >> BigInt(C - F + 1)) + result : (PI >> BigInt(C - F + 1)) - result;
  else if (xNegative) result = (PI >> BigInt(C - F)) - result;
  return { negative: false, magnitude: result, exponent: -resultScale };
}

/** Multiples of pi as FPATAN gives them for zeros and infinities: eighths of a turn, i.e. numerator * pi / 4. */
export function piQuarters(numerator: bigint): Real {
  return { negative: false, magnitude: PI * numerator, exponent: -C - 2 };
}

/**
 * A Real's leading bits: hi, lo, ext (96 bits, sticky) into temp[1..3]; returns the biased exponent of the result. Only exact numbers
 * have 96 bits or less.
 */
export function leadingBits(temp: Int32Array, real: Real): number {
  const length = bitLength(real.magnitude);
  const top = length > 96 ? real.magnitude >> BigInt(length - 96) : real.magnitude << BigInt(96 - length);
  temp[1] = Number(top >> 64n) | 0;
  temp[2] = Number((top >> 32n) & 0xffffffffn) | 0;
  temp[3] = Number(top & 0xffffffffn) | 0;
  if (length > 96) temp[3] |= 1;
  return real.exponent + length - 1 + 16383;
}
