/**
 * For tests: every MMX and SSE instruction in several encodings, and operands for it. Registers 1 and 2 are the operands, [rDI] the
 * one in memory. The same seed gives the same vectors.
 */

import { MAP, ROWS, type Row } from '../../x86/opcode-map.ts';
import { OPERANDS } from '../../x86/operands.ts';
import { randomSource } from '../../x86/testing.ts';

/** State before an instruction and, in its place, after it. */
export const RECORD = {
  xmm: 0, // v128[3]
  mm1: 48, // u64[2]
  rax: 64, // u64: rAX, rCX, rDX
  mxcsr: 88, // u32
  /** After it: 0, or the vector of the exception. */
  exception: 92, // u32
  memory: 96, // u8[32]
  /** After it. */
  flags: 128, // u64
  SIZE: 256,
} as const;

export interface TestInstruction {
  readonly name: string;
  readonly code: readonly number[];
  /** Of scalars or vectors of floating point. */
  readonly floats: boolean;
}

const FEATURES = new Set(['MMX', 'SSE', 'SSE2', 'SSE3', 'SSSE3', 'SSE4_1', 'SSE4_2']);
const PREFIX_BYTES: Readonly<Record<number, readonly number[]>> = { 1: [], 2: [0x66], 4: [0xf3], 8: [0xf2] };
const MAP_BYTES: Readonly<Record<number, readonly number[]>> = {
  [MAP.TWO_BYTE]: [0x0f],
  [MAP.X0F38]: [0x0f, 0x38],
  [MAP.X0F3A]: [0x0f, 0x3a],
};
const FLOATS = /[ps][sd]$|^cvt/;

/** Those that `vectorMeaning` has: not the fences, hints and CRC32. */
const OTHERS = /^([lms]fence|prefetch.*|crc32|popcnt|pause|clflush)$/;

export const TEST_ROWS: readonly Row[] = ROWS.filter(
  (row) => FEATURES.has(row.feature) && MAP_BYTES[row.map] !== undefined && !OTHERS.test(row.mnemonic),
);

/** Register and memory forms, both operands the same register, REX.W where it counts, with some immediates. */
export function encodings(row: Row, immediates: readonly number[]): TestInstruction[] {
  const list: TestInstruction[] = [];
  const hasImmediate = row.operands.includes('Ib');
  const wide = row.operands.some((type) => OPERANDS[type].size === 'y');
  const reg = row.reg >= 0 ? row.reg : 1;
  const modrms: number[] = [];
  if (row.mod !== 'memory') modrms.push(0xc2 | (reg << 3));
  if (row.mod !== 'memory' && row.reg < 0) modrms.push(0xc1 | (reg << 3));
  if (row.mod !== 'register') modrms.push(0x07 | (reg << 3));
  for (const rex of wide ? [[], [0x48]] : [[]])
    for (const modrm of row.hasModrm ? modrms : [-1])
      for (const immediate of hasImmediate ? immediates : [-1]) {
        const code = [...PREFIX_BYTES[row.prefixes], ...rex, ...MAP_BYTES[row.map], row.opcodeFirst];
        if (modrm >= 0) code.push(modrm);
        if (immediate >= 0) code.push(immediate);
        list.push({
          name: `${row.mnemonic} ${row.operands.join(',')}`,
          code,
          floats: FLOATS.test(row.mnemonic),
        });
      }
  return list;
}

const SINGLES = [
  0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007fffff, 0x00800000, 0x80800000, 0x00800001, 0x3f800000,
  0xbf800000, 0x3f800001, 0x3f7fffff, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345,
  0x7f800001, 0xffa54321, 0x4b000001, 0xcb000001, 0x4f000000, 0xcf000000, 0x4effffff, 0x5f000000, 0xdf000000,
  0x3f000000, 0xbf000000, 0x3fc00000, 0x40200000, 0x1f800000, 0x5f800000,
];
/** Upper and lower half. */
const DOUBLES: readonly (readonly [number, number])[] = [
  [0, 0],
  [0x80000000, 0],
  [0, 1],
  [0x800fffff, 0xffffffff],
  [0x00100000, 0],
  [0x80100000, 1],
  [0x3ff00000, 0],
  [0xbff00000, 0],
  [0x3fefffff, 0xffffffff],
  [0x7fefffff, 0xffffffff],
  [0xffefffff, 0xffffffff],
  [0x7ff00000, 0],
  [0xfff00000, 0],
  [0x7ff80000, 0],
  [0xfff80001, 0x123],
  [0x7ff00000, 1],
  [0xfff7ffff, 0xffffffff],
  [0x43300000, 1],
  [0xc3300000, 1],
  [0x41dfffff, 0xffe00000],
  [0xc1e00000, 0x00200000],
  [0x43e00000, 0],
  [0xc3e00000, 0],
  [0x3fe00000, 0],
  [0x3ff80000, 0],
  [0x1ff00000, 0],
  [0x5ff00000, 0],
  [0x47efffff, 0xf0000000],
  [0x38100000, 0],
  [0x36900000, 1],
  [0x380fffff, 0xf0000000],
];
const BYTES = [0, 0xff, 0x80, 0x7f, 1, 0xfe, 0x81];
/** Exponents at which products, sums or conversions come near an end of their range. */
const EXPONENTS_SINGLE = [1, 2, 24, 61, 64, 103, 104, 126, 127, 128, 149, 150, 158, 190, 253, 254];
const EXPONENTS_DOUBLE = [
  1, 2, 53, 511, 513, 896, 897, 970, 1022, 1023, 1024, 1054, 1075, 1086, 1150, 1534, 2045, 2046,
];
const FRACTIONS = [0xffffffff, 0xffffffff, 0xfff00000, 1, 0];

/** All six masked; rounding modes, DAZ, FTZ and flags as they come. */
const MASKS = 0x1f80;

export class VectorSource {
  readonly #random: () => number;

  constructor(seed: number) {
    this.#random = randomSource(seed);
  }

  #of<T>(list: readonly T[]): T {
    return list[this.#random() % list.length];
  }

  #single(): number {
    const random = this.#random;
    switch (random() & 3) {
      case 0:
        return this.#of(SINGLES);
      case 1:
        return (
          (random() & 0x80000000) | (this.#of(EXPONENTS_SINGLE) << 23) | (random() & this.#of(FRACTIONS) & 0x7fffff)
        );
      case 2:
        return (random() & 0x80000000) | ((124 + (random() & 7)) << 23) | (random() & this.#of(FRACTIONS) & 0x7fffff);
      default:
        return random();
    }
  }

  #double(): readonly [number, number] {
    const random = this.#random;
    const sign = random() & 0x80000000;
    const fraction = random() & this.#of(FRACTIONS) & 0xfffff;
    const low = random() & this.#of(FRACTIONS);
    switch (random() & 3) {
      case 0:
        return this.#of(DOUBLES);
      case 1:
        return [sign | (this.#of(EXPONENTS_DOUBLE) << 20) | fraction, low];
      case 2:
        return [sign | ((1020 + (random() & 7)) << 20) | fraction, low];
      default:
        return [random(), random()];
    }
  }

  #vector(words: Uint32Array, at: number, kind: number): void {
    const random = this.#random;
    for (let word = 0; word < 4; word++) {
      if (kind === 0) words[at + word] = this.#single();
      else if (kind === 1) {
        const [high, low] = this.#double();
        words[at + word] = low;
        words[at + ++word] = high;
      } else if (kind === 2) {
        const byte = (): number => this.#of(BYTES);
        words[at + word] = byte() | (byte() << 8) | (byte() << 16) | (byte() << 24);
      } else if (kind === 3) words[at + word] = word === 0 ? random() % 70 : 0;
      else words[at + word] = random();
    }
  }

  /** Fills a record. `unmasked`: some exceptions are not masked, now and then. */
  fill(record: Uint32Array, instruction: TestInstruction, unmasked: boolean): void {
    const random = this.#random;
    const kind = instruction.floats ? random() & 1 : random() % 5;
    record.fill(0);
    for (let register = 0; register < 3; register++) this.#vector(record, register * 4, kind);
    this.#vector(record, RECORD.mm1 / 4, kind);
    // Shift counts.
    if (!instruction.floats && (random() & 1) === 0) {
      this.#vector(record, 8, 3);
      this.#vector(record, RECORD.mm1 / 4 + 2, 3);
    }
    for (let register = 0; register < 3; register++) {
      record[RECORD.rax / 4 + 2 * register] = this.#of([random(), random() % 20, 0xffffffff, 0x80000000]);
      record[RECORD.rax / 4 + 2 * register + 1] = this.#of([random(), 0, 0xffffffff]);
    }
    const masks = unmasked && (random() & 3) === 0 ? random() & MASKS : MASKS;
    record[RECORD.mxcsr / 4] = (random() & 0x603f) | ((random() & 3) === 0 ? random() & 0x8040 : 0) | masks;
    this.#vector(record, RECORD.memory / 4, kind);
    this.#vector(record, RECORD.memory / 4 + 4, kind);
    if (instruction.name.startsWith('ldmxcsr')) record[RECORD.memory / 4] &= 0xffff;
  }
}
