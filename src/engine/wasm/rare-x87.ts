/**
 * The x87 instructions, WAIT, FXSAVE and FXRSTOR: operands and exceptions around the X87 unit of x86/x87, which computes.
 *
 * Order of events: #NM (CR0.TS), #MF (an unmasked exception that waits; not for the instructions with FN names), #GP and #PF of the
 * operand (a destination is translated for writing before anything changes), then the instruction.
 * Source: Intel SDM vol. 1, 8.6; vol. 2, the pages of the instructions; vol. 3, 2.5 and table 6-1.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import type { Form } from '../x86/forms.ts';
import { FADD, FDIV, FDIVR, FMUL, FSUB, FSUBR } from '../x86/x87/arith.ts';
import type { X87 } from '../x86/x87/x87.ts';
import { STATE } from './layout.ts';
import type { Processor } from './processor.ts';
import { NEXT } from './rare-status.ts';

const NM = 7;
const GP = 13;
const MF = 16;
const RAX = 0;
const CF = 1;
const PF = 4;
const ZF = 0x40;

/** The bits of MXCSR that are; FXRSTOR with others is #GP. The CPU that CPUID shows has no others. */
const MXCSR_MASK = 0xffff;
const MXCSR_WORD = STATE.mxcsr / 4;
const XMM_WORD = STATE.xmm / 4;

/** True: done. False: a fault is in the block, and nothing has changed. */
type Operation = (x: X87, p: Processor) => boolean;
type Instruction = (p: Processor) => number;

const notWaiting =
  (operation: Operation): Instruction =>
  (p) => {
    if (p.u32[VCPU.cr0Ts / 4] !== 0) return p.raise(NM);
    if (!operation(p.x87, p)) return EXIT_EXCEPTION;
    p.advance();
    return NEXT;
  };

const waiting =
  (operation: Operation): Instruction =>
  (p) => {
    if (p.u32[VCPU.cr0Ts / 4] !== 0) return p.raise(NM);
    if (p.x87.pending()) return p.raise(MF);
    if (!operation(p.x87, p)) return EXIT_EXCEPTION;
    p.advance();
    return NEXT;
  };

// --- operands

/** The memory operand's bytes, up to 8, zero-extended into p.lo and p.hi. */
function readOperand(p: Processor, size: number): boolean {
  p.effective();
  return p.read(p.lo, p.hi, size);
}

const from =
  (size: number, use: (x: X87, p: Processor) => void): Operation =>
  (x, p) => {
    if (!readOperand(p, size)) return false;
    use(x, p);
    return true;
  };

/** m16int, sign-extended. */
const short = (p: Processor): number => (p.lo << 16) >> 16;

const plain =
  (use: (x: X87) => void): Operation =>
  (x) => {
    use(x);
    return true;
  };

/** With ST(i). */
const stack =
  (use: (x: X87, i: number) => void): Operation =>
  (x, p) => {
    use(x, p.instruction.rm);
    return true;
  };

/** What `compute` leaves in the transfer area goes to memory, if it says so. */
const to =
  (size: number, compute: (x: X87) => boolean): Operation =>
  (x, p) => {
    p.effective();
    const at = p.writing(p.lo, p.hi, size);
    if (at === -1) return false;
    if (!compute(x)) return true;
    const { transfer } = x;
    for (let done = 0; done < size; done += 4)
      p.store((at >>> 0) + done, Math.min(4, size - done), transfer[done >>> 2]);
    p.stored(at, size);
    return true;
  };

// --- operands that are wider than what is translated at once

const PIECE = 64;
const pieces: number[] = new Array<number>(8).fill(0);

/** Translates all of an operand at p.hi:p.lo, so that it faults before anything is done. */
function translatePieces(p: Processor, size: number, write: boolean): boolean {
  let { lo, hi } = p;
  for (let done = 0; done < size; done += PIECE) {
    const bytes = Math.min(PIECE, size - done);
    const at = write ? p.writing(lo, hi, bytes) : p.reading(lo, hi, bytes);
    if (at === -1) return false;
    pieces[done / PIECE] = at >>> 0;
    lo += PIECE;
    if (lo > 0xffffffff) hi = (hi + 1) >>> 0;
    lo >>>= 0;
  }
  return true;
}

/** The transfer area from the operand. An odd half word at the end is read alone. */
function fromPieces(p: Processor, transfer: Uint32Array, size: number): void {
  for (let done = 0; done < size; done += 4)
    transfer[done >>> 2] = p.load(pieces[Math.floor(done / PIECE)] + (done % PIECE), Math.min(4, size - done));
}

/** Bytes `start` to `end` of the transfer area to the operand. */
function toPieces(p: Processor, transfer: Uint32Array, start: number, end: number): void {
  for (let done = start; done < end; done += 4)
    p.store(pieces[Math.floor(done / PIECE)] + (done % PIECE), Math.min(4, end - done), transfer[done >>> 2]);
}

function storedPieces(p: Processor, size: number): void {
  for (let done = 0; done < size; done += PIECE) p.stored(pieces[done / PIECE], Math.min(PIECE, size - done));
}

const fromWide =
  (sizes: readonly [number, number], use: (x: X87, wide: boolean) => void): Operation =>
  (x, p) => {
    const wide = p.instruction.operandSize !== 2;
    const size = sizes[wide ? 0 : 1];
    p.effective();
    if (!translatePieces(p, size, false)) return false;
    fromPieces(p, x.transfer, size);
    use(x, wide);
    return true;
  };

const toWide =
  (sizes: readonly [number, number], compute: (x: X87, wide: boolean) => void): Operation =>
  (x, p) => {
    const wide = p.instruction.operandSize !== 2;
    const size = sizes[wide ? 0 : 1];
    p.effective();
    if (!translatePieces(p, size, true)) return false;
    compute(x, wide);
    toPieces(p, x.transfer, 0, size);
    storedPieces(p, size);
    return true;
  };

const ENVIRONMENT = [28, 14] as const;
const SAVED = [108, 94] as const;

// --- FXSAVE and FXRSTOR

/** The image, of which the last 96 bytes are the software's. Source: Intel SDM vol. 1, table 10-2. */
const FX_BYTES = 512;
const FX_MXCSR = 24;
const FX_XMM = 160;
const FX_END = 416;

function fxAddress(p: Processor): boolean {
  p.effective();
  if ((p.lo & 15) === 0) return true;
  p.raise(GP);
  return false;
}

const fxsave: Operation = (x, p) => {
  if (!fxAddress(p) || !translatePieces(p, FX_BYTES, true)) return false;
  const { transfer } = x;
  x.fxsave(p.instruction.operandSize === 8);
  transfer[FX_MXCSR / 4] = p.u32[MXCSR_WORD];
  transfer[FX_MXCSR / 4 + 1] = MXCSR_MASK;
  for (let i = 0; i < (FX_END - FX_XMM) / 4; i++) transfer[FX_XMM / 4 + i] = p.u32[XMM_WORD + i];
  toPieces(p, transfer, 0, FX_END);
  storedPieces(p, FX_BYTES);
  return true;
};

const fxrstor: Operation = (x, p) => {
  if (!fxAddress(p) || !translatePieces(p, FX_BYTES, false)) return false;
  const { transfer } = x;
  fromPieces(p, transfer, FX_END);
  if ((transfer[FX_MXCSR / 4] & ~MXCSR_MASK) !== 0) {
    p.raise(GP);
    return false;
  }
  x.fxrstor(p.instruction.operandSize === 8);
  p.u32[MXCSR_WORD] = transfer[FX_MXCSR / 4];
  for (let i = 0; i < (FX_END - FX_XMM) / 4; i++) p.u32[XMM_WORD + i] = transfer[FX_XMM / 4 + i];
  return true;
};

// --- the instructions by form

const entries: [string, Instruction][] = [];
const wait = (key: string, operation: Operation): void => {
  entries.push([key, waiting(operation)]);
};
const noWait = (key: string, operation: Operation): void => {
  entries.push([key, notWaiting(operation)]);
};

const ARITHMETIC = { add: FADD, mul: FMUL, sub: FSUB, subr: FSUBR, div: FDIV, divr: FDIVR };
for (const [name, op] of Object.entries(ARITHMETIC)) {
  wait(
    `f${name} Md`,
    from(4, (x, p) => x.arithM32(op, p.lo)),
  );
  wait(
    `f${name} Mq`,
    from(8, (x, p) => x.arithM64(op, p.lo, p.hi)),
  );
  wait(
    `fi${name} Md`,
    from(4, (x, p) => x.arithInt(op, p.lo | 0)),
  );
  wait(
    `fi${name} Mw`,
    from(2, (x, p) => x.arithInt(op, short(p))),
  );
  wait(
    `f${name} ST0,STi`,
    stack((x, i) => x.arithSt(op, i)),
  );
  wait(
    `f${name} STi,ST0`,
    stack((x, i) => x.arithSti(op, i, false)),
  );
  wait(
    `f${name}p STi,ST0`,
    stack((x, i) => x.arithSti(op, i, true)),
  );
}

for (const pops of [0, 1]) {
  const p = pops === 1 ? 'p' : '';
  wait(
    `fcom${p} Md`,
    from(4, (x, { lo }) => x.fcomM32(lo, pops)),
  );
  wait(
    `fcom${p} Mq`,
    from(8, (x, { lo, hi }) => x.fcomM64(lo, hi, pops)),
  );
  wait(
    `ficom${p} Md`,
    from(4, (x, { lo }) => x.ficom(lo | 0, pops)),
  );
  wait(
    `ficom${p} Mw`,
    from(2, (x, processor) => x.ficom(short(processor), pops)),
  );
  wait(
    `fcom${p} ST0,STi`,
    stack((x, i) => x.fcom(i, pops)),
  );
  wait(
    `fucom${p} ST0,STi`,
    stack((x, i) => x.fucom(i, pops)),
  );
  wait(`fcomi${p} ST0,STi`, (x, processor) => {
    processor.setArithmeticFlags(x.fcomi(processor.instruction.rm, pops === 1));
    return true;
  });
  wait(`fucomi${p} ST0,STi`, (x, processor) => {
    processor.setArithmeticFlags(x.fucomi(processor.instruction.rm, pops === 1));
    return true;
  });
  wait(
    `fst${p} STi`,
    stack((x, i) => x.fstSt(i, pops === 1)),
  );
  wait(
    `fst${p} Md`,
    to(4, (x) => x.fstM32(pops === 1)),
  );
  wait(
    `fst${p} Mq`,
    to(8, (x) => x.fstM64(pops === 1)),
  );
  wait(
    `fist${p} Mw`,
    to(2, (x) => x.fist(16, pops === 1)),
  );
  wait(
    `fist${p} Md`,
    to(4, (x) => x.fist(32, pops === 1)),
  );
}
wait(
  'fcompp',
  plain((x) => x.fcom(1, 2)),
);
wait(
  'fucompp',
  plain((x) => x.fucom(1, 2)),
);
wait(
  'fistp Mq',
  to(8, (x) => x.fist(64, true)),
);
wait(
  'fisttp Mw',
  to(2, (x) => x.fisttp(16)),
);
wait(
  'fisttp Md',
  to(4, (x) => x.fisttp(32)),
);
wait(
  'fisttp Mq',
  to(8, (x) => x.fisttp(64)),
);
wait(
  'fstp Mt',
  to(10, (x) => x.fstpM80()),
);
wait(
  'fbstp Mt',
  to(10, (x) => x.fbstp()),
);
wait(
  'fstpnce STi',
  stack((x, i) => x.fstSt(i, true)),
);

wait(
  'fld Md',
  from(4, (x, p) => x.fldM32(p.lo)),
);
wait(
  'fld Mq',
  from(8, (x, p) => x.fldM64(p.lo, p.hi)),
);
wait(
  'fld STi',
  stack((x, i) => x.fldSt(i)),
);
wait(
  'fild Mw',
  from(2, (x, p) => x.fild(short(p), short(p) >> 31)),
);
wait(
  'fild Md',
  from(4, (x, p) => x.fild(p.lo | 0, p.lo >> 31)),
);
wait(
  'fild Mq',
  from(8, (x, p) => x.fild(p.lo, p.hi)),
);
const tenBytes =
  (use: (x: X87) => void): Operation =>
  (x, p) => {
    p.effective();
    if (!translatePieces(p, 10, false)) return false;
    fromPieces(p, x.transfer, 10);
    use(x);
    return true;
  };
wait(
  'fld Mt',
  tenBytes((x) => x.fldM80(x.transfer[0], x.transfer[1], x.transfer[2])),
);
wait(
  'fbld Mt',
  tenBytes((x) => x.fbld()),
);
['fld1', 'fldl2t', 'fldl2e', 'fldpi', 'fldlg2', 'fldln2', 'fldz'].forEach((name, n) => {
  wait(
    name,
    plain((x) => x.fldConstant(n)),
  );
});
wait(
  'fxch ST0,STi',
  stack((x, i) => x.fxch(i)),
);

/** FCMOVcc by the flags it looks at; FCMOVNcc is the contrary. */
const MOVES = { b: CF, e: ZF, be: CF | ZF, u: PF };
for (const [name, mask] of Object.entries(MOVES)) {
  wait(`fcmov${name} ST0,STi`, (x, p) => {
    x.fcmov(p.instruction.rm, (p.flags() & mask) !== 0);
    return true;
  });
  wait(`fcmovn${name} ST0,STi`, (x, p) => {
    x.fcmov(p.instruction.rm, (p.flags() & mask) === 0);
    return true;
  });
}

wait(
  'fnop',
  plain(() => {}),
);
wait(
  'wait',
  plain(() => {}),
);
wait(
  'fchs',
  plain((x) => x.fchs()),
);
wait(
  'fabs',
  plain((x) => x.fabs()),
);
wait(
  'ftst',
  plain((x) => x.ftst()),
);
wait(
  'fxam',
  plain((x) => x.fxam()),
);
wait(
  'f2xm1',
  plain((x) => x.f2xm1()),
);
wait(
  'fyl2x',
  plain((x) => x.fyl2x()),
);
wait(
  'fyl2xp1',
  plain((x) => x.fyl2xp1()),
);
wait(
  'fptan',
  plain((x) => x.fptan()),
);
wait(
  'fpatan',
  plain((x) => x.fpatan()),
);
wait(
  'fsin',
  plain((x) => x.fsin()),
);
wait(
  'fcos',
  plain((x) => x.fcos()),
);
wait(
  'fsincos',
  plain((x) => x.fsincos()),
);
wait(
  'fxtract',
  plain((x) => x.fxtract()),
);
wait(
  'fprem',
  plain((x) => x.fprem()),
);
wait(
  'fprem1',
  plain((x) => x.fprem1()),
);
wait(
  'fsqrt',
  plain((x) => x.fsqrt()),
);
wait(
  'frndint',
  plain((x) => x.frndint()),
);
wait(
  'fscale',
  plain((x) => x.fscale()),
);
wait(
  'fincstp',
  plain((x) => x.fincstp()),
);
wait(
  'fdecstp',
  plain((x) => x.fdecstp()),
);
wait(
  'ffree STi',
  stack((x, i) => x.ffree(i)),
);
wait(
  'ffreep STi',
  stack((x, i) => {
    x.ffree(i);
    x.pop();
  }),
);

noWait(
  'fninit',
  plain((x) => x.fninit()),
);
noWait(
  'fnclex',
  plain((x) => x.fnclex()),
);
for (const name of ['fneni', 'fndisi', 'fnsetpm'])
  noWait(
    name,
    plain(() => {}),
  );
noWait('fnstsw AX', (x, p) => {
  p.setGpr(RAX, 2, x.fnstsw(), 0);
  return true;
});
noWait(
  'fnstsw Mw',
  to(2, (x) => {
    x.transfer[0] = x.fnstsw();
    return true;
  }),
);
noWait(
  'fnstcw Mw',
  to(2, (x) => {
    x.transfer[0] = x.fnstcw();
    return true;
  }),
);
noWait(
  'fnstenv Menv',
  toWide(ENVIRONMENT, (x, wide) => x.fnstenv(wide)),
);
noWait(
  'fnsave Mstate',
  toWide(SAVED, (x, wide) => x.fnsave(wide)),
);
wait(
  'fldcw Mw',
  from(2, (x, p) => x.fldcw(p.lo)),
);
wait(
  'fldenv Menv',
  fromWide(ENVIRONMENT, (x, wide) => x.fldenv(wide)),
);
wait(
  'frstor Mstate',
  fromWide(SAVED, (x, wide) => x.frstor(wide)),
);
noWait('fxsave/fxsave64 Mfx', fxsave);
noWait('fxrstor/fxrstor64 Mfx', fxrstor);

const BY_KEY: ReadonlyMap<string, Instruction> = new Map(entries);

export function x87Instruction(form: Form): Instruction | undefined {
  return BY_KEY.get(form.key);
}
