/** Upcalls with masks, periodic timers, SCHEDOP_poll and multicalls from a guest that is not Linux. Source: xen/include/public. */

import { expect, test } from 'vitest';
import { DONE, describeGuests, finish, withTraps } from '../guests/hostile.ts';
import { H, type Program, SHARED_INFO_MFN } from '../guests/program.ts';

const VIRQ_TIMER = 0;
const RUNSTATE_SIZE = 48;
const MS = 1_000_000n;

/** rbp = VA of shared_info. */
function mapSharedInfo(p: Program): void {
  const page = p.page();
  p.mapFrame(page, SHARED_INFO_MFN);
  p.movImm('rbp', page);
}

/** bind_virq or bind_ipi; r12 = the port. */
function bind(p: Program, command: 1 | 7): void {
  // struct evtchn_bind_virq { u32 virq, vcpu; u32 port; }; struct evtchn_bind_ipi { u32 vcpu; u32 port; }
  const at = p.words(command === 1 ? [VIRQ_TIMER, 0] : [0, 0]);
  p.check(H.event_channel_op, command, at);
  p.movImm('rbx', at);
  p.load('r12', 'rbx', command === 1 ? 8 : 0);
  if (command === 7) p.shift('right', 'r12', 32);
}

/** Clears what says that an event is pending, at all three levels: all events are this one. */
function clearPending(p: Program): void {
  p.movImm('rax', 0);
  p.store('rbp', 0x800, 'rax');
  p.store('rbp', 8, 'rax');
  p.store8('rbp', 0, 'rax');
}

function setMask(p: Program, mask: 0 | 1): void {
  p.movImm('rax', mask);
  p.store8('rbp', 1, 'rax');
}

describeGuests('events', (runGuest) => {
  test('an upcall comes when the mask goes, once, with the mask set and the old one in its frame', async () => {
    const p = withTraps();
    mapSharedInfo(p);
    bind(p, 7);
    const port = p.page();
    p.movImm('rbx', port);
    p.store('rbx', 0, 'r12');
    const register = p.words([0, 0]);
    p.movLabel('rbx', 'upcall');
    p.movImm('rax', register);
    p.store('rax', 8, 'rbx');
    p.check(H.callback_op, 0, register);
    p.movImm('r13', 0);
    setMask(p, 1);
    p.check(H.event_channel_op, 4, port);
    p.check(H.event_channel_op, 4, port);
    p.mov('rax', 'r13');
    p.report();
    // The mask goes, and a hypercall gives Xen the chance to look.
    setMask(p, 0);
    p.hypercall(H.sched_op, 0, 0);
    p.mov('rax', 'r13');
    p.report();
    // Not masked: at once.
    p.check(H.event_channel_op, 4, port);
    p.mov('rax', 'r13');
    p.report();
    // A masked port: pending, and no upcall until EVTCHNOP_unmask.
    p.movImm('rax', -1n);
    p.store('rbp', 0xa00, 'rax');
    p.check(H.event_channel_op, 4, port);
    p.mov('rax', 'r13');
    p.report();
    p.check(H.event_channel_op, 9, port);
    p.mov('rax', 'r13');
    p.report();
    finish(p);
    p.label('upcall');
    // rcx, r11, rip, cs and mask, rflags, rsp, ss. What iret takes: rax rsp-24, r11, rcx, flags, then rip on.
    p.push('rax');
    clearPending(p);
    p.alu('add', 'r13', 1);
    p.load('rax', 'rbp', 0);
    p.shift('right', 'rax', 8);
    p.alu('and', 'rax', 0xff);
    p.shift('left', 'rax', 8);
    p.alu('add', 'r13', 'rax');
    p.load('rax', 'rsp', 32);
    p.shift('right', 'rax', 32);
    p.shift('left', 'rax', 16);
    p.alu('add', 'r13', 'rax');
    p.pop('rax');
    p.load('rcx', 'rsp', 0);
    p.load('r11', 'rsp', 8);
    p.alu('add', 'rsp', 16);
    for (const word of [0, 0, 0] as const) {
      p.raw(0x6a, word); // push 0: flags
    }
    p.store('rsp', 0, 'r11');
    p.store('rsp', 8, 'rcx');
    p.push('rax');
    p.movImm('rax', H.iret);
    p.syscall();
    const run = await runGuest(p);
    const upcall = 0x101n;
    expect(run.words, run.log.join('\n')).toEqual([
      ...[0n, 0n],
      ...[0n, 0n, 0n],
      upcall,
      ...[0n, 2n * upcall],
      ...[0n, 2n * upcall],
      ...[0n, 3n * upcall],
      DONE,
    ]);
  });

  test('a periodic timer comes again and again, and SCHEDOP_poll waits for it', async () => {
    const p = withTraps();
    mapSharedInfo(p);
    setMask(p, 1);
    bind(p, 1);
    const ports = p.page();
    p.movImm('rbx', ports);
    p.store('rbx', 0, 'r12');
    const poll = p.words([ports, 1, 0]);
    p.check(H.vcpu_op, 6, 0, p.words([10n * MS]));
    for (let i = 0; i < 4; i++) {
      p.check(H.sched_op, 3, poll);
      p.load('rax', 'rbp', 0x800);
      p.raw(0x4c, 0x0f, 0xa3, 0xe0); // bt rax, r12
      p.movImm('rax', 0);
      p.raw(0x0f, 0x92, 0xc0); // setc al
      p.report();
      clearPending(p);
    }
    p.check(H.vcpu_op, 7, 0, 0);
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([0n, 0n, ...new Array(4).fill([0n, 1n]).flat(), 0n, DONE]);
  });

  test('SCHEDOP_poll ends at its time, at once when that is past, when its port is pending or when an upcall is due', async () => {
    const p = withTraps();
    mapSharedInfo(p);
    setMask(p, 1);
    bind(p, 7);
    const ports = p.page();
    p.movImm('rbx', ports);
    p.store('rbx', 0, 'r12');
    const until = 700n * MS;
    const state = p.data(RUNSTATE_SIZE);
    p.check(H.sched_op, 3, p.words([ports, 1, until]));
    p.check(H.vcpu_op, 4, 0, state);
    // struct vcpu_runstate_info { u32 state; u64 state_entry_time; u64 time[4]; }
    p.movImm('rbx', state);
    p.load('rax', 'rbx', 8);
    p.movImm('rcx', until);
    p.alu('cmp', 'rax', 'rcx');
    p.movImm('rax', 0);
    p.raw(0x0f, 0x93, 0xc0); // setae al
    p.report();
    p.check(H.sched_op, 3, p.words([ports, 1, 1]));
    p.check(H.sched_op, 3, p.words([0, 0, 1]));
    p.check(H.event_channel_op, 4, ports);
    p.check(H.sched_op, 3, p.words([ports, 1, 0]));
    // Another port, but an upcall that is due: there is no callback, so it is not delivered.
    setMask(p, 0);
    p.check(H.sched_op, 3, p.words([p.words([100]), 1, 0]));
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([0n, 0n, 0n, 1n, 0n, 0n, 0n, 0n, 0n, DONE]);
  });

  test('multicall: each entry its own result, none at all, and a fault half way', async () => {
    const p = withTraps();
    const entries = p.words([
      ...[H.sched_op, 1, 0, 0, 0, 0, 0, 0],
      ...[63, 1, 0, 0, 0, 0, 0, 0],
      ...[(1n << 32n) | BigInt(H.sched_op), 1, 0, 0, 0, 0, 0, 0],
      ...[H.sched_op, 1, 77, 0, 0, 0, 0, 0],
    ]);
    p.check(H.multicall, entries, 4);
    p.movImm('rbp', entries);
    for (let i = 0; i < 4; i++) {
      p.load('rax', 'rbp', i * 64 + 8);
      p.report();
    }
    p.check(H.multicall, entries, 0);
    p.check(H.multicall, 0, 0);
    // Two entries in a page, the third in one that is not mapped.
    const page = p.page();
    const gap = p.page();
    p.unmap(gap);
    p.movImm('rbp', page + 4096n - 128n);
    p.movImm('rax', H.sched_op);
    p.store('rbp', 0, 'rax');
    p.store('rbp', 64, 'rax');
    p.movImm('rax', 1);
    p.store('rbp', 8, 'rax');
    p.store('rbp', 72, 'rax');
    p.check(H.multicall, 'rbp', 3);
    for (const offset of [8, 72]) {
      p.load('rax', 'rbp', offset);
      p.report();
    }
    finish(p);
    const run = await runGuest(p);
    const ENOSYS = -38n;
    expect(run.words, run.log.join('\n')).toEqual([
      ...[0n, 0n, ENOSYS, ENOSYS, ENOSYS],
      ...[0n, 0n],
      ...[-14n, 0n, 0n],
      DONE,
    ]);
  });
});
