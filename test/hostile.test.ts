import { beforeEach, describe, expect, test } from 'vitest';
import { probeKvm } from '../src/engine/kvm/self-test.ts';
import { Program } from './guests/program.ts';
import { runHostile } from './guests/run.ts';

beforeEach((context) => {
  const probe = probeKvm();
  if (!probe.usable) context.skip(probe.reason);
});

describe('hostile', () => {
  test('fault without a trap table crashes', async () => {
    const p = new Program();
    p.movImm('rax', 0x1234);
    p.report();
    p.ud2();
    const run = await runHostile(p);
    console.log(run);
    expect(run.reason).toBe('crash');
  });
});
