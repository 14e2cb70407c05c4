/** set_segment_base. Source: xen/include/public/arch-x86/xen-x86_64.h, SEGBASE_GS_USER_SEL. */

import { expect, test } from 'vitest';
import { VCPU } from '../../machine/vcpu-block.ts';
import { KERNEL_VA, TestGuest } from '../testing.ts';
import { setSegmentBase } from './context.ts';

const SEGBASE_GS_USER_SEL = 3;

test('a selector of the user GS takes the base of its descriptor; one that cannot be loaded becomes NUL', () => {
  const guest = new TestGuest();
  const { vcpu } = guest;
  const { u32 } = vcpu.block;
  u32[VCPU.gdtEntries >> 2] = 16;
  u32[VCPU.gdtFrames >> 2] = 3;
  const gdt = KERNEL_VA + 0x3000;
  guest.setWords(gdt + 0x60, [0x8380ffff, 0x08dff3e7]); // data, DPL 3
  guest.setWords(gdt + 0x58, [0x8380ffff, 0x08df93e7]); // data, DPL 0
  guest.setWords(gdt + 0x50, [0x8380ffff, 0x08df73e7]); // not present
  guest.setWords(gdt + 0x48, [0x8380ffff, 0x08dff9e7]); // code that cannot be read
  const load = (selector: number): number[] => {
    vcpu.args[0] = SEGBASE_GS_USER_SEL;
    vcpu.args[1] = 0;
    vcpu.args[2] = selector;
    vcpu.args[3] = 0;
    u32[VCPU.gsBaseInactive >> 2] = 0x777;
    expect(setSegmentBase(vcpu)).toBe(0);
    return [u32[VCPU.gs >> 2], u32[VCPU.gsBaseInactive >> 2]];
  };
  expect(load(0x63)).toEqual([0x63, 0x08e78380]);
  expect(load(0x60)).toEqual([0x63, 0x08e78380]);
  expect(load(0xe02b)).toEqual([0xe02b, 0]);
  for (const selector of [0, 0x5b, 0x53, 0x4b, 0x83, 0x67, 0xe033 + 0x20])
    expect(load(selector), `${selector}`).toEqual([0, 0]);
  expect(load(3)).toEqual([3, 0]);
});
