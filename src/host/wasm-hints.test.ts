/** What V8 itself says of the functions that Domus gives hints for. */

import { setFlagsFromString } from 'node:v8';
import { beforeAll, expect, it } from 'vitest';
import { FunctionBuilder } from '../engine/wasm/function-builder.ts';
import { type Compilation, ModuleBuilder } from '../engine/wasm/module-builder.ts';
import { I32, i32, local } from '../engine/wasm/nodes.ts';
import { heedWasmHints } from './wasm-hints.ts';

type Added = (a: number) => number;
let compilerOf: (f: Added) => string;

beforeAll(() => {
  setFlagsFromString('--allow-natives-syntax');
  compilerOf = new Function(
    'f',
    "return %IsTurboFanFunction(f) ? 'optimizing' : %IsLiftoffFunction(f) ? 'quick' : %IsUncompiledWasmFunction(f) ? 'none' : '?'",
  ) as typeof compilerOf;
  heedWasmHints();
});

/** A function that nobody has called; another one for each `plus`, since V8 knows modules again. */
function added(plus: number, compilation?: Compilation): Added {
  const m = new ModuleBuilder();
  const f = new FunctionBuilder([I32]);
  f.return(i32.add(local(0, I32), i32.const(plus)));
  const index = m.declare([I32], [I32]);
  m.define(index, f);
  m.export('added', index);
  return new WebAssembly.Instance(new WebAssembly.Module(m.finish(compilation))).exports['added'] as Added;
}

it('V8 compiles functions when they are called, if nothing is said', () => {
  const f = added(1);
  expect(compilerOf(f)).toBe('none');
  expect(f(1)).toBe(2);
  expect(compilerOf(f)).toBe('quick');
});

it.each([
  ['at once', 'quick'],
  ['optimized', 'optimizing'],
] as const)('V8 compiles %s what is to be: %s compiler', (compilation, compiler) => {
  const f = added(compiler.length, compilation);
  expect(compilerOf(f)).toBe(compiler);
  expect(f(1)).toBe(1 + compiler.length);
});
