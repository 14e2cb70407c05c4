/** The engines that the tests run guests on. */

import { type KvmProbe, probeKvm } from '../../src/engine/kvm/self-test.ts';
import type { EngineKind } from '../../src/host/engines.ts';

export const ENGINES: readonly EngineKind[] = ['kvm', 'wasm'];

let probe: KvmProbe | undefined;

/** Why the engine cannot run here, in words for `skip()`; null when it can. */
export function whyUnusable(engine: EngineKind): string | null {
  if (engine === 'wasm') return null;
  probe ??= probeKvm();
  return probe.usable ? null : probe.reason;
}
