/** The engines by name: which one runs a domain, and how its parts are made in the main thread and in the vCPU workers. */

import type { Engine, EngineFacts, Kicker } from '../engine/engine.ts';
import { createKvmKicker } from '../engine/kvm/kicker.ts';
import { closeKvmDomain, createKvmDomain, type KvmDomainHandle } from '../engine/kvm/kvm-domain.ts';
import { probeKvm } from '../engine/kvm/self-test.ts';
import { createForeignStores } from '../engine/wasm/foreign-stores.ts';
import { createWasmDomain, createWasmKicker, setTsc, type WasmDomainHandle } from '../engine/wasm/wasm-domain.ts';
import type { Domain } from '../hypervisor/domain.ts';
import type { MachineMemory } from '../machine/memory.ts';
import type { EngineChoice as EngineName } from '../toolstack/config/domain-config.ts';
import { monotonicNs } from './clock.ts';
import { loadTranslated } from './translated-code.ts';

/** What is posted to the vCPU workers. */
export type EngineHandle = { readonly kind: 'kvm'; readonly kvm: KvmDomainHandle } | WasmDomainHandle;

export type EngineKind = 'kvm' | 'wasm';

export interface EngineChoice {
  readonly kind: EngineKind;
  /** Why, in words for the log. */
  readonly why: string;
}

/** @throws Error with one line when the engine that was asked for cannot run here. */
export function chooseEngine(asked: EngineName): EngineChoice {
  if (asked === 'wasm') return { kind: 'wasm', why: 'asked for' };
  const probe = probeKvm();
  if (asked === 'kvm') {
    if (!probe.usable) throw new Error(`no engine can run the domain: ${probe.reason}`);
    return { kind: 'kvm', why: 'asked for' };
  }
  return probe.usable ? { kind: 'kvm', why: '/dev/kvm is usable' } : { kind: 'wasm', why: probe.reason };
}

/** `tscKhz`: what the guest of a restored domain knows of its TSC; kvm has the host's, whatever that is. */
export function createEngineDomain(
  kind: EngineKind,
  machine: MachineMemory,
  vcpus: number,
  tscKhz?: number,
): EngineHandle {
  return kind === 'kvm'
    ? { kind, kvm: createKvmDomain(machine, vcpus) }
    : createWasmDomain(machine, vcpus, tscKhz, loadTranslated());
}

/** The TSC of a restored domain goes on where it was, if the engine can: it is `ticks` at that moment of the host's monotonic clock. */
export function resumeTsc(handle: EngineHandle, ticks: number, atNs: number): void {
  if (handle.kind === 'wasm') setTsc(handle, ticks, atNs);
}

export function closeEngineDomain(handle: EngineHandle): void {
  if (handle.kind === 'kvm') closeKvmDomain(handle.kvm);
}

export function createKicker(handle: EngineHandle): Kicker {
  return handle.kind === 'kvm' ? createKvmKicker(handle.kvm) : createWasmKicker();
}

export function factsOf(handle: EngineHandle): EngineFacts {
  return handle.kind === 'kvm' ? handle.kvm.facts : handle.facts;
}

/** CPUID of the guest's programs is answered by its policy, and they see no vector state but that which its kernel sees. */
export function interceptsCpuid(handle: EngineHandle): boolean {
  return handle.kind !== 'kvm' || handle.kvm.interceptsCpuid;
}

/** What the main thread calls after it has stored into guest memory, with offset and size in bytes: there may be code. */
export function createStoreListener(handle: EngineHandle, domain: Domain): (offset: number, sizeBytes: number) => void {
  const { dirty } = domain.machine;
  // On kvm the CPU itself sees stores into code.
  if (handle.kind === 'kvm') return (offset, sizeBytes) => dirty.markBytes(offset, sizeBytes);
  const tellVcpus = createForeignStores(handle, domain.vcpus);
  return (offset, sizeBytes) => {
    dirty.markBytes(offset, sizeBytes);
    tellVcpus(offset, sizeBytes);
  };
}

/** What `openVcpu` needs is loaded, without a domain. */
export async function loadEngine(kind: EngineKind): Promise<void> {
  await (kind === 'kvm' ? import('../engine/kvm/kvm-vcpu.ts') : import('../engine/wasm/wasm-vcpu.ts'));
}

/**
 * For the vCPU's worker: of the engines, which are large, only its own is loaded there. `hasTime`: the vCPU comes from elsewhere, and nobody waits for it yet.
 */
export async function openVcpu(handle: EngineHandle, domain: Domain, vcpuId: number, hasTime = false): Promise<Engine> {
  if (handle.kind === 'kvm') {
    const { openKvmVcpu } = await import('../engine/kvm/kvm-vcpu.ts');
    return openKvmVcpu(handle.kvm, domain.machine, domain.vcpus[vcpuId]);
  }
  const { WasmVcpu } = await import('../engine/wasm/wasm-vcpu.ts');
  const countInstructions = process.env['DOMUS_STATS'] === 'instructions';
  const host = { monotonicNs, countInstructions };
  if (hasTime) {
    const { rehearse } = await import('../engine/wasm/rehearsal.ts');
    rehearse(domain.machine.layout, host, handle.translated);
  }
  return new WasmVcpu(handle, domain.machine, domain.vcpus, vcpuId, host);
}
