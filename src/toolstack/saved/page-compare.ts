/**
 * Which lines of a page differ from what was sent of it. In WebAssembly, 64 bytes at a time: as many words in JavaScript take three times as
 * long, and the guest stands still meanwhile.
 */

import { FunctionBuilder } from '../../engine/wasm/function-builder.ts';
import { ModuleBuilder } from '../../engine/wasm/module-builder.ts';
import { I32, i32, local, type Node } from '../../engine/wasm/nodes.ts';
import { v128 } from '../../engine/wasm/simd.ts';

export const LINE_BYTES = 64;
/** A bit for each. */
export const LINES_COMPARED = 32;
const VECTOR_BYTES = 16;

/**
 * Of the LINES_COMPARED lines from these bytes on: which differ, the first in the lowest bit.
 * @param at in the first memory
 * @param otherAt in the second memory
 */
export type CompareLines = (at: number, otherAt: number) => number;

/** Both memories are shared, and do not grow. */
export function createCompareLines(memory: WebAssembly.Memory, other: WebAssembly.Memory): CompareLines {
  const m = new ModuleBuilder();
  const pages = [memory, other].map(({ buffer }) => buffer.byteLength / 65536);
  const [one, two] = pages.map((count, i) => m.importMemory('e', `memory${i}`, count, count));
  const f = new FunctionBuilder([I32, I32]);
  const [at, otherAt] = [local(0, I32), local(1, I32)];
  const mask = f.newLocal(I32);
  f.set(mask, i32.const(0));
  for (let line = 0; line < LINES_COMPARED; line++) {
    const parts: Node[] = [];
    for (let offset = line * LINE_BYTES; offset < (line + 1) * LINE_BYTES; offset += VECTOR_BYTES)
      parts.push(v128.xor(v128.load(one, at, offset), v128.load(two, otherAt, offset)));
    const differs = v128.anyTrue(parts.reduce((all, part) => v128.or(all, part)));
    f.set(mask, i32.or(mask, i32.shl(differs, i32.const(line))));
  }
  f.return(mask);
  const compare = m.declare([I32, I32], [I32]);
  m.define(compare, f);
  m.export('compare', compare);
  const instance = new WebAssembly.Instance(new WebAssembly.Module(m.finish()), {
    e: { memory0: memory, memory1: other },
  });
  return instance.exports['compare'] as CompareLines;
}
