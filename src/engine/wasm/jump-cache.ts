/**
 * Where branches go: a table in memory 1 from an address to its micro-op and its region, which interpreter and regions read. One
 * entry for each value of a hash of the address's low word; layout.ts has the form.
 *
 * Entries outlive a flush of the TLB, unless the pages that they were found by are mapped otherwise now. Which pages have entries is
 * kept by a hash of their address, so that most of what is unmapped costs one look.
 */

import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import {
  JUMP_ENTRIES,
  JUMP_ENTRY,
  JUMP_MICRO_OP,
  JUMP_SHIFT,
  JUMP_SLOT,
  JUMP_TAG,
  JUMP_USER_HI,
  STATE,
} from './layout.ts';

/** High word of a tag that no address has: not canonical in either mode. */
const NO_TAG_HI = 0x0fffffff;
/** What the table of pages says: there are entries in it; there are entries that depend on it. */
const ENTERED = 1;
const NEEDED = 2;
const PAGES = 1 << 14;
/** Entries made that are listed; behind more of them all are dropped. */
const LISTED = 4096;
/** Pages that are searched one by one, each for as many entries as it has bytes. */
const PAGES_SEARCHED = JUMP_ENTRIES >> 12;

const indexOf = (lo: number): number => (lo ^ (lo >>> JUMP_SHIFT)) & (JUMP_ENTRIES - 1);
const pageHash = (lo: number): number => ((lo >>> 12) ^ (lo >>> 26)) & (PAGES - 1);

/** Entries made since they were last dropped. */
class Made {
  readonly #indexes = new Uint16Array(LISTED);
  #count = 0;

  add(index: number): void {
    if (this.#count < LISTED) this.#indexes[this.#count] = index;
    this.#count++;
  }

  /** Calls `drop` with what has been made, or with more. */
  clear(drop: (index: number) => void): void {
    if (this.#count <= LISTED) for (let i = 0; i < this.#count; i++) drop(this.#indexes[i]);
    else for (let i = 0; i < JUMP_ENTRIES; i++) drop(i);
    this.#count = 0;
  }
}

export class JumpCache {
  readonly #u32: Uint32Array;
  /** Of the low half or of user mode, which another root maps otherwise; of the kernel's half in kernel mode. */
  readonly #low = new Made();
  readonly #high = new Made();
  readonly #pages = new Uint8Array(PAGES);
  /** Pages (low words) that have gone, the first of them, and all by the hash of #pages. */
  readonly #gone = new Uint32Array(PAGES_SEARCHED);
  #goneCount = 0;
  readonly #isGone = new Uint8Array(PAGES);
  /** What #pages says of them. */
  #goneBits = 0;

  constructor(block: VcpuBlock) {
    this.#u32 = block.u32;
    for (let i = 0; i < JUMP_ENTRIES; i++) this.#drop(i);
  }

  /** `slot`: the region's place in the table, 0 = none. */
  add(lo: number, hi: number, user: boolean, microOp: number, slot: number): void {
    const u32 = this.#u32;
    const index = indexOf(lo);
    const entry = (STATE.jumpCache + index * JUMP_ENTRY) >>> 2;
    u32[entry + JUMP_TAG / 4] = lo;
    u32[entry + JUMP_TAG / 4 + 1] = user ? hi ^ JUMP_USER_HI : hi;
    u32[entry + JUMP_MICRO_OP / 4] = microOp;
    u32[entry + JUMP_SLOT / 4] = slot;
    this.#pages[pageHash(lo)] |= ENTERED;
    (user || hi >>> 31 === 0 ? this.#low : this.#high).add(index);
  }

  /** What will be added, or is here, holds as long as the page of an address is mapped as it is. */
  dependsOn(lo: number): void {
    this.#pages[pageHash(lo)] |= NEEDED;
  }

  readonly #drop = (index: number): void => {
    this.#u32[((STATE.jumpCache + index * JUMP_ENTRY) >>> 2) + 1] = NO_TAG_HI;
  };

  forget(lo: number): void {
    this.#drop(indexOf(lo));
  }

  /** Nobody may enter the region of a slot any more. */
  readonly forgetSlot = (slot: number): void => {
    const u32 = this.#u32;
    for (let i = 0; i < JUMP_ENTRIES; i++)
      if (u32[(STATE.jumpCache + i * JUMP_ENTRY + JUMP_SLOT) >>> 2] === slot) this.#drop(i);
  };

  clear(): void {
    this.#low.clear(this.#drop);
    this.#high.clear(this.#drop);
    this.#pages.fill(0);
  }

  /** All of the low half or of user mode. */
  forgetLow(): void {
    this.#low.clear(this.#drop);
  }

  /** The page of an address is not mapped any more as it was, in whatever mode. */
  forgetPage(lo: number): void {
    this.addGone(lo);
    this.forgetGone();
  }

  /** The same for many pages: nothing happens before `forgetGone`. */
  addGone(lo: number): void {
    const hash = pageHash(lo);
    const bits = this.#pages[hash];
    if (bits === 0) return;
    this.#goneBits |= bits;
    this.#isGone[hash] = 1;
    if (this.#goneCount < PAGES_SEARCHED) this.#gone[this.#goneCount] = lo;
    this.#goneCount++;
  }

  forgetGone(): void {
    const count = this.#goneCount;
    if (count === 0) return;
    if ((this.#goneBits & NEEDED) !== 0) this.clear();
    else if (count <= PAGES_SEARCHED) for (let i = 0; i < count; i++) this.#searchPage(this.#gone[i]);
    else this.#searchAll();
    this.#isGone.fill(0);
    this.#goneCount = 0;
    this.#goneBits = 0;
  }

  #searchPage(lo: number): void {
    const page = lo >>> 12;
    const first = page << 12;
    for (let at = first; at < first + 4096; at++) {
      const index = indexOf(at);
      if (this.#lowWord(index) >>> 12 === page) this.#drop(index);
    }
  }

  #searchAll(): void {
    for (let i = 0; i < JUMP_ENTRIES; i++) if (this.#isGone[pageHash(this.#lowWord(i))] !== 0) this.#drop(i);
  }

  /** Of an entry's tag. */
  #lowWord(index: number): number {
    return this.#u32[(STATE.jumpCache + index * JUMP_ENTRY) >>> 2];
  }
}
