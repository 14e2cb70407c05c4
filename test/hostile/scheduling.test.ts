/** Hostile guests: work without end, timers and sleep, vCPUs that cannot run. */

import { expect, test } from 'vitest';
import { VCPU_GUEST_CONTEXT } from '../../src/abi/vcpu.ts';
import {
  DONE,
  describeGuests,
  EFAULT,
  EINVAL,
  finish,
  HOLE,
  NON_CANONICAL,
  UNMAPPED,
  withTraps,
} from '../guests/hostile.ts';
import { DOMID_SELF, H, VIRT_BASE } from '../guests/program.ts';

describeGuests('multicall', (runHostile) => {
  test('a multicall of multicalls is -EINVAL inside', async () => {
    const p = withTraps();
    const entries = p.page();
    p.movImm('rbx', entries);
    p.movImm('rax', H.multicall);
    p.store('rbx', 0, 'rax');
    p.store('rbx', 16, 'rbx');
    p.movImm('rax', 1);
    p.store('rbx', 24, 'rax');
    p.check(H.multicall, entries, 1);
    p.load('rax', 'rbx', 8);
    p.report();
    p.check(H.multicall, entries, 1n << 32n);
    finish(p);
    const run = await runHostile(p);
    expect(run).toMatchObject({ reason: 'poweroff', words: [0n, EINVAL, 0n, DONE] });
  });

  test('a multicall with work for minutes ends soon after the time limit', async () => {
    const p = withTraps();
    const clear: (bigint | number)[] = [];
    const scratch = p.page();
    for (let i = 0; i < 4096; i++) clear.push(16, p.mfn(scratch), 0);
    const work = p.words(clear);
    const entries: (bigint | number)[] = [];
    for (let i = 0; i < 4096; i++) entries.push(H.mmuext_op, 0, work, 4096, 0, DOMID_SELF, 0, 0);
    const table = p.words(entries);
    p.check(H.multicall, table, 1);
    p.movImm('rbx', table);
    p.load('rax', 'rbx', 8);
    p.report();
    p.hypercall(H.multicall, table, 4096);
    finish(p);
    const run = await runHostile(p, { timeoutMs: 500 });
    expect(run).toMatchObject({ reason: 'detached', words: [0n, 0n] });
  });
});

describeGuests('time', (runHostile) => {
  test('an endless loop with events masked is ended by the signal, and costs one core', async () => {
    const p = withTraps();
    p.loop();
    const run = await runHostile(p, { timeoutMs: 1000 });
    expect(run.reason).toBe('detached');
    expect(run.cpuMs / run.ms).toBeLessThan(1.5);
  });

  test('a hypercall loop is ended by the signal', async () => {
    const p = withTraps();
    p.label('again');
    p.hypercall(H.sched_op, 0, 0);
    p.jmp('again');
    expect((await runHostile(p, { timeoutMs: 600 })).reason).toBe('detached');
  });

  test('a block that nothing ends is ended by the signal', async () => {
    const p = withTraps();
    p.hypercall(H.sched_op, 1, 0);
    p.loop();
    const run = await runHostile(p, { timeoutMs: 500 });
    expect(run.reason).toBe('detached');
  });

  test('timers at the ends of their range', async () => {
    const p = withTraps();
    for (const at of [1n, -1n, 1n << 63n, (1n << 63n) - 1n, 1n << 53n]) {
      p.check(H.set_timer_op, at);
      p.hypercall(H.vcpu_op, 6, 0, p.words([at]));
      p.hypercall(H.vcpu_op, 8, 0, p.words([at, 0]));
      p.hypercall(H.sched_op, 0, 0);
    }
    finish(p);
    const run = await runHostile(p);
    expect(run).toMatchObject({ reason: 'poweroff', words: [0n, 0n, 0n, 0n, 0n, DONE] });
  });
});

describeGuests('vCPUs', (runHostile) => {
  test('SCHEDOP_poll with bad ports', async () => {
    const p = withTraps();
    const ports = p.words([0, 4096, 0xffffffffn]);
    for (let i = 0; i < 3; i++) p.check(H.sched_op, 3, p.words([ports + BigInt(i * 8), 1, 1]));
    p.check(H.sched_op, 3, p.words([ports, 129, 1]));
    p.check(H.sched_op, 3, p.words([ports, 0xffffffff, 1]));
    p.check(H.sched_op, 3, p.words([HOLE, 1, 1]));
    finish(p);
    const run = await runHostile(p);
    expect(run).toMatchObject({ reason: 'poweroff', words: [EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, EFAULT, DONE] });
  });

  test('a garbage context is refused, and its vCPU cannot come up', async () => {
    const p = withTraps();
    const context = p.words(
      Array.from({ length: VCPU_GUEST_CONTEXT.SIZE / 8 }, (_, i) =>
        BigInt.asUintN(64, BigInt(i + 1) * 0x9e3779b97f4a7c15n),
      ),
    );
    p.check(H.vcpu_op, 0, 1, context);
    p.check(H.vcpu_op, 1, 1, 0);
    p.check(H.vcpu_op, 0, 0, context);
    for (const id of [2, 31, 32, 0xffffffff]) p.check(H.vcpu_op, 0, id, context);
    finish(p);
    const run = await runHostile(p, { vcpus: 2 });
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words.slice(0, -1).filter((word) => word >= 0n)).toEqual([]);
  });

  test.each([
    ['runs nowhere', 0x4000n, 0xe033n, 4n],
    ['has a bad code selector', VIRT_BASE, 0xfffbn, 4n],
    ["starts in the engine's area", 0xffff_80c0_0000_1000n, 0xe033n, 4n],
  ])('a vCPU that %s takes its domain with it', async (_case, rip, cs, flags) => {
    const p = withTraps();
    const C = VCPU_GUEST_CONTEXT;
    const words = new Array<bigint>(C.SIZE / 8).fill(0n);
    words[C.flags / 8] |= flags << (BigInt(C.flags % 8) * 8n);
    words[(C.user_regs + 0x80) / 8] = rip;
    words[(C.user_regs + 0x88) / 8] = cs;
    const context = p.words(words);
    p.loadRootVa('rax');
    p.vaToMfn('rax');
    p.shift('left', 'rax', 12);
    p.movImm('rbx', context);
    p.store('rbx', C.ctrlreg + 24, 'rax');
    p.check(H.vcpu_op, 0, 1, context);
    p.hypercall(H.vcpu_op, 1, 1, 0);
    p.loop();
    const run = await runHostile(p, { vcpus: 2 });
    expect(run).toMatchObject({ reason: 'crash', words: [0n] });
  });

  test('a domain whose last vCPU goes down ends', async () => {
    const p = withTraps();
    p.hypercall(H.vcpu_op, 2, 0, 0);
    p.loop();
    expect((await runHostile(p, { vcpus: 2 })).reason).toBe('poweroff');
  });

  test('records registered at wild addresses', async () => {
    const p = withTraps();
    for (const va of [NON_CANONICAL, HOLE, UNMAPPED, -1n, 0xffff_80c0_0000_0000n, p.base + 0xffcn]) {
      p.hypercall(H.vcpu_op, 5, 0, p.words([va]));
      p.hypercall(H.vcpu_op, 13, 0, p.words([va]));
      p.hypercall(H.sched_op, 0, 0);
    }
    for (const offset of [1, 4, 4089, 4096, 0xffffffff]) p.check(H.vcpu_op, 10, 0, p.words([p.mfn(p.page()), offset]));
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words).toEqual([EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, DONE]);
  });
});
