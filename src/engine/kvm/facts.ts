/** What the host's CPU and KVM are, measured once a process by a tiny guest. */

import { createMachineMemory } from '../../machine/memory.ts';
import { createVcpuBlock } from '../../machine/vcpu-block.ts';
import type { EngineFacts } from '../engine.ts';
import { CPUID_ENTRY_WORDS, KVM_GET_TSC_KHZ } from './abi.ts';
import { requireHost } from './host.ts';
import { M2P_VA_HI, M2P_VA_LO, PROBE_XGETBV } from './hypervisor-area.ts';
import { KvmVcpu } from './kvm-vcpu.ts';
import type { HostTraits, KvmDomainHandle } from './vm.ts';
import { createVm, destroyVm } from './vm.ts';

const MEASURE_NS = 20_000_000;
/** Above this difference the measured rate is right and the reported one is not. */
const RATE_TOLERANCE = 0.001;
/** x87, SSE and AVX state: what a guest gets where the choice is ours. */
const XCR0_WANTED = 7;
/** With the three parts of AVX-512. */
const XCR0_KNOWN = 0xe7;

/** A CPUID leaf that the test VM answers in its own way. */
const MARKED_LEAF = 0x40000000;
const MARKER = 0x444f4d55;

/** Source: Intel SDM vol. 3, 18.17.1. */
const INVARIANT_TSC_LEAF = 0x80000007;
const INVARIANT_TSC = 1 << 8;

let measured: HostTraits | undefined;

export function measureFacts(): HostTraits {
  if (measured !== undefined) return measured;
  const machine = createMachineMemory(16, 16);
  const unknown: EngineFacts = {
    name: 'kvm',
    tscKhz: 1,
    tscStable: true,
    xcr0Mask: 0,
    m2pVaLo: M2P_VA_LO,
    m2pVaHi: M2P_VA_HI,
  };
  const vm = createVm(machine, 1, { facts: unknown, interceptsCpuid: true });
  const handle: KvmDomainHandle = { ...vm, cpuid: markCpuid(vm.cpuid) };
  try {
    const vcpu = new KvmVcpu(handle, machine, createVcpuBlock(0));
    const xcr0Mask = probeXcr0(vcpu);
    const reportedKhz = requireHost().ioctl(vcpu.fd, KVM_GET_TSC_KHZ, 0);
    const measuredKhz = measureTscKhz(vcpu);
    const agree = reportedKhz > 0 && Math.abs(measuredKhz - reportedKhz) / reportedKhz <= RATE_TOLERANCE;
    measured = {
      facts: {
        ...unknown,
        xcr0Mask,
        tscStable: (vcpu.cpuid(INVARIANT_TSC_LEAF, 0).edx & INVARIANT_TSC) !== 0,
        tscKhz: agree ? reportedKhz : Math.round(measuredKhz),
      },
      interceptsCpuid: vcpu.cpuid(MARKED_LEAF, 0).ebx === MARKER,
    };
    vcpu.close();
    return measured;
  } finally {
    destroyVm(handle);
  }
}

function markCpuid(list: Uint32Array): Uint32Array {
  const others: number[] = [];
  for (let i = 0; i < list.length; i += CPUID_ENTRY_WORDS) {
    if (list[i] !== MARKED_LEAF) others.push(...list.subarray(i, i + CPUID_ENTRY_WORDS));
  }
  return Uint32Array.from([...others, MARKED_LEAF, 0, 0, MARKED_LEAF, MARKER, 0, 0, 0, 0, 0]);
}

/**
 * A KVM that does not intercept what CPL 3 does runs the guest under the host's XCR0, whatever is set for the guest. Then the guest
 * must save all that user code can use, so the host's value counts.
 */
function probeXcr0(vcpu: KvmVcpu): number {
  const XSAVE_AND_OSXSAVE = 3 << 26;
  if ((vcpu.cpuid(1, 0).ecx & XSAVE_AND_OSXSAVE) !== XSAVE_AND_OSXSAVE) return 0;
  vcpu.setXcr0(vcpu.cpuid(0xd, 0).eax & XCR0_WANTED);
  return vcpu.runProbe(PROBE_XGETBV) ? vcpu.probeEax() & XCR0_KNOWN : 0;
}

function measureTscKhz(vcpu: KvmVcpu): number {
  const first = vcpu.readTsc();
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, MEASURE_NS / 1e6);
  const last = vcpu.readTsc();
  const ticks = (last.tscHi - first.tscHi) * 2 ** 32 + (last.tscLo - first.tscLo);
  return (ticks / (last.atNs - first.atNs)) * 1e6;
}
