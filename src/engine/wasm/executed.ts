/** Counting of executed instructions, for statistics: at STATE.executed, as f64 because those are exact far enough and JavaScript's own. */

import type { FunctionBuilder } from './function-builder.ts';
import { CPU, STATE } from './layout.ts';
import { f64, i32 } from './nodes.ts';

/** Which of the two counts. */
export const INTERPRETED = 0;
export const TRANSLATED = 8;

export function addExecuted(f: FunctionBuilder, which: number, count: number): void {
  const at = STATE.executed + which;
  const zero = i32.const(0);
  f.store(8, CPU, zero, at, f64.add(f64.load(CPU, zero, at), f64.convertI32S(i32.const(count))));
}
