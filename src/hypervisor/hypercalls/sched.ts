/**
 * sched_op and set_timer_op.
 *
 * Deviation: SHUTDOWN_suspend always returns 1, "cancelled", when the domain goes on: nothing about it has changed, wherever that is.
 *
 * Source: xen/include/public/sched.h; xen/common/sched/core.c (behaviour).
 */

import { EFAULT, EINVAL, ENOSYS, EPERM } from '../../abi/errno.ts';
import * as xen from '../../abi/xen.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EVENT_CHANNELS } from '../domain-limits.ts';
import { suspendDomain } from '../domain-state.ts';
import { isPending } from '../event-channels.ts';
import { crashDomain, setUpcallMask, upcallDue, upcallPending } from '../traps.ts';
import type { Vcpu } from '../vcpu.ts';

/** (cmd, argument *) */
export function schedOp(v: Vcpu): number {
  const access = v.access;
  const argLo = v.args[2];
  const argHi = v.args[3];
  switch (v.args[0]) {
    case xen.SCHEDOP_yield:
      return 0;
    case xen.SCHEDOP_block:
      setUpcallMask(v, 0);
      if (!upcallPending(v)) v.blocked = true;
      return 0;
    case xen.SCHEDOP_shutdown: {
      if (!access.readU32(argLo, argHi)) return -EFAULT;
      const reason = access.lo;
      if (reason > xen.SHUTDOWN_soft_reset) return -EINVAL;
      if (reason === xen.SHUTDOWN_suspend) {
        suspendDomain(v.domain, v.kicker);
        return 1;
      }
      if (reason === xen.SHUTDOWN_crash) crashDomain(v, 'the guest says that it crashed');
      else v.domain.shutdown(reason);
      return 0;
    }
    case xen.SCHEDOP_poll:
      return poll(v, argLo, argHi);
    case xen.SCHEDOP_shutdown_code:
      return access.readU32(argLo, argHi) ? 0 : -EFAULT;
    case xen.SCHEDOP_remote_shutdown:
    case xen.SCHEDOP_pin_override:
      return -EPERM;
    default:
      return -ENOSYS;
  }
}

/** struct sched_poll { u32 *ports; u32 nr_ports; u64 timeout; } */
function poll(v: Vcpu, argLo: number, argHi: number): number {
  const access = v.access;
  if (!access.copyIn(argLo, argHi, 24)) return -EFAULT;
  const portsLo = access.words[0];
  const portsHi = access.words[1];
  const count = access.words[2];
  const timeoutNs = access.words[5] * 4294967296 + access.words[4];
  if (count > 128) return -EINVAL;
  if (!access.copyIn(portsLo, portsHi, count * 4)) return -EFAULT;
  for (let i = 0; i < count; i++) {
    const port = access.words[i];
    if (port === 0 || port >= EVENT_CHANNELS) return -EINVAL;
    v.pollPorts[i] = port;
  }
  v.pollCount = count;
  v.pollDeadlineNs = timeoutNs;
  Atomics.store(v.block.i32, VCPU.polling >> 2, 1);
  if (pollDone(v)) endPoll(v);
  else v.blocked = true;
  return 0;
}

/** True when a vCPU in SCHEDOP_poll has what it waits for. */
export function pollDone(v: Vcpu): boolean {
  if (upcallDue(v)) return true;
  for (let i = 0; i < v.pollCount; i++) if (isPending(v.domain, v.pollPorts[i])) return true;
  return v.pollDeadlineNs !== 0 && v.systemTimeNs() >= v.pollDeadlineNs;
}

export function endPoll(v: Vcpu): void {
  v.pollCount = 0;
  v.pollDeadlineNs = 0;
  Atomics.store(v.block.i32, VCPU.polling >> 2, 0);
}

/** (absolute system time in ns; 0 = off) */
export function setTimerOp(v: Vcpu): number {
  v.block.f64[VCPU.singleshotNs >> 3] = v.args[1] * 4294967296 + v.args[0];
  return 0;
}
