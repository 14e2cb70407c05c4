/** Stores into guest memory by a thread that runs no vCPU: code decoded from there is stale, and each vCPU hears of it. */

import { FLAG_EVENT, VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import { CodeNews, type WasmDomainHandle } from './wasm-domain.ts';

/** Called after the store, with offset and size in bytes of memory 0; before any vCPU is told that there is something new. */
export function createForeignStores(
  handle: WasmDomainHandle,
  vcpus: readonly VcpuBlock[],
): (offset: number, size: number) => void {
  const news = new CodeNews(handle);
  return (offset, size) => {
    // A load alone may come before the stores are seen by whoever decodes there meanwhile.
    if (size <= 4096 - (offset & 0xfff) && Atomics.or(news.granules, offset >>> 12, 0) === 0) return;
    const end = offset + size;
    for (let at = offset; at < end; at = (Math.floor(at / 128) + 1) * 128) {
      const frame = at >>> 12;
      const granule = (at & 0xfff) >>> 7;
      if ((Atomics.and(news.granules, frame, ~(1 << granule)) & (1 << granule)) === 0) continue;
      for (const { vcpuId, i32 } of vcpus) {
        news.post(vcpuId, frame, granule);
        Atomics.or(i32, VCPU.flags >> 2, FLAG_EVENT);
      }
    }
  };
}
