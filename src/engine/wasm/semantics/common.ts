/** What the meanings of instructions share. */

import type { Cpu } from '../cpu.ts';
import type { IntegerSize } from '../flags.ts';
import { i64, type Node } from '../nodes.ts';

/** Writes the code of one instruction. */
export type Meaning = (cpu: Cpu) => void;

export function signExtend(size: IntegerSize, value: Node): Node {
  switch (size) {
    case 1:
      return i64.extend8S(value);
    case 2:
      return i64.extend16S(value);
    case 4:
      return i64.extend32S(value);
    default:
      return value;
  }
}

/** Clears what is above `size`. */
export function maskTo(size: IntegerSize, value: Node): Node {
  return size === 8 ? value : i64.and(value, size === 4 ? i64.const(-1, 0) : i64.small(size === 2 ? 0xffff : 0xff));
}

export const zeroExtend = maskTo;
