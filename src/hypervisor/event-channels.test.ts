import { expect, test } from 'vitest';
import { FLAG_EVENT, VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN } from './domain.ts';
import { EVENT_CHANNELS } from './domain-limits.ts';
import {
  allocatePort,
  clearPending,
  ECS_IPI,
  isPending,
  notifyVcpu,
  portA,
  portB,
  portState,
  portVcpu,
  setPending,
  setPort,
  setPortVcpu,
  signalFarEnd,
  takeDom0Pending,
  unmask,
} from './event-channels.ts';
import { TestGuest } from './testing.ts';

/** Source: struct shared_info and vcpu_info: evtchn_pending u64[64] at 0x800, evtchn_mask at 0xa00, evtchn_pending_sel at 8. */
function bytes(guest: TestGuest, offset: number, size: number): number[] {
  const at = guest.machine.layout.sharedInfoOffset + offset;
  return [...guest.machine.u8.slice(at, at + size)];
}
const pendingByte = (guest: TestGuest, port: number): number => bytes(guest, 0x800 + (port >> 3), 1)[0];
const upcall = (guest: TestGuest, vcpu = 0): number => bytes(guest, vcpu * 64, 1)[0];
const sel = (guest: TestGuest, vcpu = 0): number[] => bytes(guest, vcpu * 64 + 8, 8);
const flags = (guest: TestGuest, vcpu: number): number => guest.domain.vcpus[vcpu].i32[VCPU.flags >> 2];
const wakes = (guest: TestGuest, vcpu: number): number => guest.domain.vcpus[vcpu].i32[VCPU.wake >> 2];

function setMask(guest: TestGuest, port: number): void {
  guest.machine.u8[guest.machine.layout.sharedInfoOffset + 0xa00 + (port >> 3)] |= 1 << (port & 7);
}

/** An IPI port of a vCPU. */
function bound(port: number, vcpu = 0, vcpus = 1): TestGuest {
  const guest = new TestGuest({ vcpus });
  setPort(guest.domain, port, ECS_IPI, vcpu, 0, 0);
  return guest;
}
const kicker = (guest: TestGuest): { kick(id: number): void } => ({ kick: (id) => guest.kicks.push(id) });

test('`setPending()` sets the bit of the port, of its 64-port group, and the upcall', () => {
  for (const port of [1, 31, 32, 63, 64, 2047, 2048, 4095]) {
    const guest = bound(port);
    setPending(guest.domain, port, kicker(guest));
    expect(pendingByte(guest, port)).toBe(1 << (port & 7));
    expect(bytes(guest, 0x800, 512).filter((byte) => byte !== 0).length).toBe(1);
    const group = port >> 6;
    expect(sel(guest)).toEqual(Array.from({ length: 8 }, (_, i) => (i === group >> 3 ? 1 << (group & 7) : 0)));
    expect(upcall(guest)).toBe(1);
    expect(isPending(guest.domain, port)).toBe(true);
    clearPending(guest.domain, port);
    expect(isPending(guest.domain, port)).toBe(false);
  }
});

test('a masked port becomes pending without an upcall', () => {
  const guest = bound(70);
  setMask(guest, 70);
  setPending(guest.domain, 70, kicker(guest));
  expect(isPending(guest.domain, 70)).toBe(true);
  expect(upcall(guest)).toBe(0);
  expect(sel(guest)).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
  expect(wakes(guest, 0)).toBe(0);
});

test('a port that is pending, and a group that is selected, make no second upcall', () => {
  const guest = bound(70);
  setPort(guest.domain, 71, ECS_IPI, 0, 0, 0);
  setPending(guest.domain, 70, kicker(guest));
  const info = guest.machine.layout.sharedInfoOffset;
  guest.machine.u8[info] = 0;
  setPending(guest.domain, 70, kicker(guest));
  setPending(guest.domain, 71, kicker(guest));
  expect(upcall(guest)).toBe(0);
  expect(wakes(guest, 0)).toBe(1);
  expect(isPending(guest.domain, 71)).toBe(true);
});

test('the upcall goes to the vCPU of the port, at the vcpu_info it has registered', () => {
  const guest = bound(5, 1, 2);
  guest.domain.vcpus[1].u32[VCPU.vcpuInfo >> 2] = 9 * 4096 + 128;
  setPending(guest.domain, 5, kicker(guest));
  expect(guest.machine.u8[9 * 4096 + 128]).toBe(1);
  expect(guest.machine.u8[9 * 4096 + 128 + 8]).toBe(1);
  expect([upcall(guest, 0), upcall(guest, 1)]).toEqual([0, 0]);
  expect([flags(guest, 0), flags(guest, 1)]).toEqual([0, FLAG_EVENT]);
  expect([wakes(guest, 0), wakes(guest, 1)]).toEqual([0, 1]);
});

test('the upcall mask does not keep the pending flag away', () => {
  const guest = bound(5);
  guest.machine.u8[guest.machine.layout.sharedInfoOffset + 1] = 1;
  setPending(guest.domain, 5, kicker(guest));
  expect(upcall(guest)).toBe(1);
});

test('`notifyVcpu()` kicks only a vCPU that runs guest code', () => {
  const guest = bound(5, 1, 2);
  notifyVcpu(guest.domain, 1, kicker(guest));
  expect(guest.kicks).toEqual([]);
  guest.domain.vcpus[1].i32[VCPU.inGuest >> 2] = 1;
  notifyVcpu(guest.domain, 1, kicker(guest));
  expect(guest.kicks).toEqual([1]);
});

test('a vCPU in SCHEDOP_poll wakes for any port, masked or of another vCPU', () => {
  const guest = bound(5, 0, 2);
  setMask(guest, 5);
  guest.domain.vcpus[1].i32[VCPU.polling >> 2] = 1;
  setPending(guest.domain, 5, kicker(guest));
  expect([wakes(guest, 0), wakes(guest, 1)]).toEqual([0, 1]);
  expect(upcall(guest, 1)).toBe(0);
});

test('`unmask()` raises what became pending meanwhile, and only if the port was masked', () => {
  const guest = bound(5);
  setMask(guest, 5);
  setPending(guest.domain, 5, kicker(guest));
  unmask(guest.domain, 5, kicker(guest));
  expect(bytes(guest, 0xa00, 1)).toEqual([0]);
  expect(upcall(guest)).toBe(1);
  expect(sel(guest)[0]).toBe(1);
  const info = guest.machine.layout.sharedInfoOffset;
  guest.machine.u8[info] = 0;
  guest.machine.u8[info + 8] = 0;
  unmask(guest.domain, 5, kicker(guest));
  expect(upcall(guest)).toBe(0);
  clearPending(guest.domain, 5);
  setMask(guest, 5);
  unmask(guest.domain, 5, kicker(guest));
  expect(upcall(guest)).toBe(0);
});

test('a port of a vCPU that is none is no upcall', () => {
  const guest = bound(5, 7);
  setPending(guest.domain, 5, kicker(guest));
  expect(isPending(guest.domain, 5)).toBe(true);
  expect(upcall(guest)).toBe(0);
});

test('`allocatePort()`: the lowest free one from 1, or 0', () => {
  const guest = new TestGuest();
  for (let port = 1; port < EVENT_CHANNELS; port++) {
    expect(allocatePort(guest.domain)).toBe(port);
    setPort(guest.domain, port, ECS_IPI, 0, 0, 0);
  }
  expect(allocatePort(guest.domain)).toBe(0);
  setPort(guest.domain, 99, 0, 0, 0, 0);
  expect(allocatePort(guest.domain)).toBe(99);
});

test('port records keep state, vCPU and peer apart, up to the last port', () => {
  const guest = new TestGuest();
  const d = guest.domain;
  setPort(d, 4095, 1, 2, 3, 4);
  setPortVcpu(d, 4095, 5);
  expect([portState(d, 4095), portVcpu(d, 4095), portA(d, 4095), portB(d, 4095)]).toEqual([1, 5, 3, 4]);
  expect([portState(d, 4094), portVcpu(d, 4094)]).toEqual([0, 0]);
  expect(DOMAIN.eventChannels + EVENT_CHANNELS * 16).toBe(DOMAIN.consoleIoProducer);
});

test("Dom0's end: a bit for each port, taken once, and the doorbell", () => {
  const guest = new TestGuest();
  const d = guest.domain;
  for (const port of [1, 31, 32, 4095]) {
    const bell = d.i32[DOMAIN.doorbell >> 2];
    signalFarEnd(d, port);
    expect(d.i32[DOMAIN.doorbell >> 2]).toBe(bell + 1);
    expect(takeDom0Pending(d, port - 1)).toBe(false);
    expect(takeDom0Pending(d, port)).toBe(true);
    expect(takeDom0Pending(d, port)).toBe(false);
  }
});
