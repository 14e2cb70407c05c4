import { expect, test } from 'vitest';
import { FLAG_EVENT, FLAG_PAUSE, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { DOMAIN } from './domain.ts';
import { domainState, pauseDomain, raiseNmi, unpauseDomain } from './domain-state.ts';
import { TestGuest } from './testing.ts';
import { RUNSTATE_blocked, RUNSTATE_running } from './time.ts';

const kickerOf = (kicks: number[]) => ({ kick: (vcpu: number) => void kicks.push(vcpu) });

test('a domain that has not begun is one of no time, whose vCPUs neither run nor are blocked', () => {
  const { domain } = new TestGuest({ vcpus: 2 });
  for (const vcpu of domain.vcpus) vcpu.i32[VCPU.state >> 2] = 0;
  const vcpu = { online: false, running: false, blocked: false, timeNs: 0 };
  expect(domainState(domain)).toMatchObject({ paused: false, shutdownReason: -1, pages: 64, vcpus: [vcpu, vcpu] });
});

test('a vCPU runs or is blocked until the domain has shut down, and its time is that of its thread', () => {
  const { domain } = new TestGuest({ vcpus: 2 });
  domain.f64[DOMAIN.bootNs >> 3] = 1000;
  for (const [i, runstate] of [RUNSTATE_running, RUNSTATE_blocked].entries()) {
    const vcpu = domain.vcpus[i];
    vcpu.i32[VCPU.state >> 2] = VCPU_STATE_UP;
    vcpu.u32[VCPU.runstate >> 2] = runstate;
    vcpu.f64[VCPU.cpuNs >> 3] = 300 + i;
  }
  expect(domainState(domain).vcpus).toEqual([
    { online: true, running: true, blocked: false, timeNs: 300 },
    { online: true, running: false, blocked: true, timeNs: 301 },
  ]);
  domain.shutdown(3);
  expect(domainState(domain)).toMatchObject({
    shutdownReason: 3,
    vcpus: [
      { running: false, blocked: false, timeNs: 300 },
      { running: false, blocked: false, timeNs: 301 },
    ],
  });
});

test('pausing tells every vCPU, kicks those that are in the guest, and can be done twice', () => {
  const { domain } = new TestGuest({ vcpus: 2 });
  const kicks: number[] = [];
  domain.vcpus[1].i32[VCPU.inGuest >> 2] = 1;
  for (let i = 0; i < 2; i++) pauseDomain(domain, kickerOf(kicks));
  expect(kicks).toEqual([1, 1]);
  for (const vcpu of domain.vcpus)
    expect(vcpu.i32[VCPU.flags >> 2] & (FLAG_PAUSE | FLAG_EVENT)).toBe(FLAG_PAUSE | FLAG_EVENT);
  expect(domainState(domain).paused).toBe(true);
  for (let i = 0; i < 2; i++) unpauseDomain(domain);
  expect(domainState(domain).paused).toBe(false);
});

test('an NMI is pending on the vCPU that was named, which is woken; there is none for one that is not there', () => {
  const { domain } = new TestGuest({ vcpus: 2 });
  const kicks: number[] = [];
  const woken = domain.vcpus[1].i32[VCPU.wake >> 2];
  expect(raiseNmi(domain, 1, kickerOf(kicks))).toBe(true);
  expect(domain.vcpus.map((vcpu) => vcpu.u32[VCPU.nmiPending >> 2])).toEqual([0, 1]);
  expect(domain.vcpus[1].i32[VCPU.wake >> 2]).toBe(woken + 1);
  for (const vcpu of [2, -1, 0.5, Number.NaN]) expect(raiseNmi(domain, vcpu, kickerOf(kicks))).toBe(false);
  expect(kicks).toEqual([]);
});
