/** Integer arithmetic, logic and shifts with VEX, and what AVX2 added to them. Source: Intel SDM vol. 2, the page of each mnemonic. */

import type { Cpu } from '../cpu.ts';
import { CF, ZF } from '../flags.ts';
import { i32, i64, type Node, select, shuffle } from '../nodes.ts';
import { i32x4, i64x2, v128 } from '../simd.ts';
import { halvesOf, halvesOfOne, readHalves, withVex, writeHalves } from './avx-common.ts';
import type { Meaning } from './common.ts';
import { immediateByte, mapTo, repeated } from './sse-common.ts';
import {
  HORIZONTAL,
  LANEWISE,
  LANEWISE_UNARY,
  leastWord,
  OF_XMM,
  SHIFT_BY_COUNT,
  SHIFT_BY_VECTOR,
  WIDEN,
} from './sse-integer.ts';
import { shiftBytes } from './sse-shuffle.ts';

/** operand 0 = operand 1 shifted by the immediate: VEX.vvvv names the destination. */
const shiftByImmediate =
  (shift: (a: Node, count: Node, cpu: Cpu) => Node): Meaning =>
  (cpu) => {
    const count = immediateByte(cpu, 2);
    writeHalves(
      cpu,
      0,
      readHalves(cpu, 1).map((half) => shift(half, count, cpu)),
    );
  };

/** Each lane by a count of its own. WebAssembly has no such shift: lane by lane. */
function shiftLanes(size: 4 | 8, shift: (value: Node, count: Node) => Node, fill: boolean): Meaning {
  const [shape, bits] = size === 4 ? [i32x4, i32.const(32)] : [i64x2, i64.small(64)];
  return halvesOf((a, counts, { f }) => {
    let result = a;
    for (let lane = 0; lane < 16 / size; lane++) {
      const count = f.let(shape.extractLane(counts, lane));
      const value = shape.extractLane(a, lane);
      if (fill) {
        const most = i32.const(31);
        result = i32x4.replaceLane(result, lane, shift(value, select(count, most, i32.ltU(count, most))));
      } else {
        const isSmall = size === 4 ? i32.ltU(count, bits) : i64.ltU(count, bits);
        const zero = size === 4 ? i32.const(0) : i64.small(0);
        result = shape.replaceLane(result, lane, select(shift(value, count), zero, isSmall));
      }
    }
    return result;
  });
}

/** The upper half of a wide result comes from the bytes behind. */
const widen =
  (ofLow: (a: Node) => Node): Meaning =>
  (cpu) => {
    const [source] = readHalves(cpu, 1);
    const destination = cpu.operands[0];
    if (destination.kind !== 'xmm' || destination.size !== 32) {
      writeHalves(cpu, 0, [ofLow(source)]);
      return;
    }
    const operand = cpu.operands[1];
    const behind = operand.kind === 'other' ? 0 : operand.size / 2;
    const next = shuffle(
      source,
      source,
      Array.from({ length: 16 }, (_, byte) => (byte + behind) & 15),
    );
    writeHalves(cpu, 0, [ofLow(source), ofLow(next)]);
  };

/** ZF: the operands have no bit in common; CF: the second has none outside the first. Of the bits in `mask`. */
const testBits =
  (mask: Node | null): Meaning =>
  (cpu) => {
    const b = readHalves(cpu, 1);
    const a = readHalves(cpu, 0);
    const none = (combine: (a: Node, b: Node) => Node): Node => {
      const all = a.map((half, i) => combine(half, b[i])).reduce((x, y) => v128.or(x, y));
      return i32.eqz(v128.anyTrue(mask === null ? all : v128.and(all, mask)));
    };
    const zero = none(v128.and);
    const carry = none((x, y) => v128.andNot(y, x));
    const bits = i32.or(i32.mul(zero, i32.const(ZF)), i32.mul(carry, i32.const(CF)));
    cpu.flags.explicit(cpu.f.let(i64.extendI32U(bits)));
  };

const shiftsByImmediate = Object.fromEntries(
  Object.entries(SHIFT_BY_COUNT).map(([name, shift]) => [`${name} Hx,Ux,Ib`, shiftByImmediate(shift)]),
);

export const AVX_INTEGER: Readonly<Record<string, Meaning>> = withVex({
  ...mapTo({ ...LANEWISE, ...HORIZONTAL, ...OF_XMM, ...SHIFT_BY_VECTOR }, halvesOf),
  ...mapTo(LANEWISE_UNARY, halvesOfOne),
  ...shiftsByImmediate,
  'pslldq Hx,Ux,Ib': shiftByImmediate(shiftBytes(true)),
  'psrldq Hx,Ux,Ib': shiftByImmediate(shiftBytes(false)),
  ...mapTo(WIDEN, widen),
  psllvd: shiftLanes(4, i32.shl, false),
  psrlvd: shiftLanes(4, i32.shrU, false),
  psravd: shiftLanes(4, i32.shrS, true),
  psllvq: shiftLanes(8, i64.shl, false),
  psrlvq: shiftLanes(8, i64.shrU, false),
  phminposuw: halvesOfOne(leastWord),
  ptest: testBits(null),
  testps: testBits(repeated(4, -0x80000000)),
  testpd: testBits(repeated(4, 0, -0x80000000)),
});
