import { describe, expect, it } from 'vitest';
import { createMachineMemory, type MachineMemory, PAGE_SIZE } from '../../machine/memory.ts';
import { randomSource } from '../../xenstore/test-client.ts';
import { decodeDeltas, SentPages } from './page-deltas.ts';
import { PART_DELTAS, PART_PAGES, type Part } from './save-file.ts';
import { decodePages } from './saved-memory.ts';

const PAGES = 64;
const FRAMES = Array.from({ length: PAGES }, (_, frame) => frame);

function take({ kind, bytes }: Part, machine: MachineMemory): void {
  if (kind === PART_DELTAS) decodeDeltas(bytes, machine);
  else decodePages(bytes, machine, -1);
}

const ram = ({ u8 }: MachineMemory): Buffer => Buffer.from(u8.slice(0, PAGES * PAGE_SIZE));
const kinds = (parts: readonly Part[]): number[] => parts.map(({ kind }) => kind);
const bytesOf = (...words: number[]): Uint8Array => new Uint8Array(Uint32Array.from(words).buffer);

describe('pages that are sent again', () => {
  it('come as they are, whatever was stored in between', () => {
    const [from, to] = [createMachineMemory(PAGES, PAGES), createMachineMemory(PAGES, PAGES)];
    const random = randomSource(7);
    const sent = new SentPages(from);
    for (let round = 0; round < 40; round++) {
      // None, a few, or all words of a page, at its ends as well.
      for (const frame of FRAMES) {
        const count = [0, 1, 5, 300, 1024][random(5)];
        for (let i = 0; i < count; i++) from.u32[frame * 1024 + [0, 1023, random(1024)][random(3)]] = random(2 ** 32);
      }
      for (const part of sent.encode(FRAMES)) take(part, to);
      expect(ram(to).equals(ram(from))).toBe(true);
    }
  });

  it('are some words when few have changed, and whole when there was no room to keep them', () => {
    const from = createMachineMemory(PAGES, PAGES);
    const sent = new SentPages(from, 2 * PAGE_SIZE);
    expect(kinds([...sent.encode([0, 1, 2])])).toEqual([PART_PAGES]);
    from.u32[1024 + 5] = 9;
    from.u32[2048 + 5] = 9;
    const parts = [...sent.encode([1, 2])];
    expect(kinds(parts)).toEqual([PART_DELTAS, PART_PAGES]);
    expect(parts[0].bytes).toEqual(bytesOf(1, 1, 1, 5 | (1 << 16), 9));
    // More than a quarter of it.
    from.u32.fill(77, 1024, 1024 + 257);
    expect(kinds([...sent.encode([1])])).toEqual([PART_PAGES]);
  });

  it('are refused where a part says what cannot be', () => {
    const machine = createMachineMemory(PAGES, PAGES);
    const before = ram(machine);
    const tooFar = machine.layout.nameableFrames;
    for (const bytes of [
      Uint8Array.of(1, 0, 0),
      bytesOf(),
      bytesOf(1),
      bytesOf(0xffffffff, 0, 0),
      bytesOf(1, tooFar, 1, 1 << 16, 5),
      bytesOf(1, 0xffffffff, 1, 1 << 16, 5),
      bytesOf(1, 0, 1, 1023 | (2 << 16), 5, 5),
      bytesOf(1, 0, 1, 4 | (2 << 16), 5),
      bytesOf(1, 0, 0xffffffff),
      bytesOf(1, 0, 1, 4),
      bytesOf(0, 5),
    ])
      expect(() => decodeDeltas(bytes, machine)).toThrow('damaged: ');
    expect(ram(machine).equals(before)).toBe(true);
    expect(() => decodeDeltas(bytesOf(2, 3, 0, 3, 0), machine)).toThrow('frame 3 behind frame 3');
    expect(() => decodeDeltas(bytesOf(1, 0, 2, 4 | (2 << 16), 1, 2, 5 | (1 << 16), 3), machine)).toThrow(
      '1 words at 5',
    );
  });
});
