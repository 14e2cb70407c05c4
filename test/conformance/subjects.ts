/** The engines under test, and the real CPU. A further engine is one more line in CANDIDATES. */

import { EXIT_INTERRUPTED } from '../../src/engine/engine.ts';
import { monotonicNs } from '../../src/engine/kvm/host.ts';
import { closeKvmDomain, createKvmDomain } from '../../src/engine/kvm/kvm-domain.ts';
import { openKvmVcpu } from '../../src/engine/kvm/kvm-vcpu.ts';
import { probeKvm } from '../../src/engine/kvm/self-test.ts';
import { HOT } from '../../src/engine/wasm/interpreter.ts';
import { HOT_COUNTS, STATE as WASM_STATE } from '../../src/engine/wasm/layout.ts';
import { createWasmDomain } from '../../src/engine/wasm/wasm-domain.ts';
import { WasmVcpu } from '../../src/engine/wasm/wasm-vcpu.ts';
import { type MachineMemory, PAGE_SIZE } from '../../src/machine/memory.ts';
import { createVcpuBlock, NO_ROOT, VCPU, type VcpuBlock } from '../../src/machine/vcpu-block.ts';
import { createMachine, GDT_FRAME, LOOP_VA, ROOT_FRAME, XCR0 } from './layout.ts';
import { type Subject, setBlock } from './machine.ts';

export interface Candidate {
  readonly name: string;
  readonly create: (machine?: MachineMemory) => Subject;
  /** How long a case takes, compared with interpreting it: the gate runs so much less of them. */
  readonly cost: number;
}

function prepareBlock(block: VcpuBlock): void {
  const { u32 } = block;
  u32[VCPU.kernelRoot / 4] = ROOT_FRAME;
  u32[VCPU.userRoot / 4] = NO_ROOT;
  u32[VCPU.gdtFrames / 4] = GDT_FRAME;
  u32[VCPU.gdtEntries / 4] = 512;
  u32[VCPU.xcr0 / 4] = XCR0;
}

function createWasm(name: string, machine: MachineMemory, interpretOnly: boolean): Subject {
  const block = createVcpuBlock(0);
  prepareBlock(block);
  const handle = createWasmDomain(machine, 1);
  const engine = new WasmVcpu(handle, machine, [block], 0, { monotonicNs, interpretOnly });
  return { name, machine, block, engine, close: () => engine.close() };
}

export function createInterpretedSubject(machine: MachineMemory = createMachine()): Subject {
  return createWasm('wasm-interpreted', machine, true);
}

/** Branches after which the interpreter looks whether there is something to translate, and more. */
const TURNS = 12_000;

/**
 * The wasm engine with every address hot: each batch is interpreted, then interpreted again with all counters at their end, then a
 * loop makes the engine come to where it translates, and what counts is how the batch runs after that.
 */
export function createTranslatedSubject(machine: MachineMemory = createMachine()): Subject {
  const subject = createWasm('wasm-translated', machine, false);
  const { block, engine } = subject;
  const heat = (): void => {
    block.u32.fill(HOT - 1, WASM_STATE.hotCounts / 4, WASM_STATE.hotCounts / 4 + HOT_COUNTS);
  };
  const translate = (): void => {
    setBlock(block, LOOP_VA, { fsBase: 0n, gsBase: 0n });
    block.u64[VCPU.gpr / 8 + 1] = BigInt(TURNS);
    while (engine.run() === EXIT_INTERRUPTED);
  };
  return { ...subject, rehearsals: [heat, translate] };
}

/** `pvm`: this KVM has no hardware virtualisation, see kvm-vcpu.ts. */
export function createRealCpu(machine: MachineMemory = createMachine()): Subject & { readonly pvm: boolean } {
  const block = createVcpuBlock(0);
  prepareBlock(block);
  const domain = createKvmDomain(machine, 1);
  const engine = openKvmVcpu(domain, machine, block);
  engine.prepareRoot(ROOT_FRAME * PAGE_SIZE);
  engine.descriptorTablesChanged();
  const close = (): void => {
    engine.close();
    closeKvmDomain(domain);
  };
  return { name: 'kvm', machine, block, engine, close, pvm: !domain.interceptsCpuid };
}

export const CANDIDATES: readonly Candidate[] = [
  { name: 'wasm-interpreted', create: createInterpretedSubject, cost: 1 },
  { name: 'wasm-translated', create: createTranslatedSubject, cost: 20 },
];

/** Why the real CPU cannot be asked here; undefined = it can. */
export function noRealCpu(): string | undefined {
  const probe = probeKvm();
  const reason = !probe.usable
    ? probe.reason
    : (probe.facts.xcr0Mask & XCR0) !== XCR0
      ? 'this CPU has no AVX'
      : undefined;
  return reason === undefined ? undefined : `${reason}: recorded answers stand in (recorded.test.ts)`;
}
