import { expect, test } from 'vitest';
import { EINVAL } from '../abi/errno.ts';
import { MFN_BASE } from '../machine/memory.ts';
import { PTE_A, PTE_D, PTE_G, PTE_P, PTE_PSE, PTE_RW, PTE_US } from '../machine/page-table.ts';
import { FLAG_FLUSH_TLB, NO_ROOT, VCPU } from '../machine/vcpu-block.ts';
import { FRAME_PINNED } from './domain.ts';
import {
  adoptPageTables,
  allVcpus,
  flushVcpus,
  markTable,
  newBasePointer,
  newUserBasePointer,
  pinTable,
  ramFrame,
  storePte,
  unpinTable,
} from './mmu.ts';
import { KERNEL_VA, TestGuest, VA_HI } from './testing.ts';

/** Frames of RAM for tables, and for data. */
const [L4, L3, L2, L1] = [10, 11, 12, 13];
const DATA = 20;

const lowWord = (frame: number, flags: number): number => (((frame + MFN_BASE) << 12) | flags) >>> 0;
const HI = MFN_BASE / 0x100000;
const entry = (guest: TestGuest, frame: number, slot: number): number[] => [
  ...guest.machine.u32.slice(frame * 1024 + slot * 2, frame * 1024 + slot * 2 + 2),
];
function put(guest: TestGuest, frame: number, slot: number, lo: number, hi: number): void {
  guest.machine.u32.set([lo, hi], frame * 1024 + slot * 2);
}
const link = (guest: TestGuest, frame: number, slot: number, to: number, flags = PTE_P | PTE_RW | PTE_A): void =>
  put(guest, frame, slot, lowWord(to, flags), HI);
const type = (guest: TestGuest, frame: number): number => guest.domain.frameTypes[frame];
const at = (frame: number, slot: number): number => frame * 4096 + slot * 8;
const store = (guest: TestGuest, frame: number, slot: number, lo: number, hi = HI, keepAd = false): number =>
  storePte(guest.vcpu, at(frame, slot), lo, hi, keepAd);

/** A tree of four tables: L4[0] -> L3[0] -> L2[0] -> L1[0] -> data. */
function tree(): TestGuest {
  const guest = new TestGuest();
  link(guest, L4, 0, L3);
  link(guest, L3, 0, L2);
  link(guest, L2, 0, L1);
  link(guest, L1, 0, DATA, PTE_P | PTE_A);
  return guest;
}

function pinned(): TestGuest {
  const guest = tree();
  expect(pinTable(guest.vcpu, L4 + MFN_BASE, 4)).toBe(0);
  return guest;
}

test('pin marks every table below with its level, and gives all entries the U bit', () => {
  const guest = pinned();
  expect([L4, L3, L2, L1, DATA].map((frame) => type(guest, frame))).toEqual([4 | FRAME_PINNED, 3, 2, 1, 0]);
  for (const table of [L4, L3, L2, L1]) expect(entry(guest, table, 0)[0] & PTE_US).toBe(PTE_US);
  expect(guest.engine.rootsPrepared).toEqual([L4 * 4096]);
});

test('pin: -EINVAL for a pinned frame, for no RAM; unpin: -EINVAL for one that is not pinned', () => {
  const guest = pinned();
  expect(pinTable(guest.vcpu, L4 + MFN_BASE, 4)).toBe(-EINVAL);
  expect(pinTable(guest.vcpu, L4 + MFN_BASE, 1)).toBe(-EINVAL);
  const sharedInfo = MFN_BASE + 64;
  for (const mfn of [0, L4, MFN_BASE - 1, sharedInfo, sharedInfo + 1, 2 ** 40, 2 ** 63]) {
    expect(ramFrame(guest.vcpu, mfn)).toBe(-1);
    expect(pinTable(guest.vcpu, mfn, 1)).toBe(-EINVAL);
    expect(unpinTable(guest.vcpu, mfn)).toBe(-EINVAL);
  }
  expect(unpinTable(guest.vcpu, L1 + MFN_BASE)).toBe(-EINVAL);
  expect(unpinTable(guest.vcpu, L4 + MFN_BASE)).toBe(0);
  expect(unpinTable(guest.vcpu, L4 + MFN_BASE)).toBe(-EINVAL);
  expect(type(guest, L4)).toBe(4);
  // A table that is in use may be pinned as what it is.
  expect(pinTable(guest.vcpu, L1 + MFN_BASE, 1)).toBe(0);
});

test('pin: -EINVAL for large pages, frames outside the domain and tables that are no RAM', () => {
  const bad: [table: number, lo: number, hi: number][] = [
    [L4, lowWord(L3, PTE_P | PTE_PSE), HI],
    [L3, lowWord(L2, PTE_P | PTE_PSE), HI],
    [L2, lowWord(L1, PTE_P | PTE_PSE), HI],
    [L2, lowWord(64, PTE_P), HI],
    [L1, 0x1000 | PTE_P, 0],
    [L1, lowWord(64 + 65, PTE_P), HI],
    [L1, 0xfffff000 | PTE_P, 0xfffff],
  ];
  for (const [table, lo, hi] of bad) {
    const guest = tree();
    put(guest, table, 7, lo, hi);
    expect(pinTable(guest.vcpu, L4 + MFN_BASE, 4)).toBe(-EINVAL);
    expect(type(guest, L4)).toBe(0);
    expect(guest.engine.rootsPrepared).toEqual([]);
  }
});

test('an L1 entry may name shared_info and grant frames', () => {
  const guest = pinned();
  expect(store(guest, L1, 5, lowWord(64, PTE_P | PTE_RW))).toBe(0);
  expect(store(guest, L1, 6, lowWord(65 + 63, PTE_P | PTE_RW))).toBe(0);
  expect(store(guest, L1, 7, lowWord(65 + 64, PTE_P | PTE_RW))).toBe(-EINVAL);
  for (const table of [L2, L3, L4]) expect(store(guest, table, 5, lowWord(64, PTE_P))).toBe(-EINVAL);
});

test('a table that contains itself is refused', () => {
  for (const [table, to] of [
    [L4, L4],
    [L3, L3],
    [L2, L2],
    [L3, L4],
    [L2, L4],
    [L2, L3],
  ]) {
    const guest = tree();
    link(guest, table, 9, to);
    expect(pinTable(guest.vcpu, L4 + MFN_BASE, 4)).toBe(-EINVAL);
    expect([L4, table, to].map((frame) => type(guest, frame) & 0x40)).toEqual([0, 0, 0]);
  }
  const guest = pinned();
  expect(store(guest, L4, 9, lowWord(L4, PTE_P))).toBe(-EINVAL);
  expect(store(guest, L3, 9, lowWord(L4, PTE_P))).toBe(-EINVAL);
  expect(type(guest, L4)).toBe(4 | FRAME_PINNED);
});

test("the hole's slots are skipped in a pin and refused in a store", () => {
  const guest = tree();
  put(guest, L4, 256, 0xfffff000 | PTE_P, 0xfffff);
  put(guest, L4, 271, 0xfffff000 | PTE_P, 0xfffff);
  expect(pinTable(guest.vcpu, L4 + MFN_BASE, 4)).toBe(0);
  for (let slot = 250; slot < 280; slot++) {
    const hole = slot >= 256 && slot < 272;
    const before = entry(guest, L4, slot);
    expect(store(guest, L4, slot, lowWord(L3, PTE_P))).toBe(hole ? -EINVAL : 0);
    expect(store(guest, L4, slot, 0, 0)).toBe(hole ? -EINVAL : 0);
    if (hole) expect(entry(guest, L4, slot)).toEqual(before);
  }
  // Only an L4 has a hole.
  expect(store(guest, L3, 260, lowWord(L2, PTE_P))).toBe(0);
});

test('`storePte()` sets U on present entries of tables, clears G at L1, and keeps all else', () => {
  const guest = pinned();
  expect(store(guest, L1, 3, lowWord(DATA, PTE_P | PTE_RW | PTE_G | 0xe00), (0x80000000 | HI) >>> 0)).toBe(0);
  expect(entry(guest, L1, 3)).toEqual([lowWord(DATA, PTE_P | PTE_RW | PTE_US | 0xe00), (0x80000000 | HI) >>> 0]);
  expect(store(guest, L2, 3, lowWord(L1, PTE_P | PTE_A))).toBe(0);
  expect(entry(guest, L2, 3)).toEqual([lowWord(L1, PTE_P | PTE_US | PTE_A), HI]);
  // What is not present is the guest's own.
  expect(store(guest, L1, 3, 0xfffffffe, 0xffffffff)).toBe(0);
  expect(entry(guest, L1, 3)).toEqual([0xfffffffe, 0xffffffff]);
  // A frame that is no table takes any value.
  expect(store(guest, DATA, 3, 0x00001001, 0xffffffff)).toBe(0);
  expect(entry(guest, DATA, 3)).toEqual([0x00001001, 0xffffffff]);
});

test('`storePte()` bounds the frame of a present entry, and leaves the old entry where it refuses', () => {
  const guest = pinned();
  const old = entry(guest, L1, 0);
  for (const [lo, hi] of [
    [PTE_P, 0],
    [0xfffff000 | PTE_P, HI - 1],
    [lowWord(64 + 65, PTE_P), HI],
    [lowWord(DATA, PTE_P), HI + 1],
    [0xfffff000 | PTE_P, 0xfffff],
  ]) {
    for (const keepAd of [false, true]) expect(store(guest, L1, 0, lo, hi, keepAd)).toBe(-EINVAL);
    expect(entry(guest, L1, 0)).toEqual(old);
  }
  expect(guest.vcpu.flushAll).toBe(false);
  expect(store(guest, L2, 0, lowWord(L1, PTE_P | PTE_PSE))).toBe(-EINVAL);
});

test('`storePte()` tells the engine of each entry stored', () => {
  const guest = pinned();
  const stored: number[] = [];
  guest.engine.pageTableStored = (offset) => stored.push(offset);
  store(guest, L1, 7, lowWord(DATA, PTE_P));
  store(guest, L1, 8, 0x1000 | PTE_P, 0);
  store(guest, L1, 9, 0, 0);
  expect(stored).toEqual([at(L1, 7), at(L1, 9)]);
});

test('PRESERVE_AD: A and D of the old entry stay, and nothing else of it', () => {
  for (const hi of [HI, (HI | 0x80000000) >>> 0]) {
    for (const [old, next, want] of [
      [PTE_A | PTE_D | PTE_RW, 0, PTE_A | PTE_D],
      [PTE_D, PTE_A, PTE_A | PTE_D],
      [0, PTE_A | PTE_D, PTE_A | PTE_D],
      [PTE_A, 0, PTE_A],
      [PTE_RW | 0xe00, 0, 0],
    ]) {
      const guest = pinned();
      put(guest, L1, 3, lowWord(DATA, PTE_P | PTE_US | old), HI);
      expect(store(guest, L1, 3, lowWord(DATA + 1, PTE_P | next), hi, true)).toBe(0);
      expect(entry(guest, L1, 3)).toEqual([lowWord(DATA + 1, PTE_P | PTE_US | want), hi]);
      put(guest, L1, 3, lowWord(DATA, PTE_P | PTE_US | old), HI);
      expect(store(guest, L1, 3, lowWord(DATA + 1, PTE_P | next), hi)).toBe(0);
      expect(entry(guest, L1, 3)).toEqual([lowWord(DATA + 1, PTE_P | PTE_US | next), hi]);
    }
  }
});

test('a present entry becomes another with a different high word', () => {
  const guest = pinned();
  const nx = (HI | 0x80000000) >>> 0;
  expect(store(guest, L1, 3, lowWord(DATA, PTE_P | PTE_RW))).toBe(0);
  expect(store(guest, L1, 3, lowWord(DATA + 1, PTE_P), nx)).toBe(0);
  expect(entry(guest, L1, 3)).toEqual([lowWord(DATA + 1, PTE_P | PTE_US), nx]);
  expect(store(guest, L1, 3, lowWord(DATA, PTE_P | PTE_RW))).toBe(0);
  expect(entry(guest, L1, 3)).toEqual([lowWord(DATA, PTE_P | PTE_RW | PTE_US), HI]);
  expect(store(guest, L1, 3, 0, 0)).toBe(0);
  expect(entry(guest, L1, 3)).toEqual([0, 0]);
});

test('only the change of a present L2-L4 entry wants a flush of all', () => {
  const guest = pinned();
  for (const [table, to, flush] of [
    [L1, DATA, false],
    [L2, L1, true],
    [L3, L2, true],
    [L4, L3, true],
  ] as const) {
    guest.vcpu.flushAll = false;
    expect(store(guest, table, 100, lowWord(to, PTE_P))).toBe(0);
    expect(guest.vcpu.flushAll).toBe(false);
    expect(store(guest, table, 100, 0, 0)).toBe(0);
    expect(guest.vcpu.flushAll).toBe(flush);
  }
});

test('linking a table marks it and what is below', () => {
  const guest = pinned();
  link(guest, 31, 4, 32);
  link(guest, 32, 4, DATA, PTE_P);
  expect(store(guest, L3, 4, lowWord(31, PTE_P))).toBe(0);
  expect([type(guest, 31), type(guest, 32), type(guest, DATA)]).toEqual([2, 1, 0]);
  put(guest, 33, 0, PTE_P, 0);
  expect(store(guest, L2, 4, lowWord(33, PTE_P))).toBe(-EINVAL);
  expect(type(guest, 33)).toBe(0);
  expect(entry(guest, L2, 4)).toEqual([0, 0]);
});

test('a writable mapping of a pinned table is refused; of another it ends its being a table', () => {
  const guest = pinned();
  expect(store(guest, L1, 3, lowWord(L4, PTE_P | PTE_RW))).toBe(-EINVAL);
  expect(store(guest, L1, 3, lowWord(L4, PTE_P))).toBe(0);
  expect(store(guest, L1, 3, lowWord(L4, PTE_RW))).toBe(0);
  expect(store(guest, L1, 3, lowWord(L2, PTE_P))).toBe(0);
  expect(type(guest, L2)).toBe(2);
  expect(store(guest, L1, 3, lowWord(L2, PTE_P | PTE_RW))).toBe(0);
  expect(type(guest, L2)).toBe(0);
  expect(unpinTable(guest.vcpu, L4 + MFN_BASE)).toBe(0);
  expect(store(guest, L1, 3, lowWord(L4, PTE_P | PTE_RW))).toBe(0);
  expect(type(guest, L4)).toBe(0);
});

test('a pinned table cannot become one of another level', () => {
  const guest = pinned();
  expect(markTable(guest.vcpu, L4, 3)).toBe(-EINVAL);
  expect(markTable(guest.vcpu, L4, 4)).toBe(0);
  expect(pinTable(guest.vcpu, L1 + MFN_BASE, 1)).toBe(0);
  expect(markTable(guest.vcpu, L1, 2)).toBe(-EINVAL);
});

test('NEW_BASEPTR: RAM only, drops the LDT; NEW_USER_BASEPTR takes 0 for none', () => {
  const guest = tree();
  const u = guest.vcpu.block.u32;
  u[VCPU.ldtEntries >> 2] = 5;
  for (const mfn of [0, L4, MFN_BASE + 64, 2 ** 40]) expect(newBasePointer(guest.vcpu, mfn)).toBe(-EINVAL);
  expect(u[VCPU.kernelRoot >> 2]).toBe(guest.root);
  expect(u[VCPU.ldtEntries >> 2]).toBe(5);
  expect(newBasePointer(guest.vcpu, L4 + MFN_BASE)).toBe(0);
  expect([u[VCPU.kernelRoot >> 2], u[VCPU.ldtEntries >> 2]]).toEqual([L4, 0]);
  expect(type(guest, L4)).toBe(4);
  expect(guest.engine.tlbFlushes).toBe(0);
  // The same again is a flush.
  expect(newBasePointer(guest.vcpu, L4 + MFN_BASE)).toBe(0);
  expect(guest.engine.tlbFlushes).toBe(1);

  expect(newUserBasePointer(guest.vcpu, L4 + MFN_BASE)).toBe(0);
  expect(u[VCPU.userRoot >> 2]).toBe(L4);
  expect(newUserBasePointer(guest.vcpu, MFN_BASE + 64)).toBe(-EINVAL);
  expect(u[VCPU.userRoot >> 2]).toBe(L4);
  expect(newUserBasePointer(guest.vcpu, 0)).toBe(0);
  expect(u[VCPU.userRoot >> 2]).toBe(NO_ROOT);
});

test('`flushVcpus()`: itself at once, others before they enter the guest', () => {
  const guest = new TestGuest({ vcpus: 3 });
  expect(allVcpus(guest.domain)).toBe(0b111);
  flushVcpus(guest.vcpu, 0b110);
  expect(guest.engine.tlbFlushes).toBe(0);
  expect(guest.domain.vcpus.map((vcpu) => vcpu.i32[VCPU.flags >> 2])).toEqual([0, FLAG_FLUSH_TLB, FLAG_FLUSH_TLB]);
  flushVcpus(guest.vcpu, 0b001);
  expect(guest.engine.tlbFlushes).toBe(1);
  expect(guest.kicks).toEqual([]);
});

test('`flushVcpus()` kicks and waits for a vCPU in the guest', () => {
  const guest = new TestGuest({ vcpus: 2 });
  const other = guest.domain.vcpus[1].i32;
  other[VCPU.inGuest >> 2] = 1;
  // It leaves the guest at the third kick.
  let kicks = 0;
  Object.assign(guest.vcpu.kicker, {
    kick: () => {
      if (++kicks === 3) Atomics.store(other, VCPU.inGuest >> 2, 0);
    },
  });
  flushVcpus(guest.vcpu, allVcpus(guest.domain));
  expect(kicks).toBe(3);
  expect(other[VCPU.flags >> 2]).toBe(FLAG_FLUSH_TLB);
});

test('`allVcpus()` of 32 vCPUs is all bits', () => {
  expect(allVcpus(new TestGuest({ vcpus: 32 }).domain)).toBe(-1);
  expect(allVcpus(new TestGuest({ vcpus: 31 }).domain)).toBe(0x7fffffff);
});

test("the builder's tables are taken over with the first one pinned and U everywhere", () => {
  const guest = tree();
  adoptPageTables(guest.domain, [
    { frame: L4, level: 4 },
    { frame: L3, level: 3 },
    { frame: L2, level: 2 },
    { frame: L1, level: 1 },
  ]);
  expect([L4, L3, L2, L1].map((frame) => type(guest, frame))).toEqual([4 | FRAME_PINNED, 3, 2, 1]);
  for (const table of [L4, L3, L2, L1]) {
    expect(entry(guest, table, 0)[0] & PTE_US).toBe(PTE_US);
    expect(entry(guest, table, 1)).toEqual([0, 0]);
  }
  expect(unpinTable(guest.vcpu, L4 + MFN_BASE)).toBe(0);
  expect(guest.vcpu.access.translate(guest.root, KERNEL_VA, VA_HI, true)).toBe(0);
});
