/**
 * For tests: random sequences of x87 instructions with random state and operands, run on two engines and compared.
 *
 *   FXRSTOR64 of a random image, the sequence, FXSAVE64, FNSAVE, INT3
 *
 * Operands are slots, by any addressing, some of them across a page. A sequence may end early by #MF; the state is stored then too.
 * Left out are the transcendental instructions, whose last bit is the CPU's own: TRANSCENDENTAL.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { CODE_VA } from '../kvm/test-guest.ts';
import { ROWS, type Row } from '../x86/opcode-map.ts';
import { CASE_WORDS, EFLAGS_MASK, MEMORY, type Random, randomCase } from '../x86/x87/test-inputs.ts';
import type { MemoryKind } from '../x86/x87/test-operations.ts';
import type { TestGuest } from './test-guest.ts';

export const TRANSCENDENTAL = ['f2xm1', 'fyl2x', 'fyl2xp1', 'fptan', 'fpatan', 'fsin', 'fcos', 'fsincos'];

/** The guest itself copies the sequence to CODE_VA: an engine need not see what a test writes into code that has run. */
const LOADER = [0xf3, 0xa4, 0x41, 0xff, 0xe3]; // rep movsb; jmp r11
const LOADER_VA = 0x14000;
const EPILOGUE_VA = 0x15000;
const SEQUENCE_VA = 0x18000;
const IMAGE_VA = 0x20000;
const RESULT_VA = 0x21000;
const RESULT_BYTES = 512 + 108;
/** 16 slots of 16 bytes, half of them before the end of a page, one across it. */
const SLOTS_VA = 0x23000 - 136;
const SLOTS = 16;
const SLOT = 16;
/** Places for environments and states: imageVa. */
const IMAGES_VA = 0x25000;
const IMAGE_PLACES = 8;
/** Instructions in a sequence, at most. */
const LENGTH_MAX = 12;
/** Of FXSAVE64 and of FXSAVE. */
const FXSAVE_VAS = [0x2a000 - 256, 0x2b000 - 128];
const FS_BASE = 0x1000;
const MATH_FAULT = 16;
const BREAKPOINT = 3;
const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const RSI = 6;
const RDI = 7;
const R9 = 9;
const R11 = 11;
const INDEX = 8;

const FXSAVE = [0x0f, 0xae];
const FXSAVE64 = [0x48, 0x0f, 0xae];
const absolute = (opcode: readonly number[], reg: number, va: number): number[] => [
  ...opcode,
  (reg << 3) | 4,
  0x25,
  ...bytes4(va),
];
const bytes4 = (value: number): number[] => [value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24];
const EPILOGUE = [...absolute(FXSAVE64, 0, RESULT_VA), ...absolute([0xdd], 6, RESULT_VA + 512), 0xcc];

/** x87 rows of the opcode map. */
const INSTRUCTIONS = ROWS.filter(
  (row) => row.map === 0 && (row.opcodeFirst & 0xf8) === 0xd8 && !TRANSCENDENTAL.includes(row.mnemonic),
);
const CONTROL = new Set(['fldcw', 'fldenv', 'frstor', 'fnsave', 'fninit', 'fnstenv', 'fnclex']);

function memoryKind(row: Row): MemoryKind {
  const operand = row.operands[0];
  if (row.mnemonic === 'fldcw') return 'control';
  if (row.mnemonic === 'fbld') return 'bcd';
  if (row.mnemonic.startsWith('fi')) return 'int';
  return operand === 'Md' ? 'm32' : operand === 'Mq' ? 'm64' : operand === 'Mt' ? 'm80' : 'image';
}

interface Piece {
  readonly va: number;
  readonly words: Int32Array;
}

export interface Sequence {
  /** With the FXRSTOR64 and the epilogue. */
  readonly code: readonly number[];
  /** Names of the instructions, for whoever looks at a failure. */
  readonly names: readonly string[];
  readonly flags: number;
  readonly pieces: readonly Piece[];
}

function fxImage(random: Random): Int32Array {
  const image = new Int32Array(128);
  randomCase(random, 'none', 0, image, 0);
  // Pointers, and an opcode of 16 bits, of which 11 count.
  for (const word of [2, 4]) image[word] = random.word();
  for (const word of [3, 5]) image[word] = random.word() & 0x7fff;
  image[1] |= random.word() << 16;
  image[6] = random.below(4) === 0 ? random.word() & 0xffff : 0x1f80;
  for (let word = 40; word < 104; word++) image[word] = random.word();
  return image;
}

/** An instruction with its operand at `va`, addressed in one of many ways; `at` is where it will stand. */
function addressed(random: Random, prefixes: readonly number[], row: Row, va: number, at: number): number[] {
  const opcode = [row.opcodeFirst];
  const digit = row.reg << 3;
  switch (random.below(7)) {
    case 0: {
      const length = prefixes.length + 6;
      return [...prefixes, ...opcode, digit | 5, ...bytes4(va - at - length)];
    }
    case 1:
      return [...prefixes, ...opcode, 0x80 | digit | 3, ...bytes4(va - SLOTS_VA)];
    case 2:
      return [...prefixes, ...opcode, 0x80 | digit | 4, 0x93, ...bytes4(va - SLOTS_VA - INDEX * 4)];
    case 3:
      return [...prefixes, 0x41, ...opcode, 0x80 | digit | 1, ...bytes4(va - SLOTS_VA + INDEX)];
    case 4:
      return [0x64, ...prefixes, ...opcode, digit | 4, 0x25, ...bytes4(va - FS_BASE)];
    case 5:
      return [0x67, ...prefixes, ...opcode, 0x80 | digit | 3, ...bytes4(va - SLOTS_VA)];
    default:
      return [...prefixes, ...opcode, digit | 4, 0x25, ...bytes4(va)];
  }
}

class Builder {
  readonly random: Random;
  readonly names: string[] = [];
  readonly code = absolute(FXSAVE64, 1, IMAGE_VA);
  readonly pieces: readonly Piece[];
  readonly #case = new Int32Array(CASE_WORDS);

  constructor(random: Random) {
    this.random = random;
    const noise = (words: number): Int32Array => new Int32Array(words).map(() => random.word());
    const pieces: Piece[] = [{ va: IMAGE_VA, words: fxImage(random) }];
    for (let slot = 0; slot < SLOTS; slot++) pieces.push({ va: SLOTS_VA + slot * SLOT, words: noise(SLOT / 4) });
    for (let place = 0; place < IMAGE_PLACES; place++) {
      const words = noise(28);
      // Mostly with all exceptions masked.
      if (random.below(3) !== 0) words[0] |= 0x3f;
      pieces.push({ va: imageVa(place), words });
    }
    for (const va of FXSAVE_VAS) pieces.push({ va, words: fxImage(random) });
    this.pieces = pieces;
  }

  #add(name: string, code: readonly number[]): void {
    this.names.push(name);
    this.code.push(...code);
  }

  /** One instruction more. */
  grow(): void {
    const { random } = this;
    const kind = random.below(60);
    if (kind === 0) this.#add('wait', [0x9b]);
    else if (kind === 1) this.#fxsave();
    else {
      let row = random.pick(INSTRUCTIONS);
      // Those that change everything come less often.
      while (CONTROL.has(row.mnemonic) && random.below(3) !== 0) row = random.pick(INSTRUCTIONS);
      const operand = row.operands[0];
      if (operand === 'Menv' || operand === 'Mstate') this.#image(row, operand);
      else if (operand?.startsWith('M')) this.#memory(row);
      else this.#register(row);
    }
  }

  #fxsave(): void {
    const { random } = this;
    const digit = random.below(2);
    const narrow = random.below(2);
    const name = `${digit === 0 ? 'fxsave' : 'fxrstor'}${narrow ? '' : '64'}`;
    this.#add(name, absolute(narrow ? FXSAVE : FXSAVE64, digit, FXSAVE_VAS[narrow]));
  }

  #image(row: Row, operand: 'Menv' | 'Mstate'): void {
    const { random } = this;
    const narrow = random.below(2);
    const format = (operand === 'Menv' ? 0 : 2) + narrow;
    this.#atAddress(row, narrow === 1, imageVa(2 * format + random.below(2)));
  }

  #memory(row: Row): void {
    const { random } = this;
    const slot = random.below(SLOTS);
    // Half of the time a number that means something to this instruction, otherwise what stands there.
    if (random.below(2) === 0) {
      randomCase(random, memoryKind(row), 0, this.#case, 0);
      this.pieces[1 + slot].words.set(this.#case.subarray(MEMORY, MEMORY + SLOT / 4));
    }
    this.#atAddress(row, random.below(10) === 0, SLOTS_VA + slot * SLOT);
  }

  #atAddress(row: Row, prefixed: boolean, va: number): void {
    const code = addressed(this.random, prefixed ? [0x66] : [], row, va, CODE_VA + this.code.length);
    this.#add(`${row.mnemonic} ${row.operands[0]}`, code);
  }

  #register(row: Row): void {
    const { random } = this;
    // Prefixes without a meaning here.
    const prefix = random.below(8) === 0 ? [random.pick([0x66, 0x41, 0x48, 0xf3, 0x2e])] : [];
    const rm = row.rmFirst >= 0 ? row.rmFirst : random.below(8);
    const code = [...prefix, row.opcodeFirst, 0xc0 | (row.reg << 3) | rm];
    this.#add(`${row.mnemonic} ${row.operands.join(',')}`, code);
  }
}

export function randomSequence(random: Random): Sequence {
  const builder = new Builder(random);
  const length = 1 + random.below(LENGTH_MAX);
  while (builder.names.length < length) builder.grow();
  const { names, pieces } = builder;
  return { code: [...builder.code, ...EPILOGUE], names, flags: 2 | (random.word() & EFLAGS_MASK), pieces };
}

/** Place 0-7: environment, narrow environment, state, narrow state; each twice, and then across a page. */
function imageVa(place: number): number {
  const format = place >> 1;
  return place & 1 ? IMAGES_VA + 0x1000 * (1 + format) - 4 - 2 * place : IMAGES_VA + format * 0x100;
}

const registers = [RAX, RCX, RDX, RBX, R9];

/** Runs it and gives all that can be seen of it afterwards. FCS and FDS, and MXCSR_MASK, are not compared. */
export function outcome(guest: TestGuest, sequence: Sequence): number[] {
  const { machine, block } = guest;
  const { u8 } = machine;
  u8.set(LOADER, LOADER_VA);
  u8.set(EPILOGUE, EPILOGUE_VA);
  u8.fill(0xaa, RESULT_VA, RESULT_VA + 0x400);
  for (const { va, words } of sequence.pieces) u8.set(new Uint8Array(words.buffer), va);
  for (let number = 0; number < 16; number++) guest.setGpr(number, 0x1000 + number);
  guest.setGpr(RAX, 0x12345678, 0x9abcdef0);
  guest.setGpr(RBX, SLOTS_VA);
  guest.setGpr(RDX, INDEX);
  guest.setGpr(R9, SLOTS_VA - INDEX);
  block.u32[VCPU.rflags / 4] = sequence.flags;
  block.u32[VCPU.fsBase / 4] = FS_BASE;
  u8.set(sequence.code, SEQUENCE_VA);
  guest.setGpr(RSI, SEQUENCE_VA);
  guest.setGpr(RDI, CODE_VA);
  guest.setGpr(RCX, sequence.code.length);
  guest.setGpr(R11, CODE_VA);
  const exit = guest.runAt(LOADER_VA);
  const vector = guest.word(VCPU.exitVector);
  const seen = [exit, vector, guest.word(VCPU.rip), guest.word(VCPU.rflags) & EFLAGS_MASK];
  for (const register of registers) seen.push(guest.gpr(register));
  if (exit === EXIT_EXCEPTION && vector === MATH_FAULT) {
    // The epilogue alone.
    seen.push(guest.runAt(EPILOGUE_VA), guest.word(VCPU.exitVector));
  } else seen.push(EXIT_EXCEPTION, BREAKPOINT);
  const bytes = (va: number, size: number): Uint8Array => new Uint8Array(u8.subarray(va, va + size));
  const result = bytes(RESULT_VA, RESULT_BYTES);
  clearFxsave(result);
  clearSelectors(result, 512, false);
  const memory = sequence.pieces.slice(1).map(({ va, words }) => bytes(va, words.byteLength));
  for (let place = 0; place < IMAGE_PLACES; place++) clearSelectors(memory[SLOTS + place], 0, (place >> 1) % 2 === 1);
  clearFxsave(memory[SLOTS + IMAGE_PLACES]);
  clearFxsave(memory[SLOTS + IMAGE_PLACES + 1]);
  for (const offset of [12, 20]) memory[SLOTS + IMAGE_PLACES + 1].fill(0, offset, offset + 2);
  return [...seen, ...[result, ...memory].flatMap((part) => [...new Int32Array(part.buffer)])];
}

/** FCS and FDS of an environment. */
function clearSelectors(bytes: Uint8Array, at: number, narrow: boolean): void {
  for (const offset of narrow ? [8, 12] : [16, 24]) bytes.fill(0, at + offset, at + offset + 2);
}

/** MXCSR_MASK. */
function clearFxsave(bytes: Uint8Array): void {
  bytes.fill(0, 28, 32);
}
