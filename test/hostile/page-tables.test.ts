/** Hostile guests: page tables against the rules, and reaching for the addresses of Xen and of the engine. */

import { expect, test } from 'vitest';
import { AREA_GPA } from '../../src/engine/kvm/hypervisor-area.ts';
import { MFN_BASE } from '../../src/machine/memory.ts';
import { DONE, describeGuests, EINVAL, finish, withTraps } from '../guests/hostile.ts';
import { DOMID_SELF, FAULT, H, type Program, VIRT_BASE } from '../guests/program.ts';

describeGuests('page tables', (runHostile) => {
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
    p.attempt(() => {
      p.movImm('rdi', victim);
      p.store('rdi', 0, 'rax');
    });
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

describeGuests("the engine's addresses", (runHostile) => {
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
