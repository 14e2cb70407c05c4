/** What the host's CPU and KVM are, measured once a process by a tiny guest. */

import { createMachineMemory } from '../../machine/memory.ts';
import { createVcpuBlock } from '../../machine/vcpu-block.ts';
import type { EngineFacts } from '../engine.ts';
import { KVM_GET_TSC_KHZ } from './abi.ts';
import { requireHost } from './host.ts';
import { PROBE_XGETBV } from './hypervisor-area.ts';
import { KvmVcpu, M2P_VA } from './kvm-vcpu.ts';
import { createVm, destroyVm } from './vm.ts';

const MEASURE_NS = 20_000_000;
/** Above this difference the measured rate is right and the reported one is not. */
const RATE_TOLERANCE = 0.001;
/** x87, SSE and AVX state: what a guest gets where the choice is ours. */
const XCR0_WANTED = 7;
/** With the three parts of AVX-512. */
const XCR0_KNOWN = 0xe7;

let measured: EngineFacts | undefined;

export function measureFacts(): EngineFacts {
  if (measured !== undefined) return measured;
  const machine = createMachineMemory(16, 16);
  const unknown: EngineFacts = {
    name: 'kvm',
    tscKhz: 1,
    tscStable: true,
    xcr0Mask: 0,
    m2pVaLo: M2P_VA.lo,
    m2pVaHi: M2P_VA.hi,
  };
  const handle = createVm(machine, 1, unknown);
  try {
    const vcpu = new KvmVcpu(handle, machine, createVcpuBlock(0));
    const xcr0Mask = probeXcr0(vcpu);
    const reportedKhz = requireHost().ioctl(vcpu.fd, KVM_GET_TSC_KHZ, 0);
    const measuredKhz = measureTscKhz(vcpu);
    const agree = reportedKhz > 0 && Math.abs(measuredKhz - reportedKhz) / reportedKhz <= RATE_TOLERANCE;
    measured = { ...unknown, xcr0Mask, tscKhz: agree ? reportedKhz : Math.round(measuredKhz) };
    vcpu.close();
    return measured;
  } finally {
    destroyVm(handle);
  }
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
