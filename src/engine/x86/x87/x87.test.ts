/**
 * X87 against a real CPU: the recorded outcomes of test-vectors.bin, all of them and all of the state (registers, FCW, FSW, tags,
 * memory, EFLAGS, AX, #MF); then what the vectors cannot show.
 *
 * The same comparison ran outside of the repository over 387 million cases against the CPU itself (AMD EPYC 9004, Zen 4), 45 million
 * of them aimed at ties, exact quotients and roots, cancellation, and the edges of the formats: not a single difference but in the
 * transcendental operations (transcendental.ts has their numbers, of 4 million more).
 */

import { readFileSync } from 'node:fs';
import { inflateRawSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { FDIV } from './arith.ts';
import { FCW_INITIAL, IE, SF, X87_STATE, ZE } from './state.ts';
import { normalizeOutcome, runCase } from './test-case.ts';
import { CASE_WORDS, Random, randomCase } from './test-inputs.ts';
import { OPERATIONS } from './test-operations.ts';
import type { VectorsHead } from './test-vectors.ts';
import { decodeOutcome, toPhysicalOrder } from './test-vectors.ts';
import { X87 } from './x87.ts';

const STATE_OFFSET = 64;
const C1_WORD = 0x200 << 16;
const REGISTERS = 8;

function newX87(): X87 {
  return new X87(new Uint32Array(new SharedArrayBuffer(STATE_OFFSET + X87_STATE.SIZE)), STATE_OFFSET);
}

/** One register of a case as an integer that grows by one from each number to the next, with its sign. */
function ordinal(words: Int32Array, register: number): bigint {
  const at = 8 + 4 * register;
  const significand = (BigInt(words[at + 1] & 0x7fffffff) << 32n) | BigInt(words[at] >>> 0);
  const magnitude = (BigInt(words[at + 2] & 0x7fff) << 63n) | significand;
  return words[at + 2] & 0x8000 ? -magnitude : magnitude;
}

function readVectors(): { head: VectorsHead; bytes: DataView } {
  const file = readFileSync(new URL('./test-vectors.bin', import.meta.url));
  const lineEnd = file.indexOf('\n');
  const head = JSON.parse(file.toString('utf8', 0, lineEnd)) as VectorsHead;
  const data = inflateRawSync(file.subarray(lineEnd + 1));
  return { head, bytes: new DataView(data.buffer, data.byteOffset, data.byteLength) };
}

/** How an outcome compares: equal, but for C1, off by one in the last place of a register, or wrong. */
type Verdict = 'equal' | 'C1' | 'ulp' | 'wrong';

function compare(expected: Int32Array, got: Int32Array): Verdict {
  let verdict: Verdict = 'equal';
  if ((expected[0] ^ got[0]) & C1_WORD) verdict = 'C1';
  for (let word = 0; word < CASE_WORDS; word++) {
    const isRegister = word >= 8 && word < 40;
    const mask = word === 0 ? ~C1_WORD : -1;
    if (!isRegister && (expected[word] ^ got[word]) & mask) return 'wrong';
  }
  for (let register = 0; register < REGISTERS; register++) {
    const at = 8 + 4 * register;
    if ([0, 1, 2, 3].every((word) => expected[at + word] === got[at + word])) continue;
    const distance = ordinal(expected, register) - ordinal(got, register);
    if (distance !== 1n && distance !== -1n) return 'wrong';
    verdict = 'ulp';
  }
  return verdict;
}

describe('outcomes recorded on a CPU', () => {
  const { head, bytes } = readVectors();
  const random = new Random(head.seed);
  const x = newX87();
  let offset = 0;

  test('the file is of these operations', () => {
    expect(head.operations).toBe(OPERATIONS.length);
    expect(offset).toBe(bytes.byteLength);
  });

  for (const [index, operation] of OPERATIONS.entries()) {
    // The inputs of all operations come from one generator, so they are made here, in order, whichever tests run.
    const inputs = new Int32Array(head.cases * CASE_WORDS);
    const expected = new Int32Array(head.cases * CASE_WORDS);
    for (let i = 0; i < head.cases; i++) {
      const at = i * CASE_WORDS;
      randomCase(random, operation.memory, index, inputs, at);
      const words = expected.subarray(at, at + CASE_WORDS);
      words.set(inputs.subarray(at, at + CASE_WORDS));
      normalizeOutcome(operation, words, 0);
      toPhysicalOrder(words, 0);
      offset = decodeOutcome(words, bytes, offset);
    }

    test(`${operation.name} does what the CPU did`, () => {
      const got = new Int32Array(CASE_WORDS);
      const verdicts = { equal: 0, C1: 0, ulp: 0, wrong: 0 };
      for (let i = 0; i < head.cases; i++) {
        const at = i * CASE_WORDS;
        const want = expected.subarray(at, at + CASE_WORDS);
        runCase(x, operation, inputs, at, got);
        normalizeOutcome(operation, got, 0);
        toPhysicalOrder(got, 0);
        const verdict = compare(want, got);
        verdicts[verdict]++;
        if (verdict === 'wrong' || (verdict !== 'equal' && !operation.isTranscendental)) {
          expect(got, `case ${i}`).toEqual(want);
        }
      }
      // Even FPTAN, the worst (tiny angles under directed rounding), has more than this.
      expect(verdicts.equal).toBeGreaterThan(0.75 * head.cases);
    });
  }
});

describe('state', () => {
  test('lies as in an FXSAVE image, registers in physical order', () => {
    const words = new Uint32Array(new SharedArrayBuffer(X87_STATE.SIZE + STATE_OFFSET));
    const x = new X87(words, STATE_OFFSET);
    x.fninit();
    x.fldConstant(0);
    x.fldM80(0x11223344, 0x99887766, 0xc001);
    const bytes = new DataView(words.buffer, STATE_OFFSET);
    expect(bytes.getUint16(X87_STATE.FCW, true)).toBe(FCW_INITIAL);
    expect(bytes.getUint16(X87_STATE.FSW, true)).toBe(6 << 11);
    expect(bytes.getUint8(X87_STATE.FTW)).toBe(0xc0);
    expect(bytes.getUint16(X87_STATE.REGISTERS + 7 * 16 + 8, true)).toBe(0x3fff);
    expect(bytes.getUint16(X87_STATE.REGISTERS + 6 * 16 + 8, true)).toBe(0xc001);
    expect(bytes.getBigUint64(X87_STATE.REGISTERS + 6 * 16, true)).toBe(0x9988776611223344n);
    expect(X87_STATE.REGISTERS + 8 * 16).toBe(X87_STATE.SIZE);
  });

  test('touches nothing before or after it', () => {
    const words = new Uint32Array(STATE_OFFSET / 4 + X87_STATE.SIZE / 4 + 4).fill(0xdeadbeef);
    const x = new X87(words, STATE_OFFSET);
    x.fninit();
    for (let n = 0; n < 9; n++) x.fldConstant(n % 7);
    x.fxsave(true);
    x.fxrstor(true);
    x.emms();
    expect(words.subarray(0, STATE_OFFSET / 4).every((word) => word === 0xdeadbeef)).toBe(true);
    expect(words.subarray((STATE_OFFSET + X87_STATE.SIZE) / 4).every((word) => word === 0xdeadbeef)).toBe(true);
  });

  test('an unmasked exception is pending until FNCLEX, and leaves the operands', () => {
    const x = newX87();
    x.fninit();
    x.fldcw(FCW_INITIAL & ~ZE);
    x.fldConstant(6);
    x.fldConstant(0);
    x.arithSt(FDIV, 1);
    expect(x.pending()).toBe(true);
    expect(x.fnstsw() & 0xff).toBe(0x80 | ZE);
    x.fnclex();
    expect(x.pending()).toBe(false);
    expect(x.fstM64(true)).toBe(true);
    expect(x.transfer[1]).toBe(0x3ff00000);
  });

  test('a store that raises an unmasked exception says so and does not pop', () => {
    const x = newX87();
    x.fninit();
    x.fldcw(FCW_INITIAL & ~IE);
    expect(x.fstM64(true)).toBe(false);
    expect(x.fnstsw() & 0xff).toBe(0x80 | SF | IE);
    expect((x.fnstsw() >>> 11) & 7).toBe(0);
  });

  test('pointers and opcode go through FXSAVE64, FXSAVE and both environments', () => {
    const x = newX87();
    x.fninit();
    x.recordPointers(0x7c1, 0x89abcdef, 0x1234567, 0x76543210, 0xfedcba9);
    x.fxsave(true);
    expect([...x.transfer.subarray(1, 6)]).toEqual([0x7c10000, 0x89abcdef, 0x1234567, 0x76543210, 0xfedcba9]);
    x.fninit();
    x.fxrstor(true);
    x.fxsave(false);
    expect([...x.transfer.subarray(1, 6)]).toEqual([0x7c10000, 0x89abcdef, 0, 0x76543210, 0]);
    x.fnstenv(true);
    expect([...x.transfer.subarray(3, 7)]).toEqual([0x89abcdef, 0x7c10000, 0x76543210, 0xffff0000]);
    x.fnstenv(false);
    expect([...x.transfer.subarray(1, 4)]).toEqual([0xcdefffff, 0x32100000, 0]);
  });

  test('MMX registers are the significands of the physical registers', () => {
    const x = newX87();
    x.fninit();
    x.fldConstant(0);
    x.enterMmx();
    x.setMmx(7, 1, 2);
    expect([x.mmxLo(7), x.mmxHi(7)]).toEqual([1, 2]);
    expect(x.fnstsw() >>> 11).toBe(0);
    x.fxsave(true);
    expect(x.transfer[1] & 0xff).toBe(0xff);
    expect([...x.transfer.subarray(8 + 28, 8 + 31)]).toEqual([1, 2, 0xffff]);
  });
});
