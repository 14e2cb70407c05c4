import { expect, test } from 'vitest';
import { RAX, RBX, RCX, RDX, VCPU } from '../machine/vcpu-block.ts';
import { emulateForcedCpuid } from './forced-cpuid.ts';
import { KERNEL_VA, TestGuest, VA_HI } from './testing.ts';

const FORCED = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2];

function newGuest(code: readonly number[]): TestGuest {
  const guest = new TestGuest();
  const { u32 } = guest.vcpu.block;
  guest.machine.u8.set(code, 0);
  u32[VCPU.rip >> 2] = KERNEL_VA;
  u32[(VCPU.rip >> 2) + 1] = VA_HI;
  u32[VCPU.cs >> 2] = 0xe033;
  guest.vcpu.block.u64.fill(0xffff_ffff_ffff_ffffn, VCPU.gpr >> 3, (VCPU.gpr >> 3) + 4);
  u32[(VCPU.gpr >> 2) + RAX * 2] = 0x40000000;
  return guest;
}

test('emulateForcedCpuid() finds Xen, clears the upper halves and goes 7 bytes on', () => {
  const guest = newGuest(FORCED);
  expect(emulateForcedCpuid(guest.vcpu)).toBe(true);
  const { u32, u64 } = guest.vcpu.block;
  expect(u32[VCPU.rip >> 2]).toBe(KERNEL_VA + 7);
  const registers = [RAX, RBX, RCX, RDX].map((r) => u64[(VCPU.gpr >> 3) + r]);
  expect(registers).toEqual([0x40000005n, 0x566e6558n, 0x65584d4dn, 0x4d4d566en]);
});

test('only the kernel sees OSXSAVE before it set CR4', () => {
  const ecx = (userMode: number): number => {
    const guest = newGuest(FORCED);
    const { u32 } = guest.vcpu.block;
    guest.engine.cpuid = (leaf) => ({ eax: leaf === 0 ? 0xd : 0, ebx: 0, ecx: 0xffffffff, edx: 0 });
    u32[(VCPU.gpr >> 2) + RAX * 2] = 1;
    u32[VCPU.userMode >> 2] = userMode;
    u32[VCPU.userRoot >> 2] = guest.root;
    expect(emulateForcedCpuid(guest.vcpu)).toBe(true);
    return (u32[(VCPU.gpr >> 2) + RCX * 2] >>> 27) & 1;
  };
  expect([ecx(0), ecx(1)]).toEqual([1, 0]);
});

test('any other UD2 is the guest’s own', () => {
  for (const code of [[0x0f, 0x0b, 0x90], [...FORCED.slice(0, 6), 0xa3], [0x66, ...FORCED], [0x0f, 0xff], [0x90]]) {
    const guest = newGuest(code);
    expect(emulateForcedCpuid(guest.vcpu)).toBe(false);
    expect(guest.vcpu.block.u32[VCPU.rip >> 2]).toBe(KERNEL_VA);
  }
});
