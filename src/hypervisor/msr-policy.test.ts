import { expect, test } from 'vitest';
import { MFN_BASE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { readMsr, writeMsr } from './msr-policy.ts';
import { TestGuest } from './testing.ts';

function newGuest(trapTable = true): TestGuest {
  const guest = new TestGuest();
  if (trapTable) guest.vcpu.block.u32[(VCPU.traps >> 2) + 13 * 4] = 0x1000;
  return guest;
}

/** The value, or undefined for #GP. */
function read(guest: TestGuest, msr: number): bigint | undefined {
  if (!readMsr(guest.vcpu, msr)) return undefined;
  return (BigInt(guest.vcpu.access.hi >>> 0) << 32n) | BigInt(guest.vcpu.access.lo >>> 0);
}

test('segment bases are live; one that is not canonical is #GP', () => {
  const guest = newGuest();
  const { u64 } = guest.vcpu.block;
  const bases = [
    [0xc0000100, VCPU.fsBase],
    [0xc0000101, VCPU.gsBase],
    [0xc0000102, VCPU.gsBaseInactive],
  ] as const;
  for (const [msr, offset] of bases) {
    expect(writeMsr(guest.vcpu, msr, 0x89abcdef, 0xffff8880)).toBe(true);
    expect(u64[offset >> 3]).toBe(0xffff888089abcdefn);
    expect(read(guest, msr)).toBe(0xffff888089abcdefn);
    expect(writeMsr(guest.vcpu, msr, 0, 0x8000)).toBe(false);
    expect(read(guest, msr)).toBe(0xffff888089abcdefn);
  }
});

test('fixed answers', () => {
  const guest = newGuest();
  expect(read(guest, 0xc0000080)).toBe(0xd01n);
  expect(read(guest, 0x277)).toBe(0x0000050100070406n);
  expect(read(guest, 0x1b)).toBe(0xfee00900n);
  Object.assign(guest.vcpu, { id: 1 });
  expect(read(guest, 0x1b)).toBe(0xfee00800n);
  expect(read(guest, 0x1a0)).toBe(1n);
  expect(read(guest, 0xc0011029)).toBe(2n);
  expect(read(guest, 0xc0010015)).toBe(0n);
  for (const msr of [0x8b, 0x174, 0x179, 0xc0000081, 0xc0010010, 0xc0010064, 0xc0010068, 0xc0011020])
    expect(read(guest, msr)).toBe(0n);
  guest.engine.readTsc = () => ({ tscLo: 5, tscHi: 6, atNs: 0 });
  expect(read(guest, 0x10)).toBe(0x6_0000_0005n);
});

test('HWCR says that the TSC runs at one rate when CPUID does', () => {
  const guest = newGuest();
  guest.engine.cpuid = (leaf) => ({ eax: leaf === 0x80000000 ? 0x80000008 : 0, ebx: 0, ecx: 0, edx: 0x100 });
  expect(read(guest, 0xc0010015)).toBe(0x1000000n);
});

test('TSC_AUX is 32 bits', () => {
  const guest = newGuest();
  expect(writeMsr(guest.vcpu, 0xc0000103, 7, 0)).toBe(true);
  expect(read(guest, 0xc0000103)).toBe(7n);
  expect(writeMsr(guest.vcpu, 0xc0000103, 7, 1)).toBe(false);
});

test('writes that Linux makes without need change nothing', () => {
  const guest = newGuest();
  for (const msr of [0xc0000080, 0xc0000082, 0x277, 0x1b, 0x175]) {
    const before = read(guest, msr);
    expect(writeMsr(guest.vcpu, msr, 0x12345678, 0)).toBe(true);
    expect(read(guest, msr)).toBe(before);
  }
});

test('an unknown MSR is #GP, but reads 0 before there is a trap table', () => {
  for (const msr of [0x48, 0x49, 0xc1, 0xce, 0xfe, 0x10a, 0x186, 0x38f, 0x802, 0xc0010000, 0xc0010200]) {
    const guest = newGuest();
    expect(read(guest, msr)).toBeUndefined();
    expect(writeMsr(guest.vcpu, msr, 0, 0)).toBe(false);
    const early = newGuest(false);
    expect(read(early, msr)).toBe(0n);
    expect(writeMsr(early.vcpu, msr, 1, 1)).toBe(true);
    expect([...guest.log, ...early.log]).toEqual([]);
  }
});

test('MSR 0x40000000 installs the hypercall page in RAM, and nowhere else', () => {
  const guest = newGuest();
  const address = (pfn: number): number => ((pfn + MFN_BASE) << 12) >>> 0;
  const high = Math.floor(MFN_BASE / 0x100000);
  expect(writeMsr(guest.vcpu, 0x40000000, address(5), high)).toBe(true);
  expect([...guest.machine.u8.subarray(5 * 4096 + 32, 5 * 4096 + 36)]).toEqual([0x51, 0x41, 0x53, 0xb8]);
  expect(guest.machine.u8[6 * 4096]).toBe(0);
  expect(writeMsr(guest.vcpu, 0x40000000, address(5) + 1, high)).toBe(false);
  expect(writeMsr(guest.vcpu, 0x40000000, 0x5000, 0)).toBe(false);
  expect(writeMsr(guest.vcpu, 0x40000000, address(guest.machine.layout.maxPages), high)).toBe(false);
  guest.domain.frameTypes[7] = 1;
  expect(writeMsr(guest.vcpu, 0x40000000, address(7), high)).toBe(false);
});
