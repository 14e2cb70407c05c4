import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
import { createDomain, DOMAIN, Domain } from '../hypervisor/domain.ts';
import { createMachineMemory } from '../machine/memory.ts';
import { Doorbell, ringByPipe } from './doorbell.ts';
import { hostCalls } from './libc.ts';

/** A domain as its main thread has it and as another does, and how often that one has woken the first. */
function makeDomain(pipe: readonly [number, number] | null): {
  bell: Doorbell;
  ticket: () => number;
  ring: () => void;
  wakes: () => number;
} {
  const domain = createDomain(createMachineMemory(256, 256), 1, 1, new Uint8Array(16));
  const bell = new Doorbell(domain, pipe);
  onTestFinished(() => bell.close());
  const other = new Domain(domain.handle());
  ringByPipe(other, bell.fd);
  let wakes = 0;
  const { wakeMain } = other;
  if (wakeMain !== null)
    other.wakeMain = () => {
      wakes++;
      wakeMain();
    };
  return {
    bell,
    ticket: () => domain.i32[DOMAIN.doorbell >> 2],
    ring: () => other.ringDoorbell(),
    wakes: () => wakes,
  };
}

for (const kind of ['a pipe', 'the word itself'] as const) {
  test(`by ${kind}: who sleeps is woken, and who does not need not sleep`, async (context) => {
    const pipe = kind === 'a pipe' ? (hostCalls()?.pipe() ?? null) : null;
    if (kind === 'a pipe' && pipe === null) return context.skip('no pipes here');
    const { bell, ticket, ring } = makeDomain(pipe);
    for (let i = 0; i < 20; i++) {
      const before = ticket();
      const woken = bell.wait(before);
      expect(woken).not.toBeNull();
      if (i % 2 === 0) ring();
      else setImmediate(ring);
      await woken;
      expect(ticket()).toBe(before + 1);
      // It has been rung since, which is seen without sleeping.
      expect(bell.wait(before)).toBeNull();
    }
  });
}

test('by a pipe: only the first ring of a sleep writes, and none while the thread is awake', async (context) => {
  const pipe = hostCalls()?.pipe() ?? null;
  if (pipe === null) return context.skip('no pipes here');
  const { bell, ticket, ring, wakes } = makeDomain(pipe);
  ring();
  expect(wakes()).toBe(0);
  const woken = bell.wait(ticket());
  ring();
  ring();
  ring();
  await woken;
  ring();
  expect(wakes()).toBe(1);
  // The byte has been taken: the next sleep is a sleep.
  let awake = false;
  void bell.wait(ticket())?.then(() => {
    awake = true;
  });
  await sleep(20);
  expect(awake).toBe(false);
});
