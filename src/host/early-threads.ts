/**
 * Threads of vCPUs that are started before their domain is made: Node's part of a thread, the hypervisor and the engine take a quarter of a second to load, while
 * the main thread of a new process loads all else.
 */

import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import type { EarlyThreadData, VcpuWorkerData } from './worker-messages.ts';

/** V8's young generation by default may take three times 16 MiB of a thread; what a translator leaves behind dies young. */
const YOUNG_MIB = 8;

/** A domain with more vCPUs may still be refused. */
const EARLY_MAX = 8;

/** A thread that runs what is in vcpu-worker.ts. Null: its data will be its last message before those of `VcpuWorkers`. */
export function startVcpuThread(data: VcpuWorkerData | null): Worker {
  const url = new URL(import.meta.url.endsWith('.ts') ? './vcpu-worker.ts' : './vcpu-worker.js', import.meta.url);
  return new Worker(url, { workerData: data, resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MIB } });
}

export class EarlyThreads {
  readonly #waiting: Worker[] = [];

  /** One for a domain of which nothing is known yet. */
  constructor() {
    this.#start();
  }

  /** False: the system has no more of them for now, as whoever needs one will find. */
  #start(): boolean {
    let thread: Worker;
    try {
      thread = startVcpuThread(null);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      return false;
    }
    // A process that has no use for it can end. Whatever is wrong with it will be wrong with the next one, which somebody listens to.
    thread.unref();
    thread.once('error', () => {
      const at = this.#waiting.indexOf(thread);
      if (at >= 0) this.#waiting.splice(at, 1);
    });
    this.#waiting.push(thread);
    return true;
  }

  /** One for each vCPU of a domain with this config, with the engine that it will probably have. */
  expect({ engine, maxvcpus }: DomainConfig): void {
    while (this.#waiting.length < Math.min(maxvcpus, EARLY_MAX) && this.#start());
    const asked = process.env['DOMUS_ENGINE'] || engine;
    const early = asked === 'kvm' || (asked === 'auto' && existsSync('/dev/kvm')) ? 'kvm' : 'wasm';
    for (const thread of this.#waiting) thread.postMessage({ early } satisfies EarlyThreadData);
  }

  /** A thread for a vCPU. */
  take(data: VcpuWorkerData): Worker {
    const thread = this.#waiting.shift();
    if (thread === undefined) return startVcpuThread(data);
    thread.removeAllListeners('error');
    thread.ref();
    thread.postMessage(data);
    return thread;
  }

  /** No more are wanted. */
  end(): void {
    for (const thread of this.#waiting.splice(0)) void thread.terminate();
  }
}
