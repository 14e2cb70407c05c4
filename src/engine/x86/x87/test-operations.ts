/**
 * Every x87 instruction that the tests run, as machine code for a CPU and as a call of X87.
 *
 * The machine code takes its memory operand at [rsi] (ModRM: mod 0, rm 6). The calls get the memory operand as words and give back
 * true if `written` bytes of `transfer` are to go to memory.
 */

import { FADD, FDIV, FDIVR, FMUL, FSUB, FSUBR } from './arith.ts';
import type { X87 } from './x87.ts';

/** What test-inputs.ts puts into memory: a number of a format, a packed BCD, a control word, or noise for an environment. */
export type MemoryKind = 'none' | 'm32' | 'm64' | 'm80' | 'int' | 'bcd' | 'control' | 'image';

/** EFLAGS (arithmetic bits) and AX, before and after. */
export interface IntegerState {
  eflags: number;
  ax: number;
}

export interface Operation {
  readonly name: string;
  readonly code: readonly number[];
  readonly memory: MemoryKind;
  /** Bytes written to memory. */
  readonly written: number;
  /** Runs even with an exception pending. */
  readonly isNonWaiting: boolean;
  /** The mathematics of a transcendental function: its last bit is the CPU's own. */
  readonly isTranscendental: boolean;
  run(x: X87, memory: Int32Array, integer: IntegerState): boolean;
}

type Run = (x: X87, memory: Int32Array, integer: IntegerState) => unknown;

const PREFIX_16 = 0x66;

export const OPERATIONS: readonly Operation[] = [
  ...arithmetic('fadd', FADD),
  ...arithmetic('fmul', FMUL),
  ...arithmetic('fsub', FSUB),
  ...arithmetic('fsubr', FSUBR),
  ...arithmetic('fdiv', FDIV),
  ...arithmetic('fdivr', FDIVR),
  stack('fsqrt', [0xd9, 0xfa], (x) => x.fsqrt()),
  stack('fabs', [0xd9, 0xe1], (x) => x.fabs()),
  stack('fchs', [0xd9, 0xe0], (x) => x.fchs()),
  stack('frndint', [0xd9, 0xfc], (x) => x.frndint()),
  stack('fscale', [0xd9, 0xfd], (x) => x.fscale()),
  stack('fxtract', [0xd9, 0xf4], (x) => x.fxtract()),
  stack('fprem', [0xd9, 0xf8], (x) => x.fprem()),
  stack('fprem1', [0xd9, 0xf5], (x) => x.fprem1()),

  transcendental('f2xm1', 0xf0, (x) => x.f2xm1()),
  transcendental('fyl2x', 0xf1, (x) => x.fyl2x()),
  transcendental('fptan', 0xf2, (x) => x.fptan()),
  transcendental('fpatan', 0xf3, (x) => x.fpatan()),
  transcendental('fyl2xp1', 0xf9, (x) => x.fyl2xp1()),
  transcendental('fsincos', 0xfb, (x) => x.fsincos()),
  transcendental('fsin', 0xfe, (x) => x.fsin()),
  transcendental('fcos', 0xff, (x) => x.fcos()),

  stack('fcom st1', [0xd8, 0xd1], (x) => x.fcom(1, 0)),
  stack('fcomp st1', [0xd8, 0xd9], (x) => x.fcom(1, 1)),
  stack('fcompp', [0xde, 0xd9], (x) => x.fcom(1, 2)),
  stack('fucom st1', [0xdd, 0xe1], (x) => x.fucom(1, 0)),
  stack('fucomp st1', [0xdd, 0xe9], (x) => x.fucom(1, 1)),
  stack('fucompp', [0xda, 0xe9], (x) => x.fucom(1, 2)),
  source('fcom m32', [0xd8, 0x16], 'm32', (x, m) => x.fcomM32(m[0], 0)),
  source('fcomp m32', [0xd8, 0x1e], 'm32', (x, m) => x.fcomM32(m[0], 1)),
  source('fcom m64', [0xdc, 0x16], 'm64', (x, m) => x.fcomM64(m[0], m[1], 0)),
  source('fcomp m64', [0xdc, 0x1e], 'm64', (x, m) => x.fcomM64(m[0], m[1], 1)),
  source('ficom m32', [0xda, 0x16], 'int', (x, m) => x.ficom(m[0], 0)),
  source('ficomp m16', [0xde, 0x1e], 'int', (x, m) => x.ficom((m[0] << 16) >> 16, 1)),
  stack('ftst', [0xd9, 0xe4], (x) => x.ftst()),
  stack('fxam', [0xd9, 0xe5], (x) => x.fxam()),
  stack('fcomi', [0xdb, 0xf1], (x, _, integer) => (integer.eflags = x.fcomi(1, false))),
  stack('fcomip', [0xdf, 0xf1], (x, _, integer) => (integer.eflags = x.fcomi(1, true))),
  stack('fucomi', [0xdb, 0xe9], (x, _, integer) => (integer.eflags = x.fucomi(1, false))),
  stack('fucomip', [0xdf, 0xe9], (x, _, integer) => (integer.eflags = x.fucomi(1, true))),
  stack('fcmovb', [0xda, 0xc1], (x, _, integer) => x.fcmov(1, (integer.eflags & 1) !== 0)),
  stack('fcmovne', [0xdb, 0xc9], (x, _, integer) => x.fcmov(1, (integer.eflags & 0x40) === 0)),

  source('fld m32', [0xd9, 0x06], 'm32', (x, m) => x.fldM32(m[0])),
  source('fld m64', [0xdd, 0x06], 'm64', (x, m) => x.fldM64(m[0], m[1])),
  source('fld m80', [0xdb, 0x2e], 'm80', (x, m) => x.fldM80(m[0], m[1], m[2])),
  stack('fld st1', [0xd9, 0xc1], (x) => x.fldSt(1)),
  stack('fld st7', [0xd9, 0xc7], (x) => x.fldSt(7)),
  source('fild m16', [0xdf, 0x06], 'int', (x, m) => x.fild((m[0] << 16) >> 16, (m[0] << 16) >> 31)),
  source('fild m32', [0xdb, 0x06], 'int', (x, m) => x.fild(m[0], m[0] >> 31)),
  source('fild m64', [0xdf, 0x2e], 'int', (x, m) => x.fild(m[0], m[1])),
  source('fbld', [0xdf, 0x26], 'bcd', (x, m) => {
    x.transfer.set(m.subarray(0, 3));
    x.fbld();
  }),
  ...[0, 1, 2, 3, 4, 5, 6].map((n) => stack(`fld constant ${n}`, [0xd9, 0xe8 + n], (x) => x.fldConstant(n))),
  stack('fxch st1', [0xd9, 0xc9], (x) => x.fxch(1)),
  stack('fxch st3', [0xd9, 0xcb], (x) => x.fxch(3)),

  destination('fst m32', [0xd9, 0x16], 4, (x) => x.fstM32(false)),
  destination('fstp m32', [0xd9, 0x1e], 4, (x) => x.fstM32(true)),
  destination('fst m64', [0xdd, 0x16], 8, (x) => x.fstM64(false)),
  destination('fstp m64', [0xdd, 0x1e], 8, (x) => x.fstM64(true)),
  destination('fstp m80', [0xdb, 0x3e], 10, (x) => x.fstpM80()),
  stack('fst st1', [0xdd, 0xd1], (x) => x.fstSt(1, false)),
  stack('fstp st1', [0xdd, 0xd9], (x) => x.fstSt(1, true)),
  stack('fstp st0', [0xdd, 0xd8], (x) => x.fstSt(0, true)),
  destination('fist m16', [0xdf, 0x16], 2, (x) => x.fist(16, false)),
  destination('fistp m16', [0xdf, 0x1e], 2, (x) => x.fist(16, true)),
  destination('fist m32', [0xdb, 0x16], 4, (x) => x.fist(32, false)),
  destination('fistp m32', [0xdb, 0x1e], 4, (x) => x.fist(32, true)),
  destination('fistp m64', [0xdf, 0x3e], 8, (x) => x.fist(64, true)),
  destination('fisttp m16', [0xdf, 0x0e], 2, (x) => x.fisttp(16)),
  destination('fisttp m32', [0xdb, 0x0e], 4, (x) => x.fisttp(32)),
  destination('fisttp m64', [0xdd, 0x0e], 8, (x) => x.fisttp(64)),
  destination('fbstp', [0xdf, 0x36], 10, (x) => x.fbstp()),

  control('fninit', [0xdb, 0xe3], 0, (x) => x.fninit()),
  control('fnclex', [0xdb, 0xe2], 0, (x) => x.fnclex()),
  control('fnstcw', [0xd9, 0x3e], 2, (x) => (x.transfer[0] = x.fnstcw())),
  control('fnstsw m16', [0xdd, 0x3e], 2, (x) => (x.transfer[0] = x.fnstsw())),
  control('fnstsw ax', [0xdf, 0xe0], 0, (x, _, integer) => (integer.ax = x.fnstsw())),
  control('fnstenv', [0xd9, 0x36], 28, (x) => x.fnstenv(true)),
  control('fnstenv 16', [PREFIX_16, 0xd9, 0x36], 14, (x) => x.fnstenv(false)),
  control('fnsave', [0xdd, 0x36], 108, (x) => x.fnsave(true)),
  control('fnsave 16', [PREFIX_16, 0xdd, 0x36], 94, (x) => x.fnsave(false)),
  source('fldcw', [0xd9, 0x2e], 'control', (x, m) => x.fldcw(m[0] & 0xffff)),
  source('fldenv', [0xd9, 0x26], 'image', (x, m) => {
    x.transfer.set(m.subarray(0, 7));
    x.fldenv(true);
  }),
  source('fldenv 16', [PREFIX_16, 0xd9, 0x26], 'image', (x, m) => {
    x.transfer.set(m.subarray(0, 4));
    x.fldenv(false);
  }),
  source('frstor', [0xdd, 0x26], 'image', (x, m) => {
    x.transfer.set(m.subarray(0, 27));
    x.frstor(true);
  }),
  source('frstor 16', [PREFIX_16, 0xdd, 0x26], 'image', (x, m) => {
    x.transfer.set(m.subarray(0, 24));
    x.frstor(false);
  }),
  stack('fincstp', [0xd9, 0xf7], (x) => x.fincstp()),
  stack('fdecstp', [0xd9, 0xf6], (x) => x.fdecstp()),
  stack('ffree st1', [0xdd, 0xc1], (x) => x.ffree(1)),

  stack('ffreep st1', [0xdf, 0xc1], (x) => x.ffreep(1)),
  stack('ffreep st0', [0xdf, 0xc0], (x) => x.ffreep(0)),
  stack('fstpnce st1', [0xd9, 0xd9], (x) => x.fstpnce(1)),
  stack('fcom2 st1', [0xdc, 0xd1], (x) => x.fcom(1, 0)),
  stack('fxch4 st1', [0xdd, 0xc9], (x) => x.fxch(1)),
  stack('fstp8 st1', [0xdf, 0xd1], (x) => x.fstSt(1, true)),
  stack('fnop', [0xd9, 0xd0], () => undefined),

  stack('emms', [0x0f, 0x77], (x) => x.emms()),
  source('movq mm2, m64', [0x0f, 0x6f, 0x16], 'm64', (x, m) => {
    x.enterMmx();
    x.setMmx(2, m[0], m[1]);
  }),
  destination('movq m64, mm2', [0x0f, 0x7f, 0x16], 8, (x) => {
    x.enterMmx();
    x.transfer[0] = x.mmxLo(2);
    x.transfer[1] = x.mmxHi(2);
    return true;
  }),
];

function operation(name: string, code: readonly number[], run: Run, rest: Partial<Operation>): Operation {
  return {
    name,
    code,
    memory: 'none',
    written: 0,
    isNonWaiting: false,
    isTranscendental: false,
    run: (x, memory, integer) => run(x, memory, integer) !== false,
    ...rest,
  };
}

function stack(name: string, code: readonly number[], run: Run): Operation {
  return operation(name, code, run, {});
}

function transcendental(name: string, second: number, run: Run): Operation {
  return operation(name, [0xd9, second], run, { isTranscendental: true });
}

function source(name: string, code: readonly number[], memory: MemoryKind, run: Run): Operation {
  return operation(name, code, run, { memory });
}

function destination(name: string, code: readonly number[], written: number, run: Run): Operation {
  return operation(name, code, run, { written });
}

function control(name: string, code: readonly number[], written: number, run: Run): Operation {
  return operation(name, code, run, { written, isNonWaiting: true });
}

/** All forms of an arithmetic instruction. */
function arithmetic(name: string, op: number): Operation[] {
  // In DC and DE the two directions are exchanged.
  const reversed = op < 4 ? op : op ^ 1;
  const memory = 8 * op + 6;
  return [
    stack(`${name} st0, st1`, [0xd8, 0xc1 + 8 * op], (x) => x.arithSt(op, 1)),
    stack(`${name} st0, st0`, [0xd8, 0xc0 + 8 * op], (x) => x.arithSt(op, 0)),
    stack(`${name} st1, st0`, [0xdc, 0xc1 + 8 * reversed], (x) => x.arithSti(op, 1, false)),
    stack(`${name}p st1, st0`, [0xde, 0xc1 + 8 * reversed], (x) => x.arithSti(op, 1, true)),
    stack(`${name}p st0, st0`, [0xde, 0xc0 + 8 * reversed], (x) => x.arithSti(op, 0, true)),
    source(`${name} m32`, [0xd8, memory], 'm32', (x, m) => x.arithM32(op, m[0])),
    source(`${name} m64`, [0xdc, memory], 'm64', (x, m) => x.arithM64(op, m[0], m[1])),
    source(`fi${name.slice(1)} m32`, [0xda, memory], 'int', (x, m) => x.arithInt(op, m[0])),
    source(`fi${name.slice(1)} m16`, [0xde, memory], 'int', (x, m) => x.arithInt(op, (m[0] << 16) >> 16)),
  ];
}
