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
  readonly changes: readonly (readonly [frame: number, offset: number, size: number])[];
  /** Where 8 bytes are, and whether the TLB knew. */
  readonly read: (lo: number, hi?: number) => { at: number; missed: boolean };
  readonly write: (lo: number, hi?: number) => { at: number; missed: boolean };
}

function setUp(): Setup {
  const machine = createTestMachine();
  setPte(machine, GUEST_ROOT_FRAME * 4096 + 511 * 8, 2, PTE_RW);
  const block = createTestBlock(machine, []);
  const granules = new Int32Array(machine.layout.nameableFrames);
  const changes: [frame: number, offset: number, size: number][] = [];
  const memory = new GuestMemory(machine, block, {
    granules,
    changed: (...change) => changes.push(change),
    crowded: () => {},
    look: () => {},
  });
  const access =
    (kind: number) =>
    (lo: number, hi = KERNEL_HI) => {
      const { misses } = memory;
      const at = memory.access(lo, hi, 8 | (kind << 8));
      return { at, missed: memory.misses !== misses };
    };
  return { machine, block, memory, granules, changes, read: access(READ), write: access(WRITE) };
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
    const { machine, memory, read } = setUp();
    setPte(machine, GUEST_ROOT_FRAME * 4096 + 510 * 8, 2, PTE_RW);
    // Each drives the one before it out.
    for (let i = 0; i < 600; i++)
      for (const hi of [KERNEL_HI, KERNEL_HI - 0x80]) expect(read(page(40), hi).missed).toBe(true);
    read(page(300));
    memory.flush(nobody);
    expect(read(page(300)).missed).toBe(true);
  });
});

describe('a miss in the half of the kernel', () => {
  /** Pages of a group that the CPU has not used, or not stored to. */
  const clear = ({ machine }: Setup, n: number, bits: number): void => {
    machine.u32[pteOffset(page(n)) / 4] &= ~bits;
  };

  it('fills the pages behind it that were used before and share its line of table entries', () => {
    const setup = setUp();
    const { read, write } = setup;
    clear(setup, 98, PTE_D);
    clear(setup, 102, PTE_A | PTE_D);
    expect(read(page(97)).missed).toBe(true);
    for (const n of [98, 99, 100, 101, 103]) expect(read(page(n) + 8)).toEqual({ at: page(n) + 8, missed: false });
    expect([99, 100, 101, 103].map((n) => write(page(n)).missed)).toEqual([false, false, false, false]);
    // Not dirty yet; not used yet; before it; the next line.
    expect(write(page(98)).missed).toBe(true);
    expect([102, 96, 104].map((n) => read(page(n)).missed)).toEqual([true, true, true]);
  });

  it('fills no other mode and half', () => {
    const setup = setUp();
    setup.read(page(100), 0);
    expect(setup.read(page(101), 0).missed).toBe(true);
    setup.block.u32[VCPU.userMode >> 2] = 1;
    setup.read(page(100));
    expect(setup.read(page(101)).missed).toBe(true);
  });

  it('lets no store pass to code, to a page without its mark, or by a table that forbids it', () => {
    const code = setUp();
    code.granules[101] = 1;
    code.read(page(100));
    expect(code.write(page(101) + 512).missed).toBe(true);
    expect(code.write(page(102)).missed).toBe(false);

    const marks = setUp();
    marks.machine.dirty.tracks = true;
    marks.machine.dirty.take(() => {});
    marks.machine.dirty.mark(102);
    marks.write(page(100));
    expect([101, 102].map((n) => marks.write(page(n)).missed)).toEqual([true, false]);

    const table = setUp();
    setPte(table.machine, 2 * 4096, 3, PTE_RW & ~2);
    table.read(page(100));
    expect(table.read(page(101)).missed).toBe(false);
    expect(table.write(page(101)).at).toBe(-1);
  });

  it('drives out nothing of another part of the address space', () => {
    const setup = setUp();
    setPte(setup.machine, GUEST_ROOT_FRAME * 4096 + 510 * 8, 2, PTE_RW);
    setup.read(page(101), 0xffffff00);
    setup.read(page(100));
    expect(setup.read(page(101), 0xffffff00).missed).toBe(false);
  });

  it('is forgotten page by page where a flush finds a change', () => {
    const setup = setUp();
    const { machine, memory, read, write } = setup;
    read(page(96));
    setPte(machine, pteOffset(page(98)), OTHER_FRAME, PTE_RW);
    setPte(machine, pteOffset(page(99)), 99, (PTE_RW | PTE_A | PTE_D) & ~2);
    memory.flush(nobody);
    expect(read(page(98))).toEqual({ at: page(OTHER_FRAME), missed: true });
    expect(write(page(99)).at).toBe(-1);
    for (const n of [96, 97, 100, 101, 102, 103]) expect(write(page(n))).toEqual({ at: page(n), missed: false });
  });

  it('is forgotten by INVLPG of each page', () => {
    const setup = setUp();
    setup.read(page(96));
    setPte(setup.machine, pteOffset(page(98)), OTHER_FRAME, PTE_RW);
    setup.memory.flushPage(page(98), KERNEL_HI);
    expect(setup.read(page(98)).at).toBe(page(OTHER_FRAME));
    expect(setup.read(page(99)).missed).toBe(false);
  });
});

describe('stores beside the code of a page', () => {
  const storeTo = ({ write, memory }: Setup, va: number): void => {
    const { at } = write(va);
    if (at >= memory.scratch) memory.commit(at, 8);
  };

  it('make it data when there have been many, and leave its code alone until then', () => {
    const setup = setUp();
    const { granules, changes, write, memory } = setup;
    granules[100] = 1;
    for (let i = 0; i < 15; i++) storeTo(setup, page(100) + 512);
    expect(changes).toEqual([]);
    const { at } = write(page(100) + 512);
    expect(at).toBeGreaterThanOrEqual(memory.scratch);
    setup.machine.u32[at / 4] = 0x12345678;
    memory.commit(at, 8);
    expect(setup.machine.u32[(page(100) + 512) / 4]).toBe(0x12345678);
    expect(changes).toEqual([[100, 0, 4096]]);
    granules[100] = 0;
    write(page(100));
    expect(write(page(100)).missed).toBe(false);
  });

  it('need to be twice as many each time that it has code again', () => {
    const setup = setUp();
    const needed: number[] = [];
    for (let round = 0; round < 4; round++) {
      setup.granules[100] = 1;
      const before = setup.changes.length;
      let count = 0;
      for (; setup.changes.length === before; count++) storeTo(setup, page(100) + 512);
      needed.push(count);
    }
    expect(needed).toEqual([16, 32, 64, 128]);
  });
});
