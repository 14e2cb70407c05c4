/**
 * A tiny guest for tests and for the self-test: 4 MiB of its memory mapped at 0 by 4 KiB pages, user read-write-execute.
 *
 *   frame 1  root   frame 2  L3   frame 3  L2   frames 4, 5  L1 of 0-2 MiB and 2-4 MiB   frame 6  GDT
 */

import type { MachineMemory } from '../../machine/memory.ts';
import { createMachineMemory, MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { createVcpuBlock, NO_ROOT, VCPU } from '../../machine/vcpu-block.ts';
import type { Engine } from '../engine.ts';
import { FLAT_CS64, FLAT_SS } from './hypervisor-area.ts';

export const GUEST_ROOT_FRAME = 1;
export const GUEST_L1_FRAME = 4;
export const GUEST_GDT_FRAME = 6;
export const GUEST_PAGES = 1024;
export const CODE_VA = 0x10000;
export const STACK_VA = 0x80000;

/** Present, writable, user, accessed, dirty. */
export const PTE_RW = 0x67;

export function setPte(machine: MachineMemory, offset: number, frame: number, flags: number): void {
  const mfn = frame + MFN_BASE;
  machine.u32[offset / 4 + 1] = mfn >>> 20;
  machine.u32[offset / 4] = ((mfn << 12) | flags) >>> 0;
}

/** Offset in memory 0 of the L1 entry of a VA below 4 MiB. */
export function pteOffset(va: number): number {
  return GUEST_L1_FRAME * PAGE_SIZE + (va / PAGE_SIZE) * 8;
}

export function createTestMachine(pages: number = GUEST_PAGES): MachineMemory {
  const machine = createMachineMemory(pages, pages);
  setPte(machine, GUEST_ROOT_FRAME * PAGE_SIZE, 2, PTE_RW);
  setPte(machine, 2 * PAGE_SIZE, 3, PTE_RW);
  setPte(machine, 3 * PAGE_SIZE, GUEST_L1_FRAME, PTE_RW);
  setPte(machine, 3 * PAGE_SIZE + 8, GUEST_L1_FRAME + 1, PTE_RW);
  for (let page = 0; page < 1024; page++) setPte(machine, pteOffset(page * PAGE_SIZE), page, PTE_RW);
  return machine;
}

/** A block about to run `code` (put at `va`) in kernel mode. */
export function createTestBlock(machine: MachineMemory, code: readonly number[], vcpuId = 0, va = CODE_VA): VcpuBlock {
  const block = createVcpuBlock(vcpuId);
  machine.u8.set(code, va);
  block.u32[VCPU.rip / 4] = va;
  block.u32[VCPU.rflags / 4] = 0x202;
  block.u32[VCPU.gpr / 4 + 8] = STACK_VA + vcpuId * 0x10000;
  block.u32[VCPU.cs / 4] = FLAT_CS64;
  block.u32[VCPU.ss / 4] = FLAT_SS;
  block.u32[VCPU.kernelRoot / 4] = GUEST_ROOT_FRAME;
  block.u32[VCPU.userRoot / 4] = NO_ROOT;
  return block;
}

export function prepareTestRoot(engine: Engine): void {
  engine.prepareRoot(GUEST_ROOT_FRAME * PAGE_SIZE);
}
