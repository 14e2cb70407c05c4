import { describe, expect, it } from 'vitest';
import { EXIT_SYSCALL } from '../engine.ts';
import { CODE_VA, createTestBlock, createTestMachine, pteOffset, setPte } from '../kvm/test-guest.ts';
import { HOT } from './interpreter.ts';
import type { RegionStore } from './region-library.ts';
import { storedRegions } from './region-library.ts';
import { TestGuest } from './test-guest.ts';
import { createWasmDomain } from './wasm-domain.ts';
import { WasmVcpu } from './wasm-vcpu.ts';

const ECX = 1;
const EAX = 0;
const TURNS = 40_000;

/** 1: add eax, n; dec ecx; jnz 1; syscall. */
const loop = (n: number): number[] => [0x83, 0xc0, n, 0xff, 0xc9, 0x75, 0xf9, 0x0f, 0x05];

class Chunks implements RegionStore {
  readonly kept: Uint8Array[] = [];
  readonly #bytes: Uint8Array;

  constructor(before: Chunks | null = null) {
    this.#bytes = Buffer.concat(before?.kept ?? []);
  }

  get sizeBytes(): number {
    return this.#bytes.length;
  }

  read(at: number, into: Uint8Array): boolean {
    into.set(this.#bytes.subarray(at, at + into.length));
    return true;
  }

  keep(chunk: Uint8Array): void {
    this.kept.push(chunk);
  }
}

function createGuest(regions: Chunks, entriesToTranslate = 16_000): TestGuest<WasmVcpu> {
  const machine = createTestMachine();
  const block = createTestBlock(machine, []);
  const monotonicNs = (): number => performance.now() * 1e6;
  const host = { monotonicNs, regions, entriesToTranslate };
  return new TestGuest(machine, block, new WasmVcpu(createWasmDomain(machine, 1), machine, [block], 0, host));
}

function turns(guest: TestGuest<WasmVcpu>, code: number[], va = CODE_VA): number {
  guest.setGpr(EAX, 0);
  guest.setGpr(ECX, TURNS);
  expect(guest.run(code, va)).toBe(EXIT_SYSCALL);
  return guest.gpr(EAX);
}

const count = (guest: TestGuest<WasmVcpu>, what: string): number =>
  Number(new RegExp(`, ${what} (\\d+)`).exec(guest.vcpu.statistics().join('\n'))?.[1]);
const taken = (guest: TestGuest<WasmVcpu>): number => count(guest, 'regions kept from before');

/** What a guest has made that has run the loop with `add eax, 1`. */
function filled(): Chunks {
  const chunks = new Chunks();
  const guest = createGuest(chunks, HOT);
  expect(turns(guest, loop(1))).toBe(TURNS);
  guest.vcpu.close();
  expect([...storedRegions(new Chunks(chunks))].length).toBeGreaterThan(0);
  return chunks;
}

describe('regions that another domain has made', () => {
  it('are used for the same code, at the same offset of whatever page', () => {
    const chunks = filled();
    for (const va of [CODE_VA, CODE_VA + 0x7000]) {
      const guest = createGuest(new Chunks(chunks));
      expect(turns(guest, loop(1), va)).toBe(TURNS);
      expect(taken(guest)).toBeGreaterThan(0);
    }
  });

  it('are not used for other code, nor at another offset', () => {
    const chunks = filled();
    for (const [code, va] of [
      [loop(2), CODE_VA],
      [loop(1), CODE_VA + 16],
    ] as const) {
      const guest = createGuest(new Chunks(chunks));
      expect(turns(guest, code, va)).toBe(code[2] * TURNS);
      expect(taken(guest)).toBe(0);
    }
  });

  it('are left when the code changes, and taken again when it is what it was', () => {
    const guest = createGuest(new Chunks(filled()));
    const patch = (n: number): void => {
      guest.machine.u8[CODE_VA + 2] = n;
      guest.vcpu.memoryStored(CODE_VA + 2, 1);
      guest.setGpr(EAX, 0);
      guest.setGpr(ECX, TURNS);
      expect(guest.runAt(CODE_VA)).toBe(EXIT_SYSCALL);
      expect(guest.gpr(EAX)).toBe(n * TURNS);
    };
    turns(guest, loop(1));
    const before = taken(guest);
    patch(3);
    expect(taken(guest)).toBe(before);
    patch(1);
    expect(taken(guest)).toBeGreaterThan(before);
  });

  it('serve several frames of the same code, of which one may go', () => {
    const guest = createGuest(new Chunks(filled()));
    const other = CODE_VA + 0x3000;
    expect(turns(guest, loop(1))).toBe(TURNS);
    expect(turns(guest, loop(1), other)).toBe(TURNS);
    guest.machine.u8[CODE_VA + 2] = 5;
    guest.vcpu.memoryStored(CODE_VA + 2, 1);
    for (const [va, n] of [
      [other, 1],
      [CODE_VA, 5],
    ]) {
      guest.setGpr(EAX, 0);
      guest.setGpr(ECX, TURNS);
      guest.runAt(va);
      expect(guest.gpr(EAX)).toBe(n * TURNS);
    }
  });

  it('are compared with the pages that are mapped behind the entry’s', () => {
    // The loop begins in one page and ends in the next.
    const at = CODE_VA + 4096 - 4;
    const chunks = new Chunks();
    const first = createGuest(chunks, HOT);
    turns(first, loop(1), at);
    first.vcpu.close();
    const same = createGuest(new Chunks(chunks));
    expect(turns(same, loop(1), at)).toBe(TURNS);
    expect(taken(same)).toBeGreaterThan(0);
    const guest = createGuest(new Chunks(chunks));
    const { machine } = guest;
    machine.u8.set(loop(1), at);
    // Another frame behind, in which the loop goes on with `inc eax; dec ecx` less: syscall at once.
    const frame = 900;
    machine.u8.set([0xc9, 0x0f, 0x05], frame * 4096);
    setPte(machine, pteOffset(CODE_VA + 4096), frame, 0x67);
    guest.setGpr(EAX, 0);
    guest.setGpr(ECX, TURNS);
    expect(guest.runAt(at)).toBe(EXIT_SYSCALL);
    expect(guest.gpr(EAX)).toBe(1);
  });

  it('are not used when a chunk cannot be read', () => {
    const chunks = new Chunks(filled());
    const read = chunks.read.bind(chunks);
    chunks.read = (from, into) => into.length < 256 && read(from, into);
    const guest = createGuest(chunks);
    expect(turns(guest, loop(1))).toBe(TURNS);
    expect(taken(guest)).toBe(0);
  });
});
