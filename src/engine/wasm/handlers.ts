/**
 * The interpreter's handlers by number, and which one a decoded instruction gets.
 *
 * A variant is a form at an operand size with its ModRM operand in memory or not, with LOCK (VEX.L) or not. Those with integer meaning have
 * a place in the interpreter's own function if they run often (hot), others a function each (cold); all that is rare is `RARE`.
 */

import { FORM_OF_ROW, FORMS, type Form } from '../x86/forms.ts';
import type { Instruction } from '../x86/instruction.ts';
import { ROWS } from '../x86/opcode-map.ts';
import { OPERANDS } from '../x86/operands.ts';
import type { Operand } from './cpu.ts';
import { resolveOperands } from './operands.ts';
import type { Meaning } from './semantics/common.ts';
import { avxMeaning, integerMeaning, stem, stringMeaning, vectorMeaning } from './semantics/table.ts';

// Handlers that are no instruction's meaning.
/** Goes where the vCPU's rip says. The record at STATE.microOps. */
export const ENTER = 0;
/** This micro-op is void: its code has changed. */
export const STALE = 1;
/** By a call to TypeScript. */
export const RARE = 2;
/** Computes an address with a segment or of 32 bits for the next micro-op: register 1 is the slot of the segment's base. */
export const ADDRESS = 3;
export const ADDRESS32 = 4;
/** To another micro-op of the same page (displacement), or out of the page (immediate). */
export const LINK = 5;
export const LEAVE_PAGE = 6;
// Branches.
export const JUMP = 7;
export const CALL = 8;
export const JUMP_INDIRECT = 9;
export const CALL_INDIRECT = 10;
export const RETURN = 11;
export const LOOP = 12;
export const LOOPE = 13;
export const LOOPNE = 14;
export const JRCXZ = 15;
/** 16 conditions. */
export const JCC = 16;
/** JUMP_INDIRECT and CALL_INDIRECT with the target in memory. */
export const JUMP_MEMORY = 32;
export const CALL_MEMORY = 33;
export const NOTHING = 34;
/** A region starts here: looks the address up. */
export const REGION = 35;
/** Of 32-bit code: the sum of segment and offset has 32 bits; the offset has 16. */
export const ADDRESS_WRAPPED = 36;
export const ADDRESS16 = 37;
/** Branches with targets and return addresses of 32 bits. */
export const CALL_32 = 38;
export const JUMP_INDIRECT_32 = 39;
export const CALL_INDIRECT_32 = 40;
export const RETURN_32 = 41;
export const JUMP_MEMORY_32 = 42;
export const CALL_MEMORY_32 = 43;
/** JCC behind an instruction whose flags are those of a - b, or of a result. */
export const JCC_SUB = 44;
export const JCC_RESULT = 60;
export const FIRST_VARIANT = 76;

/** Handlers of micro-ops that are no instruction, or not the last of one. */
export const NO_INSTRUCTION: ReadonlySet<number> = new Set([
  ENTER,
  STALE,
  ADDRESS,
  ADDRESS32,
  ADDRESS_WRAPPED,
  ADDRESS16,
  LINK,
  LEAVE_PAGE,
  REGION,
]);

/** A branch with a condition: it may be linked, and a run goes on behind it. */
export const isConditional = (handler: number): boolean =>
  (handler >= LOOP && handler <= JCC + 15) || (handler >= JCC_SUB && handler <= JCC_RESULT + 15);

export interface Variant {
  readonly form: Form;
  readonly meaning: Meaning;
  readonly operands: readonly Operand[];
  readonly operandSize: number;
  readonly locked: boolean;
  /** The 64-bit immediate of MOV. */
  readonly wide: boolean;
}

const log2 = (size: number): number => (size === 1 ? 0 : size === 2 ? 1 : size === 4 ? 2 : 3);
/** `special`: LOCK, or VEX.L = 1. */
const keyOf = (form: number, operandSize: number, memory: boolean, special: boolean): number =>
  (form << 4) | (log2(operandSize) << 2) | (memory ? 2 : 0) | (special ? 1 : 0);

/** Values of VEX.L that a form may have, as a mask. */
const LENGTHS = new Uint8Array(FORMS.length);
ROWS.forEach((row, i) => {
  LENGTHS[FORM_OF_ROW[i]] |= row.vexL;
});

/** VEX.L says how many lanes there are. */
const hasLengths = (form: Form): boolean =>
  form.operands.some((type) => {
    const info = OPERANDS[type];
    return info.size === 'x' || info.size === 'h' || info.size === 'f' || info.size === 'e';
  });

/** What runs often enough for a place in the interpreter's own function: V8 optimizes that one as a whole, so it must not grow. */
const OFTEN = new Set(
  'mov add sub and or xor cmp test lea push pop inc dec neg not shl shr sar movzx movsx movsxd imul leave cbw cwd bt'.split(
    ' ',
  ),
);
const SMALL = new Set(['mov', 'cmp', 'test', 'movzx', 'movsx']);

function isOften(form: Form, operandSize: number, locked: boolean): boolean {
  const name = stem(form);
  if (locked || form.operands.includes('Sw')) return false;
  if (operandSize === 2 && !SMALL.has(name)) return false;
  return OFTEN.has(name) || name.startsWith('cmov') || (name.startsWith('set') && form.operands[0] === 'Eb');
}

const HANDLER_OF = new Uint16Array(FORMS.length << 4).fill(RARE);
const hot: Variant[] = [];
const cold: Variant[] = [];

const CONDITIONS = 'o no b ae e ne be a s ns p np l ge le g'.split(' ').map((name) => `j${name}`);

/** 0 = no branch. */
function branchHandler(form: Form): number {
  const name = stem(form);
  const condition = CONDITIONS.indexOf(name);
  if (condition >= 0) return JCC + condition;
  const near = form.operands[0]?.startsWith('J') === true;
  switch (name) {
    case 'jmp':
      return near ? JUMP : form.operands[0]?.startsWith('E') ? JUMP_INDIRECT : 0;
    case 'call':
      return near ? CALL : form.operands[0]?.startsWith('E') ? CALL_INDIRECT : 0;
    case 'ret':
      return RETURN;
    case 'loop':
      return LOOP;
    case 'loope':
      return LOOPE;
    case 'loopne':
      return LOOPNE;
    case 'jcxz':
      return JRCXZ;
    default:
      return 0;
  }
}

const BRANCHES_32: ReadonlyMap<number, number> = new Map([
  [CALL, CALL_32],
  [JUMP_INDIRECT, JUMP_INDIRECT_32],
  [CALL_INDIRECT, CALL_INDIRECT_32],
  [RETURN, RETURN_32],
  [JUMP_MEMORY, JUMP_MEMORY_32],
  [CALL_MEMORY, CALL_MEMORY_32],
]);

/** Forms that end a straight run of instructions whatever their handler: rare ones that jump. */
const ENDS = new Set([
  'iret',
  'retf',
  'sysenter',
  'int',
  'int3',
  'int1',
  'into',
  'ud0',
  'ud1',
  'ud2',
  'hlt',
  'sysret',
  'sysexit',
  'jmp',
  'call',
]);
/** Instructions that only hint. */
const HINTS = new Set([
  'nop',
  'pause',
  'endbr64',
  'endbr32',
  'prefetchw',
  'prefetch',
  'prefetcht0',
  'prefetcht1',
  'prefetcht2',
  'prefetchnta',
  'lfence',
  'sfence',
  'prefetchwt1',
]);

export const ENDS_RUN = new Uint8Array(FORMS.length);

for (const form of FORMS) {
  const branch = branchHandler(form);
  const name = stem(form);
  if (branch !== 0 || ENDS.has(name)) ENDS_RUN[form.index] = 1;
  const rm = form.operands.map((type) => OPERANDS[type]).find((info) => info.place === 'rm');
  const memoryForms =
    rm === undefined || rm.mod === 'register' ? [false] : rm.mod === 'memory' ? [true] : [false, true];
  for (const operandSize of form.operandSizes) {
    for (const memory of memoryForms) {
      if (form.vex) {
        vexVariants(form, operandSize, memory);
        continue;
      }
      for (const locked of form.lockable && memory ? [false, true] : [false]) {
        const key = keyOf(form.index, operandSize, memory, locked);
        if (branch !== 0) {
          const handler =
            branch === JUMP_INDIRECT && memory
              ? JUMP_MEMORY
              : branch === CALL_INDIRECT && memory
                ? CALL_MEMORY
                : branch;
          // Of 16 bits in 32-bit code: rare.
          if (operandSize !== 2) HANDLER_OF[key] = operandSize === 4 ? (BRANCHES_32.get(handler) ?? handler) : handler;
          continue;
        }
        if (HINTS.has(name)) {
          HANDLER_OF[key] = NOTHING;
          continue;
        }
        if (form.privilege !== 'none') continue;
        const operands = resolveOperands(form.operands, operandSize, memory);
        const string = stringMeaning(form);
        if (string === undefined && operands.some((operand) => operand.kind === 'other')) continue;
        // What loads a segment looks at descriptors.
        if (operands[0]?.kind === 'segment') continue;
        const wide = name === 'mov' && operandSize === 8 && form.operands[1] === 'Iv';
        const variant = { form, operands, operandSize, locked: locked || (name === 'xchg' && memory), wide };
        const integer = string ?? integerMeaning(form);
        if (integer !== undefined && isOften(form, operandSize, locked)) {
          HANDLER_OF[key] = FIRST_VARIANT + hot.length;
          hot.push({ ...variant, meaning: integer });
          continue;
        }
        const vector = integer ?? vectorMeaning(form);
        if (vector === undefined) continue;
        // Numbered from the end of the hot ones, below.
        HANDLER_OF[key] = 0x8000 | cold.length;
        cold.push({ ...variant, meaning: vector });
      }
    }
  }
}

/** Variants of a form with VEX: of 128 and of 256 bits, or one for both. */
function vexVariants(form: Form, operandSize: number, memory: boolean): void {
  const meaning = integerMeaning(form) ?? avxMeaning(form);
  if (meaning === undefined) return;
  const lengths = LENGTHS[form.index];
  const wides = !hasLengths(form)
    ? [(lengths & 1) === 0]
    : [false, true].filter((wide) => (lengths >> (wide ? 1 : 0)) & 1);
  for (const wide of wides) {
    const operands = resolveOperands(form.operands, operandSize, memory, wide);
    const handler = 0x8000 | cold.length;
    cold.push({ form, meaning, operands, operandSize, locked: false, wide: false });
    HANDLER_OF[keyOf(form.index, operandSize, memory, wide)] = handler;
    if (!hasLengths(form)) HANDLER_OF[keyOf(form.index, operandSize, memory, !wide)] = handler;
  }
}

export const HOT: readonly Variant[] = hot;
export const COLD: readonly Variant[] = cold;
export const FIRST_COLD: number = FIRST_VARIANT + hot.length;
for (let i = 0; i < HANDLER_OF.length; i++)
  if ((HANDLER_OF[i] & 0x8000) !== 0) HANDLER_OF[i] = FIRST_COLD + (HANDLER_OF[i] & 0x7fff);

/** What a handler does, for those that have a meaning. */
export function variantOf(handler: number): Variant | null {
  if (handler < FIRST_VARIANT) return null;
  return handler < FIRST_COLD ? hot[handler - FIRST_VARIANT] : cold[handler - FIRST_COLD];
}

const ALWAYS = 0;
/** BT and its like with a register as bit number: what that adds is part of the address, which is cut off behind it. */
const NOT_WITH_ADDRESS_32 = 1;
/** Memory at rDI that no ModRM byte describes. */
const NOT_WITH_SEGMENT_OR_ADDRESS_32 = 2;
/** POP computes an address with RSP after it has moved it, and so after the micro-op for segments and 32 bits. */
const NOT_WITH_STACK_POINTER = 3;
/** A count in CX. */
const NOT_WITH_ADDRESS_16 = 4;
const RSP = 4;
/** Whether the handler of a form serves all addresses; otherwise it is RARE for the others. */
const ADDRESSES = Uint8Array.from(FORMS, (form) =>
  /^bt[src]? Ev,Gv$/.test(form.key)
    ? NOT_WITH_ADDRESS_32
    : /^v?maskmov(q|dqu)$/.test(form.mnemonic) || stringMeaning(form) !== undefined
      ? NOT_WITH_SEGMENT_OR_ADDRESS_32
      : form.key === 'pop Ev'
        ? NOT_WITH_STACK_POINTER
        : /^(loop|jcxz)/.test(form.mnemonic)
          ? NOT_WITH_ADDRESS_16
          : ALWAYS,
);

function isRareAddress(i: Instruction, addresses: number): boolean {
  const special = i.addressSize !== 8 || i.segment >= 4;
  switch (addresses) {
    case NOT_WITH_ADDRESS_32:
      return i.addressSize !== 8 && i.mod !== 3;
    case NOT_WITH_ADDRESS_16:
      return i.addressSize === 2;
    case NOT_WITH_STACK_POINTER:
      return special && i.mod !== 3 && i.base === RSP;
    default:
      return special;
  }
}

const IS_STRING = Uint8Array.from(FORMS, (form) => (stringMeaning(form) === undefined ? 0 : 1));

/** A string instruction that is not left to TypeScript. */
export const isString = (instruction: Instruction): boolean => IS_STRING[instruction.form] !== 0;

/** The handler of a decoded instruction. */
export function handlerOf(instruction: Instruction): number {
  const addresses = ADDRESSES[instruction.form];
  if (addresses !== ALWAYS && isRareAddress(instruction, addresses)) return RARE;
  const special = instruction.lock || instruction.vexL !== 0;
  return HANDLER_OF[keyOf(instruction.form, instruction.operandSize, instruction.mod !== 3, special)];
}

export function isWide(handler: number): boolean {
  return handler >= FIRST_VARIANT && handler < FIRST_COLD && hot[handler - FIRST_VARIANT].wide;
}
