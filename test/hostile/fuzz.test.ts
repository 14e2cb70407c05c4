/** Hostile guests: hypercalls with random numbers and arguments. Half of the seeds leave their own code alone, to come further. */

import { expect, test } from 'vitest';
import { MFN_BASE } from '../../src/machine/memory.ts';
import { describeGuests, finish, HOLE, NON_CANONICAL, withTraps } from '../guests/hostile.ts';
import { DOMID_SELF, H, RAM_PAGES } from '../guests/program.ts';

/** mulberry32. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

describeGuests('fuzz', (runHostile) => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])('random hypercalls, seed %i', async (seed) => {
    const next = random(seed);
    const pick = <T>(values: readonly T[]): T => values[next() % values.length];
    const p = withTraps();
    const gap = p.page();
    const scratch = p.data(16 * 4096);
    const u64 = (): bigint => (BigInt(next()) << 32n) | BigInt(next());
    const ownMfn = (): bigint => BigInt(MFN_BASE + (next() % (RAM_PAGES + 80)));
    const pointer = (): bigint =>
      pick([
        scratch + BigInt(next() % 65536),
        scratch + BigInt((next() % 16) * 4096),
        gap - 4n,
        HOLE,
        NON_CANONICAL,
        0n,
      ]);
    const argument = (): bigint =>
      pick<() => bigint>([
        () => BigInt(next() % 16),
        () => BigInt(next() % 64),
        pointer,
        pointer,
        pointer,
        u64,
        ownMfn,
        () => (ownMfn() << 12n) | BigInt(next() & 0xfff),
        () => BigInt(DOMID_SELF),
        () => 1n << BigInt(next() % 64),
        () => -1n,
      ])();
    const noiseWords = BigUint64Array.from({ length: 16 * 512 }, () => BigInt.asUintN(64, argument()));
    const source = p.data(16 * 4096, new Uint8Array(noiseWords.buffer));
    p.unmap(gap);
    // The scratch pages get the noise at run time, so that they may point to themselves.
    p.movImm('rsi', source);
    p.movImm('rdi', scratch);
    p.movImm('rcx', 16 * 4096);
    p.raw(0xf3, 0xa4);
    const calls: bigint[] = [];
    const CALLS = 4000;
    for (let i = 0; i < CALLS; i++) {
      let nr = next() % 49;
      // iret leaves the table; sched_op sleeps or ends. Both have tests of their own.
      while (nr === H.iret || nr === H.sched_op) nr = next() % 64;
      const first = next() % 4 === 0 ? argument() : BigInt(next() % 41);
      // Half of the seeds leave their own code and tables alone, to come further.
      const destructive: readonly number[] = [H.update_va_mapping, H.mmuext_op, H.mmu_update, H.set_trap_table, 22];
      if (seed % 2 === 0) while (destructive.includes(nr) || nr === H.iret || nr === H.sched_op) nr = next() % 49;
      if (nr === H.vcpu_op && first === 2n) continue;
      calls.push(BigInt(nr), first, argument(), argument(), argument(), argument(), argument());
    }
    p.runTable(p.words(calls), calls.length / 7);
    finish(p);
    const run = await runHostile(p, { vcpus: 1 + (seed % 2), timeoutMs: 2500 });
    expect(['poweroff', 'crash', 'detached', 'reboot'], run.log.join('\n')).toContain(run.reason);
  });
});
