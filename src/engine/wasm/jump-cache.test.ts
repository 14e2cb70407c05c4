import { describe, expect, it } from 'vitest';
import { createVcpuBlock } from '../../machine/vcpu-block.ts';
import { JumpCache } from './jump-cache.ts';
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

const HI = 0xffffffff;
const KERNEL = 0x81000000;
const USER = 0x00401000;

function setUp() {
  const block = createVcpuBlock(0);
  const jumps = new JumpCache(block);
  /** As the interpreter looks: the micro-op of an address, or none. */
  const find = (lo: number, hi: number, user: boolean): number | null => {
    const entry = (STATE.jumpCache + ((lo ^ (lo >>> JUMP_SHIFT)) & (JUMP_ENTRIES - 1)) * JUMP_ENTRY) >>> 2;
    const isHere =
      block.u32[entry + JUMP_TAG / 4] === lo &&
      block.u32[entry + JUMP_TAG / 4 + 1] === (user ? hi ^ JUMP_USER_HI : hi) >>> 0;
    return isHere ? block.u32[entry + JUMP_MICRO_OP / 4] : null;
  };
  return { jumps, find, slotOf: (lo: number) => find(lo, HI, false) !== null && block.u32[slotWord(lo)] };
}

const slotWord = (lo: number): number =>
  (STATE.jumpCache + ((lo ^ (lo >>> JUMP_SHIFT)) & (JUMP_ENTRIES - 1)) * JUMP_ENTRY + JUMP_SLOT) >>> 2;

describe('the jump cache', () => {
  it('knows an address in its mode only', () => {
    const { jumps, find } = setUp();
    expect(find(0, 0, false)).toBe(null);
    jumps.add(USER, 0, true, 16, 0);
    expect(find(USER, 0, true)).toBe(16);
    expect(find(USER, 0, false)).toBe(null);
  });

  it('forgets the low half and user mode, and keeps the kernel', () => {
    const { jumps, find } = setUp();
    jumps.add(USER, 0, true, 16, 0);
    jumps.add(USER + 16, 0, false, 32, 0);
    jumps.add(KERNEL, HI, false, 48, 0);
    jumps.forgetLow();
    expect([find(USER, 0, true), find(USER + 16, 0, false), find(KERNEL, HI, false)]).toEqual([null, null, 48]);
  });

  it('forgets the low half when there were more entries than are listed', () => {
    const { jumps, find } = setUp();
    for (let i = 0; i < 6000; i++) jumps.add(USER + i * 4, 0, true, 16, 0);
    jumps.forgetLow();
    for (let i = 0; i < 6000; i++) expect(find(USER + i * 4, 0, true)).toBe(null);
  });

  for (const count of [1, 16, 17, 100])
    it(`forgets ${count} pages that are gone, and no other`, () => {
      const { jumps, find } = setUp();
      const pageOf = (i: number): number => KERNEL + i * 4096;
      for (let i = 0; i <= count; i++)
        for (const at of [0, 0x7f8, 0xfff]) jumps.add(pageOf(i) + at, HI, false, 16 + i, 0);
      for (let i = 0; i < count; i++) jumps.addGone(pageOf(i));
      expect(find(pageOf(0) + 0x7f8, HI, false)).toBe(16);
      jumps.forgetGone();
      for (let i = 0; i < count; i++)
        for (const at of [0, 0x7f8, 0xfff]) expect(find(pageOf(i) + at, HI, false)).toBe(null);
      for (const at of [0, 0x7f8, 0xfff]) expect(find(pageOf(count) + at, HI, false)).toBe(16 + count);
    });

  it('forgets all when a page is gone that entries elsewhere depend on', () => {
    const { jumps, find } = setUp();
    jumps.add(KERNEL, HI, false, 16, 0);
    jumps.dependsOn(KERNEL + 4096);
    jumps.forgetPage(KERNEL + 8192);
    expect(find(KERNEL, HI, false)).toBe(16);
    jumps.forgetPage(KERNEL + 4096);
    expect(find(KERNEL, HI, false)).toBe(null);
  });

  it('forgets the entries of a region', () => {
    const { jumps, find, slotOf } = setUp();
    jumps.add(KERNEL, HI, false, 16, 7);
    jumps.add(KERNEL + 64, HI, false, 32, 8);
    expect([slotOf(KERNEL), slotOf(KERNEL + 64)]).toEqual([7, 8]);
    jumps.forgetSlot(7);
    expect([find(KERNEL, HI, false), find(KERNEL + 64, HI, false)]).toEqual([null, 32]);
  });
});
