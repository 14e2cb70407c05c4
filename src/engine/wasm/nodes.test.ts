import { describe, expect, it } from 'vitest';
import { FunctionBuilder } from './function-builder.ts';
import { ModuleBuilder } from './module-builder.ts';
import { CONST, I32, I64, i32, i64, local, type Node, type ValueType } from './nodes.ts';

/** What WebAssembly makes of an operation on two parameters. */
function computed(type: ValueType, operation: (a: Node, b: Node) => Node): (a: never, b: never) => bigint | number {
  const m = new ModuleBuilder();
  const f = new FunctionBuilder([type, type]);
  const value = operation(local(0, type), local(1, type));
  f.return(value);
  f.unreachable();
  const index = m.declare([type, type], [value.type]);
  m.define(index, f);
  m.export('f', index);
  return new WebAssembly.Instance(new WebAssembly.Module(m.finish())).exports['f'] as never;
}

const of64 = (value: bigint): Node => i64.const(Number(value & 0xffffffffn), Number((value >> 32n) & 0xffffffffn));
const numberOf = ({ lo, hi, type }: Node): bigint =>
  type === I32 ? BigInt(lo) : BigInt.asIntN(64, (BigInt(hi) << 32n) | BigInt(lo >>> 0));

const VALUES = [
  0n,
  1n,
  2n,
  31n,
  32n,
  33n,
  63n,
  64n,
  255n,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  0x100000000n,
  0x123456789abcdef0n,
  -1n,
  -2n,
  -0x8000000000000000n,
];

describe('constants are folded as WebAssembly computes them', () => {
  for (const name of ['add', 'sub', 'and', 'or', 'xor', 'shl', 'shrS', 'shrU', 'eq', 'ne'] as const)
    it(`i64.${name}`, () => {
      const f = computed(I64, i64[name]);
      for (const a of VALUES)
        for (const b of VALUES) {
          const node = i64[name](of64(a), of64(b));
          expect(node.kind).toBe(CONST);
          expect([a, b, numberOf(node)]).toEqual([a, b, BigInt(f(a as never, b as never))]);
        }
    });
  for (const name of ['add', 'sub', 'and', 'or', 'xor', 'shl', 'shrS', 'shrU', 'eq', 'ne'] as const)
    it(`i32.${name}`, () => {
      const f = computed(I32, i32[name]);
      for (const a of VALUES)
        for (const b of VALUES) {
          const [x, y] = [Number(BigInt.asIntN(32, a)), Number(BigInt.asIntN(32, b))];
          const node = i32[name](i32.const(x), i32.const(y));
          expect([x, y, node.kind, node.lo]).toEqual([x, y, CONST, f(x as never, y as never)]);
        }
    });
  it('a mask of the low word, an extension, a wrap, tests for zero', () => {
    const mask = computed(I64, (a, b) => i64.add(i64.and(a, i64.const(-1, 0)), i64.extendI32U(i32.wrap(b))));
    for (const a of VALUES) {
      expect(mask(a as never, a as never)).toBe(BigInt.asIntN(64, 2n * BigInt.asUintN(32, a)));
      expect(numberOf(i64.and(of64(a), i64.const(-1, 0)))).toBe(BigInt.asUintN(32, a));
      expect(numberOf(i64.extendI32U(i32.wrap(of64(a))))).toBe(BigInt.asUintN(32, a));
      expect(i64.eqz(of64(a)).lo).toBe(a === 0n ? 1 : 0);
    }
  });
});
