/**
 * The x87 unit of one vCPU: every operation as a method on plain numbers, done in place on the state in shared memory.
 *
 *   const x87 = new X87(block.u32, offset);   // state.ts says what lies where
 *   x87.fninit();
 *   x87.fldM64(lo, hi);
 *   x87.arithM64(FDIV, lo, hi);
 *   if (x87.fstM64(true)) write(x87.transfer[0], x87.transfer[1]);
 *
 * What the caller does: decodes; raises #NM by CR0; before each waiting instruction asks pending() and raises #MF; translates
 * memory operands (for writing, before the operation: a page fault must find the state untouched), and loads integers
 * sign-extended; stores FOP, FIP and FDP if it wants them (recordPointers). Register numbers `i` are ST(i), 0-7. Memory operands
 * are 32-bit words, lowest address first; wide ones and all results for memory go through `transfer`.
 *
 * What holds throughout: the results, the flags and C1 are those of the CPU, bit by bit, but for the transcendental functions,
 * whose results are correctly rounded where CPUs are within an ulp (transcendental.ts). An unmasked exception sets ES and B and
 * shows in pending(). Nothing is allocated but in the transcendental functions, BCD, FNSAVE and FRSTOR.
 *
 * Quirks. Where the manual leaves something open, or CPUs differ from it, this is the CPU of the tests (AMD Zen 4):
 * - FLD m32fp/m64fp of a denormal pushes it even if the denormal exception is unmasked;
 * - a compare with an unmasked exception sets the conditions (FCOMI: EFLAGS) but does not pop;
 * - FCOMI, FUCOMI and FCMOVcc leave C1 alone but for a stack fault; FFREE clears it; FSINCOS leaves the sine's;
 * - EMMS sets TOP to 0, as the other MMX instructions do;
 * - an incomplete FPREM takes off 32 + (D mod 32) bits of the quotient, D being the difference of the exponents;
 * - FSCALE by too much for even a wrapped exponent gives infinity or zero, also if the exception is unmasked.
 * Unlike it, FCS and FDS read as 0 (environment.ts), and FOP, FIP and FDP are what recordPointers was told.
 * Source: Intel SDM vol. 1, chapter 8; vol. 2, the instructions' pages; each checked against the CPU (x87.test.ts).
 */

import { arithDouble, arithInteger, arithRegisters, arithSingle, squareRoot } from './arith.ts';
import { pushBcd, storeBcd } from './bcd.ts';
import {
  compareDouble,
  compareInteger,
  compareRegister,
  compareSingle,
  compareToFlags,
  conditionalMove,
  examine,
  test,
} from './compare.ts';
import { CONTROL_STATUS, REGISTER_WORDS, TAGS_OPCODE, X87Core } from './core.ts';
import {
  clearExceptions,
  emptyMmx,
  enterMmx,
  fxrstor,
  fxsave,
  initialize,
  loadControl,
  loadEnvironment,
  restore,
  save,
  storeEnvironment,
  writeMmx,
} from './environment.ts';
import { exchange, pushConstant, pushDouble, pushExtended, pushInteger, pushRegister, pushSingle } from './load.ts';
import { remainder } from './remainder.ts';
import { changeSign, extract, roundInteger, scale } from './scale.ts';
import { ES, X87_STATE } from './state.ts';
import { storeDouble, storeExtended, storeInteger, storeSingle, storeToRegister } from './store.ts';
import { arcTangentTwo, power, sineCosine, tangent, timesLog } from './transcendental.ts';

export class X87 extends X87Core {
  /** An unmasked exception waits: the next waiting instruction raises #MF instead of running. */
  pending(): boolean {
    return (this.words[CONTROL_STATUS] & (ES << 16)) !== 0;
  }

  /** FOP (11 bits), FIP and FDP of the last instruction that was not a control instruction. */
  recordPointers(fop: number, fipLo: number, fipHi: number, fdpLo: number, fdpHi: number): void {
    const words = this.words;
    words[TAGS_OPCODE] = (words[TAGS_OPCODE] & 0xffff) | (fop << 16);
    words[X87_STATE.FIP / 4] = fipLo;
    words[X87_STATE.FIP / 4 + 1] = fipHi;
    words[X87_STATE.FDP / 4] = fdpLo;
    words[X87_STATE.FDP / 4 + 1] = fdpHi;
  }

  // --- arithmetic: op is FADD, FMUL, FSUB, FSUBR, FDIV or FDIVR of arith.ts

  /** D8 C0-FF: ST(0) = ST(0) op ST(i). */
  arithSt(op: number, i: number): void {
    arithRegisters(this, op, 0, i);
  }

  /**
   * DC and DE C0-FF: ST(i) = ST(i) op ST(0), then a pop with DE. In these two opcodes the reg fields of FSUB/FSUBR and FDIV/FDIVR
   * are exchanged: op = reg < 4 ? reg : reg ^ 1.
   */
  arithSti(op: number, i: number, pop: boolean): void {
    if (arithRegisters(this, op, i, 0) && pop) this.pop();
  }

  /** D8 /op: ST(0) = ST(0) op m32fp. */
  arithM32(op: number, bits: number): void {
    arithSingle(this, op, bits);
  }

  /** DC /op: ST(0) = ST(0) op m64fp. */
  arithM64(op: number, lo: number, hi: number): void {
    arithDouble(this, op, lo, hi);
  }

  /** DA /op (m32int) and DE /op (m16int, sign-extended). */
  arithInt(op: number, value: number): void {
    arithInteger(this, op, value);
  }

  fsqrt(): void {
    squareRoot(this);
  }

  fabs(): void {
    changeSign(this, 0x8000, 0);
  }

  fchs(): void {
    changeSign(this, 0, 0x8000);
  }

  frndint(): void {
    roundInteger(this);
  }

  fscale(): void {
    scale(this);
  }

  fxtract(): void {
    extract(this);
  }

  /** C2 set: not finished, run it again. Otherwise C0, C3, C1 are bits 2, 1, 0 of the quotient. */
  fprem(): void {
    remainder(this, false);
  }

  fprem1(): void {
    remainder(this, true);
  }

  // --- transcendental functions

  f2xm1(): void {
    power(this);
  }

  fyl2x(): void {
    timesLog(this, false);
  }

  fyl2xp1(): void {
    timesLog(this, true);
  }

  /** C2 set, and nothing done, if |ST(0)| >= 2^63; so for the next three. */
  fptan(): void {
    tangent(this);
  }

  fsin(): void {
    sineCosine(this, 1, 0);
  }

  fcos(): void {
    sineCosine(this, 0, 1);
  }

  fsincos(): void {
    sineCosine(this, 1, 1);
  }

  fpatan(): void {
    arcTangentTwo(this);
  }

  // --- compares

  /** FCOM (pops = 0), FCOMP (1), FCOMPP (2, i = 1). */
  fcom(i: number, pops: number): void {
    compareRegister(this, i, false, pops);
  }

  fucom(i: number, pops: number): void {
    compareRegister(this, i, true, pops);
  }

  fcomM32(bits: number, pops: number): void {
    compareSingle(this, bits, pops);
  }

  fcomM64(lo: number, hi: number, pops: number): void {
    compareDouble(this, lo, hi, pops);
  }

  /** FICOM, FICOMP: m32int, or m16int sign-extended. */
  ficom(value: number, pops: number): void {
    compareInteger(this, value, pops);
  }

  ftst(): void {
    test(this);
  }

  fxam(): void {
    examine(this);
  }

  /** Returns ZF, PF, CF (EFLAGS bits 6, 2, 0), to be set even with an unmasked exception; OF, SF and AF become 0. */
  fcomi(i: number, pop: boolean): number {
    return compareToFlags(this, i, false, pop);
  }

  fucomi(i: number, pop: boolean): number {
    return compareToFlags(this, i, true, pop);
  }

  fcmov(i: number, condition: boolean): void {
    conditionalMove(this, i, condition);
  }

  // --- loads

  fldM32(bits: number): void {
    pushSingle(this, bits);
  }

  fldM64(lo: number, hi: number): void {
    pushDouble(this, lo, hi);
  }

  /** Significand low and high, and the 16 bits above. */
  fldM80(lo: number, hi: number, signExponent: number): void {
    pushExtended(this, signExponent & 0xffff, hi | 0, lo | 0);
  }

  fldSt(i: number): void {
    pushRegister(this, i);
  }

  /** m64int; m16int and m32int come sign-extended: fild(value, value >> 31). */
  fild(lo: number, hi: number): void {
    pushInteger(this, lo | 0, hi | 0);
  }

  /** Operand: 10 bytes in transfer[0..2]. */
  fbld(): void {
    pushBcd(this);
  }

  /** D9 E8+n: FLD1, FLDL2T, FLDL2E, FLDPI, FLDLG2, FLDLN2, FLDZ. */
  fldConstant(n: number): void {
    pushConstant(this, n);
  }

  fxch(i: number): void {
    exchange(this, i);
  }

  // --- stores: true = write what is in transfer; false = an unmasked exception, write nothing

  /** One word. */
  fstM32(pop: boolean): boolean {
    return storeSingle(this, pop);
  }

  /** Two words. */
  fstM64(pop: boolean): boolean {
    return storeDouble(this, pop);
  }

  /** Ten bytes: two words and the low half of a third. */
  fstpM80(): boolean {
    return storeExtended(this);
  }

  fstSt(i: number, pop: boolean): void {
    storeToRegister(this, i, pop);
  }

  /** D9 D8+i, undocumented: FSTP ST(i), but an empty ST(0) is just popped. */
  fstpnce(i: number): void {
    if (!this.isEmpty(0)) {
      storeToRegister(this, i, true);
      return;
    }
    this.clearC1();
    this.pop();
  }

  /** bits = 16 (the low half of a word), 32, or 64 (two words; FISTP only). */
  fist(bits: number, pop: boolean): boolean {
    return storeInteger(this, bits, false, pop);
  }

  fisttp(bits: number): boolean {
    return storeInteger(this, bits, true, true);
  }

  /** Ten bytes. */
  fbstp(): boolean {
    return storeBcd(this);
  }

  // --- control

  fninit(): void {
    initialize(this);
  }

  fnclex(): void {
    clearExceptions(this);
  }

  fldcw(control: number): void {
    loadControl(this, control);
  }

  fnstcw(): number {
    return this.words[CONTROL_STATUS] & 0xffff;
  }

  fnstsw(): number {
    return this.words[CONTROL_STATUS] >>> 16;
  }

  fincstp(): void {
    this.clearC1();
    this.setTop(((this.words[CONTROL_STATUS] >>> 27) + 1) & 7);
  }

  fdecstp(): void {
    this.clearC1();
    this.setTop(((this.words[CONTROL_STATUS] >>> 27) + 7) & 7);
  }

  ffree(i: number): void {
    this.clearC1();
    this.clearTag(i);
  }

  /** DF C0+i, undocumented: FFREE ST(i) and a pop. */
  ffreep(i: number): void {
    this.ffree(i);
    this.pop();
  }

  /** 28 bytes (wide) or 14 in transfer. */
  fnstenv(wide: boolean): void {
    storeEnvironment(this, wide);
  }

  fldenv(wide: boolean): void {
    loadEnvironment(this, wide);
  }

  /** 108 bytes (wide) or 94 in transfer. */
  fnsave(wide: boolean): void {
    save(this, wide);
  }

  frstor(wide: boolean): void {
    restore(this, wide);
  }

  /** Bytes 0-23 and 32-159 of the image in transfer; the rest of it is left alone. `wide`: FXSAVE64. */
  fxsave(wide: boolean): void {
    fxsave(this, wide);
  }

  fxrstor(wide: boolean): void {
    fxrstor(this, wide);
  }

  // --- MMX: MMn is the significand of physical register n

  /** Before each MMX instruction but EMMS. */
  enterMmx(): void {
    enterMmx(this);
  }

  mmxLo(n: number): number {
    return this.words[REGISTER_WORDS + 4 * n];
  }

  mmxHi(n: number): number {
    return this.words[REGISTER_WORDS + 4 * n + 1];
  }

  setMmx(n: number, lo: number, hi: number): void {
    writeMmx(this, n, lo, hi);
  }

  emms(): void {
    emptyMmx(this);
  }
}
