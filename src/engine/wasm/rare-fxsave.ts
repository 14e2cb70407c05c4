/**
 * FXSAVE and FXRSTOR. Source: Intel SDM vol. 1, 10.5 and table 10-2; vol. 2, their pages.
 *
 * FXSAVE stores FIP, FDP and FOP as zero while no unmasked exception is pending, as AMD CPUs do (APM vol. 2, 11.4.4.3; measured);
 * FXRSTOR takes them as they are. Deviation from those: they allow any address, this wants 16-byte alignment, as Intel's do.
 */

import { X87_STATE } from '../x86/x87/state.ts';
import { STATE } from './layout.ts';
import type { Processor } from './processor.ts';
import { fromPieces, type Operation, storedPieces, toPieces, translatePieces } from './rare-x87-operands.ts';

const GP = 13;

/** The bits of MXCSR that exist; FXRSTOR of others is #GP. */
const MXCSR_MASK = 0xffff;

/** Bytes of the image. The last 96 are the software's. */
const SIZE = 512;
const USED = 416;
/** Words of the image. */
const TAGS_OPCODE = X87_STATE.FTW / 4;
const POINTERS = X87_STATE.FIP / 4;
const MXCSR = 6;
const XMM = 40;
/** One past the XMM registers; 32-bit code has the first eight only, and leaves the bytes of the others alone. */
const xmmEnd = (p: Processor): number => (p.bits === 64 ? USED : USED - 128) / 4;

const MXCSR_WORD = STATE.mxcsr / 4;
const XMM_WORD = STATE.xmm / 4;

function translate(p: Processor, write: boolean): boolean {
  p.effective();
  if ((p.lo & 15) === 0) return translatePieces(p, SIZE, write);
  p.raise(GP);
  return false;
}

export const fxsave: Operation = (x, p) => {
  if (!translate(p, true)) return false;
  const { transfer } = x;
  x.fxsave(p.instruction.operandSize === 8);
  if (!x.pending()) {
    transfer[TAGS_OPCODE] &= 0xffff;
    transfer.fill(0, POINTERS, MXCSR);
  }
  transfer[MXCSR] = p.u32[MXCSR_WORD];
  transfer[MXCSR + 1] = MXCSR_MASK;
  const end = xmmEnd(p);
  for (let word = XMM; word < end; word++) transfer[word] = p.u32[XMM_WORD + word - XMM];
  toPieces(p, transfer, end * 4);
  storedPieces(p, SIZE);
  return true;
};

export const fxrstor: Operation = (x, p) => {
  if (!translate(p, false)) return false;
  const { transfer } = x;
  fromPieces(p, transfer, USED);
  if ((transfer[MXCSR] & ~MXCSR_MASK) !== 0) {
    p.raise(GP);
    return false;
  }
  x.fxrstor(p.instruction.operandSize === 8);
  p.u32[MXCSR_WORD] = transfer[MXCSR];
  const end = xmmEnd(p);
  for (let word = XMM; word < end; word++) p.u32[XMM_WORD + word - XMM] = transfer[word];
  return true;
};
