/** MOVS, STOS, LODS, CMPS and SCAS. Between elements the registers say how far it is, so faults and interruptions may come there. */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION, EXIT_INTERRUPTED } from '../engine.ts';
import type { Processor } from './processor.ts';
import { NEXT } from './rare-status.ts';

const RAX = 0;
const RCX = 1;
const RSI = 6;
const RDI = 7;
const DF = 0x400;
const ZF = 0x40;

const REPE = 0xf3;
const FLAGS_W = VCPU.flags / 4;

/** The count of a repeated instruction as far as it matters at a time. */
function remaining(p: Processor): number {
  if (p.instruction.rep === 0) return 1;
  const { addressSize } = p.instruction;
  if (addressSize === 2) return p.gprLo(RCX) & 0xffff;
  const wide = addressSize === 8 && p.gprHi(RCX) !== 0;
  return wide ? 0x40000000 : Math.min(p.gprLo(RCX), 0x40000000);
}

function counted(p: Processor, elements: number): void {
  if (p.instruction.rep !== 0) p.addGpr(RCX, p.instruction.addressSize, -elements);
}

function address(p: Processor, register: number, segment: number): void {
  const { addressSize } = p.instruction;
  p.lo = addressSize === 2 ? p.gprLo(register) & 0xffff : p.gprLo(register);
  p.hi = addressSize === 8 ? p.gprHi(register) : 0;
  p.addSegment(segment);
}

/** Elements that may go in one piece. */
function pieceOf(p: Processor): number {
  const count = remaining(p);
  return p.isStepping ? Math.min(count, 1) : count;
}

/** After some elements: finished, interrupted (rip stays), or on. 0 = go on. */
function pause(p: Processor): number {
  if (p.instruction.rep === 0 || remaining(p) === 0) {
    p.advance();
    return NEXT;
  }
  p.iterated = p.isStepping;
  return p.isStepping || p.u32[FLAGS_W] !== 0 ? EXIT_INTERRUPTED : 0;
}

export function moveString(p: Processor): number {
  const i = p.instruction;
  const size = i.operandSize;
  const backward = (p.flags() & DF) !== 0;
  const step = backward ? -size : size;
  if (remaining(p) === 0) {
    p.advance();
    return NEXT;
  }
  const { machine, scratch } = p.memory;
  const u8 = machine.u8;
  for (;;) {
    const count = pieceOf(p);
    address(p, RSI, i.segment);
    const sourceLo = p.lo;
    const source = p.reading(p.lo, p.hi, size) >>> 0;
    if (source === 0xffffffff) return EXIT_EXCEPTION;
    address(p, RDI, -1);
    const targetLo = p.lo;
    const target = p.writing(p.lo, p.hi, size) >>> 0;
    if (target === 0xffffffff) return EXIT_EXCEPTION;
    let elements = 1;
    if (!backward && count > 1 && source < scratch && target < scratch) {
      const room = Math.min(4096 - (sourceLo & 0xfff), 4096 - (targetLo & 0xfff));
      elements = Math.min(count, Math.floor(room / size));
      // Code in the page of the target: `writing` has looked at the first element only.
      if (p.memory.hasCode(target)) elements = 1;
    }
    const bytes = elements * size;
    if (target > source && target < source + bytes) {
      // The source is what was just stored: one element after the other.
      for (let at = 0; at < bytes; at += size) {
        const a = p.load(source + at, Math.min(size, 4));
        const b = size === 8 ? p.load(source + at + 4, 4) : 0;
        p.store(target + at, Math.min(size, 4), a);
        if (size === 8) p.store(target + at + 4, 4, b);
      }
    } else if (bytes > 32) u8.copyWithin(target, source, source + bytes);
    else if (target < source) for (let at = 0; at < bytes; at++) u8[target + at] = u8[source + at];
    else for (let at = bytes - 1; at >= 0; at--) u8[target + at] = u8[source + at];
    p.stored(target, bytes);
    p.addGpr(RSI, i.addressSize, step * elements);
    p.addGpr(RDI, i.addressSize, step * elements);
    counted(p, elements);
    const end = pause(p);
    if (end !== 0) return end;
  }
}

export function storeString(p: Processor): number {
  const i = p.instruction;
  const size = i.operandSize;
  const backward = (p.flags() & DF) !== 0;
  const step = backward ? -size : size;
  if (remaining(p) === 0) {
    p.advance();
    return NEXT;
  }
  const lo = p.gprLo(RAX);
  const hi = p.gprHi(RAX);
  const { machine, scratch } = p.memory;
  const { u8, u32 } = machine;
  const zero = (size === 8 ? lo | hi : size === 4 ? lo : size === 2 ? lo & 0xffff : lo & 0xff) === 0;
  for (;;) {
    const count = pieceOf(p);
    address(p, RDI, -1);
    const targetLo = p.lo;
    const target = p.writing(p.lo, p.hi, size) >>> 0;
    if (target === 0xffffffff) return EXIT_EXCEPTION;
    let elements = 1;
    if (!backward && count > 1 && target < scratch && !p.memory.hasCode(target))
      elements = Math.min(count, Math.floor((4096 - (targetLo & 0xfff)) / size));
    const bytes = elements * size;
    if (size === 1) u8.fill(lo & 0xff, target, target + bytes);
    else if (zero) u8.fill(0, target, target + bytes);
    else if ((target & 3) === 0 && size === 4) u32.fill(lo, target >>> 2, (target + bytes) >>> 2);
    else
      for (let at = 0; at < bytes; at += size) {
        p.store(target + at, Math.min(size, 4), lo);
        if (size === 8) p.store(target + at + 4, 4, hi);
      }
    p.stored(target, bytes);
    p.addGpr(RDI, i.addressSize, step * elements);
    counted(p, elements);
    const end = pause(p);
    if (end !== 0) return end;
  }
}

export function loadString(p: Processor): number {
  const i = p.instruction;
  const size = i.operandSize;
  const step = (p.flags() & DF) !== 0 ? -size : size;
  if (remaining(p) === 0) {
    p.advance();
    return NEXT;
  }
  for (;;) {
    address(p, RSI, i.segment);
    if (!p.read(p.lo, p.hi, size)) return EXIT_EXCEPTION;
    p.setGpr(RAX, size, p.lo, p.hi);
    p.addGpr(RSI, i.addressSize, step);
    counted(p, 1);
    const end = pause(p);
    if (end !== 0) return end;
  }
}

/** After a comparison: the repetition ends when the flag is not what the prefix asks for. */
function compared(p: Processor): number {
  const { rep } = p.instruction;
  if (rep !== 0) {
    const equal = (p.flags() & ZF) !== 0;
    if (equal !== (rep === 0xf3)) {
      p.advance();
      return NEXT;
    }
  }
  return pause(p);
}

export function compareStrings(p: Processor): number {
  const i = p.instruction;
  const size = i.operandSize;
  const step = (p.flags() & DF) !== 0 ? -size : size;
  if (remaining(p) === 0) {
    p.advance();
    return NEXT;
  }
  // Which of two faults comes: no manual says it. Source: measured on AMD Zen.
  const sourceFirst = size === 1 && i.rep === REPE;
  for (;;) {
    address(p, sourceFirst ? RSI : RDI, sourceFirst ? i.segment : -1);
    if (!p.read(p.lo, p.hi, size)) return EXIT_EXCEPTION;
    const firstLo = p.lo;
    const firstHi = p.hi;
    address(p, sourceFirst ? RDI : RSI, sourceFirst ? -1 : i.segment);
    if (!p.read(p.lo, p.hi, size)) return EXIT_EXCEPTION;
    if (sourceFirst) p.compare(size, firstLo, firstHi, p.lo, p.hi);
    else p.compare(size, p.lo, p.hi, firstLo, firstHi);
    p.addGpr(RSI, i.addressSize, step);
    p.addGpr(RDI, i.addressSize, step);
    counted(p, 1);
    const end = compared(p);
    if (end !== 0) return end;
  }
}

export function scanString(p: Processor): number {
  const i = p.instruction;
  const size = i.operandSize;
  const step = (p.flags() & DF) !== 0 ? -size : size;
  if (remaining(p) === 0) {
    p.advance();
    return NEXT;
  }
  const mask = size >= 4 ? -1 : size === 2 ? 0xffff : 0xff;
  const aLo = (p.gprLo(RAX) & mask) >>> 0;
  const aHi = p.gprHi(RAX);
  for (;;) {
    address(p, RDI, -1);
    if (!p.read(p.lo, p.hi, size)) return EXIT_EXCEPTION;
    p.compare(size, aLo, aHi, p.lo, p.hi);
    p.addGpr(RDI, i.addressSize, step);
    counted(p, 1);
    const end = compared(p);
    if (end !== 0) return end;
  }
}
