/**
 * What the vCPUs of a domain share in this engine: which bytes of which frames have been decoded, and the news that some changed.
 *
 *   words 0 to frames - 1    granules: a bit for each 128 bytes of a frame with code decoded by any vCPU
 *   then                     the lock of `exclusively`
 *   then, for each vCPU      producer, consumer, CHANGES records of frame * 32 + granule + 1
 */

import type { MachineMemory } from '../../machine/memory.ts';
import type { EngineFacts, Kicker } from '../engine.ts';

/** News that a vCPU can fall behind before it drops all its code. */
export const CHANGES = 254;
const QUEUE_WORDS = CHANGES + 2;

/** What can be posted to the workers. */
export interface WasmDomainHandle {
  readonly kind: 'wasm';
  readonly shared: SharedArrayBuffer;
  readonly frames: number;
  readonly facts: EngineFacts;
}

/** M2P entries are shown from slot 257 on, as on KVM, so that a guest can move there; 256 shows them too. */
const M2P_VA_HI_SHOWN = 0xffff8080;

export const WASM_FACTS: EngineFacts = {
  name: 'wasm',
  tscKhz: 1_000_000,
  tscStable: true,
  xcr0Mask: 0,
  m2pVaLo: 0,
  m2pVaHi: M2P_VA_HI_SHOWN,
};

export function createWasmDomain(machine: MachineMemory, vcpus: number): WasmDomainHandle {
  const frames = machine.layout.nameableFrames;
  const shared = new SharedArrayBuffer((frames + 1 + vcpus * QUEUE_WORDS) * 4);
  return { kind: 'wasm', shared, frames, facts: WASM_FACTS };
}

/** The flag word that notifiers set is polled in guest code: there is nothing to kick. */
export function createWasmKicker(): Kicker {
  return { kick: () => {} };
}

export class CodeNews {
  readonly granules: Int32Array<SharedArrayBuffer>;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #lock: number;
  readonly #queues: number;

  constructor(handle: WasmDomainHandle) {
    this.#words = new Int32Array(handle.shared);
    this.granules = new Int32Array(handle.shared, 0, handle.frames);
    this.#lock = handle.frames;
    this.#queues = handle.frames + 1;
  }

  /** Tells a vCPU that a granule has changed. */
  post(vcpu: number, frame: number, granule: number): void {
    const queue = this.#queues + vcpu * QUEUE_WORDS;
    const at = Atomics.add(this.#words, queue, 1) >>> 0;
    Atomics.store(this.#words, queue + 2 + (at % CHANGES), frame * 32 + granule + 1);
  }

  /** There is news for a vCPU. */
  pending(vcpu: number): boolean {
    const queue = this.#queues + vcpu * QUEUE_WORDS;
    return Atomics.load(this.#words, queue) !== this.#words[queue + 1];
  }

  /** Calls `changed` for each news; false when some were lost: everything may have changed. */
  take(vcpu: number, changed: (frame: number, granule: number) => void): boolean {
    const words = this.#words;
    const queue = this.#queues + vcpu * QUEUE_WORDS;
    const producer = Atomics.load(words, queue);
    let consumer = words[queue + 1];
    const complete = ((producer - consumer) | 0) <= CHANGES - 32;
    for (; complete && consumer !== producer; consumer = (consumer + 1) | 0) {
      const at = queue + 2 + ((consumer >>> 0) % CHANGES);
      let record = Atomics.exchange(words, at, 0);
      // The producer has taken its place but not written yet.
      while (record === 0) record = Atomics.exchange(words, at, 0);
      changed((record - 1) >>> 5, (record - 1) & 31);
    }
    if (!complete) for (let i = 0; i < CHANGES; i++) Atomics.store(words, queue + 2 + i, 0);
    words[queue + 1] = producer;
    return complete;
  }

  exclusively(body: () => void): void {
    const words = this.#words;
    while (Atomics.compareExchange(words, this.#lock, 0, 1) !== 0);
    body();
    Atomics.store(words, this.#lock, 0);
  }
}
