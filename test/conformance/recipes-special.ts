/** Directed cases of instructions that are like no others: strings, the stack, what fits nowhere else, what is no instruction. */

import { FORMS, type Form, formIndex } from '../../src/engine/x86/forms.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { modrmOperand, ROWS_OF_FORM } from './encode.ts';
import { DATA_OFFSETS, DATA_VA, HIGH_ALIAS, STATE, TRAPS_VA } from './layout.ts';
import {
  at,
  edges,
  type Invalid,
  nameOf,
  operandsOf,
  own,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  type Recipe,
  RSI,
  RSP,
  STACK,
} from './recipe.ts';
import { CORNERS, Values } from './values.ts';

const isString = (form: Form): boolean =>
  operandsOf(form).some((o) => o.class === 'source' || o.class === 'destination');

/** Repeated and single string instructions: overlaps, both directions, edges, counts. */
export function* strings(form: Form, values: Values): Iterable<Recipe> {
  if (!isString(form) || form.privilege !== 'none') return;
  const page = (n: number): number => DATA_VA + n * 4096;
  for (const operandSize of form.operandSizes)
    for (const rep of [0, 0xf2, 0xf3])
      for (const flags of [0, 0x400])
        for (const address32 of [false, true])
          for (const [source, destination] of [
            [page(1) + 512, page(2) + 512],
            [page(1) + 513, page(1) + 515],
            [page(1) + 512, page(1) + 512 + operandSize],
            [page(1) + 512 + operandSize, page(1) + 512],
            [page(1) + 512, page(1) + 512],
            [page(2) - operandSize, page(2) + 32],
            [page(2) - 3, page(1) + 64],
            [page(1) + 64, page(2) - 5],
            [page(3) - 2 * operandSize, page(2) - 2 * operandSize],
            [page(2) + 8, page(3) - 2 * operandSize],
            [page(4) - operandSize - 1, page(1) + 8],
            [page(1) + 8, page(8) - 3],
            [page(5) + 2 * operandSize, page(7) + 2 * operandSize],
          ])
            for (const count of [0n, 1n, 2n, 7n, 40n, 0x100000003n]) {
              if (rep === 0 && count > 1n) continue;
              // An endless one of a quadrillion bytes ends at the next edge: that is quick, but for once.
              const equal = values.once(2);
              const registers: [number, bigint][] = [
                [RSI, BigInt(source)],
                [RDI, BigInt(destination)],
                [RCX, count],
              ];
              if (equal) registers.push([RAX, 0n]);
              yield { form, operandSize, choices: { rep, address32, segment: 0, rex: false }, flags, registers };
            }
}

/** Instructions of the stack: sizes, all ways in which RSP is an operand itself, edges. */
export function* stack(form: Form, values: Values): Iterable<Recipe> {
  const name = nameOf(form);
  if (!STACK.has(name)) return;
  const isPopf = name === 'popf';
  for (const operandSize of form.operandSizes) {
    for (let n = 0; n < (isPopf ? 96 : 24); n++) {
      const bits = isPopf && n < 32 ? 2 ** n : isPopf && n < 64 ? ~(2 ** (n - 32)) >>> 0 : values.random();
      // Not AC: what comes behind would need to be aligned. Not TF: below.
      const image = isPopf ? bits & ~0x40100 : TRAPS_VA + (bits & 0xfff);
      const bytes = [image, image >> 8, image >> 16, image >>> 24, 0, 0, 0, 0];
      yield { form, operandSize, choices: { segment: 0 }, bytes, stack: 0, target: own(16) };
    }
    if (isPopf) yield { form, operandSize, bytes: [2, 1, 0, 0, 0, 0, 0, 0], stack: 0 };
    for (const edge of edges(8))
      yield { form, operandSize, choices: { segment: 0 }, target: own(16), registers: [[RSP, edge + 8n]] };
    const operand = modrmOperand(form);
    if (form.operands.some((type) => type.startsWith('Z')))
      for (let rm = 0; rm < 16; rm++) yield { form, operandSize, choices: { rm, segment: 0 }, stack: 16 };
    if (operand === null) continue;
    for (const base of [RSP, RBP, 12, 13])
      for (const displacement of [0, 8, -8, 0x100])
        yield {
          form,
          operandSize,
          choices: {
            rm: { base, index: -1, scale: 0, displacement, displacementBytes: 4 },
            segment: 0,
            address32: false,
          },
          registers: [
            [RSP, BigInt(DATA_VA + 0x1800)],
            [RBP, BigInt(DATA_VA + 0x1810)],
            [12, BigInt(DATA_VA + 0x1820)],
            [13, BigInt(DATA_VA + 0x17f8)],
          ],
        };
    if (operand.mod === 'any')
      for (let rm = 0; rm < 16; rm++)
        yield {
          form,
          operandSize,
          choices: { rm, segment: 0 },
          stack: 16,
          registers: rm === RSP ? [] : [[rm, BigInt(TRAPS_VA + 8 * rm)]],
        };
  }
}

/** What fits nowhere else. */
export function* special(form: Form, values: Values): Iterable<Recipe> {
  const name = nameOf(form);
  const sizes = form.operandSizes;
  if (name === 'enter')
    for (const operandSize of sizes)
      for (let level = 0; level < 34; level++)
        for (const immediateLo of [0, 8, 0x123, 0xffff]) {
          const immediate = immediateLo | (level << 16);
          const base: [number, bigint] = [RBP, BigInt(DATA_VA + 0x1700 + values.below(16))];
          yield {
            form,
            operandSize,
            choices: { immediateLo: immediate, segment: 0 },
            registers: [base, [RSP, BigInt(DATA_VA + 0x2f00)]],
          };
        }
  if (name === 'leave')
    for (const operandSize of sizes) for (const edge of edges(8)) yield { form, operandSize, registers: [[RBP, edge]] };
  if (name === 'cmpxchg8b')
    for (const operandSize of sizes)
      for (const lock of [false, true])
        for (const offset of [0, 8, 16, 4, 1])
          for (const equal of [0, 1, 2, 3]) {
            const bytes = Array.from({ length: 40 }, () => values.below(256));
            const at = (from: number): bigint => {
              let value = 0n;
              for (let i = operandSize - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[from + i]);
              return value;
            };
            // 1: both halves equal, 2 and 3: one half.
            const registers: [number, bigint][] = [];
            if (equal === 1 || equal === 2)
              registers.push([RAX, at(offset) | (operandSize === 4 ? 0x5500000000n : 0n)]);
            if (equal === 1 || equal === 3) registers.push([RDX, at(offset + operandSize)]);
            const rm = { base: RSI, index: -1, scale: 0, displacement: 0, displacementBytes: 0 };
            yield {
              form,
              operandSize,
              choices: { rm, lock, segment: 0, address32: false, rep: 0 },
              bytes,
              target: own(offset),
              registers,
            };
          }
  if (name === 'xlatb')
    for (let n = 0; n < 32; n++)
      yield {
        form,
        operandSize: 1,
        choices: { segment: 0, address32: n % 2 === 0 },
        registers: [
          [RBX, BigInt(DATA_VA + 0x1f40)],
          [RAX, BigInt(n * 37)],
        ],
      };
  if (form.operands.some((type) => OPERANDS[type].class === 'moffs'))
    for (const operandSize of sizes)
      for (const edge of edges(operandSize))
        yield { form, operandSize, choices: { segment: 0, address32: edge < HIGH_ALIAS }, target: { at: edge } };
  if (/^(loop|jcxz)/.test(name))
    for (const address32 of [false, true])
      for (const count of [0n, 1n, 2n, 0x100000000n, 0x100000001n, 0xffffffffffffffffn])
        for (const flags of [0, 0x40])
          yield { form, operandSize: 8, choices: { address32, segment: 0 }, registers: [[RCX, count]], flags };
  if (name === 'bswap' || name === 'crc32' || name === 'popcnt' || name === 'movbe')
    for (const operandSize of sizes)
      for (const value of CORNERS)
        yield { form, operandSize, choices: at('register', values), first: value, second: value };
  if ((name === 'xchg' || name === 'xadd' || name === 'cmpxchg') && modrmOperand(form) !== null)
    // The same register twice, and the accumulator as either.
    for (const operandSize of sizes)
      for (const [reg, rm] of [
        [RAX, RAX],
        [RAX, RBX],
        [RBX, RAX],
        [RBX, RBX],
        [RSP, RBX],
        [4, 0],
        [0, 4],
        [5, 1],
      ] as const)
        for (const rex of [false, true])
          yield { form, operandSize, choices: { ...at('register', values), reg, rm, rex } };
  if (/^(bt|bts|btr|btc)$/.test(name) && form.operands[1] === 'Gv')
    for (const operandSize of sizes)
      for (const lock of form.lockable ? [false, true] : [false])
        for (const address32 of [false, true])
          for (const number of [0, 1, 7, 8, 15, 16, 31, 32, 63, 64, 100, -1, -2, -64, -65, 8191, -8192]) {
            const rm = { base: RSI, index: -1, scale: 0, displacement: 0, displacementBytes: 0 };
            const registers: [number, bigint][] = [[RBX, BigInt.asUintN(64, BigInt(number))]];
            yield {
              form,
              operandSize,
              choices: { rm, reg: RBX, lock, address32, segment: 0, rep: 0 },
              target: { at: BigInt(DATA_VA + 0x1ffe) },
              registers,
            };
          }
}

/** FXSAVE, FNSAVE and FNSTENV store what is each CPU's own: that is masked. With zeros in FIP, FDP and FOP before. */
export function* images(): Iterable<Recipe> {
  for (const form of FORMS) {
    const name = nameOf(form);
    if (ROWS_OF_FORM[form.index].length === 0) continue;
    for (const operandSize of form.operandSizes)
      for (let n = 0; n < 16; n++) {
        const target = { at: BigInt(DATA_VA + 0x1400) };
        const choices = { segment: 0, address32: false, rep: 0 };
        if (name === 'fxsave')
          yield {
            form,
            operandSize,
            choices,
            target,
            masked: [
              [6, 24],
              [28, 32],
            ],
          };
        if (name === 'fnsave' || name === 'fnstenv')
          yield { form, operandSize, choices, target, masked: operandSize === 2 ? [[6, 14]] : [[12, 28]] };
      }
  }
}

/** Words of an XSAVE area. */
const AREA_WORDS = (STATE.SIZE - STATE.fx) / 4;
const HEADER_WORD = (STATE.header - STATE.fx) / 4;
/** Pages of data that are nobody's own, and the areas in them. */
const AREA_PAGES = [5, 7] as const;
const AREAS_IN_PAGE = 4;

/** What is in XSTATE_BV and XCOMP_BV: all that is sound, then what is not. */
const HEADERS: readonly (readonly number[])[] = [
  ...[7, 0, 1, 2, 3, 4, 5, 6].map((states) => [states]),
  ...[7, 0, 1, 2, 3, 4, 5, 6].map((states) => [states, 0, 7, 0x80000000]),
  ...[4, 6, 2, 3].map((states) => [states, 0, 6, 0x80000000]),
  ...[
    [0x107],
    [7, 1],
    [7, 0, 1],
    [7, 0, 0, 0, 1],
    [7, 0, 0, 0, 0, 1],
    [7, 0, 0, 0, 0, 0, 1],
    [7, 0, 7, 0x80000001],
    [7, 0, 3, 0x80000000],
    [3, 0, 7, 0x80000000, 1],
    [3, 0, 7, 0x80000000, 0, 0, 0, 1],
    [3, 0, 0x107, 0x80000000],
  ],
];

/** XRSTOR of areas with all kinds of headers, XSAVE and its like with what they store masked that is each CPU's own. */
export function* areas(): Iterable<Recipe> {
  const values = new Values(1);
  const rm = { base: RSI, index: -1, scale: 0, displacement: 0, displacementBytes: 0 };
  const choices = { segment: 0, address32: false, rep: 0, rm };
  const word = new Uint32Array(AREA_WORDS);
  for (const form of FORMS) {
    const name = nameOf(form);
    if (ROWS_OF_FORM[form.index].length === 0 || !/^(xsave|xsaveopt|xsavec|xrstor)$/.test(name)) continue;
    for (const operandSize of form.operandSizes)
      for (let n = 0; n < HEADERS.length * 8; n++) {
        const place = (n >> 3) % (AREA_PAGES.length * AREAS_IN_PAGE);
        const page = AREA_PAGES[place >> 2];
        const offset = (place & 3) * 1024 + ((n >> 3) % 3 === 2 ? 0 : 64);
        const target = { at: BigInt(DATA_VA + page * 4096 + offset) };
        const registers = [[RAX, BigInt(n & 7)]] as const;
        values.xsave(word, 0);
        word.set(HEADERS[n >> 3], HEADER_WORD);
        const image = word.slice();
        const memory = (data: Uint32Array): void => data.set(image, (DATA_OFFSETS[page] + offset) / 4);
        // The upper halves of none, or of all registers in use.
        const state = (words: Uint32Array, at: number): void => {
          if (n % 3 === 0) words.fill(0, at + STATE.upper / 4, at + STATE.SIZE / 4);
        };
        const recipe = { form, operandSize, choices, target, registers, state };
        if (name === 'xrstor') {
          if ((n & 7) === 0) yield { ...recipe, memory };
          else yield recipe;
        } else
          yield {
            ...recipe,
            // AMD's CPUs look at an area for all of the host's state.
            target: { at: BigInt(DATA_VA + 0x1400 + (n % 5 === 0 ? 64 : 0)) },
            masked: [
              [6, 24],
              [28, 32],
            ],
          };
      }
    for (const operandSize of form.operandSizes)
      for (const edge of [1, 2, 4, 8, 16, 32].map((distance) => BigInt(DATA_VA + 0x1400 + distance)))
        yield { form, operandSize, choices, target: { at: edge }, registers: [[RAX, 7n]] };
  }
}

/** INT n as Domus has it on every engine: the gates that CPL 3 may use. */
export function* softwareInterrupts(): Iterable<Recipe> {
  const form = FORMS[formIndex('int Ib')];
  const choices = { segment: 0, address32: false, rep: 0, rex: false };
  for (const immediateLo of [3, 4, 0x80])
    for (let n = 0; n < 8; n++) yield { form, operandSize: 4, choices: { ...choices, immediateLo } };
}

const DISTANCES = [
  [0xf0, 0xff, 0xff, 0x7f],
  [0x00, 0x00, 0x00, 0x80],
];

/** No instructions: LOCK where it may not be, more than 15 bytes, holes in the opcode maps. */
export function* invalid(): Iterable<Invalid> {
  for (const bytes of [
    [0xf0, 0x01, 0xd8],
    [0xf0, 0x8b, 0x03],
    [0xf0, 0x90],
    [0xf0, 0x48, 0x39, 0x18],
    [0xf0, 0x0f, 0xa3, 0x18],
    [0xf0, 0x84, 0x18],
    [0x06],
    [0x27],
    [0x60],
    [0x82, 0xc0, 1],
    [0xd6],
    [0xce],
    [0x9a],
    [0xea],
    [0x0f, 0x04],
    [0x0f, 0x0a],
    [0x0f, 0x0b],
    [0x0f, 0x24, 0xc0],
    [0x0f, 0x36],
    [0x0f, 0xc7, 0xc0],
    [0x0f, 0xba, 0xc0, 1],
    [0xfe, 0xd0],
    [0xff, 0xd8],
    [0xff, 0xf8],
    [0x8d, 0xc0],
    [0xc6, 0xc8, 1],
    [0x8c, 0xf0],
    [0x8e, 0xc8],
    [0x66, 0x0f, 0x13, 0xc0],
    [0xf3, 0x0f, 0xc7, 0x08],
    [0xd9, 0xd1],
    [0xda, 0xe8],
    [0xdb, 0xe5],
    [0xdf, 0xe1],
    // Branches over nearly 2 GiB, to where nothing is.
    ...[0xe9, 0xe8].flatMap((opcode) => DISTANCES.map((distance) => [opcode, ...distance])),
    ...Array.from({ length: 16 }, (_, code) => [0x0f, 0x80 | code, ...DISTANCES[code % 2]]),
    ...Array.from({ length: 16 }, (_, code) => [0x0f, 0x80 | code, ...DISTANCES[1 - (code % 2)]]),
    [...Array.from({ length: 14 }, () => 0x66), 0x48, 0x01, 0xd8],
    [...Array.from({ length: 15 }, () => 0x2e), 0x90],
  ])
    yield { invalid: bytes };
}
