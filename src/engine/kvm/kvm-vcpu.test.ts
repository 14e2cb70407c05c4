import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { MachineMemory } from '../../machine/memory.ts';
import { MFN_BASE } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { FLAG_EVENT, FLAG_FLUSH_TLB, FLAG_STOP, R11, RAX, RCX, RDX, RSP, VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION, EXIT_INTERNAL_ERROR, EXIT_INTERRUPTED, EXIT_SYSCALL } from '../engine.ts';
import { monotonicNs } from './host.ts';
import { FLAT_CS32, FLAT_CS64, FLAT_SS } from './hypervisor-area.ts';
import { createKvmKicker } from './kicker.ts';
import { closeKvmDomain, createKvmDomain } from './kvm-domain.ts';
import type { KvmVcpu } from './kvm-vcpu.ts';
import { openKvmVcpu } from './kvm-vcpu.ts';
import { probeKvm } from './self-test.ts';
import {
  CODE_VA,
  createTestBlock,
  createTestMachine,
  GUEST_GDT_FRAME,
  PTE_RW,
  prepareTestRoot,
  pteOffset,
  STACK_VA,
  setPte,
} from './test-guest.ts';
import { startTestVcpu, until } from './test-vcpu.ts';
import type { KvmDomainHandle } from './vm.ts';

const probe = probeKvm();
const skipReason = probe.usable ? undefined : probe.reason;
const PTE_READ_ONLY = 0x65;
const DATA_VA = 0x200000;
const FRAME_A = 600;
const FRAME_B = 601;

let machine: MachineMemory;
let domain: KvmDomainHandle;
let block: VcpuBlock;
let vcpu: KvmVcpu;

const reg = (register: number): number => block.u32[VCPU.gpr / 4 + register * 2];
const setReg = (register: number, lo: number, hi = 0): void => {
  block.u32[VCPU.gpr / 4 + register * 2] = lo;
  block.u32[VCPU.gpr / 4 + register * 2 + 1] = hi;
};
const word = (offset: number): number => block.u32[offset / 4];
const setWord = (offset: number, value: number): void => {
  block.u32[offset / 4] = value;
};
/** Puts code at CODE_VA and rip to its start. */
const load = (...code: number[]): void => {
  machine.u8.fill(0xcc, CODE_VA, CODE_VA + 256);
  machine.u8.set(code, CODE_VA);
  setWord(VCPU.rip, CODE_VA);
  setWord(VCPU.rip + 4, 0);
};
const restart = (): number => {
  setWord(VCPU.rip, CODE_VA);
  return vcpu.run();
};
const expectException = (exit: number, vector: number, errorCode = 0): void => {
  expect({
    exit,
    vector: word(VCPU.exitVector),
    errorCode: word(VCPU.exitErrorCode),
    error: vcpu.describeError(),
  }).toEqual({
    exit: EXIT_EXCEPTION,
    vector,
    errorCode,
    error: '',
  });
};

beforeEach((context) => {
  if (skipReason !== undefined) context.skip(skipReason);
  machine = createTestMachine();
  domain = createKvmDomain(machine, 2);
  block = createTestBlock(machine, []);
  vcpu = openKvmVcpu(domain, machine, block);
  prepareTestRoot(vcpu);
});

afterEach(() => {
  if (skipReason !== undefined) return;
  vcpu.close();
  closeKvmDomain(domain);
});

describe('registers', () => {
  test('all of them go in and come back', () => {
    load(0x0f, 0x05, 0xcc); // syscall; int3
    const values: number[] = [];
    for (let i = 0; i < 16; i++) setReg(i, 0x11111111 * (i & 7) + i, 0xa0000000 + i);
    setReg(RSP, STACK_VA);
    setWord(VCPU.rflags, 0x202 | 0x8d5); // OF SF ZF AF PF CF
    setWord(VCPU.fsBase, 0x1000);
    setWord(VCPU.fsBase + 4, 0x7f);
    setWord(VCPU.gsBase, 0x2000);
    setWord(VCPU.gsBase + 4, 0xffff8880);
    for (let i = 0; i < 32; i++) values.push(word(VCPU.gpr + i * 4));
    expect(vcpu.run()).toBe(EXIT_SYSCALL);
    expect(word(VCPU.rip)).toBe(CODE_VA + 2);
    expect(reg(RCX)).toBe(CODE_VA + 2);
    expect(reg(R11)).toBe(0x202 | 0x8d5);
    expect(word(VCPU.rflags)).toBe(0x202 | 0x8d5);
    values[RCX * 2] = CODE_VA + 2;
    values[RCX * 2 + 1] = 0;
    values[R11 * 2] = 0x202 | 0x8d5;
    values[R11 * 2 + 1] = 0;
    for (let i = 0; i < 32; i++) expect(word(VCPU.gpr + i * 4), `word ${i}`).toBe(values[i]);
    expect([word(VCPU.fsBase), word(VCPU.fsBase + 4)]).toEqual([0x1000, 0x7f]);
    expect([word(VCPU.gsBase), word(VCPU.gsBase + 4)]).toEqual([0x2000, 0xffff8880]);
    expect([word(VCPU.cs), word(VCPU.ss)]).toEqual([FLAT_CS64, FLAT_SS]);

    // The same through the resume code.
    vcpu.flushTlb();
    expectException(vcpu.run(), 3);
    for (let i = 0; i < 32; i++) expect(word(VCPU.gpr + i * 4), `word ${i}`).toBe(values[i]);
    expect(word(VCPU.rflags)).toBe(0x202 | 0x8d5);
    expect([word(VCPU.gsBase), word(VCPU.gsBase + 4)]).toEqual([0x2000, 0xffff8880]);
  });

  test('the guest has its own values', () => {
    // mov rax, gs:[0x10]; mov rdx, [rsp]; int3
    load(0x65, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0, 0x48, 0x8b, 0x14, 0x24);
    setWord(VCPU.gsBase, 0x300000);
    machine.u32[0x300010 / 4] = 0x12345678;
    machine.u32[STACK_VA / 4] = 0x9abcdef0;
    expectException(vcpu.run(), 3);
    expect([reg(RAX), reg(RDX)]).toEqual([0x12345678, 0x9abcdef0]);
  });

  test('a 32-bit code segment runs 32-bit code', () => {
    load(0x40, 0x40, 0xcd, 0x80); // inc eax; inc eax; int 0x80
    setWord(VCPU.cs, FLAT_CS32);
    setReg(RAX, 5);
    expectException(vcpu.run(), 0x80);
    expect([reg(RAX), word(VCPU.rip), word(VCPU.cs)]).toEqual([7, CODE_VA + 4, FLAT_CS32]);
    vcpu.flushTlb();
    expectException(restart(), 0x80);
    expect(reg(RAX)).toBe(9);
  });

  test('SYSCALL of 32-bit code is a system call or #UD, as the CPU has it', () => {
    load(0x0f, 0x05);
    setWord(VCPU.cs, FLAT_CS32);
    const exit = vcpu.run();
    if (exit === EXIT_SYSCALL)
      expect([word(VCPU.rip), word(VCPU.cs), reg(RCX)]).toEqual([CODE_VA + 2, FLAT_CS32, CODE_VA + 2]);
    else expectException(exit, 6);
  });

  test("selectors come from the guest's GDT", () => {
    const gdt = (GUEST_GDT_FRAME * 4096) / 4;
    machine.u32.set([0x0000ffff, 0x00affb00], gdt + 6 * 2); // 0x33: 64-bit code
    machine.u32.set([0x0000ffff, 0x00cff300], gdt + 5 * 2); // 0x2b: data
    machine.u32.set([0x0000ffff, 0x00cffb00], gdt + 4 * 2); // 0x23: 32-bit code
    machine.u32.set([0x0000ffff, 0x00cff300], gdt + 9 * 2); // 0x4b: data
    setWord(VCPU.gdtFrames, GUEST_GDT_FRAME);
    setWord(VCPU.gdtEntries, 512);
    vcpu.descriptorTablesChanged();
    load(0x8e, 0xd8, 0x8e, 0xe0, 0x8c, 0xda); // mov ds, eax; mov fs, eax; mov edx, ds
    setReg(RAX, 0x4b);
    setWord(VCPU.cs, 0x33);
    setWord(VCPU.ss, 0x2b);
    const selectors = (): number[] => [VCPU.cs, VCPU.ss, VCPU.ds, VCPU.fs].map(word);
    expectException(vcpu.run(), 3); // through the resume code: the GDT was just mapped
    expect(selectors()).toEqual([0x33, 0x2b, 0x4b, 0x4b]);
    expectException(restart(), 3); // and directly
    expect(selectors()).toEqual([0x33, 0x2b, 0x4b, 0x4b]);
    load(0x40, 0xa1, 0, 0, 0x30, 0); // 32-bit: inc eax; mov eax, [0x300000]
    machine.u32[0x300000 / 4] = 0x1234;
    setWord(VCPU.cs, 0x23);
    setWord(VCPU.es, 0x4b);
    expectException(vcpu.run(), 3);
    expect([reg(RAX), word(VCPU.ds), word(VCPU.es)]).toEqual([0x1234, 0x4b, 0x4b]);

    // Another frame: the same selector is something else now.
    setWord(VCPU.gdtFrames, GUEST_GDT_FRAME + 1);
    vcpu.descriptorTablesChanged();
    expectException(vcpu.run(), 13, 0x20);
    load(0x8e, 0xd8); // mov ds, eax
    setWord(VCPU.cs, FLAT_CS64);
    setWord(VCPU.ss, FLAT_SS);
    setReg(RAX, 0x4b);
    expectException(vcpu.run(), 13, 0x48);
  });

  test('IRET to what is no code segment or no address is #GP and changes nothing', () => {
    load(0x90);
    setWord(VCPU.cs, 0x10b);
    expectException(vcpu.run(), 13, 0x108);
    expect(word(VCPU.cs)).toBe(0x10b);
    setWord(VCPU.cs, FLAT_CS64);
    setWord(VCPU.rip + 4, 0x00800000);
    expectException(vcpu.run(), 13, 0);
    load(0xcc);
    expectException(vcpu.run(), 3);
  });
});

describe('exceptions', () => {
  test('#PF tells address and error code', () => {
    load(0xa0, 0x34, 0x12, 0x40, 0, 0, 0, 0, 0); // mov al, [0x401234]
    expectException(vcpu.run(), 14, 4);
    expect([word(VCPU.cr2), word(VCPU.cr2 + 4), word(VCPU.rip)]).toEqual([0x401234, 0, CODE_VA]);
    load(0xa2, 0x34, 0x12, 0x40, 0, 0x80, 0x88, 0xff, 0xff); // mov [0xffff888000401234], al
    expectException(vcpu.run(), 14, 6);
    expect([word(VCPU.cr2), word(VCPU.cr2 + 4)]).toEqual([0x401234, 0xffff8880]);
    load(0xff, 0xe0); // jmp rax
    setReg(RAX, 0x400000);
    expectException(vcpu.run(), 14, 0x14);
    expect([word(VCPU.cr2), word(VCPU.rip)]).toEqual([0x400000, 0x400000]);
  });

  test('a jump to the entry of SYSCALL is no system call', () => {
    load(0xff, 0xe0);
    setReg(RAX, 0x2000, 0xffff80c0);
    expectException(vcpu.run(), 14, 0x15);
  });

  test('#UD, #GP of CLI, #DE', () => {
    load(0x0f, 0x0b);
    expectException(vcpu.run(), 6);
    expect(word(VCPU.rip)).toBe(CODE_VA);
    load(0xfa);
    expectException(vcpu.run(), 13);
    expect(word(VCPU.rip)).toBe(CODE_VA);
    load(0xf7, 0xf1); // div ecx
    setReg(RCX, 0);
    expectException(vcpu.run(), 0);
  });

  test('INT3 and INT n: trap for 3, 4 and 0x80, #GP for others', () => {
    load(0xcc);
    expectException(vcpu.run(), 3);
    expect(word(VCPU.rip)).toBe(CODE_VA + 1);
    load(0xcd, 4);
    expectException(vcpu.run(), 4);
    expect(word(VCPU.rip)).toBe(CODE_VA + 2);
    load(0xcd, 0x80);
    expectException(vcpu.run(), 0x80);
    expect(word(VCPU.rip)).toBe(CODE_VA + 2);
    load(0xcd, 0x82);
    expectException(vcpu.run(), 13, 0x82 * 8 + 2);
    expect(word(VCPU.rip)).toBe(CODE_VA);
  });

  test('TF traps after one instruction', () => {
    load(0x90, 0x90);
    setWord(VCPU.rflags, 0x302);
    expectException(vcpu.run(), 1);
    expect([word(VCPU.rip), word(VCPU.dr + 48) & 0x4000]).toEqual([CODE_VA + 1, 0x4000]);
    expectException(vcpu.run(), 1);
    expect(word(VCPU.rip)).toBe(CODE_VA + 2);
    load(0x0f, 0x05);
    expect(vcpu.run()).toBe(EXIT_SYSCALL);
    expect(word(VCPU.rflags)).toBe(0x302);
  });

  test('the M2P can be read and not written', () => {
    load(0x48, 0xa1, 5 * 8, 0, 0x80, 0, 0x80, 0x80, 0xff, 0xff); // mov rax, [M2P + (MFN_BASE + 5) * 8]
    expect(MFN_BASE * 8).toBe(0x800000);
    expectException(vcpu.run(), 3);
    expect(reg(RAX)).toBe(5);
    load(0x48, 0xa3, 5 * 8, 0, 0x80, 0, 0x80, 0x80, 0xff, 0xff);
    expectException(vcpu.run(), 14, 7);
  });
});

describe('page tables', () => {
  const read = [0x8a, 0x04, 0x25, 0, 0, 0x20, 0]; // mov al, [DATA_VA]
  const write = [0x88, 0x04, 0x25, 0, 0, 0x20, 0]; // mov [DATA_VA], al
  const store = (frame: number, flags: number): void => {
    setPte(machine, pteOffset(DATA_VA), frame, flags);
    vcpu.pageTableStored(pteOffset(DATA_VA));
  };

  test('a page that goes, changes its frame or its rights is seen at once', () => {
    machine.u8[FRAME_A * 4096] = 0x11;
    machine.u8[FRAME_B * 4096] = 0x22;
    for (let round = 0; round < 20; round++) {
      load(...read);
      store(FRAME_A, PTE_RW);
      expectException(vcpu.run(), 3);
      expect(reg(RAX) & 0xff).toBe(0x11);
      store(FRAME_B, PTE_RW);
      expectException(restart(), 3);
      expect(reg(RAX) & 0xff).toBe(0x22);
      store(0, 0);
      expectException(restart(), 14, 4);
      store(FRAME_B, PTE_READ_ONLY);
      load(...write);
      expectException(vcpu.run(), 14, 7);
      store(FRAME_B, PTE_RW);
      expectException(restart(), 3);
      store(FRAME_B, PTE_READ_ONLY);
      expectException(restart(), 14, 7);
    }
  });

  test('an upper level entry too', () => {
    load(...read);
    machine.u8[DATA_VA] = 0x33;
    expectException(vcpu.run(), 3);
    const entry = 3 * 4096 + 8;
    machine.u32[entry / 4] = 0;
    vcpu.pageTableStored(entry);
    expectException(restart(), 14, 4);
    setPte(machine, entry, 5, PTE_RW);
    vcpu.pageTableStored(entry);
    expectException(restart(), 3);
    expect(reg(RAX) & 0xff).toBe(0x33);
  });

  test('accessed and dirty bits appear in the table and are not lost', () => {
    load(...write);
    store(FRAME_A, 0x07);
    expectException(vcpu.run(), 3);
    expect(machine.u32[pteOffset(DATA_VA) / 4] & 0x60).toBe(0x60);
    vcpu.pageTableStored(pteOffset(DATA_VA));
    expectException(restart(), 3);
    expect(machine.u32[pteOffset(DATA_VA) / 4] & 0x60).toBe(0x60);
  });

  test('more stores than the list holds', () => {
    load(...read);
    expectException(vcpu.run(), 3);
    for (let round = 0; round < 8; round++) {
      for (let page = 0; page < 1024; page++) {
        if (page * 4096 === CODE_VA || page * 4096 === STACK_VA) continue;
        setPte(machine, pteOffset(page * 4096), round % 2 === 0 ? FRAME_A : page, PTE_RW);
        vcpu.pageTableStored(pteOffset(page * 4096));
      }
      machine.u8[FRAME_A * 4096] = 0x11;
      machine.u8[DATA_VA] = 0x44;
      setReg(RDX, 0x5555, 0x6666);
      expectException(restart(), 3);
      expect(reg(RAX) & 0xff).toBe(round % 2 === 0 ? 0x11 : 0x44);
      expect(reg(RDX)).toBe(0x5555);
    }
  });

  test('user mode has its own root', () => {
    // A second root that shares L3, then one with nothing.
    setPte(machine, 20 * 4096, 2, PTE_RW);
    vcpu.prepareRoot(20 * 4096);
    vcpu.prepareRoot(21 * 4096);
    load(...read);
    setWord(VCPU.userMode, 1);
    setWord(VCPU.userRoot, 20);
    expectException(vcpu.run(), 3);
    setWord(VCPU.userRoot, 21);
    expectException(restart(), 14, 0x14);
    setWord(VCPU.userMode, 0);
    expectException(restart(), 3);
  });

  test('a frame outside the domain ends it with a reason, and so does a bad root', () => {
    load(...read);
    store(0xf0000, PTE_RW);
    expect(vcpu.run()).toBe(EXIT_INTERNAL_ERROR);
    expect(vcpu.describeError()).toMatch(/guest-physical 00000001f0000000/);
    setWord(VCPU.kernelRoot, 0xf0000);
    expect(vcpu.run()).toBe(EXIT_INTERNAL_ERROR);
    expect(vcpu.describeError()).toMatch(/root/);
  });

  test('a root without the hole ends the domain with a reason', () => {
    load(0x0f, 0x0b);
    setPte(machine, 20 * 4096, 2, PTE_RW);
    setWord(VCPU.kernelRoot, 20);
    expect(vcpu.run()).toBe(EXIT_INTERNAL_ERROR);
    expect(vcpu.describeError()).not.toBe('');
  });
});

describe('vector state', () => {
  test('AVX registers keep their values over exits', (context) => {
    if ((domain.facts.xcr0Mask & 4) === 0) context.skip('this KVM has no AVX');
    // vmovups ymm5, [0x300000]; syscall; vmovups [0x300040], ymm5; int3
    load(0xc5, 0xfc, 0x10, 0x2c, 0x25, 0, 0, 0x30, 0, 0x0f, 0x05, 0xc5, 0xfc, 0x11, 0x2c, 0x25, 0x40, 0, 0x30, 0);
    for (let i = 0; i < 32; i++) machine.u8[0x300000 + i] = i + 1;
    expect(vcpu.run()).toBe(EXIT_SYSCALL);
    vcpu.readTsc();
    vcpu.flushTlb();
    expectException(vcpu.run(), 3);
    expect(Array.from(machine.u8.subarray(0x300040, 0x300060))).toEqual(Array.from({ length: 32 }, (_, i) => i + 1));
  });

  test('XGETBV shows the mask', (context) => {
    if (domain.facts.xcr0Mask === 0) context.skip('this KVM has no XSAVE');
    load(0x31, 0xc9, 0x0f, 0x01, 0xd0);
    expectException(vcpu.run(), 3);
    expect(reg(RAX) & 0xe7).toBe(domain.facts.xcr0Mask);
  });
});

describe('time', () => {
  test('readTsc() advances at the rate of the facts and leaves the guest alone', async () => {
    load(0x0f, 0x31); // rdtsc
    setReg(RCX, 0x77);
    const first = vcpu.readTsc();
    await new Promise((resolve) => setTimeout(resolve, 50));
    const last = vcpu.readTsc();
    const khz = (((last.tscHi - first.tscHi) * 2 ** 32 + last.tscLo - first.tscLo) / (last.atNs - first.atNs)) * 1e6;
    expect(Math.abs(khz / domain.facts.tscKhz - 1)).toBeLessThan(0.01);
    expectException(vcpu.run(), 3);
    expect(reg(RCX)).toBe(0x77);
    const guestTsc = reg(RDX) * 2 ** 32 + reg(RAX);
    expect(guestTsc).toBeGreaterThan(last.tscHi * 2 ** 32 + last.tscLo);
  });

  test('a deadline leaves the guest', () => {
    load(0xeb, 0xfe);
    const late: number[] = [];
    for (let i = 0; i < 20; i++) {
      const deadline = monotonicNs() + 2e6;
      vcpu.setRunDeadline(deadline);
      let exit: number;
      do exit = vcpu.run();
      while (exit === EXIT_INTERRUPTED && monotonicNs() < deadline);
      expect(exit).toBe(EXIT_INTERRUPTED);
      late.push((monotonicNs() - deadline) / 1000);
    }
    vcpu.setRunDeadline(0);
    late.sort((a, b) => a - b);
    console.log(
      `deadline missed by min/med/max ${late[0].toFixed(0)}/${late[10].toFixed(0)}/${late[19].toFixed(0)} us`,
    );
    expect(word(VCPU.rip)).toBe(CODE_VA);
  });

  test('a flag set before the run leaves at once', () => {
    load(0xeb, 0xfe);
    Atomics.or(block.i32, VCPU.flags / 4, FLAG_EVENT);
    expect(vcpu.run()).toBe(EXIT_INTERRUPTED);
    expect(Atomics.load(block.i32, VCPU.inGuest / 4)).toBe(0);
  });
});

describe('threads', () => {
  test('a kick leaves the guest of another thread', async () => {
    const other = createTestBlock(machine, [0xeb, 0xfe], 1, 0x20000);
    const { report, exited } = await startTestVcpu(domain, machine, other);
    const kicker = createKvmKicker(domain);
    const exitCount = (): number => Atomics.load(other.i32, VCPU.exitCount / 4);
    const latencies: number[] = [];
    for (let i = 0; i < 100; i++) {
      await until(() => Atomics.load(other.i32, VCPU.inGuest / 4) === 1);
      const before = exitCount();
      const start = monotonicNs();
      Atomics.or(other.i32, VCPU.flags / 4, FLAG_EVENT);
      kicker.kick(1);
      // It may be in the guest again before this thread begins to wait.
      while (exitCount() === before) {
        Atomics.wait(other.i32, VCPU.inGuest / 4, 1, 10);
        if (monotonicNs() - start > 5e9) throw new Error('the kick had no effect');
      }
      latencies.push((monotonicNs() - start) / 1000);
    }
    latencies.sort((a, b) => a - b);
    console.log(
      `kick min/med/max ${latencies[0].toFixed(0)}/${latencies[50].toFixed(0)}/${latencies[99].toFixed(0)} us`,
    );
    Atomics.or(other.i32, VCPU.flags / 4, FLAG_STOP);
    kicker.kick(1);
    expect((await report).lastExit).toBe(EXIT_INTERRUPTED);
    await exited;
    kicker.kick(1);
  });

  test('a page remapped by one vCPU is seen by the other after its flush', async () => {
    // l: mov eax, [DATA_VA]; mov [0x3f0000], eax; inc dword [0x3f0004]; jmp l
    const loop = [
      0x8b, 0x04, 0x25, 0, 0, 0x20, 0, 0x89, 0x04, 0x25, 0, 0, 0x3f, 0, 0xff, 0x04, 0x25, 4, 0, 0x3f, 0, 0xeb, 0xe9,
    ];
    const other = createTestBlock(machine, loop, 1, 0x20000);
    const frames = [FRAME_A, FRAME_B];
    machine.u32[(FRAME_A * 4096) / 4] = 0xaaaa;
    machine.u32[(FRAME_B * 4096) / 4] = 0xbbbb;
    const { worker, report } = await startTestVcpu(domain, machine, other);
    const kicker = createKvmKicker(domain);
    load(0x8b, 0x04, 0x25, 0, 0, 0x20, 0); // mov eax, [DATA_VA]
    const seen = 0x3f0000 / 4;
    for (let round = 0; round < 200; round++) {
      setPte(machine, pteOffset(DATA_VA), frames[round % 2], PTE_RW);
      vcpu.pageTableStored(pteOffset(DATA_VA));
      expectException(restart(), 3);
      expect(reg(RAX)).toBe(round % 2 === 0 ? 0xaaaa : 0xbbbb);
      const before = Atomics.load(other.i32, VCPU.exitCount / 4);
      Atomics.or(other.i32, VCPU.flags / 4, FLAG_FLUSH_TLB);
      kicker.kick(1);
      const start = monotonicNs();
      while (
        Atomics.load(other.i32, VCPU.exitCount / 4) === before &&
        Atomics.load(other.i32, VCPU.inGuest / 4) === 1
      ) {
        if (monotonicNs() - start > 5e9) throw new Error('vCPU 1 does not leave the guest');
      }
      // Two turns of its loop later only the new frame may show.
      const turns = Atomics.load(machine.u32, seen + 1);
      await until(() => Atomics.load(machine.u32, seen + 1) - turns > 2);
      expect(Atomics.load(machine.u32, seen)).toBe(round % 2 === 0 ? 0xaaaa : 0xbbbb);
    }
    Atomics.or(other.i32, VCPU.flags / 4, FLAG_STOP);
    kicker.kick(1);
    expect(await report).toMatchObject({ lastExit: EXIT_INTERRUPTED, error: '' });
    await worker.terminate();
  });

  test('interrupted at random, the guest loses nothing', async () => {
    // Two counters, one beside faults: l: add eax, 1; mov [rdx], eax; jmp l with rdx on a page that comes and goes.
    load(0x83, 0xc0, 1, 0x89, 0x02, 0x39, 0x02, 0x74, 0xf7, 0x0f, 0x0b); // ...; cmp [rdx], eax; je l; ud2
    setReg(RAX, 0);
    setReg(RDX, DATA_VA);
    setWord(VCPU.rip, CODE_VA);
    const entry = pteOffset(DATA_VA);
    let faults = 0;
    let interrupted = 0;
    const end = monotonicNs() + 1e9;
    for (let i = 0; monotonicNs() < end; i++) {
      setPte(machine, entry, FRAME_A + (i & 1), i % 3 === 0 ? 0 : PTE_RW);
      machine.u32[((FRAME_A + (i & 1)) * 4096) / 4] = reg(RAX);
      vcpu.pageTableStored(entry);
      vcpu.setRunDeadline(monotonicNs() + 20e3 + (i % 50) * 3e3);
      const exit = vcpu.run();
      if (exit === EXIT_INTERRUPTED) interrupted++;
      else {
        expectException(exit, 14, word(VCPU.rip) === CODE_VA + 3 ? 6 : 4);
        expect(word(VCPU.cr2)).toBe(DATA_VA);
        faults++;
      }
    }
    vcpu.setRunDeadline(0);
    console.log(`${faults} faults, ${interrupted} interruptions`);
    expect(faults).toBeGreaterThan(0);
    expect(interrupted).toBeGreaterThan(0);
  });

  test('interrupted at random, the guest meets each INT3', () => {
    load(0x90, 0xcc, 0x90, 0x0f, 0x0b); // nop; int3; nop; ud2
    let met = 0;
    let interrupted = 0;
    const end = monotonicNs() + 1e9;
    setWord(VCPU.rip, CODE_VA);
    for (let i = 0; monotonicNs() < end; i++) {
      vcpu.setRunDeadline(monotonicNs() + 1e3 + (i % 60) * 1e3);
      const exit = vcpu.run();
      if (exit === EXIT_INTERRUPTED) {
        interrupted++;
        continue;
      }
      expectException(exit, 3);
      expect(word(VCPU.rip)).toBe(CODE_VA + 2);
      setWord(VCPU.rip, CODE_VA);
      met++;
    }
    vcpu.setRunDeadline(0);
    expect(met).toBeGreaterThan(0);
    expect(interrupted).toBeGreaterThan(0);
  });

  test('a worker that ends without closing leaves nothing that closeKvmDomain() trips over', async () => {
    const other = createTestBlock(machine, [0x0f, 0x0b], 1, 0x20000);
    const { worker, report } = await startTestVcpu(domain, machine, other, { leak: true });
    expect(await report).toMatchObject({ lastExit: EXIT_EXCEPTION });
    await worker.terminate();
    createKvmKicker(domain).kick(1);
    closeKvmDomain(domain);
    createKvmKicker(domain).kick(1);
    expect(vcpu.run()).toBe(EXIT_INTERNAL_ERROR);
  });
});

test('nothing stays open', async () => {
  if (!probe.usable) return;
  const { readdirSync } = await import('node:fs');
  const before = readdirSync('/proc/self/fd').length;
  for (let i = 0; i < 10; i++) probeKvm();
  expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before);
});
