/** CMPXCHG8B and CMPXCHG16B, by TypeScript. */

import { EXIT_EXCEPTION } from '../engine.ts';
import type { Processor } from './processor.ts';
import { NEXT, type RareInstruction } from './rare-status.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const ZF = 0x40;

/**
 * CMPXCHG8B and CMPXCHG16B. Without LOCK nobody may expect more than that no interrupt comes between. With it the world stops if the
 * operand is not aligned, but not for every CMPXCHG16B: Linux has thousands a second, and the others may be waiting for a CPU.
 */
export const compareExchangePair: RareInstruction = (p, _d, host) => {
  const half = p.instruction.operandSize;
  p.effective();
  const { lo, hi } = p;
  if (half === 8 && (lo & 15) !== 0) return p.raise(13);
  let at = p.writing(lo, hi, 2 * half);
  if (at === -1) return EXIT_EXCEPTION;
  const isAlone = p.instruction.lock && ((lo & 7) !== 0 || at >>> 0 >= p.memory.scratch);
  if (isAlone) {
    host.stopWorld();
    at = p.writing(lo, hi, 2 * half);
    if (at === -1) {
      host.startWorld();
      return EXIT_EXCEPTION;
    }
  }
  const offset = at >>> 0;
  const flags = p.flags();
  let isEqual = false;
  if (isAlone || !p.instruction.lock) isEqual = exchangeWords(p, offset, half);
  else if (half === 4) isEqual = exchangeQuadword(p, offset);
  else
    host.exclusively(() => {
      isEqual = exchangeQuadwords(p, offset);
    });
  if (isEqual) p.stored(at, 2 * half);
  p.setArithmeticFlags(isEqual ? flags | ZF : flags & ~ZF);
  if (isAlone) host.startWorld();
  p.advance();
  return NEXT;
};

const LOW_WORD = 0xffffffffn;
const joined = (low: number, high: number): bigint => (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);

/** False: EDX:EAX is what was there. */
function exchangeQuadword(p: Processor, offset: number): boolean {
  const expected = joined(p.gprLo(RAX), p.gprLo(RDX));
  const replacement = joined(p.gprLo(RBX), p.gprLo(RCX));
  const old = Atomics.compareExchange(p.memory.machine.u64, offset >>> 3, expected, replacement);
  if (old === expected) return true;
  p.setGpr(RAX, 4, Number(old & LOW_WORD), 0);
  p.setGpr(RDX, 4, Number(old >> 32n), 0);
  return false;
}

/**
 * Two quadwords, while no other vCPU exchanges two. Others may change one: the low one is exchanged first, and put back if the high
 * one is not as expected any more. (Both changed by others in between, or the new low one read there: quirks.md.) False: RDX:RAX is
 * what was there.
 */
function exchangeQuadwords(p: Processor, offset: number): boolean {
  const { u64 } = p.memory.machine;
  const at = offset >>> 3;
  const expectedLow = joined(p.gprLo(RAX), p.gprHi(RAX));
  const expectedHigh = joined(p.gprLo(RDX), p.gprHi(RDX));
  let low = Atomics.load(u64, at);
  let high = Atomics.load(u64, at + 1);
  if (low === expectedLow && high === expectedHigh) {
    const newLow = joined(p.gprLo(RBX), p.gprHi(RBX));
    const newHigh = joined(p.gprLo(RCX), p.gprHi(RCX));
    low = Atomics.compareExchange(u64, at, expectedLow, newLow);
    if (low === expectedLow) {
      high = Atomics.compareExchange(u64, at + 1, expectedHigh, newHigh);
      if (high === expectedHigh) return true;
      Atomics.compareExchange(u64, at, newLow, expectedLow);
    }
  }
  p.setGpr(RAX, 8, Number(low & LOW_WORD), Number(low >> 32n));
  p.setGpr(RDX, 8, Number(high & LOW_WORD), Number(high >> 32n));
  return false;
}

function exchangeWords(p: Processor, offset: number, half: number): boolean {
  const words: number[] = [];
  for (let i = 0; i < half / 2; i++) words.push(p.load(offset + 4 * i, 4));
  const both = (low: number, high: number): number[] =>
    half === 4 ? [p.gprLo(low), p.gprLo(high)] : [p.gprLo(low), p.gprHi(low), p.gprLo(high), p.gprHi(high)];
  if (both(RAX, RDX).every((word, i) => words[i] === word)) {
    storePairs(p, offset, both(RBX, RCX));
    return true;
  }
  p.setGpr(RAX, half, words[0], half === 8 ? words[1] : 0);
  p.setGpr(RDX, half, words[half / 4], half === 8 ? words[3] : 0);
  return false;
}

/** Stores words, two at a time where they are aligned: others never see half of a pair. */
function storePairs(p: Processor, offset: number, words: readonly number[]): void {
  const { u64 } = p.memory.machine;
  if ((offset & 7) === 0)
    for (let i = 0; i < words.length; i += 2)
      Atomics.store(u64, (offset >>> 3) + i / 2, (BigInt(words[i + 1] >>> 0) << 32n) | BigInt(words[i] >>> 0));
  else
    words.forEach((word, i) => {
      p.store(offset + 4 * i, 4, word);
    });
}
