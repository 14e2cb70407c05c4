/** What may be done with a domain that stays at rest: it is in a file, or runs elsewhere. */

import { expect, test } from 'vitest';
import { createDomain, DOMAIN } from '../hypervisor/domain.ts';
import { createMachineMemory } from '../machine/memory.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import { createEngineDomain, createKicker } from './engines.ts';
import { HostError } from './host-error.ts';
import { type FreezableDomain, Freezer } from './save-domain.ts';

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
