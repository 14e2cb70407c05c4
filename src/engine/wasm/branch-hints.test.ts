import { expect, it } from 'vitest';
import { ByteWriter } from './byte-writer.ts';
import { FunctionBuilder } from './function-builder.ts';
import { ModuleBuilder } from './module-builder.ts';
import { I32, i32, local } from './nodes.ts';

const IF = 0x04;
const BR_IF = 0x0d;

/** 200 locals, so that the head of the body has several bytes; an `if` and a branch out of a block that are seldom and often. */
function hinted(): FunctionBuilder {
  const f = new FunctionBuilder([I32]);
  for (let i = 0; i < 200; i++) f.newLocal(I32);
  f.seldom(local(0, I32), () => f.return(i32.const(1)));
  f.block((label) => f.brIf(label, local(0, I32), true));
  f.return(i32.const(2));
  f.unreachable();
  return f;
}

it('names the branches by their places in the body', () => {
  const out = new ByteWriter();
  const hints = hinted().finish(out);
  const body = out.view();
  // The size of the body comes before: one byte of it here.
  expect(hints.map(({ at, likely }) => [body[1 + at], likely])).toEqual([
    [IF, false],
    [BR_IF, true],
  ]);
});

it('makes a module that is valid with the section', () => {
  const m = new ModuleBuilder();
  const index = m.declare([I32], [I32]);
  m.define(index, hinted());
  m.export('f', index);
  const bytes = m.finish();
  expect(new TextDecoder('latin1').decode(bytes)).toContain('metadata.code.branch_hint');
  const module = new WebAssembly.Module(bytes);
  expect(WebAssembly.Module.customSections(module, 'metadata.code.branch_hint')).toHaveLength(1);
  expect((new WebAssembly.Instance(module).exports['f'] as (a: number) => number)(1)).toBe(1);
});
