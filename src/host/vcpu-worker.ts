/** The worker of a vCPU starts here: what it runs is in vcpu-thread.ts, which Node need not compile each time. */

import { useCompileCache } from '../toolstack/compile-cache.ts';

useCompileCache();
await import('./vcpu-thread.ts');
