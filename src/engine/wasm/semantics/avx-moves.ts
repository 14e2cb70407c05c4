/** Moves with VEX, masked ones among them. Source: Intel SDM vol. 2, the page of each mnemonic. */

import type { Cpu } from '../cpu.ts';
import { I32, i32, i64, type Node, select, shuffle } from '../nodes.ts';
import { i32x4, i64x2, v128 } from '../simd.ts';
import { clearingUpper, halvesOfOne, loadHalves, readHalves, withVex, writeHalves } from './avx-common.ts';
import type { Meaning } from './common.ts';
import { joinLow, lanes, mapTo, pick, type Vector, writeI32, ZERO_VECTOR } from './sse-common.ts';
import {
  BITMASKS,
  DUPLICATE,
  fromInteger,
  mergeF32,
  mergeF64,
  moveLow,
  maskedStore as storeBytes,
  storeHalf,
  toInteger,
} from './sse-moves.ts';

const move: Meaning = (cpu) => writeHalves(cpu, 0, readHalves(cpu, 1));

/** #GP(0) unless memory is aligned to the operand's size. */
const moveAligned: Meaning = (cpu) => {
  const index = cpu.operands[0].kind === 'memory' ? 0 : 1;
  const operand = cpu.operands[index];
  if (operand.kind !== 'memory') {
    move(cpu);
    return;
  }
  const size = operand.size as 16 | 32;
  const address = cpu.address(index);
  cpu.requireAligned(address, size);
  if (index === 1) {
    const at = cpu.translate(address, size, 'read');
    writeHalves(cpu, 0, size === 32 ? loadHalves(cpu, at) : [cpu.loadVector(at)]);
    return;
  }
  const [low, high] = readHalves(cpu, 1);
  const at = cpu.translate(address, size, 'write');
  if (size === 32) cpu.storeHalves(at, low, high);
  else cpu.storeVector(at, 16, low);
};

/** Of two registers: the low lane of the last, the others of the one before. */
const merge =
  (mergeLow: (old: Node, value: Node) => Node): Meaning =>
  (cpu) =>
    writeHalves(cpu, 0, [mergeLow(readHalves(cpu, 1)[0], readHalves(cpu, 2)[0])]);

const loadHalf =
  (lane: 0 | 1): Meaning =>
  (cpu) => {
    const value = cpu.f.let(cpu.read(2));
    writeHalves(cpu, 0, [i64x2.replaceLane(readHalves(cpu, 1)[0], lane, value)]);
  };

const HIGH_OF_B = [24, 25, 26, 27, 28, 29, 30, 31, 8, 9, 10, 11, 12, 13, 14, 15];

const bitmask =
  (ofHalf: (a: Node) => Node, bits: number): Meaning =>
  (cpu) => {
    const [low, high] = readHalves(cpu, 1);
    const mask = ofHalf(low);
    writeI32(cpu, 0, high === undefined ? mask : i32.or(mask, i32.shl(ofHalf(high), i32.const(bits))));
  };

// --- masked moves: what is not chosen is not touched, and cannot fault

interface Lanes {
  readonly size: 4 | 8;
  readonly count: 2 | 4;
  readonly bits: (a: Node) => Node;
}
const DOUBLEWORDS: Lanes = { size: 4, count: 4, bits: i32x4.bitmask };
const QUADWORDS: Lanes = { size: 8, count: 2, bits: i64x2.bitmask };

/** The lanes whose top bit is set, as bits. Kept. */
function chosen(cpu: Cpu, { bits, count }: Lanes, [low, high]: Vector): Node {
  const mask = bits(low);
  return cpu.f.let(high === undefined ? mask : i32.or(mask, i32.shl(bits(high), i32.const(count))));
}

/** Runs `body` for the number (i32) of each bit, from the lowest; `at`: the lane's address. */
function eachLane(cpu: Cpu, lane: Lanes, bits: Node, base: Node, body: (number: Node, address: Node) => void): void {
  const { f } = cpu;
  const left = f.temporary(I32);
  f.set(left, bits);
  f.block((done) => {
    f.loop((next) => {
      f.brIf(done, i32.eqz(left));
      const number = f.let(i32.ctz(left));
      const distance = i64.extendI32U(i32.shl(number, i32.const(lane.size === 8 ? 3 : 2)));
      body(number, f.let(i64.add(base, distance)));
      f.set(left, i32.and(left, i32.sub(left, i32.const(1))));
      f.br(next);
    });
  });
}

/** Lane numbers of a half, in 32-bit lanes. */
const numbersOf = ({ size }: Lanes, half: number): Node =>
  size === 4
    ? lanes(
        4,
        [0, 1, 2, 3].map((n) => n + 4 * half),
      )
    : lanes(
        4,
        [0, 0, 1, 1].map((n) => n + 2 * half),
      );

const maskedLoad =
  (lane: Lanes): Meaning =>
  (cpu) => {
    const { f } = cpu;
    const mask = readHalves(cpu, 1);
    const base = cpu.address(2);
    const result = mask.map(() => f.let(ZERO_VECTOR));
    eachLane(cpu, lane, chosen(cpu, lane, mask), base, (number, address) => {
      const value = cpu.load(cpu.translate(address, lane.size, 'read'), lane.size);
      const splat = f.let(lane.size === 4 ? i32x4.splat(i32.wrap(value)) : i64x2.splat(value));
      const here = f.let(i32x4.splat(number));
      result.forEach((half, i) => {
        f.set(half, v128.bitselect(splat, half, i32x4.eq(numbersOf(lane, i), here)));
      });
    });
    writeHalves(cpu, 0, result);
  };

const maskedStore =
  (lane: Lanes): Meaning =>
  (cpu) => {
    const mask = readHalves(cpu, 1);
    const [low, high] = readHalves(cpu, 2);
    const base = cpu.address(0);
    const bits = chosen(cpu, lane, mask);
    // A fault finds nothing stored.
    eachLane(cpu, lane, bits, base, (_number, address) => cpu.translate(address, lane.size, 'write'));
    eachLane(cpu, lane, bits, base, (number, address) => {
      const half = high === undefined ? low : select(high, low, i32.geU(number, i32.const(lane.count)));
      const within = i32.and(number, i32.const(lane.count - 1));
      const first = i32.shl(within, i32.const(lane.size === 8 ? 3 : 2));
      const bytes = i32x4.add(
        i32x4.splat(i32.mul(first, i32.const(0x01010101))),
        lanes(4, [0x03020100, 0x07060504, 0, 0]),
      );
      const value = i64x2.extractLane(pick(half, bytes), 0);
      cpu.store(cpu.translate(address, lane.size, 'write'), lane.size, value);
    });
  };

/** VZEROUPPER, VZEROALL. */
const zero =
  (all: boolean): Meaning =>
  (cpu) => {
    for (let number = 0; number < 16; number++) {
      if (all) cpu.setXmm(number, ZERO_VECTOR);
      cpu.setUpper(number, ZERO_VECTOR);
    }
  };

export const AVX_MOVES: Readonly<Record<string, Meaning>> = withVex({
  movaps: moveAligned,
  movapd: moveAligned,
  movdqa: moveAligned,
  movntps: moveAligned,
  movntpd: moveAligned,
  movntdq: moveAligned,
  movntdqa: moveAligned,
  movups: move,
  movupd: move,
  movdqu: move,
  lddqu: move,
  'movss Vss,Md': move,
  'movss Md,Vss': move,
  'movsd Vsd,Mq': move,
  'movsd Mq,Vsd': move,
  'movss Vss,Hss,Uss': merge(mergeF32),
  'movss Uss,Hss,Vss': merge(mergeF32),
  'movsd Vsd,Hsd,Usd': merge(mergeF64),
  'movsd Usd,Hsd,Vsd': merge(mergeF64),
  'movlps Vq,Hq,Mq': loadHalf(0),
  'movlpd Vq,Hq,Mq': loadHalf(0),
  'movhps Vq,Hq,Mq': loadHalf(1),
  'movhpd Vq,Hq,Mq': loadHalf(1),
  'movlps Mq,Vq': storeHalf(0),
  'movlpd Mq,Vq': storeHalf(0),
  'movhps Mq,Vq': storeHalf(1),
  'movhpd Mq,Vq': storeHalf(1),
  movhlps: merge((a, b) => shuffle(a, b, HIGH_OF_B)),
  movlhps: merge(joinLow),
  ...mapTo(DUPLICATE, halvesOfOne),
  'movd/vmovq Vdq,Ey': clearingUpper(fromInteger),
  'movd/vmovq Ey,Vdq': toInteger,
  'movq Vq,Wq': clearingUpper(moveLow),
  'movq Wq,Vq': clearingUpper(moveLow),
  movmskps: bitmask(BITMASKS['movmskps'], 4),
  movmskpd: bitmask(BITMASKS['movmskpd'], 2),
  pmovmskb: bitmask(BITMASKS['pmovmskb'], 16),
  maskmovdqu: storeBytes(16),
  'maskmovps Vps,Hps,Mps': maskedLoad(DOUBLEWORDS),
  'maskmovpd Vpd,Hpd,Mpd': maskedLoad(QUADWORDS),
  'maskmovps Mps,Hps,Vps': maskedStore(DOUBLEWORDS),
  'maskmovpd Mpd,Hpd,Vpd': maskedStore(QUADWORDS),
  'pmaskmovd Vx,Hx,Mx': maskedLoad(DOUBLEWORDS),
  'pmaskmovq Vx,Hx,Mx': maskedLoad(QUADWORDS),
  'pmaskmovd Mx,Hx,Vx': maskedStore(DOUBLEWORDS),
  'pmaskmovq Mx,Hx,Vx': maskedStore(QUADWORDS),
  zeroupper: zero(false),
  zeroall: zero(true),
});
