/**
 * One decoded instruction. A user makes one and has `decode` fill it again and again: decoding allocates nothing.
 *
 * After a decode that did not return DECODE_OK the fields hold a mixture of old and new.
 */
export class Instruction {
  /** Bytes, 1 to 15. */
  length = 0;
  /** Index into FORMS (forms.ts). */
  form = 0;
  /**
   * Effective width in bytes of the form's `v`, `y`, `z` and `b` operands: 1, 2, 4 or 8. Stack and branch instructions have
   * none and say the width of what they push or of the instruction pointer. 4 where there is nothing to choose.
   */
  operandSize = 0;
  /** 8, 4 or 2. */
  addressSize = 0;
  lock = false;
  /** 0, 0xf2 or 0xf3; 0 where the prefix chose the instruction. */
  rep = 0;
  /** -1 or the override: ES 0, CS 1, SS 2, DS 3, FS 4, GS 5. In 64-bit mode FS and GS only. */
  segment = -1;
  /**
   * 0 or the REX byte. Byte registers 4..7 are SPL, BPL, SIL and DIL with any REX, AH, CH, DH and BH without. Also 0 with a VEX
   * prefix: its bits are in `reg`, `rm`, `base`, `index` and `vexW`.
   */
  rex = 0;
  /** 3 also where the opcode has no ModRM byte: `mod !== 3` says that there are `base`, `index` and `displacement`. */
  mod = 0;
  /** With REX.R. */
  reg = 0;
  /** With REX.B if mod is 3. For a register in the opcode (`Zv`) as well. Without a ModRM byte and such a register: undefined. */
  rm = 0;
  /** -1 none, 0..15, 16 RIP of the next instruction (EIP if addressSize is 4). */
  base = -1;
  /** -1 none, 0..15; the XMM or YMM register for `VM..`. */
  index = -1;
  /** The index is shifted left by this, 0..3. */
  scale = 0;
  /** Signed, 32 bits. */
  displacement = 0;
  /** The immediate, branch displacement or moffs address, extended to 64 bits as the operand type says; two int32. */
  immLo = 0;
  immHi = 0;
  /** ENTER's second immediate; the selector of a far pointer. */
  imm2 = 0;
  /** 0: 128 bits, 1: 256 bits. */
  vexL = 0;
  vvvv = 0;
  vexW = 0;
}
