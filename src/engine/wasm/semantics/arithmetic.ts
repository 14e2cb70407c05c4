/** Integer arithmetic and logic. Source: Intel SDM vol. 2, the page of each mnemonic. */

import type { Cpu, Pair } from '../cpu.ts';
import { AF, ARITHMETIC_FLAGS, CF, type IntegerSize, OF, ZF } from '../flags.ts';
import { I64, i32, i64, type Node } from '../nodes.ts';
import { type Meaning, maskTo, signExtend, zeroExtend } from './common.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const ZERO = i64.small(0);

function addition(operation: 'add' | 'sub'): Meaning {
  return (cpu) => {
    const b = cpu.f.let(cpu.read(1));
    const a = cpu.modify(0, operation, b);
    if (operation === 'add') cpu.flags.add(cpu.size, a, b);
    else cpu.flags.sub(cpu.size, a, b);
  };
}

/** CF, AF and OF of a + b + carry = r or a - b - borrow = r, in their places. Values may have anything above `size`. */
export function carryBits(size: IntegerSize, subtract: boolean, a: Node, b: Node, result: Node): Node {
  // The carry out of every bit. Source: Hacker's Delight, 2-13 (overflow detection).
  const out = subtract
    ? i64.or(i64.and(i64.xor(a, i64.small(-1)), b), i64.and(i64.xor(i64.xor(a, b), i64.small(-1)), result))
    : i64.or(i64.and(a, b), i64.and(i64.or(a, b), i64.xor(result, i64.small(-1))));
  const top = 8 * size - 1;
  const overflow = subtract
    ? i64.and(i64.xor(a, b), i64.xor(a, result))
    : i64.and(i64.xor(a, result), i64.xor(b, result));
  const at = (value: Node, from: number, mask: number, to: number): Node => {
    const moved = from >= to ? i64.shrU(value, i64.small(from - to)) : i64.shl(value, i64.small(to - from));
    return i64.and(moved, i64.small(mask));
  };
  return i64.or(
    i64.or(at(out, top, CF, 0), at(overflow, top, OF, 11)),
    i64.and(i64.xor(i64.xor(a, b), result), i64.small(AF)),
  );
}

function withCarry(subtract: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const carry = f.let(i64.extendI32U(cpu.flags.carry()));
    const b = f.let(cpu.read(1));
    const a = cpu.modify(0, subtract ? 'sub' : 'add', f.let(i64.add(b, carry)));
    if (cpu.flags.isDead) return;
    const sum = i64.add(b, carry);
    const result = f.let(subtract ? i64.sub(a, sum) : i64.add(a, sum));
    cpu.flags.result(size, result, carryBits(size, subtract, a, b, result));
  };
}

function logic(operation: 'and' | 'or' | 'xor'): Meaning {
  return (cpu) => {
    const b = cpu.f.let(cpu.read(1));
    const a = cpu.modify(0, operation, b);
    cpu.flags.result(cpu.size, i64[operation](a, b), ZERO);
  };
}

const compare: Meaning = (cpu) => {
  const b = cpu.f.let(cpu.read(1));
  const a = cpu.f.let(cpu.read(0));
  cpu.flags.sub(cpu.size, a, b);
};

const test: Meaning = (cpu) => {
  const b = cpu.f.let(cpu.read(1));
  cpu.flags.result(cpu.size, i64.and(cpu.read(0), b), ZERO);
};

/** INC and DEC leave CF alone. */
function step(operation: 'add' | 'sub'): Meaning {
  return (cpu) => {
    const a = cpu.modify(0, operation, i64.small(1));
    cpu.flags.step(operation === 'sub', cpu.size, a);
  };
}

const negate: Meaning = (cpu) => {
  const { f } = cpu;
  if (cpu.locked) {
    // No atomic negation: try until nobody was faster.
    const { size } = cpu;
    const address = cpu.address(0);
    const at = cpu.translate(address, size, 'modify');
    const seen = f.let(cpu.load(at, size));
    f.loop((again) => {
      const old = cpu.modifyAt(address, at, size, 'cmpxchg', seen, i64.sub(ZERO, seen));
      f.if(i64.ne(old, seen), () => {
        f.set(seen, old);
        f.br(again);
      });
    });
    cpu.flags.sub(size, ZERO, seen);
    return;
  }
  const old = cpu.modify(0, 'negate', ZERO);
  cpu.flags.sub(cpu.size, ZERO, old);
};

const not: Meaning = (cpu) => {
  cpu.modify(0, 'xor', i64.small(-1));
};

const exchangeAdd: Meaning = (cpu) => {
  const { f } = cpu;
  const b = f.let(cpu.read(1));
  const a = cpu.modify(0, 'add', b);
  // XADD with the same register twice leaves the sum: the sum is written last.
  cpu.write(1, a);
  if (cpu.operands[0].kind !== 'memory') cpu.write(0, i64.add(a, b));
  cpu.flags.add(cpu.size, a, b);
};

const exchange: Meaning = (cpu) => {
  const b = cpu.f.let(cpu.read(1));
  const a = cpu.modify(0, 'xchg', b);
  cpu.write(1, a);
};

/** CMPXCHG: memory is written in either case, a register (and its upper half) only when they are equal, else the accumulator is. */
const compareExchange: Meaning = (cpu) => {
  const { f, size } = cpu;
  const accumulator = f.let(cpu.gpr(0, size));
  const source = f.let(cpu.read(1));
  if (cpu.operands[0].kind !== 'memory') {
    const old = f.let(cpu.read(0));
    f.if(
      i64.eq(old, accumulator),
      () => cpu.write(0, source),
      () => cpu.setGpr(0, size, old),
    );
    cpu.flags.sub(size, accumulator, old);
    return;
  }
  const old = cpu.modify(0, 'cmpxchg', accumulator, source);
  f.if(i64.ne(old, accumulator), () => cpu.setGpr(0, size, old));
  cpu.flags.sub(size, accumulator, old);
};

/** The same as `Cpu.exchangePair` with two words, as one quadword. */
function exchangeWords(cpu: Cpu, address: Node, at: Node, expected: Pair, replacement: Pair): Pair {
  const { f } = cpu;
  const joined = ([low, high]: Pair): Node => f.let(i64.or(low, i64.shl(high, i64.small(32))));
  const old = cpu.modifyAt(address, at, 8, 'cmpxchg', joined(expected), joined(replacement));
  return [f.let(i64.and(old, i64.const(-1, 0))), f.let(i64.shrU(old, i64.small(32)))];
}

/** CMPXCHG8B and CMPXCHG16B. Only ZF changes. */
const compareExchangePair: Meaning = (cpu) => {
  const { f } = cpu;
  const half = cpu.instructionSize === 8 ? 8 : 4;
  const address = cpu.address(0);
  if (half === 8) cpu.requireAligned(address);
  const at = cpu.translate(address, 2 * half, 'modify');
  const both = (low: number, high: number): Pair => [f.let(cpu.gpr(low, half)), f.let(cpu.gpr(high, half))];
  const expected = both(RAX, RDX);
  const replacement = both(RBX, RCX);
  const old =
    half === 8
      ? cpu.exchangePair(address, at, expected, replacement)
      : exchangeWords(cpu, address, at, expected, replacement);
  const isEqual = f.let(i32.and(i64.eq(old[0], expected[0]), i64.eq(old[1], expected[1])));
  f.if(i32.eqz(isEqual), () => {
    cpu.setGpr(RAX, half, old[0]);
    cpu.setGpr(RDX, half, old[1]);
  });
  const others = i32.and(cpu.flags.bits(), i32.const(ARITHMETIC_FLAGS & ~ZF));
  cpu.flags.explicit(f.let(i64.extendI32U(i32.or(others, i32.mul(isEqual, i32.const(ZF))))));
};

/** The high 64 bits of a * b, unsigned. */
export function highProduct(cpu: Cpu, a: Node, b: Node): Node {
  const { f } = cpu;
  const mask = i64.const(-1, 0);
  const a0 = f.let(i64.and(a, mask));
  const a1 = f.let(i64.shrU(a, i64.small(32)));
  const b0 = f.let(i64.and(b, mask));
  const b1 = f.let(i64.shrU(b, i64.small(32)));
  const middle = f.let(i64.add(i64.mul(a1, b0), i64.shrU(i64.mul(a0, b0), i64.small(32))));
  const middle2 = f.let(i64.add(i64.mul(a0, b1), i64.and(middle, mask)));
  return f.let(i64.add(i64.mul(a1, b1), i64.add(i64.shrU(middle, i64.small(32)), i64.shrU(middle2, i64.small(32)))));
}

function signedHighProduct(cpu: Cpu, a: Node, b: Node): Node {
  const sign = (x: Node, y: Node): Node => i64.and(i64.shrS(x, i64.small(63)), y);
  return cpu.f.let(i64.sub(i64.sub(highProduct(cpu, a, b), sign(a, b)), sign(b, a)));
}

/** SF, ZF, AF and PF are undefined: this CPU computes them from the low half, AF 0. */
function multiplyFlags(cpu: Cpu, size: IntegerSize, low: Node, overflow: Node): void {
  cpu.flags.result(size, low, i64.mul(i64.extendI32U(overflow), i64.small(CF | OF)));
}

/** MUL and one-operand IMUL: rDX:rAX = rAX * operand. */
function multiply(signed: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const extend = signed ? signExtend : zeroExtend;
    const b = f.let(extend(size, cpu.read(0)));
    const a = f.let(extend(size, cpu.gpr(0, size)));
    const low = f.let(i64.mul(a, b));
    if (size === 8) {
      const high = signed ? signedHighProduct(cpu, a, b) : highProduct(cpu, a, b);
      cpu.setGpr(0, 8, low);
      cpu.setGpr(2, 8, high);
      const overflow = signed ? i64.ne(high, i64.shrS(low, i64.small(63))) : i64.ne(high, ZERO);
      multiplyFlags(cpu, size, low, overflow);
      return;
    }
    if (size === 1) cpu.setGpr(0, 2, low);
    else {
      cpu.setGpr(0, size, low);
      cpu.setGpr(2, size, i64.shrU(low, i64.small(8 * size)));
    }
    multiplyFlags(cpu, size, low, i64.ne(extend(size, low), low));
  };
}

/** IMUL with two or three operands. */
const multiplyTo: Meaning = (cpu) => {
  const { f, size } = cpu;
  const three = cpu.operands.length === 3;
  const a = f.let(signExtend(size, cpu.read(three ? 1 : 0)));
  const b = f.let(signExtend(size, cpu.read(three ? 2 : 1)));
  const low = f.let(i64.mul(a, b));
  const overflow =
    size === 8
      ? f.let(i64.ne(signedHighProduct(cpu, a, b), i64.shrS(low, i64.small(63))))
      : i64.ne(signExtend(size, low), low);
  multiplyFlags(cpu, size, low, overflow);
  cpu.write(0, low);
};

/** DIV and IDIV up to 32 bits, and 64 bits whose high half is the extension of the low; the rest is `wideDivide`. */
function divide(signed: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const extend = signed ? signExtend : zeroExtend;
    const divisor = f.let(extend(size, cpu.read(0)));
    const fail = (condition: Node): void => f.if(condition, () => cpu.raise(0));
    fail(i64.eqz(divisor));
    const quotient = f.temporary(I64);
    const remainder = f.temporary(I64);
    if (size === 8) {
      const low = f.let(cpu.gpr(0, 8));
      const high = f.let(cpu.gpr(2, 8));
      const simple = signed ? i64.eq(high, i64.shrS(low, i64.small(63))) : i64.eqz(high);
      f.if(
        simple,
        () => {
          // The most negative number by -1 would trap.
          if (signed) fail(i32.and(i64.eq(low, i64.const(0, -0x80000000)), i64.eq(divisor, i64.small(-1))));
          f.set(quotient, signed ? i64.divS(low, divisor) : i64.divU(low, divisor));
          f.set(remainder, signed ? i64.remS(low, divisor) : i64.remU(low, divisor));
        },
        () => cpu.wideDivide(signed, high, low, divisor, quotient, remainder),
      );
      cpu.setGpr(0, 8, quotient);
      cpu.setGpr(2, 8, remainder);
      return;
    }
    const dividend = f.let(
      size === 1
        ? signed
          ? i64.extend16S(cpu.gpr(0, 2))
          : cpu.gpr(0, 2)
        : i64.or(cpu.gpr(0, size), i64.shl(cpu.gpr(2, size), i64.small(8 * size))),
    );
    const wide = size === 2 ? f.let(signed ? i64.extend32S(dividend) : dividend) : dividend;
    if (signed) fail(i32.and(i64.eq(wide, i64.const(0, -0x80000000)), i64.eq(divisor, i64.small(-1))));
    f.set(quotient, signed ? i64.divS(wide, divisor) : i64.divU(wide, divisor));
    f.set(remainder, signed ? i64.remS(wide, divisor) : i64.remU(wide, divisor));
    fail(i64.ne(extend(size, quotient), quotient));
    if (size === 1) cpu.setGpr(0, 2, i64.or(maskTo(1, quotient), i64.shl(maskTo(1, remainder), i64.small(8))));
    else {
      cpu.setGpr(0, size, quotient);
      cpu.setGpr(2, size, remainder);
    }
  };
}

/** CBW, CWDE, CDQE. */
const widenAccumulator: Meaning = (cpu) => {
  const half = (cpu.size / 2) as IntegerSize;
  cpu.setGpr(0, cpu.size, signExtend(half, cpu.gpr(0, half)));
};

/** CWD, CDQ, CQO. */
const signToData: Meaning = (cpu) => {
  const { size } = cpu;
  cpu.setGpr(2, size, i64.shrS(signExtend(size, cpu.gpr(0, size)), i64.small(63)));
};

export const ARITHMETIC: Readonly<Record<string, Meaning>> = {
  add: addition('add'),
  sub: addition('sub'),
  adc: withCarry(false),
  sbb: withCarry(true),
  and: logic('and'),
  or: logic('or'),
  xor: logic('xor'),
  cmp: compare,
  test,
  inc: step('add'),
  dec: step('sub'),
  neg: negate,
  not,
  xadd: exchangeAdd,
  xchg: exchange,
  cmpxchg: compareExchange,
  cmpxchg8b: compareExchangePair,
  mul: multiply(false),
  imul: (cpu) => (cpu.operands.length === 1 ? multiply(true)(cpu) : multiplyTo(cpu)),
  div: divide(false),
  idiv: divide(true),
  cbw: widenAccumulator,
  cwde: widenAccumulator,
  cdqe: widenAccumulator,
  cwd: signToData,
  cdq: signToData,
  cqo: signToData,
};
