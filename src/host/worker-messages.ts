/** What the main thread of a domain and its vCPU workers say to each other. */

import type { KvmDomainHandle } from '../engine/kvm/kvm-domain.ts';
import type { DomainHandle } from '../hypervisor/domain.ts';

export interface VcpuWorkerData {
  readonly domain: DomainHandle;
  readonly vcpuId: number;
  readonly engine: KvmDomainHandle;
}

export type VcpuWorkerMessage =
  | { readonly kind: 'ready' }
  | { readonly kind: 'log'; readonly line: string }
  | { readonly kind: 'failed'; readonly message: string };
