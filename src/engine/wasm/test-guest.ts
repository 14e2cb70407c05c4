/** For tests: the tiny guest of the KVM engine's tests (kvm/test-guest.ts) on this engine, or on any other. */

import type { MachineMemory } from '../../machine/memory.ts';
import { VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import type { Engine, ExitKind } from '../engine.ts';
import { EXIT_INTERRUPTED } from '../engine.ts';
import { CODE_VA, createTestBlock, createTestMachine } from '../kvm/test-guest.ts';
import { createWasmDomain } from './wasm-domain.ts';
import { WasmVcpu } from './wasm-vcpu.ts';

const RUNS_MAX = 1000;

/** A vCPU with 4 MiB of memory mapped at 0, user read-write-execute. */
export class TestGuest<E extends Engine = Engine> {
  readonly machine: MachineMemory;
  readonly block: VcpuBlock;
  readonly vcpu: E;

  constructor(machine: MachineMemory, block: VcpuBlock, vcpu: E) {
    this.machine = machine;
    this.block = block;
    this.vcpu = vcpu;
  }

  /** Puts code into memory and runs it until something happens. The registers are the block's, but for rip. */
  run(code: ArrayLike<number>, va: number = CODE_VA): ExitKind {
    this.machine.u8.set(code, va);
    return this.runAt(va);
  }

  runAt(va: number): ExitKind {
    const { u32 } = this.block;
    u32[VCPU.rip / 4] = va;
    u32[VCPU.rip / 4 + 1] = 0;
    for (let runs = 0; runs < RUNS_MAX; runs++) {
      const exit = this.vcpu.run();
      if (exit !== EXIT_INTERRUPTED) return exit;
    }
    throw new Error(`nothing has happened in ${RUNS_MAX} runs`);
  }

  /** Low word of a general register. */
  gpr(number: number): number {
    return this.block.u32[VCPU.gpr / 4 + number * 2];
  }

  setGpr(number: number, lo: number, hi = 0): void {
    this.block.u32[VCPU.gpr / 4 + number * 2] = lo;
    this.block.u32[VCPU.gpr / 4 + number * 2 + 1] = hi;
  }

  /** A word of the block. */
  word(offset: number): number {
    return this.block.u32[offset / 4];
  }
}

export function createWasmGuest(): TestGuest<WasmVcpu> {
  const machine = createTestMachine();
  const block = createTestBlock(machine, []);
  const domain = createWasmDomain(machine, 1);
  const vcpu = new WasmVcpu(domain, machine, [block], 0, { monotonicNs: () => performance.now() * 1e6 });
  return new TestGuest(machine, block, vcpu);
}
