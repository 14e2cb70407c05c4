/** Batches of the directed cases that recipes.ts lists. */

import { FORMS } from '../../src/engine/x86/forms.ts';
import type { Instruction } from '../../src/engine/x86/instruction.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { CaseWriter } from './case-writer.ts';
import { ROWS_OF_FORM } from './encode.ts';
import { isUndefined } from './exclusions.ts';
import { DATA_OFFSETS, DATA_VA, HIGH_ALIAS, SLOTS, SPILL_SLOT, STATE, STATE_WORDS } from './layout.ts';
import type { Result } from './machine.ts';
import { randomChoices } from './random-cases.ts';
import { big, type Invalid, OWN_BYTES, OWN_VA, type Recipe, RSP, type Value } from './recipe.ts';
import { recipes } from './recipes.ts';
import { memorySize } from './steer.ts';

/** Batches of the directed cases: `next` makes one after the other. */
export class DirectedCases extends CaseWriter {
  readonly #recipes: Iterator<Recipe | Invalid>;
  readonly #stride: number;
  #number = 0;
  #batches = 0;
  readonly #masks: { slot: number; ranges: readonly (readonly [number, number])[]; at: number }[] = [];
  /** Cases by form. */
  readonly counts = new Uint32Array(FORMS.length);
  /** Recipes that gave no case. */
  dropped = 0;

  constructor(forms: readonly number[], stride = 1, list: Iterable<Recipe | Invalid> = recipes(forms)) {
    super();
    this.#recipes = list[Symbol.iterator]();
    this.#stride = stride;
  }

  #take(): Recipe | Invalid | null {
    for (;;) {
      const { value, done } = this.#recipes.next();
      if (done === true) return null;
      if (this.#number++ % this.#stride === 0) return value;
    }
  }

  /** Makes the next batch; false when there is none. */
  next(): boolean {
    this.begin(0x10000 + this.#batches++);
    this.#masks.length = 0;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (slot === SPILL_SLOT) continue;
      for (;;) {
        const recipe = this.#take();
        if (recipe === null) return this.batch.slots.length > 0;
        if (this.#place(slot, recipe)) break;
        this.dropped++;
      }
    }
    return true;
  }

  #place(slot: number, recipe: Recipe | Invalid): boolean {
    this.state(slot);
    if ('invalid' in recipe) {
      this.putInvalid(slot, recipe.invalid);
      return true;
    }
    const { form, operandSize } = recipe;
    const rows = ROWS_OF_FORM[form.index];
    const row = rows[(recipe.row ?? 0) % rows.length];
    const { values } = this;
    const random = randomChoices(values, form.index, row, operandSize, values.once(2));
    const choices = { ...random, ...recipe.choices };
    if (typeof choices.rm === 'number') choices.lock = false;
    const base = OWN_VA + OWN_BYTES * slot;
    const { target } = recipe;
    const address =
      target === undefined || target === 'random' ? null : 'own' in target ? BigInt(base + target.own) : target.at;
    // An address of 32 bits cannot be that of the alias.
    if (address !== null && address >= HIGH_ALIAS && choices.address32) choices.address32 = false;
    const i = this.steer(slot, 0, form, row, choices, address);
    if (i === null) return false;
    this.#operands(slot, i, recipe, address);
    if (isUndefined(i, this.batch.states[slot * STATE.SIZE + 8])) return false;
    this.put(slot, 0);
    this.counts[form.index]++;
    if (recipe.masked !== undefined && address !== null)
      this.#masks.push({ slot, ranges: recipe.masked, at: Number(address) - DATA_VA });
    return true;
  }

  #operands(slot: number, i: Instruction, recipe: Recipe, address: bigint | null): void {
    const { steering, batch } = this;
    const ownOffset = DATA_OFFSETS[1] + OWN_BYTES * slot;
    if (recipe.bytes !== undefined) batch.data.set(recipe.bytes, ownOffset);
    recipe.memory?.(batch.data32);
    if (recipe.stack !== undefined) steering.set(slot, RSP, BigInt(OWN_VA + OWN_BYTES * slot + recipe.stack));
    const { first, second, third } = recipe;
    if (third !== undefined) this.#operand(slot, i, 2, third, address);
    if (second !== undefined) this.#operand(slot, i, 1, second, address);
    if (first !== undefined) this.#operand(slot, i, 0, first, address);
    // The address may have been in one of them.
    if (address !== null && (first !== undefined || second !== undefined || third !== undefined))
      steering.address(slot, i, address);
    for (const [reg, value] of recipe.registers ?? []) steering.set(slot, reg, value);
    if (address !== null && recipe.registers !== undefined && i.mod !== 3) steering.address(slot, i, address);
    const words = batch.states32;
    const flagsAt = slot * STATE_WORDS + STATE.rflags / 4;
    if (recipe.flags !== undefined) words[flagsAt] = 0x202 | recipe.flags;
    recipe.state?.(words, slot * STATE_WORDS);
  }

  #operand(slot: number, i: Instruction, operand: number, value: Value, address: bigint | null): void {
    const type = FORMS[i.form].operands[operand];
    if (type === undefined) return;
    const info = OPERANDS[type];
    if (info.class !== 'gpr') return;
    const { steering, batch } = this;
    if (info.place === 'rm' && i.mod !== 3) {
      if (address === null) return;
      const at = Number(address) - DATA_VA - 4096 + DATA_OFFSETS[1];
      const size = memorySize(i);
      for (let k = 0; k < size; k++) batch.data[at + k] = k < 4 ? value[0] >>> (8 * k) : value[1] >>> (8 * (k - 4));
      return;
    }
    const number =
      info.place === 'fixed' ? info.fixed : info.place === 'reg' ? i.reg : info.place === 'vvvv' ? i.vvvv : i.rm;
    const high = info.size === 1 && i.rex === 0 && number >= 4 && number < 8;
    const old = steering.gpr(slot, high ? number - 4 : number);
    const size = info.size === 1 ? 1 : info.size === 2 ? 2 : i.operandSize;
    const bits = BigInt(8 * size);
    const shift = high ? 8n : 0n;
    const mask = ((1n << bits) - 1n) << shift;
    steering.set(slot, high ? number - 4 : number, (old & ~mask) | ((big(value) << shift) & mask));
  }

  /** Before memory is compared. */
  maskData(result: Result): void {
    for (const { ranges, at } of this.#masks)
      for (const [from, to] of ranges)
        result.data.fill(0, DATA_OFFSETS[1] + at - 4096 + from, DATA_OFFSETS[1] + at - 4096 + to);
  }
}
