/** Hypercalls that Xen refuses to an unprivileged PV domain, or does not have; each with the errno that such a domain gets. */

import { ENOSYS, EPERM } from '../../abi/errno.ts';
import type { Vcpu } from '../vcpu.ts';

/** For Dom0 only. Xen looks at the interface version first; the answer is no either way. */
export function notPermitted(_v: Vcpu): number {
  return -EPERM;
}

/** No such hypercall. */
export function notImplemented(_v: Vcpu): number {
  return -ENOSYS;
}
