/** Hostile guests: exceptions that cannot be delivered, instructions that are not theirs, IRET to what is no context. */

import { expect, test } from 'vitest';
import { DONE, describeGuests, EINVAL, finish, HOLE, NON_CANONICAL, UNMAPPED, withTraps } from '../guests/hostile.ts';
import { DOMID_SELF, FAULT, H, Program } from '../guests/program.ts';

describeGuests('exceptions', (runHostile) => {
  test.each([
    ['in the hole', HOLE],
    ['unmapped', 0x2000n],
    ['non-canonical', NON_CANONICAL + 0x800n],
    ['at the bottom of the address space', 8n],
    ["in the engine's area", 0xffff_80c0_0020_0800n],
  ])('an exception with a stack %s crashes', async (_case, stack) => {
    const p = withTraps();
    p.movImm('rsp', stack);
    p.ud2();
    expect((await runHostile(p)).reason).toBe('crash');
  });

  test('an exception on a read-only stack crashes', async () => {
    const p = withTraps();
    p.loadRootVa('rsp');
    p.alu('add', 'rsp', 0x800);
    p.ud2();
    expect((await runHostile(p)).reason).toBe('crash');
  });

  test('no trap table: ud2 crashes', async () => {
    const p = new Program();
    p.ud2();
    expect((await runHostile(p)).reason).toBe('crash');
  });

  test.each([
    ['nowhere', 0x5000n],
    ['into the hole', HOLE],
    ["into the engine's area", 0xffff_80c0_0000_2000n],
  ])('a trap table that points %s crashes in the end', async (_case, handler) => {
    const p = new Program();
    const table: bigint[] = [];
    for (let vector = 0n; vector < 32n; vector++) table.push(vector | (0xe033n << 16n), handler);
    p.check(H.set_trap_table, p.words([...table, 0n, 0n]));
    p.ud2();
    const run = await runHostile(p);
    expect(run).toMatchObject({ reason: 'crash', words: [0n] });
  });

  test('a trap table with an address that is not canonical is -EINVAL', async () => {
    const p = new Program();
    p.check(H.set_trap_table, p.words([6, NON_CANONICAL, 0, 0]));
    p.ud2();
    expect(await runHostile(p)).toMatchObject({ reason: 'crash', words: [EINVAL] });
  });

  test('a handler that faults for ever is ended by the time limit or its stack', async () => {
    const p = new Program();
    p.movLabel('rax', 'again');
    p.movImm('rbx', p.words([6n | (0xe033n << 16n), 0, 0, 0]));
    p.store('rbx', 8, 'rax');
    p.hypercall(H.set_trap_table, 'rbx');
    p.label('again');
    p.movImm('rsp', p.stackTop);
    p.ud2();
    expect((await runHostile(p, { timeoutMs: 600 })).reason).toBe('detached');
  });

  test('privileged instructions and software interrupts end in an exception or an answer', async () => {
    const p = withTraps();
    const codes: readonly (readonly number[])[] = [
      [0xfa], // cli
      [0xfb], // sti
      [0xf4], // hlt
      [0xe6, 0x10], // out 0x10, al: a port of the engine's stubs
      [0xe6, 0x11],
      [0xe4, 0x60], // in al, 0x60
      [0x0f, 0x01, 0x17], // lgdt [rdi]
      [0x0f, 0x01, 0x1f], // lidt [rdi]
      [0x0f, 0x00, 0xd8], // ltr ax
      [0x0f, 0x22, 0xd8], // mov cr3, rax
      [0x0f, 0x22, 0xc0], // mov cr0, rax
      [0x0f, 0x22, 0xe0], // mov cr4, rax
      [0x0f, 0x20, 0xd8], // mov rax, cr3
      [0x0f, 0x23, 0xf8], // mov dr7, rax
      [0x0f, 0x30], // wrmsr
      [0x0f, 0x32], // rdmsr
      [0x0f, 0x01, 0xd1], // xsetbv
      [0x0f, 0x09], // wbinvd
      [0x0f, 0x07], // sysret
      [0x0f, 0x34], // sysenter
      [0x0f, 0x01, 0xc1], // vmcall
      [0x0f, 0x01, 0xd9], // vmmcall
      [0x0f, 0x01, 0xf8], // swapgs
      [0x48, 0xcf], // iretq
      [0x48, 0xcb], // retf
      [0xcd, 0x80],
      [0xcd, 0x20],
      [0xcd, 0x0e],
      [0xcc],
      [0xf1], // int1
      [0xce], // into
      [0x8e, 0xe0], // mov fs, eax
      [0x8e, 0xd0], // mov ss, eax
    ];
    for (const value of [0n, -1n, 0xc0000080n])
      for (const code of codes)
        p.attempt(() => {
          for (const register of ['rax', 'rdx', 'rcx', 'rdi'] as const) p.movImm(register, value);
          p.raw(...code);
        });
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words).toHaveLength(codes.length * 3 + 1);
  });
});

describeGuests('iret', (runHostile) => {
  const frame = (p: Program, rip: bigint, cs: bigint, flags: bigint, rsp: bigint, ss: bigint): bigint =>
    p.words([0x77, 0, 0, 0, rip, cs, flags, rsp, ss]);

  test('garbage frames are #GP', async () => {
    const p = withTraps();
    const frames: bigint[] = [];
    for (const cs of [0xe030n, 0x0n, 0x8n, 0x10n, 0xfff8n, 0xe008n, 0xe040n, 0x4n])
      for (const ss of [0xe02bn, 0xe008n, 0xe040n, 0xfff8n, 0x7n])
        frames.push(frame(p, NON_CANONICAL, cs, 0x202n, p.stackTop, ss));
    for (const ss of [0xe008n, 0xe040n, 0xfff8n, 0x10n]) frames.push(frame(p, p.base, 0xe030n, 0x202n, p.stackTop, ss));
    for (const at of frames)
      p.attempt(() => {
        p.movImm('rsp', at);
        p.hypercall(H.iret);
      });
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words).toEqual([...frames.map(() => FAULT + 13n), DONE]);
  });

  test('flags all ones give a debug exception and no privilege', async () => {
    const p = withTraps();
    const at = frame(p, 0n, 0xe030n, -1n, p.stackTop, 0xe02bn);
    p.movLabel('rax', 'landing');
    p.movImm('rbx', at);
    p.store('rbx', 32, 'rax');
    p.attempt(() => {
      p.movImm('rsp', at);
      p.hypercall(H.iret);
      p.label('landing');
      p.raw(0x90, 0x90);
    });
    p.attempt(() => p.raw(0xe6, 0x80));
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words[0]).toBe(FAULT + 1n);
    expect(run.words.at(-1)).toBe(DONE);
  });

  test.each([
    ['without user page tables', 0xe033n, undefined],
    ['from an unmapped stack', 0xe033n, UNMAPPED],
    ['from a stack in the hole', 0xe033n, HOLE],
  ])('to user mode %s crashes', async (_case, cs, stack) => {
    const p = withTraps();
    p.movImm('rsp', stack ?? frame(p, p.base, cs, 0x202n, p.stackTop, 0xe02bn));
    p.hypercall(H.iret);
    expect((await runHostile(p)).reason).toBe('crash');
  });

  test('to user mode with garbage comes back as #GP', async () => {
    const p = withTraps();
    p.loadRootVa('rbx');
    p.vaToMfn('rbx');
    const op = p.words([15, 0, 0]);
    p.movImm('rax', op);
    p.store('rax', 8, 'rbx');
    p.check(H.mmuext_op, op, 1, 0, DOMID_SELF);
    p.hypercall(H.stack_switch, 0xe02b, p.stackTop);
    const cases: readonly (readonly [bigint, bigint, bigint])[] = [
      [NON_CANONICAL, 0xe033n, 0xe02bn],
      [p.base, 0xe00bn, 0xe02bn],
      [p.base, 0xe033n, 0xe00bn],
      [p.base, 0xffffn, 0xffffn],
    ];
    for (const [rip, cs, ss] of cases)
      p.attempt(() => {
        p.movImm('rsp', frame(p, rip, cs, -1n, p.stackTop, ss));
        p.hypercall(H.iret);
      });
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words).toEqual([0n, ...cases.map(() => FAULT + 13n), DONE]);
  });
});
