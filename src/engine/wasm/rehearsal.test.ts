import { expect, test } from 'vitest';
import { machineLayout } from '../../machine/memory.ts';
import { EXIT_SYSCALL } from '../engine.ts';
import { rehearse } from './rehearsal.ts';

const host = { monotonicNs: () => performance.now() * 1e6 };

test('the program of the rehearsal comes to its end, with the memory of any guest', () => {
  expect(rehearse(machineLayout(256, 512), host)).toBe(EXIT_SYSCALL);
});
