/**
 * The opcode maps compiled into typed arrays for the decoder.
 *
 *     cells[(map << 8 | opcode) << 2 | prefix]           of 64-bit and of 32-bit mode
 *     vexCells[((map << 8 | opcode) << 2 | prefix) << 2 | L << 1 | W]
 *         0                no instruction
 *         n < GROUP        row n - 1 of ROWS
 *         GROUP | n        ModRM decides: groups[n + (mod is 3 ? 8 : 0) + reg] is one of these three again; a further group goes by rm
 *
 * `info[n]` says in one word what decoding the row takes, `forms[n]` what it is.
 *
 * `showFeatures` of others than before drops the tables; the next decode fills them anew. They belong to the JavaScript realm: one worker shows one CPU.
 */

import { FORM_OF_ROW, FORMS } from './forms.ts';
import { MAP, NO_PREFIX, PREFIX_F2, ROWS, type Row, type SizeRule } from './opcode-map.ts';
import { OPERANDS } from './operands.ts';

export const GROUP = 0x8000;

// Bits of info. Immediates: the low four.
export const IMMEDIATE = 0xf;
export const IMM_NONE = 0;
/** One byte, zero-extended; sign-extended; a word, zero-extended. */
export const IMM_IB = 1;
export const IMM_SIB = 2;
export const IMM_IW = 3;
/** A word or, for the operand sizes 4 and 8, a signed doubleword. */
export const IMM_IZ = 4;
/** As wide as the operand, zero-extended. */
export const IMM_IV = 5;
/** An address. */
export const IMM_O = 6;
export const IMM_AP = 7;
export const IMM_IW_IB = 8;
/** Index into `operandSizes`, in steps of eight. */
export const SIZE_RULE_SHIFT = 4;
export const SIZE_RULE = 7;
export const MODRM = 0x80;
export const LOCKABLE = 0x100;
/** F2 or F3 is part of the opcode. */
export const OWNS_REP = 0x200;
/** ModRM names registers whatever mod is. */
export const REGISTERS_ONLY = 0x400;
/** Something of CHECKS has to be looked at. */
export const CHECKED = 0x800;
export const CHECK_SHIFT = 12;
export const CHECKS = 0xf;
export const CHECK_SEGMENT = 1;
export const CHECK_SEGMENT_WRITTEN = 2;
export const CHECK_CONTROL = 3;
export const CHECK_DEBUG = 4;
/** 90 is XCHG with REX.B. */
export const CHECK_NOP = 5;
export const CHECK_VSIB = 6;
/** Three-bit registers: REX.R and REX.B do not count. */
export const REG_LOW = 0x10000;
export const RM_LOW = 0x20000;
/** VEX.vvvv names no operand and must be 1111. */
export const NO_VVVV = 0x40000;

const SIZE_RULES: readonly SizeRule[] = ['none', 'b', 'v', 'y', 'z', 'd64', 'f64', 'm64'];

/** operandSizes[rule << 3 | 64-bit mode << 2 | prefix 66 << 1 | REX.W] */
export const operandSizes = Uint8Array.of(
  ...[4, 4, 4, 4, 4, 4, 4, 4],
  ...[1, 1, 1, 1, 1, 1, 1, 1],
  ...[4, 4, 2, 2, 4, 8, 2, 8],
  ...[4, 4, 4, 4, 4, 8, 4, 8],
  ...[4, 4, 2, 2, 4, 4, 2, 4],
  ...[4, 4, 2, 2, 8, 8, 2, 8],
  ...[4, 4, 2, 2, 8, 8, 8, 8],
  ...[4, 4, 4, 4, 8, 8, 8, 8],
);

const IMMEDIATES: Readonly<Record<string, number>> = {
  Ib: IMM_IB,
  sIb: IMM_SIB,
  Jb: IMM_SIB,
  Iw: IMM_IW,
  Iz: IMM_IZ,
  Jz: IMM_IZ,
  Iv: IMM_IV,
  Ob: IMM_O,
  Ov: IMM_O,
  Ap: IMM_AP,
  Lx: IMM_IB,
};

function infoOf(row: Row): number {
  let info = SIZE_RULES.indexOf(row.sizeRule) << SIZE_RULE_SHIFT;
  let check = row.nop90 ? CHECK_NOP : 0;
  let usesVvvv = false;
  for (const operand of row.operands) {
    const { class: operandClass, place } = OPERANDS[operand];
    const immediate = IMMEDIATES[operand] ?? 0;
    if (immediate !== 0) info = (info & ~IMMEDIATE) | ((info & IMMEDIATE) === IMM_IW ? IMM_IW_IB : immediate);
    if (operandClass === 'mmx' || operandClass === 'st' || operandClass === 'segment') {
      if (place === 'reg') info |= REG_LOW | CHECKED;
      if (place === 'rm') info |= RM_LOW | CHECKED;
    }
    if (operand === 'Sw') check = row.operands[0] === 'Sw' ? CHECK_SEGMENT_WRITTEN : CHECK_SEGMENT;
    if (operand === 'Cy') check = CHECK_CONTROL;
    if (operand === 'Dy') check = CHECK_DEBUG;
    if (operandClass === 'vsib') check = CHECK_VSIB;
    if (place === 'vvvv') usesVvvv = true;
  }
  if (check === CHECK_CONTROL || check === CHECK_DEBUG) info |= REGISTERS_ONLY;
  if (check !== 0) info |= CHECKED | (check << CHECK_SHIFT);
  if (row.hasModrm) info |= MODRM;
  if (row.lockable) info |= LOCKABLE;
  if (row.prefixes >> 2 !== 0) info |= OWNS_REP;
  if (!usesVvvv) info |= NO_VVVV;
  return info;
}

/** By row number plus one, as the cells have it. */
export const info = Uint32Array.of(0, ...ROWS.map(infoOf));
export const forms = Uint16Array.of(0, ...FORM_OF_ROW);

export interface ModeTables {
  readonly cells: Uint16Array;
  readonly vexCells: Uint16Array;
  readonly groups: Uint16Array;
}

const LEGACY_CELLS = 4 << 10;
const VEX_CELLS = 3 << 12;
const GROUPS_MAX = 0x4000;

/** `AVX&AES` takes both. */
function areShown(features: string, shown: ReadonlySet<string>): boolean {
  if (features === '' || shown.has(features)) return true;
  return features.includes('&') && features.split('&').every((name) => shown.has(name));
}

/** One mode's tables while they are filled. */
class Builder {
  readonly cells = new Uint16Array(LEGACY_CELLS);
  readonly vexCells = new Uint16Array(VEX_CELLS);
  readonly groups = new Uint16Array(GROUPS_MAX);
  groupsEnd = 0;
  /** Groups below are of cells of all four prefixes and must not be changed any more. */
  sharedEnd = 0;

  /** Makes a group out of what stood there before: all its entries are that. */
  group(before: number, size: number): number {
    const start = this.groupsEnd;
    this.groupsEnd += size;
    this.groups.fill(before, start, this.groupsEnd);
    return start;
  }

  /** The group in `value`, of one's own: made of what stood there before, or copied if it is shared. */
  ownGroup(value: number, size: number): number {
    if (value < GROUP) return this.group(value, size);
    const start = value - GROUP;
    if (start >= this.sharedEnd) return start;
    const copy = this.group(0, size);
    this.groups.copyWithin(copy, start, start + size);
    return copy;
  }

  /** Puts a row where `value` was; gives what stands there now. Rows without a digit come first: they replace what was there. */
  merged(value: number, row: Row, number: number): number {
    if (row.mod === 'any' && row.reg < 0) return number;
    const start = this.ownGroup(value, 16);
    for (let slot = start; slot < start + 16; slot++) {
      const isRegister = slot - start >= 8;
      if (row.mod === (isRegister ? 'memory' : 'register')) continue;
      if (row.reg >= 0 && row.reg !== ((slot - start) & 7)) continue;
      if (row.rmFirst < 0) {
        this.groups[slot] = number;
        continue;
      }
      const byRm = this.ownGroup(this.groups[slot], 8);
      this.groups.fill(number, byRm + row.rmFirst, byRm + row.rmLast + 1);
      this.groups[slot] = GROUP | byRm;
    }
    return GROUP | start;
  }

  addLegacy(row: Row, number: number): void {
    for (let opcode = row.opcodeFirst; opcode <= row.opcodeLast; opcode++) {
      const cell = (row.map << 10) | (opcode << 2);
      if (row.prefixes === 0) this.cells[cell] = this.merged(this.cells[cell], row, number);
      for (let prefix = NO_PREFIX; prefix <= PREFIX_F2; prefix++) {
        if (((row.prefixes >> prefix) & 1) === 0) continue;
        this.cells[cell | prefix] = this.merged(this.cells[cell | prefix], row, number);
      }
    }
  }

  /** After the rows that take any prefix, before those that want one. */
  shareAmongPrefixes(): void {
    for (let cell = 0; cell < LEGACY_CELLS; cell += 4) this.cells.fill(this.cells[cell], cell + 1, cell + 4);
    this.sharedEnd = this.groupsEnd;
  }

  /** @param lengths the values of VEX.L that the features allow, as a mask */
  addVex(row: Row, number: number, lengths: number): void {
    for (let prefix = NO_PREFIX; prefix <= PREFIX_F2; prefix++) {
      if (((row.prefixes >> prefix) & 1) === 0) continue;
      for (let lw = 0; lw < 4; lw++) {
        if ((((row.vexL & lengths) >> (lw >> 1)) & 1) === 0 || ((row.vexW >> (lw & 1)) & 1) === 0) continue;
        const cell = ((row.map - MAP.VEX_0F) << 12) | (row.opcodeFirst << 4) | (prefix << 2) | lw;
        this.vexCells[cell] = this.merged(this.vexCells[cell], row, number);
      }
    }
  }
}

/** Rows without a mandatory prefix, then those with; among them, rows without a digit first, and those with rm given last. */
function precedence(row: Row): number {
  const specific = row.rmFirst >= 0 ? 3 : row.reg >= 0 ? 2 : row.mod !== 'any' ? 1 : 0;
  return (row.prefixes === 0 ? 0 : 4) + specific;
}

/** Row numbers by precedence, in the order of the map where it is the same. */
const ORDER: readonly number[] = order();

function order(): number[] {
  const levels: number[][] = [[], [], [], [], [], [], [], []];
  for (let i = 0; i < ROWS.length; i++) levels[precedence(ROWS[i])].push(i);
  return levels.flat();
}

function build(mode: 32 | 64, shown: ReadonlySet<string>): ModeTables {
  const builder = new Builder();
  let isShared = false;
  for (const i of ORDER) {
    const row = ROWS[i];
    if (!isShared && row.prefixes !== 0) {
      builder.shareAmongPrefixes();
      isShared = true;
    }
    if (!(mode === 64 ? row.in64 : row.in32)) continue;
    const isShown = areShown(row.feature, shown);
    const isShownWide = row.featureWide === row.feature ? isShown : areShown(row.featureWide, shown);
    if (row.map >= MAP.VEX_0F) builder.addVex(row, i + 1, (isShown ? 1 : 0) | (isShownWide ? 2 : 0));
    else if (isShown) builder.addLegacy(row, i + 1);
  }
  return { cells: builder.cells, vexCells: builder.vexCells, groups: builder.groups.slice(0, builder.groupsEnd) };
}

/** The level x86-64-v2 of the psABI, and what no CPU of that level lacks. */
export const FEATURES_V2: readonly string[] = [
  ...['CMOV', 'FPU', 'FXSR', 'MMX', 'SSE', 'SSE2', 'SEP', 'CLFSH', 'LAHF', 'POPCNT'],
  ...['SSE3', 'SSSE3', 'SSE4_1', 'SSE4_2'],
];

/** The level x86-64-v3. XSAVEOPT and XSAVEC belong to no level, but to every CPU of this one. */
export const FEATURES_V3: readonly string[] = [
  ...FEATURES_V2,
  ...['AVX', 'AVX2', 'BMI1', 'BMI2', 'F16C', 'FMA', 'LZCNT', 'MOVBE', 'XSAVE', 'XSAVEOPT', 'XSAVEC'],
];

/** All that the rows know, for tests and for an engine that shows them all. */
export const FEATURES_ALL: readonly string[] = allFeatures();

function allFeatures(): string[] {
  const joined = new Set<string>();
  for (const form of FORMS) joined.add(form.feature).add(form.featureWide);
  const names = new Set([...joined].flatMap((features) => features.split('&')));
  names.delete('');
  return [...names];
}

let shownFeatures: ReadonlySet<string> = new Set(FEATURES_V2);

/** Of 64-bit and of 32-bit mode; null until `build64` and `build32` have made them, at the first decode in that mode. */
export let tables64: ModeTables | null = null;
export let tables32: ModeTables | null = null;

export function build64(): ModeTables {
  return (tables64 = build(64, shownFeatures));
}

export function build32(): ModeTables {
  return (tables32 = build(32, shownFeatures));
}

/**
 * Says which CPUID features the decoder knows; the instructions of the others are #UD, or what an older CPU takes them for (TZCNT
 * is BSF then). At start it is FEATURES_V2.
 *
 * @throws Error if a name is not in FEATURES_ALL
 */
export function showFeatures(names: Iterable<string>): void {
  const shown = new Set(names);
  for (const name of shown) if (!FEATURES_ALL.includes(name)) throw new Error(`x86: no row has the feature ${name}`);
  // A thread that has rehearsed has the tables already: 20 ms.
  if (shown.size === shownFeatures.size && [...shown].every((name) => shownFeatures.has(name))) return;
  shownFeatures = shown;
  tables64 = null;
  tables32 = null;
}
