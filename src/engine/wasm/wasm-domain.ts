/**
 * What the vCPUs of a domain share in this engine: which bytes of which frames have been decoded, and the news that some changed.
 *
 *   words 0 to frames - 1    granules: a bit for each 128 bytes of a frame with code decoded by any vCPU
 *   then                     whether the world is stopped (world.ts)
 *   then, for each vCPU      lock, count of news, CHANGES records of frame * 32 + granule
 */

import type { MachineMemory } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import type { EngineFacts, Kicker } from '../engine.ts';
import { COMPONENTS } from './layout.ts';
import type { RegionLibraryHandle } from './region-library.ts';
import { World } from './world.ts';

/** News that a vCPU can fall behind before it drops all its code. */
export const CHANGES = 254;
const QUEUE_LOCK = 0;
const QUEUE_COUNT = 1;
const QUEUE_RECORDS = 2;
const QUEUE_WORDS = CHANGES + QUEUE_RECORDS;

/** What can be posted to the workers. */
export interface WasmDomainHandle {
  readonly kind: 'wasm';
  readonly shared: SharedArrayBuffer;
  readonly frames: number;
  readonly facts: EngineFacts;
  /** f64: the TSC at a time of the host's monotonic clock, and that time in ns. */
  readonly tsc: SharedArrayBuffer;
  /** What was translated before this domain; null = nothing. */
  readonly translated: TranslatedCode | null;
}

/** Modules that need no compiling any more. */
export interface TranslatedCode {
  /** Of interpreter.ts, which counts nothing. */
  readonly interpreter: WebAssembly.Module;
  readonly regions: RegionLibraryHandle;
}

/** M2P entries are shown from slot 257 on, as on KVM, so that a guest can move there; 256 shows them too. */
const M2P_VA_HI_SHOWN = 0xffff8080;

export const WASM_FACTS: EngineFacts = {
  name: 'wasm',
  tscKhz: 1_000_000,
  tscStable: true,
  xcr0Mask: COMPONENTS,
  m2pVaLo: 0,
  m2pVaHi: M2P_VA_HI_SHOWN,
};

/** `tscKhz`: the rate of the TSC, for a guest that has known another one. */
export function createWasmDomain(
  machine: MachineMemory,
  vcpus: number,
  tscKhz: number = WASM_FACTS.tscKhz,
  translated: TranslatedCode | null = null,
): WasmDomainHandle {
  const frames = machine.layout.nameableFrames;
  const shared = new SharedArrayBuffer((frames + 1 + vcpus * QUEUE_WORDS) * 4);
  const tsc = new SharedArrayBuffer(16);
  return { kind: 'wasm', shared, frames, facts: { ...WASM_FACTS, tscKhz }, tsc, translated };
}

/** The guest's TSC goes on from `ticks`, as if no time had passed. Before any vCPU runs. `nowNs`: the host's monotonic clock. */
export function setTsc(handle: WasmDomainHandle, ticks: number, nowNs: number): void {
  new Float64Array(handle.tsc).set([ticks, nowNs]);
}

/** The flag word that notifiers set is polled in guest code: there is nothing to kick. */
export function createWasmKicker(): Kicker {
  return { kick: () => {} };
}

export class CodeNews {
  readonly granules: Int32Array<SharedArrayBuffer>;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #queues: number;
  /** What `take` has taken. */
  readonly #records = new Int32Array(CHANGES);

  constructor(handle: WasmDomainHandle) {
    this.#words = new Int32Array(handle.shared);
    this.granules = new Int32Array(handle.shared, 0, handle.frames);
    this.#queues = handle.frames + 1;
  }

  #locked(lock: number, body: () => void): void {
    const words = this.#words;
    while (Atomics.compareExchange(words, lock, 0, 1) !== 0);
    body();
    Atomics.store(words, lock, 0);
  }

  /** Tells a vCPU that a granule has changed. */
  post(vcpu: number, frame: number, granule: number): void {
    const words = this.#words;
    const queue = this.#queues + vcpu * QUEUE_WORDS;
    this.#locked(queue + QUEUE_LOCK, () => {
      const count = words[queue + QUEUE_COUNT];
      if (count < CHANGES) words[queue + QUEUE_RECORDS + count] = frame * 32 + granule;
      Atomics.store(words, queue + QUEUE_COUNT, count + 1);
    });
  }

  /** There is news for a vCPU. */
  pending(vcpu: number): boolean {
    return Atomics.load(this.#words, this.#queues + vcpu * QUEUE_WORDS + QUEUE_COUNT) !== 0;
  }

  /** Calls `changed` for each news; false when some were lost: everything may have changed. */
  take(vcpu: number, changed: (frame: number, granule: number) => void): boolean {
    const words = this.#words;
    const queue = this.#queues + vcpu * QUEUE_WORDS;
    const records = this.#records;
    let count = 0;
    this.#locked(queue + QUEUE_LOCK, () => {
      count = words[queue + QUEUE_COUNT];
      const first = queue + QUEUE_RECORDS;
      records.set(words.subarray(first, first + Math.min(count, CHANGES)));
      Atomics.store(words, queue + QUEUE_COUNT, 0);
    });
    if (count > CHANGES) return false;
    for (let i = 0; i < count; i++) changed(records[i] >>> 5, records[i] & 31);
    return true;
  }

  /** This vCPU's part in stopping the world. */
  world(block: VcpuBlock, others: readonly VcpuBlock[]): World {
    return new World(this.#words, this.granules.length, block, others);
  }
}
