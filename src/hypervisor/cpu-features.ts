/**
 * What a guest has learnt of the CPU, as far as it must find it again wherever it goes on: the feature words that its policy shows
 * it, and the state components that it may use.
 */

import type { EngineFacts } from '../engine/engine.ts';
import { cpuidPolicy, offeredXcr0, XSTATE_AVX512 } from './cpuid-policy.ts';
import type { Vcpu } from './vcpu.ts';

export interface CpuFeatures {
  readonly xcr0: number;
  /** In the order of WORDS. */
  readonly words: readonly number[];
}

type Register = 'eax' | 'ebx' | 'ecx' | 'edx';

interface Word {
  readonly leaf: number;
  readonly subleaf: number;
  readonly register: Register;
  readonly name: string;
  /** Bits that are no features of the CPU. */
  readonly ignored?: number;
}

const OSXSAVE = 1 << 27;
/** FDP_EXCP_ONLY and NO_FPU_SEL say what is in fields of an FPU image that nobody reads. */
const FPU_FACTS = (1 << 6) | (1 << 13);

const WORDS: readonly Word[] = [
  { leaf: 1, subleaf: 0, register: 'ecx', name: 'CPUID.1:ECX', ignored: OSXSAVE },
  { leaf: 1, subleaf: 0, register: 'edx', name: 'CPUID.1:EDX' },
  { leaf: 7, subleaf: 0, register: 'ebx', name: 'CPUID.7:EBX', ignored: FPU_FACTS },
  { leaf: 7, subleaf: 0, register: 'ecx', name: 'CPUID.7:ECX' },
  { leaf: 7, subleaf: 0, register: 'edx', name: 'CPUID.7:EDX' },
  { leaf: 7, subleaf: 1, register: 'eax', name: 'CPUID.7.1:EAX' },
  { leaf: 0xd, subleaf: 1, register: 'eax', name: 'CPUID.D.1:EAX' },
  { leaf: 0x80000001, subleaf: 0, register: 'ecx', name: 'CPUID.80000001:ECX' },
  { leaf: 0x80000001, subleaf: 0, register: 'edx', name: 'CPUID.80000001:EDX' },
  { leaf: 0x80000008, subleaf: 0, register: 'ebx', name: 'CPUID.80000008:EBX' },
  { leaf: 0x80000007, subleaf: 0, register: 'edx', name: 'CPUID.80000007:EDX' },
  { leaf: 0x80000021, subleaf: 0, register: 'eax', name: 'CPUID.80000021:EAX' },
];

export const FEATURE_WORDS: number = WORDS.length;
/** Domains that were saved before there were more have so many. */
export const FEATURE_WORDS_MIN = 9;

/** Those that users of Linux know by name. Source: xen/include/public/arch-x86/cpufeatureset.h. */
const NAMES: Readonly<Record<string, Readonly<Record<number, string>>>> = {
  'CPUID.1:ECX': { 12: 'fma', 26: 'xsave', 28: 'avx', 29: 'f16c', 30: 'rdrand', 25: 'aes', 1: 'pclmulqdq' },
  'CPUID.1:EDX': { 11: 'sep' },
  'CPUID.7:EBX': {
    ...{ 3: 'bmi1', 5: 'avx2', 8: 'bmi2', 9: 'erms', 16: 'avx512f', 17: 'avx512dq', 18: 'rdseed', 19: 'adx' },
    ...{ 21: 'avx512ifma', 23: 'clflushopt', 24: 'clwb', 28: 'avx512cd', 29: 'sha_ni', 30: 'avx512bw', 31: 'avx512vl' },
  },
  'CPUID.7:ECX': {
    ...{ 1: 'avx512vbmi', 6: 'avx512_vbmi2', 8: 'gfni', 9: 'vaes', 10: 'vpclmulqdq', 11: 'avx512_vnni' },
    ...{ 12: 'avx512_bitalg', 14: 'avx512_vpopcntdq' },
  },
  'CPUID.7:EDX': { 4: 'fsrm' },
  'CPUID.7.1:EAX': { 4: 'avx_vnni', 5: 'avx512_bf16' },
  'CPUID.D.1:EAX': { 0: 'xsaveopt', 1: 'xsavec', 2: 'xgetbv1' },
  'CPUID.80000001:ECX': { 5: 'abm', 6: 'sse4a', 7: 'misalignsse', 8: '3dnowprefetch' },
  'CPUID.80000001:EDX': { 22: 'mmxext', 25: 'fxsr_opt', 27: 'rdtscp', 30: '3dnowext', 31: '3dnow' },
  'CPUID.80000008:EBX': { 0: 'clzero', 2: 'xsaveerptr' },
  'CPUID.80000007:EDX': { 8: 'nonstop_tsc' },
  'CPUID.80000021:EAX': { 2: 'lfence_rdtsc', 6: 'null_sel_clr_base' },
};

/** What a domain that this vCPU belongs to is shown. */
export function cpuFeatures(v: Vcpu): CpuFeatures {
  const words = WORDS.map(({ leaf, subleaf, register, ignored = 0 }) => {
    const word = cpuidPolicy(v, leaf, subleaf)[register];
    return (word & ~ignored) >>> 0;
  });
  return { xcr0: offeredXcr0(v), words };
}

/** Names of what a guest has that it would not find. */
export function missingFeatures(had: CpuFeatures, here: CpuFeatures): string[] {
  const missing: string[] = [];
  WORDS.forEach(({ name }, i) => {
    const bits = had.words[i] & ~here.words[i];
    for (let bit = 0; bit < 32; bit++)
      if ((bits & (1 << bit)) !== 0) missing.push(NAMES[name]?.[bit] ?? `${name}[${bit}]`);
  });
  if ((had.xcr0 & ~here.xcr0) !== 0) missing.push(`XCR0 ${(had.xcr0 & ~here.xcr0).toString(16)}`);
  return missing;
}

/**
 * What programs of the guest could find and use although its kernel does not know of it: they see the CPU's own CPUID where that
 * cannot be intercepted. Null: nothing. `keepsTo`: they find, or use, no more than the guest's kernel.
 */
export function unsavedState(had: CpuFeatures, facts: EngineFacts, keepsTo: boolean): string | null {
  const more = keepsTo ? 0 : facts.xcr0Mask & ~had.xcr0;
  if (more === 0) return null;
  return (more & XSTATE_AVX512) !== 0 ? 'AVX-512' : `XCR0 ${more.toString(16)}`;
}
