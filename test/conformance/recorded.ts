/**
 * Recorded answers of the real CPU: a part of the directed cases, for machines without /dev/kvm. `node test/conformance/record.ts`
 * makes the file where there is one; it must be made again when the cases change.
 *
 * The file is brotli over: u32 flags (bit 0: made on PVM), u32 stride, u32 batches, then for each batch
 *
 *   u32        hash of what went in: code, states, memory
 *   varint     1: there is no answer (a return address of one case led another astray), nothing follows
 *   per case   outcome (varint), with an exception: vector, error, rip - start (varints), CR2 (8 bytes) for page faults;
 *              words of the state that changed: count, then for each the distance from the last (varints) and the word
 *   memory     words that changed: the same
 */

import type { Prepared } from './compare.ts';
import { undefinedFlags } from './exclusions.ts';
import { STATE, STATE_WORDS } from './layout.ts';
import { isStray, OUTCOME, type Result, STRAYED } from './machine.ts';

export const RECORDED = new URL('./recorded.bin', import.meta.url);

const FLAGS = STATE.rflags / 4;

export class RecordWriter {
  readonly #bytes: number[] = [];

  get bytes(): Uint8Array {
    return Uint8Array.from(this.#bytes);
  }

  u32(value: number): void {
    for (let i = 0; i < 32; i += 8) this.#bytes.push((value >>> i) & 0xff);
  }

  varint(value: number): void {
    let rest = value >>> 0;
    for (; rest > 0x7f; rest >>>= 7) this.#bytes.push((rest & 0x7f) | 0x80);
    this.#bytes.push(rest);
  }

  changes(before: Uint32Array, after: Uint32Array, from: number, to: number): void {
    const changed: number[] = [];
    for (let k = from; k < to; k++) if (before[k] !== after[k]) changed.push(k);
    this.varint(changed.length);
    let last = from;
    for (const k of changed) {
      this.varint(k - last);
      this.u32(after[k]);
      last = k;
    }
  }
}

export class RecordReader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  u32(): number {
    let value = 0;
    for (let i = 0; i < 32; i += 8) value |= this.#bytes[this.#at++] << i;
    return value >>> 0;
  }

  varint(): number {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = this.#bytes[this.#at++];
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value >>> 0;
    }
  }

  changes(before: Uint32Array, after: Uint32Array, from: number, to: number): void {
    for (let k = from; k < to; k++) after[k] = before[k];
    let at = from;
    for (let left = this.varint(); left > 0; left--) {
      at += this.varint();
      after[at] = this.u32();
    }
  }
}

/** FNV-1a over words. */
function hash(seed: number, words: Uint32Array): number {
  let value = seed;
  for (const word of words) value = Math.imul(value ^ word, 0x01000193);
  return value >>> 0;
}

export function hashOf({ batch }: Prepared): number {
  const code = new Uint32Array(batch.code.buffer);
  const { lo, hi } = { lo: Number(batch.fsBase & 0xffffffffn), hi: Number(batch.gsBase & 0xffffffffn) };
  let value = hash(0x811c9dc5, Uint32Array.of(lo, hi, ...batch.slots));
  value = hash(value, code);
  // Only the states of cases: others are left from the batch before.
  for (const slot of batch.slots)
    value = hash(value, batch.states32.subarray(slot * STATE_WORDS, (slot + 1) * STATE_WORDS));
  return hash(value, batch.data32);
}

export function writeBatch(out: RecordWriter, prepared: Prepared, result: Result): void {
  const { batch, instructions } = prepared;
  out.u32(hashOf(prepared));
  out.varint(isStray(result) ? 1 : 0);
  if (isStray(result)) return;
  for (const slot of batch.slots) {
    const o = slot * OUTCOME.WORDS;
    const w = result.outcomes;
    out.varint(w[o]);
    if (w[o] !== 0) {
      out.varint(w[o + OUTCOME.vector]);
      out.varint(w[o + OUTCOME.error]);
      out.u32(w[o + OUTCOME.ripLo]);
      out.u32(w[o + OUTCOME.ripHi]);
      if (w[o + OUTCOME.vector] === 14) {
        out.u32(w[o + OUTCOME.cr2Lo]);
        out.u32(w[o + OUTCOME.cr2Hi]);
      }
    }
    const base = slot * STATE_WORDS;
    // Undefined flags as before: nothing to store.
    const i = instructions[slot];
    const undefinedMask = i === null || w[o] !== 0 ? 0 : undefinedFlags(i, batch.states[slot * STATE.SIZE + 8]);
    const flags = result.states32[base + FLAGS];
    result.states32[base + FLAGS] = (flags & ~undefinedMask) | (batch.states32[base + FLAGS] & undefinedMask);
    out.changes(batch.states32, result.states32, base, base + STATE_WORDS);
  }
  out.changes(batch.data32, result.data32, 0, batch.data32.length);
}

/** The recorded result of a batch; false when it was recorded for other cases. `result.failure` is set when there is none. */
export function readBatch(from: RecordReader, prepared: Prepared, result: Result): boolean {
  const { batch } = prepared;
  if (from.u32() !== hashOf(prepared)) return false;
  result.failure = from.varint() === 1 ? STRAYED : '';
  if (result.failure !== '') return true;
  result.outcomes.fill(0);
  for (const slot of batch.slots) {
    const o = slot * OUTCOME.WORDS;
    const w = result.outcomes;
    w[o] = from.varint();
    if (w[o] !== 0) {
      w[o + OUTCOME.vector] = from.varint();
      w[o + OUTCOME.error] = from.varint();
      w[o + OUTCOME.ripLo] = from.u32();
      w[o + OUTCOME.ripHi] = from.u32();
      if (w[o + OUTCOME.vector] === 14) {
        w[o + OUTCOME.cr2Lo] = from.u32();
        w[o + OUTCOME.cr2Hi] = from.u32();
      }
    }
    const base = slot * STATE_WORDS;
    from.changes(batch.states32, result.states32, base, base + STATE_WORDS);
  }
  from.changes(batch.data32, result.data32, 0, batch.data32.length);
  return true;
}
