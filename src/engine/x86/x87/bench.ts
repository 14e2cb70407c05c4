/**
 * `node src/engine/x86/x87/bench.ts`: nanoseconds for each operation, in chains where each waits for the one before.
 *
 * The least of many short runs, so that a busy machine does little harm; and as a ratio, against the same work on bigint (multiply and
 * shift only, which is less than half of an FMUL).
 */

import { FADD, FDIV, FMUL, FSUB } from './arith.ts';
import { X87_STATE } from './state.ts';
import { X87 } from './x87.ts';

const CALLS = 20_000;
const RUNS = 400;

const x = new X87(new Uint32Array(new SharedArrayBuffer(X87_STATE.SIZE)), 0);
const double = new Float64Array(1);
const halves = new Int32Array(double.buffer);

function push(value: number): void {
  double[0] = value;
  x.fldM64(halves[0], halves[1]);
}

/** The least time of a call, in ns. */
function measure(st0: number, st1: number, calls: (count: number) => void): number {
  x.fninit();
  push(st1);
  push(st0);
  const start = x.words.slice();
  let least = Number.POSITIVE_INFINITY;
  for (let run = 0; run < RUNS; run++) {
    x.words.set(start);
    const before = performance.now();
    calls(CALLS);
    least = Math.min(least, performance.now() - before);
  }
  return (least * 1e6) / CALLS;
}

function report(name: string, st0: number, st1: number, operation: () => void): number {
  const ns = measure(st0, st1, (count) => {
    for (let call = 0; call < count; call++) operation();
  });
  console.log(`${name.padEnd(26)} ${ns.toFixed(1).padStart(8)} ns`);
  return ns;
}

function bigintProduct(): void {
  const at = x.register(0);
  const other = x.register(1);
  const a = (BigInt(x.words[at + 1] >>> 0) << 32n) | BigInt(x.words[at] >>> 0);
  const b = (BigInt(x.words[other + 1] >>> 0) << 32n) | BigInt(x.words[other] >>> 0);
  const product = (a * b) >> 63n;
  x.words[at] = Number(product & 0xffffffffn) | 0;
  x.words[at + 1] = Number(product >> 32n) | 0x80000000;
}

report('fadd st0, st1', 1, 1.0000001234, () => x.arithSt(FADD, 1));
report('fsub st0, st1', 1e9, 1.0000001234, () => x.arithSt(FSUB, 1));
const product = report('fmul st0, st1', 1.5, -0.9999991234, () => x.arithSt(FMUL, 1));
report('fdiv st0, st1', 1.5, -0.9999991234, () => x.arithSt(FDIV, 1));
report('fadd m64', 1, 1, () => x.arithM64(FADD, halves[0], halves[1]));
report('fld m64, fstp m64', 1, 1, () => {
  x.fldM64(halves[0], halves[1]);
  x.fstM64(true);
});
report('fld m80, fstp m80', 1, 1, () => {
  x.fldM80(halves[0], halves[1], 0x3fff);
  x.fstpM80();
});
report('fild m32, fistp m32', 1, 1, () => {
  x.fild(halves[1], 0);
  x.fist(32, true);
});
report('fcomi', 1, 2, () => x.fcomi(1, false));
report('fxch', 1, 2, () => x.fxch(1));
report('fld, fsqrt, fstp', 2, 3, () => {
  x.fldSt(0);
  x.fsqrt();
  x.fstSt(0, true);
});
report('fsin', 1.234, 0, () => x.fsin());
report('fld, fpatan', 1.234, 0.3, () => {
  x.fldConstant(0);
  x.fpatan();
});
const onBigint = report('product on bigint', 1.5, 1.25, bigintProduct);
console.log(`fmul is ${(onBigint / product).toFixed(1)} times as fast as the bare product on bigint`);
