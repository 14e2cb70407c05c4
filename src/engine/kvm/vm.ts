/** The VM file descriptor, its two memory slots and the tables that all its vCPUs share. */

import type { MachineMemory } from '../../machine/memory.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import type { EngineFacts } from '../engine.ts';
import {
  CPUID_ENTRY_WORDS,
  CPUID2_HEADER_WORDS,
  EINTR,
  KVM_CREATE_VM,
  KVM_GET_DIRTY_LOG,
  KVM_GET_SUPPORTED_CPUID,
  KVM_GET_VCPU_MMAP_SIZE,
  KVM_MEM_LOG_DIRTY_PAGES,
  KVM_SET_IDENTITY_MAP_ADDR,
  KVM_SET_TSS_ADDR,
  KVM_SET_USER_MEMORY_REGION,
  O_CLOEXEC,
  O_RDWR,
} from './abi.ts';
import { requireHost } from './host.ts';
import type { HypervisorArea } from './hypervisor-area.ts';
import { AREA_GPA, buildHypervisorArea } from './hypervisor-area.ts';
import { createRegistry, lockRecord, RECORD_WORDS, REGISTRY, unlockRecord } from './registry.ts';

/** Plain data, for `postMessage` to workers of the same process: file descriptors and addresses are process-wide. */
export interface KvmDomainHandle {
  readonly kind: 'kvm';
  readonly pid: number;
  readonly kvmFd: number;
  readonly vmFd: number;
  readonly runBytes: number;
  readonly vcpus: number;
  readonly facts: EngineFacts;
  /** CPUID at CPL 3 answers from this VM's list. False on a KVM without hardware virtualisation: see kvm-vcpu.ts. */
  readonly interceptsCpuid: boolean;
  readonly area: HypervisorArea;
  /** See registry.ts. */
  readonly registry: SharedArrayBuffer;
  /** KVM_GET_SUPPORTED_CPUID: CPUID_ENTRY_WORDS words an entry. */
  readonly cpuid: Uint32Array;
}

/** Unused guest-physical addresses below 4 GiB that VMX without unrestricted guests wants for itself. */
const IDENTITY_MAP_GPA = 0xfffbc000;
const TSS_GPA = 0xfffbd000;
const CPUID_ENTRIES_MAX = 256;

export function supportedCpuid(kvmFd: number): Uint32Array {
  const host = requireHost();
  const buffer = new Uint32Array(CPUID2_HEADER_WORDS + CPUID_ENTRIES_MAX * CPUID_ENTRY_WORDS);
  buffer[0] = CPUID_ENTRIES_MAX;
  if (host.ioctl(kvmFd, KVM_GET_SUPPORTED_CPUID, host.addressOf(new Uint8Array(buffer.buffer))) !== 0) {
    throw new Error(`KVM_GET_SUPPORTED_CPUID failed with errno ${host.errno()}`);
  }
  const entries = buffer[0];
  return buffer.slice(CPUID2_HEADER_WORDS, CPUID2_HEADER_WORDS + entries * CPUID_ENTRY_WORDS);
}

function setMemorySlot(vmFd: number, slot: number, guestPhysical: number, memory: WebAssembly.Memory, flags = 0): void {
  const host = requireHost();
  const bytes = new Uint8Array(memory.buffer);
  const address = host.addressOf(bytes);
  // struct kvm_userspace_memory_region { u32 slot, flags; u64 guest_phys_addr, memory_size, userspace_addr }
  const region = new Uint32Array(8);
  region[0] = slot;
  region[1] = flags;
  region[2] = guestPhysical >>> 0;
  region[3] = Math.floor(guestPhysical / 2 ** 32);
  region[4] = bytes.length >>> 0;
  region[5] = Math.floor(bytes.length / 2 ** 32);
  region[6] = address >>> 0;
  region[7] = Math.floor(address / 2 ** 32);
  if (host.ioctl(vmFd, KVM_SET_USER_MEMORY_REGION, host.addressOf(new Uint8Array(region.buffer))) !== 0) {
    throw new Error(`KVM refuses guest memory of ${bytes.length} bytes (errno ${host.errno()})`);
  }
}

/** The slot of memory 0. */
const MACHINE_SLOT = 1;

/** From now on, KVM notes which frames of memory 0 its guest stores into, or does not any more. @throws Error when KVM refuses */
export function logStores({ vmFd }: KvmDomainHandle, { memory }: MachineMemory, wanted: boolean): void {
  setMemorySlot(vmFd, MACHINE_SLOT, MFN_BASE * PAGE_SIZE, memory, wanted ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

/**
 * Marks the frames that the guest has stored into since `logStores` or the last call. What it stores from now on is for the next one.
 * Source: Linux Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG.
 */
export function markStores({ vmFd }: KvmDomainHandle, { memory, dirty, layout }: MachineMemory): void {
  const host = requireHost();
  const log = new Uint32Array(Math.ceil(memory.buffer.byteLength / PAGE_SIZE / 64) * 2);
  // struct kvm_dirty_log { u32 slot, padding; u64 dirty_bitmap }
  const address = host.addressOf(new Uint8Array(log.buffer));
  const request = new Uint32Array([MACHINE_SLOT, 0, address >>> 0, Math.floor(address / 2 ** 32)]);
  if (host.ioctl(vmFd, KVM_GET_DIRTY_LOG, host.addressOf(new Uint8Array(request.buffer))) !== 0)
    throw new Error(`KVM_GET_DIRTY_LOG failed with errno ${host.errno()}`);
  for (let word = 0; word < log.length; word++) {
    let bits = log[word];
    while (bits !== 0) {
      const frame = word * 32 + 31 - Math.clz32(bits);
      bits &= ~(1 << (frame & 31));
      if (frame < layout.nameableFrames) dirty.mark(frame);
    }
  }
}

/** What `measureFacts` finds out. */
export interface HostTraits {
  readonly facts: EngineFacts;
  readonly interceptsCpuid: boolean;
}

export function createVm(machine: MachineMemory, vcpus: number, traits: HostTraits): KvmDomainHandle {
  const host = requireHost();
  const kvmFd = host.open('/dev/kvm', O_RDWR | O_CLOEXEC);
  if (kvmFd < 0) throw new Error(`/dev/kvm cannot be opened (errno ${host.errno()})`);
  // A signal may interrupt it: a profiler's, or one that kicked a vCPU of this process.
  let vmFd = host.ioctl(kvmFd, KVM_CREATE_VM, 0);
  while (vmFd < 0 && host.errno() === EINTR) vmFd = host.ioctl(kvmFd, KVM_CREATE_VM, 0);
  if (vmFd < 0) {
    const errno = host.errno();
    host.close(kvmFd);
    throw new Error(`KVM_CREATE_VM failed with errno ${errno}`);
  }
  try {
    host.installKickHandler();
    // Only VMX has these; refusals elsewhere mean that they are not needed.
    const identityMap = new Uint32Array([IDENTITY_MAP_GPA, 0]);
    host.ioctl(vmFd, KVM_SET_IDENTITY_MAP_ADDR, host.addressOf(new Uint8Array(identityMap.buffer)));
    host.ioctl(vmFd, KVM_SET_TSS_ADDR, TSS_GPA);
    const area = buildHypervisorArea(machine.layout, vcpus);
    setMemorySlot(vmFd, 0, AREA_GPA, area.memory);
    setMemorySlot(vmFd, MACHINE_SLOT, MFN_BASE * PAGE_SIZE, machine.memory);
    return {
      kind: 'kvm',
      pid: process.pid,
      kvmFd,
      vmFd,
      runBytes: host.ioctl(kvmFd, KVM_GET_VCPU_MMAP_SIZE, 0),
      vcpus,
      facts: traits.facts,
      interceptsCpuid: traits.interceptsCpuid,
      area,
      registry: createRegistry(vcpus),
      cpuid: supportedCpuid(kvmFd),
    };
  } catch (error) {
    host.close(vmFd);
    host.close(kvmFd);
    throw error;
  }
}

/** Releases what one vCPU holds of the process: also for a worker that ended without closing. Does nothing the second time. */
export function releaseVcpu(handle: KvmDomainHandle, vcpuId: number): void {
  const host = requireHost();
  const registry = new Int32Array(handle.registry);
  const locked = lockRecord(registry, vcpuId);
  const record = vcpuId * RECORD_WORDS;
  Atomics.store(registry, record + REGISTRY.tid, 0);
  const timer = Atomics.exchange(registry, record + REGISTRY.timerPlusOne, 0);
  if (timer !== 0) host.deleteTimer(timer - 1);
  const lo = Atomics.exchange(registry, record + REGISTRY.runAddressLo, 0) >>> 0;
  const hi = Atomics.exchange(registry, record + REGISTRY.runAddressHi, 0) >>> 0;
  if (locked && (lo !== 0 || hi !== 0)) host.munmap(hi * 2 ** 32 + lo, handle.runBytes);
  const fd = Atomics.exchange(registry, record + REGISTRY.fdPlusOne, 0);
  if (fd !== 0) host.close(fd - 1);
  if (locked) unlockRecord(registry, vcpuId);
}

export function isVmClosed(registry: Int32Array, vcpus: number): boolean {
  return Atomics.load(registry, vcpus * RECORD_WORDS) !== 0;
}

export function destroyVm(handle: KvmDomainHandle): void {
  const registry = new Int32Array(handle.registry);
  if (Atomics.exchange(registry, handle.vcpus * RECORD_WORDS, 1) !== 0) return;
  for (let vcpuId = 0; vcpuId < handle.vcpus; vcpuId++) releaseVcpu(handle, vcpuId);
  const host = requireHost();
  host.close(handle.vmFd);
  host.close(handle.kvmFd);
}
