import { expect, test } from 'vitest';
import * as gnttab from '../abi/grant-table.ts';
import { MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { DOMAIN } from './domain.ts';
import { statusIndex } from './grant-entries.ts';
import { GrantMappings } from './grant-mappings.ts';
import { TestGuest } from './testing.ts';

const { GTF_permit_access, GTF_readonly, GTF_reading, GTF_writing } = gnttab;

class Guest extends TestGuest {
  readonly grants = new GrantMappings(this.domain);

  #word(gref: number): number {
    return this.machine.layout.grantTableOffset / 4 + gref * 2;
  }
  grant(gref: number, mfn: number, flags = GTF_permit_access, domid = 0): void {
    this.machine.u32[this.#word(gref) + 1] = mfn;
    this.machine.u32[this.#word(gref)] = flags | (domid << 16);
  }
  flags(gref: number): number {
    return this.machine.u32[this.#word(gref)] & 0xffff;
  }
}

test('a mapping is the page, and its entry is in use until the last one is gone', () => {
  const guest = new Guest();
  guest.grant(8, MFN_BASE + 5);
  expect(guest.grants.map(8, false)).toBe(5 * PAGE_SIZE);
  expect(guest.flags(8)).toBe(GTF_permit_access | GTF_reading);
  expect(guest.grants.map(8, true)).toBe(5 * PAGE_SIZE);
  expect(guest.flags(8)).toBe(GTF_permit_access | GTF_reading | GTF_writing);
  guest.grants.unmap(8, true);
  expect(guest.flags(8)).toBe(GTF_permit_access | GTF_reading);
  guest.grants.unmap(8, false);
  expect(guest.flags(8)).toBe(GTF_permit_access);
  expect(guest.grants.inUse).toBe(0);
  expect(() => guest.grants.unmap(8, false)).toThrow('bug: grant 8');
});

test('version 2: what is in use stands in the status, and a part of a page is not mapped', () => {
  const guest = new Guest();
  const { domain, machine, grants } = guest;
  domain.i32[DOMAIN.grantVersion >> 2] = 2;
  const grant = (gref: number, words: readonly number[]): void =>
    machine.u32.set(words, machine.layout.grantTableOffset / 4 + gref * 4);
  const status = (gref: number): number => machine.u16[statusIndex(domain, gref)];
  grant(8, [GTF_permit_access, 0, MFN_BASE + 5, 0]);
  expect(grants.map(8, false)).toBe(5 * PAGE_SIZE);
  expect(status(8)).toBe(GTF_reading);
  expect(grants.map(8, true)).toBe(5 * PAGE_SIZE);
  expect(status(8)).toBe(GTF_reading | GTF_writing);
  // What the guest revokes stays what it was, until the last one lets go.
  grant(8, [GTF_permit_access | GTF_readonly, 0, MFN_BASE + 6, 0]);
  expect(grants.map(8, false)).toBe(5 * PAGE_SIZE);
  grants.unmap(8, true);
  expect(status(8)).toBe(GTF_reading);
  expect(grants.map(8, true)).toBe(gnttab.GNTST_general_error);
  expect(status(8)).toBe(GTF_reading);
  grants.unmap(8, false);
  grants.unmap(8, false);
  expect([status(8), grants.inUse]).toEqual([0, 0]);

  grant(9, [GTF_permit_access | gnttab.GTF_sub_page, 16 | (16 << 16), MFN_BASE + 5, 0]);
  expect(grants.map(9, false)).toBe(gnttab.GNTST_general_error);
  expect(grants.mapForCopy(9, false, 0, 16, 16)).toBe(5 * PAGE_SIZE);
  grants.unmap(9, false);
  for (const [offset, length] of [
    [15, 2],
    [16, 17],
  ])
    expect(grants.mapForCopy(9, false, 0, offset, length)).toBe(gnttab.GNTST_general_error);
  grant(10, [gnttab.GTF_transitive, 0, 9, 0]);
  expect(grants.mapForCopy(10, false, 0, 0, 1)).toBe(gnttab.GNTST_general_error);
  grant(11, [GTF_permit_access, 0, MFN_BASE + 5, 1]);
  expect(grants.map(11, false)).toBe(gnttab.GNTST_bad_page);
  expect(grants.map(256, false)).toBe(gnttab.GNTST_bad_gntref);
  expect([9, 10, 11].map(status)).toEqual([0, 0, 0]);
  expect(grants.inUse).toBe(0);
});

test('a version that is set under a mapping harms nobody: it is let go, where the reference is one', () => {
  const guest = new Guest();
  const { domain, machine, grants } = guest;
  guest.grant(300, MFN_BASE + 5);
  guest.grant(8, MFN_BASE + 6);
  grants.map(300, true);
  grants.map(8, true);
  machine.u8.fill(0xff, machine.layout.grantTableOffset, machine.layout.foreignOffset);
  const before = machine.u8.slice(machine.layout.grantTableOffset, machine.layout.foreignOffset);
  domain.i32[DOMAIN.grantVersion >> 2] = 2;
  grants.unmap(300, true);
  expect(machine.u8.slice(machine.layout.grantTableOffset, machine.layout.foreignOffset)).toEqual(before);
  grants.unmap(8, true);
  expect(machine.u16[statusIndex(domain, 8)]).toBe(0xffff & ~(GTF_reading | GTF_writing));
  expect(grants.inUse).toBe(0);
});

test('the frame of a grant in use is the one that was mapped first', () => {
  const guest = new Guest();
  guest.grant(8, MFN_BASE + 5);
  guest.grants.map(8, false);
  guest.grant(8, MFN_BASE + 6, 0);
  expect(guest.grants.map(8, false)).toBe(5 * PAGE_SIZE);
  expect(guest.grants.map(8, true)).toBe(gnttab.GNTST_general_error);
  guest.grants.unmap(8, false);
  guest.grants.unmap(8, false);
  expect(guest.grants.map(8, false)).toBe(gnttab.GNTST_general_error);
});

test('who grants nothing to Dom0, or only reading, is refused, and the entry stays as it was', () => {
  const guest = new Guest();
  const refused: [string, () => void, number][] = [
    ['invalid', () => guest.grant(9, MFN_BASE + 5, gnttab.GTF_invalid), gnttab.GNTST_general_error],
    ['transfer', () => guest.grant(9, MFN_BASE + 5, gnttab.GTF_accept_transfer), gnttab.GNTST_general_error],
    ['another domain', () => guest.grant(9, MFN_BASE + 5, GTF_permit_access, 7), gnttab.GNTST_general_error],
    ['read only', () => guest.grant(9, MFN_BASE + 5, GTF_permit_access | GTF_readonly), gnttab.GNTST_general_error],
    ['no frame', () => guest.grant(9, 5), gnttab.GNTST_bad_page],
    ['frame 2^32-1', () => guest.grant(9, 0xffffffff), gnttab.GNTST_bad_page],
    ['shared_info', () => guest.grant(9, MFN_BASE + 64), gnttab.GNTST_bad_page],
    ['the grant table', () => guest.grant(9, MFN_BASE + 65), gnttab.GNTST_bad_page],
  ];
  for (const [name, prepare, status] of refused) {
    prepare();
    const before = guest.flags(9);
    expect(guest.grants.map(9, true), name).toBe(status);
    expect(guest.flags(9), name).toBe(before);
  }
  for (const gref of [-1, 512, 32768, 2 ** 32, 8.5, Number.NaN])
    expect(guest.grants.map(gref, false), String(gref)).toBe(gnttab.GNTST_bad_gntref);
});

test('a page table can be read, not written; a frame that was given back is no page', () => {
  const guest = new Guest();
  guest.domain.frameTypes[5] = 1;
  guest.grant(8, MFN_BASE + 5);
  expect(guest.grants.map(8, true)).toBe(gnttab.GNTST_general_error);
  expect(guest.flags(8)).toBe(GTF_permit_access);
  expect(guest.grants.map(8, false)).toBe(5 * PAGE_SIZE);
  expect(guest.grants.map(8, true)).toBe(gnttab.GNTST_general_error);
  expect(guest.flags(8)).toBe(GTF_permit_access | GTF_reading);

  guest.machine.u32.fill(0xffffffff, guest.machine.layout.m2pOffset / 4 + 12, guest.machine.layout.m2pOffset / 4 + 14);
  guest.grant(10, MFN_BASE + 6);
  expect(guest.grants.map(10, false)).toBe(gnttab.GNTST_bad_page);
});

test('the table that the guest has set up bounds the references', () => {
  const guest = new Guest();
  guest.grant(512, MFN_BASE + 5);
  expect(guest.grants.map(512, false)).toBe(gnttab.GNTST_bad_gntref);
  guest.domain.i32[0x0c >> 2] = 2;
  expect(guest.grants.map(512, false)).toBe(5 * PAGE_SIZE);
});
