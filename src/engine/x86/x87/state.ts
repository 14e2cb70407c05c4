/**
 * Where the x87 state of one vCPU lies in shared memory, and the bits in it.
 *
 * The layout is the first 160 bytes of an FXSAVE64 image with one difference: the registers stand in physical order R0-R7, not in
 * stack order ST(0)-ST(7). So a push moves no memory, MMn is register n at a fixed offset, and FXSAVE/FXRSTOR turn the registers
 * by TOP on their way (fxsave.ts). MXCSR (bytes 24-31) belongs to the SSE part of the engine; nothing here touches it.
 *
 * Who writes: only the vCPU's own thread, and all of it without Atomics.
 */

/**
 * Byte offsets from the base of the state. The base is a multiple of 4.
 * Source: Intel SDM vol. 1, table 10-2 (FXSAVE area, 64-bit mode with REX.W) and figure 8-1.
 */
export const X87_STATE = {
  /** Control word, u16. */
  FCW: 0,
  /** Status word with TOP in bits 11-13, u16. */
  FSW: 2,
  /** Abridged tag word, u8: bit n = physical register n is not empty. */
  FTW: 4,
  /** Last opcode, u16: low 3 bits of the first byte in bits 8-10, the ModRM byte in bits 0-7. */
  FOP: 6,
  /** Last instruction pointer, u64. */
  FIP: 8,
  /** Last data pointer, u64. */
  FDP: 16,
  /** Physical register n at REGISTERS + 16 * n: u64 significand, u16 sign and exponent, 6 bytes of zero. */
  REGISTERS: 32,
  SIZE: 160,
} as const;

/** Exception flags in FSW and, at the same places, their masks in FCW. Source: Intel SDM vol. 1, figures 8-4 and 8-6. */
export const IE = 0x01;
export const DE = 0x02;
export const ZE = 0x04;
export const OE = 0x08;
export const UE = 0x10;
export const PE = 0x20;
export const EXCEPTIONS = 0x3f;
/** Further bits of FSW. */
export const SF = 0x40;
export const ES = 0x80;
export const C0 = 0x100;
export const C1 = 0x200;
export const C2 = 0x400;
export const TOP_SHIFT = 11;
export const C3 = 0x4000;
export const BUSY = 0x8000;

/** Rounding control, FCW bits 10-11. */
export const RC_NEAREST = 0;
export const RC_DOWN = 1;
export const RC_UP = 2;
export const RC_ZERO = 3;

/** Precision control, FCW bits 8-9. The reserved value 1 works as 3. */
export const PC_24 = 0;
export const PC_53 = 2;
export const PC_64 = 3;

/** FCW after FNINIT. */
export const FCW_INITIAL = 0x37f;
/** Bits of FCW that a load keeps (bit 12, infinity control, is stored and means nothing); bit 6 always reads 1. Source: measured. */
export const FCW_WRITABLE = 0x1f3f;
export const FCW_FIXED = 0x40;

/** EFLAGS bits that FCOMI writes. */
export const EFLAGS_CF = 0x01;
export const EFLAGS_PF = 0x04;
export const EFLAGS_ZF = 0x40;

/** Two-bit tags of the full tag word. Source: Intel SDM vol. 1, figure 8-7. */
const TAG_VALID = 0;
const TAG_ZERO = 1;
const TAG_SPECIAL = 2;
const TAG_EMPTY = 3;

/** The abridged tag byte of a full tag word. Source: Intel SDM vol. 2, FXSAVE, table 3-45. */
export function abridgedTags(full: number): number {
  let tags = 0;
  for (let n = 0; n < 8; n++) if (((full >>> (2 * n)) & 3) !== TAG_EMPTY) tags |= 1 << n;
  return tags;
}

/** The two-bit tag of a register that is not empty, from its content (sign and exponent, significand high and low). */
export function tagOf(signExponent: number, hi: number, lo: number): number {
  const exponent = signExponent & 0x7fff;
  if (exponent === 0) return (hi | lo) === 0 ? TAG_ZERO : TAG_SPECIAL;
  return exponent === 0x7fff || hi >= 0 ? TAG_SPECIAL : TAG_VALID;
}

/** The full tag word of the state in `words` (40 words at the base of the state). Source: Intel SDM vol. 2, FXRSTOR. */
export function fullTags(words: Int32Array): number {
  let full = 0;
  for (let n = 0; n < 8; n++) {
    const at = X87_STATE.REGISTERS / 4 + 4 * n;
    const tag = (words[1] >>> n) & 1 ? tagOf(words[at + 2], words[at + 1], words[at]) : TAG_EMPTY;
    full |= tag << (2 * n);
  }
  return full;
}
