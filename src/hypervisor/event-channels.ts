/**
 * Event channels, 2-level ABI. Port records are in the domain's shared state and change under the domain lock; pending and mask
 * bits are in the guest's shared_info and change with Atomics.
 *
 * Dom0 is no guest here: the far end of an interdomain channel to domid 0 is a bit in `dom0Pending` and the doorbell, which the
 * backends' thread waits for. For a channel to another guest it is the same: that thread tells the other domain's. Source: xen/include/public/event_channel.h; xen/common/event_2l.c (behaviour).
 */

import type { Kicker } from '../engine/engine.ts';
import { FLAG_EVENT, VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN, type Domain, EVTCHN_RECORD } from './domain.ts';
import { EVENT_CHANNELS } from './domain-limits.ts';

export const ECS_FREE = 0;
/** Being bound to another domain's port: nobody may use it yet. */
export const ECS_RESERVED = 1;
export const ECS_UNBOUND = 2;
export const ECS_INTERDOMAIN = 3;
export const ECS_VIRQ = 5;
export const ECS_IPI = 6;

/** shared_info offsets. Source: xen/include/public/xen.h, struct shared_info. */
const EVTCHN_PENDING = 0x800;
const EVTCHN_MASK = 0xa00;
/** vcpu_info offsets. */
const UPCALL_PENDING = 0;
const PENDING_SEL = 8;

function record(port: number): number {
  return (DOMAIN.eventChannels + port * EVTCHN_RECORD) >> 2;
}

export const portState = (d: Domain, port: number): number => d.u32[record(port)];
export const portVcpu = (d: Domain, port: number): number => d.u32[record(port) + 1];
/** virq number, or remote domid of an unbound or interdomain port. */
export const portA = (d: Domain, port: number): number => d.u32[record(port) + 2];
/** Remote port of an interdomain port. */
export const portB = (d: Domain, port: number): number => d.u32[record(port) + 3];

export function setPort(d: Domain, port: number, state: number, vcpu: number, a: number, b: number): void {
  const at = record(port);
  d.u32[at + 1] = vcpu;
  d.u32[at + 2] = a;
  d.u32[at + 3] = b;
  Atomics.store(d.u32, at, state);
}

/** Of a domain that does not run. */
export function freeAllPorts(d: Domain): void {
  d.u32.fill(0, record(1), record(EVENT_CHANNELS));
}

export function setPortVcpu(d: Domain, port: number, vcpu: number): void {
  Atomics.store(d.u32, record(port) + 1, vcpu);
}

/** The lowest free port that the domain may have, or 0. Call under the domain lock. */
export function allocatePort(d: Domain): number {
  const last = d.i32[DOMAIN.portMax >> 2];
  for (let port = 1; port <= last; port++) if (d.u32[record(port)] === ECS_FREE) return port;
  return 0;
}

/** Makes a vCPU look at its flags and events: wakes it when it sleeps, kicks it when it runs guest code. */
export function notifyVcpu(d: Domain, vcpu: number, kicker: Kicker): void {
  const i32 = d.vcpus[vcpu].i32;
  Atomics.or(i32, VCPU.flags >> 2, FLAG_EVENT);
  Atomics.add(i32, VCPU.wake >> 2, 1);
  Atomics.notify(i32, VCPU.wake >> 2);
  if (Atomics.load(i32, VCPU.inGuest >> 2) !== 0) kicker.kick(vcpu);
}

const bit = (n: number): number => 1 << (n & 31);

/** i32 index of the 32-bit word that holds a port's bit. */
function word(d: Domain, base: number, port: number): number {
  return (d.machine.layout.sharedInfoOffset + base) / 4 + (port >>> 5);
}

export function isPending(d: Domain, port: number): boolean {
  return (Atomics.load(d.machine.i32, word(d, EVTCHN_PENDING, port)) & bit(port)) !== 0;
}

export function clearPending(d: Domain, port: number): void {
  Atomics.and(d.machine.i32, word(d, EVTCHN_PENDING, port), ~bit(port));
}

function raise(d: Domain, port: number, kicker: Kicker): void {
  const vcpu = portVcpu(d, port);
  if (vcpu >= d.vcpus.length) return;
  const info = Atomics.load(d.vcpus[vcpu].u32, VCPU.vcpuInfo >> 2);
  const group = port >>> 6;
  const sel = (info + PENDING_SEL) / 4 + (group >>> 5);
  if ((Atomics.or(d.machine.i32, sel, bit(group)) & bit(group)) !== 0) return;
  Atomics.store(d.machine.u8, info + UPCALL_PENDING, 1);
  notifyVcpu(d, vcpu, kicker);
}

/** Marks a port pending and, unless masked, its vCPU's upcall. */
export function setPending(d: Domain, port: number, kicker: Kicker): void {
  if ((Atomics.or(d.machine.i32, word(d, EVTCHN_PENDING, port), bit(port)) & bit(port)) !== 0) return;
  if ((Atomics.load(d.machine.i32, word(d, EVTCHN_MASK, port)) & bit(port)) === 0) raise(d, port, kicker);
  for (let id = 0; id < d.vcpus.length; id++)
    if (Atomics.load(d.vcpus[id].i32, VCPU.polling >> 2) !== 0) notifyVcpu(d, id, kicker);
}

/** EVTCHNOP_unmask. */
export function unmask(d: Domain, port: number, kicker: Kicker): void {
  if ((Atomics.and(d.machine.i32, word(d, EVTCHN_MASK, port), ~bit(port)) & bit(port)) === 0) return;
  if (isPending(d, port)) raise(d, port, kicker);
}

/**
 * Signals the far end of an interdomain port, Dom0's or another guest's, or tells it that this end is closed. What is pending
 * already has rung, or is about to.
 */
export function signalFarEnd(d: Domain, port: number): void {
  if ((Atomics.or(d.i32, (DOMAIN.dom0Pending >> 2) + (port >>> 5), bit(port)) & bit(port)) !== 0) return;
  d.ringDoorbell();
}

/** Takes and clears the Dom0 end's pending bit. */
export function takeDom0Pending(d: Domain, port: number): boolean {
  return (Atomics.and(d.i32, (DOMAIN.dom0Pending >> 2) + (port >>> 5), ~bit(port)) & bit(port)) !== 0;
}
