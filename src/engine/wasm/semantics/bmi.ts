/**
 * BMI1 and BMI2, but for the counts (bits.ts). Source: Intel SDM vol. 2, the page of each mnemonic.
 *
 * Undefined flags (AF, PF, of BEXTR SF) are as AMD Zen has them: not compared by the tests.
 */

import type { Cpu } from '../cpu.ts';
import { CF, type IntegerSize } from '../flags.ts';
import { I64, i32, i64, type Node, select } from '../nodes.ts';
import { highProduct } from './arithmetic.ts';
import { type Meaning, maskTo, signExtend } from './common.ts';

const RDX = 2;
const ONE = i64.small(1);
const ZERO = i64.small(0);
const ALL = i64.small(-1);

const carry = (condition: Node): Node => i64.mul(i64.extendI32U(condition), i64.small(CF));

const andNot: Meaning = (cpu) => {
  const { f, size } = cpu;
  const b = f.let(cpu.read(2));
  const result = f.let(i64.and(i64.xor(cpu.read(1), ALL), b));
  cpu.write(0, result);
  cpu.flags.result(size, result, ZERO);
};

/** BLSR, BLSMSK, BLSI: of a source and the source less one, or negated. CF tells whether the source is (BLSI: is not) zero. */
function lowestBit(compute: (source: Node) => Node, carryIfZero: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const source = f.let(cpu.read(1));
    const result = f.let(maskTo(size, compute(source)));
    cpu.write(0, result);
    const isZero = i64.eqz(source);
    cpu.flags.result(size, result, carry(carryIfZero ? isZero : i32.eqz(isZero)));
  };
}

/** All ones below bit `count`, 0 to 255. */
function lowMask(count: Node): Node {
  return select(i64.sub(i64.shl(ONE, count), ONE), ALL, i64.ltU(count, i64.small(64)));
}

/** Start in bits 7-0 of the control, length in bits 15-8. */
const extract: Meaning = (cpu) => {
  const { f, size } = cpu;
  const source = f.let(cpu.read(1));
  const control = f.let(cpu.read(2));
  const start = f.let(i64.and(control, i64.small(0xff)));
  const length = f.let(i64.and(i64.shrU(control, i64.small(8)), i64.small(0xff)));
  const moved = select(i64.shrU(source, start), ZERO, i64.ltU(start, i64.small(64)));
  const result = f.let(i64.and(moved, lowMask(length)));
  cpu.write(0, result);
  cpu.flags.result(size, result, ZERO);
};

const zeroHigh: Meaning = (cpu) => {
  const { f, size } = cpu;
  const source = f.let(cpu.read(1));
  const count = f.let(i64.and(cpu.read(2), i64.small(0xff)));
  const result = f.let(i64.and(source, lowMask(count)));
  cpu.write(0, result);
  cpu.flags.result(size, result, carry(i64.geU(count, i64.small(8 * size))));
};

/** SHLX, SHRX, SARX: no flags. */
function shift(compute: (cpu: Cpu, source: Node, count: Node) => Node): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const source = f.let(cpu.read(1));
    const count = f.let(i64.and(cpu.read(2), i64.small(8 * cpu.size - 1)));
    cpu.write(0, compute(cpu, source, count));
  };
}

const rotate: Meaning = (cpu) => {
  const { f, size } = cpu;
  const source = f.let(cpu.read(1));
  const count = f.let(i64.and(cpu.read(2), i64.small(8 * size - 1)));
  if (size === 8) cpu.write(0, i64.rotr(source, count));
  else cpu.write(0, i64.or(i64.shrU(source, count), i64.shl(source, i64.sub(i64.small(32), count))));
};

/** First the low half, then the high one: they may be the same register. */
const multiply: Meaning = (cpu) => {
  const { f, size } = cpu;
  const b = f.let(cpu.read(2));
  const a = f.let(cpu.gpr(RDX, size as IntegerSize));
  const low = f.let(i64.mul(a, b));
  const high = size === 8 ? highProduct(cpu, a, b) : i64.shrU(low, i64.small(32));
  cpu.write(1, low);
  cpu.write(0, high);
};

/** PDEP and PEXT: bit by bit of the mask, from the lowest. */
function gather(deposit: boolean): Meaning {
  return (cpu) => {
    const { f } = cpu;
    const mask = f.temporary(I64);
    const source = f.temporary(I64);
    const result = f.temporary(I64);
    const bit = f.temporary(I64);
    f.set(mask, cpu.read(2));
    f.set(source, cpu.read(1));
    f.set(result, ZERO);
    f.set(bit, ONE);
    f.block((done) => {
      f.loop((next) => {
        f.brIf(done, i64.eqz(mask));
        const lowest = f.let(i64.and(mask, i64.sub(ZERO, mask)));
        const [from, to] = deposit ? [bit, lowest] : [lowest, bit];
        f.set(result, i64.or(result, select(to, ZERO, i64.ne(i64.and(source, from), ZERO))));
        f.set(bit, i64.shl(bit, ONE));
        f.set(mask, i64.xor(mask, lowest));
        f.br(next);
      });
    });
    cpu.write(0, result);
  };
}

export const BMI: Readonly<Record<string, Meaning>> = {
  andn: andNot,
  blsr: lowestBit((source) => i64.and(source, i64.sub(source, ONE)), true),
  blsmsk: lowestBit((source) => i64.xor(source, i64.sub(source, ONE)), true),
  blsi: lowestBit((source) => i64.and(source, i64.sub(ZERO, source)), false),
  bextr: extract,
  bzhi: zeroHigh,
  shlx: shift((_cpu, source, count) => i64.shl(source, count)),
  shrx: shift((_cpu, source, count) => i64.shrU(source, count)),
  sarx: shift((cpu, source, count) => i64.shrS(signExtend(cpu.size, source), count)),
  rorx: rotate,
  mulx: multiply,
  pdep: gather(true),
  pext: gather(false),
};
