/**
 * Decodes one instruction of 64-bit or 32-bit code.
 *
 *     [legacy prefixes] [REX] | 0F | 0F 38 | 0F 3A   opcode [ModRM [SIB] [disp8/16/32]] [imm8/16/32/64]
 *
 * Prefixes, as CPUs take them (Source: Intel SDM vol. 2, chapter 2; AMD APM vol. 3, 1.2):
 * - any number in any order; of the segment overrides and of F2 and F3 the last one counts. In 64-bit mode the overrides ES, CS,
 *   SS and DS do not count at all, not even as the last one.
 * - REX counts only directly before the opcode; of several the last one.
 * - for opcodes with mandatory prefixes F2 and F3 go before 66, which is then the operand size or nothing.
 *
 * What ends an instruction early: an opcode, ModRM byte, register number or VEX field that names no instruction is #UD at once,
 * whatever the bytes after it are. #UD for LOCK comes last, when all bytes are there: the instruction's length is known, so the
 * CPU fetches them first. A 16th byte is #GP(0), but DECODE_SHORT comes first if that byte or one before it is not there.
 * Source: Intel SDM vol. 3, table 7-2 (priority of faults): code fetch, then decoding.
 *
 * Where AMD and Intel CPUs differ we take Intel's side, since a guest may meet either. Found by running two million random
 * instructions a mode on an AMD EPYC of the Zen 4 kind, which agrees on validity and length but for these:
 * - 66 before a near branch in 64-bit mode (see opcode-map.ts): AMD takes a displacement of 16 bits.
 * - 0F 0D with a register is a NOP for Intel, #UD for AMD. UD0 and UD1 have a ModRM byte for Intel, none for AMD.
 * - VPEXTRQ and VPINSRQ (VEX.W in 32-bit mode) are VPEXTRD and VPINSRD for Intel, #UD for AMD.
 * - VPERMQ and VPERMPD without VEX.W are #UD for Intel, AMD takes them.
 * - an invalid opcode whose bytes would go on past 15 is #GP on AMD, which fetches them before it says #UD.
 * SYSCALL, SYSRET, SYSENTER and SYSEXIT are decoded in all modes; where a vendor says #UD is for the executing part to know.
 */

import type { Instruction } from './instruction.ts';
import { NO_PREFIX, PREFIX_66, PREFIX_F2, PREFIX_F3 } from './opcode-map.ts';
import {
  build32,
  build64,
  CHECK_CONTROL,
  CHECK_DEBUG,
  CHECK_NOP,
  CHECK_SEGMENT,
  CHECK_SEGMENT_WRITTEN,
  CHECK_SHIFT,
  CHECK_VSIB,
  CHECKED,
  CHECKS,
  forms,
  GROUP,
  IMM_AP,
  IMM_IB,
  IMM_IV,
  IMM_IW,
  IMM_IW_IB,
  IMM_IZ,
  IMM_NONE,
  IMM_O,
  IMM_SIB,
  IMMEDIATE,
  info,
  LOCKABLE,
  MODRM,
  NO_VVVV,
  OWNS_REP,
  operandSizes,
  REG_LOW,
  REGISTERS_ONLY,
  RM_LOW,
  SIZE_RULE,
  SIZE_RULE_SHIFT,
  tables32,
  tables64,
} from './tables.ts';

export const DECODE_OK = 0;
/** #UD. */
export const DECODE_UD = 1;
/** #GP(0): longer than 15 bytes. */
export const DECODE_GP = 2;
/** The instruction goes on past `end`. */
export const DECODE_SHORT = 3;

/** Source: Intel SDM vol. 2, 2.3.11. */
const LENGTH_MAX = 15;

export const RIP = 16;

// Kinds of prefix. 1 to 6: override of segment kind - 1.
const NOT_A_PREFIX = 0;
const IGNORED = 7;
const OPERAND_SIZE = 8;
const ADDRESS_SIZE = 9;
const LOCK = 10;
const REPEAT = 11;
const REX = 12;

function prefixKinds(mode: 32 | 64): Uint8Array {
  const kinds = new Uint8Array(256);
  [0x26, 0x2e, 0x36, 0x3e].forEach((opcode, segment) => {
    kinds[opcode] = mode === 64 ? IGNORED : segment + 1;
  });
  kinds[0x64] = 5;
  kinds[0x65] = 6;
  kinds[0x66] = OPERAND_SIZE;
  kinds[0x67] = ADDRESS_SIZE;
  kinds[0xf0] = LOCK;
  kinds[0xf2] = REPEAT;
  kinds[0xf3] = REPEAT;
  if (mode === 64) kinds.fill(REX, 0x40, 0x50);
  return kinds;
}

const PREFIX_KINDS_64 = prefixKinds(64);
const PREFIX_KINDS_32 = prefixKinds(32);

/** Of 16-bit addressing. Source: Intel SDM vol. 2, table 2-1. */
const BASE_16 = Int8Array.of(3, 3, 5, 5, 6, 7, 5, 3);
const INDEX_16 = Int8Array.of(6, 7, 6, 7, -1, -1, -1, -1);

/** Bit n: CRn exists. Source: Intel SDM vol. 2, MOV from and to control registers. */
const CONTROL_REGISTERS = (1 << 0) | (1 << 2) | (1 << 3) | (1 << 4) | (1 << 8);

function outOfBytes(at: number, end: number): number {
  return end - at >= LENGTH_MAX ? DECODE_GP : DECODE_SHORT;
}

/**
 * Decodes the instruction at `at` into `out`.
 *
 * @param end bytes from here on are not looked at: the end of the page
 * @returns DECODE_OK; DECODE_UD, DECODE_GP: the exception it raises; DECODE_SHORT: call again with more bytes
 */
export function decode(bytes: Uint8Array, at: number, end: number, mode: 32 | 64, out: Instruction): number {
  const long = mode === 64;
  const limit = end - at > LENGTH_MAX ? at + LENGTH_MAX : end;
  const kinds = long ? PREFIX_KINDS_64 : PREFIX_KINDS_32;
  const tables = long ? (tables64 ?? build64()) : (tables32 ?? build32());
  let p = at;
  let opcode = 0;
  let rex = 0;
  let has66 = 0;
  let has67 = false;
  let lock = false;
  let rep = 0;
  let segment = -1;

  for (;;) {
    if (p >= limit) return outOfBytes(at, end);
    opcode = bytes[p++];
    const kind = kinds[opcode];
    if (kind === NOT_A_PREFIX) break;
    if (kind === REX) {
      rex = opcode;
      continue;
    }
    rex = 0;
    if (kind === OPERAND_SIZE) has66 = 1;
    else if (kind === REPEAT) rep = opcode;
    else if (kind === ADDRESS_SIZE) has67 = true;
    else if (kind === LOCK) lock = true;
    else if (kind !== IGNORED) segment = kind - 1;
  }

  const prefix = rep === 0 ? (has66 === 1 ? PREFIX_66 : NO_PREFIX) : rep === 0xf3 ? PREFIX_F3 : PREFIX_F2;
  let map = 0;
  if (opcode === 0x0f) {
    if (p >= limit) return outOfBytes(at, end);
    opcode = bytes[p++];
    map = 1;
    if (opcode === 0x38 || opcode === 0x3a) {
      map = opcode === 0x38 ? 2 : 3;
      if (p >= limit) return outOfBytes(at, end);
      opcode = bytes[p++];
    }
  }
  let row = tables.cells[(map << 10) | (opcode << 2) | prefix];
  let vexL = 0;
  let vexW = 0;
  let vvvv = 0;
  let vex = false;
  if (map === 0 && (opcode & 0xfe) === 0xc4) {
    // VEX, and in 32-bit mode LES and LDS unless the next byte would be the ModRM of a register.
    if (p >= limit) return outOfBytes(at, end);
    const first = bytes[p];
    if (long || first >= 0xc0) {
      if (rex !== 0 || has66 === 1 || rep !== 0 || lock) return DECODE_UD;
      p++;
      let last = first;
      rex = first & 0x80 ? 0 : 4;
      let vexMap = 0;
      if (opcode === 0xc4) {
        vexMap = (first & 0x1f) - 1;
        if (vexMap < 0 || vexMap > 2) return DECODE_UD;
        if (p >= limit) return outOfBytes(at, end);
        last = bytes[p++];
        vexW = last >> 7;
        rex = ((~first >> 5) & 7) | (vexW << 3);
      }
      vexL = (last >> 2) & 1;
      vvvv = (~last >> 3) & 15;
      if (!long) {
        // B does not count; R and X are 0 anyway, since they are where the ModRM of LES and LDS has its mod.
        rex &= ~1;
      }
      if (p >= limit) return outOfBytes(at, end);
      opcode = bytes[p++];
      row = tables.vexCells[(vexMap << 12) | (opcode << 4) | ((last & 3) << 2) | (vexL << 1) | vexW];
      vex = true;
    }
  }
  if (row === 0) return DECODE_UD;

  let modrm = 0;
  if ((row & GROUP) !== 0) {
    if (p >= limit) return outOfBytes(at, end);
    modrm = bytes[p++];
    row = tables.groups[(row & ~GROUP) + (modrm >= 0xc0 ? 8 : 0) + ((modrm >> 3) & 7)];
    if ((row & GROUP) !== 0) row = tables.groups[(row & ~GROUP) + (modrm & 7)];
    if (row === 0) return DECODE_UD;
  } else if ((info[row] & MODRM) !== 0) {
    if (p >= limit) return outOfBytes(at, end);
    modrm = bytes[p++];
  }

  const bits = info[row];
  if (vex) {
    // All four bits of vvvv count here, in 32-bit mode too.
    if ((bits & NO_VVVV) !== 0 && vvvv !== 0) return DECODE_UD;
    if (!long) vvvv &= 7;
  }
  const addressSize = has67 ? (long ? 4 : 2) : long ? 8 : 4;
  let mod = 3;
  let rm = (opcode & 7) | ((rex & 1) << 3);
  let base = -1;
  let index = -1;
  let scale = 0;
  let displacement = 0;
  let reg = 0;
  if ((bits & MODRM) !== 0) {
    mod = (bits & REGISTERS_ONLY) !== 0 ? 3 : modrm >> 6;
    reg = ((modrm >> 3) & 7) | ((rex & 4) << 1);
    rm = modrm & 7;
    if (mod === 3) {
      rm |= (rex & 1) << 3;
    } else if (addressSize !== 2) {
      let displacementSize = mod === 1 ? 1 : mod === 2 ? 4 : 0;
      if (rm === 4) {
        if (p >= limit) return outOfBytes(at, end);
        const sib = bytes[p++];
        scale = sib >> 6;
        index = ((sib >> 3) & 7) | ((rex & 2) << 2);
        if (index === 4 && ((bits >> CHECK_SHIFT) & CHECKS) !== CHECK_VSIB) {
          index = -1;
          scale = 0;
        }
        base = (sib & 7) | ((rex & 1) << 3);
        if ((sib & 7) === 5 && mod === 0) {
          base = -1;
          displacementSize = 4;
        }
      } else if (rm === 5 && mod === 0) {
        if (long) base = RIP;
        displacementSize = 4;
      } else {
        base = rm | ((rex & 1) << 3);
      }
      if (displacementSize === 1) {
        if (p >= limit) return outOfBytes(at, end);
        displacement = (bytes[p++] << 24) >> 24;
      } else if (displacementSize === 4) {
        if (p + 4 > limit) return outOfBytes(at, end);
        displacement = bytes[p] | (bytes[p + 1] << 8) | (bytes[p + 2] << 16) | (bytes[p + 3] << 24);
        p += 4;
      }
    } else {
      base = BASE_16[rm];
      index = INDEX_16[rm];
      if (mod === 1) {
        if (p >= limit) return outOfBytes(at, end);
        displacement = (bytes[p++] << 24) >> 24;
      } else if (mod === 2 || rm === 6) {
        if (mod === 0) base = -1;
        if (p + 2 > limit) return outOfBytes(at, end);
        displacement = ((bytes[p] | (bytes[p + 1] << 8)) << 16) >> 16;
        p += 2;
      }
    }
  }

  if ((bits & CHECKED) !== 0) {
    if ((bits & REG_LOW) !== 0) reg &= 7;
    if ((bits & RM_LOW) !== 0) rm &= 7;
    switch ((bits >> CHECK_SHIFT) & CHECKS) {
      case CHECK_SEGMENT:
        if (reg > 5) return DECODE_UD;
        break;
      case CHECK_SEGMENT_WRITTEN:
        if (reg > 5 || reg === 1) return DECODE_UD;
        break;
      case CHECK_CONTROL:
        if (((CONTROL_REGISTERS >> reg) & 1) === 0) return DECODE_UD;
        break;
      case CHECK_DEBUG:
        if (reg > 7) return DECODE_UD;
        break;
      case CHECK_NOP:
        // The neighbour 91 is XCHG with rCX.
        if ((rex & 1) !== 0) row = tables.cells[0x91 << 2];
        break;
      case CHECK_VSIB:
        // Needs a SIB byte; the three registers must differ.
        if ((modrm & 7) !== 4 || addressSize === 2) return DECODE_UD;
        if (reg === index || reg === vvvv || index === vvvv) return DECODE_UD;
        break;
    }
  }

  const rule = (info[row] >> SIZE_RULE_SHIFT) & SIZE_RULE;
  const operandSize = operandSizes[(rule << 3) | (long ? 4 : 0) | (has66 << 1) | ((rex >> 3) & 1)];
  let immLo = 0;
  let immHi = 0;
  let imm2 = 0;
  const immediate = bits & IMMEDIATE;
  if (immediate !== IMM_NONE) {
    switch (immediate) {
      case IMM_IB:
        if (p >= limit) return outOfBytes(at, end);
        immLo = bytes[p++];
        break;
      case IMM_SIB:
        if (p >= limit) return outOfBytes(at, end);
        immLo = (bytes[p++] << 24) >> 24;
        immHi = immLo >> 31;
        break;
      case IMM_IZ:
        if (operandSize !== 2) {
          if (p + 4 > limit) return outOfBytes(at, end);
          immLo = bytes[p] | (bytes[p + 1] << 8) | (bytes[p + 2] << 16) | (bytes[p + 3] << 24);
          p += 4;
        } else {
          if (p + 2 > limit) return outOfBytes(at, end);
          immLo = ((bytes[p] | (bytes[p + 1] << 8)) << 16) >> 16;
          p += 2;
        }
        immHi = immLo >> 31;
        break;
      case IMM_IW:
      case IMM_IW_IB:
        if (p + 2 > limit) return outOfBytes(at, end);
        immLo = bytes[p] | (bytes[p + 1] << 8);
        p += 2;
        if (immediate === IMM_IW_IB) {
          if (p >= limit) return outOfBytes(at, end);
          imm2 = bytes[p++];
        }
        break;
      case IMM_IV:
      case IMM_O: {
        const size = immediate === IMM_O ? addressSize : operandSize;
        if (p + size > limit) return outOfBytes(at, end);
        immLo = bytes[p] | (bytes[p + 1] << 8);
        if (size >= 4) immLo |= (bytes[p + 2] << 16) | (bytes[p + 3] << 24);
        if (size === 8) immHi = bytes[p + 4] | (bytes[p + 5] << 8) | (bytes[p + 6] << 16) | (bytes[p + 7] << 24);
        p += size;
        break;
      }
      case IMM_AP:
        if (p + operandSize + 2 > limit) return outOfBytes(at, end);
        immLo = bytes[p] | (bytes[p + 1] << 8);
        if (operandSize === 4) immLo |= (bytes[p + 2] << 16) | (bytes[p + 3] << 24);
        p += operandSize;
        imm2 = bytes[p] | (bytes[p + 1] << 8);
        p += 2;
        break;
    }
  }
  if (lock && ((bits & LOCKABLE) === 0 || mod === 3)) return DECODE_UD;

  out.length = p - at;
  out.form = forms[row];
  out.operandSize = operandSize;
  out.addressSize = addressSize;
  out.lock = lock;
  out.rep = (bits & OWNS_REP) !== 0 ? 0 : rep;
  out.segment = segment;
  out.rex = vex ? 0 : rex;
  out.mod = mod;
  out.reg = reg;
  out.rm = rm;
  out.base = base;
  out.index = index;
  out.scale = scale;
  out.displacement = displacement;
  out.immLo = immLo;
  out.immHi = immHi;
  out.imm2 = imm2;
  out.vexL = vexL;
  out.vvvv = vvvv;
  out.vexW = vexW;
  return DECODE_OK;
}
