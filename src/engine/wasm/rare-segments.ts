/** Segment registers, far transfers and IRET at CPL 3. Source: Intel SDM vol. 2, the pages of the instructions. */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION, EXIT_INTERRUPTED } from '../engine.ts';
import type { Descriptors } from './descriptors.ts';

import type { Processor } from './processor.ts';
import { NEXT, JUMP as RARE_JUMP } from './rare-status.ts';

const CS = VCPU.cs / 4;
const SS = VCPU.ss / 4;
/** Word of the block for ES CS SS DS FS GS. */
const SELECTORS: readonly number[] = [VCPU.es / 4, CS, SS, VCPU.ds / 4, VCPU.fs / 4, VCPU.gs / 4];
const RSP = 4;
/** A nested task: none can be returned to in 64-bit mode. */
const TF = 0x100;
const NT = 0x4000;
const AC = 0x40000;
const ES_REGISTER = 0;
const CS_REGISTER = 1;
const SS_REGISTER = 2;
const DS_REGISTER = 3;
const FS_REGISTER = 4;
const GS_REGISTER = 5;

/** What IRET and POPF at CPL 3 may change: all but IOPL, IF, VIF, VIP and VM. */
export const FLAGS_CHANGEABLE = 0x254dd5;

/** Loads a segment register. False: fault. */
function load(p: Processor, d: Descriptors, register: number, selector: number): boolean {
  const value = selector & 0xffff;
  const vector = register === SS_REGISTER ? d.stackFault(value) : d.dataFault(value);
  if (vector !== 0) {
    p.raise(vector, value & 0xfffc);
    return false;
  }
  p.u32[SELECTORS[register]] = value;
  if (register === FS_REGISTER || register === GS_REGISTER) {
    const at = (register === FS_REGISTER ? VCPU.fsBase : VCPU.gsBase) / 4;
    p.u32[at] = (value & 0xfffc) === 0 ? 0 : d.base();
    p.u32[at + 1] = 0;
  }
  return true;
}

/** MOV Sw, Ew */
export function loadSegment(p: Processor, d: Descriptors): number {
  const i = p.instruction;
  let selector = p.gprLo(i.rm);
  if (i.mod !== 3) {
    p.effective();
    if (!p.read(p.lo, p.hi, 2)) return EXIT_EXCEPTION;
    selector = p.lo;
  }
  if (!load(p, d, i.reg, selector)) return EXIT_EXCEPTION;
  p.advance();
  return NEXT;
}

/** PUSH of a segment register */
export function pushSegment(p: Processor, register: number): number {
  const size = p.instruction.operandSize;
  const lo = p.gprLo(RSP) - size;
  const hi = p.gprHi(RSP) - (lo < 0 ? 1 : 0);
  if (!p.write(lo >>> 0, hi >>> 0, size, p.u32[SELECTORS[register]] & 0xffff, 0)) return EXIT_EXCEPTION;
  p.addGpr(RSP, 8, -size);
  p.advance();
  return NEXT;
}

export function popSegment(p: Processor, d: Descriptors, register: number): number {
  const size = p.instruction.operandSize;
  if (!p.read(p.gprLo(RSP), p.gprHi(RSP), size)) return EXIT_EXCEPTION;
  if (!load(p, d, register, p.lo)) return EXIT_EXCEPTION;
  p.addGpr(RSP, 8, size);
  p.advance();
  return NEXT;
}

/** LSS, LFS, LGS, LES, LDS */
export function loadFarPointer(p: Processor, d: Descriptors, register: number): number {
  const i = p.instruction;
  const size = i.operandSize;
  p.effective();
  const { lo, hi } = p;
  const next = lo + size;
  if (!p.read(next >>> 0, hi + (next > 0xffffffff ? 1 : 0), 2)) return EXIT_EXCEPTION;
  const selector = p.lo;
  if (!p.read(lo, hi, size)) return EXIT_EXCEPTION;
  const offsetLo = p.lo;
  const offsetHi = p.hi;
  if (!load(p, d, register, selector)) return EXIT_EXCEPTION;
  p.setGpr(i.reg, size, offsetLo, offsetHi);
  p.advance();
  return NEXT;
}

/**
 * Sets CS and rip. Other code than 64-bit and flat 32-bit code does not run here (docs/quirks.md). A change of the code's size begins
 * outside of the interpreter.
 */
function transfer(p: Processor, d: Descriptors, selector: number, lo: number, hi: number): number {
  const value = selector & 0xffff;
  const vector = d.codeFault(value);
  if (vector !== 0) return p.raise(vector, value & 0xfffc);
  if (!d.isLong && !d.isFlat32) return p.raise(13, value & 0xfffc);
  const bits = d.isLong ? 64 : 32;
  const top = hi >>> 15;
  if (bits === 64 ? top !== 0 && top !== 0x1ffff : hi !== 0) return p.raise(13);
  p.u32[CS] = value;
  p.setRip(lo, hi);
  return bits === p.bits ? RARE_JUMP : EXIT_INTERRUPTED;
}

/** Reads `count` values of `size` bytes from the stack into `words`, two words each. */
const words = new Uint32Array(10);
function readStack(p: Processor, count: number, size: number): boolean {
  let lo = p.gprLo(RSP);
  let hi = p.gprHi(RSP);
  for (let i = 0; i < count; i++) {
    if (!p.read(lo, hi, size)) return false;
    words[i * 2] = p.lo;
    words[i * 2 + 1] = p.hi;
    lo += size;
    if (lo > 0xffffffff) hi = (hi + 1) >>> 0;
    lo >>>= 0;
  }
  return true;
}

/** IRET: in 64-bit mode it always pops five, in 32-bit code three. */
export function interruptReturn(p: Processor, d: Descriptors): number {
  const size = p.instruction.operandSize;
  if ((p.flags() & NT) !== 0) return p.raise(13);
  if (p.bits === 32) return returnWithin(p, d, size);
  if (!readStack(p, 5, size)) return EXIT_EXCEPTION;
  const [ripLo, ripHi, cs, , flags, , rspLo, rspHi, ss] = words;
  const code = d.codeFault(cs);
  if (code !== 0) return p.raise(code, cs & 0xfffc);
  if (!d.isLong && !d.isFlat32) return p.raise(13, cs & 0xfffc);
  const stack = (ss & 0xfffc) === 0 ? 13 : d.stackFault(ss & 0xffff);
  if (stack !== 0) return p.raise(stack, ss & 0xfffc);
  const answer = transfer(p, d, cs, ripLo, ripHi);
  if (answer === EXIT_EXCEPTION) return answer;
  p.u32[SS] = ss & 0xffff;
  p.setGpr(RSP, 8, rspLo, rspHi);
  setFlags(p, flags, size);
  return startsWatching(p) ? EXIT_INTERRUPTED : answer;
}

/** IRET to the same privilege level. */
function returnWithin(p: Processor, d: Descriptors, size: number): number {
  if (!readStack(p, 3, size)) return EXIT_EXCEPTION;
  const [rip, , cs, , flags] = words;
  const answer = transfer(p, d, cs, rip, 0);
  if (answer === EXIT_EXCEPTION) return answer;
  p.addGpr(RSP, 8, 3 * size);
  setFlags(p, flags, size);
  return startsWatching(p) ? EXIT_INTERRUPTED : answer;
}

/** POPF and IRET at CPL 3. */
export function setFlags(p: Processor, flags: number, size: number): void {
  const mask = size === 2 ? FLAGS_CHANGEABLE & 0xffff : FLAGS_CHANGEABLE;
  const all = (p.flags() & ~mask) | (flags & mask) | 2;
  // RF is not kept: it has done its work when the instruction ends.
  p.u32[VCPU.rflags / 4] = all & ~0x10000;
  p.setArithmeticFlags(all);
}

/** Single-stepping and alignment checks begin outside of the interpreter. */
export const startsWatching = (p: Processor): boolean => (p.u32[VCPU.rflags / 4] & (TF | AC)) !== 0;

/** RETF, with bytes to drop. */
export function farReturn(p: Processor, d: Descriptors): number {
  const size = p.instruction.operandSize;
  if (!readStack(p, 2, size)) return EXIT_EXCEPTION;
  const drop = p.instruction.immLo & 0xffff;
  const answer = transfer(p, d, words[2], words[0], words[1]);
  if (answer !== EXIT_EXCEPTION) p.addGpr(RSP, 8, 2 * size + drop);
  return answer;
}

/** JMP and CALL through a far pointer in memory. */
export function farJump(p: Processor, d: Descriptors, call: boolean): number {
  const size = p.instruction.operandSize;
  p.effective();
  const { lo, hi } = p;
  const next = lo + size;
  if (!p.read(next >>> 0, hi + (next > 0xffffffff ? 1 : 0), 2)) return EXIT_EXCEPTION;
  const selector = p.lo;
  if (!p.read(lo, hi, size)) return EXIT_EXCEPTION;
  return goFar(p, d, selector, p.lo, p.hi, call);
}

/** JMP and CALL with a far pointer in the instruction */
export function farJumpDirect(p: Processor, d: Descriptors, call: boolean): number {
  return goFar(p, d, p.instruction.imm2, p.instruction.immLo >>> 0, 0, call);
}

function goFar(p: Processor, d: Descriptors, selector: number, toLo: number, toHi: number, call: boolean): number {
  const size = p.instruction.operandSize;
  if (!call) return transfer(p, d, selector, toLo, toHi);
  const oldCs = p.u32[CS];
  const vector = d.codeFault(selector);
  if (vector !== 0) return p.raise(vector, selector & 0xfffc);
  const stackLo = p.gprLo(RSP) - 2 * size;
  const stackHi = p.gprHi(RSP) - (stackLo < 0 ? 1 : 0);
  // Both slots are looked at before either is written.
  if (p.writing(stackLo >>> 0, stackHi >>> 0, 2 * size) === -1) return EXIT_EXCEPTION;
  p.advance();
  const backLo = p.u32[VCPU.rip / 4];
  const backHi = p.u32[VCPU.rip / 4 + 1];
  const answer = transfer(p, d, selector, toLo, toHi);
  if (answer === EXIT_EXCEPTION) {
    p.setRip(backLo, backHi);
    p.retreat();
    return answer;
  }
  p.write(stackLo >>> 0, stackHi >>> 0, size, backLo, backHi);
  const second = (stackLo >>> 0) + size;
  p.write(second >>> 0, stackHi + (second > 0xffffffff ? 1 : 0), size, oldCs, 0);
  p.addGpr(RSP, 8, -2 * size);
  return answer;
}

export const SEGMENTS = {
  es: ES_REGISTER,
  cs: CS_REGISTER,
  ss: SS_REGISTER,
  ds: DS_REGISTER,
  fs: FS_REGISTER,
  gs: GS_REGISTER,
} as const;
