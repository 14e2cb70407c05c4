/** fpu_taskswitch: CR0.TS of a PV guest. Source: xen/arch/x86/pv/misc-hypercalls.c (behaviour). */

import { VCPU } from '../../machine/vcpu-block.ts';
import type { Vcpu } from '../vcpu.ts';

const CR0_TS = 8;

/** (set) */
export function fpuTaskswitch(v: Vcpu): number {
  v.block.u32[VCPU.cr0Ts >> 2] = v.args[0] !== 0 ? CR0_TS : 0;
  return 0;
}
