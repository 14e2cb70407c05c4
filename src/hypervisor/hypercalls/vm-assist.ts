/** vm_assist: optional behaviour of Xen, for the whole domain. Source: xen/include/public/xen.h; xen/common/domain.c (behaviour). */

import { EINVAL, ENOSYS } from '../../abi/errno.ts';
import * as assist from '../../abi/vm-assist.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import type { Vcpu } from '../vcpu.ts';

/** (cmd, type). Of the types only runstate_update_flag changes anything here. */
export function vmAssist(v: Vcpu): number {
  const cmd = v.args[0];
  const type = v.args[2];
  const known = type <= assist.VMASST_TYPE_runstate_update_flag || type === assist.VMASST_TYPE_m2p_strict;
  if (!known) return -EINVAL;
  if (cmd !== assist.VMASST_CMD_enable && cmd !== assist.VMASST_CMD_disable) return -ENOSYS;
  if (type === assist.VMASST_TYPE_runstate_update_flag) {
    const enabled = cmd === assist.VMASST_CMD_enable ? 1 : 0;
    for (const vcpu of v.domain.vcpus) Atomics.store(vcpu.u32, VCPU.vmAssistRunstateFlag >> 2, enabled);
  }
  return 0;
}
