/**
 * VGATHERDPS and its like. Source: Intel SDM vol. 2, VPGATHERDD.
 *
 * An element whose mask bit (the top one) is set is loaded, and its mask becomes zero; at the end all of the mask is. A fault leaves the
 * elements before it done, so that the instruction goes on there when it is started again.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import type { Form } from '../x86/forms.ts';
import { STATE } from './layout.ts';
import type { Processor } from './processor.ts';
import { NEXT } from './rare-status.ts';

const NM = 7;
const UD = 6;
const XCR0_AVX = 6;
const XMM = STATE.xmm / 4;
const UPPER = STATE.ymmHigh / 4;
const HALF_WORDS = 4;

/** Word `n` (0 to 7) of a YMM register: its place in the vCPU's memory. */
const wordAt = (register: number, n: number): number => (n < HALF_WORDS ? XMM : UPPER - HALF_WORDS) + 4 * register + n;

/** The address of an element goes into p.lo and p.hi. `baseLo`, `baseHi`: base and displacement. */
function addressOf(p: Processor, baseLo: number, baseHi: number, indexLo: number, indexHi: number): void {
  const i = p.instruction;
  const low = (indexLo << i.scale) >>> 0;
  const high = i.scale === 0 ? indexHi : (indexHi << i.scale) | (indexLo >>> (32 - i.scale));
  const lo = baseLo + low;
  p.lo = lo >>> 0;
  p.hi = i.addressSize === 4 ? 0 : (baseHi + high + (lo > 0xffffffff ? 1 : 0)) >>> 0;
  p.addSegment(i.segment);
}

/** `element` and `index`: words of each. */
function gather(p: Processor, element: 1 | 2, index: 1 | 2): number {
  const i = p.instruction;
  const { u32 } = p;
  if ((u32[VCPU.xcr0 / 4] & XCR0_AVX) !== XCR0_AVX) return p.raise(UD);
  if (u32[VCPU.cr0Ts / 4] !== 0) return p.raise(NM);
  const words = HALF_WORDS << i.vexL;
  const count = words / Math.max(element, index);
  const mask = i.vvvv;
  const vector = i.index;
  i.index = -1;
  p.effectiveOffset();
  i.index = vector;
  const baseLo = p.lo;
  const baseHi = p.hi;
  for (let n = 0; n < count; n++) {
    const top = wordAt(mask, n * element + element - 1);
    if (u32[top] >>> 31 !== 0) {
      const indexLo = u32[wordAt(vector, n * index)];
      addressOf(p, baseLo, baseHi, indexLo, index === 2 ? u32[wordAt(vector, n * 2 + 1)] : (indexLo | 0) >> 31);
      if (!p.read(p.lo, p.hi, 4 * element)) return EXIT_EXCEPTION;
      u32[wordAt(i.reg, n * element)] = p.lo;
      if (element === 2) u32[wordAt(i.reg, n * 2 + 1)] = p.hi;
    }
    u32[top] = 0;
    u32[wordAt(mask, n * element)] = 0;
  }
  for (let n = 0; n < 2 * HALF_WORDS; n++) {
    u32[wordAt(mask, n)] = 0;
    if (n >= count * element) u32[wordAt(i.reg, n)] = 0;
  }
  p.advance();
  return NEXT;
}

/** By the memory operand: indexes, then elements, of doublewords or quadwords. */
const KINDS: Readonly<Record<string, readonly [index: 1 | 2, element: 1 | 2]>> = {
  VMdd: [1, 1],
  VMdq: [1, 2],
  VMqd: [2, 1],
  VMqq: [2, 2],
};

/** The instruction of a form, if it is one of these. */
export function gatherInstruction(form: Form): ((p: Processor) => number) | undefined {
  const kind = form.operands.map((type) => KINDS[type] as (typeof KINDS)[string] | undefined).find(Boolean);
  if (kind === undefined) return undefined;
  const [index, element] = kind;
  return (p) => gather(p, element, index);
}
