/**
 * The vector state of a vCPU as an XSAVE area in the standard form, for those who keep it. Source: Intel SDM vol. 1, 13.4.
 *
 * What the engine does not have, AVX-512, is lost; who moves a guest here sees to it that there is none.
 */

import { X87_STATE } from '../x86/x87/state.ts';
import { COMPONENTS, STATE, UPPER_AT, UPPER_BYTES } from './layout.ts';
import type { Processor } from './processor.ts';

const X87 = 1;
const SSE = 2;
const AVX = 4;
/** Words of the area. */
const MXCSR = 24 / 4;
const MXCSR_MASK = MXCSR + 1;
const XMM = 160 / 4;
const XSTATE_BV = 512 / 4;
const UPPER = UPPER_AT / 4;
const REGISTERS_WORDS = UPPER_BYTES / 4;

const MXCSR_WORD = STATE.mxcsr / 4;
const XMM_WORD = STATE.xmm / 4;
const UPPER_WORD = STATE.ymmHigh / 4;
/** The bits of MXCSR that exist, and its initial value. Source: Intel SDM vol. 1, 10.2.3. */
const MXCSR_BITS = 0xffff;
const MXCSR_INITIAL = 0x1f80;

export function saveVectorState({ u32, x87 }: Processor, area: Uint8Array): void {
  const words = new Uint32Array(area.buffer, area.byteOffset, area.length / 4);
  words.fill(0);
  x87.fxsave(true);
  for (let word = 0; word < XMM; word++) words[word] = x87.transfer[word];
  words[MXCSR] = u32[MXCSR_WORD];
  words[MXCSR_MASK] = MXCSR_BITS;
  for (let i = 0; i < REGISTERS_WORDS; i++) {
    words[XMM + i] = u32[XMM_WORD + i];
    words[UPPER + i] = u32[UPPER_WORD + i];
  }
  words[XSTATE_BV] = COMPONENTS;
}

export function loadVectorState({ u32, x87 }: Processor, area: Uint8Array): void {
  const words = new Uint32Array(area.buffer, area.byteOffset, area.length / 4);
  const states = words[XSTATE_BV];
  if ((states & X87) === 0) {
    x87.fninit();
    u32.fill(0, (STATE.x87 + X87_STATE.REGISTERS) / 4, (STATE.x87 + X87_STATE.SIZE) / 4);
  } else {
    for (let word = 0; word < XMM; word++) x87.transfer[word] = words[word];
    x87.fxrstor(true);
  }
  u32[MXCSR_WORD] = (states & (SSE | AVX)) !== 0 ? words[MXCSR] & MXCSR_BITS : MXCSR_INITIAL;
  for (let i = 0; i < REGISTERS_WORDS; i++) {
    u32[XMM_WORD + i] = (states & SSE) !== 0 ? words[XMM + i] : 0;
    u32[UPPER_WORD + i] = (states & AVX) !== 0 ? words[UPPER + i] : 0;
  }
}
