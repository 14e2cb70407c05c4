/**
 * Machine code from rows of the opcode map: what an assembler would make of a form, with every choice open. The decoder then says
 * whether it is what was meant.
 */

import { SHOWN_FEATURES } from '../../src/engine/wasm/cpuid.ts';
import { DECODE_OK, decode } from '../../src/engine/x86/decoder.ts';
import { FORM_OF_ROW, FORMS, type Form } from '../../src/engine/x86/forms.ts';
import type { Instruction } from '../../src/engine/x86/instruction.ts';
import { MAP, PREFIX_66, PREFIX_F2, PREFIX_F3, ROWS, type Row } from '../../src/engine/x86/opcode-map.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';

export interface MemoryChoice {
  /** -1 none, 0..15, 16 RIP. */
  readonly base: number;
  /** -1 none, not 4. */
  readonly index: number;
  readonly scale: number;
  readonly displacement: number;
  /** Bytes of it: 0, 1, 4; more if the base needs it. */
  readonly displacementBytes: number;
}

export interface Choices {
  readonly operandSize: number;
  readonly reg: number;
  /** Register, or memory. */
  readonly rm: number | MemoryChoice;
  /** FS 0x64, GS 0x65, others that do not count; 0 = none. */
  readonly segment: number;
  readonly address32: boolean;
  readonly lock: boolean;
  /** F2 or F3 where they are not part of the opcode; 0 = none. */
  readonly rep: number;
  /** A REX prefix even where none is needed, which makes SPL of AH; a VEX prefix of three bytes, with W if it is ignored. */
  readonly rex: boolean;
  readonly vvvv: number;
  /** VEX.L, where it may be either. */
  readonly wide: boolean;
  /** Two words, as many bytes of them as needed. */
  readonly immediateLo: number;
  readonly immediateHi: number;
}

const PREFIX_BYTES = [0, 0x66, 0xf3, 0xf2];
const LEADS: readonly (readonly number[])[] = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]];

function isShown(feature: string): boolean {
  return feature.split('&').every((name) => name === '' || SHOWN_FEATURES.includes(name));
}

/** Rows of 64-bit mode that the engines have, by form. */
export const ROWS_OF_FORM: readonly (readonly Row[])[] = rowsOfForm();

function rowsOfForm(): Row[][] {
  const rows: Row[][] = FORMS.map(() => []);
  ROWS.forEach((row, i) => {
    if (row.in64 && isShown(row.feature)) rows[FORM_OF_ROW[i]].push(row);
  });
  return rows;
}

/** The ModRM operand of a form: what it may be; null = none (or a register in the opcode). */
export function modrmOperand(form: Form): { readonly mod: 'register' | 'memory' | 'any' } | null {
  for (const type of form.operands) {
    const info = OPERANDS[type];
    if (info.place === 'rm' && !type.startsWith('Z')) return info;
  }
  return null;
}

function immediateBytes(form: Form, choices: Choices): number {
  let bytes = 0;
  for (const type of form.operands) {
    switch (type) {
      case 'Ib':
      case 'sIb':
      case 'Jb':
      case 'Lx':
        bytes += 1;
        break;
      case 'Iw':
        bytes += 2;
        break;
      case 'Iz':
        bytes += choices.operandSize === 2 ? 2 : 4;
        break;
      case 'Jz':
        bytes += 4;
        break;
      case 'Iv':
        bytes += choices.operandSize;
        break;
      case 'Ob':
      case 'Ov':
        bytes += choices.address32 ? 4 : 8;
        break;
      default:
        break;
    }
  }
  return bytes;
}

/**
 * Writes the instruction to `out` and decodes it into `instruction`. Returns its length; 0 when it is not an instruction of the
 * form at that operand size. A register that is a byte register of the numbers 4 to 7 is AH and so on unless `rex`.
 */
export function encode(form: Form, row: Row, choices: Choices, out: Uint8Array, instruction: Instruction): number {
  let p = 0;
  const { operandSize, rm, reg } = choices;
  const mandatory = row.prefixes === 0 ? 0 : lowest(row.prefixes);
  let rexW = false;
  let size66 = false;
  switch (form.sizeRule) {
    case 'v':
    case 'y':
    case 'z':
      rexW = operandSize === 8;
      size66 = operandSize === 2;
      break;
    case 'd64':
      size66 = operandSize === 2;
      break;
    default:
      break;
  }
  if (choices.address32) out[p++] = 0x67;
  if (choices.segment !== 0) out[p++] = choices.segment;
  if (form.vex) return finish(form, choices, putVex(form, row, choices, rexW, out, p), out, instruction);
  if (size66 || mandatory === PREFIX_66) out[p++] = 0x66;
  if (mandatory === PREFIX_F2 || mandatory === PREFIX_F3) out[p++] = PREFIX_BYTES[mandatory];
  else if (choices.rep !== 0) out[p++] = choices.rep;
  if (choices.lock) out[p++] = 0xf0;
  const inOpcode = form.operands.some((type) => type.startsWith('Z'));
  const memory = typeof rm === 'number' ? null : rm;
  const rmRegister = typeof rm === 'number' ? (row.rmFirst >= 0 ? row.rmFirst : rm) : 0;
  const regField = row.reg >= 0 ? row.reg : reg;
  let rex = choices.rex ? 0x40 : 0;
  if (rexW) rex |= 0x48;
  if (row.hasModrm && regField > 7) rex |= 0x44;
  if (memory !== null) {
    if (memory.index > 7) rex |= 0x42;
    if (memory.base > 7 && memory.base < 16) rex |= 0x41;
  } else if (rmRegister > 7 && (row.hasModrm || inOpcode)) rex |= 0x41;
  if (rex !== 0) out[p++] = rex;
  for (const byte of LEADS[row.map]) out[p++] = byte;
  out[p++] = inOpcode ? row.opcodeFirst | (rmRegister & 7) : row.opcodeFirst;
  if (row.hasModrm) {
    if (memory === null) out[p++] = 0xc0 | ((regField & 7) << 3) | (rmRegister & 7);
    else p = putMemory(memory, (regField & 7) << 3, out, p);
  }
  return finish(form, choices, p, out, instruction);
}

/** VEX prefix, opcode and ModRM. Source: Intel SDM vol. 2, 2.3.5. */
function putVex(form: Form, row: Row, choices: Choices, rexW: boolean, out: Uint8Array, at: number): number {
  let p = at;
  const { rm } = choices;
  const reg = row.reg >= 0 ? row.reg : choices.reg;
  const memory = typeof rm === 'number' ? null : rm;
  const w = row.vexW === 3 ? (form.sizeRule === 'y' ? rexW : choices.rex) : row.vexW === 2;
  const l = row.vexL === 3 ? choices.wide : row.vexL === 2;
  const hasVvvv = form.operands.some((type) => OPERANDS[type].place === 'vvvv');
  const x = memory !== null && memory.index > 7;
  const b = memory === null ? (rm as number) > 7 && row.hasModrm : memory.base > 7 && memory.base < 16;
  const last = ((hasVvvv ? ~choices.vvvv & 15 : 15) << 3) | (l ? 4 : 0) | lowest(row.prefixes);
  if (row.map === MAP.VEX_0F && !w && !x && !b && !choices.rex) {
    out[p++] = 0xc5;
    out[p++] = (reg > 7 ? 0 : 0x80) | last;
  } else {
    out[p++] = 0xc4;
    out[p++] = (reg > 7 ? 0 : 0x80) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | (row.map - MAP.VEX_0F + 1);
    out[p++] = (w ? 0x80 : 0) | last;
  }
  out[p++] = row.opcodeFirst;
  if (!row.hasModrm) return p;
  if (memory !== null) return putMemory(memory, (reg & 7) << 3, out, p);
  out[p++] = 0xc0 | ((reg & 7) << 3) | ((rm as number) & 7);
  return p;
}

/** Immediates; whether the decoder agrees. */
function finish(form: Form, choices: Choices, end: number, out: Uint8Array, instruction: Instruction): number {
  let p = end;
  const { operandSize } = choices;
  const bytes = immediateBytes(form, choices);
  for (let i = 0; i < bytes; i++)
    out[p++] = (i < 4 ? choices.immediateLo >>> (8 * i) : choices.immediateHi >>> (8 * (i - 4))) & 0xff;
  if (p > 15) return 0;
  if (decode(out, 0, 15, 64, instruction) !== DECODE_OK) return 0;
  if (instruction.length !== p || instruction.form !== form.index) return 0;
  return form.sizeRule === 'none' || instruction.operandSize === operandSize ? p : 0;
}

function lowest(prefixes: number): number {
  for (let prefix = 0; prefix < 4; prefix++) if (((prefixes >> prefix) & 1) !== 0) return prefix;
  return 0;
}

function putMemory(memory: MemoryChoice, reg: number, out: Uint8Array, at: number): number {
  let p = at;
  const { base, index, displacement } = memory;
  let bytes = memory.displacementBytes;
  if (base === 16) {
    out[p++] = reg | 5;
    bytes = 4;
  } else if (base < 0) {
    out[p++] = reg | 4;
    out[p++] = (memory.scale << 6) | ((index < 0 ? 4 : index & 7) << 3) | 5;
    bytes = 4;
  } else {
    if (bytes === 0 && (base & 7) === 5) bytes = 1;
    const mod = bytes === 0 ? 0 : bytes === 1 ? 0x40 : 0x80;
    if (index >= 0 || (base & 7) === 4) {
      out[p++] = mod | reg | 4;
      out[p++] = (memory.scale << 6) | ((index < 0 ? 4 : index & 7) << 3) | (base & 7);
    } else out[p++] = mod | reg | (base & 7);
  }
  for (let i = 0; i < bytes; i++) out[p++] = (displacement >> (8 * i)) & 0xff;
  return p;
}
