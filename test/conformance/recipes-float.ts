/** Directed cases of floating point where all lanes are ordinary and inexact results count no more: the engines' fast paths. */

import type { Form } from '../../src/engine/x86/forms.ts';
import { STATE } from './layout.ts';
import { at, nameOf, own, type Recipe } from './recipe.ts';
import type { Values } from './values.ts';

/** All exceptions masked, precision flag set, nearest. */
const MXCSR_SETTLED = 0x1fa0;
const FUSED = /^vfn?m(add|sub)/;
const CASES = 48;

const double = new Float64Array(1);
const doubleWords = new Uint32Array(double.buffer);
const single = new Float32Array(1);
const singleWord = new Uint32Array(single.buffer);

/** A number of a few or of many bits, of 2^-span to 2^span. */
function ordinary(values: Values, isSingle: boolean, span: number): number {
  const fraction = values.once(3)
    ? 1 + values.below(16) / 16
    : 1 + values.random() / 2 ** 32 + (values.random() >>> 12) / 2 ** 52;
  const value = fraction * 2 ** (values.below(2 * span + 1) - span) * (values.once(2) ? -1 : 1);
  return isSingle ? Math.fround(value) : value;
}

/** Three numbers: the last is often near to the negated product of the others, where all but the rounding error goes away. */
function three(values: Values, isSingle: boolean): [number, number, number] {
  const span = values.once(4) ? 60 : 3;
  const a = values.once(24) ? 0 : ordinary(values, isSingle, isSingle ? Math.min(span, 40) : span);
  const b = values.once(24) ? -0 : ordinary(values, isSingle, 3);
  const kind = values.below(5);
  if (kind === 4) return tie(values, isSingle);
  if (kind === 0) return [a, b, ordinary(values, isSingle, 60)];
  if (kind === 1) return [a, b, values.once(2) ? 0 : -0];
  // A unit or two in the last place from the product, of either sign.
  const near = a * b * (1 + (values.below(5) - 2) * 2 ** (isSingle ? -23 : -52)) * (values.once(2) ? -1 : 1);
  return [a, b, kind === 2 ? (isSingle ? Math.fround(near) : near) : ordinary(values, isSingle, 8)];
}

/** A product just beside the middle between two numbers near to c. */
function tie(values: Values, isSingle: boolean): [number, number, number] {
  const fraction = isSingle ? 23 : 52;
  const little = 2 ** -(isSingle ? 20 : 40) * (values.once(2) ? -1 : 1);
  const scale = 2 ** (values.below(9) - 4) * (values.once(2) ? -1 : 1);
  const c = (1 + values.below(8) * 2 ** -fraction) * 2 ** (fraction + 1) * Math.abs(scale);
  return [scale * (1 + little), 1 - little * (values.once(2) ? 1 : 1.5), values.once(2) ? c : -c];
}

/** Fused multiplication and addition with operands of all registers. */
export function* fused(form: Form, values: Values): Iterable<Recipe> {
  const name = nameOf(form);
  if (!FUSED.test(name)) return;
  const isSingle = name.endsWith('ps') || name.endsWith('ss');
  for (let n = 0; n < CASES; n++) {
    const state = (words: Uint32Array, slot: number): void => {
      words[slot + STATE.fx / 4 + 6] = MXCSR_SETTLED;
      for (let lane = 0; lane < 8; lane++) {
        const numbers = three(values, isSingle);
        for (let register = 0; register < 3; register++) {
          const base = slot + (lane < 4 ? STATE.fx + 160 : STATE.upper) / 4 + 4 * register;
          if (isSingle) {
            single[0] = numbers[register];
            words[base + (lane & 3)] = singleWord[0];
          } else if (lane % 2 === 0) {
            double[0] = numbers[register];
            words[base + (lane & 3)] = doubleWords[0];
            words[base + (lane & 3) + 1] = doubleWords[1];
          }
        }
      }
    };
    // Each of the three in each place.
    const order = [
      [0, 1, 2],
      [1, 2, 0],
      [2, 0, 1],
      [0, 2, 1],
    ][n & 3];
    const registers = { reg: order[0], vvvv: order[1], rm: order[2] };
    yield { form, operandSize: 4, choices: { ...at('register', values), ...registers }, target: own(16), state };
  }
}
