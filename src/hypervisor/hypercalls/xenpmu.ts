/** xenpmu_op: performance counters, which no domain gets: as Xen without `vpmu=`. Source: xen/arch/x86/cpu/vpmu.c (behaviour). */

import { EOPNOTSUPP } from '../../abi/errno.ts';
import type { Vcpu } from '../vcpu.ts';

/** (op, argument *). Linux knows this errno and says so; for any other it prints a warning. */
export function xenpmuOp(_v: Vcpu): number {
  return -EOPNOTSUPP;
}
