/** Page tables for small guests of 4 KiB pages. */

import { type MachineMemory, MFN_BASE, PAGE_SIZE } from '../../src/machine/memory.ts';

const PRESENT = 1;
export const WRITABLE = 2;
export const USER = 4;
const ACCESSED_DIRTY = 0x60;
/** Of the high word. */
export const NO_EXECUTE = 0x80000000;

export class PageTables {
  readonly #machine: MachineMemory;
  readonly #root: number;
  readonly #newTable: () => number;

  /** `newTable` gives a zeroed frame. */
  constructor(machine: MachineMemory, root: number, newTable: () => number) {
    this.#machine = machine;
    this.#root = root;
    this.#newTable = newTable;
  }

  /** Maps a page. Upper levels allow everything. */
  map(va: bigint, frame: number, flags: number, high: number): void {
    let table = this.#root;
    for (const shift of [39n, 30n, 21n]) {
      const at = (table * PAGE_SIZE) / 4 + Number((va >> shift) & 511n) * 2;
      if (this.#machine.u32[at] === 0) this.#entry(at, this.#newTable(), USER | WRITABLE, 0);
      table = this.#machine.u32[at + 1] * 0x100000 + (this.#machine.u32[at] >>> 12) - MFN_BASE;
    }
    this.#entry((table * PAGE_SIZE) / 4 + Number((va >> 12n) & 511n) * 2, frame, flags, high);
  }

  #entry(at: number, frame: number, flags: number, high: number): void {
    const mfn = frame + MFN_BASE;
    this.#machine.u32[at + 1] = ((mfn >>> 20) | high) >>> 0;
    this.#machine.u32[at] = ((mfn << 12) | flags | PRESENT | ACCESSED_DIRTY) >>> 0;
  }
}
