/**
 * Which frames a running domain writes to, from one look to the next: for a copy of its memory that is made while it runs.
 *
 * Marks (machine/dirty-frames.ts) come from all who store: the hypervisor, backends, other domains' mappings when they are released,
 * and the guest. On wasm, its first store through a translation makes one, so all vCPUs forget their translations between two looks;
 * on kvm, KVM keeps a log of its own. What is stored into all the time, and what Dom0 has mapped without anybody saying when it
 * writes, has no marks: `last` has it.
 */

import { setImmediate } from 'node:timers/promises';
import type { Kicker } from '../engine/engine.ts';
import { logStores, markStores } from '../engine/kvm/vm.ts';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { grantVersion, statusFrameCount } from '../hypervisor/grant-entries.ts';
import { PAGE_SIZE } from '../machine/memory.ts';
import { FLAG_FLUSH_TLB, VCPU } from '../machine/vcpu-block.ts';
import type { EngineHandle } from './engines.ts';

export interface DirtyTrackerOptions {
  readonly domain: Domain;
  readonly engine: EngineHandle;
  readonly kicker: Kicker;
  /** Frames of the rings that a domain has from the start: both ends write there all the time. */
  readonly ringFrames: readonly number[];
}

export class DirtyTracker {
  readonly #options: DirtyTrackerOptions;
  #isOn = false;

  constructor(options: DirtyTrackerOptions) {
    this.#options = options;
  }

  /** From when this resolves, what is stored is seen; the pages may be read. */
  async start(): Promise<void> {
    const { domain, engine } = this.#options;
    const { dirty } = domain.machine;
    this.#isOn = true;
    if (engine.kind === 'kvm') logStores(engine.kvm, domain.machine, true);
    else dirty.tracks = true;
    dirty.take(() => {});
    await this.#forgetTranslations();
  }

  /** Frames that were stored into since the last look, in their order; their pages may be read when this resolves. */
  async take(): Promise<number[]> {
    const { domain, engine } = this.#options;
    if (engine.kind === 'kvm') markStores(engine.kvm, domain.machine);
    const frames: number[] = [];
    domain.machine.dirty.take((frame) => frames.push(frame));
    await this.#forgetTranslations();
    return frames;
  }

  /** The last look, at a domain that stands still, with all that has no marks, and `before`. In their order. */
  async last(before: readonly number[]): Promise<number[]> {
    const { domain, ringFrames } = this.#options;
    const { dirty, layout } = domain.machine;
    for (const frame of before) dirty.mark(frame);
    for (const frame of dirty.always) dirty.mark(frame);
    for (const frame of ringFrames) dirty.mark(frame);
    dirty.mark(layout.sharedInfoOffset / PAGE_SIZE);
    for (let i = 0; i < domain.i32[DOMAIN.grantFrames >> 2]; i++) dirty.mark(layout.grantTableOffset / PAGE_SIZE + i);
    const statusFrames = statusFrameCount(domain, grantVersion(domain));
    for (let i = 0; i < statusFrames; i++) dirty.mark(layout.statusOffset / PAGE_SIZE + i);
    for (const { u32 } of domain.vcpus) dirty.mark(u32[VCPU.vcpuInfo >> 2] >>> 12);
    return await this.take();
  }

  /** Nothing is looked at any more. */
  stop(): void {
    if (!this.#isOn) return;
    this.#isOn = false;
    const { domain, engine } = this.#options;
    if (engine.kind === 'kvm') logStores(engine.kvm, domain.machine, false);
    else domain.machine.dirty.tracks = false;
  }

  /** KVM has done so itself. A vCPU outside the guest does it before it enters it again. */
  async #forgetTranslations(): Promise<void> {
    const { domain, engine, kicker } = this.#options;
    if (engine.kind === 'kvm') return;
    for (const { i32, vcpuId } of domain.vcpus) {
      Atomics.or(i32, VCPU.flags >> 2, FLAG_FLUSH_TLB);
      if (Atomics.load(i32, VCPU.inGuest >> 2) !== 0) kicker.kick(vcpuId);
    }
    for (const { i32 } of domain.vcpus)
      while (
        Atomics.load(i32, VCPU.inGuest >> 2) !== 0 &&
        (Atomics.load(i32, VCPU.flags >> 2) & FLAG_FLUSH_TLB) !== 0 &&
        domain.shutdownReason === -1
      )
        await setImmediate();
  }
}
