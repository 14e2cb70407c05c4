/** The CPUID list of a vCPU: what KVM answers where it intercepts CPUID, and what KVM's own emulator goes by. */

import type { CpuidResult } from '../engine.ts';
import { CPUID_ENTRY_WORDS, CPUID2_HEADER_WORDS, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_SET_CPUID2 } from './abi.ts';
import type { VcpuFile } from './vcpu-file.ts';

/** ebx, ecx, edx of leaf 0. */
const GENUINE_INTEL: readonly number[] = [0x756e6547, 0x6c65746e, 0x49656e69];

export interface CpuidEntry {
  readonly leaf: number;
  readonly subleaf: number;
  /** The entry answers for its subleaf only. */
  readonly subleafMatters: boolean;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** `entries` as in struct kvm_cpuid2, CPUID_ENTRY_WORDS words each. False when KVM refuses. */
export function setCpuidList(file: VcpuFile, entries: Uint32Array, interceptsCpuid: boolean): boolean {
  const buffer = new Uint32Array(CPUID2_HEADER_WORDS + entries.length);
  buffer[0] = entries.length / CPUID_ENTRY_WORDS;
  buffer.set(entries, CPUID2_HEADER_WORDS);
  if (!interceptsCpuid) {
    // The guest never sees this list, but KVM's emulator asks it: for any vendor but Intel it would run the SYSCALL of 32-bit code
    // and land, at ring 0, at the low half of CSTAR, which is the guest's own code.
    for (let i = CPUID2_HEADER_WORDS; i < buffer.length; i += CPUID_ENTRY_WORDS) {
      if (buffer[i] === 0) buffer.set(GENUINE_INTEL, i + 4);
    }
  }
  return file.host.ioctl(file.fd, KVM_SET_CPUID2, file.host.addressOf(new Uint8Array(buffer.buffer))) === 0;
}

/** A list for `setCpuidList()`. */
export function cpuidListOf(entries: readonly CpuidEntry[]): Uint32Array {
  const words = new Uint32Array(entries.length * CPUID_ENTRY_WORDS);
  entries.forEach((e, i) => {
    const flags = e.subleafMatters ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
    words.set([e.leaf, e.subleaf, flags, e.eax, e.ebx, e.ecx, e.edx], i * CPUID_ENTRY_WORDS);
  });
  return words;
}

/** The first answer of a list for a leaf; zeros when it has none. */
export function listedLeaf(list: Uint32Array, leaf: number): CpuidResult {
  for (let i = 0; i < list.length; i += CPUID_ENTRY_WORDS) {
    if (list[i] === leaf) return { eax: list[i + 3], ebx: list[i + 4], ecx: list[i + 5], edx: list[i + 6] };
  }
  return { eax: 0, ebx: 0, ecx: 0, edx: 0 };
}
