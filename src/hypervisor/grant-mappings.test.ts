import { expect, test } from 'vitest';
import * as gnttab from '../abi/grant-table.ts';
import { MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
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
