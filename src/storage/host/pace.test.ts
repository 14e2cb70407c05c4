import { expect, test } from 'vitest';
import { Pace } from './pace.ts';

function run(pace: Pace, clock: { ms: number }, takesMs: () => number, requests: number): number {
  let now = 0;
  for (let i = 0; i < requests; i++) {
    if (!pace.begin()) continue;
    now++;
    clock.ms += takesMs();
    pace.end();
  }
  return now;
}

test('what is quick is done at once, always', () => {
  const clock = { ms: 0 };
  expect(run(new Pace(() => clock.ms), clock, () => 0.01, 1000)).toBe(1000);
});

test('what is slow is tried ever more seldom, and again often soon after it is quick', () => {
  const clock = { ms: 0 };
  const pace = new Pace(() => clock.ms);
  let slowMs = 10;
  const takes = (): number => slowMs;
  expect(run(pace, clock, takes, 10_000)).toBeLessThan(12);
  expect(run(pace, clock, takes, 100_000)).toBeLessThan(30);
  slowMs = 0.01;
  expect(run(pace, clock, takes, 10_000)).toBeGreaterThan(5000);
  // A single slow one, as when another program has the CPU, costs little.
  slowMs = 10;
  expect(run(pace, clock, takes, 1)).toBe(1);
  slowMs = 0.01;
  expect(run(pace, clock, takes, 1000)).toBeGreaterThan(900);
});
