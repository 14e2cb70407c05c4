/**
 * The vector instructions by name, as nodes.ts has the scalar ones: `i8x16.addSatS(a, b)`.
 *
 * Shift counts are i32 and taken modulo the width of a lane. Masks of comparisons are lanes of all ones.
 * Source of opcodes: WebAssembly Core Specification 2.0, 5.4.9. Nothing of relaxed SIMD is here: its results may differ from host
 * to host.
 */

import { F32, F64, I32, I64, type Node, simd, simdLoad, V128, type ValueType } from './nodes.ts';

type Unary = (a: Node) => Node;
type Binary = (a: Node, b: Node) => Node;

const unary =
  (number: number, type: ValueType = V128): Unary =>
  (a) =>
    simd(number, type, [a]);
const binary =
  (number: number): Binary =>
  (a, b) =>
    simd(number, V128, [a, b]);
const extract =
  (number: number, type: ValueType) =>
  (a: Node, lane: number): Node =>
    simd(number, type, [a], lane);
const replace =
  (number: number) =>
  (a: Node, lane: number, value: Node): Node =>
    simd(number, V128, [a, value], lane);
const load =
  (number: number) =>
  (memory: number, address: Node, offset: number): Node =>
    simdLoad(number, memory, address, offset);

export const v128 = {
  load: load(0),
  /** The rest is zero. */
  load32Zero: load(92),
  load64Zero: load(93),
  not: unary(77),
  and: binary(78),
  /** a & ~b: the operands of PANDN are the other way round. */
  andNot: binary(79),
  or: binary(80),
  xor: binary(81),
  /** Bits of `a` where the mask has ones, of `b` elsewhere. */
  bitselect: (a: Node, b: Node, mask: Node): Node => simd(82, V128, [a, b, mask]),
  anyTrue: unary(83, I32),
} as const;

export const i8x16 = {
  /** Bytes of `a` by the numbers in `indexes`; 0 where one is above 15. */
  swizzle: binary(14),
  splat: unary(15),
  extractLaneS: extract(21, I32),
  extractLaneU: extract(22, I32),
  replaceLane: replace(23),
  eq: binary(35),
  ne: binary(36),
  ltS: binary(37),
  ltU: binary(38),
  gtS: binary(39),
  gtU: binary(40),
  leS: binary(41),
  geS: binary(43),
  abs: unary(96),
  neg: unary(97),
  bitmask: unary(100, I32),
  narrowI16x8S: binary(101),
  narrowI16x8U: binary(102),
  shl: binary(107),
  shrS: binary(108),
  shrU: binary(109),
  add: binary(110),
  addSatS: binary(111),
  addSatU: binary(112),
  sub: binary(113),
  subSatS: binary(114),
  subSatU: binary(115),
  minS: binary(118),
  minU: binary(119),
  maxS: binary(120),
  maxU: binary(121),
  avgrU: binary(123),
} as const;

export const i16x8 = {
  splat: unary(16),
  extractLaneS: extract(24, I32),
  extractLaneU: extract(25, I32),
  replaceLane: replace(26),
  eq: binary(45),
  ne: binary(46),
  ltS: binary(47),
  gtS: binary(49),
  leS: binary(51),
  geS: binary(53),
  extaddPairwiseI8x16U: unary(125),
  abs: unary(128),
  neg: unary(129),
  q15mulrSatS: binary(130),
  bitmask: unary(132, I32),
  narrowI32x4S: binary(133),
  narrowI32x4U: binary(134),
  extendLowI8x16S: unary(135),
  extendLowI8x16U: unary(137),
  extendHighI8x16U: unary(138),
  shl: binary(139),
  shrS: binary(140),
  shrU: binary(141),
  add: binary(142),
  addSatS: binary(143),
  addSatU: binary(144),
  sub: binary(145),
  subSatS: binary(146),
  subSatU: binary(147),
  mul: binary(149),
  minS: binary(150),
  minU: binary(151),
  maxS: binary(152),
  maxU: binary(153),
  avgrU: binary(155),
} as const;

export const i32x4 = {
  splat: unary(17),
  extractLane: extract(27, I32),
  replaceLane: replace(28),
  eq: binary(55),
  ne: binary(56),
  ltS: binary(57),
  gtS: binary(59),
  extaddPairwiseI16x8U: unary(127),
  abs: unary(160),
  neg: unary(161),
  bitmask: unary(164, I32),
  extendLowI16x8S: unary(167),
  extendLowI16x8U: unary(169),
  shl: binary(171),
  shrS: binary(172),
  shrU: binary(173),
  add: binary(174),
  sub: binary(177),
  mul: binary(181),
  minS: binary(182),
  minU: binary(183),
  maxS: binary(184),
  maxU: binary(185),
  dotI16x8S: binary(186),
  extmulLowI16x8S: binary(188),
  extmulHighI16x8S: binary(189),
  extmulLowI16x8U: binary(190),
  extmulHighI16x8U: binary(191),
  truncSatF32x4S: unary(248),
  truncSatF64x2SZero: unary(252),
} as const;

export const i64x2 = {
  splat: unary(18),
  extractLane: extract(29, I64),
  replaceLane: replace(30),
  bitmask: unary(196, I32),
  extendLowI32x4S: unary(199),
  extendLowI32x4U: unary(201),
  shl: binary(203),
  shrS: binary(204),
  shrU: binary(205),
  add: binary(206),
  sub: binary(209),
  eq: binary(214),
  gtS: binary(217),
  extmulLowI32x4S: binary(220),
  extmulLowI32x4U: binary(222),
} as const;

export const f32x4 = {
  splat: unary(19),
  extractLane: extract(31, F32),
  replaceLane: replace(32),
  eq: binary(65),
  ne: binary(66),
  lt: binary(67),
  gt: binary(68),
  le: binary(69),
  ge: binary(70),
  demoteF64x2Zero: unary(94),
  ceil: unary(103),
  floor: unary(104),
  trunc: unary(105),
  nearest: unary(106),
  abs: unary(224),
  neg: unary(225),
  sqrt: unary(227),
  add: binary(228),
  sub: binary(229),
  mul: binary(230),
  div: binary(231),
  /** b < a ? b : a: MINPS with the operands the other way round. */
  pmin: binary(234),
  pmax: binary(235),
  convertI32x4S: unary(250),
} as const;

export const f64x2 = {
  splat: unary(20),
  extractLane: extract(33, F64),
  replaceLane: replace(34),
  eq: binary(71),
  ne: binary(72),
  lt: binary(73),
  gt: binary(74),
  le: binary(75),
  ge: binary(76),
  promoteLowF32x4: unary(95),
  ceil: unary(116),
  floor: unary(117),
  trunc: unary(122),
  nearest: unary(148),
  abs: unary(236),
  neg: unary(237),
  sqrt: unary(239),
  add: binary(240),
  sub: binary(241),
  mul: binary(242),
  div: binary(243),
  pmin: binary(246),
  pmax: binary(247),
  convertLowI32x4S: unary(254),
} as const;
