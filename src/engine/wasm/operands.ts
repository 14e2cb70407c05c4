/** The operand types of the opcode map (x86/operands.ts) as places that a `Cpu` can read and write. */

import { OPERANDS, type OperandPlace, type OperandSize, type OperandType } from '../x86/operands.ts';
import type { Operand } from './cpu.ts';
import type { IntegerSize } from './flags.ts';

function bytes(size: OperandSize, operandSize: number): number {
  switch (size) {
    case 'v':
      return operandSize;
    case 'y':
      return Math.max(operandSize, 4);
    case 'z':
      return Math.min(operandSize, 4);
    case 'x':
      return 16;
    case 'h':
      return 8;
    case 'f':
      return 4;
    case 'e':
      return 2;
    default:
      return typeof size === 'number' ? size : 0;
  }
}

const field = (place: OperandPlace): 0 | 1 | 2 => (place === 'reg' ? 0 : place === 'rm' ? 1 : 2);

/** The operands of a form at an operand size, with `memory` saying what a ModRM operand that may be either is. */
export function resolveOperands(types: readonly OperandType[], operandSize: number, memory: boolean): Operand[] {
  return types.map((type): Operand => {
    const info = OPERANDS[type];
    const size = bytes(info.size, operandSize);
    if (info.class === 'mem' || (info.place === 'rm' && info.mod !== 'register' && type[0] !== 'Z' && memory))
      return { kind: 'memory', size: bytes(info.memorySize, operandSize) };
    switch (info.class) {
      case 'gpr':
        return info.place === 'fixed'
          ? { kind: 'fixed', size: size as IntegerSize, gpr: info.fixed }
          : { kind: 'gpr', size: size as IntegerSize, field: field(info.place) };
      case 'immediate':
        return { kind: 'immediate', size: size as IntegerSize };
      case 'mask-destination':
        return { kind: 'fixed', size: 8, gpr: 7 };
      case 'one':
        return { kind: 'one', size: 1 };
      case 'xmm':
        return { kind: 'xmm', size, field: field(info.place) };
      case 'mmx':
        return { kind: 'mmx', size: 8, field: field(info.place) };
      default:
        return { kind: 'other', type };
    }
  });
}
