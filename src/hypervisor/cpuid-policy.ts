/**
 * What CPUID tells a PV guest: Xen's own leaves, and the CPU's answers cut down to what a PV guest can use.
 *
 * Features are let through by name. A bit that no list here names is hidden, so new ones stay hidden until somebody looks at them.
 * Hidden with reason: everything of page tables and of kernel mode (a PV kernel runs at CPL 3), performance counters, speculation
 * controls (each comes with an MSR), state that needs XSAVES, and FSGSBASE and RDPID (their registers are ours to virtualise).
 *
 * A domain's config takes features away, and has its say where a guest may be told anything (cpuid-settings.ts).
 *
 * The topology is fixed: every vCPU is a package with one core and one thread, and its APIC id is its number.
 *
 * Quirks
 * - This is the answer to the forced-emulation CPUID and to a CPUID that traps. Where the CPU lets CPL 3 execute CPUID, programs of
 *   the guest see the CPU's own answer, and nothing here can change it; real Xen without CPUID faulting is the same.
 * - OSXSAVE: to the kernel's forced CPUID it is set whenever XSAVE is, although the kernel has not set CR4.OSXSAVE yet. Linux takes
 *   XSAVE only when it sees both. Everybody else gets the architectural mirror of CR4. Source: xen/arch/x86/cpuid.c,
 *   guest_cpuid() (behaviour).
 *
 * Source of the bits: xen/include/public/arch-x86/cpufeatureset.h; Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E.
 */

import type { CpuidResult } from '../engine/engine.ts';
import { MFN_BASE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN } from './domain.ts';
import type { Vcpu } from './vcpu.ts';

/** Xen 4.17, as XENVER_version says. */
const XEN_VERSION = (4 << 16) | 17;
const XEN_FIRST_LEAF = 0x40000000;

export const XSTATE_X87 = 1;
export const XSTATE_SSE = 2;
export const XSTATE_AVX = 4;
/** Opmask, upper halves of ZMM0-15, ZMM16-31: usable together only. */
export const XSTATE_AVX512 = 0xe0;
/**
 * State components that may be offered to a guest, out of those the engine can run. All that user code can use must be among them,
 * or the guest's kernel would not save it across its context switches.
 */
export const XCR0_OFFERED: number = XSTATE_X87 | XSTATE_SSE | XSTATE_AVX | XSTATE_AVX512;
/** Legacy region and header of an XSAVE area. Source: Intel SDM vol. 1, 13.4. */
const XSAVE_LEGACY_SIZE = 576;

/** Guest CR4. */
export const CR4_OSXSAVE = 1 << 18;

const LEAF1_ECX_XSAVE = 1 << 26;
const LEAF1_ECX_OSXSAVE = 1 << 27;
const LEAF1_ECX_HYPERVISOR = 0x80000000;
/** Also in leaf 0x80000001 of AMD CPUs. Natively it says whether the local APIC is on, which is the engine's affair. */
const LEAF1_EDX_APIC = 1 << 9;
const LEAF1_EDX_SEP = 1 << 11;
const LEAF80000001_EDX_RDTSCP = 1 << 27;
/** The TSC runs at one rate in all power states. */
const LEAF80000007_EDX_ITSC = 1 << 8;

/** A register of feature bits: what passes always, and what passes only with the state that it works on. */
interface FeatureWord {
  readonly plain: number;
  readonly xsave?: number;
  readonly avx?: number;
  readonly avx512?: number;
}

function bits(...numbers: number[]): number {
  let mask = 0;
  for (const bit of numbers) mask |= 1 << bit;
  return mask >>> 0;
}

const LEAF1_ECX: FeatureWord = {
  // SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AESNI RDRAND
  plain: bits(0, 1, 9, 13, 19, 20, 22, 23, 25, 30),
  xsave: LEAF1_ECX_XSAVE,
  // FMA AVX F16C
  avx: bits(12, 28, 29),
};
/** FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFLUSH MMX FXSR SSE SSE2 */
const LEAF1_EDX: FeatureWord = { plain: bits(0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 23, 24, 25, 26) };
const LEAF7_EBX: FeatureWord = {
  // BMI1 FDP_EXCP_ONLY BMI2 ERMS NO_FPU_SEL RDSEED ADX CLFLUSHOPT CLWB SHA
  plain: bits(3, 6, 8, 9, 13, 18, 19, 23, 24, 29),
  // AVX2
  avx: bits(5),
  // AVX512F DQ IFMA CD BW VL
  avx512: bits(16, 17, 21, 28, 30, 31),
};
const LEAF7_ECX: FeatureWord = {
  // GFNI CLDEMOTE MOVDIRI MOVDIR64B
  plain: bits(8, 25, 27, 28),
  // VAES VPCLMULQDQ
  avx: bits(9, 10),
  // AVX512_VBMI VBMI2 VNNI BITALG VPOPCNTDQ
  avx512: bits(1, 6, 11, 12, 14),
};
const LEAF7_EDX: FeatureWord = {
  // FSRM
  plain: bits(4),
  // AVX512_VP2INTERSECT FP16
  avx512: bits(8, 23),
};
const LEAF7_1_EAX: FeatureWord = {
  // FZRM FSRS FSRCS
  plain: bits(10, 11, 12),
  // AVX_VNNI
  avx: bits(4),
  // AVX512_BF16
  avx512: bits(5),
};
const LEAFD_1_EAX: FeatureWord = {
  plain: 0,
  // XSAVEOPT XSAVEC XGETBV1
  xsave: bits(0, 1, 2),
};
const LEAF80000001_ECX: FeatureWord = {
  // LAHF_LM ABM SSE4A MISALIGNSSE 3DNOWPREFETCH
  plain: bits(0, 5, 6, 7, 8),
  // XOP FMA4 TBM
  avx: bits(11, 16, 21),
};
/** As leaf 1 EDX, but SYSCALL, NX, MMXEXT, RDTSCP, LM, 3DNOWEXT, 3DNOW for SEP, CLFLUSH, SSE and SSE2. */
const LEAF80000001_EDX: FeatureWord = {
  plain: bits(0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 20, 22, 23, 24, 27, 29, 30, 31),
};
const LEAF80000008_EBX: FeatureWord = {
  // CLZERO
  plain: bits(0),
  // RSTR_FP_ERR_PTRS
  xsave: bits(2),
};
/** Performance hints: FP128 MOVU FP256. */
const LEAF8000001A_EAX = bits(0, 1, 2);
/** Facts about how instructions behave, not controls: LFENCE_DISPATCH, NULL_SELECTOR_CLEARS_BASE. */
const LEAF80000021_EAX = bits(2, 6);

/** Leaves 4 EAX: the fields that count threads and cores are in the upper bits; 0 = one of each. */
const LEAF4_EAX_CACHE = 0x3fff;

/** "Auth" and "Hygo", leaf 0 EBX: vendors with AMD's extended leaves. */
const VENDOR_AMD_EBX = 0x68747541;
const VENDOR_HYGON_EBX = 0x6f677948;

const MAX_BASIC_LEAF = 0xd;
const MAX_BASIC_LEAF_WITHOUT_XSAVE = 7;
const MAX_EXTENDED_LEAF = 0x80000008;
const MAX_EXTENDED_LEAF_AMD = 0x80000021;

const PHYSICAL_BITS_MIN = 36;
const PHYSICAL_BITS_MAX = 46;
const VIRTUAL_BITS = 48;

/** The answer to `cpuidPolicy`, filled anew each time. */
const answer: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

function setAnswer(eax: number, ebx: number, ecx: number, edx: number): CpuidResult {
  answer.eax = eax >>> 0;
  answer.ebx = ebx >>> 0;
  answer.ecx = ecx >>> 0;
  answer.edx = edx >>> 0;
  return answer;
}

/** The bits of XCR0 that this guest may set; 0: it has no XSAVE. */
export function offeredXcr0(v: Vcpu): number {
  let mask = v.engine.facts.xcr0Mask & XCR0_OFFERED;
  const { without } = v.domain.cpuid;
  if (without.includes('xsave')) return 0;
  if (without.includes('avx')) mask &= ~XSTATE_AVX;
  if (without.includes('avx512f')) mask &= ~XSTATE_AVX512;
  if ((mask & (XSTATE_X87 | XSTATE_SSE)) !== (XSTATE_X87 | XSTATE_SSE)) return 0;
  if ((mask & XSTATE_AVX) === 0 || (mask & XSTATE_AVX512) !== XSTATE_AVX512) mask &= ~XSTATE_AVX512;
  return (v.engine.cpuid(1, 0).ecx & LEAF1_ECX_XSAVE) !== 0 ? mask : 0;
}

function visible(native: number, word: FeatureWord, xcr0: number): number {
  let mask = word.plain;
  if (xcr0 !== 0) mask |= word.xsave ?? 0;
  if ((xcr0 & XSTATE_AVX) !== 0) mask |= word.avx ?? 0;
  if ((xcr0 & XSTATE_AVX512) !== 0) mask |= word.avx512 ?? 0;
  return (native & mask) >>> 0;
}

/**
 * CPUID as this vCPU sees it. `kernelForced`: asked by the guest kernel through the forced-emulation prefix (see OSXSAVE above).
 * The object returned is reused by the next call.
 */
export function cpuidPolicy(v: Vcpu, leaf: number, subleaf: number, kernelForced = false): CpuidResult {
  leaf >>>= 0;
  subleaf >>>= 0;
  const { changes, maxBasicLeaf, maxExtendedLeaf, maxXenLeaf } = v.domain.cpuid;
  if (leaf < XEN_FIRST_LEAF) {
    if (leaf > maxBasicLeaf) return setAnswer(0, 0, 0, 0);
    basicLeaf(v, leaf, subleaf, kernelForced);
    if (leaf === 0) answer.eax = Math.min(answer.eax, maxBasicLeaf);
  } else if (leaf <= XEN_FIRST_LEAF + maxXenLeaf) return xenLeaf(v, leaf, subleaf);
  else if (leaf >= 0x80000000 && leaf <= maxExtendedLeaf) {
    extendedLeaf(v, leaf);
    if (leaf === 0x80000000) answer.eax = Math.min(answer.eax, maxExtendedLeaf);
  } else setAnswer(0, 0, 0, 0);
  for (const change of changes) {
    if (change.leaf !== leaf || (change.subleaf !== null && change.subleaf !== subleaf)) continue;
    answer[change.register] = ((answer[change.register] & ~change.clear) | change.set) >>> 0;
  }
  return answer;
}

/** Source: xen/include/public/arch-x86/cpuid.h; xen/arch/x86/traps.c, cpuid_hypervisor_leaves() (behaviour). */
function xenLeaf(v: Vcpu, leaf: number, subleaf: number): CpuidResult {
  const facts = v.engine.facts;
  const shared = v.domain;
  switch (leaf - XEN_FIRST_LEAF) {
    case 0:
      // "XenVMMXenVMM"
      return setAnswer(XEN_FIRST_LEAF + shared.cpuid.maxXenLeaf, 0x566e6558, 0x65584d4d, 0x4d4d566e);
    case 1:
      return setAnswer(XEN_VERSION, 0, 0, 0);
    case 2:
      // One hypercall page, installed by MSR 0x40000000; XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD.
      return setAnswer(1, 0x40000000, 1, 0);
    case 3: {
      if (subleaf === 1) {
        const base = DOMAIN.tscBase >> 2;
        const shift = shared.i32[DOMAIN.tscShift >> 2] & 0xff;
        return setAnswer(shared.u32[base], shared.u32[base + 1], shared.u32[DOMAIN.tscMul >> 2], shift);
      }
      if (subleaf === 2) return setAnswer(facts.tscKhz, 0, 0, 0);
      if (subleaf !== 0) return setAnswer(0, 0, 0, 0);
      const rdtscp = (v.engine.cpuid(0x80000001, 0).edx & LEAF80000001_EDX_RDTSCP) !== 0;
      const tscKhz = shared.u32[DOMAIN.tscKhz >> 2] || facts.tscKhz;
      // Not emulated; tsc_mode 0, the default; incarnation 0.
      return setAnswer((facts.tscStable ? 2 : 0) | (rdtscp ? 4 : 0), 0, tscKhz, 0);
    }
    case 5:
      // Width of a machine address: grant table v1 is enough.
      return setAnswer(0, 32 - Math.clz32(MFN_BASE + v.machine.layout.nameableFrames - 1) + 12, 0, 0);
    default:
      // 4 is for HVM guests.
      return setAnswer(0, 0, 0, 0);
  }
}

function basicLeaf(v: Vcpu, leaf: number, subleaf: number, kernelForced: boolean): CpuidResult {
  const xcr0 = offeredXcr0(v);
  const max = Math.min(v.engine.cpuid(0, 0).eax >>> 0, xcr0 !== 0 ? MAX_BASIC_LEAF : MAX_BASIC_LEAF_WITHOUT_XSAVE);
  if (leaf > max) return setAnswer(0, 0, 0, 0);
  switch (leaf) {
    case 0: {
      const native = v.engine.cpuid(0, 0);
      return setAnswer(max, native.ebx, native.ecx, native.edx);
    }
    case 1: {
      const native = v.engine.cpuid(1, 0);
      const { eax } = native;
      let ecx = visible(native.ecx, LEAF1_ECX, xcr0) | LEAF1_ECX_HYPERVISOR;
      const osxsave = (v.block.u32[VCPU.cr4 >> 2] & CR4_OSXSAVE) !== 0 || kernelForced;
      if (xcr0 !== 0 && osxsave) ecx |= LEAF1_ECX_OSXSAVE;
      const ebx = (v.id << 24) | (1 << 16) | (native.ebx & 0xffff);
      let edx = visible(native.edx, LEAF1_EDX, xcr0) | LEAF1_EDX_APIC;
      // AMD CPUs have no SYSENTER in long mode, and Xen does not make up for it.
      if (hasAmdLeaves(v)) edx &= ~LEAF1_EDX_SEP;
      return setAnswer(eax, ebx, ecx, edx);
    }
    case 2: {
      const native = v.engine.cpuid(2, 0);
      return setAnswer(native.eax, native.ebx, native.ecx, native.edx);
    }
    case 4: {
      const native = v.engine.cpuid(4, subleaf);
      return setAnswer(native.eax & LEAF4_EAX_CACHE, native.ebx, native.ecx, native.edx);
    }
    case 7: {
      if (subleaf > 1) return setAnswer(0, 0, 0, 0);
      const maxSubleaf = Math.min(v.engine.cpuid(7, 0).eax >>> 0, 1);
      if (subleaf > maxSubleaf) return setAnswer(0, 0, 0, 0);
      const native = v.engine.cpuid(7, subleaf);
      if (subleaf === 1) return setAnswer(visible(native.eax, LEAF7_1_EAX, xcr0), 0, 0, 0);
      return setAnswer(
        maxSubleaf,
        visible(native.ebx, LEAF7_EBX, xcr0),
        visible(native.ecx, LEAF7_ECX, xcr0),
        visible(native.edx, LEAF7_EDX, xcr0),
      );
    }
    case 0xd:
      return xsaveLeaf(v, subleaf, xcr0);
    default:
      // Power, performance counters, extended topology and what came later.
      return setAnswer(0, 0, 0, 0);
  }
}

/** Bytes of an XSAVE area for the components in `xcr0`, in the standard or the compacted form. Source: Intel SDM vol. 1, 13.4. */
function xsaveAreaSize(v: Vcpu, xcr0: number, compacted: boolean): number {
  let size = XSAVE_LEGACY_SIZE;
  for (let component = 2; component < 8; component++) {
    if ((xcr0 & (1 << component)) === 0) continue;
    const native = v.engine.cpuid(0xd, component);
    if (!compacted) size = Math.max(size, native.eax + native.ebx);
    else size = ((native.ecx & 2) !== 0 ? (size + 63) & ~63 : size) + native.eax;
  }
  return size;
}

function xsaveLeaf(v: Vcpu, subleaf: number, xcr0: number): CpuidResult {
  const enabled = (v.block.u32[VCPU.xcr0 >> 2] & xcr0) | XSTATE_X87;
  if (subleaf === 0) return setAnswer(xcr0, xsaveAreaSize(v, enabled, false), xsaveAreaSize(v, xcr0, false), 0);
  if (subleaf === 1) {
    const features = visible(v.engine.cpuid(0xd, 1).eax, LEAFD_1_EAX, xcr0);
    return setAnswer(features, (features & 2) !== 0 ? xsaveAreaSize(v, enabled, true) : 0, 0, 0);
  }
  if (subleaf > 7 || (xcr0 & (1 << subleaf)) === 0) return setAnswer(0, 0, 0, 0);
  const native = v.engine.cpuid(0xd, subleaf);
  // Of the flags only "aligned to 64 bytes in the compacted form": the component is not a supervisor one.
  return setAnswer(native.eax, native.ebx, native.ecx & 2, 0);
}

function hasAmdLeaves(v: Vcpu): boolean {
  const vendor = v.engine.cpuid(0, 0).ebx >>> 0;
  return vendor === VENDOR_AMD_EBX || vendor === VENDOR_HYGON_EBX;
}

function extendedLeaf(v: Vcpu, leaf: number): CpuidResult {
  const amd = hasAmdLeaves(v);
  const nativeMax = v.engine.cpuid(0x80000000, 0).eax >>> 0;
  const max = Math.min(nativeMax, amd ? MAX_EXTENDED_LEAF_AMD : MAX_EXTENDED_LEAF);
  if (leaf > max) return setAnswer(0, 0, 0, 0);
  const native = v.engine.cpuid(leaf, 0);
  switch (leaf) {
    case 0x80000000:
      return setAnswer(max, native.ebx, native.ecx, native.edx);
    case 0x80000001: {
      const { eax, ebx, ecx, edx } = native;
      const xcr0 = offeredXcr0(v);
      const edxVisible = visible(edx, LEAF80000001_EDX, xcr0) | (amd ? LEAF1_EDX_APIC : 0);
      return setAnswer(eax, ebx, visible(ecx, LEAF80000001_ECX, xcr0), edxVisible);
    }
    case 0x80000002:
    case 0x80000003:
    case 0x80000004:
    case 0x80000005:
    case 0x80000006:
      // The model's name, its caches and TLBs.
      return setAnswer(native.eax, native.ebx, native.ecx, native.edx);
    case 0x80000007:
      return setAnswer(0, 0, 0, v.engine.facts.tscStable ? native.edx & LEAF80000007_EDX_ITSC : 0);
    case 0x80000008: {
      const width = Math.max(PHYSICAL_BITS_MIN, Math.min(PHYSICAL_BITS_MAX, native.eax & 0xff));
      const ebx = native.ebx;
      return setAnswer((VIRTUAL_BITS << 8) | width, visible(ebx, LEAF80000008_EBX, offeredXcr0(v)), 0, 0);
    }
    case 0x8000001a:
      return setAnswer(native.eax & LEAF8000001A_EAX, 0, 0, 0);
    case 0x80000021:
      return setAnswer(native.eax & LEAF80000021_EAX, 0, 0, 0);
    default:
      return setAnswer(0, 0, 0, 0);
  }
}
