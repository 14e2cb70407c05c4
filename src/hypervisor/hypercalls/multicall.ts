/** multicall and the dispatch of one hypercall. Source: xen/include/public/xen.h, struct multicall_entry; xen/common/multicall.c. */

import { EFAULT, EINVAL, ENOSYS } from '../../abi/errno.ts';
import { HYPERCALL } from '../../abi/xen.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { RESULT_IN_RAX, type Vcpu } from '../vcpu.ts';
import { stopRequested } from './guest-handle.ts';

const ENTRY_SIZE = 64;
/** Entries that one multicall may carry: a bound on the work of one call, far above what guests use. */
const ENTRIES_MAX = 0x10000;

const RAX_LO = VCPU.gpr >> 2;
const RAX_HI = RAX_LO + 1;

/** A table of handlers, handed in so that the table may list this file. */
let handlers: readonly ((v: Vcpu) => number)[] = [];
export function setMulticallHandlers(table: readonly ((v: Vcpu) => number)[]): void {
  handlers = table;
}

/** (multicall_entry *, count): each entry { u64 op; i64 result; u64 args[6]; }. */
export function multicall(v: Vcpu): number {
  if (v.inMulticall) return -EINVAL;
  let lo = v.args[0];
  let hi = v.args[1];
  const count = v.args[2];
  if (count > ENTRIES_MAX) return -EINVAL;
  v.inMulticall = true;
  let rc = 0;
  for (let i = 0; i < count; i++) {
    const access = v.access;
    if (!access.copyIn(lo, hi, ENTRY_SIZE)) {
      rc = -EFAULT;
      break;
    }
    const words = access.words;
    const nr = words[0];
    for (let k = 0; k < 12; k++) v.args[k] = words[4 + k];
    let result = -ENOSYS;
    if (words[1] === 0 && nr < handlers.length) {
      v.block.u32[(VCPU.hypercallStats >> 2) + nr]++;
      result = nr === HYPERCALL.iret ? -ENOSYS : handlers[nr](v);
    }
    const u = v.block.u32;
    const inRax = result === RESULT_IN_RAX;
    const resultLo = inRax ? u[RAX_LO] : result >>> 0;
    const resultHi = inRax ? u[RAX_HI] : result < 0 ? 0xffffffff : Math.floor(result / 4294967296);
    if (!access.writeU64((lo + 8) >>> 0, lo + 8 > 0xffffffff ? hi + 1 : hi, resultLo, resultHi)) {
      rc = -EFAULT;
      break;
    }
    lo = (lo + ENTRY_SIZE) >>> 0;
    if (lo < ENTRY_SIZE) hi = (hi + 1) >>> 0;
    if (stopRequested(v)) break;
  }
  v.inMulticall = false;
  return rc;
}
