/** What the main thread of a domain and its vCPU workers say to each other. */

import type { KeptRegions } from '../engine/wasm/kept-regions.ts';
import type { CpuFeatures } from '../hypervisor/cpu-features.ts';
import type { DomainHandle } from '../hypervisor/domain.ts';
import type { EngineHandle } from './engines.ts';
import type { ForeignCall } from './foreign-calls.ts';

export interface VcpuWorkerData {
  /** The vCPU goes on as it was parked; the domain is paused. */
  readonly restored: boolean;
  /** A guest will stand still until it runs here: what can be done before is done before. */
  readonly rehearses: boolean;
  readonly domain: DomainHandle;
  readonly vcpuId: number;
  readonly engine: EngineHandle;
  /** What wakes the main thread (doorbell.ts). */
  readonly doorbellFd: number | null;
  /** Other domains can be reached. */
  readonly hasPeers: boolean;
}

/** To a thread that was started before there is a domain, and gets its VcpuWorkerData later: the engine to load meanwhile. */
export interface EarlyThreadData {
  readonly early: 'kvm' | 'wasm';
}

export type VcpuWorkerMessage =
  | { readonly kind: 'ready'; readonly cpu: CpuFeatures }
  | { readonly kind: 'log'; readonly line: string }
  /** Code that has run since it was asked before (Engine.notedCode). */
  | { readonly kind: 'code'; readonly noted: Uint32Array }
  /** It has prepared for code. */
  | { readonly kind: 'prepared' }
  /** At its end: what it has translated. */
  | { readonly kind: 'kept'; readonly kept: KeptRegions }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'foreign'; readonly call: ForeignCall };

/** The domain is built: run it; before that, code that it may go on with. */
export type VcpuWorkerCommand = 'run' | { readonly noted: Uint32Array };
