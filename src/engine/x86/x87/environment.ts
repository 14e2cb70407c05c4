/**
 * The control instructions: FNINIT, FNCLEX, FLDCW, FLDENV, FNSTENV, FRSTOR, FNSAVE, FXSAVE, FXRSTOR, and MMX's view of the registers.
 *
 * Memory images go through the transfer area. The selectors FCS and FDS are not kept and read as 0, as on CPUs with
 * CPUID.(7,0):EBX[13] (deprecated FPU CS and DS); the engine shows that bit.
 * Source: Intel SDM vol. 1, 8.1.10 and figures 8-9 to 8-12 (images), 9.6 (MMX and x87); vol. 2, the instructions' pages.
 */

import type { X87Core } from './core.ts';
import { CONTROL_STATUS, REGISTER_WORDS, TAGS_OPCODE } from './core.ts';
import {
  abridgedTags,
  BUSY,
  ES,
  EXCEPTIONS,
  FCW_FIXED,
  FCW_INITIAL,
  FCW_WRITABLE,
  fullTags,
  SF,
  X87_STATE,
} from './state.ts';

const FIP_WORD = X87_STATE.FIP / 4;
const FDP_WORD = X87_STATE.FDP / 4;
const REGISTERS = 8;
/** Bytes of the environment in its two formats. */
const ENVIRONMENT_32 = 28;
const ENVIRONMENT_16 = 14;
const OPCODE_MASK = 0x7ff;
/** First word of ST(0) in an FXSAVE image, and the words of one register there. */
const FXSAVE_REGISTERS = 8;
const FXSAVE_REGISTER_WORDS = 4;

/** FNINIT. The registers keep their content. */
export function initialize(x: X87Core): void {
  const words = x.words;
  words[CONTROL_STATUS] = FCW_INITIAL;
  words[TAGS_OPCODE] = 0;
  words[FIP_WORD] = words[FIP_WORD + 1] = 0;
  words[FDP_WORD] = words[FDP_WORD + 1] = 0;
}

/** FNCLEX. */
export function clearExceptions(x: X87Core): void {
  x.words[CONTROL_STATUS] &= ~((EXCEPTIONS | SF | ES | BUSY) << 16);
}

/** FLDCW. May make an exception pending that was masked before. */
export function loadControl(x: X87Core, control: number): void {
  const words = x.words;
  words[CONTROL_STATUS] = (words[CONTROL_STATUS] & ~0xffff) | (control & FCW_WRITABLE) | FCW_FIXED;
  x.updateErrorSummary();
}

/** FNSTENV: 28 bytes (wide) or 14 into the transfer area. All exceptions are masked afterwards. */
export function storeEnvironment(x: X87Core, wide: boolean): void {
  const words = x.words;
  const transfer = x.transfer;
  const control = words[CONTROL_STATUS] & 0xffff;
  const status = words[CONTROL_STATUS] >>> 16;
  const tags = fullTags(words);
  if (wide) {
    transfer[0] = 0xffff0000 | control;
    transfer[1] = 0xffff0000 | status;
    transfer[2] = 0xffff0000 | tags;
    transfer[3] = words[FIP_WORD];
    transfer[4] = ((words[TAGS_OPCODE] >>> 16) & OPCODE_MASK) << 16;
    transfer[5] = words[FDP_WORD];
    transfer[6] = 0xffff0000;
  } else {
    transfer[0] = control | (status << 16);
    transfer[1] = tags | (words[FIP_WORD] << 16);
    transfer[2] = words[FDP_WORD] << 16;
    transfer[3] = 0;
  }
  words[CONTROL_STATUS] |= EXCEPTIONS;
  x.updateErrorSummary();
}

/** FLDENV: 28 bytes (wide) or 14 from the transfer area. */
export function loadEnvironment(x: X87Core, wide: boolean): void {
  const words = x.words;
  const transfer = x.transfer;
  if (wide) {
    words[CONTROL_STATUS] = transfer[1] << 16;
    words[TAGS_OPCODE] = abridgedTags(transfer[2]) | (((transfer[4] >>> 16) & OPCODE_MASK) << 16);
    words[FIP_WORD] = transfer[3];
    words[FDP_WORD] = transfer[5];
  } else {
    words[CONTROL_STATUS] = transfer[0] & 0xffff0000;
    words[TAGS_OPCODE] = abridgedTags(transfer[1]);
    words[FIP_WORD] = transfer[1] >>> 16;
    words[FDP_WORD] = transfer[2] >>> 16;
  }
  words[FIP_WORD + 1] = words[FDP_WORD + 1] = 0;
  loadControl(x, transfer[0]);
}

/** FNSAVE: 108 bytes (wide) or 94 into the transfer area, then FNINIT. Registers go out as ST(0)-ST(7), ten bytes each. */
export function save(x: X87Core, wide: boolean): void {
  storeEnvironment(x, wide);
  const words = x.words;
  const halves = halvesOf(x.transfer);
  let to = (wide ? ENVIRONMENT_32 : ENVIRONMENT_16) / 2;
  for (let i = 0; i < REGISTERS; i++) {
    const at = x.register(i);
    halves[to++] = words[at];
    halves[to++] = words[at] >>> 16;
    halves[to++] = words[at + 1];
    halves[to++] = words[at + 1] >>> 16;
    halves[to++] = words[at + 2];
  }
  initialize(x);
}

/** FRSTOR: 108 bytes (wide) or 94 from the transfer area. */
export function restore(x: X87Core, wide: boolean): void {
  loadEnvironment(x, wide);
  const halves = halvesOf(x.transfer);
  let from = (wide ? ENVIRONMENT_32 : ENVIRONMENT_16) / 2;
  for (let i = 0; i < REGISTERS; i++) {
    const lo = halves[from] | (halves[from + 1] << 16);
    const hi = halves[from + 2] | (halves[from + 3] << 16);
    x.store(x.register(i), halves[from + 4], hi, lo);
    from += 5;
  }
}

function halvesOf(transfer: Uint32Array): Uint16Array {
  return new Uint16Array(transfer.buffer, transfer.byteOffset, transfer.length * 2);
}

/** FXSAVE's x87 part: bytes 0-23 and 32-159 of the image into the transfer area. `wide`: with REX.W, 64-bit pointers. */
export function fxsave(x: X87Core, wide: boolean): void {
  const words = x.words;
  const transfer = x.transfer;
  transfer[0] = words[CONTROL_STATUS];
  transfer[1] = words[TAGS_OPCODE] & ~0xff00;
  transfer[2] = words[FIP_WORD];
  transfer[3] = wide ? words[FIP_WORD + 1] : 0;
  transfer[4] = words[FDP_WORD];
  transfer[5] = wide ? words[FDP_WORD + 1] : 0;
  let to = FXSAVE_REGISTERS;
  for (let i = 0; i < REGISTERS; i++) {
    const at = x.register(i);
    transfer[to] = words[at];
    transfer[to + 1] = words[at + 1];
    transfer[to + 2] = words[at + 2] & 0xffff;
    transfer[to + 3] = 0;
    to += FXSAVE_REGISTER_WORDS;
  }
}

/** FXRSTOR's x87 part: bytes 0-23 and 32-159 of the image from the transfer area. */
export function fxrstor(x: X87Core, wide: boolean): void {
  const words = x.words;
  const transfer = x.transfer;
  words[CONTROL_STATUS] = transfer[0];
  words[TAGS_OPCODE] = (transfer[1] & 0xff) | (((transfer[1] >>> 16) & OPCODE_MASK) << 16);
  words[FIP_WORD] = transfer[2];
  words[FIP_WORD + 1] = wide ? transfer[3] : 0;
  words[FDP_WORD] = transfer[4];
  words[FDP_WORD + 1] = wide ? transfer[5] : 0;
  loadControl(x, transfer[0]);
  let from = FXSAVE_REGISTERS;
  for (let i = 0; i < REGISTERS; i++) {
    x.store(x.register(i), transfer[from + 2] & 0xffff, transfer[from + 1], transfer[from]);
    from += FXSAVE_REGISTER_WORDS;
  }
}

/** What each MMX instruction but EMMS does first: TOP = 0 and no register empty. Source: Intel SDM vol. 1, 9.6.1-2. */
export function enterMmx(x: X87Core): void {
  x.setTop(0);
  x.words[TAGS_OPCODE] |= 0xff;
}

/** A write to MMn: the significand takes the value, sign and exponent become all ones. */
export function writeMmx(x: X87Core, n: number, lo: number, hi: number): void {
  x.store(REGISTER_WORDS + 4 * n, 0xffff, hi, lo);
}

/** EMMS: all registers empty. */
export function emptyMmx(x: X87Core): void {
  x.setTop(0);
  x.words[TAGS_OPCODE] &= ~0xff;
}
