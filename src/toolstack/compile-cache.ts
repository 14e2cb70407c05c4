/** Node's cache of compiled sources: TypeScript without its types, as bytecode. Saves some 0.3 s of CPU where an engine is loaded. */

import { enableCompileCache } from 'node:module';
import { join } from 'node:path';
import { cacheRoot } from './cache.ts';

/** For this thread, and all that it imports from now on. Where the folder cannot be written nothing is cached. */
export function useCompileCache(): void {
  enableCompileCache(join(cacheRoot(), 'compiled'));
}
