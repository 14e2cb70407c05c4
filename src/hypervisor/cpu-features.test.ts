/** What a guest has seen of a CPU, and would not find on another one. */

import { expect, test } from 'vitest';
import type { CpuidResult } from '../engine/engine.ts';
import { cpuFeatures, FEATURE_WORDS, missingFeatures } from './cpu-features.ts';
import { TestGuest } from './testing.ts';

/** A host of AMD's with all features, but for these bits. */
function hostWithout(lacking: number, register: keyof CpuidResult, bits: number): TestGuest {
  const guest = new TestGuest({ ramPages: 16, vcpus: 1 });
  guest.engine.cpuid = (leaf) => {
    if (leaf === 0) return { eax: 0xd, ebx: 0x68747541, ecx: 0x444d4163, edx: 0x69746e65 };
    if (leaf === 0x80000000) return { eax: 0x80000021, ebx: 0, ecx: 0, edx: 0 };
    const all: CpuidResult = { eax: 0xffffffff, ebx: 0xffffffff, ecx: 0xffffffff, edx: 0xffffffff };
    return leaf === lacking ? { ...all, [register]: ~bits >>> 0 } : all;
  };
  return guest;
}

test.each([
  [0x80000008, 'ebx', 1 << 0, 'clzero'],
  [0x80000008, 'ebx', 1 << 2, 'xsaveerptr'],
  [0x80000007, 'edx', 1 << 8, 'nonstop_tsc'],
  [0x80000021, 'eax', 1 << 2, 'lfence_rdtsc'],
  [0x80000021, 'eax', 1 << 6, 'null_sel_clr_base'],
  [0x80000001, 'ecx', 1 << 6, 'sse4a'],
] as const)('what a host lacks in leaf %x, %s, bits %i, is called %s', (leaf, register, bits, name) => {
  const had = cpuFeatures(hostWithout(0, 'eax', 0).vcpu);
  const here = cpuFeatures(hostWithout(leaf, register, bits).vcpu);
  expect(missingFeatures(had, here)).toEqual([name]);
  expect(missingFeatures(here, had)).toEqual([]);
  expect(here.words.length).toBe(FEATURE_WORDS);
});
