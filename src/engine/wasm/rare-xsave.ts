/**
 * XSAVE, XSAVEOPT, XSAVEC, XRSTOR and XGETBV. Source: Intel SDM vol. 1, 13.4 (areas) and 13.7 to 13.10; vol. 2, their pages.
 *
 *     0    legacy region, as FXSAVE's: x87 (0-23, 32-159), MXCSR (24-31), XMM0-15 (160-415)
 *   512    header: XSTATE_BV, XCOMP_BV, 48 bytes of zero
 *   576    upper halves of YMM0-15, in the standard and in the compacted form: there is no other component
 *
 * x87 and SSE state always count as in use; the upper halves do when one is not zero. FIP, FDP and FOP: as FXSAVE (rare-fxsave.ts).
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import type { Form } from '../x86/forms.ts';
import { X87_STATE } from '../x86/x87/state.ts';
import { AREA, COMPONENTS, STATE, UPPER_AT, UPPER_BYTES } from './layout.ts';
import type { Processor } from './processor.ts';
import { NEXT } from './rare-status.ts';
import { pieceAt, storedPieces, translatePieces } from './rare-x87-operands.ts';
import { stem } from './semantics/table.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const NM = 7;
const GP = 13;

const X87 = 1;
const SSE = 2;
const AVX = 4;

const HEADER = 512;
const XCOMP_BV = HEADER + 8;
const HEADER_END = 576;
const MXCSR_AT = 24;
const XMM_AT = 160;
const X87_END = 160;
const ALIGNMENT = 64;
const COMPACTED = 0x80000000;
const MXCSR_MASK = 0xffff;
const MXCSR_INITIAL = 0x1f80;

const MXCSR_WORD = STATE.mxcsr / 4;
const XMM_WORD = STATE.xmm / 4;
const UPPER_WORD = STATE.ymmHigh / 4;
/** Of the XMM registers, or of the upper halves: 32-bit code has eight, and leaves those of the others alone. */
const registersBytes = (p: Processor): number => (p.bits === 64 ? 256 : 128);

type Operation = (p: Processor) => boolean;

/** The components that the instruction is about. */
const requested = (p: Processor): number => p.gprLo(RAX) & p.u32[VCPU.xcr0 / 4] & COMPONENTS;

const get = (p: Processor, at: number): number => p.load(pieceAt(at), 4);
const put = (p: Processor, at: number, value: number): void => p.store(pieceAt(at), 4, value);

/** Words of the area from the vCPU's memory, and the other way round. */
function putWords(p: Processor, at: number, from: number, bytes: number): void {
  for (let i = 0; i < bytes; i += 4) put(p, at + i, p.u32[from + i / 4]);
}
function getWords(p: Processor, at: number, to: number, bytes: number): void {
  for (let i = 0; i < bytes; i += 4) p.u32[to + i / 4] = get(p, at + i);
}

/** Translates the area. False: the exception is in the block. */
function area(p: Processor, components: number, write: boolean): boolean {
  p.effective();
  if ((p.lo & (ALIGNMENT - 1)) !== 0) {
    p.raise(GP);
    return false;
  }
  return translatePieces(p, (components & AVX) !== 0 ? AREA : HEADER_END, write);
}

function saveX87(p: Processor): void {
  const { x87 } = p;
  const { transfer } = x87;
  x87.fxsave(p.instruction.operandSize === 8);
  if (!x87.pending()) {
    transfer[X87_STATE.FTW / 4] &= 0xffff;
    transfer.fill(0, X87_STATE.FIP / 4, MXCSR_AT / 4);
  }
  for (let at = 0; at < X87_END; at += 4) if (at < MXCSR_AT || at >= X87_STATE.REGISTERS) put(p, at, transfer[at / 4]);
}

function saveMxcsr(p: Processor): void {
  put(p, MXCSR_AT, p.u32[MXCSR_WORD]);
  put(p, MXCSR_AT + 4, MXCSR_MASK);
}

function inUse(p: Processor): number {
  for (let word = UPPER_WORD; word < UPPER_WORD + UPPER_BYTES / 4; word++) if (p.u32[word] !== 0) return COMPONENTS;
  return X87 | SSE;
}

function saveComponents(p: Processor, components: number): void {
  if ((components & X87) !== 0) saveX87(p);
  if ((components & SSE) !== 0) putWords(p, XMM_AT, XMM_WORD, registersBytes(p));
  if ((components & AVX) !== 0) putWords(p, UPPER_AT, UPPER_WORD, registersBytes(p));
}

/** `optimized`: what is not in use is not written. */
const save =
  (optimized: boolean): Operation =>
  (p) => {
    const components = requested(p);
    if (!area(p, components, true)) return false;
    const used = inUse(p);
    saveComponents(p, optimized ? components & used : components);
    if ((components & (SSE | AVX)) !== 0) saveMxcsr(p);
    put(p, HEADER, (get(p, HEADER) & ~components) | (components & used));
    storedPieces(p, (components & AVX) !== 0 ? AREA : HEADER_END);
    return true;
  };

const saveCompacted: Operation = (p) => {
  const components = requested(p);
  if (!area(p, components, true)) return false;
  const used = components & inUse(p);
  saveComponents(p, used);
  if ((used & SSE) !== 0) saveMxcsr(p);
  put(p, HEADER, used);
  put(p, HEADER + 4, 0);
  put(p, XCOMP_BV, components);
  put(p, XCOMP_BV + 4, COMPACTED);
  storedPieces(p, (components & AVX) !== 0 ? AREA : HEADER_END);
  return true;
};

/** Whether the header is one that XRSTOR takes. */
function isSound(p: Processor): boolean {
  const xcr0 = p.u32[VCPU.xcr0 / 4];
  const states = get(p, HEADER);
  const format = get(p, XCOMP_BV);
  if (get(p, HEADER + 4) !== 0) return false;
  for (let at = XCOMP_BV + 8; at < XCOMP_BV + 16; at += 4) if (get(p, at) !== 0) return false;
  if (get(p, XCOMP_BV + 4) === 0) return format === 0 && (states & ~xcr0) === 0;
  if (get(p, XCOMP_BV + 4) !== COMPACTED || (format & ~xcr0) !== 0 || (states & ~format) !== 0) return false;
  for (let at = XCOMP_BV + 16; at < HEADER_END; at += 4) if (get(p, at) !== 0) return false;
  return true;
}

function restoreX87(p: Processor, isThere: boolean): void {
  const { x87 } = p;
  if (!isThere) {
    x87.fninit();
    p.u32.fill(0, (STATE.x87 + X87_STATE.REGISTERS) / 4, (STATE.x87 + X87_STATE.SIZE) / 4);
    return;
  }
  for (let at = 0; at < X87_END; at += 4) x87.transfer[at / 4] = get(p, at);
  x87.fxrstor(p.instruction.operandSize === 8);
}

function restoreWords(p: Processor, isThere: boolean, at: number, to: number): void {
  const bytes = registersBytes(p);
  if (isThere) getWords(p, at, to, bytes);
  else p.u32.fill(0, to, to + bytes / 4);
}

const restore: Operation = (p) => {
  const components = requested(p);
  if (!area(p, X87 | SSE, false)) return false;
  const states = get(p, HEADER);
  const isCompacted = get(p, XCOMP_BV + 4) === COMPACTED;
  // In the compacted form MXCSR is a part of the SSE state, in the other it is always there.
  const hasMxcsr = isCompacted ? (components & states & SSE) !== 0 : (components & (SSE | AVX)) !== 0;
  const mxcsr = hasMxcsr ? get(p, MXCSR_AT) : MXCSR_INITIAL;
  if (!isSound(p) || (mxcsr & ~MXCSR_MASK) !== 0) {
    p.raise(GP);
    return false;
  }
  // Behind the header is only looked for what it says is there.
  if (!area(p, components & states, false)) return false;
  if ((components & X87) !== 0) restoreX87(p, (states & X87) !== 0);
  if (hasMxcsr || (components & SSE) !== 0) p.u32[MXCSR_WORD] = mxcsr;
  if ((components & SSE) !== 0) restoreWords(p, (states & SSE) !== 0, XMM_AT, XMM_WORD);
  if ((components & AVX) !== 0) restoreWords(p, (states & AVX) !== 0, UPPER_AT, UPPER_WORD);
  return true;
};

/** XCR0; with index 1, what of it is in use. */
const getXcr: Operation = (p) => {
  const index = p.gprLo(RCX);
  if (index > 1) {
    p.raise(GP);
    return false;
  }
  const xcr0 = p.u32[VCPU.xcr0 / 4];
  p.setGpr(RAX, 4, index === 0 ? xcr0 : xcr0 & inUse(p), 0);
  p.setGpr(RDX, 4, 0, 0);
  return true;
};

const AREAS: Readonly<Record<string, Operation>> = {
  xsave: save(false),
  xsaveopt: save(true),
  xsavec: saveCompacted,
  xrstor: restore,
};

/** The instruction of a form, if it is one of these. */
export function xsaveInstruction(form: Form): ((p: Processor) => number) | undefined {
  const name = stem(form);
  const isArea = Object.hasOwn(AREAS, name);
  if (!isArea && name !== 'xgetbv') return undefined;
  const operation = isArea ? AREAS[name] : getXcr;
  return (p) => {
    if (isArea && p.u32[VCPU.cr0Ts / 4] !== 0) return p.raise(NM);
    if (!operation(p)) return EXIT_EXCEPTION;
    p.advance();
    return NEXT;
  };
}
