/**
 * The arithmetic flags, computed when somebody asks: (kind, a, b) of the last instruction that wrote them.
 *
 *   FLAGS_SUB       a - b          operands shifted to the top of 64 bits, so that one rule serves all sizes
 *   FLAGS_ADD       a + b          the same
 *   FLAGS_RESULT    a = result, shifted to the top; b = CF, AF and OF where they stand in RFLAGS
 *   FLAGS_EXPLICIT  a = the six flags where they stand in RFLAGS
 *
 * `kind` is one of these | log2(size in bytes) << 2: PF and AF need the size. With FLAGS_STEP (INC, DEC) CF is not that of the
 * operation but the FLAGS_STEP_CARRY bit of `kind`. Source of the rules: Intel SDM vol. 1, 3.4.3.1.
 */

import { FunctionBuilder } from './function-builder.ts';
import { choice, I32, I64, i32, i64, local, type Node } from './nodes.ts';

export const FLAGS_SUB = 0;
export const FLAGS_ADD = 1;
export const FLAGS_RESULT = 2;
export const FLAGS_EXPLICIT = 3;
export const FLAGS_STEP = 0x10;
export const FLAGS_STEP_CARRY = 0x20;
const STEP_CARRY_AT = 5;

export const CF = 0x001;
export const PF = 0x004;
export const AF = 0x010;
export const ZF = 0x040;
export const SF = 0x080;
export const OF = 0x800;
/** In what `compute` gives only: SF != OF. */
export const LESS = 0x10000;
export const ARITHMETIC_FLAGS = CF | PF | AF | ZF | SF | OF;

export type IntegerSize = 1 | 2 | 4 | 8;

export const log2Size = (size: IntegerSize): number => (size === 1 ? 0 : size === 2 ? 1 : size === 4 ? 2 : 3);

/** `kind` of INC and DEC: `carry` is an i32, 0 or 1. */
export const stepKind = (kind: number, size: IntegerSize, carry: Node): Node =>
  i32.or(i32.shl(carry, i32.const(STEP_CARRY_AT)), i32.const(kind | (log2Size(size) << 2) | FLAGS_STEP));
/** CF as such a kind has it: 0 or 1. */
export const stepCarry = (kind: Node): Node => i32.and(i32.shrU(kind, i32.const(STEP_CARRY_AT)), i32.const(1));

/** The three locals of a function that hold the flags, and the function that computes RFLAGS bits from them. */
export interface FlagLocals {
  readonly kind: Node;
  readonly a: Node;
  readonly b: Node;
  /** Function index of `(kind, a, b) -> i32 bits`. */
  readonly compute: (kind: Node, a: Node, b: Node) => Node;
}

export function atTop(size: IntegerSize, value: Node): Node {
  return size === 8 ? value : i64.shl(value, i64.small(64 - 8 * size));
}

/** What the meanings of instructions do with the flags. */
export interface Flags {
  /** Nobody asks for the flags that this instruction writes: they need not be computed. */
  readonly isDead: boolean;
  /** After a - b (also CMP). The operands, zero-extended, must not be computed from the flags. */
  sub(size: IntegerSize, a: Node, b: Node): void;
  add(size: IntegerSize, a: Node, b: Node): void;
  /** After a - 1 or a + 1: CF stays. */
  step(subtract: boolean, size: IntegerSize, a: Node): void;
  /** ZF, SF and PF from the result; `bits`: CF, AF and OF in their places, i64. */
  result(size: IntegerSize, result: Node, bits: Node): void;
  /** All six flags in their places, i64. */
  explicit(bits: Node): void;
  /** The six flags in their places, i32. */
  bits(): Node;
  /** CF as i32 0 or 1. */
  carry(): Node;
  /** A condition code 0-15 (O NO B AE E NE BE A S NS P NP L GE LE G) as i32: 0 or not. Source: Intel SDM vol. 1, appendix B. */
  condition(code: number): Node;
}

/** The flags of the interpreter: what kind they are is known when it runs. */
export class LazyFlags implements Flags {
  readonly isDead = false;
  readonly #f: FunctionBuilder;
  readonly #locals: FlagLocals;

  constructor(f: FunctionBuilder, locals: FlagLocals) {
    this.#f = f;
    this.#locals = locals;
  }

  #set(kind: number, size: IntegerSize, a: Node, b: Node): void {
    const { kind: kindLocal, a: aLocal, b: bLocal } = this.#locals;
    this.#f.set(aLocal, a);
    this.#f.set(bLocal, b);
    this.#f.set(kindLocal, i32.const(kind | (log2Size(size) << 2)));
  }

  sub(size: IntegerSize, a: Node, b: Node): void {
    this.#set(FLAGS_SUB, size, atTop(size, a), atTop(size, b));
  }

  add(size: IntegerSize, a: Node, b: Node): void {
    this.#set(FLAGS_ADD, size, atTop(size, a), atTop(size, b));
  }

  step(subtract: boolean, size: IntegerSize, a: Node): void {
    const carry = this.#f.let(this.carry());
    this.#set(subtract ? FLAGS_SUB : FLAGS_ADD, size, atTop(size, a), atTop(size, i64.small(1)));
    this.#f.set(this.#locals.kind, stepKind(subtract ? FLAGS_SUB : FLAGS_ADD, size, carry));
  }

  result(size: IntegerSize, result: Node, bits: Node): void {
    this.#set(FLAGS_RESULT, size, atTop(size, result), bits);
  }

  explicit(bits: Node): void {
    this.#set(FLAGS_EXPLICIT, 1, bits, i64.small(0));
  }

  bits(): Node {
    const { kind, a, b, compute } = this.#locals;
    return compute(kind, a, b);
  }

  /** CF is that of a - b. */
  #isPlainSub(): Node {
    return i32.eqz(i32.and(this.#locals.kind, i32.const(3 | FLAGS_STEP)));
  }

  #is(kind: number): Node {
    const masked = i32.and(this.#locals.kind, i32.const(3));
    return kind === 0 ? i32.eqz(masked) : i32.eq(masked, i32.const(kind));
  }

  carry(): Node {
    const { a, b } = this.#locals;
    return choice(this.#isPlainSub(), i64.ltU(a, b), i32.and(this.bits(), i32.const(CF)));
  }

  condition(code: number): Node {
    const { a, b } = this.#locals;
    const subtraction = this.#is(FLAGS_SUB);
    const test = (mask: number): Node => i32.ne(i32.and(this.bits(), i32.const(mask)), i32.const(0));
    const negate = (value: Node): Node => ((code & 1) !== 0 ? i32.eqz(value) : value);
    switch (code >> 1) {
      case 0:
        return negate(test(OF));
      case 1:
        return choice(this.#isPlainSub(), (code & 1) !== 0 ? i64.geU(a, b) : i64.ltU(a, b), negate(test(CF)));
      case 2:
        return choice(
          subtraction,
          (code & 1) !== 0 ? i64.ne(a, b) : i64.eq(a, b),
          negate(choice(this.#is(FLAGS_RESULT), i64.eqz(a), test(ZF))),
        );
      case 3:
        return choice(this.#isPlainSub(), (code & 1) !== 0 ? i64.gtU(a, b) : i64.leU(a, b), negate(test(CF | ZF)));
      case 4:
        return choice(
          subtraction,
          negate(i64.ltS(i64.sub(a, b), i64.small(0))),
          negate(choice(this.#is(FLAGS_RESULT), i64.ltS(a, i64.small(0)), test(SF))),
        );
      case 5:
        return negate(test(PF));
      case 6:
        return choice(subtraction, (code & 1) !== 0 ? i64.geS(a, b) : i64.ltS(a, b), negate(test(LESS)));
      default:
        return choice(subtraction, (code & 1) !== 0 ? i64.gtS(a, b) : i64.leS(a, b), negate(test(LESS | ZF)));
    }
  }
}

/** The body of `compute`: parameters kind, a, b; the six flags, and LESS. */
export function computeFlags(): FunctionBuilder {
  const f = new FunctionBuilder([I32, I64, I64]);
  const kind = local(0, I32);
  const a = local(1, I64);
  const b = local(2, I64);
  const result = f.newLocal(I64);
  const extra = f.newLocal(I32);
  const shift = f.newLocal(I64);
  const base = i32.and(kind, i32.const(3));
  const finish = (bits: Node): Node => {
    f.set(extra, bits);
    return i32.or(
      extra,
      i32.shl(
        i32.and(i32.xor(i32.shrU(extra, i32.const(7)), i32.shrU(extra, i32.const(11))), i32.const(1)),
        i32.const(16),
      ),
    );
  };
  f.if(i32.eq(base, i32.const(FLAGS_EXPLICIT)), () => f.return(finish(i32.wrap(a))));
  f.set(
    shift,
    i64.sub(i64.small(64), i64.extendI32U(i32.shl(i32.const(8), i32.and(i32.shrU(kind, i32.const(2)), i32.const(3))))),
  );
  const flag = (condition: Node, at: number): Node => (at === 0 ? condition : i32.shl(condition, i32.const(at)));
  const top = (value: Node, at: number): Node => flag(i32.wrap(i64.shrU(value, i64.small(63))), at);
  const adjust = i32.and(i32.wrap(i64.shrU(i64.xor(i64.xor(a, b), result), shift)), i32.const(AF));
  f.block((done) => {
    f.if(i32.eq(base, i32.const(FLAGS_RESULT)), () => {
      f.set(result, a);
      f.set(extra, i32.wrap(b));
      f.br(done);
    });
    f.if(
      i32.eq(base, i32.const(FLAGS_SUB)),
      () => {
        f.set(result, i64.sub(a, b));
        f.set(extra, i32.or(i64.ltU(a, b), top(i64.and(i64.xor(a, b), i64.xor(a, result)), 11)));
      },
      () => {
        f.set(result, i64.add(a, b));
        f.set(extra, i32.or(i64.ltU(result, a), top(i64.and(i64.xor(a, result), i64.xor(b, result)), 11)));
      },
    );
    f.set(extra, i32.or(extra, adjust));
    f.if(i32.and(kind, i32.const(FLAGS_STEP)), () =>
      f.set(extra, i32.or(i32.and(extra, i32.const(~CF)), stepCarry(kind))),
    );
  });
  const parity = i32.and(i32.popcnt(i32.and(i32.wrap(i64.shrU(result, shift)), i32.const(0xff))), i32.const(1));
  f.set(extra, i32.or(extra, flag(i64.eqz(result), 6)));
  f.set(extra, i32.or(extra, top(result, 7)));
  f.set(extra, i32.or(extra, flag(i32.xor(parity, i32.const(1)), 2)));
  f.return(finish(extra));
  f.unreachable();
  return f;
}
