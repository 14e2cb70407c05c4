/** Instructions that only 32-bit code has. Source: Intel SDM vol. 2, the page of each mnemonic. */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import type { Processor } from './processor.ts';
import { JUMP, NEXT } from './rare-status.ts';

const RAX = 0;
const RCX = 1;
const RSP = 4;
const CF = 1;
const PF = 4;
const AF = 0x10;
const ZF = 0x40;
const SF = 0x80;
const OF = 0x800;

const finish = (p: Processor): number => {
  p.advance();
  return NEXT;
};

/** SF, ZF and PF of a byte. */
function flagsOf(byte: number): number {
  let ones = 0;
  for (let bit = 0; bit < 8; bit++) ones += (byte >>> bit) & 1;
  return (byte & SF) | (byte === 0 ? ZF : 0) | ((ones & 1) === 0 ? PF : 0);
}

/** AX and the flags that go with AL; what the manual leaves undefined becomes 0. */
function setAx(p: Processor, ax: number, flags: number): number {
  p.setGpr(RAX, 2, ax & 0xffff, 0);
  p.setArithmeticFlags((p.flags() & ~(CF | PF | AF | ZF | SF | OF)) | flags | flagsOf(ax & 0xff));
  return finish(p);
}

/** DAA and DAS */
export function decimalAdjust(sign: 1 | -1): (p: Processor) => number {
  return (p) => {
    const ax = p.gprLo(RAX) & 0xffff;
    const old = ax & 0xff;
    const flags = p.flags();
    let al = old;
    let carry = 0;
    let adjust = 0;
    if ((al & 15) > 9 || (flags & AF) !== 0) {
      al += sign * 6;
      carry = (flags & CF) | (al < 0 || al > 0xff ? CF : 0);
      adjust = AF;
    }
    if (old > 0x99 || (flags & CF) !== 0) {
      al += sign * 0x60;
      carry = CF;
    } else if (sign === 1) carry = 0;
    return setAx(p, (ax & 0xff00) | (al & 0xff), carry | adjust);
  };
}

/** AAA and AAS */
export function asciiAdjust(sign: 1 | -1): (p: Processor) => number {
  return (p) => {
    const ax = p.gprLo(RAX) & 0xffff;
    const wanted = (ax & 15) > 9 || (p.flags() & AF) !== 0;
    const adjusted = wanted ? ax + sign * 0x106 : ax;
    return setAx(p, adjusted & 0xff0f, wanted ? CF | AF : 0);
  };
}

/** AAM */
export function asciiMultiply(p: Processor): number {
  const divisor = p.instruction.immLo & 0xff;
  if (divisor === 0) return p.raise(0);
  const al = p.gprLo(RAX) & 0xff;
  return setAx(p, (Math.floor(al / divisor) << 8) | (al % divisor), 0);
}

/** AAD */
export function asciiDivide(p: Processor): number {
  const ax = p.gprLo(RAX) & 0xffff;
  return setAx(p, ((ax & 0xff) + (ax >>> 8) * (p.instruction.immLo & 0xff)) & 0xff, 0);
}

/** SALC, which no manual has: AL = CF ? FF : 0. */
export function carryToAl(p: Processor): number {
  p.setGpr(RAX, 1, (p.flags() & CF) !== 0 ? 0xff : 0, 0);
  return finish(p);
}

/** LOOP and its like with a count in CX. (The others are the interpreter's own.) */
export function countedBranch(kind: 'loop' | 'loope' | 'loopne' | 'jcxz'): (p: Processor) => number {
  return (p) => {
    const isZero = (p.flags() & ZF) !== 0;
    const before = p.gprLo(RCX) & 0xffff;
    let isTaken = before === 0;
    if (kind !== 'jcxz') {
      p.setGpr(RCX, 2, (before - 1) & 0xffff, 0);
      isTaken = before !== 1 && (kind === 'loop' || isZero === (kind === 'loope'));
    }
    p.advance();
    if (isTaken) p.setRip((p.u32[VCPU.rip / 4] + p.instruction.immLo) >>> 0, 0);
    return JUMP;
  };
}

export function pushAll(p: Processor): number {
  const size = p.instruction.operandSize;
  const stack = p.gprLo(RSP);
  // All slots are looked at before one is written.
  if (p.writing((stack - 8 * size) >>> 0, 0, 8 * size) === -1) return EXIT_EXCEPTION;
  for (let n = 0; n < 8; n++)
    if (!p.write((stack - (n + 1) * size) >>> 0, 0, size, p.gprLo(n), 0)) return EXIT_EXCEPTION;
  p.setGpr(RSP, 4, (stack - 8 * size) >>> 0, 0);
  return finish(p);
}

export function popAll(p: Processor): number {
  const size = p.instruction.operandSize;
  const stack = p.gprLo(RSP);
  if (p.reading(stack, 0, 8 * size) === -1) return EXIT_EXCEPTION;
  for (let n = 7; n >= 0; n--) {
    if (n === RSP) continue;
    if (!p.read((stack + (7 - n) * size) >>> 0, 0, size)) return EXIT_EXCEPTION;
    p.setGpr(n, size, p.lo, 0);
  }
  p.setGpr(RSP, 4, (stack + 8 * size) >>> 0, 0);
  return finish(p);
}

/** BOUND: a signed index and its two bounds. */
export function checkBounds(p: Processor): number {
  const i = p.instruction;
  const size = i.operandSize;
  const extend = (value: number): number => (size === 2 ? (value << 16) >> 16 : value | 0);
  p.effective();
  const { lo } = p;
  if (!p.read(lo, 0, size)) return EXIT_EXCEPTION;
  const lower = extend(p.lo);
  if (!p.read((lo + size) >>> 0, 0, size)) return EXIT_EXCEPTION;
  const index = extend(p.gprLo(i.reg));
  return index < lower || index > extend(p.lo) ? p.raise(5) : finish(p);
}

/** ARPL: the destination's RPL becomes at least the source's. */
export function adjustPrivilege(p: Processor): number {
  const i = p.instruction;
  let old = p.gprLo(i.rm) & 0xffff;
  if (i.mod !== 3) {
    p.effective();
    if (p.writing(p.lo, p.hi, 2) === -1) return EXIT_EXCEPTION;
    const { lo, hi } = p;
    if (!p.read(lo, hi, 2)) return EXIT_EXCEPTION;
    old = p.lo;
    p.lo = lo;
    p.hi = hi;
  }
  const rpl = p.gprLo(i.reg) & 3;
  const isLower = (old & 3) < rpl;
  if (isLower && i.mod === 3) p.setGpr(i.rm, 2, (old & ~3) | rpl, 0);
  else if (isLower && !p.write(p.lo, p.hi, 2, (old & ~3) | rpl, 0)) return EXIT_EXCEPTION;
  const flags = p.flags();
  p.setArithmeticFlags(isLower ? flags | ZF : flags & ~ZF);
  return finish(p);
}
