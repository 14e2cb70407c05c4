/** Random values that find mistakes: corners, small numbers, floating point of all kinds. */

import { randomSource } from '../../src/engine/x86/testing.ts';
import { DATA_VA, HIGH_ALIAS, TRAPS_VA, XCR0 } from './layout.ts';

/** Signed corners as pairs of words. */
export const CORNERS: readonly (readonly [lo: number, hi: number])[] = [
  [0, 0],
  [1, 0],
  [0xffffffff, 0xffffffff],
  [2, 0],
  [0x7f, 0],
  [0x80, 0],
  [0xff, 0],
  [0x7fff, 0],
  [0x8000, 0],
  [0xffff, 0],
  [0x7fffffff, 0],
  [0x80000000, 0],
  [0xffffffff, 0],
  [0, 1],
  [0xffffffff, 0x7fffffff],
  [0, 0x80000000],
  [0xffffff80, 0xffffffff],
  [0xffff8000, 0xffffffff],
  [0x80000000, 0xffffffff],
  [0x55555555, 0x55555555],
  [0xaaaaaaaa, 0xaaaaaaaa],
  [0x01234567, 0x89abcdef],
];

const FLOATS32 = Uint32Array.of(
  ...[0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0xff923456],
  ...[1, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x3f000000, 0x40400000, 0x4f000000, 0x5f000000],
  ...[0x4effffff, 0xcf000000, 0x3f7fffff, 0x3f800001, 0x3effffff, 0x33800000, 0x4b000000, 0x4b800001, 0x7fffffff],
);
const FLOATS64: readonly (readonly [number, number])[] = [
  [0, 0],
  [0, 0x80000000],
  [0, 0x3ff00000],
  [0, 0xbff00000],
  [0, 0x7ff00000],
  [0, 0xfff00000],
  [0, 0x7ff80000],
  [0, 0xfff80000],
  [1, 0x7ff00000],
  [0x12345678, 0xfff12345],
  [1, 0],
  [1, 0x80000000],
  [0xffffffff, 0x000fffff],
  [0, 0x00100000],
  [0xffffffff, 0x7fefffff],
  [0xffffffff, 0xffefffff],
  [0, 0x3fe00000],
  [0, 0x40080000],
  [0, 0x41e00000],
  [0xffc00000, 0x41dfffff],
  [0, 0x43e00000],
  [0, 0xc3e00000],
  [0xffffffff, 0x3fefffff],
  [1, 0x3ff00000],
  [0, 0x43300000],
  [0, 0x47efffff],
  [0xe0000000, 0x47efffff],
  [0, 0x36a00000],
  [0, 0x38100000],
  [0x20000000, 0x3ff00000],
  [0x10000000, 0x3ff00000],
];

/** Exponents of x87 numbers that matter: sign taken away. */
const EXPONENTS80 = Uint16Array.of(
  0,
  1,
  0x3c01,
  0x3f81,
  0x3ffe,
  0x3fff,
  0x4000,
  0x400e,
  0x401e,
  0x403e,
  0x403f,
  0x407e,
  0x43fe,
  0x7ffe,
  0x7fff,
);

export class Values {
  readonly random: () => number;

  constructor(seed: number) {
    this.random = randomSource(seed);
  }

  below(limit: number): number {
    return this.random() % limit;
  }

  /** True once in so many times. */
  once(in_: number): boolean {
    return this.random() % in_ === 0;
  }

  /** A 64-bit integer into two words. */
  integer(out: Uint32Array, at: number): void {
    const bits = this.random();
    switch (bits & 7) {
      case 0:
      case 1: {
        const [lo, hi] = CORNERS[(bits >>> 8) % CORNERS.length];
        out[at] = lo;
        out[at + 1] = hi;
        return;
      }
      case 2:
        // Small, of either sign.
        out[at] = ((bits >> 3) << 22) >> 22;
        out[at + 1] = (bits >> 3) << 22 < 0 ? 0xffffffff : 0;
        return;
      case 3:
        out[at] = this.random();
        out[at + 1] = 0;
        return;
      case 4: {
        // One bit, or all but one; or a run of ones.
        const shift = (bits >>> 8) & 63;
        const one = 2 ** (shift & 31);
        out[at] = shift < 32 ? one : 0;
        out[at + 1] = shift < 32 ? 0 : one;
        if ((bits & 0x80) !== 0) {
          out[at] = ~out[at];
          out[at + 1] = ~out[at + 1];
        }
        return;
      }
      default:
        out[at] = this.random();
        out[at + 1] = this.random();
    }
  }

  float32(): number {
    const bits = this.random();
    switch (bits & 3) {
      case 0:
        return FLOATS32[(bits >>> 4) % FLOATS32.length];
      case 1:
        return this.random();
      case 2:
        // About 1.
        return ((this.random() & 0x807fffff) | ((110 + ((bits >>> 4) % 36)) << 23)) >>> 0;
      default: {
        const few = (this.random() & 0x80700000) | ((124 + ((bits >>> 4) & 7)) << 23);
        return few >>> 0;
      }
    }
  }

  float64(out: Uint32Array, at: number): void {
    const bits = this.random();
    switch (bits & 3) {
      case 0: {
        const [lo, hi] = FLOATS64[(bits >>> 4) % FLOATS64.length];
        out[at] = lo;
        out[at + 1] = hi;
        return;
      }
      case 1:
        out[at] = this.random();
        out[at + 1] = this.random();
        return;
      case 2:
        out[at] = this.random();
        out[at + 1] = (this.random() & 0x800fffff) | ((1023 - 40 + ((bits >>> 4) % 80)) << 20);
        return;
      default:
        out[at] = 0;
        out[at + 1] = (this.random() & 0x800f0000) | ((1020 + ((bits >>> 4) & 7)) << 20);
    }
  }

  /** Ten bytes of an x87 register, and zeros, at a word. */
  float80(out: Uint32Array, at: number): void {
    const bits = this.random();
    let lo = this.random();
    let hi = this.random() | 0x80000000;
    let exponent = 0x3fff - 64 + ((bits >>> 8) & 127);
    switch (bits & 7) {
      case 0:
        exponent = EXPONENTS80[(bits >>> 8) % EXPONENTS80.length];
        if ((bits & 0x10) !== 0) lo = 0;
        if ((bits & 0x20) !== 0) hi = 0x80000000;
        if ((bits & 0x40) !== 0) hi = (bits & 0x800000) !== 0 ? 0xc0000000 : 0xffffffff;
        break;
      case 1:
        // Zero, infinity, quiet and signalling NaNs, denormals, and encodings that are none of them.
        exponent = (bits & 0x10) !== 0 ? 0 : 0x7fff;
        hi = Uint32Array.of(0, 0x80000000, 0xc0000000, 0x80000001, 0x40000000, 1)[(bits >>> 8) % 6];
        if ((bits & 0x20) !== 0) lo = 0;
        break;
      case 2:
        exponent = bits >>> 17;
        break;
      case 3:
        exponent = bits >>> 17;
        hi = this.random();
        break;
      case 4:
        // Integers and halves.
        exponent = 0x3ffe + ((bits >>> 8) & 15);
        lo = 0;
        hi = (this.random() & 0x7ffc0000) | 0x80000000;
        break;
      default:
        break;
    }
    out[at] = lo;
    out[at + 1] = hi;
    out[at + 2] = exponent | ((bits & 0x8) !== 0 ? 0x8000 : 0);
    out[at + 3] = 0;
  }

  /** Sixteen bytes for a vector register. */
  vector(out: Uint32Array, at: number): void {
    const kind = this.random() % 6;
    for (let i = 0; i < 4; i++) {
      if (kind < 2) out[at + i] = this.float32();
      else if (kind < 4) {
        this.float64(out, at + i);
        i++;
      } else if (kind === 4) {
        this.integer(out, at + i);
        i++;
      } else out[at + i] = this.random();
    }
  }

  /** XSAVE area at a word: the FXSAVE image, the header, the upper halves of the YMM registers. */
  xsave(out: Uint32Array, at: number): void {
    this.fxsave(out, at);
    out.fill(0, at + 128, at + 144);
    out[at + 128] = XCR0;
    for (let i = 0; i < 16; i++) this.vector(out, at + 144 + 4 * i);
  }

  /** FXSAVE image at a word, 128 words. */
  fxsave(out: Uint32Array, at: number): void {
    const bits = this.random();
    const masks = (bits & 0xf0) !== 0 ? 0x3f : (bits >>> 8) & 0x3f;
    const control = 0x40 | masks | ((bits & 3) === 0 ? (bits >>> 16) & 0xf00 : 0x300);
    const more = this.random();
    const flags = (more & 3) === 0 ? (more >>> 8) & 0x7f : 0;
    const pending = (flags & ~masks & 0x3f) !== 0 ? 0x8080 : 0;
    const top = (more & 4) !== 0 ? 0 : (more >>> 16) & 7;
    out[at] = control | ((flags | pending | (top << 11) | ((more >>> 12) & 0x4700)) << 16);
    out[at + 1] = (more & 0x18) !== 0 ? 0xff : more >>> 24;
    for (let i = 2; i < 8; i++) out[at + i] = 0;
    const mxcsr = this.random();
    let value = 0x1f80;
    if ((mxcsr & 1) !== 0) value |= (mxcsr >>> 16) & 0x603f;
    if ((mxcsr & 0xe) === 0) value |= (mxcsr >>> 16) & 0x8040;
    if ((mxcsr & 0xf0) === 0) value &= ~0x1f80 | (mxcsr >>> 8);
    out[at + 6] = value & 0xffff;
    for (let i = 0; i < 8; i++) this.float80(out, at + 8 + 4 * i);
    for (let i = 0; i < 16; i++) this.vector(out, at + 40 + 4 * i);
    for (let i = 104; i < 128; i++) out[at + i] = 0;
  }

  /** Fills memory: integers, floating point, addresses. */
  memory(out: Uint32Array): void {
    for (let i = 0; i < out.length; i += 4) {
      const kind = this.random() & 15;
      if (kind < 4) {
        this.integer(out, i);
        this.integer(out, i + 2);
      } else if (kind < 9) this.vector(out, i);
      else if (kind === 9) {
        this.float80(out, i);
        out[i + 3] = this.random();
      } else if (kind < 12) {
        // An address to return to, and one of data.
        out[i] = TRAPS_VA + (this.random() & 0x7ff);
        out[i + 1] = 0;
        out[i + 2] = DATA_VA + 0x1000 + (this.random() & 0x1fff);
        out[i + 3] = (kind & 1) !== 0 ? 0 : Number(HIGH_ALIAS >> 32n);
      } else for (let k = 0; k < 4; k++) out[i + k] = this.random();
    }
  }
}
