/**
 * The opcode maps as rows, read from text that keeps the notation of the Intel SDM, vol. 2, appendix A.
 *
 *     f3:1e/7:2   endbr64    -           ...
 *     |  |  | |   |          |           attributes
 *     |  |  | |   |          operands, or - for none
 *     |  |  | |   mnemonic; with slashes: its names for 16, 32 and 64 bits, or of two the narrow and the 64-bit one
 *     |  |  | ModRM.rm (mod is 3 then), one or a range
 *     |  |  ModRM.reg
 *     |  opcode, one or a range
 *     mandatory prefixes: np is none of 66, F2 and F3. Without them the opcode takes any prefix and ignores F2 and F3 (but REP)
 *
 * mod is restricted by the operands: `M..` is memory, `R..`, `U..`, `N..` and `STi` are registers. A row with a mandatory prefix
 * or with more of ModRM given goes before one without.
 *
 * Attributes:
 *     =oszapc  OF SF ZF AF PF CF: t tested, m modified, b both, 0 cleared, 1 set, ? undefined, . left alone;
 *              then +dt and so on for the other flags: d DF, i IF, T TF, A AC
 *     maybe    the flags may also keep their old values (a shift by zero)
 *     lock     takes LOCK when its destination is memory
 *     cpl0 iopl tsd pce umip   needs CPL 0; CPL <= IOPL; CPL 0 with CR4.TSD, without CR4.PCE, with CR4.UMIP: else #GP(0)
 *     ud       raises #UD at CPL 3 (UD2; CLAC and MONITOR; VMX and SVM instructions without VMXON or EFER.SVME)
 *     b v y z  what `operandSize` is where the operands do not say it
 *     d64 f64 m64  in 64-bit mode it is 8 or, with 66, 2; 8 whatever the prefixes (otherwise 4 or 2); 8 (otherwise 4)
 *     i64 o64  not in 64-bit mode; only there
 *     a        the names go by the address size, not the operand size
 *     nop      with REX.B it is XCHG
 *     l0 l1 w0 w1  VEX.L and VEX.W must be so
 *     @NAME    CPUID feature; alone in a line for the rows that follow. @ONE&OTHER: takes both.
 *              @NAME+MORE: with VEX.L set it takes MORE instead
 *
 * Deviation: 66 before a near branch in 64-bit mode is ignored, as on Intel CPUs. AMD CPUs truncate the target to 16 bits and
 * take a displacement of 16 bits (APM vol. 3, "Near branches in 64-bit mode"). No compiler makes such code, and a guest that
 * did would behave differently from host to host. Source: Intel SDM vol. 2, CALL, JMP, Jcc and RET.
 */

import { TWO_BYTE } from './opcode-map-0f.ts';
import { MAP_0F3A, MAP_0F38 } from './opcode-map-0f38.ts';
import { ONE_BYTE } from './opcode-map-one-byte.ts';
import { SSE } from './opcode-map-sse.ts';
import { VEX_0F, VEX_0F3A, VEX_0F38 } from './opcode-map-vex.ts';
import { X87 } from './opcode-map-x87.ts';
import { isOperandType, OPERANDS, type OperandSize, type OperandType } from './operands.ts';

/** EFLAGS bits. Source: Intel SDM vol. 1, 3.4.3. */
export const FLAG = {
  CF: 1,
  PF: 4,
  AF: 0x10,
  ZF: 0x40,
  SF: 0x80,
  TF: 0x100,
  IF: 0x200,
  DF: 0x400,
  OF: 0x800,
  AC: 0x40000,
};

export type Privilege = 'none' | 'cpl0' | 'iopl' | 'tsd' | 'pce' | 'umip' | 'ud';
export type SizeRule = 'none' | 'b' | 'v' | 'y' | 'z' | 'd64' | 'f64' | 'm64';

/** Map numbers; those of VEX are its mmmmm field plus 3. */
export const MAP = { ONE_BYTE: 0, TWO_BYTE: 1, X0F38: 2, X0F3A: 3, VEX_0F: 4, VEX_0F38: 5, VEX_0F3A: 6 };

/** Prefix numbers, as VEX.pp has them. */
export const NO_PREFIX = 0;
export const PREFIX_66 = 1;
export const PREFIX_F3 = 2;
export const PREFIX_F2 = 3;

/** Masks of EFLAGS bits. `written` are those that get a defined value, `cleared` and `set` among them. */
export interface Flags {
  read: number;
  written: number;
  cleared: number;
  set: number;
  undefined: number;
}

export interface Row {
  map: number;
  opcodeFirst: number;
  opcodeLast: number;
  /** Bit n: prefix number n. 0: any. */
  prefixes: number;
  /** -1: any. */
  reg: number;
  rmFirst: number;
  rmLast: number;
  mod: 'register' | 'memory' | 'any';
  hasModrm: boolean;
  mnemonic: string;
  namesByAddress: boolean;
  operands: readonly OperandType[];
  sizeRule: SizeRule;
  flags: Flags;
  flagsConditional: boolean;
  lockable: boolean;
  privilege: Privilege;
  feature: string;
  /** The feature that VEX.L = 1 takes. */
  featureWide: string;
  in64: boolean;
  in32: boolean;
  /** Bit 0: may be 0, bit 1: may be 1. */
  vexL: number;
  vexW: number;
  nop90: boolean;
}

const STATUS = [FLAG.OF, FLAG.SF, FLAG.ZF, FLAG.AF, FLAG.PF, FLAG.CF];
const OTHER: Readonly<Record<string, number>> = { d: FLAG.DF, i: FLAG.IF, T: FLAG.TF, A: FLAG.AC };
const PREFIX_BITS: Readonly<Record<string, number>> = { np: 1, '66': 2, f3: 4, f2: 8 };

const NO_FLAGS: Flags = { read: 0, written: 0, cleared: 0, set: 0, undefined: 0 };

function markFlag(flags: Flags, bit: number, state: string): void {
  if (state === '.') return;
  if (state === 't' || state === 'b') flags.read |= bit;
  if (state === 'm' || state === 'b' || state === '0' || state === '1') flags.written |= bit;
  if (state === '0') flags.cleared |= bit;
  if (state === '1') flags.set |= bit;
  if (state === '?') flags.undefined |= bit;
}

function parseFlags(text: string): Flags {
  const flags = { ...NO_FLAGS };
  for (let i = 0; i < STATUS.length; i++) markFlag(flags, STATUS[i], text.charAt(i));
  for (let i = STATUS.length; i < text.length; i += 3) markFlag(flags, OTHER[text.charAt(i + 1)], text.charAt(i + 2));
  return flags;
}

function attribute(row: Row, text: string): void {
  switch (text) {
    case 'maybe':
      row.flagsConditional = true;
      return;
    case 'lock':
      row.lockable = true;
      return;
    case 'cpl0':
    case 'iopl':
    case 'tsd':
    case 'pce':
    case 'umip':
    case 'ud':
      row.privilege = text;
      return;
    case 'b':
    case 'v':
    case 'y':
    case 'z':
    case 'd64':
    case 'f64':
    case 'm64':
      row.sizeRule = text;
      return;
    case 'i64':
      row.in64 = false;
      return;
    case 'o64':
      row.in32 = false;
      return;
    case 'a':
      row.namesByAddress = true;
      return;
    case 'l0':
      row.vexL = 1;
      return;
    case 'l1':
      row.vexL = 2;
      return;
    case 'w0':
      row.vexW = 1;
      return;
    case 'w1':
      row.vexW = 2;
      return;
    case 'nop':
      row.nop90 = true;
      return;
  }
  if (text.startsWith('=')) row.flags = FLAGS_SEEN.get(text) ?? remember(FLAGS_SEEN, text, parseFlags(text.slice(1)));
  else if (text.startsWith('@')) feature(row, text.slice(1));
  else throw new Error(`x86 opcode map: what is ${text}?`);
}

function feature(row: Row, text: string): void {
  const plus = text.indexOf('+');
  row.feature = plus < 0 ? text : text.slice(0, plus);
  row.featureWide = plus < 0 ? text : text.slice(plus + 1);
}

/** What the operands say about ModRM and the operand size. */
interface Signature {
  readonly operands: readonly OperandType[];
  readonly hasModrm: boolean;
  readonly mod: Row['mod'];
  readonly sizeRule: SizeRule;
}

/** The rule that wins when operands of several kinds meet: the later one. */
const SIZE_ORDER: readonly SizeRule[] = ['none', 'b', 'y', 'z', 'v'];

function sizeRuleOf(size: OperandSize): SizeRule {
  if (size === 'v' || size === 'p') return 'v';
  if (size === 'z' || size === 'a') return 'z';
  if (size === 'y' || size === '2y') return 'y';
  return size === 1 ? 'b' : 'none';
}

function parseOperands(text: string): Signature {
  const operands: OperandType[] = [];
  let hasModrm = false;
  let mod: Row['mod'] = 'any';
  let rank = 0;
  for (const name of text === '-' ? [] : text.split(',')) {
    if (!isOperandType(name)) throw new Error(`x86 opcode map: what is the operand ${name}?`);
    operands.push(name);
    const info = OPERANDS[name];
    if (info.place === 'reg' || (info.place === 'rm' && !name.startsWith('Z'))) hasModrm = true;
    if (info.mod !== 'any') mod = info.mod;
    if (info.class === 'immediate' || info.class === 'relative' || info.class === 'far') continue;
    rank = Math.max(rank, SIZE_ORDER.indexOf(sizeRuleOf(info.size)), SIZE_ORDER.indexOf(sizeRuleOf(info.memorySize)));
  }
  return { operands, hasModrm, mod, sizeRule: SIZE_ORDER[rank] };
}

// Most flags and operands come many times; parsing each once halves the time of the whole.
const FLAGS_SEEN = new Map<string, Flags>();
const SIGNATURES_SEEN = new Map<string, Signature>();

function remember<T>(seen: Map<string, T>, text: string, value: T): T {
  seen.set(text, value);
  return value;
}

const WHERE = /^(?:([a-z0-9,]+):)?([0-9a-f]{2})(?:-([0-9a-f]{2}))?(?:\/([0-7])(?::([0-7])(?:-([0-7]))?)?)?$/;

function numberOr(text: string | undefined, otherwise: number): number {
  return text === undefined ? otherwise : Number(text);
}

function parseRow(map: number, line: string, section: string): Row {
  const words = line.split(' ');
  const where = WHERE.exec(words[0]);
  if (where === null) throw new Error(`x86 opcode map: what is "${line}"?`);
  const opcodeFirst = Number.parseInt(where[2], 16);
  const rmFirst = numberOr(where[5], -1);
  const signature = SIGNATURES_SEEN.get(words[2]) ?? remember(SIGNATURES_SEEN, words[2], parseOperands(words[2]));
  const row: Row = {
    map,
    opcodeFirst,
    opcodeLast: where[3] === undefined ? opcodeFirst : Number.parseInt(where[3], 16),
    prefixes: 0,
    reg: numberOr(where[4], -1),
    rmFirst,
    rmLast: numberOr(where[6], rmFirst),
    mod: rmFirst < 0 ? signature.mod : 'register',
    hasModrm: signature.hasModrm || where[4] !== undefined,
    mnemonic: words[1],
    namesByAddress: false,
    operands: signature.operands,
    sizeRule: signature.sizeRule,
    flags: NO_FLAGS,
    flagsConditional: false,
    lockable: false,
    privilege: 'none',
    feature: '',
    featureWide: '',
    in64: true,
    in32: true,
    vexL: 3,
    vexW: 3,
    nop90: false,
  };
  if (where[1] !== undefined) for (const prefix of where[1].split(',')) row.prefixes |= PREFIX_BITS[prefix];
  feature(row, section.slice(1));
  for (let i = 3; i < words.length; i++) attribute(row, words[i]);
  return row;
}

function parseMap(map: number, text: string, rows: Row[]): void {
  let section = '@';
  for (const line of text
    .replace(/ *\n */g, '\n')
    .replace(/ +/g, ' ')
    .split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    if (line.startsWith('@')) section = line;
    else rows.push(parseRow(map, line, section));
  }
}

function parseMaps(): readonly Row[] {
  const rows: Row[] = [];
  parseMap(MAP.ONE_BYTE, ONE_BYTE, rows);
  parseMap(MAP.ONE_BYTE, X87, rows);
  parseMap(MAP.TWO_BYTE, TWO_BYTE, rows);
  parseMap(MAP.TWO_BYTE, SSE, rows);
  parseMap(MAP.X0F38, MAP_0F38, rows);
  parseMap(MAP.X0F3A, MAP_0F3A, rows);
  parseMap(MAP.VEX_0F, VEX_0F, rows);
  parseMap(MAP.VEX_0F38, VEX_0F38, rows);
  parseMap(MAP.VEX_0F3A, VEX_0F3A, rows);
  return rows;
}

/** All rows of all maps. */
export const ROWS: readonly Row[] = parseMaps();
