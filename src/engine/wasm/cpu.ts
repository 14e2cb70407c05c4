/**
 * What the meaning of an instruction is written against (semantics/): the operands of the instruction at hand, flags, memory, and
 * the function that is being written. The interpreter's handlers and translated regions are two implementations of it.
 *
 * The rule that makes faults precise: all that may fault (`read`, `translate`, `modify` of memory) comes before anything that the
 * guest can see is written.
 */

import type { Flags, IntegerSize } from './flags.ts';
import type { FunctionBuilder } from './function-builder.ts';
import type { AtomicOperation, Node } from './nodes.ts';

/** The field of an instruction that names a register: reg, rm, VEX.vvvv, or the upper half of an immediate byte. */
export type RegisterField = 0 | 1 | 2 | 3;

/** Where an operand comes from. `size` in bytes; an `xmm` of 32 is a YMM register. */
export type Operand =
  | { readonly kind: 'gpr'; readonly size: IntegerSize; readonly field: RegisterField }
  | { readonly kind: 'fixed'; readonly size: IntegerSize; readonly gpr: number }
  | { readonly kind: 'immediate'; readonly size: IntegerSize }
  | { readonly kind: 'one'; readonly size: IntegerSize }
  | { readonly kind: 'memory'; readonly size: number }
  | { readonly kind: 'xmm'; readonly size: number; readonly field: RegisterField }
  | { readonly kind: 'mmx'; readonly size: 8; readonly field: RegisterField }
  | { readonly kind: 'segment'; readonly size: 2 }
  | { readonly kind: 'other'; readonly type: string };

export type Access = 'read' | 'write' | 'modify';

/** What `modify` can do; 'negate' not under LOCK. */
export type Modification = AtomicOperation | 'negate';

/** Low and high. */
export type Pair = readonly [Node, Node];

export interface Cpu {
  readonly f: FunctionBuilder;
  readonly flags: Flags;
  readonly operands: readonly Operand[];
  /** Size of the first operand. */
  readonly size: IntegerSize;
  /** The decoder's operand size: of what PUSH, LEAVE and their like move. */
  readonly instructionSize: IntegerSize;
  /** A LOCK prefix is there and the operand is memory. */
  readonly locked: boolean;

  /** Integer operand as i64: registers (the selectors of segments too) and memory zero-extended, immediates sign-extended. Register reads are not kept: `f.let` them. */
  read(operand: number): Node;
  /** The low bytes of `value` become the operand; a 4-byte register write clears the upper half. Memory: may fault. */
  write(operand: number, value: Node): void;
  /** operand = operand op value, atomically if locked; the old value, kept and zero-extended. cmpxchg: `value` is what is expected (zero-extended), `replacement` the new one. */
  modify(operand: number, operation: Modification, value: Node, replacement?: Node): Node;

  /** A general register by number. `size` 1 is the low byte. */
  gpr(number: number, size: IntegerSize): Node;
  setGpr(number: number, size: IntegerSize, value: Node): void;

  /** Address of the memory operand, i64, kept. */
  address(operand: number): Node;
  /** Address that a general register and a displacement make, as it is now: for `translate`, before a register is written. */
  based(register: number, displacement: number): Node;
  /** Offset in memory 0 (i32, kept) of `size` (at most 64) bytes at a guest address; leaves with a page fault if there is none. */
  translate(address: Node, size: number, access: Access): Node;
  /** i64, zero-extended; `at` from `translate`. */
  load(at: Node, size: IntegerSize): Node;
  /** `at` from `translate` for writing. */
  store(at: Node, size: IntegerSize, value: Node): void;

  /** `modify` of memory at an address and its offset from `translate`, behind which nothing has been written: it may leave. */
  modifyAt(address: Node, at: Node, size: IntegerSize, operation: Modification, value: Node, replacement?: Node): Node;

  /**
   * Two quadwords at an address that is a multiple of 16, and at its offset from `translate`, behind which nothing has been written: what is
   * there, low one first and kept; if that is as expected, the replacement is there now. Locked: while no other vCPU does this. Others may
   * change one of the two meanwhile: the low one is exchanged first, and put back if the high one is not as expected any more. (Both changed
   * by others in between, or the new low one read there: quirks.md.)
   */
  exchangePair(address: Node, at: Node, expected: Pair, replacement: Pair): Pair;

  /** Vector operand as v128 (MMX register, memory of 4 or 8 bytes: the rest zero). Kept if memory. */
  readVector(operand: number): Node;
  /** Register: all 128 bits. Memory: the operand's size. MMX register: 64 bits, and the exponent of all ones. */
  writeVector(operand: number, value: Node): void;
  /** XMM register by number. */
  xmm(number: number): Node;
  setXmm(number: number, value: Node): void;
  /** First of all in an instruction of the vector registers: leaves with #NM if CR0.TS is set. */
  requireVectors(): void;
  /** An operation of x86/sse-exact.ts, by a call out of WebAssembly: the result, kept. Leaves with #XM for an unmasked exception. */
  exactVector(operation: Node, a: Node, b: Node): Node;
  /** The same for operands of one or two halves, up to three of them: all lanes at once. */
  exactVectors(operation: Node, ...operands: readonly (readonly Node[])[]): readonly Node[];
  /** v128 load and store at an offset of memory 0. */
  loadVector(at: Node): Node;
  storeVector(at: Node, size: 4 | 8 | 16, value: Node): void;
  /** Leaves with #GP(0) unless the address is a multiple of 16, or 32. */
  requireAligned(address: Node, alignment?: 16 | 32): void;

  /** Upper half of a YMM register operand. */
  readUpper(operand: number): Node;
  writeUpper(operand: number, value: Node): void;
  /** Upper half of a YMM register by number. */
  upper(number: number): Node;
  setUpper(number: number, value: Node): void;
  /** 32 bytes at an offset from `translate`. */
  storeHalves(at: Node, low: Node, high: Node): void;
  /** `requireVectors` of VEX: #UD before it unless XCR0 has SSE and AVX. */
  requireAvx(): void;

  /** A word of the vCPU's state (layout.ts), which may be anything that is not a register. */
  state(offset: number, size: 4 | 8): Node;
  setState(offset: number, size: 4 | 8, value: Node): void;
  /** Divides high:low by the divisor (not 0) into two I64 locals; leaves with #DE when the quotient does not fit. */
  wideDivide(signed: boolean, high: Node, low: Node, divisor: Node, quotient: Node, remainder: Node): void;
  /** A string instruction has a REP prefix: i32, 0 or not. */
  repeated(): Node;
  /** Offset in memory 0 if a translation for `access` is at hand, else -1: i32, kept. Never leaves. */
  quickly(address: Node, access: Access): Node;
  /** Leaves so that the instruction starts again: it has said in the registers how far it is, and somebody wants something. */
  pause(): void;
  /** Leaves with an exception at this instruction: vector, without or with error code 0. */
  raise(vector: number): void;
}
