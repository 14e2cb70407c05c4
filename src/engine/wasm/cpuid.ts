/**
 * The CPU that this engine is: x86-64-v3. Source of the leaves: Intel SDM vol. 2, CPUID.
 *
 * Family 6, model 0x36 is an in-order Atom, which speculates as little as this engine does: kernels turn their mitigations off.
 */

import type { CpuidResult } from '../engine.ts';
import { FEATURES_V3 } from '../x86/tables.ts';
import { AREA, COMPONENTS, UPPER_AT, UPPER_BYTES } from './layout.ts';

const SIGNATURE = 0x00030661;
const BRAND = 'Domus translating engine (x86-64-v3)';

/** What the decoder knows. */
export const SHOWN_FEATURES: readonly string[] = [...FEATURES_V3, 'RDTSCP'];

const bits = (...numbers: number[]): number => numbers.reduce((mask, bit) => mask | (1 << bit), 0) >>> 0;

/** SSE3 SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT XSAVE AVX F16C; OSXSAVE is the guest's affair */
const LEAF1_ECX = bits(0, 9, 12, 13, 19, 20, 22, 23, 26, 28, 29);
/** FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFSH MMX FXSR SSE SSE2 */
const LEAF1_EDX = bits(0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 23, 24, 25, 26);
/** BMI1 AVX2 BMI2 ERMS, no FPU CS and DS */
const LEAF7_EBX = bits(3, 5, 8, 9, 13);
/** XSAVEOPT XSAVEC XGETBV with index 1 */
const LEAFD_1_EAX = bits(0, 1, 2);
/** LAHF LZCNT */
const LEAF80000001_ECX = bits(0, 5);
/** SYSCALL NX RDTSCP LM */
const LEAF80000001_EDX = bits(11, 20, 27, 29);

const text = (from: string, at: number): number =>
  [3, 2, 1, 0].reduce((word, i) => (word << 8) | (from.charCodeAt(at + i) || 0), 0) >>> 0;

const result = (eax: number, ebx = 0, ecx = 0, edx = 0): CpuidResult => ({ eax, ebx, ecx, edx });

export function cpuid(leaf: number, subleaf: number): CpuidResult {
  const vendor = 'GenuineIntel';
  switch (leaf >>> 0) {
    case 0:
      return result(0xd, text(vendor, 0), text(vendor, 8), text(vendor, 4));
    case 1:
      // CLFLUSH lines of 64 bytes.
      return result(SIGNATURE, 8 << 8, LEAF1_ECX, LEAF1_EDX);
    case 7:
      return subleaf === 0 ? result(0, LEAF7_EBX) : result(0);
    case 0xd:
      if (subleaf === 0) return result(COMPONENTS, AREA, AREA);
      if (subleaf === 1) return result(LEAFD_1_EAX);
      return subleaf === 2 ? result(UPPER_BYTES, UPPER_AT) : result(0);
    case 0x80000000:
      return result(0x80000008);
    case 0x80000001:
      return result(0, 0, LEAF80000001_ECX, LEAF80000001_EDX);
    case 0x80000002:
    case 0x80000003:
    case 0x80000004: {
      const at = ((leaf >>> 0) - 0x80000002) * 16;
      return result(text(BRAND, at), text(BRAND, at + 4), text(BRAND, at + 8), text(BRAND, at + 12));
    }
    case 0x80000007:
      // The TSC runs at one rate.
      return result(0, 0, 0, bits(8));
    case 0x80000008:
      // 48 bits of virtual, 46 of physical address.
      return result(0x302e);
    default:
      return result(0);
  }
}
