/**
 * Operands of x87 instructions: registers as numbers, numbers in memory as words, images of an environment or of all of the state.
 *
 * What is read is there before the operation begins, what is written is translated for it: a fault finds nothing changed.
 */

import type { X87 } from '../x86/x87/x87.ts';
import type { Processor } from './processor.ts';

/** The middle of an instruction. True: done. False: a fault is in the block, and nothing has changed. */
export type Operation = (x: X87, p: Processor) => boolean;

/** Without an operand. */
export const plain =
  (use: (x: X87) => void): Operation =>
  (x) => {
    use(x);
    return true;
  };

/** With ST(i). */
export const stack =
  (use: (x: X87, i: number) => void): Operation =>
  (x, p) => {
    use(x, p.instruction.rm);
    return true;
  };

/** With 4 or 8 bytes of memory. */
export const from =
  (size: 4 | 8, use: (x: X87, lo: number, hi: number) => void): Operation =>
  (x, p) => {
    p.effective();
    if (!p.read(p.lo, p.hi, size)) return false;
    use(x, p.lo, p.hi);
    return true;
  };

/** With m16int or m32int, sign-extended. */
export const fromInteger =
  (size: 2 | 4, use: (x: X87, value: number) => void): Operation =>
  (x, p) => {
    p.effective();
    if (!p.read(p.lo, p.hi, size)) return false;
    use(x, size === 2 ? (p.lo << 16) >> 16 : p.lo | 0);
    return true;
  };

/** With 10 bytes of memory, in the transfer area. */
export const fromTen =
  (use: (x: X87) => void): Operation =>
  (x, p) => {
    p.effective();
    if (!translatePieces(p, 10, false)) return false;
    fromPieces(p, x.transfer, 10);
    use(x);
    return true;
  };

/** What `compute` leaves in the transfer area goes to memory, if it says so. */
export const to =
  (size: 2 | 4 | 8 | 10, compute: (x: X87) => boolean): Operation =>
  (x, p) => {
    p.effective();
    if (!translatePieces(p, size, true)) return false;
    if (!compute(x)) return true;
    toPieces(p, x.transfer, size);
    storedPieces(p, size);
    return true;
  };

/** A word to memory. */
export const toWord = (compute: (x: X87) => number): Operation =>
  to(2, (x) => {
    x.transfer[0] = compute(x);
    return true;
  });

/** Bytes with an operand size of 4 or 8, and of 2. Source: Intel SDM vol. 1, figures 8-9 to 8-12. */
export const ENVIRONMENT = { wide: 28, narrow: 14 } as const;
export const STATE_IMAGE = { wide: 108, narrow: 94 } as const;
type ImageSizes = typeof ENVIRONMENT | typeof STATE_IMAGE;

export const fromImage =
  (sizes: ImageSizes, use: (x: X87, wide: boolean) => void): Operation =>
  (x, p) => {
    const wide = p.instruction.operandSize !== 2;
    const size = wide ? sizes.wide : sizes.narrow;
    p.effective();
    if (!translatePieces(p, size, false)) return false;
    fromPieces(p, x.transfer, size);
    use(x, wide);
    return true;
  };

export const toImage =
  (sizes: ImageSizes, compute: (x: X87, wide: boolean) => void): Operation =>
  (x, p) => {
    const wide = p.instruction.operandSize !== 2;
    const size = wide ? sizes.wide : sizes.narrow;
    p.effective();
    if (!translatePieces(p, size, true)) return false;
    compute(x, wide);
    toPieces(p, x.transfer, size);
    storedPieces(p, size);
    return true;
  };

// --- memory in pieces that are translated at once

const PIECE = 64;
/** Offsets in memory 0. */
const pieces = new Uint32Array(16);

/** Offset in memory 0 of a byte of the operand that was translated last. */
export const pieceAt = (at: number): number => pieces[at >>> 6] + (at & (PIECE - 1));

/** Translates an operand of up to 1024 bytes at p.hi:p.lo, all of it. False: fault. */
export function translatePieces(p: Processor, size: number, write: boolean): boolean {
  let { lo, hi } = p;
  for (let done = 0; done < size; done += PIECE) {
    const bytes = Math.min(PIECE, size - done);
    const at = write ? p.writing(lo, hi, bytes) : p.reading(lo, hi, bytes);
    if (at === -1) return false;
    pieces[done / PIECE] = at;
    lo += PIECE;
    if (lo > 0xffffffff) hi = (hi + 1) >>> 0;
    lo >>>= 0;
  }
  return true;
}

/** The first `size` bytes of the operand to the transfer area. */
export function fromPieces(p: Processor, transfer: Uint32Array, size: number): void {
  for (let done = 0; done < size; done += 4)
    transfer[done >>> 2] = p.load(pieces[done >>> 6] + (done & 63), Math.min(4, size - done));
}

/** The other way round. To be followed by `storedPieces`. */
export function toPieces(p: Processor, transfer: Uint32Array, size: number): void {
  for (let done = 0; done < size; done += 4)
    p.store(pieces[done >>> 6] + (done & 63), Math.min(4, size - done), transfer[done >>> 2]);
}

/** `size` as at `translatePieces`. */
export function storedPieces(p: Processor, size: number): void {
  for (let done = 0; done < size; done += PIECE) p.stored(pieces[done >>> 6], Math.min(PIECE, size - done));
}
