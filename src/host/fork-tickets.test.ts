import { expect, test } from 'vitest';
import { ForkTickets } from './fork-tickets.ts';

const START = { state: '/a', hasPages: false, askedNs: 1, stoppedNs: 2, describedNs: 3, disks: [] };

test('who has a ticket gets what belongs to it, asked for before or after', async () => {
  const tickets = new ForkTickets();
  const before = tickets.of('1').start.promise;
  tickets.of('1').start.resolve(START);
  tickets.of('1').memory.resolve(null);
  await expect(before).resolves.toBe(START);
  await expect(tickets.of('1').start.promise).resolves.toBe(START);
  await expect(tickets.of('1').memory.promise).resolves.toBe(null);

  const other = tickets.of('2');
  other.start.resolve(START);
  tickets.refuse('2', new Error('no memory'));
  await expect(other.start.promise).resolves.toBe(START);
  await expect(other.memory.promise).rejects.toThrow('no memory');
  // A copy that asks only now, whose question was on its way, does not wait for what never comes.
  expect(tickets.of('2')).toBe(other);
  const kept = tickets.of('1');
  tickets.forget('1');
  expect(tickets.of('1')).not.toBe(kept);
});
