import { expect, test } from 'vitest';
import { MFN_BASE } from '../machine/memory.ts';
import { RAX, RBX, RCX, RDI, RDX, RSI, VCPU } from '../machine/vcpu-block.ts';
import { emulatePrivileged } from './privileged-op.ts';
import { KERNEL_VA, TestGuest, UNMAPPED_VA, VA_HI } from './testing.ts';

function newGuest({ user = false, iopl = 0 } = {}): TestGuest {
  const guest = new TestGuest();
  const { u32 } = guest.vcpu.block;
  u32[VCPU.cs >> 2] = 0xe033;
  u32[VCPU.cr4 >> 2] = 0x660;
  u32[VCPU.xcr0 >> 2] = 1;
  u32[VCPU.iopl >> 2] = iopl;
  u32[VCPU.userRoot >> 2] = guest.root;
  u32[VCPU.userMode >> 2] = user ? 1 : 0;
  u32[(VCPU.traps >> 2) + 13 * 4] = 0x1000;
  guest.engine.cpuid = (leaf) => ({ eax: leaf === 0 ? 0xd : 0, ebx: 0, ecx: 0xffffffff, edx: 0 });
  guest.engine.readTsc = () => ({ tscLo: 0x89abcdef, tscHi: 0x1234, atNs: 0 });
  return guest;
}

const get = (guest: TestGuest, r: number): bigint => guest.vcpu.block.u64[(VCPU.gpr >> 3) + r];

function set(guest: TestGuest, r: number, value: bigint): void {
  guest.vcpu.block.u64[(VCPU.gpr >> 3) + r] = BigInt.asUintN(64, value);
}

/** Executes one instruction. False: #GP, and rip has not moved. */
function execute(guest: TestGuest, ...code: number[]): boolean {
  const { u32 } = guest.vcpu.block;
  guest.machine.u8.set(code, 0);
  u32[VCPU.rip >> 2] = KERNEL_VA;
  u32[(VCPU.rip >> 2) + 1] = VA_HI;
  const done = emulatePrivileged(guest.vcpu);
  expect(u32[VCPU.rip >> 2]).toBe(KERNEL_VA + (done ? code.length : 0));
  return done;
}

test('wrmsr and rdmsr', () => {
  const guest = newGuest();
  set(guest, RCX, 0xc0000101n);
  set(guest, RAX, 0x12345678n);
  set(guest, RDX, 0xffff8880n);
  expect(execute(guest, 0x0f, 0x30)).toBe(true);
  expect(guest.vcpu.block.u64[VCPU.gsBase >> 3]).toBe(0xffff888012345678n);
  set(guest, RAX, -1n);
  set(guest, RDX, -1n);
  expect(execute(guest, 0x0f, 0x32)).toBe(true);
  expect([get(guest, RAX), get(guest, RDX)]).toEqual([0x12345678n, 0xffff8880n]);
  set(guest, RCX, 0x48n);
  expect(execute(guest, 0x0f, 0x32)).toBe(false);
});

test('cr0: only TS is the guest’s', () => {
  const guest = newGuest();
  expect(execute(guest, 0x0f, 0x20, 0xc3)).toBe(true);
  expect(get(guest, RBX)).toBe(0x80050033n);
  set(guest, RBX, 0x8005003bn);
  expect(execute(guest, 0x0f, 0x22, 0xc3)).toBe(true);
  expect(guest.vcpu.block.u32[VCPU.cr0Ts >> 2]).toBe(8);
  expect(execute(guest, 0x0f, 0x06)).toBe(true);
  expect(guest.vcpu.block.u32[VCPU.cr0Ts >> 2]).toBe(0);
  set(guest, RBX, 0x80040033n);
  expect(execute(guest, 0x0f, 0x22, 0xc3)).toBe(false);
});

test('cr2 goes to vcpu_info as well', () => {
  const guest = newGuest();
  set(guest, 15, 0xffff888000001000n);
  expect(execute(guest, 0x41, 0x0f, 0x22, 0xd7)).toBe(true);
  expect(guest.machine.u64[(guest.machine.layout.sharedInfoOffset + 16) >> 3]).toBe(0xffff888000001000n);
  expect(execute(guest, 0x0f, 0x20, 0xd0)).toBe(true);
  expect(get(guest, RAX)).toBe(0xffff888000001000n);
});

test('cr3 is a machine address; a write is a new base pointer', () => {
  const guest = newGuest();
  expect(execute(guest, 0x0f, 0x20, 0xd8)).toBe(true);
  expect(get(guest, RAX)).toBe(BigInt(guest.root + MFN_BASE) << 12n);
  set(guest, RAX, BigInt(9 + MFN_BASE) << 12n);
  expect(execute(guest, 0x0f, 0x22, 0xd8)).toBe(true);
  expect(guest.vcpu.block.u32[VCPU.kernelRoot >> 2]).toBe(9);
  const other = newGuest();
  set(other, RAX, 0x5000n);
  expect(execute(other, 0x0f, 0x22, 0xd8)).toBe(false);
});

test('cr4 keeps TSD, DE and OSXSAVE, never faults; cr8 does', () => {
  const guest = newGuest();
  set(guest, RAX, -1n);
  expect(execute(guest, 0x0f, 0x22, 0xe0)).toBe(true);
  expect(execute(guest, 0x0f, 0x20, 0xe0)).toBe(true);
  expect(get(guest, RAX)).toBe(0x4066cn);
  const without = newGuest();
  Object.assign(without.engine, { facts: { ...without.engine.facts, xcr0Mask: 0 } });
  set(without, RAX, -1n);
  expect(execute(without, 0x0f, 0x22, 0xe0)).toBe(true);
  expect(without.vcpu.block.u32[VCPU.cr4 >> 2]).toBe(0x66c);
  expect(execute(guest, 0x44, 0x0f, 0x20, 0xc0)).toBe(false);
});

test('debug registers', () => {
  const guest = newGuest();
  set(guest, RBX, 0xffff888000001000n);
  expect(execute(guest, 0x0f, 0x23, 0xc3)).toBe(true);
  expect(guest.engine.debugRegisterChanges).toBe(1);
  set(guest, RAX, 77n);
  expect(execute(guest, 0x0f, 0x21, 0xc1)).toBe(true);
  expect([get(guest, RAX), get(guest, RCX)]).toEqual([77n, 0xffff888000001000n]);
  expect(execute(guest, 0x0f, 0x21, 0xc0)).toBe(true);
  expect(get(guest, RAX)).toBe(0xffff888000001000n);
  guest.vcpu.block.u32[VCPU.cr4 >> 2] |= 8;
  expect(execute(guest, 0x0f, 0x21, 0xe0)).toBe(false);
  expect(get(guest, RAX)).toBe(0xffff888000001000n);
});

test('xsetbv checks what the CPU checks', () => {
  const guest = newGuest();
  const { u32 } = guest.vcpu.block;
  const xsetbv = (value: number, index = 0): boolean => {
    set(guest, RAX, BigInt(value));
    set(guest, RDX, 0n);
    set(guest, RCX, BigInt(index));
    return execute(guest, 0x0f, 0x01, 0xd1);
  };
  expect(xsetbv(7)).toBe(false);
  u32[VCPU.cr4 >> 2] |= 1 << 18;
  for (const value of [0, 2, 5, 0xf, 0x207]) expect(xsetbv(value)).toBe(false);
  expect(xsetbv(7, 1)).toBe(false);
  expect(guest.engine.xcr0Changes).toBe(0);
  expect(xsetbv(7)).toBe(true);
  expect([u32[VCPU.xcr0 >> 2], guest.engine.xcr0Changes]).toEqual([7, 1]);
  expect(execute(guest, 0x0f, 0x01, 0xd0)).toBe(true);
  expect(get(guest, RAX)).toBe(7n);
});

test('rdtsc and rdtscp, when they trap', () => {
  const guest = newGuest();
  guest.vcpu.block.u32[VCPU.tscAux >> 2] = 3;
  guest.vcpu.block.u32[VCPU.cr4 >> 2] |= 4;
  expect(execute(guest, 0x0f, 0x01, 0xf9)).toBe(true);
  expect([get(guest, RAX), get(guest, RDX), get(guest, RCX)]).toEqual([0x89abcdefn, 0x1234n, 3n]);
  guest.vcpu.block.u32[VCPU.userMode >> 2] = 1;
  expect(execute(guest, 0x0f, 0x31)).toBe(false);
  guest.vcpu.block.u32[VCPU.cr4 >> 2] &= ~4;
  expect(execute(guest, 0x0f, 0x31)).toBe(true);
});

test('port I/O needs the I/O privilege level: 1 for the kernel, 3 for programs', () => {
  for (const [user, iopl, allowed] of [
    [false, 0, false],
    [false, 1, true],
    [true, 1, false],
    [true, 3, true],
  ] as const) {
    expect(execute(newGuest({ user, iopl }), 0xec)).toBe(allowed);
    expect(execute(newGuest({ user, iopl }), 0xee)).toBe(allowed);
  }
  expect(execute(newGuest(), 0xfa)).toBe(false);
  expect(execute(newGuest({ iopl: 1 }), 0xfa)).toBe(true);
  expect(execute(newGuest({ iopl: 1 }), 0xfb)).toBe(true);
});

test('ports read all ones, the PIT 0, PCI’s address what was written', () => {
  const guest = newGuest({ iopl: 1 });
  set(guest, RAX, 0x1122334455667788n);
  set(guest, RDX, 0x3f8n);
  expect(execute(guest, 0xec)).toBe(true);
  expect(get(guest, RAX)).toBe(0x11223344556677ffn);
  expect(execute(guest, 0x66, 0xed)).toBe(true);
  expect(get(guest, RAX)).toBe(0x112233445566ffffn);
  expect(execute(guest, 0xe5, 0x80)).toBe(true);
  expect(get(guest, RAX)).toBe(0xffffffffn);
  expect(execute(guest, 0xe4, 0x61)).toBe(true);
  expect(get(guest, RAX)).toBe(0xffffff00n);
  set(guest, RDX, 0xcf8n);
  set(guest, RAX, 0x80001000n);
  expect(execute(guest, 0xef)).toBe(true);
  set(guest, RAX, 0n);
  expect(execute(guest, 0xed)).toBe(true);
  expect(get(guest, RAX)).toBe(0x80001000n);
  expect(execute(guest, 0x66, 0xed)).toBe(true);
  expect(get(guest, RAX)).toBe(0x8000ffffn);
  set(guest, RDX, 0xcfcn);
  expect(execute(guest, 0xed)).toBe(true);
  expect(get(guest, RAX)).toBe(0xffffffffn);
});

test('ins stores, outs reads, rep counts, and a long rep comes back', () => {
  const guest = newGuest({ iopl: 1 });
  const { u32 } = guest.vcpu.block;
  const buffer = (BigInt(VA_HI) << 32n) | BigInt(KERNEL_VA + 0x1000);
  set(guest, RDI, buffer);
  set(guest, RSI, buffer);
  set(guest, RDX, 0x1f0n);
  set(guest, RCX, 3n);
  expect(execute(guest, 0xf3, 0x66, 0x6d)).toBe(true);
  expect(guest.words(KERNEL_VA + 0x1000, 2)).toEqual([0xffffffff, 0xffff]);
  expect([get(guest, RCX), get(guest, RDI)]).toEqual([0n, buffer + 6n]);
  expect(execute(guest, 0xf3, 0x6c)).toBe(true);
  expect(get(guest, RDI)).toBe(buffer + 6n);
  expect(execute(guest, 0x6e)).toBe(true);
  expect(get(guest, RSI)).toBe(buffer + 1n);
  set(guest, RCX, 1000n);
  u32[VCPU.rip >> 2] = KERNEL_VA;
  guest.machine.u8.set([0xf3, 0x6e], 0);
  expect(emulatePrivileged(guest.vcpu)).toBe(true);
  expect([u32[VCPU.rip >> 2], get(guest, RCX)]).toEqual([KERNEL_VA, 488n]);
  expect(emulatePrivileged(guest.vcpu)).toBe(true);
  expect([u32[VCPU.rip >> 2], get(guest, RCX)]).toEqual([KERNEL_VA + 2, 0n]);
  set(guest, RDI, (BigInt(VA_HI) << 32n) | BigInt(UNMAPPED_VA));
  expect(execute(guest, 0x6c)).toBe(false);
});

test('cpuid is the policy’s, in both modes', () => {
  for (const user of [false, true]) {
    const guest = newGuest({ user });
    set(guest, RAX, 0x40000000n);
    expect(execute(guest, 0x0f, 0xa2)).toBe(true);
    expect(get(guest, RBX)).toBe(0x566e6558n);
  }
});

test('what stays #GP', () => {
  // hlt, invd, rdpmc, swapgs, invlpg, vmcall, a lock prefix, ud2
  for (const code of [
    [0xf4],
    [0x0f, 0x08],
    [0x0f, 0x33],
    [0x0f, 0x01, 0xf8],
    [0x0f, 0x01, 0x38],
    [0x0f, 0x01, 0xc1],
    [0xf0, 0x0f, 0x06],
    [0x0f, 0x0b],
  ]) {
    expect(execute(newGuest({ iopl: 1 }), ...code)).toBe(false);
  }
  expect(execute(newGuest(), 0x0f, 0x09)).toBe(true);
  // The kernel's instructions in user mode.
  for (const code of [
    [0x0f, 0x30],
    [0x0f, 0x32],
    [0x0f, 0x06],
    [0x0f, 0x09],
    [0x0f, 0x20, 0xc0],
    [0x0f, 0x22, 0xd8],
    [0x0f, 0x21, 0xf8],
    [0xfa],
    [0x0f, 0x01, 0xd1],
  ]) {
    expect(execute(newGuest({ user: true }), ...code)).toBe(false);
  }
});
