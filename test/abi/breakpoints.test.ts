/** Breakpoints in DR0-DR3, which Linux sets for a debugger only. Source: Intel SDM vol. 3, 18.2 and 18.3.1. */

import { expect, type TestContext, test } from 'vitest';
import { DONE, describeGuests, finish, withTraps } from '../guests/hostile.ts';
import { FAULT, H, type Program } from '../guests/program.ts';
import type { ProgramRun } from '../guests/run.ts';

const DB = FAULT + 1n;
const UD = FAULT + 6n;
const RF = 0x10000n;
/** Fields of DR7 for breakpoint n. */
const local = (n: number): number => 1 << (n * 2);
const field = (n: number, kind: number, length: number): number => (kind | (length << 2)) << (16 + n * 4);
const [WRITE, ACCESS] = [1, 3];
const [ONE, EIGHT, FOUR] = [0, 2, 3];

/** Reports the last exception's rip less a label, and the breakpoints' bits in DR6. */
function reportException(p: Program, label: string): void {
  p.movImm('rbp', p.lastFault);
  p.load('rax', 'rbp', 8);
  p.movLabel('rbx', label);
  p.alu('sub', 'rax', 'rbx');
  p.report();
  p.hypercall(H.get_debugreg, 6);
  p.alu('and', 'rax', 15);
  p.report();
}

describeGuests('breakpoints', (runGuest, engine) => {
  /** A KVM without hardware virtualisation leaves DR0-DR3 of the CPU alone. */
  function compare(context: TestContext, run: ProgramRun, expected: readonly bigint[]): void {
    if (engine === 'kvm' && expected[3] === DB && run.words[3] === UD)
      context.skip('this KVM does not honour breakpoints');
    expect(run.words, run.log.join('\n')).toEqual(expected);
  }

  test('on an instruction: #DB before it', async (context) => {
    const p = withTraps();
    p.check(H.set_debugreg, 6, 0);
    p.movLabel('rbx', 'there');
    p.check(H.set_debugreg, 2, 'rbx');
    p.check(H.set_debugreg, 7, local(2) | field(2, 0, 0));
    p.attempt(() => {
      p.raw(0x90);
      p.raw(0x90);
      p.label('there');
      p.ud2();
    });
    p.check(H.set_debugreg, 7, 0);
    reportException(p, 'there');
    finish(p);
    const run = await runGuest(p);
    compare(context, run, [0n, 0n, 0n, DB, 0n, 0n, 4n, DONE]);
  });

  test('on an instruction, with RF: past it once', async (context) => {
    const p = withTraps();
    p.check(H.set_debugreg, 6, 0);
    p.movLabel('rbx', 'there');
    p.check(H.set_debugreg, 0, 'rbx');
    p.check(H.set_debugreg, 7, local(0));
    p.attempt(() => {
      const frame = p.words([0, 0, 0, 0, 0, 0xe030, 0x202n | RF, p.stackTop, 0xe028]);
      p.movLabel('rax', 'there');
      p.movImm('rsp', frame);
      p.store('rsp', 32, 'rax');
      p.hypercall(H.iret);
      p.label('there');
      p.raw(0x90);
      p.label('behind');
      p.ud2();
    });
    p.check(H.set_debugreg, 7, 0);
    reportException(p, 'behind');
    finish(p);
    const run = await runGuest(p);
    compare(context, run, [0n, 0n, 0n, UD, 0n, 0n, 0n, DONE]);
  });

  /** MOV [rbp + n], eax or al; MOV eax, [rbp + n]; PUSH. */
  const store32 = (n: number): readonly number[] => [0x89, 0x45, n & 0xff];
  const store8 = (n: number): readonly number[] => [0x88, 0x45, n & 0xff];
  const load32 = (n: number): readonly number[] => [0x8b, 0x45, n & 0xff];
  const add32 = (n: number): readonly number[] => [0x01, 0x45, n & 0xff];
  test.for<[string, number, number, readonly number[], boolean]>([
    ['a store to the four bytes', WRITE, FOUR, store32(0), true],
    ['a store to the last of them', WRITE, FOUR, store8(3), true],
    ['a store behind them', WRITE, FOUR, store32(4), false],
    ['a store that ends in the first of them', WRITE, FOUR, store32(-3), true],
    ['a store that ends before them', WRITE, FOUR, store32(-4), false],
    ['a load, when stores are wanted', WRITE, FOUR, load32(0), false],
    ['a load', ACCESS, FOUR, load32(0), true],
    ['an addition to memory', WRITE, EIGHT, add32(4), true],
    ['a load of another byte', ACCESS, ONE, load32(1), false],
  ])('on data: %s', async ([, kind, length, code, hit], context) => {
    const p = withTraps();
    const data = p.page() + 64n;
    p.check(H.set_debugreg, 6, 0);
    p.check(H.set_debugreg, 1, data);
    p.check(H.set_debugreg, 7, local(1) | field(1, kind, length));
    p.movImm('rbp', data);
    p.attempt(() => {
      p.raw(...code);
      p.label('behind');
      p.ud2();
    });
    p.check(H.set_debugreg, 7, 0);
    reportException(p, 'behind');
    finish(p);
    const run = await runGuest(p);
    compare(context, run, [0n, 0n, 0n, hit ? DB : UD, 0n, 0n, hit ? 2n : 0n, DONE]);
  });
});
