/** Bit tests, scans and counts, byte swaps. Source: Intel SDM vol. 2, the page of each mnemonic. */

import type { Cpu } from '../cpu.ts';
import { type IntegerSize, ZF } from '../flags.ts';
import { I32, I64, i32, i64, type Node } from '../nodes.ts';
import { type Meaning, maskTo, signExtend } from './common.ts';

const ONE = i64.small(1);
const ZERO = i64.small(0);

/** Only CF changes (the others are undefined but for ZF; CPUs keep them). */
function setCarry(cpu: Cpu, carry: Node): void {
  const others = i64.extendI32U(i32.and(cpu.flags.bits(), i32.const(0x8d4)));
  cpu.flags.explicit(cpu.f.let(i64.or(others, carry)));
}

type BitChange = 'none' | 'set' | 'reset' | 'complement';

/** BT, BTS, BTR, BTC. With a register as bit number and memory, the number reaches beyond the operand. */
function bitTest(kind: BitChange): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const bits = 8 * size;
    const number = f.let(cpu.read(1));
    const within = f.let(i64.and(number, i64.small(bits - 1)));
    const mask = i64.shl(ONE, within);
    const changed = (old: Node): Node =>
      kind === 'set'
        ? i64.or(old, mask)
        : kind === 'reset'
          ? i64.and(old, i64.xor(mask, i64.small(-1)))
          : i64.xor(old, mask);
    const carry = (old: Node): Node => i64.and(i64.shrU(old, within), ONE);
    if (cpu.operands[0].kind !== 'memory') {
      const old = f.let(cpu.read(0));
      if (kind !== 'none') cpu.write(0, changed(old));
      setCarry(cpu, carry(old));
      return;
    }
    let address = cpu.address(0);
    if (cpu.operands[1].kind !== 'immediate') {
      const shift = size === 8 ? 6 : size === 4 ? 5 : 4;
      const distance = i64.shl(i64.shrS(signExtend(size, number), i64.small(shift)), i64.small(shift - 3));
      address = f.let(i64.add(address, distance));
    }
    if (kind === 'none') {
      setCarry(cpu, carry(cpu.load(cpu.translate(address, size, 'read'), size)));
      return;
    }
    const at = cpu.translate(address, size, 'modify');
    if (cpu.locked) {
      const operation = kind === 'set' ? 'or' : kind === 'reset' ? 'and' : 'xor';
      const value = kind === 'reset' ? i64.xor(mask, i64.small(-1)) : mask;
      setCarry(cpu, carry(cpu.modifyAt(address, at, size, operation, f.let(value))));
      return;
    }
    const old = cpu.load(at, size);
    cpu.store(at, size, changed(old));
    setCarry(cpu, carry(old));
  };
}

/** BSF and BSR: a source of 0 leaves the destination alone and sets ZF. */
function scan(forward: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const source = f.let(cpu.read(1));
    f.if(
      i64.ne(source, ZERO),
      () => cpu.write(0, forward ? i64.ctz(source) : i64.sub(i64.small(63), i64.clz(source))),
      () => {
        // The upper half of a 32-bit destination: real CPUs leave it too.
      },
    );
    cpu.flags.result(size, source, ZERO);
  };
}

/** TZCNT and LZCNT: of 0 they give the operand's width. */
function count(trailing: boolean): Meaning {
  return (cpu) => {
    const { f, size } = cpu;
    const bits = 8 * size;
    const source = f.let(cpu.read(1));
    const result = f.let(
      trailing
        ? i64.ctz(size === 8 ? source : i64.or(source, i64.shl(ONE, i64.small(bits))))
        : i64.sub(i64.clz(source), i64.small(64 - bits)),
    );
    cpu.write(0, result);
    cpu.flags.explicit(
      i64.or(i64.extendI32U(i64.eqz(source)), i64.mul(i64.extendI32U(i64.eqz(result)), i64.small(ZF))),
    );
  };
}

const populationCount: Meaning = (cpu) => {
  const source = cpu.f.let(cpu.read(1));
  cpu.write(0, i64.popcnt(source));
  cpu.flags.explicit(i64.mul(i64.extendI32U(i64.eqz(source)), i64.small(ZF)));
};

/** The bytes of the low `size` bytes of a value in reverse order. */
export function reverseBytes(cpu: Cpu, size: IntegerSize, value: Node): Node {
  const { f } = cpu;
  if (size === 2)
    return i64.or(
      i64.shl(i64.and(value, i64.small(0xff)), i64.small(8)),
      i64.and(i64.shrU(value, i64.small(8)), i64.small(0xff)),
    );
  const swap = (from: Node, mask: Node, by: number): Node =>
    f.let(i64.or(i64.shl(i64.and(from, mask), i64.small(by)), i64.and(i64.shrU(from, i64.small(by)), mask)));
  const bytes = swap(f.let(value), i64.const(0x00ff00ff, 0x00ff00ff), 8);
  const words = swap(bytes, i64.const(0x0000ffff, 0x0000ffff), 16);
  return size === 4 ? maskTo(4, words) : i64.rotl(words, i64.small(32));
}

const byteSwap: Meaning = (cpu) => {
  // 16-bit operands are undefined: CPUs give 0.
  if (cpu.size === 2) cpu.write(0, ZERO);
  else cpu.write(0, reverseBytes(cpu, cpu.size, cpu.f.let(cpu.read(0))));
};

const moveReversed: Meaning = (cpu) => {
  cpu.write(0, cpu.f.let(reverseBytes(cpu, cpu.size, cpu.f.let(cpu.read(1)))));
};

/** CRC32: polynomial 0x11EDC6F41, bits reversed. */
const crc32c: Meaning = (cpu) => {
  const { f } = cpu;
  const source = cpu.operands[1];
  const size = (source.kind === 'other' ? 1 : source.size) as IntegerSize;
  const value = f.temporary(I64);
  const left = f.temporary(I32);
  // Read what may fault first, and keep the destination's low half.
  const input = f.let(cpu.read(1));
  f.set(value, i64.xor(maskTo(4, cpu.read(0)), input));
  f.set(left, i32.const(8 * size));
  f.loop((next) => {
    f.set(
      value,
      i64.xor(i64.shrU(value, ONE), i64.and(i64.sub(ZERO, i64.and(value, ONE)), i64.const(0x82f63b78 | 0, 0))),
    );
    f.set(left, i32.sub(left, i32.const(1)));
    f.brIf(next, left);
  });
  cpu.write(0, maskTo(4, value));
};

export const BITS: Readonly<Record<string, Meaning>> = {
  bt: bitTest('none'),
  bts: bitTest('set'),
  btr: bitTest('reset'),
  btc: bitTest('complement'),
  bsf: scan(true),
  bsr: scan(false),
  tzcnt: count(true),
  lzcnt: count(false),
  popcnt: populationCount,
  bswap: byteSwap,
  movbe: moveReversed,
  crc32: crc32c,
};
