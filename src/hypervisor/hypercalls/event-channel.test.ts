import { expect, test } from 'vitest';
import { EEXIST, EFAULT, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM, ESRCH } from '../../abi/errno.ts';
import * as evtchn from '../../abi/event-channel.ts';
import { DOMID_SELF } from '../../abi/xen.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { DOMAIN } from '../domain.ts';
import { ECS_INTERDOMAIN, isPending, portVcpu, setPort, takeDom0Pending } from '../event-channels.ts';
import { KERNEL_VA, READ_ONLY_VA, TEST_DOMID, TestGuest, UNMAPPED_VA, va } from '../testing.ts';
import { Vcpu } from '../vcpu.ts';
import { eventChannelOp } from './event-channel.ts';

const ARG = KERNEL_VA + 0x1000;
/** evtchn_bind_virq: port at 8; evtchn_bind_ipi and evtchn_alloc_unbound: at 4. Source: xen/include/public/event_channel.h. */
function op(guest: TestGuest, cmd: number, words: readonly number[]): number {
  guest.setWords(ARG, words);
  return guest.call(eventChannelOp, cmd, va(ARG));
}
const send = (guest: TestGuest, port: number): number => op(guest, evtchn.EVTCHNOP_send, [port]);
const close = (guest: TestGuest, port: number): number => op(guest, evtchn.EVTCHNOP_close, [port]);
const bindVcpu = (guest: TestGuest, port: number, vcpu: number): number =>
  op(guest, evtchn.EVTCHNOP_bind_vcpu, [port, vcpu]);

/** The new port, or the errno. */
function bindVirq(guest: TestGuest, virq: number, vcpu = 0): number {
  const rc = op(guest, evtchn.EVTCHNOP_bind_virq, [virq, vcpu, 0]);
  return rc === 0 ? guest.word(ARG + 8) : rc;
}
function bindIpi(guest: TestGuest, vcpu = 0): number {
  const rc = op(guest, evtchn.EVTCHNOP_bind_ipi, [vcpu, 0]);
  return rc === 0 ? guest.word(ARG + 4) : rc;
}
function allocUnbound(guest: TestGuest, remote: number, dom = DOMID_SELF): number {
  const rc = op(guest, evtchn.EVTCHNOP_alloc_unbound, [dom | (remote << 16), 0]);
  return rc === 0 ? guest.word(ARG + 4) : rc;
}
function bindInterdomain(guest: TestGuest, remote: number, remotePort: number): number {
  const rc = op(guest, evtchn.EVTCHNOP_bind_interdomain, [remote, remotePort, 0]);
  return rc === 0 ? guest.word(ARG + 8) : rc;
}
/** [status, vcpu, u.first, u.second] */
function status(guest: TestGuest, port: number): number[] {
  expect(op(guest, evtchn.EVTCHNOP_status, [DOMID_SELF, port, 0x55, 0x55, 0, 0])).toBe(0);
  expect(guest.words(ARG, 2)).toEqual([DOMID_SELF, port]);
  return guest.words(ARG + 8, 4);
}
const upcall = (guest: TestGuest, vcpu: number): number =>
  guest.machine.u8[guest.machine.layout.sharedInfoOffset + vcpu * 64];

test('ports are given out from 1, the lowest free one first', () => {
  const guest = new TestGuest();
  expect([bindIpi(guest), bindVirq(guest, 0), allocUnbound(guest, 0)]).toEqual([1, 2, 3]);
  expect(close(guest, 2)).toBe(0);
  expect(bindIpi(guest)).toBe(2);
});

test('`evtchnSend()` returns -EINVAL for a free port, port 0, a VIRQ and a number out of range', () => {
  const guest = new TestGuest();
  const virq = bindVirq(guest, 0);
  for (const port of [0, 9, virq, 4096, 0xffffffff]) expect(send(guest, port)).toBe(-EINVAL);
});

test('`evtchnSend()`: IPI to itself, unbound to nobody, interdomain to the peer', () => {
  const guest = new TestGuest();
  const ipi = bindIpi(guest);
  expect(send(guest, ipi)).toBe(0);
  expect(isPending(guest.domain, ipi)).toBe(true);
  const unbound = allocUnbound(guest, TEST_DOMID);
  expect(send(guest, unbound)).toBe(0);
  expect(isPending(guest.domain, unbound)).toBe(false);
  const bound = bindInterdomain(guest, TEST_DOMID, unbound);
  expect(send(guest, bound)).toBe(0);
  expect(isPending(guest.domain, unbound)).toBe(true);
  setPort(guest.domain, 20, ECS_INTERDOMAIN, 0, 0, 3);
  expect(send(guest, 20)).toBe(0);
  expect(takeDom0Pending(guest.domain, 20)).toBe(true);
});

test('bind_virq: own port on each vCPU for VIRQ_TIMER and VIRQ_DEBUG, -EEXIST for the second', () => {
  const guest = new TestGuest({ vcpus: 2 });
  expect(bindVirq(guest, 0, 0)).toBe(1);
  expect(bindVirq(guest, 0, 1)).toBe(2);
  expect(bindVirq(guest, 1, 1)).toBe(3);
  expect(bindVirq(guest, 0, 0)).toBe(-EEXIST);
  expect(guest.domain.vcpus[1].u32[VCPU.virqPorts >> 2]).toBe(2);
  expect(guest.domain.vcpus[1].u32[(VCPU.virqPorts >> 2) + 1]).toBe(3);
  expect(close(guest, 1)).toBe(0);
  expect(bindVirq(guest, 0, 0)).toBe(1);
});

/** The order of Xen's evtchn_bind_virq(): number, global on another vCPU, vCPU, bound. */
test('bind_virq errors', () => {
  const guest = new TestGuest({ vcpus: 2 });
  expect(bindVirq(guest, 24)).toBe(-EINVAL);
  expect(bindVirq(guest, 0xffffffff, 9)).toBe(-EINVAL);
  expect(bindVirq(guest, 3, 1)).toBe(-EINVAL);
  expect(bindVirq(guest, 3, 9)).toBe(-EINVAL);
  expect(bindVirq(guest, 0, 2)).toBe(-ENOENT);
  expect(bindVirq(guest, 13, 1)).toBe(1);
});

test('bind_ipi returns -ENOENT for a vCPU that there is not; the port is fixed to its vCPU', () => {
  const guest = new TestGuest({ vcpus: 2 });
  expect(bindIpi(guest, 2)).toBe(-ENOENT);
  expect(bindIpi(guest, 0xffffffff)).toBe(-ENOENT);
  const port = bindIpi(guest, 1);
  expect(send(guest, port)).toBe(0);
  expect([upcall(guest, 0), upcall(guest, 1)]).toEqual([0, 1]);
  expect(bindVcpu(guest, port, 0)).toBe(-EINVAL);
});

test('bind_vcpu moves interdomain, unbound and global VIRQ ports', () => {
  const guest = new TestGuest({ vcpus: 2 });
  const unbound = allocUnbound(guest, TEST_DOMID);
  const bound = bindInterdomain(guest, DOMID_SELF, unbound);
  const global = bindVirq(guest, 3);
  for (const port of [unbound, bound, global]) {
    expect(status(guest, port)[1]).toBe(0);
    expect(bindVcpu(guest, port, 1)).toBe(0);
    expect(status(guest, port)[1]).toBe(1);
  }
  expect(bindVcpu(guest, bindVirq(guest, 0), 1)).toBe(-EINVAL);
  expect(bindVcpu(guest, 999, 1)).toBe(-EINVAL);
  expect(bindVcpu(guest, 0, 1)).toBe(-EINVAL);
  expect(bindVcpu(guest, 4096, 1)).toBe(-EINVAL);
  expect(bindVcpu(guest, unbound, 2)).toBe(-ENOENT);
  expect(bindVcpu(guest, 4096, 2)).toBe(-ENOENT);
});

test('a global VIRQ that was moved can be bound again after it was closed', () => {
  const guest = new TestGuest({ vcpus: 2 });
  const port = bindVirq(guest, 3);
  expect(bindVcpu(guest, port, 1)).toBe(0);
  expect(close(guest, port)).toBe(0);
  expect(bindVirq(guest, 3)).toBe(port);
});

/** "All other channels notify vcpu0 by default." Source: event_channel.h, EVTCHNOP_bind_vcpu. */
test('a port notifies vCPU 0 until bind_vcpu, whichever vCPU binds it', () => {
  const guest = new TestGuest({ vcpus: 2 });
  const second = new Vcpu(guest.domain, 1, guest.engine, guest.vcpu.kicker, guest.vcpu.host);
  const unbound = allocUnbound(guest, TEST_DOMID);
  guest.setWords(ARG, [DOMID_SELF, unbound, 0]);
  second.args.set([evtchn.EVTCHNOP_bind_interdomain, 0, ...va(ARG)]);
  expect(eventChannelOp(second)).toBe(0);
  expect(portVcpu(guest.domain, guest.word(ARG + 8))).toBe(0);
  expect([upcall(guest, 0), upcall(guest, 1)]).toEqual([1, 0]);
});

test('alloc_unbound and bind_interdomain to self: both ends, the local one pending once', () => {
  const guest = new TestGuest();
  const unbound = allocUnbound(guest, DOMID_SELF);
  expect(status(guest, unbound).slice(0, 3)).toEqual([1, 0, TEST_DOMID]);
  const bound = bindInterdomain(guest, DOMID_SELF, unbound);
  expect(bound).toBe(2);
  expect(status(guest, unbound)).toEqual([2, 0, TEST_DOMID, bound]);
  expect(status(guest, bound)).toEqual([2, 0, TEST_DOMID, unbound]);
  expect([isPending(guest.domain, bound), isPending(guest.domain, unbound)]).toEqual([true, false]);
  expect(send(guest, unbound)).toBe(0);
  expect(isPending(guest.domain, bound)).toBe(true);
  // The peer of a closed port is unbound again, for the same domain.
  expect(close(guest, bound)).toBe(0);
  expect(status(guest, unbound).slice(0, 3)).toEqual([1, 0, TEST_DOMID]);
  expect(isPending(guest.domain, bound)).toBe(false);
  expect(bindInterdomain(guest, TEST_DOMID, unbound)).toBe(bound);
});

test('bind_interdomain errors', () => {
  const guest = new TestGuest();
  const forDom0 = allocUnbound(guest, 0);
  const ipi = bindIpi(guest);
  for (const port of [0, forDom0, ipi, 999, 4096, 0xffffffff]) {
    expect(bindInterdomain(guest, DOMID_SELF, port)).toBe(-EINVAL);
  }
  expect(bindInterdomain(guest, 77, forDom0)).toBe(-ESRCH);
  expect(allocUnbound(guest, 0, 77)).toBe(-EPERM);
  expect(status(guest, 3)[0]).toBe(0);
});

/** Source: struct evtchn_status: status at 8, vcpu at 12, u at 16. EVTCHNSTAT_*: closed 0 unbound 1 interdomain 2 virq 4 ipi 5. */
test('status: the kind, the vCPU and what it is bound to', () => {
  const guest = new TestGuest({ vcpus: 2 });
  expect(status(guest, bindIpi(guest, 1)).slice(0, 2)).toEqual([5, 1]);
  expect(status(guest, bindVirq(guest, 1, 1)).slice(0, 3)).toEqual([4, 1, 1]);
  expect(status(guest, allocUnbound(guest, 0)).slice(0, 3)).toEqual([1, 0, 0]);
  setPort(guest.domain, 30, ECS_INTERDOMAIN, 1, 0, 17);
  expect(status(guest, 30)).toEqual([2, 1, 0, 17]);
  expect(status(guest, 31)[0]).toBe(0);
  expect(status(guest, 0)[0]).toBe(0);
  expect(op(guest, evtchn.EVTCHNOP_status, [DOMID_SELF, 4096])).toBe(-EINVAL);
  expect(op(guest, evtchn.EVTCHNOP_status, [77, 1])).toBe(-ESRCH);
});

test('status writes nothing behind its 24 bytes', () => {
  const guest = new TestGuest();
  guest.setWords(ARG + 24, [0x77777777]);
  setPort(guest.domain, 30, ECS_INTERDOMAIN, 0, 0, 17);
  status(guest, 30);
  expect(guest.word(ARG + 24)).toBe(0x77777777);
});

test('close: -EINVAL for a free port, port 0 and numbers out of range', () => {
  const guest = new TestGuest();
  const port = bindIpi(guest);
  expect(send(guest, port)).toBe(0);
  expect(close(guest, port)).toBe(0);
  expect(isPending(guest.domain, port)).toBe(false);
  for (const free of [port, 0, 4096, 0xffffffff]) expect(close(guest, free)).toBe(-EINVAL);
});

test('unmask raises a pending port', () => {
  const guest = new TestGuest();
  const port = bindIpi(guest);
  const info = guest.machine.layout.sharedInfoOffset;
  guest.machine.u8[info + 0xa00] = 1 << port;
  expect(send(guest, port)).toBe(0);
  expect(upcall(guest, 0)).toBe(0);
  expect(op(guest, evtchn.EVTCHNOP_unmask, [port])).toBe(0);
  expect(upcall(guest, 0)).toBe(1);
  expect(op(guest, evtchn.EVTCHNOP_unmask, [4096])).toBe(-EINVAL);
});

test('-ENOSPC when all 4095 ports are taken', () => {
  const guest = new TestGuest();
  for (let port = 1; port < 4096; port++) setPort(guest.domain, port, 1, 0, 0, 0);
  expect(bindIpi(guest)).toBe(-ENOSPC);
  expect(bindVirq(guest, 0)).toBe(-ENOSPC);
  expect(allocUnbound(guest, 0)).toBe(-ENOSPC);
});

test('-ENOSPC above the port that is the limit; who closes one has another', () => {
  const guest = new TestGuest({ limits: { port: 3 } });
  expect([bindIpi(guest), bindVirq(guest, 0), allocUnbound(guest, 0), bindIpi(guest)]).toEqual([1, 2, 3, -ENOSPC]);
  expect(bindInterdomain(guest, DOMID_SELF, 3)).toBe(-EINVAL);
  expect(close(guest, 2)).toBe(0);
  expect(bindIpi(guest)).toBe(2);
});

test('reset closes all ports', () => {
  const guest = new TestGuest();
  const virq = bindVirq(guest, 0);
  const bound = bindInterdomain(guest, DOMID_SELF, allocUnbound(guest, DOMID_SELF));
  expect(op(guest, evtchn.EVTCHNOP_reset, [77])).toBe(-EPERM);
  expect(status(guest, virq)[0]).toBe(4);
  expect(op(guest, evtchn.EVTCHNOP_reset, [DOMID_SELF])).toBe(0);
  for (const port of [virq, bound - 1, bound]) expect(status(guest, port)[0]).toBe(0);
  expect(bindVirq(guest, 0)).toBe(1);
});

test('2-level only: FIFO operations are -ENOSYS; no PIRQs; unknown operations', () => {
  const guest = new TestGuest();
  for (const cmd of [11, 12, 13, 14, 255, 0xffffffff]) expect(op(guest, cmd, [0, 0])).toBe(-ENOSYS);
  expect(op(guest, evtchn.EVTCHNOP_bind_pirq, [1, 1, 0])).toBe(-EPERM);
});

test('bad pointers are -EFAULT, before and after the work', () => {
  const guest = new TestGuest();
  for (let cmd = 0; cmd <= 10; cmd++) expect(guest.call(eventChannelOp, cmd, va(UNMAPPED_VA))).toBe(-EFAULT);
  guest.setWords(KERNEL_VA, [0, 0, 0]);
  expect(guest.call(eventChannelOp, evtchn.EVTCHNOP_bind_ipi, va(READ_ONLY_VA))).toBe(-EFAULT);
  expect(guest.domain.i32[DOMAIN.lock >> 2]).toBe(0);
});
