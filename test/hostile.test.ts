/**
 * Hostile guests: small programs that do what no kernel does. Whatever they try, the domain gets Xen's errno, its own exception or
 * its end; `runHostile()` checks that the hypervisor lives on, lets go of every thread and file, and runs the next domain.
 */

import { beforeEach, describe, expect, test } from 'vitest';
import { VCPU_GUEST_CONTEXT } from '../src/abi/vcpu.ts';
import { AREA_GPA } from '../src/engine/kvm/hypervisor-area.ts';
import { probeKvm } from '../src/engine/kvm/self-test.ts';
import { MFN_BASE } from '../src/machine/memory.ts';
import { DOMID_SELF, FAULT, H, MFN_END, Program, RAM_PAGES, SHARED_INFO_MFN, VIRT_BASE } from './guests/program.ts';
import { runHostile } from './guests/run.ts';

beforeEach((context) => {
  const probe = probeKvm();
  if (!probe.usable) context.skip(probe.reason);
});

const EPERM = -1n;
const ESRCH = -3n;
const EFAULT = -14n;
const EINVAL = -22n;
const NON_CANONICAL = 0x0000_8000_0000_0000n;
const HOLE = 0xffff_8100_0000_0000n;
const UNMAPPED = 0x1000n;
const DONE = 0xd09en;

/** A program with exception handlers. */
function withTraps(): Program {
  const p = new Program();
  p.installTraps();
  return p;
}

/** Reports that it came this far, and powers off. */
function finish(p: Program): void {
  p.movImm('rax', DONE);
  p.report();
  p.shutdown();
}

describe('pointers', () => {
  test('wild pointers in each argument of each hypercall and sub-operation', async () => {
    const p = withTraps();
    const gap = p.page();
    p.unmap(gap);
    const pointers = [
      NON_CANONICAL,
      HOLE,
      UNMAPPED,
      gap,
      gap - 4n,
      gap - 1n,
      0n,
      -1n,
      0xffff_ffff_ffff_f000n,
      0x7fff_ffff_fff8n,
    ];
    const calls: (bigint | number)[] = [];
    const skipped = (nr: number, sub: number): boolean =>
      nr === H.iret || (nr === H.sched_op && (sub === 1 || sub === 2 || sub === 3)) || (nr === H.vcpu_op && sub === 2);
    for (let nr = 0; nr <= 48; nr++)
      for (let sub = 0; sub <= 40; sub++)
        for (const pointer of pointers) {
          if (skipped(nr, sub)) continue;
          calls.push(nr, sub, pointer, pointer, pointer, pointer, pointer);
          // Pointer first, and a count that makes it count.
          if (sub === 0)
            for (const count of [1, 2, 0xffffffff]) calls.push(nr, pointer, count, 0, DOMID_SELF, pointer, pointer);
          // vcpu_op, and operations with a count last.
          calls.push(nr, sub, 0, pointer, 1, 0, 0);
          calls.push(nr, sub, pointer, 1, DOMID_SELF, 0, 0);
        }
    const table = p.words(calls);
    p.runTable(table, calls.length / 7);
    finish(p);
    const run = await runHostile(p, { timeoutMs: 20_000 });
    expect(run, run.log.join('\n')).toMatchObject({ reason: 'poweroff', words: [DONE] });
  });

  test.each([
    ['non-canonical', NON_CANONICAL],
    ['in the hole', HOLE],
    ['unmapped', UNMAPPED],
    ['null', 0n],
    ['all ones', -1n],
  ])('a pointer that is %s is -EFAULT', async (_case, pointer) => {
    const p = withTraps();
    if (pointer !== 0n) p.check(H.set_trap_table, pointer);
    p.check(H.mmu_update, pointer, 1, 0, DOMID_SELF);
    p.check(H.mmuext_op, pointer, 1, 0, DOMID_SELF);
    p.check(H.set_gdt, pointer, 512);
    p.check(H.multicall, pointer, 1);
    p.check(H.console_io, 0, 16, pointer);
    p.check(H.sched_op, 2, pointer);
    p.check(H.sched_op, 3, pointer);
    p.check(H.event_channel_op, 4, pointer);
    p.check(H.vcpu_op, 0, 0, pointer);
    p.check(H.vcpu_op, 5, 0, pointer);
    p.check(H.grant_table_op, 2, pointer, 1);
    p.check(H.grant_table_op, 5, pointer, 1);
    p.check(H.callback_op, 0, pointer);
    p.check(H.memory_op, 9, pointer);
    finish(p);
    const run = await runHostile(p);
    expect(run.reason).toBe('poweroff');
    expect(run.words).toEqual([...new Array(pointer === 0n ? 14 : 15).fill(EFAULT), DONE]);
  });
});

describe('frames', () => {
  test("MFNs that are not the domain's are refused", async () => {
    const p = withTraps();
    const victim = p.page();
    const bad = [
      0n,
      1n,
      BigInt(MFN_BASE - 1),
      BigInt(MFN_END),
      0x10000n,
      0xfffffffffn,
      0x10_0000_0000n + BigInt(MFN_BASE),
      BigInt(AREA_GPA >> 12),
      0xf_ffff_ffffn,
    ];
    let count = 0;
    for (const mfn of bad) {
      p.check(H.update_va_mapping, victim, (mfn << 12n) | 7n, 0);
      p.check(H.mmu_update, p.words([(mfn << 12n) | 0n, 7]), 1, 0, DOMID_SELF);
      p.check(H.mmu_update, p.words([(mfn << 12n) | 1n, 7]), 1, 0, DOMID_SELF);
      for (const command of [0, 1, 2, 3, 4, 5, 16]) {
        p.check(H.mmuext_op, p.words([command, mfn, 0]), 1, 0, DOMID_SELF);
        count++;
      }
      p.check(H.mmuext_op, p.words([17, mfn, p.mfn(victim)]), 1, 0, DOMID_SELF);
      p.check(H.mmuext_op, p.words([17, p.mfn(victim), mfn]), 1, 0, DOMID_SELF);
      p.check(H.set_gdt, p.words([mfn]), 512);
      p.check(H.update_descriptor, mfn << 12n, 0);
      p.check(H.vcpu_op, 10, 0, p.words([mfn, 0]));
      count += 8;
    }
    finish(p);
    const run = await runHostile(p);
    expect(run.reason).toBe('poweroff');
    expect(run.words.slice(0, -1).filter((word) => word >= 0n)).toEqual([]);
    expect(run.words).toHaveLength(count + 1);
  });

  test('foreign domains are refused', async () => {
    const p = withTraps();
    const request = p.words([0, 0, 0]);
    for (const domid of [0, 7, 0x7ff1, 0x7ff2, 0x7ff4]) {
      p.check(H.mmu_update, request, 1, 0, domid);
      p.check(H.mmuext_op, request, 1, 0, domid);
    }
    finish(p);
    const run = await runHostile(p);
    expect(run.reason).toBe('poweroff');
    for (const word of run.words.slice(0, -1)) expect([EPERM, ESRCH, EINVAL]).toContain(word);
  });

  test('populate and decrease with frames out of bounds change nothing, and huge counts end', async () => {
    const p = withTraps();
    for (const frame of [0, MFN_BASE - 1, SHARED_INFO_MFN, MFN_END, 0xffff_ffff_ffff_ffffn, 1n << 52n]) {
      // struct xen_memory_reservation { u64 *list; u64 count; u32 order, flags; u16 domid; }
      const list = p.words([frame]);
      p.check(H.memory_op, 1, p.words([list, 1, 0, DOMID_SELF]));
      p.check(H.memory_op, 6, p.words([p.words([frame]), 1, 9, DOMID_SELF]));
    }
    const page = p.page();
    for (const command of [0, 1, 6]) p.check(H.memory_op, command, p.words([page, 0x3ffffff, 0, DOMID_SELF]));
    p.check(H.memory_op, 3, p.words([DOMID_SELF]));
    finish(p);
    const run = await runHostile(p);
    expect(run.reason).toBe('poweroff');
    expect(run.words.at(-2)).toBe(BigInt(RAM_PAGES));
  });

  test('grant setup into wild lists', async () => {
    const p = withTraps();
    // struct gnttab_setup_table { u16 dom; u32 frames; s16 status; u64 *list; }
    for (const list of [NON_CANONICAL, HOLE, UNMAPPED, -1n])
      for (const frames of [1, 64, 65, 0xffffffff])
        p.hypercall(H.grant_table_op, 2, p.words([(BigInt(frames) << 32n) | BigInt(DOMID_SELF), 0, list]), 1);
    p.check(H.grant_table_op, 2, p.words([0, 0, 0]), 0x7fffffff);
    p.check(H.grant_table_op, 2, p.words([0, 0, 0]), 0xffffffff);
    finish(p);
    const run = await runHostile(p);
    expect(run).toMatchObject({ reason: 'poweroff', words: [EINVAL, EINVAL, DONE] });
  });

  test.each([
    ['non-canonical', NON_CANONICAL],
    ['in the hole', HOLE],
    ["in the engine's area", 0xffff_80c0_0000_0000n],
  ])('an LDT that is %s is -EINVAL', async (_case, base) => {
    const p = withTraps();
    p.check(H.mmuext_op, p.words([13, base, 16]), 1, 0, DOMID_SELF);
    p.attempt(() => {
      p.movImm('rax', 7);
      p.raw(0x8e, 0xe0); // mov fs, eax
    });
    finish(p);
    const run = await runHostile(p);
    expect(run, run.log.join('\n')).toMatchObject({ reason: 'poweroff', words: [EINVAL, FAULT + 13n, DONE] });
  });

  test('huge counts are refused or end at the fault', async () => {
    const p = withTraps();
    const scratch = p.page();
    for (const count of [0x7fffffff, 0xffffffff]) {
      p.check(H.mmu_update, scratch, count, 0, DOMID_SELF);
      p.check(H.mmuext_op, scratch, count, 0, DOMID_SELF);
      p.check(H.multicall, scratch, count);
      p.check(H.set_gdt, scratch, count);
      p.check(H.grant_table_op, 5, scratch, count);
    }
    finish(p);
    const run = await runHostile(p);
    expect(run.reason).toBe('poweroff');
    expect(run.words.slice(0, -1).filter((word) => word >= 0n)).toEqual([]);
  });
});

describe('exceptions', () => {
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

describe('multicall', () => {
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

describe('time', () => {
  test('an endless loop with events masked is ended by the signal, and costs one core', async () => {
    const p = withTraps();
    p.loop();
    const run = await runHostile(p, { timeoutMs: 1000 });
    expect(run.reason).toBe('detached');
    expect(run.abortMs).toBeLessThan(500);
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

describe('iret', () => {
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

describe('page tables', () => {
  test('tables that contain themselves or garbage cannot be pinned or loaded', async () => {
    const p = withTraps();
    const self = p.page();
    p.movImm('rbx', self);
    p.movImm('rax', (BigInt(p.mfn(self)) << 12n) | 7n);
    p.store('rbx', 8, 'rax');
    const garbage = p.words(Array.from({ length: 512 }, (_, i) => (BigInt(i) * 0x9e3779b97f4a7c15n) | 1n));
    const large = p.words([(BigInt(MFN_BASE) << 12n) | 0x87n]);
    for (const page of [self, garbage, large]) {
      for (const command of [1, 2, 3, 5, 15])
        p.check(H.mmuext_op, p.words([command, p.mfn(page), 0]), 1, 0, DOMID_SELF);
    }
    finish(p);
    const run = await runHostile(p);
    expect(run.reason).toBe('poweroff');
    expect(run.words.slice(0, -1)).toEqual(new Array(15).fill(EINVAL));
  });

  test("an L4 with entries in Xen's slots does not reach the engine", async () => {
    const p = withTraps();
    const root = p.page();
    p.loadRootVa('rsi');
    p.movImm('rdi', root);
    // Slot 511 and slot 1 as they are; garbage in 256..271.
    p.load('rax', 'rsi', 511 * 8);
    p.store('rdi', 511 * 8, 'rax');
    for (let slot = 256; slot < 272; slot++) {
      p.movImm('rax', (BigInt(p.mfn(root)) << 12n) | 7n);
      p.store('rdi', slot * 8, 'rax');
    }
    // Its writable mapping goes away first, as Xen demands.
    p.hypercall(H.update_va_mapping, root, (BigInt(p.mfn(root)) << 12n) | 1n, 2);
    p.check(H.mmuext_op, p.words([3, p.mfn(root), 0]), 1, 0, DOMID_SELF);
    p.check(H.mmuext_op, p.words([5, p.mfn(root), 0]), 1, 0, DOMID_SELF);
    p.attempt(() => {
      p.movImm('rdi', 0xffff_8000_0000_0000n);
      p.load('rax', 'rdi');
    });
    p.check(
      H.mmu_update,
      p.words([(BigInt(p.mfn(root)) << 12n) | (257n * 8n), (BigInt(p.mfn(root)) << 12n) | 7n]),
      1,
      0,
      DOMID_SELF,
    );
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words).toEqual([0n, 0n, FAULT + 14n, EINVAL, DONE]);
  });

  test('a root of zeros crashes', async () => {
    const p = withTraps();
    p.hypercall(H.mmuext_op, p.words([5, p.mfn(p.page()), 0]), 1, 0, DOMID_SELF);
    p.loop();
    expect((await runHostile(p, { timeoutMs: 1500 })).reason).toBe('crash');
  });

  test('a guest that unmaps its own code crashes', async () => {
    const p = withTraps();
    p.unmap(p.base);
    p.loop();
    expect((await runHostile(p)).reason).toBe('crash');
  });

  test('a guest that unmaps everything crashes', async () => {
    const p = withTraps();
    p.loadRootVa('rbx');
    p.vaToMfn('rbx');
    p.shift('left', 'rbx', 12);
    p.alu('add', 'rbx', 511 * 8);
    const request = p.words([0, 0]);
    p.movImm('rax', request);
    p.store('rax', 0, 'rbx');
    p.hypercall(H.mmu_update, request, 1, 0, DOMID_SELF);
    p.loop();
    expect((await runHostile(p)).reason).toBe('crash');
  });

  /** Maps the L1 of the first 2 MiB of the kernel image writable; rbx = its VA. */
  function takeL1(p: Program): void {
    p.loadRootVa('rbx');
    p.alu('add', 'rbx', 3 * 4096);
    p.mov('r12', 'rbx');
    p.vaToMfn('r12');
    p.shift('left', 'r12', 12);
    p.alu('or', 'r12', 3);
    p.hypercall(H.update_va_mapping, 'rbx', 'r12', 2);
  }
  const slot = (va: bigint): number => Number((va - VIRT_BASE) >> 12n) * 8;
  function flush(p: Program): void {
    p.hypercall(H.mmuext_op, p.words([6, 0, 0]), 1, 0, DOMID_SELF);
  }

  test("entries stored behind Xen's back reach no memory but the domain's", async () => {
    const p = withTraps();
    const victim = p.page();
    takeL1(p);
    p.report();
    p.movImm('rax', 0x00ff_ffff_f000n | 7n);
    p.store('rbx', slot(victim), 'rax');
    flush(p);
    p.movImm('rdi', victim);
    p.store('rdi', 0, 'rax');
    finish(p);
    const run = await runHostile(p, { timeoutMs: 1500 });
    expect(run.words[0]).toBe(0n);
    expect(['crash', 'poweroff']).toContain(run.reason);
  });

  test("a guest that patches the engine's stubs to loop in ring 0 is still ended by the signal", async () => {
    const p = withTraps();
    const victim = p.page();
    takeL1(p);
    p.report();
    for (let page = 0; page < 32; page++) {
      p.movImm('rax', BigInt(AREA_GPA + page * 4096) | 7n);
      p.store('rbx', slot(victim), 'rax');
      flush(p);
      p.attempt(() => {
        const next = p.newLabel();
        p.movImm('rdi', victim);
        p.load('rax', 'rdi', 6 * 16);
        p.movImm('rdx', 0xffffff);
        p.alu('and', 'rax', 'rdx');
        p.movImm('rdx', 0xf410e6);
        p.alu('cmp', 'rax', 'rdx');
        p.jmpIf('notEqual', next);
        // jmp to itself
        p.movImm('rax', 0xfeeb);
        for (let vector = 0; vector < 32; vector++) p.store('rdi', vector * 16, 'rax');
        p.label(next);
      });
    }
    p.ud2();
    const run = await runHostile(p, { timeoutMs: 700 });
    expect(['detached', 'crash']).toContain(run.reason);
  });
});

describe("the engine's addresses", () => {
  test("the M2P cannot be written, the rest of Xen's slots cannot be touched", async () => {
    const p = withTraps();
    const m2p = 0xffff_8080_0000_0000n + BigInt(MFN_BASE) * 8n;
    p.attempt(() => {
      p.movImm('rdi', m2p + 8n);
      p.load('rax', 'rdi');
    });
    const targets = [
      m2p,
      0xffff_8080_4000_0000n,
      0xffff_80c0_0000_0000n,
      0xffff_80c0_0000_1000n,
      0xffff_80c0_0000_2000n,
      0xffff_80c0_0001_0000n,
      0xffff_80c0_0020_e000n,
      0xffff_80c0_0021_1000n,
      0xffff_80c0_0021_4000n,
      0xffff_80e0_0000_0000n,
      0xffff_8000_0000_0000n,
      0xffff_87ff_ffff_f000n,
    ];
    for (const target of targets)
      p.attempt(() => {
        p.movImm('rdi', target);
        p.store('rdi', 0, 'rax');
      });
    const unreadable = targets.slice(2);
    for (const target of unreadable)
      p.attempt(() => {
        p.movImm('rdi', target);
        p.load('rax', 'rdi');
      });
    for (const target of unreadable)
      p.attempt(() => {
        p.movImm('rdi', target);
        p.jmpTo('rdi');
      });
    finish(p);
    const run = await runHostile(p);
    expect(run.reason, run.log.join('\n')).toBe('poweroff');
    expect(run.words).toEqual([1n, ...new Array(targets.length + 2 * unreadable.length).fill(FAULT + 14n), DONE]);
  });
});

describe('vCPUs', () => {
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

describe('shared pages', () => {
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
    expect(run.ms).toBeLessThan(5000);
  });
});

describe('event channels', () => {
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

describe('fuzz', () => {
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
