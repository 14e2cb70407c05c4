/**
 * The forms of the instruction set: one for each pair of mnemonic and operand types, whatever opcodes encode it. `ADD Eb,Ib` is
 * one form, be it 80 /0 or 82 /0. The operand size is not part of a form; neither is whether `E` is register or memory.
 *
 * `Instruction.form` is an index into FORMS. Indexes are the same in every run of one version, but no more: look a form up by its
 * key with `formIndex('add Eb,Gb')` when tables are built.
 */

import { type Privilege, ROWS, type Row, type SizeRule } from './opcode-map.ts';
import type { OperandType } from './operands.ts';

export interface Form {
  readonly index: number;
  /** Mnemonic, a space and the operands: `add Eb,Gb`; `nop` alone if there are none. */
  readonly key: string;
  /** As in the opcode map; several names by width are joined with slashes: `cbw/cwde/cdqe`. See `mnemonicOf`. */
  readonly mnemonic: string;
  readonly operands: readonly OperandType[];
  readonly sizeRule: SizeRule;
  /** The values that `operandSize` can have, in either mode. */
  readonly operandSizes: readonly number[];
  /** Masks of EFLAGS bits (FLAG). `flagsWritten` get a defined value, `flagsCleared` and `flagsSet` among them. */
  readonly flagsRead: number;
  readonly flagsWritten: number;
  readonly flagsCleared: number;
  readonly flagsSet: number;
  readonly flagsUndefined: number;
  /**
   * The flags written and undefined may keep their old values, if the count is zero (also with an immediate: mask it first).
   * Repeated string instructions with a count of zero are not marked.
   */
  readonly flagsConditional: boolean;
  readonly lockable: boolean;
  readonly privilege: Privilege;
  /** CPUID feature that shows it, or ''. `featureWide`: that of the 256-bit form. */
  readonly feature: string;
  readonly featureWide: string;
  readonly vex: boolean;
  readonly namesByAddress: boolean;
}

const SIZES_OF: Readonly<Record<SizeRule, readonly number[]>> = {
  none: [4],
  b: [1],
  v: [2, 4, 8],
  y: [4, 8],
  z: [2, 4],
  d64: [2, 4, 8],
  f64: [2, 4, 8],
  m64: [4, 8],
};

function keyOf(row: Row): string {
  return row.operands.length === 0 ? row.mnemonic : `${row.mnemonic} ${row.operands.join(',')}`;
}

const forms: Form[] = [];
const byKey = new Map<string, Form>();

/** For each row of ROWS the index of its form. */
export const FORM_OF_ROW = new Uint16Array(ROWS.length);

ROWS.forEach((row, i) => {
  const key = keyOf(row);
  let form = byKey.get(key);
  if (form === undefined) {
    const { mnemonic, operands, sizeRule, flags, flagsConditional, lockable, privilege, feature, featureWide } = row;
    form = {
      index: forms.length,
      key,
      mnemonic,
      operands,
      sizeRule,
      operandSizes: SIZES_OF[sizeRule],
      flagsRead: flags.read,
      flagsWritten: flags.written,
      flagsCleared: flags.cleared,
      flagsSet: flags.set,
      flagsUndefined: flags.undefined,
      flagsConditional,
      lockable,
      privilege,
      feature,
      featureWide,
      vex: row.map >= 4,
      namesByAddress: row.namesByAddress,
    };
    forms.push(form);
    byKey.set(key, form);
  }
  FORM_OF_ROW[i] = form.index;
});

export const FORMS: readonly Form[] = forms;

/** @throws Error if there is no such form; for tables that are built at start. */
export function formIndex(key: string): number {
  const form = byKey.get(key);
  if (form === undefined) throw new Error(`x86: there is no form "${key}"`);
  return form.index;
}

/**
 * The name for one width, as Intel writes it in small letters: `cdqe` for the form `cbw/cwde/cdqe` and 8.
 *
 * @param addressSize for JCXZ/JECXZ/JRCXZ, which is named by it
 */
export function mnemonicOf(form: Form, operandSize: number, addressSize: number): string {
  const names = form.mnemonic.split('/');
  const size = form.namesByAddress ? addressSize : operandSize;
  if (names.length === 1) return names[0];
  if (names.length === 3) return names[size === 2 ? 0 : size === 4 ? 1 : 2];
  // Two names: of 16 and 32 bits, or of what is 32 bits and 64 bits wide.
  const wide = form.operandSizes.includes(8) ? 8 : 4;
  return names[size === wide ? 1 : 0];
}
