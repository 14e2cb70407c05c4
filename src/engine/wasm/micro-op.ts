/**
 * The record of one instruction for the interpreter: 16 bytes in memory 1, or 32 where a 64-bit constant follows.
 *
 *    0 u16  handler
 *    2 u8   register 1     where it stands in the vCPU block: gpr[n] at n * 8 (AH at 1, ...), v128[n] at n * 16 in its table
 *    3 u8   register 2
 *    4 u8   base           an 8-byte slot of the first 256 bytes of memory 1: a register, STATE.zero, STATE.address, STATE.codePage
 *    5 u8   index
 *    6 u16  scale (bits 0-1) | offset of the instruction in its page << 4
 *    8 i32  displacement
 *   12 i32  immediate, sign-extended when used; with VEX a byte, and behind it
 *   13 u8   register 3: VEX.vvvv
 *   16 i64  constant (32-byte records only)
 *
 * In branches: displacement = micro-op of the target when it is linked (0 = not), immediate = target relative to the page,
 * base and index = u16 offset after the instruction, registers = u16 count of the times that they went backwards.
 */

export const MICRO_OP = {
  handler: 0,
  register1: 2,
  register2: 3,
  /** In branches: times that they went backwards. */
  count: 2,
  base: 4,
  index: 5,
  /** In branches. */
  nextOffset: 4,
  scale: 6,
  displacement: 8,
  immediate: 12,
  register3: 13,
  wide: 16,
  SIZE: 16,
  WIDE_SIZE: 32,
} as const;
