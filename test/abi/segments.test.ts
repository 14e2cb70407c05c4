/** What Linux leaves alone of segmentation: an LDT, selectors and their bases, far transfers. Source: Intel SDM vol. 2, instruction pages. */

import { expect, test } from 'vitest';
import { DONE, describeGuests, finish, withTraps } from '../guests/hostile.ts';
import { DOMID_SELF, FAULT, H, type Program } from '../guests/program.ts';

/** Selectors of the LDT below. */
const DATA = 0x0f;
const CODE64 = 0x17;
const READ_ONLY = 0x1f;
const NOT_PRESENT = 0x27;
const EXECUTE_ONLY = 0x2f;
const BEYOND = 0x87;
const BASE = 0x12345678n;
const GP = FAULT + 13n;
/** The upcall mask in the CS word of a frame. */
const MASKED = 1n << 32n;
const NP = FAULT + 11n;

/** A descriptor with DPL 3: byte of type, S, DPL and P; flags G, D/B, L, AVL. */
function descriptor(access: number, flags: number, base: bigint, limit: bigint): bigint {
  return (
    (limit & 0xffffn) |
    ((base & 0xffffffn) << 16n) |
    (BigInt(access) << 40n) |
    ((limit >> 16n) << 48n) |
    (BigInt(flags) << 52n) |
    ((base >> 24n) << 56n)
  );
}

/** An LDT of 16 entries; entry 0 is none. Those that are present have been accessed. */
function loadLdt(p: Program): void {
  const ldt = p.words([
    0,
    descriptor(0xf3, 0x4, BASE, 0xabcden),
    descriptor(0xfb, 0xa, 0n, 0xfffffn),
    descriptor(0xf1, 0xc, 0n, 0xfffffn),
    descriptor(0x72, 0xc, 0n, 0xfffffn),
    descriptor(0xf9, 0xa, 0n, 0xfffffn),
  ]);
  p.check(H.mmuext_op, p.words([13, ldt, 16]), 1, 0, DOMID_SELF);
}

describeGuests('segments', (runGuest, engine) => {
  test('a data segment of the LDT has its base', async () => {
    const p = withTraps();
    loadLdt(p);
    const target = p.words([0x1122334455667788n]);
    p.attempt(() => {
      p.movImm('rax', DATA);
      p.raw(0x8e, 0xe0); // mov fs, eax
      p.movImm('rbx', BigInt.asUintN(64, target - BASE));
      p.raw(0x64, 0x48, 0x8b, 0x03); // mov rax, fs:[rbx]
    });
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([0n, 0x1122334455667788n, DONE]);
  });

  test('what LAR, LSL, VERR and VERW say of the LDT', async (context) => {
    if (engine === 'kvm') return context.skip("a KVM without hardware virtualisation shows the host's descriptors");
    const p = withTraps();
    loadLdt(p);
    p.attempt(() => {
      p.movImm('rax', DATA);
      p.raw(0x8e, 0xe0); // mov fs, eax
      p.raw(0x8c, 0xe0); // mov eax, fs
    });
    for (const selector of [DATA, CODE64, READ_ONLY, NOT_PRESENT, EXECUTE_ONLY, BEYOND, 0])
      for (const code of [
        [0x0f, 0x02, 0xc1], // lar eax, ecx
        [0x0f, 0x03, 0xc1], // lsl eax, ecx
        [0x0f, 0x00, 0xe1, 0x0f, 0x94, 0xc0], // verr cx; sete al
        [0x0f, 0x00, 0xe9, 0x0f, 0x94, 0xc0], // verw cx; sete al
      ])
        p.attempt(() => {
          p.movImm('rcx', selector);
          p.movImm('rax', 0x100);
          p.raw(...code);
        });
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([
      0n,
      BigInt(DATA),
      ...[0x4af300n, 0xabcden, 0x101n, 0x101n],
      ...[0xaffb00n, 0xffffffffn, 0x101n, 0x100n],
      ...[0xcff100n, 0xffffffffn, 0x101n, 0x100n],
      ...[0xcf7200n, 0xffffffffn, 0x101n, 0x101n], // whether it is present is not asked
      ...[0xaff900n, 0xffffffffn, 0x100n, 0x100n],
      ...[0x100n, 0x100n, 0x100n, 0x100n],
      ...[0x100n, 0x100n, 0x100n, 0x100n],
      DONE,
    ]);
  });

  test('what a segment register does not take, with the selector as error code', async () => {
    const p = withTraps();
    loadLdt(p);
    const loads: readonly (readonly [string, readonly number[], number])[] = [
      ['fs', [0x8e, 0xe0], NOT_PRESENT],
      ['gs', [0x8e, 0xe8], EXECUTE_ONLY],
      ['ds', [0x8e, 0xd8], BEYOND],
      ['es', [0x8e, 0xc0], 0xfff8],
      ['ss', [0x8e, 0xd0], READ_ONLY],
      ['ss', [0x8e, 0xd0], 0],
      ['ss', [0x8e, 0xd0], CODE64],
      ['cs', [0x8e, 0xc8], CODE64],
    ];
    for (const [, code, selector] of loads) {
      p.attempt(() => {
        p.movImm('rax', selector);
        p.raw(...code);
      });
      p.reportFault('error');
    }
    finish(p);
    const run = await runGuest(p);
    const words = [
      ...[NP, BigInt(NOT_PRESENT & ~3)],
      ...[GP, BigInt(EXECUTE_ONLY & ~3)],
      ...[GP, BigInt(BEYOND & ~3)],
      ...[GP, 0xfff8n],
      ...[GP, BigInt(READ_ONLY & ~3)],
      ...[GP, 0n],
      ...[GP, BigInt(CODE64 & ~3)],
      ...[FAULT + 6n, 0n],
    ];
    expect(run.words, run.log.join('\n')).toEqual([0n, ...words, DONE]);
  });

  test('far returns, jumps and calls between code segments', async () => {
    const p = withTraps();
    loadLdt(p);
    const pointer = p.page();
    // UD2 there tells where it is: a KVM without hardware virtualisation shows the host's CS to MOV.
    const go = (transfer: (label: string) => void): void => {
      const there = p.newLabel();
      p.attempt(() => {
        transfer(there);
        p.label(there);
        p.ud2();
      });
    };
    const reportPlace = (): void => {
      p.reportFault('cs');
      p.movImm('rbx', p.lastFault);
      p.load('rax', 'rbx', 32);
      p.movImm('rbx', p.stackTop);
      p.alu('sub', 'rax', 'rbx');
      p.report();
    };
    const push = (selector: number, label: string): void => {
      p.movImm('rax', selector);
      p.push('rax');
      p.movLabel('rax', label);
      p.push('rax');
    };
    go((there) => {
      push(CODE64, there);
      p.raw(0x48, 0xcb); // retfq
    });
    reportPlace();
    go((there) => {
      push(0xe033, there);
      p.raw(0x48, 0xca, 0x10, 0x00); // retfq 16
    });
    reportPlace();
    const throughMemory = (selector: number, code: readonly number[]) => (there: string) => {
      p.movImm('rcx', pointer);
      p.movLabel('rax', there);
      p.store('rcx', 0, 'rax');
      p.movImm('rax', selector);
      p.store('rcx', 8, 'rax');
      p.raw(...code);
    };
    go(throughMemory(CODE64, [0x48, 0xff, 0x29])); // jmp far [rcx]
    reportPlace();
    go(throughMemory(0xe033, [0x48, 0xff, 0x19])); // call far [rcx]
    reportPlace();
    for (const selector of [DATA, BEYOND, 0, NOT_PRESENT]) {
      go((there) => {
        push(selector, there);
        p.raw(0x48, 0xcb);
      });
      p.reportFault('error');
    }
    finish(p);
    const run = await runGuest(p);
    const UD = FAULT + 6n;
    // In frames of kernel mode Xen clears the RPL. Both pushes were popped, and 16 bytes more; nothing; two words.
    const there = (selector: number, bytes: bigint): bigint[] => [UD, MASKED | BigInt(selector & ~3), bytes];
    expect(run.words, run.log.join('\n')).toEqual([
      0n,
      ...there(CODE64, 0n),
      ...there(0xe033, 16n),
      ...there(CODE64, 0n),
      ...there(0xe033, -16n),
      ...[GP, BigInt(DATA & ~3)],
      ...[GP, BigInt(BEYOND & ~3)],
      ...[GP, 0n],
      ...[GP, BigInt(NOT_PRESENT & ~3)],
      DONE,
    ]);
  });
});
