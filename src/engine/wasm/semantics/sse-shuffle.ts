/**
 * Shuffles, unpacks, blends, inserts and extracts. Source: Intel SDM vol. 2, the page of each mnemonic.
 *
 * An immediate is a number only where the instruction is known (translated code): there it becomes a shuffle. The interpreter reads
 * it from the micro-op and computes the byte numbers for a swizzle, field by field: a multiplication puts a field of two bits at
 * bits 6 and 7 of its lane, a second one repeats its number in the lane's bytes.
 */

import { i32, i64, type Node, select, shuffle } from '../nodes.ts';
import { i8x16, i16x8, i32x4, i64x2, v128 } from '../simd.ts';
import type { Meaning } from './common.ts';
import {
  type Binary,
  type ByImmediate,
  binary,
  byImmediate,
  byImmediateByte,
  IOTA,
  immediateByte,
  joinLow,
  lanes,
  mapTo,
  pick,
  readAligned,
  repeated,
  vectors,
  writeI32,
  ZERO_VECTOR,
} from './sse-common.ts';

export const bytesOf = (size: number, numbers: readonly number[]): number[] =>
  numbers.flatMap((number) => Array.from({ length: size }, (_, byte) => number * size + byte));
const field = (immediate: number, at: number): number => (immediate >> (2 * at)) & 3;
const FOUR = [0, 1, 2, 3];

/** Bit numbers 6 of four fields of two bits. */
const TO_BIT_6 = [64, 16, 4, 1];
const doublewordNumbers = (immediate: Node): Node => {
  const fields = i32x4.shrU(i32x4.mul(i32x4.splat(immediate), lanes(4, TO_BIT_6)), i32.const(6));
  const numbers = v128.and(fields, repeated(4, 3));
  return i32x4.add(i32x4.mul(numbers, repeated(4, 0x04040404)), repeated(4, 0x03020100));
};

const shuffleDoublewords: ByImmediate = (_a, b, immediate) =>
  byImmediate(
    immediate,
    (known) =>
      shuffle(
        b,
        b,
        bytesOf(
          4,
          FOUR.map((at) => field(known, at)),
        ),
      ),
    (read) => pick(b, doublewordNumbers(read)),
  );

/** PSHUFLW and PSHUFHW: four words of a half, the other half stays. */
const shuffleWords =
  (high: boolean): ByImmediate =>
  (_a, b, immediate) =>
    byImmediate(
      immediate,
      (known) => {
        const moved = FOUR.map((at) => field(known, at) + (high ? 4 : 0));
        return shuffle(b, b, bytesOf(2, high ? [...FOUR, ...moved] : [...moved, 4, 5, 6, 7]));
      },
      (read) => {
        const none = [0, 0, 0, 0];
        const multipliers = high ? [...none, ...TO_BIT_6] : [...TO_BIT_6, ...none];
        const fields = i16x8.shrU(i16x8.mul(i16x8.splat(read), lanes(2, multipliers)), i32.const(6));
        const numbers = v128.and(fields, repeated(2, 3));
        const first = (number: number): number => (2 * number + 1) * 256 + 2 * number;
        const base = high ? [0, 1, 2, 3, 4, 4, 4, 4] : [0, 0, 0, 0, 4, 5, 6, 7];
        return pick(b, i16x8.add(i16x8.mul(numbers, repeated(2, 0x0202)), lanes(2, base.map(first))));
      },
    );

/** Two of a, then two of b. */
const shuffleFloats: ByImmediate = (a, b, immediate) =>
  byImmediate(
    immediate,
    (known) =>
      shuffle(
        a,
        b,
        bytesOf(
          4,
          FOUR.map((at) => field(known, at) + (at < 2 ? 0 : 4)),
        ),
      ),
    (read) => {
      const low = pick(a, doublewordNumbers(read));
      const high = pick(b, doublewordNumbers(read));
      return shuffle(low, high, bytesOf(8, [0, 3]));
    },
  );

const shuffleDoubles: ByImmediate = (a, b, immediate) =>
  byImmediate(
    immediate,
    (known) => shuffle(a, b, bytesOf(8, [known & 1, 2 + ((known >> 1) & 1)])),
    (read) => {
      const half = (value: Node, bit: number): Node => {
        const chosen = i64.extendI32U(i32.and(i32.shrU(read, i32.const(bit)), i32.const(1)));
        const numbers = i64.add(i64.mul(chosen, i64.const(0x08080808, 0x08080808)), i64.const(0x03020100, 0x07060504));
        return pick(value, i64x2.splat(numbers));
      };
      return joinLow(half(a, 0), half(b, 1));
    },
  );

/** Lanes whose bit of the immediate is set come from b. */
const blend =
  (size: 2 | 4 | 8): ByImmediate =>
  (a, b, immediate) =>
    byImmediate(
      immediate,
      (known) => {
        const numbers = Array.from({ length: 16 / size }, (_, lane) => lane + ((known >> lane) & 1 ? 16 / size : 0));
        return shuffle(a, b, bytesOf(size, numbers));
      },
      (read) => v128.bitselect(b, a, laneMask(size, read)),
    );

/** Lanes of ones where the immediate has its bit set. */
function laneMask(size: 2 | 4 | 8, immediate: Node): Node {
  if (size === 2) {
    const bits = lanes(2, [1, 2, 4, 8, 16, 32, 64, 128]);
    return i16x8.eq(v128.and(i16x8.splat(immediate), bits), bits);
  }
  const bits = lanes(4, size === 4 ? [1, 2, 4, 8] : [1, 1, 2, 2]);
  return i32x4.eq(v128.and(i32x4.splat(immediate), bits), bits);
}

/** PBLENDVB and its like: the top bits of the mask's lanes choose b. */
export const VARIABLE_BLENDS: Readonly<Record<string, (mask: Node) => Node>> = {
  pblendvb: (mask) => i8x16.shrS(mask, i32.const(7)),
  blendvps: (mask) => i32x4.shrS(mask, i32.const(31)),
  blendvpd: (mask) => i64x2.shrS(mask, i32.const(63)),
};
/** With the mask in XMM0. */
const variableBlend = (spread: (mask: Node) => Node): Meaning =>
  binary((a, b, cpu) => v128.bitselect(b, a, spread(cpu.xmm(0))));

/** PALIGNR: bytes from number `immediate` on of b, then a. */
const alignRight: ByImmediate = (a, b, immediate) =>
  byImmediate(
    immediate,
    (known) => {
      if (known >= 32) return ZERO_VECTOR;
      const numbers = Array.from({ length: 16 }, (_, byte) => byte + (known & 15));
      return known < 16 ? shuffle(b, a, numbers) : shuffle(a, ZERO_VECTOR, numbers);
    },
    (read) => {
      const numbers = i8x16.addSatU(IOTA, i8x16.splat(read));
      return v128.or(pick(b, numbers), pick(a, i8x16.sub(numbers, repeated(1, 16))));
    },
  );

/** PSLLDQ and PSRLDQ. */
export const shiftBytes =
  (left: boolean) =>
  (value: Node, immediate: Node): Node =>
    byImmediate(
      immediate,
      (known) => {
        const count = Math.min(known, 16);
        const numbers = Array.from({ length: 16 }, (_, byte) => (left ? byte + 16 - count : byte + count));
        return left ? shuffle(ZERO_VECTOR, value, numbers) : shuffle(value, ZERO_VECTOR, numbers);
      },
      (read) => {
        if (!left) return pick(value, i8x16.addSatU(IOTA, i8x16.splat(read)));
        const count = select(read, i32.const(16), i32.ltU(read, i32.const(16)));
        return pick(value, i8x16.sub(IOTA, i8x16.splat(count)));
      },
    );
const shiftOwnBytes =
  (left: boolean): Meaning =>
  (cpu) => {
    const immediate = immediateByte(cpu, 1);
    cpu.writeVector(0, shiftBytes(left)(cpu.f.let(cpu.readVector(0)), immediate));
  };

/** Byte numbers of one lane of `size` bytes, from the low bits of the immediate, again and again. */
function laneNumbers(size: 1 | 2 | 4, immediate: Node): Node {
  const number = i32.and(immediate, i32.const(16 / size - 1));
  if (size === 1) return i8x16.splat(number);
  if (size === 2) return i16x8.splat(i32.add(i32.mul(number, i32.const(0x0202)), i32.const(0x0100)));
  return i32x4.splat(i32.add(i32.mul(number, i32.const(0x04040404)), i32.const(0x03020100)));
}

/** PEXTRB, PEXTRW, PEXTRD, EXTRACTPS. */
export const extract =
  (size: 1 | 2 | 4, laneMax: number): Meaning =>
  (cpu) => {
    const immediate = immediateByte(cpu, 2);
    const value = cpu.f.let(cpu.readVector(1));
    const get = size === 1 ? i8x16.extractLaneU : size === 2 ? i16x8.extractLaneU : i32x4.extractLane;
    writeI32(
      cpu,
      0,
      byImmediate(
        immediate,
        (known) => get(value, known & laneMax),
        (read) => get(pick(value, laneNumbers(size, i32.and(read, i32.const(laneMax)))), 0),
      ),
    );
  };

/** PEXTRD and PEXTRQ are one form. */
export const extractWide: Meaning = (cpu) => {
  const destination = cpu.operands[0];
  if (destination.kind === 'other' || destination.size !== 8) {
    extract(4, 3)(cpu);
    return;
  }
  const immediate = immediateByte(cpu, 2);
  const value = cpu.f.let(cpu.readVector(1));
  cpu.write(
    0,
    byImmediate(
      immediate,
      (known) => i64x2.extractLane(value, known & 1),
      (read) => select(i64x2.extractLane(value, 1), i64x2.extractLane(value, 0), i32.and(read, i32.const(1))),
    ),
  );
};

/** PINSRB and PINSRW. `from`: the operand behind the one that keeps its other lanes. */
export const insert =
  (size: 1 | 2, laneMax: number, from = 1): Meaning =>
  (cpu) => {
    const value = cpu.f.let(i32.wrap(cpu.read(from)));
    const immediate = immediateByte(cpu, from + 1);
    const old = cpu.f.let(cpu.readVector(from - 1));
    const shape = size === 1 ? i8x16 : i16x8;
    cpu.writeVector(
      0,
      byImmediate(
        immediate,
        (known) => shape.replaceLane(old, known & laneMax, value),
        (read) => {
          const number = shape.splat(i32.and(read, i32.const(laneMax)));
          const numbers = size === 1 ? IOTA : lanes(2, [0, 1, 2, 3, 4, 5, 6, 7]);
          return v128.bitselect(shape.splat(value), old, shape.eq(numbers, number));
        },
      ),
    );
  };

/** PINSRD and PINSRQ are one form. */
export const insertWide =
  (from: 1 | 2): Meaning =>
  (cpu) => {
    const source = cpu.operands[from];
    const wide = source.kind !== 'other' && source.size === 8;
    const value = cpu.f.let(cpu.read(from));
    const immediate = immediateByte(cpu, from + 1);
    const old = cpu.f.let(cpu.readVector(from - 1));
    const result = byImmediate(
      immediate,
      (known) => (wide ? i64x2.replaceLane(old, known & 1, value) : i32x4.replaceLane(old, known & 3, i32.wrap(value))),
      (read) => {
        const number = i32x4.splat(i32.and(read, i32.const(wide ? 1 : 3)));
        const splat = wide ? i64x2.splat(value) : i32x4.splat(i32.wrap(value));
        return v128.bitselect(splat, old, i32x4.eq(lanes(4, wide ? [0, 0, 1, 1] : FOUR), number));
      },
    );
    cpu.writeVector(0, result);
  };

/** INSERTPS: bits 6-7 lane of a register source, 4-5 of the destination, 0-3 lanes to clear. */
export const insertFloat =
  (from: 1 | 2): Meaning =>
  (cpu) => {
    const b = readAligned(cpu, from);
    const immediate = immediateByte(cpu, from + 1);
    const old = cpu.f.let(cpu.readVector(from - 1));
    const lane = cpu.operands[from].kind === 'memory' ? i32.const(0) : i32.shrU(immediate, i32.const(6));
    const value = pick(b, laneNumbers(4, lane));
    const at = i32x4.splat(i32.and(i32.shrU(immediate, i32.const(4)), i32.const(3)));
    const inserted = v128.bitselect(value, old, i32x4.eq(lanes(4, FOUR), at));
    cpu.writeVector(0, v128.andNot(inserted, laneMask(4, immediate)));
  };

/** MPSADBW: sums of differences of four bytes of b with eight neighbouring groups of four of a. */
const sumsOfDifferences: ByImmediate = (a, b, immediate) => {
  const group = i32.and(immediate, i32.const(3));
  const fixed = pick(b, i32x4.splat(i32.add(i32.mul(group, i32.const(0x04040404)), i32.const(0x03020100))));
  const first = i8x16.splat(i32.and(immediate, i32.const(4)));
  // Groups that start at bytes 0 to 3, and at 4 to 7.
  const low = pick(a, i8x16.add(lanes(1, [0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6]), first));
  const high = pick(a, i8x16.add(lanes(1, [4, 5, 6, 7, 5, 6, 7, 8, 6, 7, 8, 9, 7, 8, 9, 10]), first));
  const sums = (groups: Node): Node => {
    const difference = v128.or(i8x16.subSatU(groups, fixed), i8x16.subSatU(fixed, groups));
    return i32x4.extaddPairwiseI16x8U(i16x8.extaddPairwiseI8x16U(difference));
  };
  return i16x8.narrowI32x4U(sums(low), sums(high));
};

const interleave =
  (size: 1 | 2 | 4 | 8, high: boolean): Binary =>
  (a, b) => {
    const count = 16 / size;
    const first = high ? count / 2 : 0;
    const numbers = Array.from({ length: count }, (_, lane) => first + (lane >> 1) + (lane & 1) * count);
    return shuffle(a, b, bytesOf(size, numbers));
  };

/** Both halves: MMX takes the upper half of the low ones for PUNPCKH. */
export const UNPACK_LOW: Readonly<Record<string, Binary>> = {
  bw: interleave(1, false),
  wd: interleave(2, false),
  dq: interleave(4, false),
};

/** The top bit of an index clears the byte, the others above the fourth do not count. */
export const shuffleBytes =
  (indexBits: number): Binary =>
  (a, b) =>
    pick(a, v128.and(b, repeated(1, 0x80 | indexBits)));

export const SHUFFLE: Readonly<Record<string, Binary>> = {
  punpcklbw: UNPACK_LOW['bw'],
  punpcklwd: UNPACK_LOW['wd'],
  punpckldq: UNPACK_LOW['dq'],
  punpcklqdq: interleave(8, false),
  punpckhbw: interleave(1, true),
  punpckhwd: interleave(2, true),
  punpckhdq: interleave(4, true),
  punpckhqdq: interleave(8, true),
  unpcklps: interleave(4, false),
  unpckhps: interleave(4, true),
  unpcklpd: interleave(8, false),
  unpckhpd: interleave(8, true),
  pshufb: shuffleBytes(15),
};
export const SHUFFLE_BY_IMMEDIATE: Readonly<Record<string, ByImmediate>> = {
  shufps: shuffleFloats,
  pblendw: blend(2),
  palignr: alignRight,
};
/** Of b alone. */
export const SHUFFLE_ONE_BY_IMMEDIATE: Readonly<Record<string, ByImmediate>> = {
  pshufd: shuffleDoublewords,
  pshuflw: shuffleWords(false),
  pshufhw: shuffleWords(true),
};
/** Each half takes its own bits of the immediate. */
export const SHUFFLE_BY_IMMEDIATE_BITS = {
  shufpd: shuffleDoubles,
  blendps: blend(4),
  blendpd: blend(8),
  mpsadbw: sumsOfDifferences,
} as const;

export const SSE_SHUFFLE: Readonly<Record<string, Meaning>> = vectors({
  ...mapTo(SHUFFLE, binary),
  ...mapTo({ ...SHUFFLE_BY_IMMEDIATE, ...SHUFFLE_ONE_BY_IMMEDIATE, ...SHUFFLE_BY_IMMEDIATE_BITS }, byImmediateByte),
  ...mapTo(VARIABLE_BLENDS, variableBlend),
  pslldq: shiftOwnBytes(true),
  psrldq: shiftOwnBytes(false),
  pextrb: extract(1, 15),
  pextrw: extract(2, 7),
  pextrd: extractWide,
  'pextrd/pextrq Ey,Vdq,Ib': extractWide,
  extractps: extract(4, 3),
  pinsrb: insert(1, 15),
  pinsrw: insert(2, 7),
  'pinsrd/pinsrq Vdq,Ey,Ib': insertWide(1),
  insertps: insertFloat(1),
});
