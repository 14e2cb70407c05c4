/** nmi_op: the NMI handler of this vCPU, which is entry 2 of its trap table. Source: xen/include/public/nmi.h. */

import { XENNMI_CALLBACK, XENNMI_register_callback, XENNMI_unregister_callback } from '../../abi/callback.ts';
import { EFAULT, ENOSYS } from '../../abi/errno.ts';
import type { Vcpu } from '../vcpu.ts';
import { registerNmiCallback, unregisterNmiCallback } from './callback.ts';

/** (cmd, argument *) */
export function nmiOp(v: Vcpu): number {
  switch (v.args[0]) {
    case XENNMI_register_callback:
      if (!v.access.copyIn(v.args[2], v.args[3], XENNMI_CALLBACK.SIZE)) return -EFAULT;
      return registerNmiCallback(v, v.access.words[0], v.access.words[1]);
    case XENNMI_unregister_callback:
      return unregisterNmiCallback(v);
    default:
      return -ENOSYS;
  }
}
