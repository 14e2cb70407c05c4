/** Moves of vectors, and between vectors and general registers. Source: Intel SDM vol. 2, the page of each mnemonic. */

import { i32, i64, type Node, shuffle } from '../nodes.ts';
import { i8x16, i32x4, i64x2 } from '../simd.ts';
import type { Meaning } from './common.ts';
import {
  fromI64,
  joinLow,
  mapTo,
  readAligned,
  readUnaligned,
  unary,
  vectors,
  writeAligned,
  writeI32,
} from './sse-common.ts';

const RDI = 7;

const moveAligned: Meaning = (cpu) => writeAligned(cpu, 0, readAligned(cpu, 1));
const moveUnaligned: Meaning = (cpu) => cpu.writeVector(0, readUnaligned(cpu, 1));

/** MOVSS, MOVSD: between registers the upper part stays, a load clears it. */
function moveScalar(merge: (old: Node, value: Node) => Node): Meaning {
  return (cpu) => {
    const value = readUnaligned(cpu, 1);
    const both = cpu.operands[0].kind === 'xmm' && cpu.operands[1].kind === 'xmm';
    cpu.writeVector(0, both ? merge(cpu.readVector(0), value) : value);
  };
}

/** Lane 0 of `value`, the other lanes of `old`. */
export const mergeF32 = (old: Node, value: Node): Node =>
  shuffle(old, value, [16, 17, 18, 19, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
export const mergeF64 = (old: Node, value: Node): Node =>
  shuffle(old, value, [16, 17, 18, 19, 20, 21, 22, 23, 8, 9, 10, 11, 12, 13, 14, 15]);

/** Low or high half from memory, or to it. */
const loadHalf =
  (lane: 0 | 1): Meaning =>
  (cpu) => {
    const value = cpu.read(1);
    cpu.writeVector(0, i64x2.replaceLane(cpu.readVector(0), lane, value));
  };
export const storeHalf =
  (lane: 0 | 1): Meaning =>
  (cpu) =>
    cpu.write(0, i64x2.extractLane(cpu.readVector(1), lane));

/** MOVHLPS: the low half becomes the other's high half. */
const moveHighToLow: Meaning = (cpu) => {
  const a = cpu.readVector(0);
  const b = cpu.readVector(1);
  cpu.writeVector(0, shuffle(a, b, [24, 25, 26, 27, 28, 29, 30, 31, 8, 9, 10, 11, 12, 13, 14, 15]));
};
const moveLowToHigh: Meaning = (cpu) => cpu.writeVector(0, joinLow(cpu.readVector(0), cpu.readVector(1)));

export const fromInteger: Meaning = (cpu) => cpu.writeVector(0, fromI64(cpu.read(1)));
export const toInteger: Meaning = (cpu) => cpu.write(0, i64x2.extractLane(cpu.readVector(1), 0));

/** MOVQ of XMM registers: the upper half is cleared. */
export const moveLow: Meaning = (cpu) => {
  const value = readUnaligned(cpu, 1);
  const { kind } = cpu.operands[1];
  cpu.writeVector(0, kind === 'memory' ? value : i64x2.replaceLane(value, 1, i64.small(0)));
};

const mask =
  (bitmask: (a: Node) => Node): Meaning =>
  (cpu) =>
    writeI32(cpu, 0, bitmask(cpu.readVector(1)));

/**
 * Bytes whose mask has its top bit go to [rDI]. The other bytes are not written, but all of them can fault.
 * Source: measured on AMD Zen; Intel SDM vol. 2, MASKMOVDQU, leaves it open.
 */
export function maskedStore(bytes: 8 | 16): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const value = f.let(cpu.readVector(1));
    const left = f.let(i8x16.bitmask(cpu.readVector(2)));
    if (bytes === 8) f.set(left, i32.and(left, i32.const(0xff)));
    const base = f.let(cpu.gpr(RDI, 8));
    cpu.translate(base, bytes, 'write');
    f.block((done) => {
      f.loop((next) => {
        f.brIf(done, i32.eqz(left));
        const number = f.let(i32.ctz(left));
        const at = cpu.translate(f.let(i64.add(base, i64.extendI32U(number))), 1, 'write');
        cpu.store(at, 1, i64.extendI32U(i8x16.extractLaneU(i8x16.swizzle(value, i8x16.splat(number)), 0)));
        f.set(left, i32.and(left, i32.sub(left, i32.const(1))));
        f.br(next);
      });
    });
  };
}

const duplicate =
  (numbers: readonly number[]) =>
  (a: Node): Node =>
    shuffle(
      a,
      a,
      numbers.flatMap((number) => [0, 1, 2, 3].map((byte) => 4 * number + byte)),
    );
export const DUPLICATE: Readonly<Record<string, (a: Node) => Node>> = {
  movsldup: duplicate([0, 0, 2, 2]),
  movshdup: duplicate([1, 1, 3, 3]),
  movddup: (a) => joinLow(a, a),
};

/** The top bits of lanes. */
export const BITMASKS: Readonly<Record<string, (a: Node) => Node>> = {
  movmskps: i32x4.bitmask,
  movmskpd: i64x2.bitmask,
  pmovmskb: i8x16.bitmask,
};

/** Not a vector instruction: CR0.TS does not matter. */
const storeInteger: Meaning = (cpu) => cpu.write(0, cpu.read(1));

export const SSE_MOVES: Readonly<Record<string, Meaning>> = {
  movnti: storeInteger,
  ...vectors({
    movaps: moveAligned,
    movapd: moveAligned,
    movdqa: moveAligned,
    movntps: moveAligned,
    movntpd: moveAligned,
    movntdq: moveAligned,
    movntdqa: moveAligned,
    movups: moveUnaligned,
    movupd: moveUnaligned,
    movdqu: moveUnaligned,
    lddqu: moveUnaligned,
    movss: moveScalar(mergeF32),
    movsd: moveScalar(mergeF64),
    'movlps Vq,Mq': loadHalf(0),
    'movlpd Vq,Mq': loadHalf(0),
    'movhps Vq,Mq': loadHalf(1),
    'movhpd Vq,Mq': loadHalf(1),
    'movlps Mq,Vq': storeHalf(0),
    'movlpd Mq,Vq': storeHalf(0),
    'movhps Mq,Vq': storeHalf(1),
    'movhpd Mq,Vq': storeHalf(1),
    movhlps: moveHighToLow,
    movlhps: moveLowToHigh,
    ...mapTo(DUPLICATE, unary),
    'movd/movq Vdq,Ey': fromInteger,
    'movd/movq Ey,Vdq': toInteger,
    'movq Vq,Wq': moveLow,
    'movq Wq,Vq': moveLow,
    movmskps: mask(BITMASKS['movmskps']),
    movmskpd: mask(BITMASKS['movmskpd']),
    'pmovmskb Gy,Ux': mask(BITMASKS['pmovmskb']),
    maskmovdqu: maskedStore(16),
  }),
};
