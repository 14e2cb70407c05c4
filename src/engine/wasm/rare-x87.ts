/**
 * The x87 instructions, WAIT, FXSAVE and FXRSTOR by form: what raises exceptions and records pointers around the X87 unit (x86/x87),
 * which computes.
 *
 * Order of events: #NM (CR0.TS), #MF (an unmasked exception that waits; not for the instructions with FN names), #GP and #PF of the
 * operand, then the instruction.
 *
 * Each instruction but those of control leaves FIP and FOP behind, and FDP if it has a memory operand, whether exceptions are masked
 * or not. CPUs differ here; this is how AMD's do it (Zen 4, measured). FCS and FDS are 0 (x87/environment.ts).
 * Source: Intel SDM vol. 1, 8.1.8-10 and 8.6; vol. 2, the pages of the instructions; vol. 3, 2.5.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import type { Form } from '../x86/forms.ts';
import { FADD, FDIV, FDIVR, FMUL, FSUB, FSUBR } from '../x86/x87/arith.ts';
import { X87_STATE } from '../x86/x87/state.ts';
import type { X87 } from '../x86/x87/x87.ts';
import { STATE } from './layout.ts';
import type { Processor } from './processor.ts';
import { fxrstor, fxsave } from './rare-fxsave.ts';
import { NEXT } from './rare-status.ts';
import {
  ENVIRONMENT,
  from,
  fromImage,
  fromInteger,
  fromTen,
  type Operation,
  plain,
  STATE_IMAGE,
  stack,
  to,
  toImage,
  toWord,
} from './rare-x87-operands.ts';

const NM = 7;
const MF = 16;
const RAX = 0;
const CF = 1;
const PF = 4;
const ZF = 0x40;
const FOP = STATE.x87 + X87_STATE.FOP;
const FIP_WORD = (STATE.x87 + X87_STATE.FIP) / 4;
const FDP_WORD = (STATE.x87 + X87_STATE.FDP) / 4;

type Operations = Readonly<Record<string, Operation>>;
type Instruction = (p: Processor) => number;

function recordPointers(p: Processor): void {
  const { u32, code } = p;
  const { u8 } = p.block;
  // No prefix is D8 to DF. The last byte that can be the opcode has its ModRM byte behind it.
  let at = p.codeAt;
  const last = at + p.instruction.length - 2;
  while (at < last && (code[at] & 0xf8) !== 0xd8) at++;
  u8[FOP] = code[at + 1];
  u8[FOP + 1] = code[at] & 7;
  u32[FIP_WORD] = u32[VCPU.rip / 4];
  u32[FIP_WORD + 1] = u32[VCPU.rip / 4 + 1];
  if (p.instruction.mod === 3) return;
  p.effectiveOffset();
  u32[FDP_WORD] = p.lo;
  u32[FDP_WORD + 1] = p.hi;
}

// --- instructions that compute

const table = (parts: readonly Operations[]): Operations => Object.assign({}, ...parts);

const ARITHMETIC = { add: FADD, mul: FMUL, sub: FSUB, subr: FSUBR, div: FDIV, divr: FDIVR };

const arithmetic = (name: string, op: number): Operations => ({
  [`f${name} Md`]: from(4, (x, bits) => x.arithM32(op, bits)),
  [`f${name} Mq`]: from(8, (x, lo, hi) => x.arithM64(op, lo, hi)),
  [`fi${name} Md`]: fromInteger(4, (x, value) => x.arithInt(op, value)),
  [`fi${name} Mw`]: fromInteger(2, (x, value) => x.arithInt(op, value)),
  [`f${name} ST0,STi`]: stack((x, i) => x.arithSt(op, i)),
  [`f${name} STi,ST0`]: stack((x, i) => x.arithSti(op, i, false)),
  [`f${name}p STi,ST0`]: stack((x, i) => x.arithSti(op, i, true)),
});

const compareToFlags =
  (compare: (x: X87, i: number) => number): Operation =>
  (x, p) => {
    p.setArithmeticFlags(compare(x, p.instruction.rm));
    return true;
  };

/** Instructions with a name of their own for the one that pops. */
const popping = (suffix: '' | 'p', pop: boolean, pops: number): Operations => ({
  [`fcom${suffix} Md`]: from(4, (x, bits) => x.fcomM32(bits, pops)),
  [`fcom${suffix} Mq`]: from(8, (x, lo, hi) => x.fcomM64(lo, hi, pops)),
  [`ficom${suffix} Md`]: fromInteger(4, (x, value) => x.ficom(value, pops)),
  [`ficom${suffix} Mw`]: fromInteger(2, (x, value) => x.ficom(value, pops)),
  [`fcom${suffix} ST0,STi`]: stack((x, i) => x.fcom(i, pops)),
  [`fucom${suffix} ST0,STi`]: stack((x, i) => x.fucom(i, pops)),
  [`fcomi${suffix} ST0,STi`]: compareToFlags((x, i) => x.fcomi(i, pop)),
  [`fucomi${suffix} ST0,STi`]: compareToFlags((x, i) => x.fucomi(i, pop)),
  [`fst${suffix} STi`]: stack((x, i) => x.fstSt(i, pop)),
  [`fst${suffix} Md`]: to(4, (x) => x.fstM32(pop)),
  [`fst${suffix} Mq`]: to(8, (x) => x.fstM64(pop)),
  [`fist${suffix} Mw`]: to(2, (x) => x.fist(16, pop)),
  [`fist${suffix} Md`]: to(4, (x) => x.fist(32, pop)),
});

/** The flags of which one must be set. */
const CONDITIONS = { b: CF, e: ZF, be: CF | ZF, u: PF };

const conditionalMoves = (name: string, mask: number): Operations => {
  const move =
    (wanted: boolean): Operation =>
    (x, p) => {
      x.fcmov(p.instruction.rm, ((p.flags() & mask) !== 0) === wanted);
      return true;
    };
  return { [`fcmov${name} ST0,STi`]: move(true), [`fcmovn${name} ST0,STi`]: move(false) };
};

/** In the order of their opcodes. */
const CONSTANTS = ['fld1', 'fldl2t', 'fldl2e', 'fldpi', 'fldlg2', 'fldln2', 'fldz'];

const NUMERIC: Operations = {
  ...table(Object.entries(ARITHMETIC).map(([name, op]) => arithmetic(name, op))),
  ...popping('', false, 0),
  ...popping('p', true, 1),
  ...table(Object.entries(CONDITIONS).map(([name, mask]) => conditionalMoves(name, mask))),
  ...table(CONSTANTS.map((name, n) => ({ [name]: plain((x) => x.fldConstant(n)) }))),
  fcompp: plain((x) => x.fcom(1, 2)),
  fucompp: plain((x) => x.fucom(1, 2)),
  ftst: plain((x) => x.ftst()),
  fxam: plain((x) => x.fxam()),
  // Loads, stores and moves.
  'fld Md': from(4, (x, bits) => x.fldM32(bits)),
  'fld Mq': from(8, (x, lo, hi) => x.fldM64(lo, hi)),
  'fld Mt': fromTen((x) => x.fldM80(x.transfer[0], x.transfer[1], x.transfer[2])),
  'fld STi': stack((x, i) => x.fldSt(i)),
  'fild Mw': fromInteger(2, (x, value) => x.fild(value, value >> 31)),
  'fild Md': fromInteger(4, (x, value) => x.fild(value, value >> 31)),
  'fild Mq': from(8, (x, lo, hi) => x.fild(lo, hi)),
  'fbld Mt': fromTen((x) => x.fbld()),
  'fstp Mt': to(10, (x) => x.fstpM80()),
  'fistp Mq': to(8, (x) => x.fist(64, true)),
  'fisttp Mw': to(2, (x) => x.fisttp(16)),
  'fisttp Md': to(4, (x) => x.fisttp(32)),
  'fisttp Mq': to(8, (x) => x.fisttp(64)),
  'fbstp Mt': to(10, (x) => x.fbstp()),
  'fstpnce STi': stack((x, i) => {
    if (x.isEmpty(0)) x.fincstp();
    else x.fstSt(i, true);
  }),
  'fxch ST0,STi': stack((x, i) => x.fxch(i)),
  // Arithmetic of ST(0).
  fchs: plain((x) => x.fchs()),
  fabs: plain((x) => x.fabs()),
  fsqrt: plain((x) => x.fsqrt()),
  frndint: plain((x) => x.frndint()),
  fscale: plain((x) => x.fscale()),
  fxtract: plain((x) => x.fxtract()),
  fprem: plain((x) => x.fprem()),
  fprem1: plain((x) => x.fprem1()),
  f2xm1: plain((x) => x.f2xm1()),
  fyl2x: plain((x) => x.fyl2x()),
  fyl2xp1: plain((x) => x.fyl2xp1()),
  fptan: plain((x) => x.fptan()),
  fpatan: plain((x) => x.fpatan()),
  fsin: plain((x) => x.fsin()),
  fcos: plain((x) => x.fcos()),
  fsincos: plain((x) => x.fsincos()),
  // The stack.
  fnop: plain(() => {}),
  fincstp: plain((x) => x.fincstp()),
  fdecstp: plain((x) => x.fdecstp()),
  'ffree STi': stack((x, i) => x.ffree(i)),
  'ffreep STi': stack((x, i) => {
    x.ffree(i);
    x.pop();
  }),
};

// --- control instructions

const WAITING: Operations = {
  wait: plain(() => {}),
  'fldcw Mw': fromInteger(2, (x, value) => x.fldcw(value)),
  'fldenv Menv': fromImage(ENVIRONMENT, (x, wide) => x.fldenv(wide)),
  'frstor Mstate': fromImage(STATE_IMAGE, (x, wide) => x.frstor(wide)),
};

const NOT_WAITING: Operations = {
  fninit: plain((x) => x.fninit()),
  fnclex: plain((x) => x.fnclex()),
  fneni: plain(() => {}),
  fndisi: plain(() => {}),
  fnsetpm: plain(() => {}),
  'fnstsw Mw': toWord((x) => x.fnstsw()),
  'fnstsw AX': (x, p) => {
    p.setGpr(RAX, 2, x.fnstsw(), 0);
    return true;
  },
  'fnstcw Mw': toWord((x) => x.fnstcw()),
  'fnstenv Menv': toImage(ENVIRONMENT, (x, wide) => x.fnstenv(wide)),
  'fnsave Mstate': toImage(STATE_IMAGE, (x, wide) => x.fnsave(wide)),
  'fxsave/fxsave64 Mfx': fxsave,
  'fxrstor/fxrstor64 Mfx': fxrstor,
};

// --- all of them

const numeric =
  (operation: Operation): Instruction =>
  (p) => {
    if (p.u32[VCPU.cr0Ts / 4] !== 0) return p.raise(NM);
    if (p.x87.pending()) return p.raise(MF);
    if (!operation(p.x87, p)) return EXIT_EXCEPTION;
    recordPointers(p);
    p.advance();
    return NEXT;
  };

const control =
  (operation: Operation, waits: boolean): Instruction =>
  (p) => {
    if (p.u32[VCPU.cr0Ts / 4] !== 0) return p.raise(NM);
    if (waits && p.x87.pending()) return p.raise(MF);
    if (!operation(p.x87, p)) return EXIT_EXCEPTION;
    p.advance();
    return NEXT;
  };

/** The x87 instruction of a form, if it is one. */
export function x87Instruction(form: Form): Instruction | undefined {
  const { key } = form;
  if (Object.hasOwn(NUMERIC, key)) return numeric(NUMERIC[key]);
  if (Object.hasOwn(WAITING, key)) return control(WAITING[key], true);
  return Object.hasOwn(NOT_WAITING, key) ? control(NOT_WAITING[key], false) : undefined;
}
