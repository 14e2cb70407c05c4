/** Hostile guests: noise in the pages that they share with Xen and the backends, and all event channels. */

import { expect, test } from 'vitest';
import { DONE, describeGuests, finish, withTraps } from '../guests/hostile.ts';
import { DOMID_SELF, H, type Program, SHARED_INFO_MFN } from '../guests/program.ts';

/** Fills the page at rdi with noise; a different one for each seed. Destroys rax, rcx, rdx. */
function noise(p: Program, seed: bigint, words = 512): void {
  const again = p.newLabel();
  p.movImm('rax', seed);
  p.movImm('rcx', words);
  p.label(again);
  for (const [direction, bits] of [
    ['left', 13],
    ['right', 7],
    ['left', 17],
  ] as const) {
    p.mov('rdx', 'rax');
    p.shift(direction, 'rdx', bits);
    p.alu('xor', 'rax', 'rdx');
  }
  p.store('rdi', 0, 'rax');
  p.alu('add', 'rdi', 8);
  p.alu('sub', 'rcx', 1);
  p.jmpIf('notEqual', again);
}

describeGuests('shared pages', (runHostile) => {
  test('noise in shared_info', async () => {
    const p = withTraps();
    const window = p.page();
    p.mapFrame(window, SHARED_INFO_MFN);
    p.report();
    for (let seed = 1n; seed <= 20n; seed++) {
      p.movImm('rdi', window);
      noise(p, seed * 0x9e3779b97f4a7c15n);
      // Upcalls masked: there is no callback.
      p.movImm('rax', 1);
      p.movImm('rdi', window);
      p.store8('rdi', 1, 'rax');
      p.hypercall(H.event_channel_op, 4, p.words([1]));
      p.hypercall(H.event_channel_op, 9, p.words([2]));
      p.hypercall(H.memory_op, 14, p.words([DOMID_SELF]));
      p.hypercall(H.sched_op, 0, 0);
    }
    finish(p);
    const run = await runHostile(p);
    expect(run, run.log.join('\n')).toMatchObject({ reason: 'poweroff', words: [0n, DONE] });
  });

  test('noise in the console and xenstore rings', async () => {
    const p = withTraps();
    const send = (port: number): void => p.hypercall(H.event_channel_op, 4, p.words([port]));
    for (let seed = 1n; seed <= 30n; seed++) {
      for (const [page, port] of [
        [1, 1],
        [2, 2],
      ] as const) {
        p.mov('rdi', 'r14');
        p.alu('add', 'rdi', page * 4096);
        noise(p, (seed + BigInt(page) * 100n) * 0x9e3779b97f4a7c15n);
        send(port);
      }
      // Indices that look right over data that does not.
      p.mov('rdi', 'r14');
      p.alu('add', 'rdi', 4096 + 2048);
      p.movImm('rax', 1024n);
      p.store('rdi', 0, 'rax');
      p.movImm('rax', 0n);
      p.store('rdi', 8, 'rax');
      send(1);
    }
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
  });

  test('a flood of console output holds up neither the host nor the end', async () => {
    const p = withTraps();
    const text = p.data(4096, new Uint8Array(4096).fill(0x41));
    p.label('again');
    p.hypercall(H.console_io, 0, 4096, text);
    p.jmp('again');
    // The time limit is a timer of the thread that serves the console.
    const run = await runHostile(p, { timeoutMs: 700 });
    expect(run.reason).toBe('detached');
  });
});

describeGuests('event channels', (runHostile) => {
  test('each operation on each port number', async () => {
    const p = withTraps();
    const argument = p.page();
    p.movImm('rbp', argument);
    p.movImm('r12', 0);
    p.label('port');
    for (const command of [8, 9, 5, 4, 0, 1, 7, 6, 3]) {
      p.mov('rax', 'r12');
      p.shift('left', 'rax', 32);
      p.alu('or', 'rax', 'r12');
      p.store('rbp', 0, 'rax');
      p.store('rbp', 8, 'rax');
      p.hypercall(H.event_channel_op, command, argument);
    }
    p.alu('add', 'r12', 1);
    p.alu('cmp', 'r12', 4200);
    p.jmpIf('below', 'port');
    for (const port of [0x7fffffff, 0x80000000, 0xffffffff])
      for (const command of [3, 4, 5, 8, 9]) p.check(H.event_channel_op, command, p.words([port, port]));
    p.check(H.event_channel_op, 10, p.words([DOMID_SELF]));
    finish(p);
    const run = await runHostile(p, { timeoutMs: 10_000 });
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    const bad = run.words.slice(0, 15);
    expect(bad.filter((word) => word >= 0n)).toEqual([]);
    expect(run.words.slice(15)).toEqual([0n, DONE]);
  });
});
