/**
 * What a domain's config says of CPUID, made ready for cpuid-policy.ts: bits to clear and to set.
 *
 * A feature can only be taken away: the default has all that a PV guest of the engine can have, so 1, x, k and s are the same for it.
 * With a feature go all that are built on it. Of other registers those bits count that a guest may have as it likes: vendor, family,
 * model, stepping, caches, names, and the highest leaves, which can only be lowered. Everything else stays Domus's.
 *
 * Source: xen/tools/gen-cpuid.py (which feature is built on which), xen/arch/x86/cpuid.c recalculate_cpuid_policy(),
 * tools/libs/guest/xg_cpuid_x86.c xc_cpuid_xend_policy() (read for behaviour).
 */

import { type CpuidRegister, FEATURE_WORDS } from '../abi/arch-x86/cpufeatureset.ts';
import type { CpuidResult } from '../engine/engine.ts';

/** For one register of a leaf. */
export interface CpuidChange {
  readonly leaf: number;
  /** Null: of each. */
  readonly subleaf: number | null;
  readonly register: CpuidRegister;
  /** Masks. */
  readonly clear: number;
  readonly set: number;
}

/** Plain data that can be posted to a worker. */
export interface CpuidSettings {
  readonly changes: readonly CpuidChange[];
  /** Names of the features that are taken away, with those built on them. */
  readonly without: readonly string[];
  /** The highest basic and extended leaf, at most. */
  readonly maxBasicLeaf: number;
  readonly maxExtendedLeaf: number;
  /** The number of the highest of Xen's leaves. */
  readonly maxXenLeaf: number;
}

/** What is said of a leaf: 32 characters of 0, 1, x, k, s for a register, the most significant bit first. */
export interface CpuidStatement {
  readonly leaf: number;
  readonly subleaf: number | null;
  readonly registers: Partial<Record<CpuidRegister, string>>;
}

const MAX_LEAVES = { maxBasicLeaf: 0xffffffff, maxExtendedLeaf: 0xffffffff, maxXenLeaf: 5 } as const;
export const NO_CPUID_SETTINGS: CpuidSettings = { changes: [], without: [], ...MAX_LEAVES };

/** A statement that no policy can be made of. The message is libxenguest's. */
export class CpuidStatementError extends Error {}

/** The feature -> those that are built directly on it. */
const BUILT_ON: Readonly<Record<string, string>> = {
  fpu: 'mmx rstr-fp-err-ptrs',
  pse: 'pse36',
  pae: 'lm nx',
  tsc: 'tsc-deadline rdtscp tsc-adjust itsc',
  apic: 'x2apic tsc-deadline extapic',
  mmx: 'mmxext 3dnow',
  fxsr: 'ffxsr sse',
  sse: 'sse2 misalignsse',
  sse2: 'sse3 lm aesni pclmulqdq sha gfni',
  sse3: 'ssse3 sse4a',
  ssse3: 'sse4-1',
  'sse4-1': 'sse4-2',
  xsave: 'xsaveopt xsavec xgetbv1 xsaves avx mpx pku lwp',
  avx: 'fma fma4 f16c avx2 xop',
  nx: 'smap',
  lm: 'cx16 pcid lahf-lm page1gb pku no-lmsl',
  '3dnow': '3dnowext',
  avx2: 'avx512f vaes vpclmulqdq avx-vnni',
  avx512f:
    'avx512dq avx512-ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512-4vnniw avx512-4fmaps avx512-vnni ' +
    'avx512-vpopcntdq avx512-vp2intersect',
  avx512bw: 'avx512-vbmi avx512-vbmi2 avx512-bitalg avx512-bf16 avx512-fp16',
  pclmulqdq: 'vpclmulqdq',
  aesni: 'vaes',
};

/** Leaves that a policy has: those with subleaves want one named. Source: xen/lib/x86/cpuid.c, x86_cpuid_copy_to_buffer(). */
const LEAVES_WITH_SUBLEAVES: Readonly<Record<number, number>> = { 4: 5, 7: 1, 11: 1, 13: 62 };
const LAST_BASIC_LEAF = 0xd;
const LAST_EXTENDED_LEAF = 0x80000021;
const XEN_LEAF = 0x40000000;
const VIRIDIAN_LEAF = 0x40000100;
/** Xen has no less than leaves 0 to 2 of its own. */
const XEN_LEAF_MIN = 2;

/** Registers that are no features, and which of their bits a config may choose. */
const FREE: readonly (readonly [leaf: number, register: CpuidRegister, mask: number])[] = [
  ...(['ebx', 'ecx', 'edx'] as const).map((register) => [0, register, 0xffffffff] as const),
  [1, 'eax', 0xffffffff],
  [1, 'ebx', 0x00ffffff],
  ...[2, 4, 0x80000002, 0x80000003, 0x80000004, 0x80000005, 0x80000006].flatMap((leaf) =>
    (['eax', 'ebx', 'ecx', 'edx'] as const).map((register) => [leaf, register, 0xffffffff] as const),
  ),
  [0x80000008, 'ecx', 0xf0ff],
];

function hasLeaf(leaf: number, subleaf: number | null): boolean {
  if (leaf === XEN_LEAF || leaf === VIRIDIAN_LEAF) return subleaf === null;
  const last = LEAVES_WITH_SUBLEAVES[leaf];
  if (last !== undefined) return subleaf !== null && subleaf <= last;
  const isKnown = leaf <= LAST_BASIC_LEAF || (leaf >= 0x80000000 && leaf <= LAST_EXTENDED_LEAF);
  return isKnown && subleaf === null;
}

/**
 * Features that stand for state. Where programs see the CPU's own XCR0 they stay: a kernel that does not see them would not keep that
 * state across its context switches.
 */
export const OF_STATE: ReadonlySet<string> = new Set(['xsave', 'avx', 'avx2', 'avx512f']);
/** Features of the kernel's own doing, that no config changes: mirrors of CR4. */
const MIRRORS = new Set(['osxsave', 'ospke']);
/** Those that AMD's CPUs show a second time, in the same place. Source: gen-cpuid.py, CPUID_COMMON_1D_FEATURES. */
const SHOWN_TWICE = 'fpu vme de pse tsc msr pae mce cx8 apic mtrr pge mca cmov pat pse36 mmx fxsr'.split(' ');

const hex = (value: number): string => `0x${(value >>> 0).toString(16)}`;

/** Masks of the bits that are 0 and that are 1. */
function masksOf(bits: string, register: CpuidRegister): { zeros: number; ones: number } {
  let zeros = 0;
  let ones = 0;
  for (let i = 0; i < 32; i++) {
    const character = bits[i];
    if (!/[01xks]/.test(character)) {
      const number = ['eax', 'ebx', 'ecx', 'edx'].indexOf(register);
      throw new CpuidStatementError(`Bad character '${character}' in policy[${number}] string '${bits}'`);
    }
    if (character === '0') zeros |= 1 << (31 - i);
    if (character === '1') ones |= 1 << (31 - i);
  }
  return { zeros: zeros >>> 0, ones: ones >>> 0 };
}

/**
 * Makes the statements of a config ready.
 *
 * @param hidesState the engine can hide vector state from programs
 * @throws CpuidStatementError for a leaf that no policy has, and for characters that mean nothing
 */
export function cpuidSettings(statements: readonly CpuidStatement[], hidesState = true): CpuidSettings {
  const without = new Set<string>();
  const kept = hidesState ? new Set<string>() : OF_STATE;
  const changes: CpuidChange[] = [];
  const limits = { ...MAX_LEAVES } as { -readonly [key in keyof typeof MAX_LEAVES]: number };
  for (const { leaf, subleaf, registers } of statements) {
    if (!hasLeaf(leaf, subleaf))
      throw new CpuidStatementError(`Missing leaf ${hex(leaf)}, subleaf ${hex(subleaf ?? 0xffffffff)}`);
    for (const [name, bits] of Object.entries(registers)) {
      const register = name as CpuidRegister;
      const { zeros, ones } = masksOf(bits, register);
      const word = FEATURE_WORDS.find(
        (one) => one.leaf === leaf && one.subleaf === subleaf && one.register === register,
      );
      for (const [feature, bit] of word?.bits ?? []) if (((zeros >>> bit) & 1) !== 0) takeAway(feature, without, kept);
      const free = FREE.find(([of, one]) => of === leaf && one === register)?.[2] ?? 0;
      if (((zeros | ones) & free) !== 0)
        changes.push({ leaf, subleaf, register, clear: (zeros & free) >>> 0, set: (ones & free) >>> 0 });
      if (register !== 'eax') continue;
      // Bits that nothing is said of are those of the highest leaf by default.
      if (leaf === 0) limits.maxBasicLeaf = ((LAST_BASIC_LEAF & ~zeros) | ones) >>> 0;
      if (leaf === 0x80000000) limits.maxExtendedLeaf = ((LAST_EXTENDED_LEAF & ~zeros) | ones) >>> 0;
      if (leaf === XEN_LEAF) {
        const wanted = ones & 0xff;
        if (wanted !== 0) limits.maxXenLeaf = Math.min(Math.max(wanted, XEN_LEAF_MIN), MAX_LEAVES.maxXenLeaf);
      }
    }
  }
  for (const { leaf, subleaf, register, bits } of FEATURE_WORDS) {
    let clear = 0;
    for (const [feature, bit] of bits) if (without.has(feature)) clear |= 1 << bit;
    if (leaf === 0x80000001 && register === 'edx') clear |= secondMask(without);
    if (clear !== 0) changes.push({ leaf, subleaf, register, clear: clear >>> 0, set: 0 });
  }
  return { changes, without: [...without], ...limits };
}

/**
 * The same for a guest that is to find its CPU on an engine that answers CPUID with `other`: features that this one lacks are taken away, and SYSENTER,
 * which 64-bit code of one vendor's CPUs has only.
 */
export function cutDownTo(
  { changes, without, ...limits }: CpuidSettings,
  other: (leaf: number, subleaf: number) => CpuidResult,
): CpuidSettings {
  const cut = FEATURE_WORDS.map(({ leaf, subleaf, register, bits }) => {
    let keep = other(leaf, subleaf ?? 0)[register];
    if (leaf === 1 && register === 'edx') keep &= ~(1 << (bits.get('sep') ?? 0));
    // Of the hypervisor's own doing, whatever the CPU has.
    if (leaf === 1 && register === 'ecx')
      keep |= (1 << (bits.get('osxsave') ?? 0)) | (1 << (bits.get('hypervisor') ?? 0));
    return { leaf, subleaf, register, clear: ~keep >>> 0, set: 0, bits };
  });
  const lost = cut.flatMap(({ clear, bits }) => [...bits].filter(([, bit]) => ((clear >>> bit) & 1) !== 0));
  return {
    changes: [...changes, ...cut.map(({ bits, ...change }) => change)],
    without: [...new Set([...without, ...lost.map(([name]) => name)])],
    ...limits,
  };
}

function secondMask(without: ReadonlySet<string>): number {
  const { bits } = FEATURE_WORDS[0];
  let mask = 0;
  for (const feature of SHOWN_TWICE) if (without.has(feature)) mask |= 1 << (bits.get(feature) ?? 0);
  return mask;
}

function takeAway(feature: string, without: Set<string>, kept: ReadonlySet<string>): void {
  if (without.has(feature) || MIRRORS.has(feature) || kept.has(feature)) return;
  without.add(feature);
  for (const built of BUILT_ON[feature]?.split(' ') ?? []) takeAway(built, without, kept);
}
