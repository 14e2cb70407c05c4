/** Single step, debug registers and HYPERVISOR_iret as no Linux uses them. Source: Intel SDM vol. 3, 18.3; xen-x86_64.h, struct iret_context. */

import { expect, test } from 'vitest';
import { DONE, describeGuests, finish, withTraps } from '../guests/hostile.ts';
import { DOMID_SELF, FAULT, H, type Program } from '../guests/program.ts';

const DB = FAULT + 1n;
const TF = 0x100;
const DR6_BS = 0x4000;
const VGCF_in_syscall = 0x100n;

/** Sets TF: the instruction behind it is the one that is stepped. */
function step(p: Program): void {
  p.raw(0x9c); // pushfq
  p.pop('rax');
  p.alu('or', 'rax', TF);
  p.push('rax');
  p.raw(0x9d); // popfq
}

describeGuests('single step', (runGuest) => {
  test.each<[string, readonly number[], bigint]>([
    ['behind NOP', [0x90], DB],
    ['behind a taken jump', [0xeb, 0x00], DB],
    ['behind PUSHFQ, which shows TF', [0x9c], DB],
    ['behind CPUID, whoever carries it out', [0x0f, 0xa2], DB],
    ['behind the forced CPUID, which Xen carries out', [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2], DB],
    ['behind MOV from CR0, which Xen carries out', [0x0f, 0x20, 0xc0], DB],
    // SYSCALL clears TF, and the return sets it: the next instruction is the one that is stepped, and it is UD2.
    ['not behind a hypercall', [0x0f, 0x05], FAULT + 6n],
  ])('#DB %s', async (_case, stepped, vector) => {
    const p = withTraps();
    p.check(H.set_debugreg, 6, 0);
    p.attempt(() => {
      p.movImm('rdi', 0);
      step(p);
      p.raw(...stepped);
      p.label('behind');
      p.ud2();
    });
    p.movImm('rbp', p.lastFault);
    p.load('rax', 'rbp', 8);
    p.movLabel('rbx', 'behind');
    p.alu('sub', 'rax', 'rbx');
    p.report();
    p.load('rax', 'rbp', 24);
    p.alu('and', 'rax', TF);
    p.report();
    p.hypercall(H.get_debugreg, 6);
    p.alu('and', 'rax', DR6_BS);
    p.report();
    finish(p);
    const run = await runGuest(p);
    const bs = vector === DB ? BigInt(DR6_BS) : 0n;
    expect(run.words, run.log.join('\n')).toEqual([0n, vector, 0n, BigInt(TF), bs, DONE]);
  });
});

describeGuests('iret', (runGuest) => {
  /** Words of struct iret_context; rip, rsp and flags are filled in at run time. */
  function iret(p: Program, flags: bigint, rflags: bigint, landing: string): void {
    const frame = p.words([0x77, 0x1111, 0x2222, flags, 0, 0xe030, rflags, p.stackTop, 0xe028]);
    p.movLabel('rax', landing);
    p.movImm('rsp', frame);
    p.store('rsp', 32, 'rax');
    p.hypercall(H.iret);
    p.ud2();
    p.label(landing);
  }

  test("registers and flags come from the frame; IOPL, VM and IF are not the guest's", async () => {
    const p = withTraps();
    const show = (): void => {
      p.mov('r12', 'rcx');
      p.mov('r13', 'r11');
      p.raw(0x9c); // pushfq
      p.pop('rbx');
      p.report();
      for (const register of ['r12', 'r13', 'rbx'] as const) {
        p.mov('rax', register);
        p.report();
      }
    };
    iret(p, 0n, 0x3cd5n, 'first');
    show();
    iret(p, VGCF_in_syscall, 0x202n, 'second');
    p.movLabel('r8', 'second');
    p.alu('sub', 'rcx', 'r8');
    show();
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([
      ...[0x77n, 0x2222n, 0x1111n, 0xed7n],
      // RCX is rip: less the label, 0. That SUB left ZF and PF.
      ...[0x77n, 0n, 0x202n, 0x246n],
      DONE,
    ]);
  });

  test('IF of the frame is the opposite of the upcall mask', async () => {
    const p = withTraps();
    const info = p.page();
    p.check(H.vcpu_op, 10, 0, p.words([p.mfn(info), 0]));
    p.movImm('rbp', info);
    for (const [landing, rflags] of [
      ['on', 0x202n],
      ['off', 0x2n],
    ] as const) {
      iret(p, 0n, rflags, landing);
      p.load('rax', 'rbp', 0);
      p.shift('right', 'rax', 8);
      p.alu('and', 'rax', 0xff);
      p.report();
    }
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([0n, 0n, 1n, DONE]);
  });

  test('to user mode and back by SYSCALL, on the stack that stack_switch gave', async () => {
    const p = withTraps();
    const userRoot = p.words([15, 0, 0]);
    p.loadRootVa('rbx');
    p.vaToMfn('rbx');
    p.movImm('rax', userRoot);
    p.store('rax', 8, 'rbx');
    p.check(H.mmuext_op, userRoot, 1, 0, DOMID_SELF);
    const kernelStack = p.page() + 0x800n;
    p.check(H.stack_switch, 0xe02b, kernelStack + 5n);
    // struct callback_register { u16 type, flags; u64 address; }: the system call's, with events masked.
    const register = p.words([2n | (1n << 16n), 0]);
    p.movLabel('rbx', 'syscall');
    p.movImm('rax', register);
    p.store('rax', 8, 'rbx');
    p.check(H.callback_op, 0, register);
    const frame = p.words([0x55, 0, 0, 0, 0, 0xe033, 0x402, p.stackTop - 64n, 0xe02b]);
    p.movLabel('rax', 'user');
    p.movImm('rsp', frame);
    p.store('rsp', 32, 'rax');
    p.hypercall(H.iret);
    p.label('user');
    p.syscall();
    p.label('after');
    p.ud2();
    p.label('syscall');
    p.mov('rbp', 'rsp');
    p.movImm('rsp', p.stackTop);
    p.report();
    p.movImm('rbx', kernelStack);
    p.mov('rax', 'rbp');
    p.alu('sub', 'rax', 'rbx');
    p.report();
    // rcx, r11, rip, cs and mask, rflags, rsp, ss
    for (const word of [1, 3, 4, 5, 6]) {
      p.load('rax', 'rbp', word * 8);
      p.report();
    }
    p.load('rax', 'rbp', 16);
    p.movLabel('rbx', 'after');
    p.alu('sub', 'rax', 'rbx');
    p.report();
    p.raw(0x9c);
    p.pop('rax');
    p.alu('and', 'rax', 0x400);
    p.report();
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([
      ...[0n, 0n, 0n, 0x55n, -56n],
      // The mask was set by IF clear in the frame of iret; DF is the user's.
      ...[0x602n, 0xe033n | (1n << 32n), 0x402n, p.stackTop - 64n, 0xe02bn].map((word) => BigInt.asIntN(64, word)),
      ...[0n, 0n],
      DONE,
    ]);
  });
});
