/** Moves, the stack, conditional moves and sets, flag instructions. Source: Intel SDM vol. 2, the page of each mnemonic. */

import { VCPU } from '../../../machine/vcpu-block.ts';
import type { Cpu } from '../cpu.ts';
import { CF, type IntegerSize } from '../flags.ts';
import { i32, i64, type Node } from '../nodes.ts';
import { type Meaning, signExtend } from './common.ts';

const RSP = 4;
const RBP = 5;

const move: Meaning = (cpu) => cpu.write(0, cpu.read(1));

const moveSignExtended: Meaning = (cpu) => {
  const source = cpu.operands[1];
  cpu.write(0, signExtend((source.kind === 'other' ? 1 : source.size) as IntegerSize, cpu.read(1)));
};

const loadAddress: Meaning = (cpu) => cpu.write(0, cpu.address(1));

/** Stores `value` below the stack pointer, which moves after the store: a fault changes nothing. */
export function push(cpu: Cpu, size: IntegerSize, value: Node): void {
  const top = cpu.based(RSP, -size);
  cpu.store(cpu.translate(top, size, 'write'), size, value);
  cpu.setGpr(RSP, 8, top);
}

/** The value at the stack pointer, kept; moves nothing. */
export function stackTop(cpu: Cpu, size: IntegerSize): Node {
  return cpu.load(cpu.translate(cpu.based(RSP, 0), size, 'read'), size);
}

export function dropStack(cpu: Cpu, bytes: number): void {
  cpu.setGpr(RSP, 8, i64.add(cpu.gpr(RSP, 8), i64.small(bytes)));
}

const pushOperand: Meaning = (cpu) => {
  const size: IntegerSize = cpu.instructionSize;
  push(cpu, size, cpu.f.let(cpu.read(0)));
};

/** POP to memory computes its address with the stack pointer already moved. */
const popOperand: Meaning = (cpu) => {
  const { f, size } = cpu;
  const value = stackTop(cpu, size);
  if (cpu.operands[0].kind !== 'memory') {
    dropStack(cpu, size);
    cpu.write(0, value);
    return;
  }
  const old = f.let(cpu.gpr(RSP, 8));
  dropStack(cpu, size);
  const address = cpu.address(0);
  cpu.setGpr(RSP, 8, old);
  cpu.store(cpu.translate(address, size, 'write'), size, value);
  dropStack(cpu, size);
};

const leave: Meaning = (cpu) => {
  const size = cpu.instructionSize;
  const frame = cpu.based(RBP, 0);
  const value = cpu.load(cpu.translate(frame, size, 'read'), size);
  cpu.setGpr(RSP, 8, i64.add(frame, i64.small(size)));
  cpu.setGpr(RBP, size, value);
};

function conditionalMove(code: number): Meaning {
  return (cpu) => {
    const { f } = cpu;
    // The source is read, and may fault, in either case; a 32-bit destination is always zero-extended.
    const value = f.let(cpu.read(1));
    if (cpu.size === 4)
      f.if(
        cpu.flags.condition(code),
        () => cpu.write(0, value),
        () => cpu.write(0, cpu.read(0)),
      );
    else f.if(cpu.flags.condition(code), () => cpu.write(0, value));
  };
}

function setByte(code: number): Meaning {
  return (cpu) => {
    const condition = i64.extendI32U(i32.ne(cpu.flags.condition(code), i32.const(0)));
    cpu.write(0, cpu.f.let(condition));
  };
}

function carryFlag(kind: 'clear' | 'set' | 'complement'): Meaning {
  return (cpu) => {
    const bits = cpu.f.let(i64.extendI32U(i32.and(cpu.flags.bits(), i32.const(0x8d5))));
    cpu.flags.explicit(
      kind === 'clear'
        ? i64.and(bits, i64.small(0x8d4))
        : kind === 'set'
          ? i64.or(bits, i64.small(CF))
          : i64.xor(bits, i64.small(CF)),
    );
  };
}

const DIRECTION = 0x400;

function directionFlag(set: boolean): Meaning {
  return (cpu) => {
    const old = cpu.state(VCPU.rflags, 8);
    cpu.setState(VCPU.rflags, 8, set ? i64.or(old, i64.small(DIRECTION)) : i64.and(old, i64.small(~DIRECTION)));
  };
}

/** LAHF: SF ZF 0 AF 0 PF 1 CF. */
const loadFlags: Meaning = (cpu) => {
  const bits = i64.extendI32U(i32.or(i32.and(cpu.flags.bits(), i32.const(0xd5)), i32.const(2)));
  const old = i64.and(cpu.gpr(0, 2), i64.small(0xff));
  cpu.setGpr(0, 2, i64.or(old, i64.shl(bits, i64.small(8))));
};

const storeFlags: Meaning = (cpu) => {
  const { f } = cpu;
  const overflow = i64.extendI32U(i32.and(cpu.flags.bits(), i32.const(0x800)));
  const low = i64.and(i64.shrU(cpu.gpr(0, 2), i64.small(8)), i64.small(0xd5));
  cpu.flags.explicit(f.let(i64.or(overflow, low)));
};

/** RFLAGS as PUSHF shows it: the six flags from where they are, the rest from the block; VM and RF read 0. */
const pushFlags: Meaning = (cpu) => {
  const { f } = cpu;
  const arithmetic = i64.extendI32U(i32.and(cpu.flags.bits(), i32.const(0x8d5)));
  const rest = i64.and(cpu.state(VCPU.rflags, 8), i64.small(0xfcf72a & ~0x8d5));
  push(cpu, cpu.instructionSize, f.let(i64.or(i64.or(arithmetic, rest), i64.small(2))));
};

const nothing: Meaning = () => {};

const CONDITIONS = ['o', 'no', 'b', 'ae', 'e', 'ne', 'be', 'a', 's', 'ns', 'p', 'np', 'l', 'ge', 'le', 'g'] as const;

export const MOVES: Readonly<Record<string, Meaning>> = {
  mov: move,
  movzx: move,
  movsx: moveSignExtended,
  movsxd: moveSignExtended,
  lea: loadAddress,
  push: pushOperand,
  pop: popOperand,
  leave,
  clc: carryFlag('clear'),
  stc: carryFlag('set'),
  cmc: carryFlag('complement'),
  cld: directionFlag(false),
  std: directionFlag(true),
  lahf: loadFlags,
  sahf: storeFlags,
  pushf: pushFlags,
  pushfq: pushFlags,
  nop: nothing,
  ...Object.fromEntries(CONDITIONS.map((name, code) => [`cmov${name}`, conditionalMove(code)])),
  ...Object.fromEntries(CONDITIONS.map((name, code) => [`set${name}`, setByte(code)])),
};
