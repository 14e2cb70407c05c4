/**
 * PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM. Source: Intel SDM vol. 1, 12.10.1 and table 12-11 (invalid elements); vol. 2, 4.1.
 *
 *   immediate  6 index from the top, or a mask of elements | 5-4 polarity | 3-2 how to compare | 1 signed | 0 words
 *
 * Sets of elements are bit masks in an i32. Elements before the end of a string are valid; so a string's valid elements are a mask
 * of ones from bit 0 on.
 */

import type { Cpu } from '../cpu.ts';
import { CF, OF, SF, ZF } from '../flags.ts';
import { CONST, I32, i32, i64, type Node, select } from '../nodes.ts';
import { i8x16, i16x8, v128 } from '../simd.ts';
import type { Meaning } from './common.ts';
import { immediateByte, lanes, pick, readUnaligned, repeated, vectors, ZERO_VECTOR } from './sse-common.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;

/** Chooses code by a condition, which may be known now. */
function when(cpu: Cpu, condition: Node, yes: () => void, no: () => void): void {
  if (condition.kind === CONST) (condition.lo !== 0 ? yes : no)();
  else cpu.f.if(condition, yes, no);
}

/** Bits of the immediate, as a constant if it is one. */
function bits(immediate: Node, mask: number): Node {
  return immediate.kind === CONST ? i32.const(immediate.lo & mask) : i32.and(immediate, i32.const(mask));
}

/** 32 or 64 bits of a length: its magnitude, at most `most`, as a mask of so many ones. */
function explicitMask(cpu: Cpu, register: number, most: number): Node {
  const { f } = cpu;
  const size = cpu.instructionSize === 8 ? 8 : 4;
  const raw = cpu.gpr(register, size);
  const length = f.let(size === 8 ? raw : i64.extend32S(raw));
  const magnitude = f.let(select(i64.sub(i64.small(0), length), length, i64.ltS(length, i64.small(0))));
  const count = select(i32.wrap(magnitude), i32.const(most), i64.ltU(magnitude, i64.small(most)));
  return i32.sub(i32.shl(i32.const(1), count), i32.const(1));
}

interface Width {
  readonly count: number;
  readonly all: Node;
  readonly eq: (a: Node, b: Node) => Node;
  readonly leS: (a: Node, b: Node) => Node;
  readonly geS: (a: Node, b: Node) => Node;
  readonly mask: (a: Node) => Node;
  /** Element `number` everywhere. */
  readonly spread: (a: Node, number: Node) => Node;
  readonly signBits: Node;
}

const BYTES: Width = {
  count: 16,
  all: i32.const(0xffff),
  eq: i8x16.eq,
  leS: i8x16.leS,
  geS: i8x16.geS,
  mask: i8x16.bitmask,
  spread: (a, number) => pick(a, i8x16.splat(number)),
  signBits: repeated(1, 0x80),
};

const WORDS: Width = {
  count: 8,
  all: i32.const(0xff),
  eq: i16x8.eq,
  leS: i16x8.leS,
  geS: i16x8.geS,
  mask: i16x8.bitmask,
  spread: (a, number) => pick(a, i16x8.splat(i32.add(i32.mul(number, i32.const(0x0202)), i32.const(0x0100)))),
  signBits: repeated(2, 0x8000),
};

interface Strings {
  readonly a: Node;
  readonly b: Node;
  /** Locals. */
  readonly validA: Node;
  readonly validB: Node;
  readonly result: Node;
}

/** Runs `body` for the number of each bit that is set. */
function eachBit(cpu: Cpu, set: Node, body: (number: Node) => void): void {
  const { f } = cpu;
  const left = f.temporary(I32);
  const number = f.temporary(I32);
  f.set(left, set);
  f.block((done) => {
    f.loop((next) => {
      f.brIf(done, i32.eqz(left));
      f.set(number, i32.ctz(left));
      body(number);
      f.set(left, i32.and(left, i32.sub(left, i32.const(1))));
      f.br(next);
    });
  });
}

/** Elements of b that are one of a's. */
function equalAny(cpu: Cpu, width: Width, { a, b, validA, validB, result }: Strings): void {
  cpu.f.set(result, i32.const(0));
  eachBit(cpu, validA, (number) => cpu.f.set(result, i32.or(result, width.mask(width.eq(b, width.spread(a, number))))));
  cpu.f.set(result, i32.and(result, validB));
}

/** Elements of b between the first and the second of a pair of a's. */
function ranges(cpu: Cpu, width: Width, strings: Strings, signed: Node): void {
  const { validA, validB, result } = strings;
  const { f } = cpu;
  const bias = f.let(select(ZERO_VECTOR, width.signBits, signed));
  const a = f.let(v128.xor(strings.a, bias));
  const b = f.let(v128.xor(strings.b, bias));
  f.set(result, i32.const(0));
  const pairs = i32.and(i32.and(validA, i32.shrU(validA, i32.const(1))), i32.const(0x5555));
  eachBit(cpu, pairs, (number) => {
    const above = width.geS(b, width.spread(a, number));
    const below = width.leS(b, width.spread(a, i32.add(number, i32.const(1))));
    f.set(result, i32.or(result, width.mask(v128.and(above, below))));
  });
  f.set(result, i32.and(result, validB));
}

/** Elements that are the same in both; those past the end of both are. */
function equalEach(cpu: Cpu, width: Width, { a, b, validA, validB, result }: Strings): void {
  const both = i32.and(width.mask(width.eq(a, b)), i32.and(validA, validB));
  const neither = i32.xor(i32.or(validA, validB), width.all);
  cpu.f.set(result, i32.or(both, neither));
}

/** Elements of b where all of a begins, as far as b reaches. */
function equalOrdered(cpu: Cpu, width: Width, { a, b, validA, validB, result }: Strings): void {
  const { f } = cpu;
  f.set(result, width.all);
  eachBit(cpu, validA, (number) => {
    const same = i32.and(width.mask(width.eq(b, width.spread(a, number))), validB);
    const beyond = i32.xor(i32.shrU(width.all, number), i32.const(-1));
    f.set(result, i32.and(result, i32.or(i32.shrU(same, number), beyond)));
  });
}

function aggregate(cpu: Cpu, width: Width, immediate: Node, strings: Strings): void {
  when(
    cpu,
    bits(immediate, 8),
    () =>
      when(
        cpu,
        bits(immediate, 4),
        () => equalOrdered(cpu, width, strings),
        () => equalEach(cpu, width, strings),
      ),
    () =>
      when(
        cpu,
        bits(immediate, 4),
        () => ranges(cpu, width, strings, bits(immediate, 2)),
        () => equalAny(cpu, width, strings),
      ),
  );
}

/** The elements before the first that is zero. */
const implicitMask = (width: Width, zeros: Node): Node =>
  i32.and(i32.and(i32.sub(zeros, i32.const(1)), i32.xor(zeros, i32.const(-1))), width.all);

function compareStrings(explicit: boolean, toMask: boolean): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const b = readUnaligned(cpu, 1);
    const a = f.let(cpu.readVector(0));
    const immediate = immediateByte(cpu, 2);
    const validA = f.temporary(I32);
    const validB = f.temporary(I32);
    const result = f.temporary(I32);
    const all = f.temporary(I32);
    const run = (width: Width): void => {
      f.set(all, width.all);
      if (explicit) {
        f.set(validA, explicitMask(cpu, RAX, width.count));
        f.set(validB, explicitMask(cpu, RDX, width.count));
      } else {
        f.set(validA, width.mask(width.eq(a, ZERO_VECTOR)));
        f.set(validA, implicitMask(width, validA));
        f.set(validB, width.mask(width.eq(b, ZERO_VECTOR)));
        f.set(validB, implicitMask(width, validB));
      }
      aggregate(cpu, width, immediate, { a, b, validA, validB, result });
    };
    when(
      cpu,
      bits(immediate, 1),
      () => run(WORDS),
      () => run(BYTES),
    );
    // Polarity: 1 inverts, 3 inverts what is valid in b.
    const inverted = select(validB, all, bits(immediate, 0x20));
    f.set(result, i32.xor(result, select(inverted, i32.const(0), bits(immediate, 0x10))));

    if (toMask) cpu.setXmm(0, spreadMask(result, immediate));
    else {
      const none = i32.add(i32.and(all, i32.const(8)), i32.shrU(i32.and(all, i32.const(0x100)), i32.const(5)));
      const lowest = i32.ctz(result);
      const highest = i32.sub(i32.const(31), i32.clz(result));
      const index = select(select(highest, lowest, bits(immediate, 0x40)), none, result);
      cpu.setGpr(RCX, 4, i64.extendI32U(index));
    }
    const flag = (condition: Node, flagBit: number): Node => i32.mul(condition, i32.const(flagBit));
    const flags = i32.or(
      i32.or(flag(i32.ne(result, i32.const(0)), CF), flag(i32.and(result, i32.const(1)), OF)),
      i32.or(flag(i32.ne(validB, all), ZF), flag(i32.ne(validA, all), SF)),
    );
    cpu.flags.explicit(f.let(i64.extendI32U(flags)));
  };
}

/** Bits as they are, or as elements of ones. */
function spreadMask(result: Node, immediate: Node): Node {
  const asBits = i8x16.swizzle(
    i16x8.splat(result),
    lanes(1, [0, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1]),
  );
  const ofBytes = [1, 2, 4, 8, 16, 32, 64, 128];
  const bytesOfResult = i8x16.swizzle(i16x8.splat(result), lanes(1, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]));
  const byteBits = repeated(1, ...ofBytes);
  const bytes = i8x16.eq(v128.and(bytesOfResult, byteBits), byteBits);
  const wordBits = lanes(2, ofBytes);
  const words = i16x8.eq(v128.and(i16x8.splat(result), wordBits), wordBits);
  return select(select(words, bytes, bits(immediate, 1)), asBits, bits(immediate, 0x40));
}

export const SSE_STRINGS: Readonly<Record<string, Meaning>> = vectors({
  pcmpestri: compareStrings(true, false),
  pcmpestrm: compareStrings(true, true),
  pcmpistri: compareStrings(false, false),
  pcmpistrm: compareStrings(false, true),
});
