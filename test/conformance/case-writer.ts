/** Puts cases into the slots of a batch: a form with its choices, a state, and addresses that make sense. */

import { SHOWN_FEATURES } from '../../src/engine/wasm/cpuid.ts';
import { FORMS, type Form } from '../../src/engine/x86/forms.ts';
import { Instruction } from '../../src/engine/x86/instruction.ts';
import type { Row } from '../../src/engine/x86/opcode-map.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { showFeatures } from '../../src/engine/x86/tables.ts';
import type { Prepared } from './compare.ts';
import { type Choices, encode } from './encode.ts';
import { isUndefined } from './exclusions.ts';
import { DATA_VA, HIGH_ALIAS, SLOT_BYTES, SLOTS, STATE, STATE_WORDS, slotVa, TRAPS_VA } from './layout.ts';
import { Batch } from './machine.ts';
import { memorySize, pickAddress, Steering } from './steer.ts';
import { Values } from './values.ts';

/** Arithmetic flags, DF. */
const FLAGS = 0x8d5;
const DF = 0x400;
const AC = 0x40000;
/** After these the segment registers and TF get their values again. */
const STOPPING = new Set('lss lfs lgs retf iret'.split(' '));
const FIRST_OVERRIDE_THAT_COUNTS = 0x64;

export class CaseWriter implements Prepared {
  readonly batch = new Batch();
  /** Half of the cases have RFLAGS.AC set. */
  checksAlignment = false;
  readonly instructions: (Instruction | null)[] = [];
  readonly #pool: Instruction[] = Array.from({ length: SLOTS }, () => new Instruction());
  readonly #bytes = new Uint8Array(16);
  #values = new Values(0);
  #steering = new Steering(this.batch, this.#values);

  constructor() {
    // What the wasm engine has is what is compared, whatever engines have been made.
    showFeatures(SHOWN_FEATURES);
  }

  get values(): Values {
    return this.#values;
  }

  get steering(): Steering {
    return this.#steering;
  }

  /** An empty batch with memory and segment bases of a seed. */
  begin(seed: number): void {
    const { batch } = this;
    this.#values = new Values(seed);
    this.#steering = new Steering(batch, this.#values);
    batch.clear();
    this.instructions.length = 0;
    batch.fsBase = this.#base();
    batch.gsBase = this.#base();
    this.#values.memory(batch.data32);
  }

  #base(): bigint {
    const bits = this.#values.random();
    const offset = BigInt(bits & 0x3fff);
    switch (bits >>> 30) {
      case 0:
        return BigInt(DATA_VA) + offset;
      case 1:
        return HIGH_ALIAS + BigInt(DATA_VA) + offset;
      case 2:
        return offset;
      default:
        return 0xfffffffffffff000n - offset * 7n;
    }
  }

  /** Random registers for a slot. */
  state(slot: number): void {
    const { states32 } = this.batch;
    const values = this.#values;
    const at = slot * STATE_WORDS;
    for (let reg = 0; reg < 16; reg++) values.integer(states32, at + reg * 2);
    const bits = values.random();
    states32[at + STATE.rflags / 4] = 0x202 | (bits & FLAGS) | ((bits & 0x7000) === 0 ? DF : 0);
    if (this.checksAlignment && (bits & 0x10000000) !== 0) states32[at + STATE.rflags / 4] |= AC;
    states32[at + STATE.rflags / 4 + 1] = 0;
    values.xsave(states32, at + STATE.fx / 4);
  }

  /**
   * Encodes an instruction for a slot and steers the slot's state. `start`: offset in the slot; `target`: the address of the ModRM
   * operand, null = a random one. Returns the instruction, or null when that is no instruction or its answer would be nobody's.
   */
  steer(
    slot: number,
    start: number,
    form: Form,
    row: Row,
    choices: Choices,
    target: bigint | null = null,
  ): Instruction | null {
    const values = this.#values;
    const steering = this.#steering;
    const i = this.#pool[slot];
    const { batch } = this;
    const length = encode(form, row, choices, this.#bytes, i);
    if (length === 0) return null;
    const next = slotVa(slot) + start + length;
    const segment = i.segment === 4 ? batch.fsBase : i.segment === 5 ? batch.gsBase : 0n;
    // Addresses and distances that are part of the instruction.
    const address = typeof choices.rm !== 'number' ? choices.rm : null;
    let again: Choices | null = null;
    if (address !== null && (address.base === 16 || (address.base < 0 && address.index < 0))) {
      const to = target ?? pickAddress(values, memorySize(i), true);
      const displacement = Number(BigInt.asIntN(32, to - segment - (address.base === 16 ? BigInt(next) : 0n)));
      again = { ...choices, rm: { ...address, displacement } };
    }
    if (form.operands.some((type) => OPERANDS[type].class === 'moffs')) {
      const to = BigInt.asUintN(64, (target ?? pickAddress(values, i.operandSize, i.addressSize === 4)) - segment);
      again = { ...choices, immediateLo: Number(to & 0xffffffffn), immediateHi: Number(to >> 32n) };
    }
    if (form.operands.some((type) => OPERANDS[type].class === 'relative')) {
      const room = SLOT_BYTES - start - length - 6;
      const near = 5 + values.below(room > 0 ? room : 1);
      const trap = TRAPS_VA + (values.random() & 0xfff);
      const data = DATA_VA + (values.random() & 0x3fff);
      const far = (values.once(5) ? data : trap) - next;
      again = { ...choices, immediateLo: form.operands[0] === 'Jb' ? near : far };
    }
    if (again !== null && encode(form, row, again, this.#bytes, i) !== length) return null;
    steering.prepare(slot, i);
    if (target !== null) steering.address(slot, i, target);
    if (isUndefined(i, batch.states[slot * STATE.SIZE + 8])) return null;
    const ignored = choices.segment !== 0 && choices.segment < FIRST_OVERRIDE_THAT_COUNTS;
    return steering.isPeculiar(slot, i, next, ignored) ? null : i;
  }

  /** Puts what `steer` has encoded last into its slot. */
  put(slot: number, start: number): void {
    const i = this.#pool[slot];
    const form = FORMS[i.form];
    const stops =
      form.operands.some((type) => OPERANDS[type].class === 'segment') || STOPPING.has(form.mnemonic.split('/')[0]);
    this.batch.put(slot, this.#bytes, i.length, start, stops);
    this.instructions[slot] = i;
  }

  /** Puts bytes that are no instruction into a slot. */
  putInvalid(slot: number, bytes: readonly number[]): void {
    this.batch.put(slot, bytes, bytes.length, 0, true);
    this.instructions[slot] = null;
  }
}
