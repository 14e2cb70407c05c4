import { describe, expect, it } from 'vitest';
import type { MachineMemory } from '../../machine/memory.ts';
import { PTE_A, PTE_D, PTE_P } from '../../machine/page-table.ts';
import { VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import { createTestBlock, createTestMachine, GUEST_ROOT_FRAME, PTE_RW, pteOffset, setPte } from '../kvm/test-guest.ts';
import { GuestMemory, READ, WRITE } from './guest-memory.ts';

/** The last slot of the root has the same 4 MiB once more. */
const KERNEL_HI = 0xffffff80;
const OTHER_FRAME = 700;

interface Setup {
  readonly machine: MachineMemory;
  readonly block: VcpuBlock;
  readonly memory: GuestMemory;
  readonly granules: Int32Array;
  /** Where 8 bytes are, and whether the TLB knew. */
  readonly read: (lo: number, hi?: number) => { at: number; missed: boolean };
  readonly write: (lo: number, hi?: number) => { at: number; missed: boolean };
}

function setUp(): Setup {
  const machine = createTestMachine();
  setPte(machine, GUEST_ROOT_FRAME * 4096 + 511 * 8, 2, PTE_RW);
  const block = createTestBlock(machine, []);
  const granules = new Int32Array(machine.layout.nameableFrames);
  const memory = new GuestMemory(machine, block, { granules, changed: () => {}, crowded: () => {} });
  const access =
    (kind: number) =>
    (lo: number, hi = KERNEL_HI) => {
      const { misses } = memory;
      const at = memory.access(lo, hi, 8 | (kind << 8));
      return { at, missed: memory.misses !== misses };
    };
  return { machine, block, memory, granules, read: access(READ), write: access(WRITE) };
}

const nobody = (): void => {};
const page = (n: number): number => n * 4096;

describe('a flush of the TLB', () => {
  it('keeps what a walk would find again, and forgets the low half', () => {
    const { memory, read, write } = setUp();
    for (let n = 100; n < 200; n++) write(page(n));
    read(page(5), 0);
    for (let i = 0; i < 3; i++) {
      memory.flush(nobody);
      for (let n = 100; n < 200; n++) expect(write(page(n) + 16)).toEqual({ at: page(n) + 16, missed: false });
    }
    expect(read(page(5), 0).missed).toBe(true);
  });

  it('forgets what is mapped otherwise, at each level', () => {
    const changes: ((machine: MachineMemory) => void)[] = [
      (machine) => setPte(machine, pteOffset(page(100)), OTHER_FRAME, PTE_RW),
      (machine) => setPte(machine, 3 * 4096, OTHER_FRAME + 1, PTE_RW),
      (machine) => setPte(machine, 2 * 4096, OTHER_FRAME + 2, PTE_RW),
      (machine) => setPte(machine, GUEST_ROOT_FRAME * 4096 + 511 * 8, OTHER_FRAME + 3, PTE_RW),
    ];
    for (const change of changes) {
      const { machine, memory, read } = setUp();
      // Tables beside those that are used, in which the page is elsewhere.
      setPte(machine, (OTHER_FRAME + 1) * 4096 + 100 * 8, OTHER_FRAME, PTE_RW);
      setPte(machine, (OTHER_FRAME + 2) * 4096, OTHER_FRAME + 1, PTE_RW);
      setPte(machine, (OTHER_FRAME + 3) * 4096, OTHER_FRAME + 2, PTE_RW);
      expect(read(page(100)).at).toBe(page(100));
      change(machine);
      expect(read(page(100))).toEqual({ at: page(100), missed: false });
      memory.flush(nobody);
      expect(read(page(100))).toEqual({ at: page(OTHER_FRAME), missed: true });
    }
  });

  it('keeps what another root maps alike, and nothing else', () => {
    const { machine, block, memory, read } = setUp();
    setPte(machine, 10 * 4096 + 511 * 8, 2, PTE_RW);
    read(page(100));
    block.u32[VCPU.kernelRoot >> 2] = 10;
    memory.flush(nobody);
    expect(read(page(100)).missed).toBe(false);
    block.u32[VCPU.kernelRoot >> 2] = 11;
    memory.flush(nobody);
    expect(read(page(100)).at).toBe(-1);
  });

  it('sees entries that are gone, and writes that are forbidden now', () => {
    const { machine, memory, read, write } = setUp();
    write(page(100));
    write(page(101));
    machine.u32[pteOffset(page(100)) / 4] &= ~PTE_P;
    setPte(machine, pteOffset(page(101)), 101, PTE_RW & ~2);
    memory.flush(nobody);
    expect(read(page(100)).at).toBe(-1);
    expect(write(page(101)).at).toBe(-1);
    expect(read(page(101)).at).toBe(page(101));
  });

  it('sets accessed and dirty bits again that the guest has cleared', () => {
    const { machine, memory, read, write } = setUp();
    const entry = pteOffset(page(100)) / 4;
    write(page(100));
    machine.u32[entry] &= ~PTE_D;
    memory.flush(nobody);
    write(page(100));
    expect(machine.u32[entry] & PTE_D).not.toBe(0);
    machine.u32[entry] &= ~(PTE_A | PTE_D);
    memory.flush(nobody);
    read(page(100));
    expect(machine.u32[entry] & (PTE_A | PTE_D)).toBe(PTE_A);
  });

  it('knows of an entry that was filled twice how it was last', () => {
    const { machine, memory, read, write } = setUp();
    const entry = pteOffset(page(100)) / 4;
    machine.u32[entry] &= ~(PTE_A | PTE_D);
    read(page(100));
    write(page(100));
    memory.flush(nobody);
    expect(write(page(100)).missed).toBe(false);
  });

  it('makes stores be seen into frames that have got code, or whose marks were taken', () => {
    const { machine, memory, granules, read, write } = setUp();
    for (const n of [100, 101, 102]) write(page(n));
    granules[100] = 1;
    machine.dirty.tracks = true;
    machine.dirty.take(() => {});
    machine.dirty.mark(102);
    memory.flush(nobody);
    expect([100, 101, 102].map((n) => read(page(n)).missed)).toEqual([false, false, false]);
    expect([100, 101, 102].map((n) => write(page(n) + 512).missed)).toEqual([true, true, false]);
    expect(machine.dirty.isKnown(101)).toBe(true);
  });

  it('forgets all behind more fills than are listed', () => {
    const { memory, read } = setUp();
    for (let i = 0; i < 3; i++) for (let n = 8; n < 1024; n++) read(page(n));
    for (let n = 8; n < 24; n++) read(page(n), 0);
    for (let n = 8; n < 24; n++) read(page(n));
    memory.flush(nobody);
    expect(read(page(300)).missed).toBe(true);
  });
});
