/** The operand types of the opcode map (x86/operands.ts) as places that a `Cpu` can read and write. */

import { OPERANDS, type OperandPlace, type OperandSize, type OperandType } from '../x86/operands.ts';
import type { Operand, RegisterField } from './cpu.ts';
import type { IntegerSize } from './flags.ts';

function bytes(size: OperandSize, operandSize: number, wide: boolean): number {
  switch (size) {
    case 'v':
      return operandSize;
    case 'y':
      return Math.max(operandSize, 4);
    case 'z':
      return Math.min(operandSize, 4);
    case 'x':
      return wide ? 32 : 16;
    case 'h':
      return wide ? 16 : 8;
    case 'f':
      return wide ? 8 : 4;
    case 'e':
      return wide ? 4 : 2;
    default:
      return typeof size === 'number' ? size : 0;
  }
}

const FIELDS: Readonly<Record<OperandPlace, RegisterField>> = { reg: 0, rm: 1, vvvv: 2, imm: 3, fixed: 0 };

/** The operands of a form at an operand size, with `memory` saying what a ModRM operand that may be either is. `wide`: VEX.L. */
export function resolveOperands(
  types: readonly OperandType[],
  operandSize: number,
  memory: boolean,
  wide = false,
): Operand[] {
  return types.map((type): Operand => {
    const info = OPERANDS[type];
    const size = bytes(info.size, operandSize, wide);
    if (info.class === 'mem' || (info.place === 'rm' && info.mod !== 'register' && type[0] !== 'Z' && memory))
      return { kind: 'memory', size: bytes(info.memorySize, operandSize, wide) };
    switch (info.class) {
      case 'gpr':
        return info.place === 'fixed'
          ? { kind: 'fixed', size: size as IntegerSize, gpr: info.fixed }
          : { kind: 'gpr', size: size as IntegerSize, field: FIELDS[info.place] };
      case 'immediate':
        return { kind: 'immediate', size: size as IntegerSize };
      case 'mask-destination':
        return { kind: 'fixed', size: 8, gpr: 7 };
      case 'one':
        return { kind: 'one', size: 1 };
      case 'segment':
        return { kind: 'segment', size: 2 };
      case 'xmm':
        return { kind: 'xmm', size, field: FIELDS[info.place] };
      case 'mmx':
        return { kind: 'mmx', size: 8, field: FIELDS[info.place] };
      default:
        return { kind: 'other', type };
    }
  });
}
