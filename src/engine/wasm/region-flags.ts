/**
 * The flags of a region: of what kind they are is mostly known when its code is written, so a condition is a comparison of the
 * operands, and flags that nobody asks for are not written at all (region-flow.ts).
 *
 * In the locals the operands stay as they are, with anything above their size; `kind` says how far they must be moved up to be what
 * memory 1 holds (flags.ts): kind | log2(size) << 2 | shift of a << 8 | shift of b << 16.
 */

import {
  CF,
  FLAGS_ADD,
  FLAGS_EXPLICIT,
  FLAGS_RESULT,
  FLAGS_STEP,
  FLAGS_SUB,
  type FlagLocals,
  type Flags,
  type IntegerSize,
  log2Size,
  OF,
  PF,
  SF,
  stepCarry,
  stepKind,
  ZF,
} from './flags.ts';
import type { FunctionBuilder } from './function-builder.ts';
import { CPU, STATE } from './layout.ts';
import { choice, i32, i64, type Node } from './nodes.ts';

/** What `known` is when the kind is to be read when the code runs. */
export const ANY_KIND = -1;
const zeroAddress = i32.const(0);

/** kind | log2(size) << 2, as `known` has it, which has FLAGS_STEP too, but not its carry. */
export const knownKind = (kind: number, size: IntegerSize): number => kind | (log2Size(size) << 2);

function withShifts(known: number): number {
  const kind = known & 3;
  const shift = 64 - (8 << ((known >> 2) & 3));
  if (kind === FLAGS_EXPLICIT) return known;
  return known | (shift << 8) | (kind === FLAGS_RESULT ? 0 : shift << 16);
}

export class RegionFlags implements Flags {
  readonly #f: FunctionBuilder;
  readonly #locals: FlagLocals;
  isDead = false;
  /** `knownKind` of what the locals hold, or ANY_KIND. */
  known = ANY_KIND;

  constructor(f: FunctionBuilder, locals: FlagLocals) {
    this.#f = f;
    this.#locals = locals;
  }

  #set(kind: number, size: IntegerSize, a: Node, b: Node): void {
    if (this.isDead) return;
    const known = knownKind(kind, size);
    this.#f.set(this.#locals.a, a);
    this.#f.set(this.#locals.b, b);
    this.#f.set(this.#locals.kind, i32.const(withShifts(known)));
    this.known = known;
  }

  sub(size: IntegerSize, a: Node, b: Node): void {
    this.#set(FLAGS_SUB, size, a, b);
  }

  add(size: IntegerSize, a: Node, b: Node): void {
    this.#set(FLAGS_ADD, size, a, b);
  }

  step(subtract: boolean, size: IntegerSize, a: Node): void {
    if (this.isDead) return;
    const kind = subtract ? FLAGS_SUB : FLAGS_ADD;
    const carry = this.#f.let(this.carry());
    this.#set(kind, size, a, i64.small(1));
    const shifts = withShifts(this.known) & ~0xff;
    this.#f.set(this.#locals.kind, i32.or(stepKind(kind, size, carry), i32.const(shifts)));
    this.known |= FLAGS_STEP;
  }

  result(size: IntegerSize, result: Node, bits: Node): void {
    this.#set(FLAGS_RESULT, size, result, bits);
  }

  explicit(bits: Node): void {
    this.#set(FLAGS_EXPLICIT, 1, bits, i64.small(0));
  }

  /** From memory 1. */
  load(): void {
    const { kind, a, b } = this.#locals;
    this.#f.set(kind, i32.load(CPU, zeroAddress, STATE.flagsKind));
    this.#f.set(a, i64.load(CPU, zeroAddress, STATE.flagsA));
    this.#f.set(b, i64.load(CPU, zeroAddress, STATE.flagsB));
  }

  /** To memory 1. */
  store(): void {
    const { kind, a, b } = this.#inMemory();
    this.#f.store(4, CPU, zeroAddress, STATE.flagsKind, kind);
    this.#f.store(8, CPU, zeroAddress, STATE.flagsA, a);
    this.#f.store(8, CPU, zeroAddress, STATE.flagsB, b);
  }

  /** As memory 1 has them. */
  #inMemory(): { readonly kind: Node; readonly a: Node; readonly b: Node } {
    const { kind, a, b } = this.#locals;
    if (this.known !== ANY_KIND) {
      const shifts = withShifts(this.known);
      return {
        kind: (this.known & FLAGS_STEP) !== 0 ? i32.and(kind, i32.const(0xff)) : i32.const(this.known),
        a: i64.shl(a, i64.small((shifts >> 8) & 63)),
        b: i64.shl(b, i64.small((shifts >> 16) & 63)),
      };
    }
    return {
      kind: i32.and(kind, i32.const(0xff)),
      a: i64.shl(a, i64.extendI32U(i32.shrU(kind, i32.const(8)))),
      b: i64.shl(b, i64.extendI32U(i32.shrU(kind, i32.const(16)))),
    };
  }

  bits(): Node {
    if (this.isDead) return i32.const(0);
    const { kind, a, b } = this.#inMemory();
    return this.#locals.compute(kind, a, b);
  }

  carry(): Node {
    if (this.isDead) return i32.const(0);
    return this.known !== ANY_KIND ? this.#carry() : this.#carryOfAny();
  }

  /** INC and DEC ask for it, in loops above all: without a call for what is common. */
  #carryOfAny(): Node {
    const { kind, a, b } = this.#locals;
    const is = (which: number): Node => i32.eq(i32.and(kind, i32.const(3)), i32.const(which));
    const shift = i64.extendI32U(i32.shrU(kind, i32.const(8)));
    const ofResult = choice(is(FLAGS_RESULT), this.#bit(b, CF), i32.and(this.bits(), i32.const(CF)));
    const ofSub = choice(is(FLAGS_SUB), i64.ltU(i64.shl(a, shift), i64.shl(b, shift)), ofResult);
    return choice(i32.and(kind, i32.const(FLAGS_STEP)), stepCarry(kind), ofSub);
  }

  get #size(): IntegerSize {
    return (1 << ((this.known >> 2) & 3)) as IntegerSize;
  }

  /** The result of a - b or a + b in its low bytes, or what was said to be the result: i64 for 8 bytes, i32 below. */
  #result(): Node {
    const { a, b } = this.#locals;
    const kind = this.known & 3;
    if (this.#size === 8) return kind === FLAGS_SUB ? i64.sub(a, b) : kind === FLAGS_ADD ? i64.add(a, b) : a;
    const [x, y] = [i32.wrap(a), i32.wrap(b)];
    return kind === FLAGS_SUB ? i32.sub(x, y) : kind === FLAGS_ADD ? i32.add(x, y) : x;
  }

  /** A value of `#result`'s type is zero, or its sign is set. */
  #isZero(value: Node): Node {
    const size = this.#size;
    if (size === 8) return i64.eqz(value);
    return i32.eqz(size === 4 ? value : i32.and(value, i32.const(size === 2 ? 0xffff : 0xff)));
  }

  #isNegative(value: Node): Node {
    const size = this.#size;
    if (size === 8) return i64.ltS(value, i64.small(0));
    if (size === 4) return i32.ltS(value, i32.const(0));
    return i32.and(i32.shrU(value, i32.const(8 * size - 1)), i32.const(1));
  }

  /** Both operands for a comparison of their size. */
  #compare(of64: (a: Node, b: Node) => Node, of32: (a: Node, b: Node) => Node, signed: boolean): Node {
    const { a, b } = this.#locals;
    const size = this.#size;
    if (size === 8) return of64(a, b);
    const narrow = (value: Node): Node => {
      const word = i32.wrap(value);
      if (size === 4) return word;
      if (signed) return size === 2 ? i32.extend16S(word) : i32.extend8S(word);
      return i32.and(word, i32.const(size === 2 ? 0xffff : 0xff));
    };
    return of32(narrow(a), narrow(b));
  }

  #bit(value: Node, mask: number): Node {
    const word = i32.wrap(value);
    return mask === 1
      ? i32.and(word, i32.const(1))
      : i32.and(i32.shrU(word, i32.const(31 - Math.clz32(mask))), i32.const(1));
  }

  #carry(): Node {
    const { kind, a, b } = this.#locals;
    if ((this.known & FLAGS_STEP) !== 0) return stepCarry(kind);
    switch (this.known & 3) {
      case FLAGS_SUB:
        return this.#compare(i64.ltU, i32.ltU, false);
      case FLAGS_ADD: {
        const size = this.#size;
        if (size === 8) return i64.ltU(i64.add(a, b), a);
        if (size === 4) return i32.ltU(i32.add(i32.wrap(a), i32.wrap(b)), i32.wrap(a));
        const mask = i32.const(size === 2 ? 0xffff : 0xff);
        const sum = i32.add(i32.and(i32.wrap(a), mask), i32.and(i32.wrap(b), mask));
        return i32.shrU(sum, i32.const(8 * size));
      }
      case FLAGS_EXPLICIT:
        return this.#bit(a, CF);
      default:
        return this.#bit(b, CF);
    }
  }

  #overflow(): Node {
    const { a, b } = this.#locals;
    const kind = this.known & 3;
    if (kind === FLAGS_EXPLICIT) return this.#bit(a, OF);
    if (kind === FLAGS_RESULT) return this.#bit(b, OF);
    const result = this.#result();
    if (this.#size === 8) {
      const differs = kind === FLAGS_SUB ? i64.xor(a, b) : i64.xor(b, result);
      return this.#isNegative(i64.and(differs, i64.xor(a, result)));
    }
    const [x, y] = [i32.wrap(a), i32.wrap(b)];
    const differs = kind === FLAGS_SUB ? i32.xor(x, y) : i32.xor(y, result);
    return this.#isNegative(i32.and(differs, i32.xor(x, result)));
  }

  #zero(): Node {
    if ((this.known & 3) === FLAGS_EXPLICIT) return this.#bit(this.#locals.a, ZF);
    if ((this.known & 3) === FLAGS_SUB) return this.#compare(i64.eq, i32.eq, false);
    return this.#isZero(this.#result());
  }

  #sign(): Node {
    return (this.known & 3) === FLAGS_EXPLICIT ? this.#bit(this.#locals.a, SF) : this.#isNegative(this.#result());
  }

  #parity(): Node {
    if ((this.known & 3) === FLAGS_EXPLICIT) return this.#bit(this.#locals.a, PF);
    const result = this.#result();
    const byte = i32.and(this.#size === 8 ? i32.wrap(result) : result, i32.const(0xff));
    return i32.and(i32.xor(i32.popcnt(byte), i32.const(1)), i32.const(1));
  }

  /** An even condition code of a known kind: 0 or 1. */
  #known(code: number): Node {
    const sub = (this.known & 3) === FLAGS_SUB;
    // Logic operations and TEST: no carry, no overflow.
    switch (code) {
      case 0:
        return this.#overflow();
      case 2:
        return this.#carry();
      case 4:
        return this.#zero();
      case 6:
        return sub && (this.known & FLAGS_STEP) === 0
          ? this.#compare(i64.leU, i32.leU, false)
          : i32.or(this.#carry(), this.#zero());
      case 8:
        return this.#sign();
      case 10:
        return this.#parity();
      case 12:
        return sub ? this.#compare(i64.ltS, i32.ltS, true) : i32.xor(this.#sign(), this.#overflow());
      default:
        return sub
          ? this.#compare(i64.leS, i32.leS, true)
          : i32.or(i32.xor(this.#sign(), this.#overflow()), this.#zero());
    }
  }

  condition(code: number): Node {
    if (this.known !== ANY_KIND) {
      const yes = this.#known(code & ~1);
      return (code & 1) !== 0 ? i32.eqz(yes) : yes;
    }
    const bits = this.#f.let(this.bits());
    const set = (mask: number): Node => i32.ne(i32.and(bits, i32.const(mask)), i32.const(0));
    const signIsOverflow = i32.and(i32.xor(i32.shrU(bits, i32.const(7)), i32.shrU(bits, i32.const(11))), i32.const(1));
    const yes = [
      (): Node => set(OF),
      (): Node => set(CF),
      (): Node => set(ZF),
      (): Node => set(CF | ZF),
      (): Node => set(SF),
      (): Node => set(PF),
      (): Node => signIsOverflow,
      (): Node => i32.or(signIsOverflow, set(ZF)),
    ][code >> 1]();
    return (code & 1) !== 0 ? i32.eqz(yes) : yes;
  }
}
