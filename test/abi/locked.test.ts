/** LOCK is atomic wherever the operand lies: two vCPUs count on one counter. Source: Intel SDM vol. 3, 9.1.2. */

import { expect, test } from 'vitest';
import { VCPU_GUEST_CONTEXT } from '../../src/abi/vcpu.ts';
import { DONE, describeGuests, withTraps } from '../guests/hostile.ts';
import { FAULT, H, type Program } from '../guests/program.ts';

const PAGE = 4096n;
const ROUNDS = 5000n;
const GP = FAULT + 13n;

/** Makes vCPU 1 run from a label, with a stack of its own. */
function startSecond(p: Program, label: string): void {
  const C = VCPU_GUEST_CONTEXT;
  const stack = p.page() + PAGE;
  const words = new Array<bigint>(C.SIZE / 8).fill(0n);
  words[C.flags / 8] |= 4n << (BigInt(C.flags % 8) * 8n);
  words[(C.user_regs + 0x88) / 8] = 0xe033n;
  words[(C.user_regs + 0x98) / 8] = stack;
  words[(C.user_regs + 0xa0) / 8] = 0xe02bn;
  const context = p.words(words);
  p.movImm('rbx', context);
  p.movLabel('rax', label);
  p.store('rbx', C.user_regs + 0x80, 'rax');
  p.loadRootVa('rax');
  p.vaToMfn('rax');
  p.shift('left', 'rax', 12);
  p.store('rbx', C.ctrlreg + 24, 'rax');
  p.check(H.vcpu_op, 0, 1, context);
  p.check(H.vcpu_op, 1, 1, 0);
}

/** Both vCPUs run `body`, which may use all registers but r12-r15, ROUNDS times; then vCPU 0 runs `after`. */
function together(p: Program, body: () => void, after: () => void): void {
  const arrived = p.page();
  const bump = (at: bigint): void => {
    p.movImm('rbx', at);
    p.raw(0xf0, 0x48, 0xff, 0x03); // lock inc qword [rbx]
  };
  const waitFor = (at: bigint): void => {
    const again = p.newLabel();
    p.movImm('rbx', at);
    p.label(again);
    p.load('rax', 'rbx');
    p.alu('cmp', 'rax', 2);
    p.jmpIf('notEqual', again);
  };
  const round = (): void => {
    bump(arrived);
    waitFor(arrived);
    const again = p.newLabel();
    p.movImm('r12', ROUNDS);
    p.label(again);
    body();
    p.alu('sub', 'r12', 1);
    p.jmpIf('notEqual', again);
    bump(arrived + 64n);
  };
  startSecond(p, 'second');
  round();
  waitFor(arrived + 64n);
  after();
  p.movImm('rax', DONE);
  p.report();
  p.shutdown();
  p.label('second');
  round();
  p.loop();
}

/** Offsets in two pages: aligned, within a quadword, across quadwords, cache lines and pages. */
const PLACES: readonly bigint[] = [64n, 65n, 6n, 62n, PAGE - 2n];
const TIME = { timeoutMs: 40_000 };

/** Two pages for each of PLACES. */
const places = (p: Program): readonly bigint[] => PLACES.map((offset) => p.data(2 * Number(PAGE)) + offset);
const each = (value: bigint): bigint[] => PLACES.map(() => value);

function reportWord(p: Program, at: bigint): void {
  p.movImm('rbx', at);
  p.raw(0x8b, 0x03); // mov eax, [rbx]
  p.report();
}

describeGuests('locked instructions', (runGuest) => {
  test('no increment of a counter is lost', async () => {
    const p = withTraps();
    const counters = places(p);
    const body = (): void => {
      for (const counter of counters) {
        p.movImm('rbx', counter);
        p.raw(0xf0, 0xff, 0x03); // lock inc dword [rbx]
        p.movImm('rax', 1);
        p.raw(0xf0, 0x0f, 0xc1, 0x03); // lock xadd [rbx], eax
        p.raw(0xf0, 0x83, 0x03, 0x01); // lock add dword [rbx], 1
      }
    };
    together(p, body, () => {
      for (const counter of counters) reportWord(p, counter);
    });
    const run = await runGuest(p, { vcpus: 2, ...TIME });
    expect(run.words, run.log.join('\n')).toEqual([0n, 0n, ...each(6n * ROUNDS), DONE]);
  });

  test('LOCK on a dword and LOCK on one of its bytes, which is always aligned, lose nothing', async () => {
    const p = withTraps();
    const counters = places(p);
    const body = (): void => {
      for (const counter of counters) {
        p.movImm('rbx', counter);
        p.raw(0xf0, 0x81, 0x03, 0x00, 0x00, 0x01, 0x00); // lock add dword [rbx], 0x10000
        p.raw(0xf0, 0xfe, 0x03); // lock inc byte [rbx]
      }
    };
    together(p, body, () => {
      for (const counter of counters) reportWord(p, counter);
    });
    const run = await runGuest(p, { vcpus: 2, ...TIME });
    const expected = (((2n * ROUNDS) & 0xffffn) << 16n) + ((2n * ROUNDS) & 0xffn);
    expect(run.words, run.log.join('\n')).toEqual([0n, 0n, ...each(expected), DONE]);
  });

  test('a lock that is taken by XCHG and by CMPXCHG keeps the other out', async () => {
    const p = withTraps();
    const locks = places(p);
    const counters = PLACES.map(() => p.page());
    const one = (lock: bigint, counter: bigint): void => {
      const byExchange = p.newLabel();
      const byCompare = p.newLabel();
      const count = (): void => {
        p.movImm('rcx', counter);
        p.load('rax', 'rcx');
        p.alu('add', 'rax', 1);
        p.store('rcx', 0, 'rax');
        p.movImm('rax', 0);
        p.raw(0x48, 0x87, 0x03); // xchg [rbx], rax
      };
      p.movImm('rbx', lock);
      p.label(byExchange);
      p.movImm('rax', 1);
      p.raw(0x48, 0x87, 0x03); // xchg [rbx], rax
      p.alu('cmp', 'rax', 0);
      p.jmpIf('notEqual', byExchange);
      count();
      p.label(byCompare);
      p.movImm('rax', 0);
      p.movImm('rdx', 1);
      p.raw(0xf0, 0x48, 0x0f, 0xb1, 0x13); // lock cmpxchg [rbx], rdx
      p.jmpIf('notEqual', byCompare);
      count();
    };
    const body = (): void => {
      for (const [i, lock] of locks.entries()) one(lock, counters[i]!);
    };
    together(p, body, () => {
      for (const counter of counters) reportWord(p, counter);
    });
    const run = await runGuest(p, { vcpus: 2, ...TIME });
    expect(run.words, run.log.join('\n')).toEqual([0n, 0n, ...each(4n * ROUNDS), DONE]);
  });

  test.each([0, 8])('CMPXCHG16B and LOCK on its half at %i lose nothing', async (half) => {
    const p = withTraps();
    const pair = p.page();
    const body = (): void => {
      const again = p.newLabel();
      p.movImm('rsi', pair);
      p.load('rax', 'rsi', 0);
      p.load('rdx', 'rsi', 8);
      p.label(again);
      p.mov('rbx', 'rax');
      p.mov('rcx', 'rdx');
      p.alu('add', 'rbx', 1);
      p.alu('add', 'rcx', 1);
      p.raw(0xf0, 0x48, 0x0f, 0xc7, 0x0e); // lock cmpxchg16b [rsi]
      p.jmpIf('notEqual', again);
      p.raw(0xf0, 0x48, 0xff, 0x46, half); // lock inc qword [rsi + half]
    };
    together(p, body, () => {
      reportWord(p, pair);
      reportWord(p, pair + 8n);
    });
    const run = await runGuest(p, { vcpus: 2, ...TIME });
    expect(run.words, run.log.join('\n')).toEqual([
      0n,
      0n,
      half === 0 ? 4n * ROUNDS : 2n * ROUNDS,
      half === 0 ? 2n * ROUNDS : 4n * ROUNDS,
      DONE,
    ]);
  });

  test('CMPXCHG8B loses nothing', async () => {
    const p = withTraps();
    const counters = places(p);
    const body = (): void => {
      for (const counter of counters) {
        const again = p.newLabel();
        p.movImm('rsi', counter);
        p.movImm('rax', 0);
        p.movImm('rdx', 0);
        p.label(again);
        p.mov('rbx', 'rax');
        p.mov('rcx', 'rdx');
        p.alu('add', 'rbx', 1);
        p.raw(0xf0, 0x0f, 0xc7, 0x0e); // lock cmpxchg8b [rsi]
        p.jmpIf('notEqual', again);
      }
    };
    together(p, body, () => {
      for (const counter of counters) reportWord(p, counter);
    });
    const run = await runGuest(p, { vcpus: 2, ...TIME });
    expect(run.words, run.log.join('\n')).toEqual([0n, 0n, ...each(2n * ROUNDS), DONE]);
  });

  test('CMPXCHG16B on what is not aligned is #GP, with LOCK and without', async () => {
    const p = withTraps();
    const pair = p.page();
    for (const lock of [[], [0xf0]])
      p.attempt(() => {
        p.movImm('rsi', pair + 8n);
        p.raw(...lock, 0x48, 0x0f, 0xc7, 0x0e);
      });
    p.movImm('rax', DONE);
    p.report();
    p.shutdown();
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([GP, GP, DONE]);
  });
});
