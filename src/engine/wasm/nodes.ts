/**
 * Expressions of WebAssembly: trees of nodes, written in the names of the instructions (`i64.add(a, b)`).
 *
 * A node is computed where it stands in a statement, each time it stands there: `FunctionBuilder.let` gives a value that is used
 * twice, or that must not see later writes, a local of its own. Source of opcodes: WebAssembly Core Specification 2.0, 5.4, and the
 * threads and multi-memory proposals.
 */

export type ValueType = 0x7f | 0x7e | 0x7d | 0x7c | 0x7b;
export const I32: ValueType = 0x7f;
export const I64: ValueType = 0x7e;
export const F32: ValueType = 0x7d;
export const F64: ValueType = 0x7c;
export const V128: ValueType = 0x7b;

export const CONST = 0;
export const LOCAL = 1;
export const GLOBAL = 2;
/** Operands, then the opcode, then immediates. */
export const OPERATION = 3;
/** Operands, opcode, memory argument (alignment, memory, offset). */
export const MEMORY = 4;
export const CALL = 5;
export const CALL_INDIRECT = 6;
/** `if` with a result. */
export const CHOICE = 7;

/** An i32 operand, and a number that is added to it without a carry: a load or store has it as its offset. */
export const WITHIN = 8;

/** Opcodes with a prefix byte stand as prefix << 16 | number. */
export interface Node {
  readonly kind: number;
  readonly type: ValueType;
  readonly opcode: number;
  readonly operands: readonly Node[];
  /** CONST: low word; LOCAL, GLOBAL, CALL: index; MEMORY: offset; WITHIN: what is added; OPERATION: lane or -1. */
  readonly lo: number;
  /** CONST: high word; MEMORY: log2 of the alignment | memory << 8; CALL_INDIRECT: type index. */
  readonly hi: number;
  /** OPERATION i8x16.shuffle and v128.const: 16 bytes. */
  readonly bytes: readonly number[] | null;
}

const NONE: readonly Node[] = [];

function node(kind: number, type: ValueType, opcode: number, operands: readonly Node[], lo: number, hi: number): Node {
  return { kind, type, opcode, operands, lo, hi, bytes: null };
}

export const local = (index: number, type: ValueType): Node => node(LOCAL, type, 0x20, NONE, index, 0);
export const globalGet = (index: number, type: ValueType): Node => node(GLOBAL, type, 0x23, NONE, index, 0);
export const call = (index: number, type: ValueType, ...operands: Node[]): Node =>
  node(CALL, type, 0x10, operands, index, 0);
/** Calls table 0 at the last operand. */
export const callIndirect = (typeIndex: number, type: ValueType, ...operands: Node[]): Node =>
  node(CALL_INDIRECT, type, 0x11, operands, 0, typeIndex);
/** Computes only the chosen side. */
export const choice = (condition: Node, yes: Node, no: Node): Node =>
  node(CHOICE, yes.type, 0x04, [condition, yes, no], 0, 0);
export const select = (yes: Node, no: Node, condition: Node): Node =>
  node(OPERATION, yes.type, 0x1b, [yes, no, condition], -1, 0);

/** `offset` bytes behind the first of a piece of memory, within the piece. */
export const within = (first: Node, offset: number): Node =>
  offset === 0 ? first : node(WITHIN, I32, 0x6a, [first], offset, 0);

type Unary = (a: Node) => Node;
type Binary = (a: Node, b: Node) => Node;
type Load = (memory: number, address: Node, offset: number) => Node;

const unary =
  (opcode: number, type: ValueType): Unary =>
  (a) =>
    node(OPERATION, type, opcode, [a], -1, 0);
const binary =
  (opcode: number, type: ValueType): Binary =>
  (a, b) =>
    node(OPERATION, type, opcode, [a, b], -1, 0);
const load =
  (opcode: number, type: ValueType, align = 0): Load =>
  (memory, address, offset) =>
    node(MEMORY, type, opcode, [address], offset, align | (memory << 8));

/** Of two constants, or null. Values are words. */
type Fold32 = (a: number, b: number) => number;
type Fold64 = (aLo: number, aHi: number, bLo: number, bHi: number, is64: (lo: number, hi: number) => Node) => Node;

const isConst = (a: Node): boolean => a.kind === CONST;
const isZero = (a: Node): boolean => a.kind === CONST && a.lo === 0 && a.hi === 0;
const same = (a: Node, b: Node): boolean => a.kind === LOCAL && b.kind === LOCAL && a.lo === b.lo;
const const32 = (value: number): Node => node(CONST, I32, 0x41, NONE, value | 0, 0);
const const64 = (lo: number, hi: number): Node => node(CONST, I64, 0x42, NONE, lo | 0, hi | 0);

/** A binary operation on i32 that constants are folded in: translated code knows its immediates. */
const folded32 =
  (opcode: number, fold: Fold32, rightZero = false): Binary =>
  (a, b) =>
    isConst(a) && isConst(b)
      ? const32(fold(a.lo, b.lo))
      : rightZero && isZero(b)
        ? a
        : node(OPERATION, I32, opcode, [a, b], -1, 0);
/** The same on i64. `rightZero`: a op 0 = a; `itself`: a op a = a. */
const folded64 =
  (opcode: number, type: ValueType, fold: Fold64, rightZero = false, itself = false): Binary =>
  (a, b) =>
    isConst(a) && isConst(b)
      ? fold(a.lo, a.hi, b.lo, b.hi, const64)
      : (rightZero && isZero(b)) || (itself && same(a, b))
        ? a
        : node(OPERATION, type, opcode, [a, b], -1, 0);

const LOW_WORD_LO = -1;
const and64 = folded64(0x83, I64, (aLo, aHi, bLo, bHi) => const64(aLo & bLo, aHi & bHi), false, true);
const extend32U = (a: Node): Node => (isConst(a) ? const64(a.lo, 0) : node(OPERATION, I64, 0xad, [a], -1, 0));
const wrap64 = (a: Node): Node =>
  isConst(a)
    ? const32(a.lo)
    : a.kind === OPERATION && (a.opcode === 0xad || a.opcode === 0xac)
      ? a.operands[0]
      : node(OPERATION, I32, 0xa7, [a], -1, 0);

function shiftLeft(lo: number, hi: number, count: number): Node {
  if (count === 0) return const64(lo, hi);
  if (count > 31) return const64(0, lo << (count - 32));
  return const64(lo << count, (hi << count) | (lo >>> (32 - count)));
}

/** The low word of a shift to the right; `fill` comes in from above. */
function shiftedRight(lo: number, hi: number, count: number, fill: number): number {
  if (count === 0) return lo;
  if (count === 32) return hi;
  if (count > 31) return (fill << (64 - count)) | (hi >>> (count - 32));
  return (lo >>> count) | (hi << (32 - count));
}

export const i32 = {
  const: const32,
  load: load(0x28, I32),
  load8S: load(0x2c, I32),
  load8U: load(0x2d, I32),
  load16S: load(0x2e, I32),
  load16U: load(0x2f, I32),
  eqz: (a: Node): Node => (isConst(a) ? const32(a.lo === 0 ? 1 : 0) : node(OPERATION, I32, 0x45, [a], -1, 0)),
  eq: folded32(0x46, (a, b) => (a === b ? 1 : 0)),
  ne: folded32(0x47, (a, b) => (a === b ? 0 : 1)),
  ltS: binary(0x48, I32),
  ltU: binary(0x49, I32),
  gtS: binary(0x4a, I32),
  gtU: binary(0x4b, I32),
  leS: binary(0x4c, I32),
  leU: binary(0x4d, I32),
  geS: binary(0x4e, I32),
  geU: binary(0x4f, I32),
  clz: unary(0x67, I32),
  ctz: unary(0x68, I32),
  popcnt: unary(0x69, I32),
  add: folded32(0x6a, (a, b) => a + b, true),
  sub: folded32(0x6b, (a, b) => a - b, true),
  mul: binary(0x6c, I32),
  divS: binary(0x6d, I32),
  divU: binary(0x6e, I32),
  remS: binary(0x6f, I32),
  remU: binary(0x70, I32),
  and: folded32(0x71, (a, b) => a & b),
  or: folded32(0x72, (a, b) => a | b, true),
  xor: folded32(0x73, (a, b) => a ^ b, true),
  shl: folded32(0x74, (a, b) => a << b, true),
  shrS: folded32(0x75, (a, b) => a >> b, true),
  shrU: folded32(0x76, (a, b) => a >>> b, true),
  rotl: binary(0x77, I32),
  rotr: binary(0x78, I32),
  wrap: wrap64,
  truncF32S: unary(0xa8, I32),
  truncF64S: unary(0xaa, I32),
  truncSatF32S: unary(0xfc0000, I32),
  truncSatF64S: unary(0xfc0002, I32),
  reinterpretF32: unary(0xbc, I32),
  extend8S: unary(0xc0, I32),
  extend16S: unary(0xc1, I32),
  atomicLoad: load(0xfe0010, I32, 2),
} as const;

export const i64 = {
  /** A constant of two words. */
  const: const64,
  /** A constant in the range of a signed 32-bit number. */
  small: (value: number): Node => node(CONST, I64, 0x42, NONE, value | 0, value < 0 ? -1 : 0),
  load: load(0x29, I64),
  load8S: load(0x30, I64),
  load8U: load(0x31, I64),
  load16S: load(0x32, I64),
  load16U: load(0x33, I64),
  load32S: load(0x34, I64),
  load32U: load(0x35, I64),
  eqz: (a: Node): Node => (isConst(a) ? const32((a.lo | a.hi) === 0 ? 1 : 0) : node(OPERATION, I32, 0x50, [a], -1, 0)),
  eq: folded64(0x51, I32, (aLo, aHi, bLo, bHi) => const32(aLo === bLo && aHi === bHi ? 1 : 0)),
  ne: folded64(0x52, I32, (aLo, aHi, bLo, bHi) => const32(aLo === bLo && aHi === bHi ? 0 : 1)),
  ltS: binary(0x53, I32),
  ltU: binary(0x54, I32),
  gtS: binary(0x55, I32),
  gtU: binary(0x56, I32),
  leS: binary(0x57, I32),
  leU: binary(0x58, I32),
  geS: binary(0x59, I32),
  geU: binary(0x5a, I32),
  clz: unary(0x79, I64),
  ctz: unary(0x7a, I64),
  popcnt: unary(0x7b, I64),
  add: folded64(
    0x7c,
    I64,
    (aLo, aHi, bLo, bHi) => const64(aLo + bLo, aHi + bHi + ((aLo >>> 0) + (bLo >>> 0) > 0xffffffff ? 1 : 0)),
    true,
  ),
  sub: folded64(
    0x7d,
    I64,
    (aLo, aHi, bLo, bHi) => const64(aLo - bLo, aHi - bHi - (aLo >>> 0 < bLo >>> 0 ? 1 : 0)),
    true,
  ),
  mul: binary(0x7e, I64),
  divS: binary(0x7f, I64),
  divU: binary(0x80, I64),
  remS: binary(0x81, I64),
  remU: binary(0x82, I64),
  /** A mask of the low word becomes the extension of the low word: one instruction, or none. */
  and: (a: Node, b: Node): Node =>
    isConst(b) && b.lo === LOW_WORD_LO && b.hi === 0 && !isConst(a) ? extend32U(wrap64(a)) : and64(a, b),
  or: folded64(0x84, I64, (aLo, aHi, bLo, bHi) => const64(aLo | bLo, aHi | bHi), true, true),
  xor: folded64(0x85, I64, (aLo, aHi, bLo, bHi) => const64(aLo ^ bLo, aHi ^ bHi), true),
  shl: folded64(0x86, I64, (aLo, aHi, count) => shiftLeft(aLo, aHi, count & 63), true),
  shrS: folded64(
    0x87,
    I64,
    (aLo, aHi, count) =>
      const64(shiftedRight(aLo, aHi, count & 63, aHi >> 31), (count & 63) > 31 ? aHi >> 31 : aHi >> (count & 31)),
    true,
  ),
  shrU: folded64(
    0x88,
    I64,
    (aLo, aHi, count) => const64(shiftedRight(aLo, aHi, count & 63, 0), (count & 63) > 31 ? 0 : aHi >>> (count & 31)),
    true,
  ),
  rotl: binary(0x89, I64),
  rotr: binary(0x8a, I64),
  extendI32S: unary(0xac, I64),
  extendI32U: extend32U,
  truncF32S: unary(0xae, I64),
  truncF64S: unary(0xb0, I64),
  truncSatF32S: unary(0xfc0004, I64),
  truncSatF64S: unary(0xfc0006, I64),
  reinterpretF64: unary(0xbd, I64),
  extend8S: unary(0xc2, I64),
  extend16S: unary(0xc3, I64),
  extend32S: unary(0xc4, I64),
} as const;

/** Operations that the two constant tables above and simd.ts do not name: floats. */
export const f32 = {
  load: load(0x2a, F32),
  eq: binary(0x5b, I32),
  ne: binary(0x5c, I32),
  lt: binary(0x5d, I32),
  gt: binary(0x5e, I32),
  le: binary(0x5f, I32),
  ge: binary(0x60, I32),
  abs: unary(0x8b, F32),
  neg: unary(0x8c, F32),
  ceil: unary(0x8d, F32),
  floor: unary(0x8e, F32),
  trunc: unary(0x8f, F32),
  nearest: unary(0x90, F32),
  sqrt: unary(0x91, F32),
  add: binary(0x92, F32),
  sub: binary(0x93, F32),
  mul: binary(0x94, F32),
  div: binary(0x95, F32),
  convertI32S: unary(0xb2, F32),
  convertI64S: unary(0xb4, F32),
  demoteF64: unary(0xb6, F32),
  reinterpretI32: unary(0xbe, F32),
} as const;

export const f64 = {
  load: load(0x2b, F64),
  eq: binary(0x61, I32),
  ne: binary(0x62, I32),
  lt: binary(0x63, I32),
  gt: binary(0x64, I32),
  le: binary(0x65, I32),
  ge: binary(0x66, I32),
  abs: unary(0x99, F64),
  neg: unary(0x9a, F64),
  ceil: unary(0x9b, F64),
  floor: unary(0x9c, F64),
  trunc: unary(0x9d, F64),
  nearest: unary(0x9e, F64),
  sqrt: unary(0x9f, F64),
  add: binary(0xa0, F64),
  sub: binary(0xa1, F64),
  mul: binary(0xa2, F64),
  div: binary(0xa3, F64),
  convertI32S: unary(0xb7, F64),
  convertI64S: unary(0xb9, F64),
  promoteF32: unary(0xbb, F64),
  reinterpretI64: unary(0xbf, F64),
} as const;

/** An instruction of the vector family (prefix FD) by its number; `lane` -1 = none. */
export function simd(number: number, type: ValueType, operands: readonly Node[], lane = -1): Node {
  return node(OPERATION, type, 0xfd0000 | number, operands, lane, 0);
}
/** A vector load (memory argument, no lane). */
export function simdLoad(number: number, memory: number, address: Node, offset: number): Node {
  return node(MEMORY, V128, 0xfd0000 | number, [address], offset, memory << 8);
}
export function v128Const(bytes: readonly number[]): Node {
  return { kind: OPERATION, type: V128, opcode: 0xfd000c, operands: NONE, lo: -1, hi: 0, bytes };
}
/** i8x16.shuffle: lane numbers 0-31. */
export function shuffle(a: Node, b: Node, lanes: readonly number[]): Node {
  return { kind: OPERATION, type: V128, opcode: 0xfd000d, operands: [a, b], lo: -1, hi: 0, bytes: lanes };
}

/** i32/i64 atomic.rmw by operation and access size. Source: threads proposal, binary format. */
export type AtomicOperation = 'add' | 'sub' | 'and' | 'or' | 'xor' | 'xchg' | 'cmpxchg';
const ATOMIC_BASE: Readonly<Record<AtomicOperation, number>> = {
  add: 0x1e,
  sub: 0x25,
  and: 0x2c,
  or: 0x33,
  xor: 0x3a,
  xchg: 0x41,
  cmpxchg: 0x48,
};
/** The old value as i64, zero-extended. The address must be aligned to `size`, or the instruction traps. */
export function atomicRmw(
  operation: AtomicOperation,
  size: 1 | 2 | 4 | 8,
  memory: number,
  address: Node,
  ...values: Node[]
): Node {
  // Order in each family: i32, i64, i32.8, i32.16, i64.8, i64.16, i64.32.
  const variant = size === 8 ? 1 : size === 4 ? 6 : size === 2 ? 5 : 4;
  const align = size === 8 ? 3 : size === 4 ? 2 : size === 2 ? 1 : 0;
  return node(
    MEMORY,
    I64,
    0xfe0000 | (ATOMIC_BASE[operation] + variant),
    [address, ...values],
    0,
    align | (memory << 8),
  );
}

/** Floating-point constants by their bits. */
export function f32Const(bits: number): Node {
  const bytes = [bits & 0xff, (bits >> 8) & 0xff, (bits >> 16) & 0xff, bits >>> 24];
  return { kind: OPERATION, type: F32, opcode: 0x43, operands: NONE, lo: -1, hi: 0, bytes };
}
/** The low word is 0. */
export function f64Const(high: number): Node {
  const bytes = [0, 0, 0, 0, high & 0xff, (high >> 8) & 0xff, (high >> 16) & 0xff, high >>> 24];
  return { kind: OPERATION, type: F64, opcode: 0x44, operands: NONE, lo: -1, hi: 0, bytes };
}
