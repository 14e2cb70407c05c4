import { expect, test } from 'vitest';
import { cpuid as wasmCpuid } from '../engine/wasm/cpuid.ts';
import { cpuFeatures, missingFeatures } from './cpu-features.ts';
import { cpuidPolicy, offeredXcr0, XSTATE_AVX } from './cpuid-policy.ts';
import { type CpuidStatement, cpuidSettings, cutDownTo, NO_CPUID_SETTINGS } from './cpuid-settings.ts';
import { TestGuest } from './testing.ts';

function guestWith(...statements: CpuidStatement[]): TestGuest {
  const guest = new TestGuest({ ramPages: 16, cpuid: cpuidSettings(statements) });
  Object.assign(guest.engine, { facts: { ...guest.engine.facts, xcr0Mask: 7 }, cpuid: wasmCpuid });
  return guest;
}

const ask = (guest: TestGuest, leaf: number, subleaf = 0) => ({ ...cpuidPolicy(guest.vcpu, leaf, subleaf) });

/** Bits of a register: `{ 28: '0' }`. */
const bits = (some: Readonly<Record<number, string>>): string =>
  Array.from({ length: 32 }, (_, i) => some[31 - i] ?? 'x').join('');

const has = (register: number, bit: number): boolean => ((register >>> bit) & 1) !== 0;

test('without statements nothing changes', () => {
  const plain = new TestGuest({ ramPages: 16 });
  Object.assign(plain.engine, { facts: { ...plain.engine.facts, xcr0Mask: 7 }, cpuid: wasmCpuid });
  const guest = guestWith({ leaf: 1, subleaf: null, registers: { ecx: bits({}) } });
  for (const leaf of [0, 1, 7, 0xd, 0x40000000, 0x80000000, 0x80000001])
    expect(ask(guest, leaf)).toEqual(ask(plain, leaf));
});

test('AVX that is taken away takes along what is built on it, and its state', () => {
  const guest = guestWith({ leaf: 1, subleaf: null, registers: { ecx: bits({ 28: '0' }) } });
  const { ecx } = ask(guest, 1);
  // AVX FMA F16C; XSAVE, MOVBE and SSE4.2 stay.
  for (const bit of [28, 12, 29]) expect(has(ecx, bit)).toBe(false);
  for (const bit of [26, 22, 20]) expect(has(ecx, bit)).toBe(true);
  // AVX2; BMI1 stays.
  expect(has(ask(guest, 7).ebx, 5)).toBe(false);
  expect(has(ask(guest, 7).ebx, 3)).toBe(true);
  expect(offeredXcr0(guest.vcpu) & XSTATE_AVX).toBe(0);
  expect(ask(guest, 0xd)).toMatchObject({ eax: 3, ecx: 576 });
  expect(ask(guest, 0xd, 2)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
});

test('XSAVE that is taken away leaves no leaf of it', () => {
  const guest = guestWith({ leaf: 1, subleaf: null, registers: { ecx: bits({ 26: '0' }) } });
  expect(offeredXcr0(guest.vcpu)).toBe(0);
  expect(ask(guest, 0).eax).toBe(7);
  expect(has(ask(guest, 1).ecx, 28)).toBe(false);
});

test('a feature that the engine has not cannot be set', () => {
  // AES, PCID; AVX512F, SMEP
  const guest = guestWith(
    { leaf: 1, subleaf: null, registers: { ecx: bits({ 25: '1', 17: '1' }) } },
    { leaf: 7, subleaf: 0, registers: { ebx: bits({ 16: '1', 7: 'k' }) } },
  );
  for (const bit of [25, 17]) expect(has(ask(guest, 1).ecx, bit)).toBe(false);
  for (const bit of [16, 7]) expect(has(ask(guest, 7).ebx, bit)).toBe(false);
});

test('vendor, family and the highest leaves can be chosen; the APIC id cannot', () => {
  const guest = guestWith(
    { leaf: 0, subleaf: null, registers: { eax: `${'0'.repeat(29)}111`, ebx: '01000001011101010111010001101000' } },
    { leaf: 1, subleaf: null, registers: { eax: bits({ 8: '1', 9: '1', 10: '1', 11: '1' }), ebx: '1'.repeat(32) } },
    { leaf: 0x80000000, subleaf: null, registers: { eax: `1${'0'.repeat(28)}100` } },
    { leaf: 0x40000000, subleaf: null, registers: { eax: bits({ 0: '1', 1: '1', 2: '0' }) } },
  );
  expect(ask(guest, 0)).toMatchObject({ eax: 7, ebx: 0x41757468 });
  expect((ask(guest, 1).eax >>> 8) & 15).toBe(15);
  expect(ask(guest, 1).ebx).toBe(0x00ffffff);
  expect(ask(guest, 0xd)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
  expect(ask(guest, 0x80000000).eax).toBe(0x80000004);
  expect(ask(guest, 0x80000007)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
  expect(ask(guest, 0x40000000).eax).toBe(0x40000003);
  expect(ask(guest, 0x40000005).ebx).toBe(0);
});

test('a leaf that no policy has, and characters that mean nothing, are errors', () => {
  const one = (leaf: number, subleaf: number | null, eax: string) => () =>
    cpuidSettings([{ leaf, subleaf, registers: { eax } }]);
  expect(one(0x16, null, bits({}))).toThrow('Missing leaf 0x16, subleaf 0xffffffff');
  expect(one(7, null, bits({}))).toThrow('Missing leaf 0x7, subleaf 0xffffffff');
  expect(one(1, 0, bits({}))).toThrow('Missing leaf 0x1, subleaf 0x0');
  expect(one(1, null, bits({ 31: '?' }))).toThrow(`Bad character '?' in policy[0] string '?${'x'.repeat(31)}'`);
});

test('where programs see the CPU’s own state, features of state stay', () => {
  const statement = { leaf: 1, subleaf: null, registers: { ecx: bits({ 28: '0', 26: '0', 22: '0' }) } };
  expect(cpuidSettings([statement], false).without).toEqual(['movbe']);
  expect(cpuidSettings([statement]).without).toContain('avx512f');
});

test('a guest that may go to another CPU is shown what both have', () => {
  const all = 0xffffffff;
  const native = (leaf: number, subleaf: number) => {
    if (leaf === 0) return { eax: 0xd, ebx: 0x68747541, ecx: 0x444d4163, edx: 0x69746e65 };
    if (leaf === 0x80000000) return { eax: 0x80000021, ebx: 0, ecx: 0, edx: 0 };
    return leaf === 0xd && subleaf > 1
      ? { eax: 64, ebx: 576, ecx: 0, edx: 0 }
      : { eax: all, ebx: all, ecx: all, edx: all };
  };
  const on = (cpuid: typeof native, xcr0Mask: number): TestGuest => {
    const guest = new TestGuest({ ramPages: 16, cpuid: cutDownTo(NO_CPUID_SETTINGS, wasmCpuid) });
    Object.assign(guest.engine, { facts: { ...guest.engine.facts, xcr0Mask }, cpuid });
    return guest;
  };
  const [here, there] = [on(native, 0xe7), on(wasmCpuid, 7)];
  expect(missingFeatures(cpuFeatures(here.vcpu), cpuFeatures(there.vcpu))).toEqual([]);
  expect(missingFeatures(cpuFeatures(there.vcpu), cpuFeatures(here.vcpu))).toEqual([]);
  expect(offeredXcr0(here.vcpu)).toBe(7);
  const { ecx } = ask(here, 1);
  // AES is gone; AVX, XSAVE and "there is a hypervisor" stay.
  expect([25, 28, 26, 31].map((bit) => has(ecx, bit))).toEqual([false, true, true, true]);
});
