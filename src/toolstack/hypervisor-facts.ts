/** What the hypervisor says of itself, for `xl info`. */

import { M2P_VA_HI, M2P_VA_LO } from '../engine/kvm/hypervisor-area.ts';
import * as version from '../hypervisor/hypercalls/version.ts';
import { PAGE_SIZE } from '../machine/memory.ts';

export interface HypervisorFacts {
  readonly major: number;
  readonly minor: number;
  readonly extraversion: string;
  readonly capabilities: string;
  readonly pageSize: number;
  /** Where a guest finds the M2P. */
  readonly virtualStart: bigint;
  readonly compiler: string;
  readonly compileBy: string;
  readonly compileDomain: string;
  readonly compileDate: string;
}

export function hypervisorFacts(): HypervisorFacts {
  return {
    major: version.XEN_MAJOR,
    minor: version.XEN_MINOR,
    extraversion: version.XEN_EXTRAVERSION,
    capabilities: version.XEN_CAPABILITIES,
    pageSize: PAGE_SIZE,
    virtualStart: (BigInt(M2P_VA_HI >>> 0) << 32n) | BigInt(M2P_VA_LO >>> 0),
    compiler: version.COMPILER,
    compileBy: version.COMPILE_BY,
    compileDomain: version.COMPILE_DOMAIN,
    compileDate: version.COMPILE_DATE,
  };
}
