/** What a domain has made the hypervisor do. */

import { VCPU } from '../machine/vcpu-block.ts';
import type { Domain } from './domain.ts';
import { STAT_NAMES } from './run-vcpu.ts';

/** Exits by kind and hypercalls by number, for DOMUS_STATS. */
export function statistics(domain: Domain): string[] {
  const lines: string[] = [];
  for (const vcpu of domain.vcpus) {
    const exits = STAT_NAMES.map((name, i) => `${name} ${vcpu.u32[(VCPU.stats >> 2) + i]}`);
    lines.push(`d${domain.domid}v${vcpu.vcpuId}: exits ${vcpu.u32[VCPU.exitCount >> 2]}: ${exits.join(', ')}`);
    const calls: string[] = [];
    for (let nr = 0; nr < 64; nr++) {
      const count = vcpu.u32[(VCPU.hypercallStats >> 2) + nr];
      if (count > 0) calls.push(`${nr}: ${count}`);
    }
    lines.push(`d${domain.domid}v${vcpu.vcpuId}: hypercalls ${calls.join(', ')}`);
  }
  return lines;
}
