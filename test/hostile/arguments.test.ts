/** Hostile guests: pointers, frame numbers and counts that no kernel would give to a hypercall. */

import { expect, test } from 'vitest';
import { AREA_GPA } from '../../src/engine/kvm/hypervisor-area.ts';
import { MFN_BASE } from '../../src/machine/memory.ts';
import {
  DONE,
  describeGuests,
  EFAULT,
  EINVAL,
  EPERM,
  ESRCH,
  finish,
  HOLE,
  NON_CANONICAL,
  UNMAPPED,
  withTraps,
} from '../guests/hostile.ts';
import { DOMID_SELF, FAULT, H, MFN_END, RAM_PAGES, SHARED_INFO_MFN } from '../guests/program.ts';

describeGuests('pointers', (runHostile) => {
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

describeGuests('frames', (runHostile) => {
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
