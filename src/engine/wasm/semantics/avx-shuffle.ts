/** Broadcasts, permutations, inserts and extracts that came with AVX and AVX2. Source: Intel SDM vol. 2, the page of each mnemonic. */

import { i32, i64, type Node, select, shuffle } from '../nodes.ts';
import { i8x16, i16x8, i32x4, i64x2, v128 } from '../simd.ts';
import {
  clearingUpper,
  halvesOf,
  halvesOfImmediate,
  readHalves,
  shiftedDown,
  wholeOf,
  wholeOfImmediate,
  withVex,
  writeHalves,
} from './avx-common.ts';
import type { Meaning } from './common.ts';
import {
  byImmediate,
  highHalf,
  immediateByte,
  joinLow,
  mapTo,
  pick,
  repeated,
  type Vector,
  ZERO_VECTOR,
} from './sse-common.ts';
import {
  bytesOf,
  extract,
  extractWide,
  insert,
  insertFloat,
  insertWide,
  SHUFFLE,
  SHUFFLE_BY_IMMEDIATE,
  SHUFFLE_BY_IMMEDIATE_BITS,
  SHUFFLE_ONE_BY_IMMEDIATE,
  VARIABLE_BLENDS,
} from './sse-shuffle.ts';

const broadcast =
  (spread: (low: Node) => Node): Meaning =>
  (cpu) => {
    const value = cpu.f.let(spread(readHalves(cpu, 1)[0]));
    const destination = cpu.operands[0];
    writeHalves(cpu, 0, destination.kind === 'xmm' && destination.size === 32 ? [value, value] : [value]);
  };

const spread8 = (a: Node): Node => pick(a, ZERO_VECTOR);
const spread16 = (a: Node): Node => i16x8.splat(i16x8.extractLaneU(a, 0));
const spread32 = (a: Node): Node => i32x4.splat(i32x4.extractLane(a, 0));
const spread64 = (a: Node): Node => joinLow(a, a);

/** Bytes by their numbers among the 32 of two halves. */
const pickOfBoth = ([low, high]: Vector, numbers: Node): Node =>
  v128.or(pick(low, numbers), pick(high, i8x16.sub(numbers, repeated(1, 16))));

const field = (immediate: Node, at: number): Node => i32.and(shiftedDown(immediate, 2 * at), i32.const(3));

/** VPERMQ, VPERMPD: four quadwords by fields of two bits. */
const permuteQuadwords = wholeOfImmediate((_a, b, immediate, { f }) =>
  [0, 1].map((half) =>
    byImmediate(
      immediate,
      (known) => shuffle(b[0], b[1], bytesOf(8, [(known >> (4 * half)) & 3, (known >> (4 * half + 2)) & 3])),
      (read) => {
        const numbers = (at: number): Node =>
          i64.add(
            i64.mul(i64.extendI32U(field(read, at)), i64.const(0x08080808, 0x08080808)),
            i64.const(0x03020100, 0x07060504),
          );
        const both = i64x2.replaceLane(i64x2.splat(numbers(2 * half)), 1, numbers(2 * half + 1));
        return pickOfBoth(b, f.let(both));
      },
    ),
  ),
);

/** Bytes of doublewords by their numbers, which are the low bits of 32-bit lanes. */
const doublewordBytes = (numbers: Node, mask: number): Node =>
  i32x4.add(i32x4.mul(v128.and(numbers, repeated(4, mask)), repeated(4, 0x04040404)), repeated(4, 0x03020100));

/** VPERMD, VPERMPS: the numbers are operand 1. */
const permuteDoublewords = wholeOf((numbers, b, { f }) =>
  numbers.map((half) => pickOfBoth(b, f.let(doublewordBytes(half, 7)))),
);

/** VPERM2F128, VPERM2I128: a half of four, or zero. */
const permuteHalves = wholeOfImmediate((a, b, immediate) => {
  const all = [...a, ...b];
  return [0, 4].map((at) =>
    byImmediate(
      immediate,
      (known) => ((known >> at) & 8 ? ZERO_VECTOR : all[(known >> at) & 3]),
      (read) => {
        const bit = (number: number): Node => i32.and(read, i32.const(1 << (at + number)));
        const chosen = select(select(all[3], all[2], bit(0)), select(all[1], all[0], bit(0)), bit(1));
        return select(ZERO_VECTOR, chosen, bit(3));
      },
    ),
  );
});

const chooseHalf = (immediate: Node, [low, high]: Vector): Node =>
  byImmediate(
    immediate,
    (known) => (known & 1 ? high : low),
    (read) => select(high, low, i32.and(read, i32.const(1))),
  );

const insertHalf: Meaning = (cpu) => {
  const [value] = readHalves(cpu, 2);
  const [low, high] = readHalves(cpu, 1);
  const immediate = immediateByte(cpu, 3);
  writeHalves(cpu, 0, [chooseHalf(immediate, [value, low]), chooseHalf(immediate, [high, value])]);
};

const extractHalf: Meaning = (cpu) => writeHalves(cpu, 0, [chooseHalf(immediateByte(cpu, 2), readHalves(cpu, 1))]);

/** VBLENDVPS and its like: the mask is operand 3. */
const variableBlend =
  (spread: (mask: Node) => Node): Meaning =>
  (cpu) => {
    const b = readHalves(cpu, 2);
    const a = readHalves(cpu, 1);
    const mask = readHalves(cpu, 3);
    writeHalves(
      cpu,
      0,
      a.map((half, i) => v128.bitselect(b[i], half, spread(mask[i]))),
    );
  };

/** VPERMILPD: bit 1 of each quadword chooses. */
const permuteDoubles = (a: Node, control: Node): Node =>
  v128.bitselect(highHalf(a), spread64(a), i64x2.shrS(i64x2.shl(control, i32.const(62)), i32.const(63)));

const { shufpd, blendps, blendpd, mpsadbw } = SHUFFLE_BY_IMMEDIATE_BITS;

export const AVX_SHUFFLE: Readonly<Record<string, Meaning>> = withVex({
  ...mapTo(SHUFFLE, halvesOf),
  ...mapTo({ ...SHUFFLE_BY_IMMEDIATE, ...SHUFFLE_ONE_BY_IMMEDIATE }, (compute) => halvesOfImmediate(compute)),
  ...mapTo(VARIABLE_BLENDS, variableBlend),
  shufpd: halvesOfImmediate(shufpd, 2),
  blendps: halvesOfImmediate(blendps, 4),
  pblendd: halvesOfImmediate(blendps, 4),
  blendpd: halvesOfImmediate(blendpd, 2),
  mpsadbw: halvesOfImmediate(mpsadbw, 3),
  'permilps Vps,Wps,Ib': halvesOfImmediate(SHUFFLE_ONE_BY_IMMEDIATE['pshufd']),
  'permilpd Vpd,Wpd,Ib': halvesOfImmediate(shufpd, 2),
  'permilps Vps,Hps,Wps': halvesOf((a, control) => pick(a, doublewordBytes(control, 3))),
  'permilpd Vpd,Hpd,Wpd': halvesOf(permuteDoubles),
  perm2f128: permuteHalves,
  perm2i128: permuteHalves,
  permq: permuteQuadwords,
  permpd: permuteQuadwords,
  permd: permuteDoublewords,
  permps: permuteDoublewords,
  insertf128: insertHalf,
  inserti128: insertHalf,
  extractf128: extractHalf,
  extracti128: extractHalf,
  broadcastss: broadcast(spread32),
  broadcastsd: broadcast(spread64),
  broadcastf128: broadcast((a) => a),
  broadcasti128: broadcast((a) => a),
  pbroadcastb: broadcast(spread8),
  pbroadcastw: broadcast(spread16),
  pbroadcastd: broadcast(spread32),
  pbroadcastq: broadcast(spread64),
  pextrb: extract(1, 15),
  pextrw: extract(2, 7),
  'pextrd/vpextrq Ey,Vdq,Ib': extractWide,
  extractps: extract(4, 3),
  pinsrb: clearingUpper(insert(1, 15, 2)),
  pinsrw: clearingUpper(insert(2, 7, 2)),
  'pinsrd/vpinsrq Vdq,Hdq,Ey,Ib': clearingUpper(insertWide(2)),
  insertps: clearingUpper(insertFloat(2)),
});
