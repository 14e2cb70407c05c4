/** Batches of random instructions with random state. The same seed gives the same batch. */

import { FORMS } from '../../src/engine/x86/forms.ts';
import type { Row } from '../../src/engine/x86/opcode-map.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { CaseWriter } from './case-writer.ts';
import { type Choices, modrmOperand, ROWS_OF_FORM } from './encode.ts';
import { exclusionOf } from './exclusions.ts';
import { CROSSING_SLOT, EDGE_SLOT, SLOT_BYTES, SLOTS, SPILL_SLOT } from './layout.ts';
import type { Values } from './values.ts';

/** Forms to choose from. `pvm`: see exclusions.ts. */
export function comparedForms(pvm: boolean): number[] {
  return FORMS.filter((form) => ROWS_OF_FORM[form.index].length > 0 && exclusionOf(form, pvm) === undefined).map(
    (form) => form.index,
  );
}

const SEGMENTS = [0x64, 0x65, 0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e];
const scratch = new Uint32Array(2);

/** Random choices for a form; `memory`: whether the ModRM operand is in memory, where it may be either. */
export function randomChoices(
  values: Values,
  formIndex: number,
  row: Row,
  operandSize: number,
  memory: boolean,
): Choices {
  const form = FORMS[formIndex];
  const operand = modrmOperand(form);
  const isMemory = operand !== null && (operand.mod === 'memory' || (operand.mod === 'any' && memory));
  let rm: Choices['rm'] = values.below(16);
  if (isMemory) {
    const shape = values.random();
    const isVector = form.operands.some((type) => OPERANDS[type].class === 'vsib');
    const kind = isVector ? 8 + (shape & 1) : shape & 15;
    const index = kind >= 8 && kind < 15 ? [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][(shape >>> 8) % 15] : -1;
    rm = {
      base: kind === 0 ? 16 : kind === 1 || kind === 8 ? -1 : (shape >>> 4) & 15,
      index,
      scale: (shape >>> 12) & 3,
      displacement: (shape & 0x10000) !== 0 ? (values.random() << 24) >> 24 : values.random() | 0,
      displacementBytes: (shape & 0x60000) === 0 ? 0 : (shape & 0x10000) !== 0 ? 1 : 4,
    };
  }
  const isString = form.operands.some((type) => type[0] === 'X' || type[0] === 'Y');
  // On branches F2 and F3 are hints, in the two-byte map often another instruction.
  const mayRepeat = form.sizeRule !== 'f64' && row.map === 0;
  values.integer(scratch, 0);
  return {
    operandSize,
    reg: values.below(16),
    rm,
    segment: values.once(isMemory ? 8 : 64) ? SEGMENTS[values.below(8)] : 0,
    address32: values.once(16),
    lock: isMemory && form.lockable && values.once(2),
    rep: isString ? [0, 0xf2, 0xf3, 0xf3][values.below(4)] : values.once(64) && mayRepeat ? 0xf2 + values.below(2) : 0,
    rex: values.once(4),
    vvvv: values.below(16),
    wide: values.once(2),
    immediateLo: scratch[0],
    immediateHi: scratch[1],
  };
}

export class RandomCases extends CaseWriter {
  readonly #forms: readonly number[];

  constructor(forms: readonly number[]) {
    super();
    this.#forms = forms;
  }

  /** Makes the batch of a seed. */
  fill(seed: number): void {
    this.begin(seed);
    for (let slot = 0; slot < SLOTS; slot++) if (slot !== SPILL_SLOT) this.#case(slot);
  }

  again(seed: number): string {
    return `DOMUS_CONFORMANCE_SEED=${seed} DOMUS_CONFORMANCE_COUNT=1`;
  }

  executed(): number {
    return 1;
  }

  #case(slot: number): void {
    const { values } = this;
    this.state(slot);
    const crossing = slot === CROSSING_SLOT || (slot === EDGE_SLOT && values.once(2));
    for (;;) {
      const start = crossing ? SLOT_BYTES - 1 - values.below(14) : 0;
      const form = FORMS[this.#forms[values.below(this.#forms.length)]];
      const rows = ROWS_OF_FORM[form.index];
      const row = rows[values.below(rows.length)];
      const operandSize = form.operandSizes[values.below(form.operandSizes.length)];
      const choices = randomChoices(values, form.index, row, operandSize, values.once(2));
      if (this.steer(slot, start, form, row, choices) === null) continue;
      this.put(slot, start);
      return;
    }
  }
}
