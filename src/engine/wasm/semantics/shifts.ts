/** Shifts and rotates. Source: Intel SDM vol. 2, "SAL/SAR/SHL/SHR", "RCL/RCR/ROL/ROR", "SHLD", "SHRD". */

import type { Cpu } from '../cpu.ts';
import { type IntegerSize, OF } from '../flags.ts';
import { I64, i32, i64, type Node } from '../nodes.ts';
import { type Meaning, maskTo, signExtend } from './common.ts';

const ONE = i64.small(1);

/** The count, masked to 5 or 6 bits, kept. */
function shiftCount(cpu: Cpu, operand: number): Node {
  const mask = cpu.size === 8 ? 63 : 31;
  return cpu.f.let(i64.and(cpu.operands[operand].kind === 'one' ? ONE : cpu.read(operand), i64.small(mask)));
}

/** Runs `body` unless the count is 0: then nothing changes but the upper half of a 32-bit register. */
function unlessZero(cpu: Cpu, count: Node, body: () => void): void {
  const destination = cpu.operands[0];
  if (destination.kind === 'memory') {
    // A count of 0 still accesses memory, and may fault.
    body();
    return;
  }
  cpu.f.if(i64.ne(count, i64.small(0)), body, () => {
    if (cpu.size === 4) cpu.write(0, cpu.read(0));
  });
}

/** Applies `compute` to the operand: memory is read and written once, for writing. Flags change only for a count that is not 0. */
function change(cpu: Cpu, count: Node, compute: (old: Node) => Node, flags: (old: Node, result: Node) => void): void {
  const { f, size } = cpu;
  unlessZero(cpu, count, () => {
    const destination = cpu.operands[0];
    if (destination.kind === 'memory') {
      const at = cpu.translate(cpu.address(0), size, 'modify');
      const old = cpu.load(at, size);
      const result = f.let(compute(old));
      cpu.store(at, size, result);
      if (cpu.flags.isDead) return;
      f.if(i64.ne(count, i64.small(0)), () => flags(old, result));
      return;
    }
    const old = f.let(cpu.read(0));
    const result = f.let(compute(old));
    cpu.write(0, result);
    if (!cpu.flags.isDead) flags(old, result);
  });
}

const bit = (value: Node, at: Node): Node => i64.and(i64.shrU(value, at), ONE);
const topBit = (size: IntegerSize, value: Node): Node => bit(value, i64.small(8 * size - 1));
const place = (value: Node, flag: number): Node => (flag === OF ? i64.shl(value, i64.small(11)) : value);

/** SHL, SHR, SAR. OF is defined for a count of 1 only; AF never: real CPUs clear it. */
function shift(kind: 'shl' | 'shr' | 'sar'): Meaning {
  return (cpu) => {
    const { size } = cpu;
    const bits = 8 * size;
    const count = shiftCount(cpu, 1);
    const before = i64.sub(count, ONE);
    // Counts of 8- and 16-bit operands go up to 31: in 64 bits nothing of that is lost, and the count before is below 64.
    change(
      cpu,
      count,
      (old) =>
        kind === 'shl'
          ? i64.shl(old, count)
          : kind === 'shr'
            ? i64.shrU(old, count)
            : i64.shrS(signExtend(size, old), count),
      (old, result) => {
        const { f } = cpu;
        const carry = f.let(
          kind === 'shl'
            ? size === 8
              ? bit(old, i64.sub(i64.small(64), count))
              : bit(result, i64.small(bits))
            : kind === 'shr'
              ? bit(old, before)
              : bit(signExtendedKept(cpu, old), before),
        );
        const overflow =
          kind === 'shl'
            ? i64.xor(topBit(size, result), carry)
            : kind === 'shr'
              ? // As CPUs do it for all counts: the top two bits of the result differ.
                i64.xor(topBit(size, result), bit(result, i64.small(bits - 2)))
              : i64.small(0);
        cpu.flags.result(size, maskTo(size, result), i64.or(carry, place(overflow, OF)));
      },
    );
  };
}

function signExtendedKept(cpu: Cpu, old: Node): Node {
  return cpu.f.let(signExtend(cpu.size, old));
}

/** CF and OF change, the others stay. */
function setCarryAndOverflow(cpu: Cpu, carry: Node, overflow: Node): void {
  const { f } = cpu;
  const others = f.let(i64.extendI32U(i32.and(cpu.flags.bits(), i32.const(0xd4))));
  cpu.flags.explicit(i64.or(others, i64.or(carry, place(overflow, OF))));
}

function rotate(left: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const bits = 8 * size;
    const count = shiftCount(cpu, 1);
    change(
      cpu,
      count,
      (old) => {
        if (size === 8) return left ? i64.rotl(old, count) : i64.rotr(old, count);
        if (size === 4)
          return i64.extendI32U(
            left ? i32.rotl(i32.wrap(old), i32.wrap(count)) : i32.rotr(i32.wrap(old), i32.wrap(count)),
          );
        const turn = f.let(i64.and(count, i64.small(bits - 1)));
        const back = i64.and(i64.sub(i64.small(bits), turn), i64.small(bits - 1));
        return maskTo(
          size,
          i64.or(left ? i64.shl(old, turn) : i64.shrU(old, turn), left ? i64.shrU(old, back) : i64.shl(old, back)),
        );
      },
      (_old, result) => {
        const top = f.let(topBit(size, result));
        const carry = left ? i64.and(result, ONE) : top;
        const overflow = left ? i64.xor(top, i64.and(result, ONE)) : i64.xor(top, bit(result, i64.small(bits - 2)));
        setCarryAndOverflow(cpu, carry, overflow);
      },
    );
  };
}

/** RCL and RCR, one bit at a time: they are rare. */
function rotateThroughCarry(left: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const bits = 8 * size;
    const count = shiftCount(cpu, 1);
    const turns = size <= 2 ? f.let(i64.remU(count, i64.small(bits + 1))) : count;
    const carry = f.temporary(I64);
    f.set(carry, i64.extendI32U(cpu.flags.carry()));
    const value = f.temporary(I64);
    const left64 = f.temporary(I64);
    const out = f.temporary(I64);
    change(
      cpu,
      count,
      (old) => {
        f.set(value, old);
        f.set(left64, turns);
        f.block((done) => {
          f.loop((next) => {
            f.brIf(done, i64.eqz(left64));
            if (left) {
              f.set(out, topBit(size, value));
              f.set(value, maskTo(size, i64.or(i64.shl(value, ONE), carry)));
            } else {
              f.set(out, i64.and(value, ONE));
              f.set(value, i64.or(i64.shrU(value, ONE), i64.shl(carry, i64.small(bits - 1))));
            }
            f.set(carry, out);
            f.set(left64, i64.sub(left64, ONE));
            f.br(next);
          });
        });
        return value;
      },
      (_old, result) => {
        const overflow = left
          ? i64.xor(topBit(size, result), carry)
          : i64.xor(topBit(size, result), bit(result, i64.small(bits - 2)));
        setCarryAndOverflow(cpu, carry, f.let(overflow));
      },
    );
  };
}

/** SHLD and SHRD. 16-bit counts above 16 are undefined: the operand is taken as 32 bits of destination and source, then destination again. */
function doubleShift(left: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const bits = 8 * size;
    const count = shiftCount(cpu, 2);
    const source = f.let(cpu.read(1));
    change(
      cpu,
      count,
      (old) => {
        if (size === 8) {
          const back = i64.sub(i64.small(64), count);
          // A count of 0 (memory only): the other half must vanish.
          const other = left ? i64.shrU(source, back) : i64.shl(source, back);
          const kept = f.let(other);
          const guarded = i64.and(kept, i64.sub(i64.small(0), i64.extendI32U(i64.ne(count, i64.small(0)))));
          return i64.or(left ? i64.shl(old, count) : i64.shrU(old, count), guarded);
        }
        if (size === 4) {
          const pair = left ? i64.or(i64.shl(old, i64.small(32)), source) : i64.or(i64.shl(source, i64.small(32)), old);
          return maskTo(4, left ? i64.shrU(i64.shl(pair, count), i64.small(32)) : i64.shrU(pair, count));
        }
        const wide = left
          ? i64.or(i64.or(i64.shl(old, i64.small(32)), i64.shl(source, i64.small(16))), old)
          : i64.or(i64.or(i64.shl(old, i64.small(32)), i64.shl(source, i64.small(16))), old);
        return maskTo(2, left ? i64.shrU(i64.shl(wide, count), i64.small(32)) : i64.shrU(wide, count));
      },
      (old, result) => {
        const carry = left
          ? size === 2
            ? bit(i64.or(i64.shl(old, i64.small(16)), source), i64.and(i64.sub(i64.small(32), count), i64.small(63)))
            : bit(old, i64.sub(i64.small(bits), count))
          : size === 2
            ? bit(i64.or(i64.shl(source, i64.small(16)), old), i64.sub(count, ONE))
            : bit(old, i64.sub(count, ONE));
        const overflow = i64.xor(topBit(size, old), topBit(size, result));
        cpu.flags.result(size, result, i64.or(f.let(carry), place(f.let(overflow), OF)));
      },
    );
  };
}

export const SHIFTS: Readonly<Record<string, Meaning>> = {
  shl: shift('shl'),
  sal: shift('shl'),
  shr: shift('shr'),
  sar: shift('sar'),
  rol: rotate(true),
  ror: rotate(false),
  rcl: rotateThroughCarry(true),
  rcr: rotateThroughCarry(false),
  shld: doubleShift(true),
  shrd: doubleShift(false),
};
