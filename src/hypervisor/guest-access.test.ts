import { expect, test } from 'vitest';
import { MFN_BASE } from '../machine/memory.ts';
import { PTE_A, PTE_P, PTE_PSE, PTE_RW, PTE_US } from '../machine/page-table.ts';
import { NO_ROOT, VCPU } from '../machine/vcpu-block.ts';
import { pteMfn } from './guest-access.ts';
import { HOLE_HI, KERNEL_VA, READ_ONLY_VA, TestGuest, UNMAPPED_VA, VA_HI } from './testing.ts';

const RO = PTE_P | PTE_US | PTE_A;
/** Two pages that follow each other in the address space and not in memory. */
const SPLIT_VA = 0xc0000000;

function split(secondFlags = PTE_P | PTE_RW | PTE_US): TestGuest {
  const guest = new TestGuest();
  guest.map(SPLIT_VA, VA_HI, MFN_BASE + 20);
  guest.map(SPLIT_VA + 4096, VA_HI, MFN_BASE + 10, secondFlags);
  return guest;
}

test('`pteMfn()` takes bits 12-51 and no others', () => {
  expect(pteMfn(0x67, 0)).toBe(0);
  expect(pteMfn(0xfffff067, 0x000fffff)).toBe(2 ** 40 - 1);
  expect(pteMfn(0x00001067, 0xfff00001)).toBe(0x100001);
});

test('copies cross into a page that lies elsewhere', () => {
  const guest = split();
  const access = guest.vcpu.access;
  const bytes = Uint8Array.from({ length: 200 }, (_, i) => i);
  expect(access.copyOut(SPLIT_VA + 4096 - 100, VA_HI, bytes, 0, 200)).toBe(true);
  expect(guest.machine.u8[21 * 4096 - 1]).toBe(99);
  expect(guest.machine.u8[10 * 4096]).toBe(100);
  expect(guest.machine.u8[21 * 4096]).toBe(0);
  for (const [start, size] of [
    [0, 200],
    [90, 20],
    [99, 2],
    [0, 100],
    [100, 100],
  ]) {
    access.bytes.fill(0xee);
    expect(access.copyIn(SPLIT_VA + 4096 - 100 + start, VA_HI, size)).toBe(true);
    expect([...access.bytes.slice(0, size)]).toEqual([...bytes.slice(start, start + size)]);
    expect(access.bytes[size]).toBe(0xee);
  }
});

test('words and doublewords over a page boundary, aligned or not', () => {
  for (const back of [8, 7, 5, 4, 3, 1]) {
    const guest = split();
    const access = guest.vcpu.access;
    expect(access.writeU64(SPLIT_VA + 4096 - back, VA_HI, 0x44332211, 0x88776655)).toBe(true);
    expect(access.readU64(SPLIT_VA + 4096 - back, VA_HI)).toBe(true);
    expect([access.lo, access.hi]).toEqual([0x44332211, 0x88776655]);
    if (back < 8) expect(guest.machine.u8[10 * 4096]).toBe(0x11 * (back + 1));
    expect(access.writeU32(SPLIT_VA + 4096 - back, VA_HI, 0xddccbbaa)).toBe(true);
    expect(access.readU32(SPLIT_VA + 4096 - back, VA_HI)).toBe(true);
    expect([access.lo, access.hi]).toEqual([0xddccbbaa, 0]);
  }
});

test('a fault at the second page is a fault of the copy', () => {
  const guest = split(0);
  const access = guest.vcpu.access;
  expect(access.copyIn(SPLIT_VA + 4090, VA_HI, 7)).toBe(false);
  expect(access.copyIn(SPLIT_VA + 4090, VA_HI, 6)).toBe(true);
  expect(access.readU64(SPLIT_VA + 4092, VA_HI)).toBe(false);
  expect(access.readU32(SPLIT_VA + 4093, VA_HI)).toBe(false);
  expect(access.writeU64(SPLIT_VA + 4092, VA_HI, 1, 2)).toBe(false);
  expect(access.writeU32(SPLIT_VA + 4094, VA_HI, 1)).toBe(false);
});

test('a write fault at a read-only second page; reads go on', () => {
  const guest = split(RO);
  const access = guest.vcpu.access;
  expect(access.copyIn(SPLIT_VA + 4090, VA_HI, 20)).toBe(true);
  expect(access.copyOut(SPLIT_VA + 4090, VA_HI, new Uint8Array(20), 0, 20)).toBe(false);
  expect(access.writeU64(READ_ONLY_VA, VA_HI, 1, 2)).toBe(false);
  expect(access.writeU32(READ_ONLY_VA, VA_HI, 1)).toBe(false);
  expect(access.readU32(READ_ONLY_VA, VA_HI)).toBe(true);
});

test('a read-only entry above makes everything below read-only', () => {
  const guest = split();
  const access = guest.vcpu.access;
  for (const level of [2, 3, 4]) {
    const entry = access.entryOffset(guest.root, SPLIT_VA, VA_HI, level);
    guest.machine.u32[entry >> 2] &= ~PTE_RW;
    expect(access.translate(guest.root, SPLIT_VA, VA_HI, true)).toBe(-1);
    expect(access.translate(guest.root, SPLIT_VA, VA_HI, false)).toBe(20 * 4096);
    expect(access.writable).toBe(false);
    guest.machine.u32[entry >> 2] |= PTE_RW;
    guest.machine.u32[(entry >> 2) + 1] |= 0x80000000;
    expect(access.translate(guest.root, SPLIT_VA, VA_HI, true)).toBe(20 * 4096);
    expect([access.writable, access.executable]).toEqual([true, false]);
    guest.machine.u32[(entry >> 2) + 1] &= 0x7fffffff;
  }
});

test("addresses that are not canonical, and Xen's hole, map nothing", () => {
  const guest = new TestGuest();
  const access = guest.vcpu.access;
  // The tables have an entry for each of these.
  for (let slot = 0; slot < 512; slot++) guest.machine.u32.set([(guest.root + MFN_BASE) << 12, 1], guest.root * 1024);
  for (const hi of [0x00008000, 0x0000ffff, 0x00010000, 0x7fffffff, 0xffff7fff, 0xfffeffff, 0x80000000]) {
    expect(access.translate(guest.root, KERNEL_VA, hi, false)).toBe(-1);
    expect(access.copyIn(KERNEL_VA, hi, 1)).toBe(false);
    expect(access.copyOut(KERNEL_VA, hi, access.bytes, 0, 1)).toBe(false);
  }
  for (const hi of [HOLE_HI, 0xffff87ff]) {
    expect(access.copyIn(0, hi, 1)).toBe(false);
    for (const level of [1, 2, 3, 4]) expect(access.entryOffset(guest.root, 0, hi, level)).toBe(-1);
  }
});

test('a copy goes from the last canonical user page nowhere, and from the last page of all to the first', () => {
  const guest = new TestGuest();
  const access = guest.vcpu.access;
  guest.map(0xfffff000, 0x00007fff, MFN_BASE + 5);
  expect(access.copyIn(0xfffffff0, 0x00007fff, 16)).toBe(true);
  expect(access.copyIn(0xfffffff0, 0x00007fff, 17)).toBe(false);
  guest.map(0xfffff000, VA_HI, MFN_BASE + 5);
  expect(access.copyIn(0xfffffff0, VA_HI, 17)).toBe(false);
});

test('large pages and tables outside the domain end the walk', () => {
  for (const level of [2, 3, 4]) {
    const guest = new TestGuest();
    const access = guest.vcpu.access;
    const at = access.entryOffset(guest.root, KERNEL_VA, VA_HI, level) >> 2;
    const [lo, hi] = guest.machine.u32.slice(at, at + 2);
    guest.machine.u32[at] = lo | PTE_PSE;
    expect(access.translate(guest.root, KERNEL_VA, VA_HI, false)).toBe(-1);
    guest.machine.u32[at] = lo;
    for (const bad of [0, hi + 1, 0xfffff]) {
      guest.machine.u32[at + 1] = bad;
      expect(access.translate(guest.root, KERNEL_VA, VA_HI, false)).toBe(-1);
    }
    guest.machine.u32[at + 1] = hi;
    guest.machine.u32[at] = lo & ~PTE_P;
    expect(access.translate(guest.root, KERNEL_VA, VA_HI, false)).toBe(-1);
  }
});

test('a last entry that names no frame of the domain, or a neighbour of its last one, maps nothing', () => {
  const guest = new TestGuest();
  const access = guest.vcpu.access;
  const { nameableFrames } = guest.machine.layout;
  for (const mfn of [0, MFN_BASE - 1, MFN_BASE + nameableFrames, 2 ** 40 - 1]) {
    guest.map(SPLIT_VA, VA_HI, mfn);
    expect(access.translate(guest.root, SPLIT_VA, VA_HI, false)).toBe(-1);
    expect(access.leafOffset).toBeGreaterThan(0);
  }
  guest.map(SPLIT_VA, VA_HI, MFN_BASE + nameableFrames - 1);
  expect(access.translate(guest.root, SPLIT_VA + 0xfff, VA_HI, true)).toBe(nameableFrames * 4096 - 1);
});

test('hypercalls see the kernel root in user mode too; the U bit does not count', () => {
  const guest = new TestGuest();
  const { access, block } = guest.vcpu;
  block.u32[VCPU.userMode >> 2] = 1;
  expect(access.kernelRoot()).toBe(guest.root);
  expect(access.currentRoot()).toBe(NO_ROOT);
  expect(access.translate(access.currentRoot(), KERNEL_VA, VA_HI, false)).toBe(-1);
  guest.map(SPLIT_VA, VA_HI, MFN_BASE + 5, PTE_P | PTE_RW);
  expect(access.copyIn(SPLIT_VA, VA_HI, 8)).toBe(true);
});

test('one piece is at most 8192 bytes', () => {
  const guest = new TestGuest();
  expect(guest.vcpu.access.copyIn(KERNEL_VA + 0x800, VA_HI, 8192)).toBe(true);
  expect(guest.vcpu.access.copyIn(KERNEL_VA, VA_HI, 8193)).toBe(false);
  expect(guest.vcpu.access.copyIn(UNMAPPED_VA, VA_HI, 0)).toBe(true);
});
