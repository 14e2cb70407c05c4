import { expect, test } from 'vitest';
import type { CpuidResult, EngineFacts } from '../engine/engine.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { CR4_OSXSAVE, cpuidPolicy, offeredXcr0, XCR0_OFFERED } from './cpuid-policy.ts';
import { DOMAIN } from './domain.ts';
import { TestGuest } from './testing.ts';

type Register = keyof CpuidResult;

/** Bits that no guest may see, whatever the CPU says. */
const HIDDEN: readonly (readonly [number, number, Register, readonly number[]])[] = [
  // DTES64 MONITOR VMX SMX EIST PDCM PCID DCA X2APIC TSC_DEADLINE
  [1, 0, 'ecx', [2, 3, 5, 6, 7, 15, 17, 18, 21, 24]],
  // VME PSE MTRR PGE PSE36 DS ACPI HTT TM
  [1, 0, 'edx', [1, 3, 12, 13, 17, 21, 22, 28, 29]],
  // FSGSBASE TSC_ADJUST SGX HLE SMEP INVPCID RTM PQM MPX PQE SMAP PT
  [7, 0, 'ebx', [0, 1, 2, 4, 7, 10, 11, 12, 14, 15, 20, 25]],
  // UMIP PKU OSPKE WAITPKG CET_SS TME LA57 RDPID BUSLOCK SGX_LC PKS
  [7, 0, 'ecx', [2, 3, 4, 5, 7, 13, 16, 22, 24, 30, 31]],
  // SRBDS_CTRL MD_CLEAR TSX_ABORT HYBRID CET_IBT AMX IBRS STIBP L1D_FLUSH ARCH_CAPS CORE_CAPS SSBD
  [7, 0, 'edx', [9, 10, 11, 13, 15, 18, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31]],
  // LASS FRED LKGS WRMSRNS AMX_FP16 LAM
  [7, 1, 'eax', [6, 17, 18, 19, 21, 26]],
  // XSAVES XFD
  [0xd, 1, 'eax', [3, 4]],
  // SVM EXTAPIC CR8_LEGACY IBS SKINIT WDT LWP NODEID TOPOEXT PERFCTR DBEXT PERFTSC LLC MWAITX
  [0x80000001, 0, 'ecx', [2, 3, 4, 10, 12, 13, 15, 19, 22, 23, 24, 26, 27, 28, 29]],
  // VME PSE MTRR PGE PSE36 FFXSR PAGE1GB
  [0x80000001, 0, 'edx', [1, 3, 12, 13, 17, 25, 26]],
  // IBPB IBRS STIBP and their hints, SSBD
  [0x80000008, 0, 'ebx', [12, 14, 15, 16, 17, 18, 19, 24, 25, 26]],
  // AUTO_IBRS SBPB IBPB_BRTYPE
  [0x80000021, 0, 'eax', [8, 27, 28]],
];

interface Native {
  readonly vendor?: 'intel' | 'amd';
  readonly facts?: Partial<EngineFacts>;
  readonly answer?: (leaf: number, subleaf: number) => Partial<CpuidResult>;
}

/** An engine that has every feature, unless told otherwise. */
function newGuest({ vendor = 'intel', facts = {}, answer = () => ({}) }: Native = {}): TestGuest {
  const guest = new TestGuest({ ramPages: 16, vcpus: 1 });
  Object.assign(guest.engine, { facts: { ...guest.engine.facts, ...facts } });
  // One object for all answers, as an engine may do.
  const result: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  guest.engine.cpuid = (leaf, subleaf) => {
    Object.assign(
      result,
      { eax: 0xffffffff, ebx: 0xffffffff, ecx: 0xffffffff, edx: 0xffffffff },
      answer(leaf, subleaf),
    );
    if (leaf === 0) {
      result.eax = 0x20;
      result.ebx = vendor === 'amd' ? 0x68747541 : 0x756e6547;
    } else if (leaf === 0x80000000) result.eax = 0x80000028;
    else if (leaf === 0xd && subleaf === 2) Object.assign(result, { eax: 256, ebx: 576, ecx: 0, edx: 0 });
    else if (leaf === 0xd && subleaf === 5) Object.assign(result, { eax: 64, ebx: 1088, ecx: 0, edx: 0 });
    else if (leaf === 0xd && subleaf === 6) Object.assign(result, { eax: 512, ebx: 1152, ecx: 2, edx: 0 });
    else if (leaf === 0xd && subleaf === 7) Object.assign(result, { eax: 1024, ebx: 1664, ecx: 2, edx: 0 });
    return result;
  };
  return guest;
}

const ask = (guest: TestGuest, leaf: number, subleaf = 0, forced = false): CpuidResult => ({
  ...cpuidPolicy(guest.vcpu, leaf, subleaf, forced),
});

const ZERO: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

test.each(['intel', 'amd'] as const)('no random CPU (%s) gets a hidden bit through', (vendor) => {
  let seed = 12345;
  const random = (): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return (seed ^ (seed << 13)) >>> 0;
  };
  for (let n = 0; n < 300; n++) {
    const all = n < 6;
    const answers = new Map<string, Partial<CpuidResult>>();
    const guest = newGuest({
      vendor,
      facts: { xcr0Mask: [0, 3, 7, 0xe7, 0x602e7, 0xffffffff][n % 6], tscStable: n % 2 === 0 },
      answer(leaf, subleaf) {
        const key = `${leaf} ${subleaf}`;
        const known = answers.get(key) ?? (all ? {} : { eax: random(), ebx: random(), ecx: random(), edx: random() });
        answers.set(key, known);
        return known;
      },
    });
    guest.vcpu.block.u32[VCPU.cr4 >> 2] = random();
    for (const [leaf, subleaf, register, bits] of HIDDEN) {
      const value = ask(guest, leaf, subleaf, n % 3 === 0)[register];
      for (const bit of bits) expect((value >>> bit) & 1, `leaf ${leaf.toString(16)} ${register} bit ${bit}`).toBe(0);
    }
    const xcr0 = ask(guest, 0xd).eax;
    expect(xcr0 & ~XCR0_OFFERED).toBe(0);
    if ((xcr0 & 4) === 0) {
      expect(ask(guest, 1).ecx & ((1 << 12) | (1 << 28) | (1 << 29))).toBe(0);
      expect(ask(guest, 7).ebx & (1 << 5)).toBe(0);
      expect(ask(guest, 7).ecx & ((1 << 9) | (1 << 10))).toBe(0);
    }
    if ((xcr0 & 0xe0) === 0) {
      expect(ask(guest, 7).ebx & 0xdc230000).toBe(0);
      expect(ask(guest, 7).ecx & 0x5842).toBe(0);
      expect(ask(guest, 7).edx & 0x80010c).toBe(0);
    }
    if (!guest.engine.facts.tscStable) expect(ask(guest, 0x80000007).edx).toBe(0);
  }
});

test('what is not native is not shown, but for HYPERVISOR and APIC', () => {
  const guest = newGuest({ answer: () => ZERO });
  expect(ask(guest, 1)).toEqual({ eax: 0, ebx: 0x00010000, ecx: 0x80000000, edx: 0x200 });
  expect(ask(guest, 7)).toEqual(ZERO);
  expect(ask(guest, 0x80000001)).toEqual(ZERO);
});

test('what a 64-bit PV kernel needs is there', () => {
  const guest = newGuest();
  const { ecx, edx } = ask(guest, 1);
  for (const bit of [0, 2, 4, 5, 6, 8, 9, 11, 15, 16, 19, 23, 24, 25, 26]) expect((edx >>> bit) & 1).toBe(1);
  for (const bit of [0, 13, 23, 26, 28]) expect((ecx >>> bit) & 1).toBe(1);
  for (const bit of [11, 20, 27, 29]) expect((ask(guest, 0x80000001).edx >>> bit) & 1).toBe(1);
  expect(ask(guest, 0x80000007)).toEqual({ ...ZERO, edx: 0x100 });
});

test('the Xen leaves', () => {
  const guest = newGuest({ facts: { tscKhz: 2_600_000 } });
  const { u32 } = guest.domain;
  u32[DOMAIN.tscBase >> 2] = 0x11;
  u32[(DOMAIN.tscBase >> 2) + 1] = 0x22;
  u32[DOMAIN.tscMul >> 2] = 0x33;
  guest.domain.i32[DOMAIN.tscShift >> 2] = -1;
  expect(ask(guest, 0x40000000)).toEqual({ eax: 0x40000005, ebx: 0x566e6558, ecx: 0x65584d4d, edx: 0x4d4d566e });
  expect(ask(guest, 0x40000001)).toEqual({ ...ZERO, eax: 0x00040011 });
  expect(ask(guest, 0x40000002)).toEqual({ eax: 1, ebx: 0x40000000, ecx: 1, edx: 0 });
  expect(ask(guest, 0x40000003)).toEqual({ eax: 6, ebx: 0, ecx: 2_600_000, edx: 0 });
  expect(ask(guest, 0x40000003, 1)).toEqual({ eax: 0x11, ebx: 0x22, ecx: 0x33, edx: 0xff });
  expect(ask(guest, 0x40000003, 2)).toEqual({ ...ZERO, eax: 2_600_000 });
  expect(ask(guest, 0x40000004)).toEqual(ZERO);
  expect(ask(guest, 0x40000005)).toEqual({ ...ZERO, ebx: 33 });
  expect(ask(guest, 0x40000006)).toEqual(ZERO);
  expect(ask(guest, 0x40000100)).toEqual(ZERO);
});

test('leaves past the last one are empty', () => {
  const intel = newGuest();
  expect(ask(intel, 0).eax).toBe(0xd);
  expect(ask(intel, 0x80000000).eax).toBe(0x80000008);
  expect(ask(newGuest({ vendor: 'amd' }), 0x80000000).eax).toBe(0x80000021);
  for (const leaf of [0xe, 0x16, 0x1f, 0x3fffffff, 0x80000009, 0x8fffffff, 0xffffffff])
    expect(ask(intel, leaf)).toEqual(ZERO);
});

test('SYSENTER is hidden on AMD CPUs only', () => {
  const sep = (vendor: 'intel' | 'amd'): number => (ask(newGuest({ vendor }), 1).edx >>> 11) & 1;
  expect([sep('intel'), sep('amd')]).toEqual([1, 0]);
});

test('topology: one thread, one core, the APIC id is the vCPU id', () => {
  const guest = newGuest({ vendor: 'amd' });
  Object.assign(guest.vcpu, { id: 3 });
  expect(ask(guest, 1).ebx).toBe(0x0301ffff);
  expect(ask(guest, 4, 2).eax >>> 14).toBe(0);
  expect(ask(guest, 0xb)).toEqual(ZERO);
  expect(ask(guest, 0x80000008).ecx).toBe(0);
  expect(ask(guest, 0x8000001e)).toEqual(ZERO);
});

test('OSXSAVE mirrors CR4, and the kernel’s forced CPUID always shows it with XSAVE', () => {
  const osxsave = (guest: TestGuest, forced: boolean): number => (ask(guest, 1, 0, forced).ecx >>> 27) & 1;
  const guest = newGuest();
  expect([osxsave(guest, false), osxsave(guest, true)]).toEqual([0, 1]);
  guest.vcpu.block.u32[VCPU.cr4 >> 2] = CR4_OSXSAVE;
  expect([osxsave(guest, false), osxsave(guest, true)]).toEqual([1, 1]);
  const without = newGuest({ facts: { xcr0Mask: 0 } });
  without.vcpu.block.u32[VCPU.cr4 >> 2] = CR4_OSXSAVE;
  expect([osxsave(without, false), osxsave(without, true)]).toEqual([0, 0]);
});

test('leaf 0xd is computed for what is offered and for what is enabled', () => {
  const guest = newGuest();
  const { u32 } = guest.vcpu.block;
  u32[VCPU.xcr0 >> 2] = 1;
  expect(offeredXcr0(guest.vcpu)).toBe(7);
  expect(ask(guest, 0xd)).toEqual({ eax: 7, ebx: 576, ecx: 832, edx: 0 });
  expect(ask(guest, 0xd, 1)).toEqual({ eax: 7, ebx: 576, ecx: 0, edx: 0 });
  u32[VCPU.xcr0 >> 2] = 7;
  expect(ask(guest, 0xd)).toEqual({ eax: 7, ebx: 832, ecx: 832, edx: 0 });
  expect(ask(guest, 0xd, 1).ebx).toBe(832);
  expect(ask(guest, 0xd, 2)).toEqual({ eax: 256, ebx: 576, ecx: 0, edx: 0 });
  for (const subleaf of [3, 4, 8, 9, 11, 63, 0xffffffff]) expect(ask(guest, 0xd, subleaf)).toEqual(ZERO);
});

test('without XSAVE there is no leaf 0xd and nothing that needs it', () => {
  for (const guest of [
    newGuest({ facts: { xcr0Mask: 0 } }),
    newGuest({ answer: (leaf) => (leaf === 1 ? { ecx: 0 } : {}) }),
  ]) {
    expect(offeredXcr0(guest.vcpu)).toBe(0);
    expect(ask(guest, 0).eax).toBe(7);
    expect(ask(guest, 0xd)).toEqual(ZERO);
    expect(ask(guest, 1).ecx & 0x3c001000).toBe(0);
    expect(ask(guest, 0x80000001).ecx & 0x210800).toBe(0);
  }
});
