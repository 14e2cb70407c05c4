/**
 * event_channel_op. A channel to another guest is made and ended by the two domains' main threads (foreign-domains.ts,
 * dom0-channels.ts); what is done here is this domain's part of it.
 *
 * Source: xen/include/public/event_channel.h; xen/common/event_channel.c (order of checks).
 */

import { EEXIST, EFAULT, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM, ESRCH } from '../../abi/errno.ts';
import * as evtchn from '../../abi/event-channel.ts';
import {
  DOMID_FIRST_RESERVED,
  DOMID_SELF,
  NR_VIRQS,
  VIRQ_DEBUG,
  VIRQ_TIMER,
  VIRQ_XENOPROF,
  VIRQ_XENPMU,
} from '../../abi/xen.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import type { Domain } from '../domain.ts';
import { EVENT_CHANNELS } from '../domain-limits.ts';
import {
  allocatePort,
  clearPending,
  ECS_FREE,
  ECS_INTERDOMAIN,
  ECS_IPI,
  ECS_RESERVED,
  ECS_UNBOUND,
  ECS_VIRQ,
  portA,
  portB,
  portState,
  portVcpu,
  setPending,
  setPort,
  setPortVcpu,
  signalFarEnd,
  unmask,
} from '../event-channels.ts';
import type { Vcpu } from '../vcpu.ts';
import { isSelf } from './guest-handle.ts';

/** VIRQs that each vCPU has of its own. Source: event_channel.c, virq_is_global. */
export function virqIsPerVcpu(virq: number): boolean {
  return virq === VIRQ_TIMER || virq === VIRQ_DEBUG || virq === VIRQ_XENOPROF || virq === VIRQ_XENPMU;
}

/** Argument size in bytes of each sub-operation. */
const SIZES = [12, 12, 12, 4, 4, 24, 8, 8, 8, 4, 2] as const;

/** (cmd, argument *) */
export function eventChannelOp(v: Vcpu): number {
  const cmd = v.args[0];
  const argLo = v.args[2];
  const argHi = v.args[3];
  if (cmd >= SIZES.length) return -ENOSYS;
  const access = v.access;
  if (!access.copyIn(argLo, argHi, SIZES[cmd])) return -EFAULT;
  const w0 = access.words[0];
  const w1 = access.words[1];
  switch (cmd) {
    case evtchn.EVTCHNOP_send:
      return send(v, w0);
    case evtchn.EVTCHNOP_unmask:
      if (w0 === 0 || w0 >= EVENT_CHANNELS) return -EINVAL;
      unmask(v.domain, w0, v.kicker);
      return 0;
  }
  let rc: number;
  if (cmd === evtchn.EVTCHNOP_bind_interdomain && !isSelf(v, w0 & 0xffff)) rc = bindForeign(v, w0 & 0xffff, w1);
  else {
    v.domain.lock();
    rc = control(v, cmd, w0, w1);
    v.domain.unlock();
  }
  if (rc < 0) return rc;
  switch (cmd) {
    case evtchn.EVTCHNOP_bind_virq:
    case evtchn.EVTCHNOP_bind_interdomain:
      return access.writeU32((argLo + 8) >>> 0, argLo + 8 > 0xffffffff ? argHi + 1 : argHi, rc) ? 0 : -EFAULT;
    case evtchn.EVTCHNOP_alloc_unbound:
    case evtchn.EVTCHNOP_bind_ipi:
      return access.writeU32((argLo + 4) >>> 0, argLo + 4 > 0xffffffff ? argHi + 1 : argHi, rc) ? 0 : -EFAULT;
    case evtchn.EVTCHNOP_status:
      return status(v, w1, argLo, argHi);
    default:
      return 0;
  }
}

function send(v: Vcpu, port: number): number {
  if (port === 0 || port >= EVENT_CHANNELS) return -EINVAL;
  const d = v.domain;
  switch (portState(d, port)) {
    case ECS_INTERDOMAIN:
      if (portA(d, port) === d.domid) setPending(d, portB(d, port), v.kicker);
      else signalFarEnd(d, port);
      return 0;
    case ECS_IPI:
      setPending(d, port, v.kicker);
      return 0;
    case ECS_UNBOUND:
      return 0;
    default:
      return -EINVAL;
  }
}

/** EVTCHNOP_bind_interdomain to another domain's port: the own port, or -errno. Without the domain lock. */
function bindForeign(v: Vcpu, domid: number, remotePort: number): number {
  const d = v.domain;
  const { foreign } = v.host;
  // Dom0 has no ports for guests to bind to.
  if (domid === 0) return -EINVAL;
  if (domid >= DOMID_FIRST_RESERVED || foreign === null) return -ESRCH;
  d.lock();
  const port = allocatePort(d);
  if (port !== 0) setPort(d, port, ECS_RESERVED, 0, domid, 0);
  d.unlock();
  if (port === 0) return -ENOSPC;
  const rc = foreign.bind(domid, remotePort, port);
  if (rc === 0) {
    setPending(d, port, v.kicker);
    return port;
  }
  d.lock();
  if (portState(d, port) === ECS_RESERVED) setPort(d, port, ECS_FREE, 0, 0, 0);
  d.unlock();
  return rc;
}

/** The operations that change port records; a port number or 0 on success. Under the domain lock. */
function control(v: Vcpu, cmd: number, w0: number, w1: number): number {
  const d = v.domain;
  switch (cmd) {
    case evtchn.EVTCHNOP_alloc_unbound: {
      const domid = w0 & 0xffff;
      const remote = w0 >>> 16;
      if (domid !== DOMID_SELF && domid !== d.domid) return -EPERM;
      const port = allocatePort(d);
      if (port === 0) return -ENOSPC;
      setPort(d, port, ECS_UNBOUND, 0, remote === DOMID_SELF ? d.domid : remote, 0);
      return port;
    }
    case evtchn.EVTCHNOP_bind_interdomain: {
      if (w1 === 0 || w1 >= EVENT_CHANNELS || portState(d, w1) !== ECS_UNBOUND || portA(d, w1) !== d.domid)
        return -EINVAL;
      const port = allocatePort(d);
      if (port === 0) return -ENOSPC;
      setPort(d, port, ECS_INTERDOMAIN, 0, d.domid, w1);
      setPort(d, w1, ECS_INTERDOMAIN, portVcpu(d, w1), d.domid, port);
      setPending(d, port, v.kicker);
      return port;
    }
    case evtchn.EVTCHNOP_bind_virq: {
      if (w0 >= NR_VIRQS) return -EINVAL;
      const perVcpu = virqIsPerVcpu(w0);
      if (!perVcpu && w1 !== 0) return -EINVAL;
      if (w1 >= d.vcpus.length) return -ENOENT;
      const slot = (VCPU.virqPorts >> 2) + w0;
      if (d.vcpus[w1].u32[slot] !== 0) return -EEXIST;
      const port = allocatePort(d);
      if (port === 0) return -ENOSPC;
      setPort(d, port, ECS_VIRQ, w1, w0, 0);
      Atomics.store(d.vcpus[w1].u32, slot, port);
      return port;
    }
    case evtchn.EVTCHNOP_bind_ipi: {
      if (w0 >= d.vcpus.length) return -ENOENT;
      const port = allocatePort(d);
      if (port === 0) return -ENOSPC;
      setPort(d, port, ECS_IPI, w0, 0, 0);
      return port;
    }
    case evtchn.EVTCHNOP_bind_pirq:
      return -EPERM;
    case evtchn.EVTCHNOP_close:
      if (w0 === 0 || w0 >= EVENT_CHANNELS || !isUsed(d, w0)) return -EINVAL;
      closePort(v, w0);
      return 0;
    case evtchn.EVTCHNOP_bind_vcpu: {
      if (w1 >= d.vcpus.length) return -ENOENT;
      if (w0 === 0 || w0 >= EVENT_CHANNELS) return -EINVAL;
      const state = portState(d, w0);
      if (state === ECS_VIRQ ? virqIsPerVcpu(portA(d, w0)) : state !== ECS_INTERDOMAIN && state !== ECS_UNBOUND)
        return -EINVAL;
      setPortVcpu(d, w0, w1);
      return 0;
    }
    case evtchn.EVTCHNOP_status: {
      const domid = w0 & 0xffff;
      if (domid !== DOMID_SELF && domid !== d.domid) return -ESRCH;
      return w1 >= EVENT_CHANNELS ? -EINVAL : 0;
    }
    case evtchn.EVTCHNOP_reset: {
      const domid = w0 & 0xffff;
      if (domid !== DOMID_SELF && domid !== d.domid) return -EPERM;
      for (let port = 1; port < EVENT_CHANNELS; port++) if (isUsed(d, port)) closePort(v, port);
      return 0;
    }
    default:
      return -ENOSYS;
  }
}

function isUsed(d: Domain, port: number): boolean {
  const state = portState(d, port);
  return state !== ECS_FREE && state !== ECS_RESERVED;
}

function closePort(v: Vcpu, port: number): void {
  const d = v.domain;
  const state = portState(d, port);
  if (state === ECS_VIRQ) {
    // A global VIRQ stands with vCPU 0, wherever bind_vcpu sends its events.
    const virq = portA(d, port);
    const owner = virqIsPerVcpu(virq) ? portVcpu(d, port) : 0;
    Atomics.store(d.vcpus[owner].u32, (VCPU.virqPorts >> 2) + virq, 0);
  }
  if (state === ECS_INTERDOMAIN && portA(d, port) === d.domid) {
    const peer = portB(d, port);
    setPort(d, peer, ECS_UNBOUND, portVcpu(d, peer), d.domid, 0);
  }
  const isForeign = state === ECS_INTERDOMAIN && portA(d, port) !== d.domid;
  clearPending(d, port);
  setPort(d, port, ECS_FREE, 0, 0, 0);
  // Who serves the far end finds that this one is not bound any more.
  if (isForeign) signalFarEnd(d, port);
}

function status(v: Vcpu, port: number, argLo: number, argHi: number): number {
  const d = v.domain;
  const words = v.access.words;
  words[0] = portVcpu(d, port);
  words[1] = 0;
  words[2] = 0;
  let kind = evtchn.EVTCHNSTAT_closed;
  switch (portState(d, port)) {
    case ECS_UNBOUND:
      kind = evtchn.EVTCHNSTAT_unbound;
      words[1] = portA(d, port);
      break;
    case ECS_INTERDOMAIN:
      kind = evtchn.EVTCHNSTAT_interdomain;
      words[1] = portA(d, port);
      words[2] = portB(d, port);
      break;
    case ECS_VIRQ:
      kind = evtchn.EVTCHNSTAT_virq;
      words[1] = portA(d, port);
      break;
    case ECS_IPI:
      kind = evtchn.EVTCHNSTAT_ipi;
      break;
  }
  words[3] = words[2];
  words[2] = words[1];
  words[1] = words[0];
  words[0] = kind;
  return v.access.copyOut(
    (argLo + 8) >>> 0,
    argLo + 8 > 0xffffffff ? argHi + 1 : argHi,
    v.access.bytes,
    0,
    kind === evtchn.EVTCHNSTAT_interdomain ? 16 : 12,
  )
    ? 0
    : -EFAULT;
}
