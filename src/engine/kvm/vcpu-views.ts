/**
 * What the parts of one KVM vCPU look at: views that are made once and that all parts share.
 *
 * Each part declares the block's word indexes that it needs by itself, though they repeat: V8 makes numbers in the code of a module's
 * own constants, but loads imported ones from their cell each time. Measured on the way from run() to KVM_RUN: 125 ns with indexes
 * declared, 140 ns with indexes imported (x86-64, Node 24).
 */

import type { MachineMemory } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import type { VcpuWindow } from './hypervisor-area.ts';
import type { VcpuFile } from './vcpu-file.ts';
import type { KvmDomainHandle } from './vm.ts';

export interface VcpuViews {
  /** The vCPU block. */
  readonly block: Uint32Array;
  /** The kvm_run page. */
  readonly run: Uint32Array;
  /** Memory 0. */
  readonly memory: Uint32Array;
  /** Frames of memory 0 that a page table or a GDT may name. */
  readonly framesMax: number;
  /** The hypervisor area, and this vCPU's window in it. */
  readonly area: Uint32Array;
  readonly areaBytes: Uint8Array;
  readonly window: VcpuWindow;
}

/** Throws a RangeError for a vCPU that the domain has no room for. */
export function vcpuWindow(handle: KvmDomainHandle, vcpuId: number): VcpuWindow {
  const window = handle.area.windows[vcpuId];
  if (window === undefined) throw new RangeError(`vCPU ${vcpuId} of a KVM domain with ${handle.vcpus}`);
  return window;
}

export function createViews(
  handle: KvmDomainHandle,
  machine: MachineMemory,
  block: VcpuBlock,
  file: VcpuFile,
): VcpuViews {
  return {
    block: block.u32,
    run: file.run,
    memory: machine.u32,
    framesMax: machine.layout.nameableFrames,
    area: new Uint32Array(handle.area.memory.buffer),
    areaBytes: new Uint8Array(handle.area.memory.buffer),
    window: vcpuWindow(handle, block.vcpuId),
  };
}
