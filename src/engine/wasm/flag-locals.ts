/** The flags between functions: in memory 1; within one, in three locals. */

import type { FlagLocals } from './flags.ts';
import type { FunctionBuilder } from './function-builder.ts';
import { CPU, STATE } from './layout.ts';
import { call, I32, I64, i32, i64 } from './nodes.ts';

const zeroAddress = i32.const(0);

/** `compute`: index of the module's function from `computeFlags()`. */
export function newFlagLocals(f: FunctionBuilder, compute: number): FlagLocals {
  return {
    kind: f.newLocal(I32),
    a: f.newLocal(I64),
    b: f.newLocal(I64),
    compute: (kind, a, b) => call(compute, I32, kind, a, b),
  };
}

export function loadFlags(f: FunctionBuilder, flags: FlagLocals): void {
  f.set(flags.kind, i32.load(CPU, zeroAddress, STATE.flagsKind));
  f.set(flags.a, i64.load(CPU, zeroAddress, STATE.flagsA));
  f.set(flags.b, i64.load(CPU, zeroAddress, STATE.flagsB));
}

export function storeFlags(f: FunctionBuilder, flags: FlagLocals): void {
  f.store(4, CPU, zeroAddress, STATE.flagsKind, flags.kind);
  f.store(8, CPU, zeroAddress, STATE.flagsA, flags.a);
  f.store(8, CPU, zeroAddress, STATE.flagsB, flags.b);
}
