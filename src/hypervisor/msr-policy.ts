/**
 * RDMSR and WRMSR of a guest kernel. The segment bases are real (they live in the vCPU block); a few registers have a fixed answer;
 * those that Linux writes without need are swallowed; anything else is #GP, as under Xen.
 *
 * Before the guest has a trap table a #GP would end it, so until then an unknown MSR reads 0 and ignores writes.
 *
 * Source of the numbers: Intel SDM vol. 4; AMD APM vol. 2, appendix A. Source of the answers: xen/arch/x86/pv/emul-priv-op.c,
 * read_msr() and write_msr(), and xen/arch/x86/msr.c (behaviour).
 */

import { fillHypercallPage } from '../abi/arch-x86/hypercall-page.ts';
import { PAGE_SIZE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { cpuidPolicy } from './cpuid-policy.ts';
import { FRAME_LEVEL_MASK } from './domain.ts';
import { pteMfn } from './guest-access.ts';
import type { Vcpu } from './vcpu.ts';

const MSR_TSC = 0x10;
const MSR_PLATFORM_ID = 0x17;
const MSR_APIC_BASE = 0x1b;
const MSR_UCODE_REV = 0x8b;
const MSR_SYSENTER_CS = 0x174;
const MSR_SYSENTER_ESP = 0x175;
const MSR_SYSENTER_EIP = 0x176;
const MSR_MCG_CAP = 0x179;
const MSR_MCG_STATUS = 0x17a;
const MSR_MISC_ENABLE = 0x1a0;
const MSR_PAT = 0x277;
const MSR_EFER = 0xc0000080;
const MSR_STAR = 0xc0000081;
const MSR_LSTAR = 0xc0000082;
const MSR_CSTAR = 0xc0000083;
const MSR_SFMASK = 0xc0000084;
const MSR_FS_BASE = 0xc0000100;
const MSR_GS_BASE = 0xc0000101;
const MSR_KERNEL_GS_BASE = 0xc0000102;
const MSR_TSC_AUX = 0xc0000103;
const MSR_AMD_SYSCFG = 0xc0010010;
const MSR_AMD_HWCR = 0xc0010015;
const MSR_AMD_TOP_MEM = 0xc001001a;
const MSR_AMD_TOP_MEM2 = 0xc001001d;
const MSR_AMD_NB_CFG = 0xc001001f;
const MSR_AMD_PATCH_LOADER = 0xc0010020;
const MSR_AMD_INT_PENDING = 0xc0010055;
const MSR_AMD_PSTATE_FIRST = 0xc0010064;
const MSR_AMD_PSTATE_LAST = 0xc0010068;
const MSR_AMD_LS_CFG = 0xc0011020;
const MSR_AMD_DE_CFG = 0xc0011029;
const MSR_AMD_BU_CFG2 = 0xc001102a;
/** Installs the hypercall page. Source: xen/include/public/arch-x86/cpuid.h, XEN_CPUID_LEAF(2). */
const MSR_XEN_HYPERCALL_PAGE = 0x40000000;

/** SCE, LME, LMA, NX. */
const EFER = 0xd01;
const APIC_BASE = 0xfee00000;
const APIC_BASE_ENABLE = 0x800;
const APIC_BASE_BSP = 0x100;
const MISC_ENABLE_FAST_STRING = 1;
/** WB WT UC- UC WC WP UC UC: Xen's own, which the guest's entries are read with. */
const PAT_LO = 0x00070406;
const PAT_HI = 0x00000501;
/** The TSC counts at the rate of P-state 0: what an invariant TSC does. */
const HWCR_TSC_FREQ_SEL = 1 << 24;
const LEAF80000007_EDX_ITSC = 1 << 8;
/** LFENCE waits for what came before it. */
const DE_CFG_LFENCE_SERIALIZE = 2;

const TRAP_GENERAL_PROTECTION = 13;

function hasTrapTable(v: Vcpu): boolean {
  const at = (VCPU.traps >> 2) + TRAP_GENERAL_PROTECTION * 4;
  return (v.block.u32[at] | v.block.u32[at + 1]) !== 0;
}

/** Block offset of a segment base, or -1. GS_BASE is the one of the mode that runs. */
function segmentBase(msr: number): number {
  switch (msr) {
    case MSR_FS_BASE:
      return VCPU.fsBase;
    case MSR_GS_BASE:
      return VCPU.gsBase;
    case MSR_KERNEL_GS_BASE:
      return VCPU.gsBaseInactive;
    default:
      return -1;
  }
}

function answer(v: Vcpu, lo: number, hi: number): true {
  v.access.lo = lo;
  v.access.hi = hi;
  return true;
}

/** Leaves the value in `v.access.lo` and `hi`. False: #GP. */
export function readMsr(v: Vcpu, msr: number): boolean {
  const u32 = v.block.u32;
  const base = segmentBase(msr);
  if (base >= 0) return answer(v, u32[base >> 2], u32[(base >> 2) + 1]);
  switch (msr) {
    case MSR_TSC: {
      const { tscLo, tscHi } = v.engine.readTsc();
      return answer(v, tscLo, tscHi);
    }
    case MSR_TSC_AUX:
      return answer(v, u32[VCPU.tscAux >> 2], 0);
    case MSR_EFER:
      return answer(v, EFER, 0);
    case MSR_APIC_BASE:
      return answer(v, APIC_BASE + APIC_BASE_ENABLE + (v.id === 0 ? APIC_BASE_BSP : 0), 0);
    case MSR_PAT:
      return answer(v, PAT_LO, PAT_HI);
    case MSR_MISC_ENABLE:
      return answer(v, MISC_ENABLE_FAST_STRING, 0);
    case MSR_AMD_HWCR: {
      const invariant = (cpuidPolicy(v, 0x80000007, 0).edx & LEAF80000007_EDX_ITSC) !== 0;
      return answer(v, invariant ? HWCR_TSC_FREQ_SEL : 0, 0);
    }
    case MSR_AMD_DE_CFG:
      return answer(v, DE_CFG_LFENCE_SERIALIZE, 0);
    case MSR_PLATFORM_ID:
    case MSR_MCG_CAP:
    case MSR_XEN_HYPERCALL_PAGE:
      return answer(v, 0, 0);
    default:
      return ignoresWrites(msr) || !hasTrapTable(v) ? answer(v, 0, 0) : false;
  }
}

/** False: #GP. */
export function writeMsr(v: Vcpu, msr: number, lo: number, hi: number): boolean {
  const u32 = v.block.u32;
  const base = segmentBase(msr);
  if (base >= 0) {
    if (hi >>> 15 !== 0 && hi >>> 15 !== 0x1ffff) return false;
    u32[base >> 2] = lo;
    u32[(base >> 2) + 1] = hi;
    return true;
  }
  if (msr === MSR_TSC_AUX) {
    if (hi !== 0) return false;
    u32[VCPU.tscAux >> 2] = lo;
    return true;
  }
  if (msr === MSR_XEN_HYPERCALL_PAGE) return installHypercallPage(v, lo, hi);
  return ignoresWrites(msr) || !hasTrapTable(v);
}

/** MSRs that read 0 where `readMsr` says nothing else, and whose writes change nothing. */
function ignoresWrites(msr: number): boolean {
  switch (msr) {
    case MSR_TSC:
    case MSR_APIC_BASE:
    case MSR_UCODE_REV:
    case MSR_SYSENTER_CS:
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
    case MSR_MCG_STATUS:
    case MSR_MISC_ENABLE:
    case MSR_PAT:
    case MSR_EFER:
    case MSR_STAR:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_SFMASK:
    case MSR_AMD_SYSCFG:
    case MSR_AMD_HWCR:
    case MSR_AMD_TOP_MEM:
    case MSR_AMD_TOP_MEM2:
    case MSR_AMD_NB_CFG:
    case MSR_AMD_PATCH_LOADER:
    case MSR_AMD_INT_PENDING:
    case MSR_AMD_LS_CFG:
    case MSR_AMD_DE_CFG:
    case MSR_AMD_BU_CFG2:
      return true;
    default:
      return msr >= MSR_AMD_PSTATE_FIRST && msr <= MSR_AMD_PSTATE_LAST;
  }
}

/** The value is the machine address of a page of RAM, with the number of the hypercall page (there is one: 0) in its low bits. */
function installHypercallPage(v: Vcpu, lo: number, hi: number): boolean {
  if ((lo & (PAGE_SIZE - 1)) !== 0 || hi >>> 20 !== 0) return false;
  const offset = v.machine.mfnToOffset(pteMfn(lo, hi));
  if (offset < 0 || offset >= v.machine.layout.sharedInfoOffset) return false;
  if ((v.domain.frameTypes[offset >>> 12] & FRAME_LEVEL_MASK) !== 0) return false;
  fillHypercallPage(v.machine.u8.subarray(offset, offset + PAGE_SIZE));
  return true;
}
