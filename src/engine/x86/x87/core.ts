/**
 * The x87 state as the operations see it: words of shared memory, the stack, exceptions.
 *
 * Word 0 is the bottleneck: each operation needs TOP from it and leaves flags in it, so that operations wait for each other through
 * memory (a store and its load take 4 ns). So it is written once an operation where that is easy.
 *
 * All words are read through one Int32Array of 40 words, so that every value is a small integer for the JavaScript engine (an
 * Uint32Array would hand out doubles). Operations are functions over an X87Core; the class X87 (x87.ts) is their public face.
 *
 * Order of events in an operation, as in the CPU: C1 is cleared; an empty operand or a full stack is a stack fault; then invalid
 * operands, division by zero and denormal operands (before the result is known: unmasked, they leave registers and TOP as they
 * were); then overflow, underflow and inexact (after: a register gets its result even when unmasked, memory does not for O and U).
 * Source: Intel SDM vol. 1, 8.4-8.6 and 4.9.2.
 */

import { BUSY, C1, ES, EXCEPTIONS, IE, SF, X87_STATE } from './state.ts';

/** Word 0 of the state holds FCW (low half) and FSW (high half). */
export const CONTROL_STATUS = 0;
/** Word 1 holds FTW (low byte) and FOP (high half). */
export const TAGS_OPCODE = 1;
/** First word of physical register 0; four words each: significand low, high, sign and exponent, zero. */
export const REGISTER_WORDS = X87_STATE.REGISTERS / 4;

/** C1 and TOP, and ES with B, as they stand in word 0. */
export const C1_WORD = C1 << 16;
export const TOP_WORD = 7 << 27;
const ERROR_WORD = (ES | BUSY) << 16;

/** The QNaN "real indefinite": sign and exponent, significand high (low is 0). Source: Intel SDM vol. 1, 4.8.3.7. */
export const INDEFINITE_SIGN_EXPONENT = 0xffff;
export const INDEFINITE_HI = 0xc0000000 | 0;

/** Words of an FXSAVE image, the largest thing that goes through the transfer area. */
export const TRANSFER_WORDS = 128;

export class X87Core {
  /** The state: see CONTROL_STATUS, TAGS_OPCODE, REGISTER_WORDS. */
  readonly words: Int32Array;
  /**
   * Memory operands that are wider than two words, and all results for memory, lowest address first: whoever moves guest memory
   * copies them in before, or out after, the operation.
   */
  readonly transfer: Uint32Array;
  /** A number taken apart, or one on its way to rounding: sign and exponent (or less), significand high, low, bits below. */
  readonly temp = new Int32Array(4);

  /**
   * Over the state at `u32`'s start + `stateOffset` (bytes, a multiple of 4). `transfer` is 128 words or more, private by default;
   * it may lie in shared memory too, where translated code reaches it.
   */
  constructor(u32: Uint32Array, stateOffset: number, transfer: Uint32Array = new Uint32Array(TRANSFER_WORDS)) {
    this.words = new Int32Array(u32.buffer, u32.byteOffset + stateOffset, X87_STATE.SIZE / 4);
    this.transfer = transfer;
  }

  /** Word index of ST(i). */
  register(i: number): number {
    return REGISTER_WORDS + ((((this.words[CONTROL_STATUS] >>> 27) + i) & 7) << 2);
  }

  isEmpty(i: number): boolean {
    const words = this.words;
    return ((words[TAGS_OPCODE] >>> (((words[CONTROL_STATUS] >>> 27) + i) & 7)) & 1) === 0;
  }

  clearC1(): void {
    const word = this.words[CONTROL_STATUS];
    if (word & C1_WORD) this.words[CONTROL_STATUS] = word & ~C1_WORD;
  }

  /** Sets exception flags (and SF, C1 where given), and ES and B if one of them is unmasked. Returns the unmasked ones. */
  raise(flags: number): number {
    const word = this.words[CONTROL_STATUS] | (flags << 16);
    const unmasked = flags & ~word & EXCEPTIONS;
    this.words[CONTROL_STATUS] = unmasked === 0 ? word : word | ERROR_WORD;
    return unmasked;
  }

  /** ES and B follow from the flags and the masks, whenever either was loaded. */
  updateErrorSummary(): void {
    const word = this.words[CONTROL_STATUS];
    this.words[CONTROL_STATUS] = (word >>> 16) & ~word & EXCEPTIONS ? word | ERROR_WORD : word & ~ERROR_WORD;
  }

  /** Stack underflow: an operand is empty. True if masked, that is, if the operation goes on with the indefinite value. */
  underflow(): boolean {
    return this.raise(IE | SF) === 0;
  }

  /**
   * Makes room for a push: C1 is cleared, TOP decremented and the new ST(0) marked as not empty; its word index is returned. If it
   * was in use, that is a stack overflow: the indefinite value is pushed if masked, nothing if not, and -1 returned.
   */
  push(): number {
    const words = this.words;
    const word = words[CONTROL_STATUS];
    const top = ((word >>> 27) + 7) & 7;
    if ((words[TAGS_OPCODE] >>> top) & 1) {
      if (this.raise(IE | SF | C1) === 0) {
        this.setTop(top);
        this.storeIndefinite(REGISTER_WORDS + (top << 2));
      }
      return -1;
    }
    words[TAGS_OPCODE] |= 1 << top;
    words[CONTROL_STATUS] = (word & ~(TOP_WORD | C1_WORD)) | (top << 27);
    return REGISTER_WORDS + (top << 2);
  }

  pop(): void {
    const words = this.words;
    const word = words[CONTROL_STATUS];
    const top = (word >>> 27) & 7;
    words[TAGS_OPCODE] &= ~(1 << top);
    words[CONTROL_STATUS] = (word & ~TOP_WORD) | (((top + 1) & 7) << 27);
  }

  setTop(top: number): void {
    this.words[CONTROL_STATUS] = (this.words[CONTROL_STATUS] & ~TOP_WORD) | (top << 27);
  }

  setTag(i: number): void {
    this.words[TAGS_OPCODE] |= 1 << (((this.words[CONTROL_STATUS] >>> 27) + i) & 7);
  }

  clearTag(i: number): void {
    this.words[TAGS_OPCODE] &= ~(1 << (((this.words[CONTROL_STATUS] >>> 27) + i) & 7));
  }

  /** Writes a register at its word index. */
  store(at: number, signExponent: number, hi: number, lo: number): void {
    const words = this.words;
    words[at] = lo;
    words[at + 1] = hi;
    words[at + 2] = signExponent;
    words[at + 3] = 0;
  }

  /** Writes the indefinite value into ST(i) and marks it as not empty. */
  setIndefinite(i: number): void {
    this.setTag(i);
    this.storeIndefinite(this.register(i));
  }

  storeIndefinite(at: number): void {
    this.store(at, INDEFINITE_SIGN_EXPONENT, INDEFINITE_HI, 0);
  }
}
