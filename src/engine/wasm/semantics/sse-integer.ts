/**
 * Integer arithmetic, logic, comparisons and shifts of vectors, SSE2 to SSE4.2. Source: Intel SDM vol. 2, the page of each mnemonic.
 *
 * LANEWISE holds for MMX registers as well: the low half of a result depends on the low halves of the operands only.
 */

import type { Cpu } from '../cpu.ts';
import { CF, ZF } from '../flags.ts';
import { i32, i64, type Node, select, shuffle } from '../nodes.ts';
import { i8x16, i16x8, i32x4, i64x2, v128 } from '../simd.ts';
import type { Meaning } from './common.ts';
import {
  type Binary,
  binary,
  immediateByte,
  mapTo,
  readAligned,
  repeated,
  unary,
  vectors,
  ZERO_VECTOR,
} from './sse-common.ts';

/** Even 32-bit lanes into the low half, where the widening multiplications take them from. */
const evenLanes = (a: Node): Node => shuffle(a, a, [0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11]);
/** The high 16 bits of 32-bit lanes of two vectors. */
const highWords = (low: Node, high: Node): Node =>
  shuffle(low, high, [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31]);
const even16 = (a: Node, b: Node): Node => shuffle(a, b, [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29]);
const odd16 = (a: Node, b: Node): Node => shuffle(a, b, [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31]);
const even32 = (a: Node, b: Node): Node => shuffle(a, b, [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]);
const odd32 = (a: Node, b: Node): Node => shuffle(a, b, [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31]);

/** Sums of the differences of eight bytes each. */
const sumOfDifferences: Binary = (a, b, { f }) => {
  const difference = v128.or(i8x16.subSatU(a, b), i8x16.subSatU(b, a));
  const sums = f.let(i32x4.extaddPairwiseI16x8U(i16x8.extaddPairwiseI8x16U(difference)));
  return v128.and(i64x2.add(sums, i64x2.shrU(sums, i32.const(32))), repeated(4, -1, 0));
};

/** Unsigned bytes of a by signed bytes of b: pairs of products, added with saturation. */
const multiplyAddBytes: Binary = (a, b) => {
  const eight = i32.const(8);
  const even = i16x8.mul(v128.and(a, repeated(2, 0xff)), i16x8.shrS(i16x8.shl(b, eight), eight));
  const odd = i16x8.mul(i16x8.shrU(a, eight), i16x8.shrS(b, eight));
  return i16x8.addSatS(even, odd);
};

/** -32768 by itself is the one product that wasm saturates and x86 does not. */
const multiplyRound: Binary = (a, b) => {
  const least = repeated(2, 0x8000);
  return v128.xor(i16x8.q15mulrSatS(a, b), v128.and(i16x8.eq(a, least), i16x8.eq(b, least)));
};

/** Lanes of a, negated or zeroed by the sign of b. */
const applySign =
  (neg: (a: Node) => Node, lessThan: (a: Node, b: Node) => Node, equal: (a: Node, b: Node) => Node): Binary =>
  (a, b) =>
    v128.andNot(v128.bitselect(neg(a), a, lessThan(b, ZERO_VECTOR)), equal(b, ZERO_VECTOR));

export const LANEWISE: Readonly<Record<string, Binary>> = {
  paddb: i8x16.add,
  paddw: i16x8.add,
  paddd: i32x4.add,
  paddq: i64x2.add,
  psubb: i8x16.sub,
  psubw: i16x8.sub,
  psubd: i32x4.sub,
  psubq: i64x2.sub,
  paddsb: i8x16.addSatS,
  paddsw: i16x8.addSatS,
  paddusb: i8x16.addSatU,
  paddusw: i16x8.addSatU,
  psubsb: i8x16.subSatS,
  psubsw: i16x8.subSatS,
  psubusb: i8x16.subSatU,
  psubusw: i16x8.subSatU,
  pand: v128.and,
  pandn: (a, b) => v128.andNot(b, a),
  por: v128.or,
  pxor: v128.xor,
  pcmpeqb: i8x16.eq,
  pcmpeqw: i16x8.eq,
  pcmpeqd: i32x4.eq,
  pcmpgtb: i8x16.gtS,
  pcmpgtw: i16x8.gtS,
  pcmpgtd: i32x4.gtS,
  pmullw: i16x8.mul,
  pmulhw: (a, b) => highWords(i32x4.extmulLowI16x8S(a, b), i32x4.extmulHighI16x8S(a, b)),
  pmulhuw: (a, b) => highWords(i32x4.extmulLowI16x8U(a, b), i32x4.extmulHighI16x8U(a, b)),
  pmuludq: (a, b) => i64x2.extmulLowI32x4U(evenLanes(a), evenLanes(b)),
  pmaddwd: i32x4.dotI16x8S,
  pmaddubsw: multiplyAddBytes,
  pmulhrsw: multiplyRound,
  pavgb: i8x16.avgrU,
  pavgw: i16x8.avgrU,
  pminub: i8x16.minU,
  pmaxub: i8x16.maxU,
  pminsw: i16x8.minS,
  pmaxsw: i16x8.maxS,
  psadbw: sumOfDifferences,
  psignb: applySign(i8x16.neg, i8x16.ltS, i8x16.eq),
  psignw: applySign(i16x8.neg, i16x8.ltS, i16x8.eq),
  psignd: applySign(i32x4.neg, i32x4.ltS, i32x4.eq),
};

/** The same, of one operand. */
export const LANEWISE_UNARY: Readonly<Record<string, (a: Node) => Node>> = {
  pabsb: i8x16.abs,
  pabsw: i16x8.abs,
  pabsd: i32x4.abs,
};

/** Sums and differences of neighbours: those of a, then those of b. */
export const HORIZONTAL: Readonly<Record<string, Binary>> = {
  phaddw: (a, b) => i16x8.add(even16(a, b), odd16(a, b)),
  phaddd: (a, b) => i32x4.add(even32(a, b), odd32(a, b)),
  phaddsw: (a, b) => i16x8.addSatS(even16(a, b), odd16(a, b)),
  phsubw: (a, b) => i16x8.sub(even16(a, b), odd16(a, b)),
  phsubd: (a, b) => i32x4.sub(even32(a, b), odd32(a, b)),
  phsubsw: (a, b) => i16x8.subSatS(even16(a, b), odd16(a, b)),
  packsswb: i8x16.narrowI16x8S,
  packuswb: i8x16.narrowI16x8U,
  packssdw: i16x8.narrowI32x4S,
};

/** Not of MMX registers. */
export const OF_XMM: Readonly<Record<string, Binary>> = {
  andps: v128.and,
  andpd: v128.and,
  andnps: LANEWISE['pandn'],
  andnpd: LANEWISE['pandn'],
  orps: v128.or,
  orpd: v128.or,
  xorps: v128.xor,
  xorpd: v128.xor,
  packusdw: i16x8.narrowI32x4U,
  pmuldq: (a, b) => i64x2.extmulLowI32x4S(evenLanes(a), evenLanes(b)),
  pmulld: i32x4.mul,
  pcmpeqq: i64x2.eq,
  pcmpgtq: i64x2.gtS,
  pminsb: i8x16.minS,
  pminsd: i32x4.minS,
  pminuw: i16x8.minU,
  pminud: i32x4.minU,
  pmaxsb: i8x16.maxS,
  pmaxsd: i32x4.maxS,
  pmaxuw: i16x8.maxU,
  pmaxud: i32x4.maxU,
};

type Shift = (value: Node, count: Node) => Node;

/** Name, lane width in bits, operation. Counts of a lane's width or more give 0; PSRA fills with the sign then. */
const SHIFTS: readonly (readonly [string, number, Shift])[] = [
  ['psllw', 16, i16x8.shl],
  ['pslld', 32, i32x4.shl],
  ['psllq', 64, i64x2.shl],
  ['psrlw', 16, i16x8.shrU],
  ['psrld', 32, i32x4.shrU],
  ['psrlq', 64, i64x2.shrU],
  ['psraw', 16, i16x8.shrS],
  ['psrad', 32, i32x4.shrS],
];

/** `count`: i64, kept. */
function shifted(name: string, bits: number, shift: Shift, value: Node, count: Node): Node {
  const small = i64.ltU(count, i64.small(bits));
  const narrow = i32.wrap(count);
  if (name.startsWith('psra')) return shift(value, select(narrow, i32.const(bits - 1), small));
  return select(shift(value, narrow), ZERO_VECTOR, small);
}

/** By the low 64 bits of a vector, or by an immediate. */
export const SHIFT_BY_VECTOR: Readonly<Record<string, Binary>> = Object.fromEntries(
  SHIFTS.map(([name, bits, shift]): [string, Binary] => [
    name,
    (a, b, { f }) => shifted(name, bits, shift, a, f.let(i64x2.extractLane(b, 0))),
  ]),
);
/** The count is an i32. */
export const SHIFT_BY_COUNT: Readonly<Record<string, (a: Node, count: Node, cpu: Cpu) => Node>> = Object.fromEntries(
  SHIFTS.map(([name, bits, shift]) => [
    name,
    (a: Node, count: Node, { f }: Cpu) => shifted(name, bits, shift, a, f.let(i64.extendI32U(count))),
  ]),
);
export const SHIFT_BY_IMMEDIATE: Readonly<Record<string, Meaning>> = mapTo(SHIFT_BY_COUNT, (shift) => (cpu) => {
  const count = immediateByte(cpu, 1);
  cpu.writeVector(0, shift(cpu.f.let(cpu.readVector(0)), count, cpu));
});

type Widen = (a: Node) => Node;
const widenings = (
  prefix: string,
  bytes: Widen,
  words: Widen,
  doublewords: Widen,
): readonly (readonly [string, Widen])[] => [
  [`${prefix}bw`, bytes],
  [`${prefix}bd`, (a) => words(bytes(a))],
  [`${prefix}bq`, (a) => doublewords(words(bytes(a)))],
  [`${prefix}wd`, words],
  [`${prefix}wq`, (a) => doublewords(words(a))],
  [`${prefix}dq`, doublewords],
];
/** Of as many low lanes as there is room for. */
export const WIDEN: Readonly<Record<string, Widen>> = Object.fromEntries([
  ...widenings('pmovsx', i16x8.extendLowI8x16S, i32x4.extendLowI16x8S, i64x2.extendLowI32x4S),
  ...widenings('pmovzx', i16x8.extendLowI8x16U, i32x4.extendLowI16x8U, i64x2.extendLowI32x4U),
]);

/** The least word in lane 0 and its number in lane 1: the least of value << 16 | number, which are 32-bit lanes. */
export const leastWord = (a: Node, { f }: Cpu): Node => {
  const low = v128.or(i32x4.shl(i32x4.extendLowI16x8U(a), i32.const(16)), lanesOf(0));
  const upper = shuffle(a, a, [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15]);
  const high = v128.or(i32x4.shl(i32x4.extendLowI16x8U(upper), i32.const(16)), lanesOf(4));
  const four = f.let(i32x4.minU(low, high));
  const two = f.let(
    i32x4.minU(four, shuffle(four, four, [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15])),
  );
  const one = i32x4.minU(two, shuffle(two, two, [4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]));
  const least = f.let(i32x4.extractLane(one, 0));
  return i32x4.replaceLane(ZERO_VECTOR, 0, i32.rotl(least, i32.const(16)));
};

function lanesOf(first: number): Node {
  return repeated(4, first, first + 1, first + 2, first + 3);
}

/** ZF: the operands have no bit in common; CF: the second has none outside the first. */
const testBits: Meaning = (cpu) => {
  const b = readAligned(cpu, 1);
  const a = cpu.f.let(cpu.readVector(0));
  const zero = i32.eqz(v128.anyTrue(v128.and(a, b)));
  const carry = i32.eqz(v128.anyTrue(v128.andNot(b, a)));
  const bits = i32.or(i32.mul(zero, i32.const(ZF)), i32.mul(carry, i32.const(CF)));
  cpu.flags.explicit(cpu.f.let(i64.extendI32U(bits)));
};

export const SSE_INTEGER: Readonly<Record<string, Meaning>> = vectors({
  ...mapTo({ ...LANEWISE, ...HORIZONTAL, ...OF_XMM, ...SHIFT_BY_VECTOR }, binary),
  ...mapTo(LANEWISE_UNARY, unary),
  ...Object.fromEntries(Object.entries(SHIFT_BY_IMMEDIATE).map(([name, meaning]) => [`${name} Ux,Ib`, meaning])),
  ...mapTo(WIDEN, unary),
  phminposuw: unary(leastWord),
  ptest: testBits,
});
