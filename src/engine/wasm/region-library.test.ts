import { describe, expect, it } from 'vitest';
import { EXIT_SYSCALL } from '../engine.ts';
import { CODE_VA, createTestBlock, createTestMachine, pteOffset, setPte } from '../kvm/test-guest.ts';
import { buildInterpreter } from './interpreter.ts';
import { decodeKept, encodeKept, type KeptRegion, rebuild } from './kept-regions.ts';
import { writeLibrary } from './region-library.ts';
import { TestGuest } from './test-guest.ts';
import { createWasmDomain, type TranslatedCode } from './wasm-domain.ts';
import { WasmVcpu } from './wasm-vcpu.ts';

const ECX = 1;
const EAX = 0;
const TURNS = 40_000;

/** 1: add eax, n; dec ecx; jnz 1; syscall. */
const loop = (n: number): number[] => [0x83, 0xc0, n, 0xff, 0xc9, 0x75, 0xf9, 0x0f, 0x05];

function createGuest(translated: TranslatedCode | null): TestGuest<WasmVcpu> {
  const machine = createTestMachine();
  const block = createTestBlock(machine, []);
  const monotonicNs = (): number => performance.now() * 1e6;
  const handle = createWasmDomain(machine, 1, undefined, translated);
  return new TestGuest(machine, block, new WasmVcpu(handle, machine, [block], 0, { monotonicNs }));
}

function turns(guest: TestGuest<WasmVcpu>, code: number[], va = CODE_VA): number {
  guest.setGpr(EAX, 0);
  guest.setGpr(ECX, TURNS);
  expect(guest.run(code, va)).toBe(EXIT_SYSCALL);
  return guest.gpr(EAX);
}

const count = (guest: TestGuest<WasmVcpu>, what: string): number =>
  Number(new RegExp(`, ${what} (\\d+)`).exec(guest.vcpu.statistics().join('\n'))?.[1]);
const taken = (guest: TestGuest<WasmVcpu>): number => count(guest, 'regions of the library');
const translated = (guest: TestGuest<WasmVcpu>): number => count(guest, 'regions');

function compiled(kept: readonly KeptRegion[]): TranslatedCode {
  const { records, kernel, user } = writeLibrary(kept);
  const regions = { records, kernel: new WebAssembly.Module(kernel), user: new WebAssembly.Module(user) };
  return { interpreter: new WebAssembly.Module(buildInterpreter(false)), regions };
}

/** What a guest keeps that has run code. */
function keptOf(code: number[], va = CODE_VA): KeptRegion[] {
  const guest = createGuest(null);
  turns(guest, code, va);
  expect(translated(guest)).toBeGreaterThan(0);
  const kept = decodeKept(guest.vcpu.keptRegions().made);
  expect(kept.length).toBeGreaterThan(0);
  return kept;
}

describe('regions that were translated for another domain', () => {
  it('are used for the same code, at the same offset of whatever page', () => {
    const known = compiled(keptOf(loop(1)));
    for (const va of [CODE_VA, CODE_VA + 0x7000]) {
      const guest = createGuest(known);
      expect(turns(guest, loop(1), va)).toBe(TURNS);
      expect([taken(guest), translated(guest)]).toEqual([1, 0]);
      expect([...guest.vcpu.keptRegions().used]).toContain(1);
    }
  });

  it('are not used for other code, nor at another offset', () => {
    const known = compiled(keptOf(loop(1)));
    for (const [code, va] of [
      [loop(2), CODE_VA],
      [loop(1), CODE_VA + 16],
    ] as const) {
      const guest = createGuest(known);
      expect(turns(guest, code, va)).toBe(code[2] * TURNS);
      expect(taken(guest)).toBe(0);
      expect(translated(guest)).toBeGreaterThan(0);
    }
  });

  it('are left when the code changes, and taken again when it is what it was', () => {
    const guest = createGuest(compiled(keptOf(loop(1))));
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
    const guest = createGuest(compiled(keptOf(loop(1))));
    const other = CODE_VA + 0x3000;
    expect(turns(guest, loop(1))).toBe(TURNS);
    expect(turns(guest, loop(1), other)).toBe(TURNS);
    expect(taken(guest)).toBe(2);
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
    const known = compiled(keptOf(loop(1), at));
    const same = createGuest(known);
    expect(turns(same, loop(1), at)).toBe(TURNS);
    expect(taken(same)).toBeGreaterThan(0);
    const guest = createGuest(known);
    const { machine } = guest;
    machine.u8.set(loop(1), at);
    // Another frame behind, in which the loop ends at once.
    const frame = 900;
    machine.u8.set([0xc9, 0x0f, 0x05], frame * 4096);
    setPte(machine, pteOffset(CODE_VA + 4096), frame, 0x67);
    for (let i = 0; i < 200; i++) {
      guest.setGpr(EAX, 0);
      guest.setGpr(ECX, TURNS);
      expect(guest.runAt(at)).toBe(EXIT_SYSCALL);
      expect(guest.gpr(EAX)).toBe(1);
    }
    expect(taken(guest)).toBe(0);
  });

  it('follow no branch into code that was not kept', () => {
    const [region] = keptOf(loop(1));
    const { pieces, code } = region;
    // The loop's branch leads out of what is known.
    const elsewhere = Uint8Array.from(code);
    elsewhere[elsewhere.lastIndexOf(0xf9)] = 0x20;
    expect(rebuild({ ...region, starts: Int32Array.of(...region.starts, pieces[0] + 7 + 0x20), code: elsewhere })).toBe(
      null,
    );
    expect(rebuild(region)?.kept.pieces).toEqual(pieces);
  });
});

describe('records of regions', () => {
  it('are read as they were written', () => {
    const kept = [...keptOf(loop(1)), ...keptOf(loop(2))];
    expect(decodeKept(encodeKept(kept))).toEqual(kept);
  });

  it('are read up to the first that is damaged', () => {
    const kept = [...keptOf(loop(1)), ...keptOf(loop(2))];
    const whole = encodeKept(kept);
    const sizes = kept.map((region) => encodeKept([region]).length);
    const last = whole.length - (sizes.at(-1) as number);
    for (let i = 0; i < 8; i++)
      for (const value of [0, 1, 0x7fffffff, 0xffffffff]) {
        const words = whole.slice();
        words[last + i] = value;
        const read = decodeKept(words);
        expect(read.length === kept.length || read.length === kept.length - 1).toBe(true);
        expect(read[0]).toEqual(kept[0]);
        // Whatever is in it, nothing is made of it that fails.
        for (const region of read) rebuild(region);
      }
    expect(decodeKept(whole.subarray(0, whole.length - 1)).length).toBe(kept.length - 1);
  });
});
