/** What may be done with a domain that stays at rest: it is in a file, or runs elsewhere. */

import { expect, test } from 'vitest';
import { createDomain, DOMAIN } from '../hypervisor/domain.ts';
import { suspendDomain } from '../hypervisor/domain-state.ts';
import { createMachineMemory } from '../machine/memory.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import { monotonicNs } from './clock.ts';
import { createEngineDomain, createKicker } from './engines.ts';
import { HostError } from './host-error.ts';
import { type FreezableDomain, Freezer, type Suspend } from './save-domain.ts';

/** Whose vCPU is parked, and goes on when nothing is paused. */
function parkedDomain() {
  const domain = createDomain(createMachineMemory(64, 64), 5, 1, new Uint8Array(16));
  Atomics.store(domain.i32, DOMAIN.parked >> 2, 1);
  const events: string[] = [];
  const nothing = { hold: () => {}, release: () => {}, service: () => {} };
  const freezer = new Freezer({
    ...{ domain, kicker: createKicker(createEngineDomain('wasm', domain.machine, 1)) },
    ...{ connection: { isIdle: true }, console: nothing, arrivals: nothing, service: () => {} },
    ring: { ...nothing, isBetweenMessages: true },
    devices: {
      detach: async () => void events.push('detached'),
      attach: async () => void events.push('attached'),
    },
  } as unknown as FreezableDomain);
  const isPaused = (): boolean => Atomics.load(domain.i32, DOMAIN.paused >> 2) !== 0;
  return { domain, freezer, events, isPaused };
}

test('one that was frozen goes on, and can be frozen again', async () => {
  const { freezer, events, isPaused } = parkedDomain();
  for (let i = 0; i < 2; i++) await freezer.whileFrozen(async () => 'as before');
  expect(events).toEqual(['detached', 'attached', 'detached', 'attached']);
  expect(isPaused()).toBe(false);
  expect(freezer.hasLeft).toBe(false);
});

test('one that has left is neither woken nor frozen nor parked, by those who wait for their turn either', async () => {
  const { domain, freezer, events, isPaused } = parkedDomain();
  const acts: string[] = [];
  const leaving = freezer.whileFrozen(async () => {
    // Whoever says so while it leaves has said nothing about what is left.
    freezer.unpause();
    return 'stay';
  });
  const waiting = [
    freezer.whileFrozen(async () => {
      acts.push('frozen');
      return 'as before';
    }),
    freezer.whileParked(async () => void acts.push('parked')),
  ];
  const outcomes = Promise.allSettled(waiting);
  await leaving;
  for (const one of await outcomes) expect(one).toMatchObject({ status: 'rejected', reason: expect.any(NotSavable) });
  expect(freezer.hasLeft).toBe(true);
  expect(() => freezer.unpause()).toThrow(HostError);
  expect(() => freezer.pause()).toThrow(HostError);
  // A guest that had suspended itself.
  Atomics.store(domain.i32, DOMAIN.suspended >> 2, 1);
  expect(freezer.resume()).toBe(false);
  expect(isPaused()).toBe(true);
  expect(acts).toEqual([]);
  expect(events).toEqual(['detached']);
});

test('one that suspends itself for it goes on with the time of the host, and stays paused where that is asked for', async () => {
  const { domain, freezer, isPaused } = parkedDomain();
  const wallclock = (): number => {
    const wc = (domain.machine.layout.sharedInfoOffset + 0xc00) >>> 2;
    return domain.machine.u32[wc + 1];
  };
  const suspended = (): number => domain.i32[DOMAIN.suspended >> 2];
  const suspend = async (): Promise<boolean> => {
    suspendDomain(domain, createKicker(createEngineDomain('wasm', domain.machine, 1)));
    return true;
  };
  // Its system time is the host's monotonic clock.
  const atLeast = Math.floor(Date.now() / 1000 - monotonicNs() / 1e9) - 1;
  await freezer.whileFrozen(async () => 'as before', suspend);
  expect([isPaused(), suspended()]).toEqual([false, 0]);
  expect(wallclock()).toBeGreaterThanOrEqual(atLeast);

  await freezer.whileFrozen(async () => 'pause', suspend);
  expect([isPaused(), suspended()]).toEqual([true, 0]);
  freezer.unpause();
  expect(isPaused()).toBe(false);

  const failing = freezer.whileFrozen(async () => {
    throw new Error('the disk is full');
  }, suspend);
  await expect(failing).rejects.toThrow('the disk is full');
  expect([isPaused(), suspended()]).toEqual([false, 0]);
});

test('one that is paused, or is paused meanwhile, is asked for nothing', async () => {
  const { freezer, isPaused } = parkedDomain();
  const asked: boolean[] = [];
  const suspend: Suspend = async (isUnwanted) => {
    freezer.pause();
    asked.push(isUnwanted());
    return false;
  };
  await freezer.whileFrozen(async () => 'as before', suspend);
  expect(isPaused()).toBe(true);
  await freezer.whileFrozen(async () => 'as before', suspend);
  expect(asked).toEqual([true]);
});
