import { expect, test } from 'vitest';
import { SHUTDOWN_crash } from '../abi/xen.ts';
import { MFN_BASE } from '../machine/memory.ts';
import {
  CALLBACK_MASKS_SYSCALL,
  CALLBACK_MASKS_SYSENTER,
  NO_ROOT,
  R11,
  RAX,
  RCX,
  RSP,
  VCPU,
} from '../machine/vcpu-block.ts';
import { HOLE_HI, KERNEL_VA, READ_ONLY_VA, TestGuest, UNMAPPED_VA, VA_HI } from './testing.ts';
import {
  bounce,
  deliverPending,
  deliverSyscall,
  deliverSysenter,
  deliverTrap,
  gprWord,
  guestIret,
  upcallDue,
  upcallPending,
} from './traps.ts';

const HANDLER = 0x81001230;
/** End of the kernel stack that entries from user mode get, and the stack pointer of kernel code; both within page 3 or 5. */
const KERNEL_SP = KERNEL_VA + 0x4000;
const SP = KERNEL_VA + 0x5ff8;
const USER_RIP = [0x00401234, 0x00005555] as const;
const USER_RSP = [0xffffe008, 0x00007ffc] as const;
const KERNEL_GS = [0x00080000, 0xffff8880] as const;
const USER_GS = [0x12345000, 0x00007fff] as const;
/** CF, ZF, TF, IF, DF, IOPL 3, NT, RF, AC, ID: what a frame keeps and a handler does not get. */
const BUSY_FLAGS = 0x257741 | 2;

function pair(guest: TestGuest, offset: number): number[] {
  const u = guest.vcpu.block.u32;
  return [u[offset >> 2], u[(offset >> 2) + 1]];
}

function set(guest: TestGuest, offset: number, [lo, hi]: readonly [number, number]): void {
  guest.vcpu.block.u32[offset >> 2] = lo;
  guest.vcpu.block.u32[(offset >> 2) + 1] = hi;
}

const reg = (n: number): number => gprWord(n) * 4;
const word32 = (guest: TestGuest, offset: number): number => guest.vcpu.block.u32[offset >> 2];
const infoOffset = (guest: TestGuest): number => word32(guest, VCPU.vcpuInfo);
const upcallMask = (guest: TestGuest): number => guest.machine.u8[infoOffset(guest) + 1];

function setInfo(guest: TestGuest, pending: number, mask: number): void {
  guest.machine.u8[infoOffset(guest)] = pending;
  guest.machine.u8[infoOffset(guest) + 1] = mask;
}

function setTrap(guest: TestGuest, vector: number, flags: number, address = HANDLER): void {
  const at = (VCPU.traps >> 2) + vector * 4;
  guest.vcpu.block.u32.set([address, address === 0 ? 0 : VA_HI, flags, 0xe033], at);
}

/** A vCPU in the middle of kernel or user code. */
function running(mode: 'kernel' | 'user'): TestGuest {
  const guest = new TestGuest();
  const u = guest.vcpu.block.u32;
  const user = mode === 'user';
  u[VCPU.userMode >> 2] = user ? 1 : 0;
  u[VCPU.userRoot >> 2] = guest.root;
  u[VCPU.cs >> 2] = user ? 0x33 : 0xe033;
  u[VCPU.ss >> 2] = user ? 0x2b : 0xe02b;
  set(guest, VCPU.gsBase, user ? USER_GS : KERNEL_GS);
  set(guest, VCPU.gsBaseInactive, user ? KERNEL_GS : USER_GS);
  set(guest, VCPU.kernelSp, [KERNEL_SP, VA_HI]);
  set(guest, VCPU.rip, user ? USER_RIP : [0x81004567, VA_HI]);
  set(guest, reg(RSP), user ? USER_RSP : [SP, VA_HI]);
  set(guest, reg(RCX), [0xc0c0c0c0, 0x01010101]);
  set(guest, reg(R11), [0x11111111, 0x22222222]);
  u[VCPU.rflags >> 2] = BUSY_FLAGS;
  return guest;
}

const crashed = (guest: TestGuest): boolean => guest.domain.shutdownReason === SHUTDOWN_crash;

/** Offsets from the final rsp. Source: bounce frame of xen/arch/x86/x86_64/entry.S, as Linux's xen_* entry stubs take it. */
test('a frame from kernel mode without an error code is 56 bytes below the aligned rsp', () => {
  const guest = running('kernel');
  bounce(guest.vcpu, HANDLER, VA_HI, false, 0xdead, true);
  const frame = KERNEL_VA + 0x5ff0 - 56;
  expect(pair(guest, reg(RSP))).toEqual([frame, VA_HI]);
  expect(guest.words(frame, 14)).toEqual([
    ...[0xc0c0c0c0, 0x01010101], // 0x00 RCX
    ...[0x11111111, 0x22222222], // 0x08 R11
    ...[0x81004567, VA_HI], // 0x10 RIP
    ...[0xe030, 0], // 0x18 CS without RPL, saved mask 0
    ...[(BUSY_FLAGS & ~0x3000) | 0x200, 0], // 0x20 RFLAGS without IOPL
    ...[SP, VA_HI], // 0x28 RSP, not aligned
    ...[0xe02b, 0], // 0x30 SS
  ]);
});

test('a frame from kernel mode with an error code is 64 bytes', () => {
  const guest = running('kernel');
  bounce(guest.vcpu, HANDLER, VA_HI, true, 0x80000003, true);
  const frame = KERNEL_VA + 0x5ff0 - 64;
  expect(pair(guest, reg(RSP))).toEqual([frame, VA_HI]);
  expect(guest.words(frame, 16)).toEqual([
    ...[0xc0c0c0c0, 0x01010101],
    ...[0x11111111, 0x22222222],
    ...[0x80000003, 0], // 0x10 error code, zero-extended
    ...[0x81004567, VA_HI],
    ...[0xe030, 0],
    ...[(BUSY_FLAGS & ~0x3000) | 0x200, 0],
    ...[SP, VA_HI],
    ...[0xe02b, 0],
  ]);
});

test('a frame from user mode is on the kernel stack, with the selectors as they are', () => {
  for (const hasError of [false, true]) {
    const guest = running('user');
    bounce(guest.vcpu, HANDLER, VA_HI, hasError, 7, false);
    const frame = KERNEL_SP - (hasError ? 64 : 56);
    expect(pair(guest, reg(RSP))).toEqual([frame, VA_HI]);
    const iretFrame = frame + (hasError ? 0x18 : 0x10);
    expect(guest.words(iretFrame, 10)).toEqual([
      ...USER_RIP,
      ...[0x33, 0],
      ...[(BUSY_FLAGS & ~0x3000) | 0x200, 0],
      ...USER_RSP,
      ...[0x2b, 0],
    ]);
    if (hasError) expect(guest.words(frame + 0x10, 2)).toEqual([7, 0]);
  }
});

test('an entry from user mode toggles the mode and swaps the GS bases', () => {
  const guest = running('user');
  bounce(guest.vcpu, HANDLER, VA_HI, false, 0, false);
  expect(word32(guest, VCPU.userMode)).toBe(0);
  expect(pair(guest, VCPU.gsBase)).toEqual([...KERNEL_GS]);
  expect(pair(guest, VCPU.gsBaseInactive)).toEqual([...USER_GS]);
});

test('the handler runs with flat selectors, and without AC, VM, RF, NT, TF and IOPL', () => {
  for (const mode of ['kernel', 'user'] as const) {
    const guest = running(mode);
    bounce(guest.vcpu, HANDLER, VA_HI, false, 0, true);
    expect(pair(guest, VCPU.rip)).toEqual([HANDLER, VA_HI]);
    expect(word32(guest, VCPU.cs)).toBe(0xe033);
    expect(word32(guest, VCPU.ss)).toBe(0xe02b);
    // CF, ZF, DF and ID stay; IF is always set in hardware.
    expect(pair(guest, VCPU.rflags)).toEqual([0x200641 | 2, 0]);
    expect(pair(guest, reg(RCX))).toEqual([0xc0c0c0c0, 0x01010101]);
    expect(pair(guest, reg(R11))).toEqual([0x11111111, 0x22222222]);
    expect(guest.engine.tlbFlushes).toBe(0);
  }
});

test('CS slot: bits 0-15 the selector, bits 32-39 the upcall mask; IF in the frame is its opposite', () => {
  for (const mask of [0, 1]) {
    const guest = running('kernel');
    guest.vcpu.block.u32[VCPU.cs >> 2] = 0x13;
    guest.vcpu.block.u32[VCPU.ss >> 2] = 0x1b;
    // Live IF is no source of it.
    guest.vcpu.block.u32[VCPU.rflags >> 2] = mask === 0 ? 0x46 : 0x246;
    setInfo(guest, 0, mask);
    bounce(guest.vcpu, HANDLER, VA_HI, false, 0, false);
    const frame = pair(guest, reg(RSP))[0];
    expect(guest.words(frame + 0x18, 2)).toEqual([0x10, mask]);
    expect(guest.words(frame + 0x20, 2)).toEqual([mask === 0 ? 0x246 : 0x46, 0]);
    expect(guest.words(frame + 0x30, 2)).toEqual([0x1b, 0]);
    // No flag to mask events: the mask stays.
    expect(upcallMask(guest)).toBe(mask);
  }
});

test('a handler that masks events sets the upcall mask', () => {
  const guest = running('kernel');
  bounce(guest.vcpu, HANDLER, VA_HI, false, 0, true);
  expect(upcallMask(guest)).toBe(1);
});

test('a frame may cross a page, and the 4 GiB boundary below', () => {
  const guest = running('user');
  set(guest, VCPU.kernelSp, [KERNEL_VA + 0x4010, VA_HI]);
  bounce(guest.vcpu, HANDLER, VA_HI, true, 5, false);
  expect(guest.words(KERNEL_VA + 0x4010 - 64, 2)).toEqual([0xc0c0c0c0, 0x01010101]);
  expect(guest.words(KERNEL_VA + 0x4010 - 8, 2)).toEqual([0x2b, 0]);

  const edge = running('user');
  edge.map(0xfffff000, 0xfffffffe, MFN_BASE + 9);
  edge.map(0, VA_HI, MFN_BASE + 10);
  set(edge, VCPU.kernelSp, [0x10, VA_HI]);
  bounce(edge.vcpu, HANDLER, VA_HI, false, 0, false);
  expect(pair(edge, reg(RSP))).toEqual([0xffffffd8, 0xfffffffe]);
  expect(edge.words(KERNEL_VA + 9 * 4096 + 0xfd8, 2)).toEqual([0xc0c0c0c0, 0x01010101]);
  expect(edge.words(KERNEL_VA + 10 * 4096 + 8, 2)).toEqual([0x2b, 0]);
});

test('no handler, or a stack that cannot be written, crashes the domain with its registers in the log', () => {
  const stacks: [number, number][] = [
    [UNMAPPED_VA + 0x1000, VA_HI],
    [READ_ONLY_VA + 0x1000, VA_HI],
    [0x1000, HOLE_HI],
    [0x1000, 0x00008000],
  ];
  for (const stack of stacks) {
    const guest = running('user');
    set(guest, VCPU.kernelSp, stack);
    bounce(guest.vcpu, HANDLER, VA_HI, false, 0, false);
    expect(crashed(guest)).toBe(true);
    expect(guest.log[0]).toContain('domain_crash: d5v0: cannot write an exception frame');
    expect(guest.log.length).toBeGreaterThan(5);
  }
  const guest = running('kernel');
  bounce(guest.vcpu, 0, 0, false, 0, false);
  expect(crashed(guest)).toBe(true);
  const lines = guest.log.length;
  bounce(guest.vcpu, 0, 0, false, 0, false);
  expect(guest.log.length).toBe(lines);
});

test('error codes belong to vectors 8, 10-14, 17, 21, 29, 30', () => {
  const withError: number[] = [];
  for (let vector = 0; vector < 256; vector++) {
    const guest = running('kernel');
    setTrap(guest, vector, 4);
    deliverTrap(guest.vcpu, vector, 0);
    if (pair(guest, reg(RSP))[0] === KERNEL_VA + 0x5ff0 - 64) withError.push(vector);
  }
  expect(withError).toEqual([8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
});

test('bit 2 of a trap masks events; no entry in the trap table crashes the domain', () => {
  for (const flags of [0, 3, 4, 7]) {
    const guest = running('user');
    setTrap(guest, 3, flags);
    deliverTrap(guest.vcpu, 3, 0);
    expect(upcallMask(guest)).toBe(flags >> 2);
  }
  const guest = running('user');
  deliverTrap(guest.vcpu, 3, 0);
  expect(crashed(guest)).toBe(true);
  expect(guest.log[0]).toContain('exception 3');
});

test('a page fault puts CR2 into vcpu_info.arch.cr2, other exceptions do not', () => {
  const guest = running('user');
  set(guest, VCPU.cr2, [0x89abcdef, 0x00007f01]);
  setTrap(guest, 13, 4);
  setTrap(guest, 14, 4);
  const cr2 = (infoOffset(guest) + 0x10) >> 2;
  deliverTrap(guest.vcpu, 13, 0);
  expect([...guest.machine.u32.slice(cr2, cr2 + 2)]).toEqual([0, 0]);
  deliverTrap(guest.vcpu, 14, 6);
  expect([...guest.machine.u32.slice(cr2, cr2 + 2)]).toEqual([0x89abcdef, 0x00007f01]);
});

test('an upcall needs pending, no mask and a callback; it masks events', () => {
  const cases = [
    [0, 0],
    [0, 1],
    [1, 1],
    [1, 0],
    [0x80, 0],
  ] as const;
  for (const [pending, mask] of cases) {
    const guest = running('user');
    set(guest, VCPU.eventCallback, [HANDLER, VA_HI]);
    setInfo(guest, pending, mask);
    const due = pending !== 0 && mask === 0;
    expect(upcallDue(guest.vcpu)).toBe(due);
    expect(upcallPending(guest.vcpu)).toBe(pending !== 0);
    deliverPending(guest.vcpu);
    expect(word32(guest, VCPU.userMode)).toBe(due ? 0 : 1);
    expect(upcallMask(guest)).toBe(due ? 1 : mask);
    // The guest's handler clears it.
    expect(guest.machine.u8[infoOffset(guest)]).toBe(pending);
    if (due) expect(guest.words(KERNEL_SP - 56 + 0x18, 2)).toEqual([0x33, 0]);
  }
  const guest = running('user');
  setInfo(guest, 1, 0);
  deliverPending(guest.vcpu);
  expect(word32(guest, VCPU.userMode)).toBe(1);
});

test('an NMI goes before an event, once, and not while one is handled', () => {
  const guest = running('user');
  set(guest, VCPU.eventCallback, [HANDLER + 0x100, VA_HI]);
  setTrap(guest, 2, 4);
  setInfo(guest, 1, 0);
  guest.vcpu.block.u32[VCPU.nmiPending >> 2] = 1;
  deliverPending(guest.vcpu);
  expect(pair(guest, VCPU.rip)).toEqual([HANDLER, VA_HI]);
  expect(word32(guest, VCPU.nmiPending)).toBe(0);
  guest.vcpu.block.u32[VCPU.nmiPending >> 2] = 1;
  deliverPending(guest.vcpu);
  expect(pair(guest, reg(RSP))).toEqual([KERNEL_SP - 56, VA_HI]);
  expect(word32(guest, VCPU.nmiPending)).toBe(1);
});

test('an event nests at once upon a handler that does not mask events', () => {
  const guest = running('user');
  set(guest, VCPU.eventCallback, [HANDLER + 0x100, VA_HI]);
  setTrap(guest, 2, 0);
  setInfo(guest, 1, 0);
  guest.vcpu.block.u32[VCPU.nmiPending >> 2] = 1;
  deliverPending(guest.vcpu);
  expect(pair(guest, VCPU.rip)).toEqual([HANDLER + 0x100, VA_HI]);
  // The first frame ends at 16n + 8, the second begins below it, aligned.
  expect(pair(guest, reg(RSP))).toEqual([((KERNEL_SP - 56) & ~0xf) - 56, VA_HI].map((n) => n >>> 0));
});

test('a system call from 64-bit code: frame with the flat selectors, DF clear in the handler only', () => {
  for (const flags of [0, CALLBACK_MASKS_SYSCALL]) {
    const guest = running('user');
    set(guest, VCPU.syscallCallback, [HANDLER, VA_HI]);
    guest.vcpu.block.u32[VCPU.callbackFlags >> 2] = flags;
    deliverSyscall(guest.vcpu);
    expect(guest.words(KERNEL_SP - 56, 14)).toEqual([
      ...[0xc0c0c0c0, 0x01010101],
      ...[0x11111111, 0x22222222],
      ...USER_RIP,
      ...[0xe033, 0],
      ...[(BUSY_FLAGS & ~0x3000) | 0x200, 0],
      ...USER_RSP,
      ...[0xe02b, 0],
    ]);
    expect(pair(guest, VCPU.rflags)).toEqual([0x200241 | 2, 0]);
    expect(upcallMask(guest)).toBe(flags);
  }
});

test('SYSENTER goes to its callback with a frame that does not say where it was, or is left a #GP', () => {
  for (const flags of [0, CALLBACK_MASKS_SYSENTER]) {
    const guest = running('user');
    expect(deliverSysenter(guest.vcpu)).toBe(false);
    expect(pair(guest, VCPU.rip)).toEqual(USER_RIP);
    set(guest, VCPU.sysenterCallback, [HANDLER, VA_HI]);
    guest.vcpu.block.u32[VCPU.callbackFlags >> 2] = flags;
    expect(deliverSysenter(guest.vcpu)).toBe(true);
    expect(pair(guest, VCPU.rip)).toEqual([HANDLER, VA_HI]);
    const frame = guest.words(KERNEL_SP - 56 + 0x10, 10);
    expect([frame[0], frame[1], frame[2], frame[6], frame[7], frame[8]]).toEqual([0, 0, 3, 0, 0, 0xe02b]);
    expect(upcallMask(guest)).toBe(flags === 0 ? 0 : 1);
  }
});

test('a system call from 32-bit code goes to its own callback with the 32-bit selector', () => {
  for (const cs of [0x23, 0xe023]) {
    const guest = running('user');
    guest.vcpu.block.u32[VCPU.cs >> 2] = cs;
    set(guest, VCPU.syscallCallback, [HANDLER, VA_HI]);
    set(guest, VCPU.syscall32Callback, [HANDLER + 0x40, VA_HI]);
    deliverSyscall(guest.vcpu);
    expect(pair(guest, VCPU.rip)).toEqual([HANDLER + 0x40, VA_HI]);
    expect(guest.words(KERNEL_SP - 56 + 0x18, 2)).toEqual([0xe023, 0]);
  }
});

test('a system call without a callback is #UD at the instruction', () => {
  const guest = running('user');
  set(guest, VCPU.rip, [1, 0x5555]);
  setTrap(guest, 6, 4);
  deliverSyscall(guest.vcpu);
  expect(pair(guest, VCPU.rip)).toEqual([HANDLER, VA_HI]);
  expect(guest.words(KERNEL_SP - 56 + 0x10, 4)).toEqual([0xffffffff, 0x5554, 0x33, 0]);
});

interface IretFrame {
  readonly flags?: number;
  readonly rip?: readonly [number, number];
  readonly cs?: number;
  readonly csHi?: number;
  readonly rflags?: number;
  readonly ss?: number;
}

/** struct iret_context: rax r11 rcx flags rip cs rflags rsp ss. Source: xen/include/public/arch-x86/xen-x86_64.h. */
function iret(guest: TestGuest, frame: IretFrame = {}): void {
  const { flags = 0, rip = USER_RIP, cs = 0xe033, csHi = 0, rflags = 0x246, ss = 0xe02b } = frame;
  guest.setWords(SP, [
    ...[0xaaaaaaaa, 1],
    ...[0xbbbbbbbb, 2],
    ...[0xcccccccc, 3],
    ...[flags, 0],
    ...rip,
    ...[cs, csHi],
    ...[rflags, 0],
    ...USER_RSP,
    ...[ss, 0],
  ]);
  guestIret(guest.vcpu);
}

test('iret to user mode takes all registers from the frame and swaps the GS bases', () => {
  const guest = running('kernel');
  iret(guest, { cs: 0xe033, csHi: 0xffffffff, ss: 0xe02b });
  expect(word32(guest, VCPU.userMode)).toBe(1);
  expect(pair(guest, reg(RAX))).toEqual([0xaaaaaaaa, 1]);
  expect(pair(guest, reg(R11))).toEqual([0xbbbbbbbb, 2]);
  expect(pair(guest, reg(RCX))).toEqual([0xcccccccc, 3]);
  expect(pair(guest, VCPU.rip)).toEqual([...USER_RIP]);
  expect(pair(guest, reg(RSP))).toEqual([...USER_RSP]);
  expect([word32(guest, VCPU.cs), word32(guest, VCPU.ss)]).toEqual([0xe033, 0xe02b]);
  expect(pair(guest, VCPU.gsBase)).toEqual([...USER_GS]);
  expect(pair(guest, VCPU.gsBaseInactive)).toEqual([...KERNEL_GS]);
});

test('iret to kernel mode stays there, at RPL 3', () => {
  const guest = running('kernel');
  iret(guest, { cs: 0xe030, ss: 0xe028 });
  expect(word32(guest, VCPU.userMode)).toBe(0);
  expect([word32(guest, VCPU.cs), word32(guest, VCPU.ss)]).toEqual([0xe033, 0xe02b]);
  expect(pair(guest, VCPU.gsBase)).toEqual([...KERNEL_GS]);
});

test('iret of VGCF_in_syscall form: RCX is RIP and R11 is RFLAGS', () => {
  const guest = running('kernel');
  iret(guest, { flags: 0x100, rflags: 0x246 });
  expect(pair(guest, reg(RCX))).toEqual([...USER_RIP]);
  expect(pair(guest, reg(R11))).toEqual([0x246, 0]);
  expect(pair(guest, reg(RAX))).toEqual([0xaaaaaaaa, 1]);
});

test('iret: the upcall mask is the opposite of IF, hardware IF stays, IOPL and VM are dropped', () => {
  for (const flag of [0, 0x200]) {
    const guest = running('kernel');
    guest.vcpu.block.u32[VCPU.nmiMasked >> 2] = 1;
    setInfo(guest, 0, flag === 0 ? 0 : 1);
    iret(guest, { rflags: (0x27fdd5 & ~0x200) | flag });
    expect(upcallMask(guest)).toBe(flag === 0 ? 1 : 0);
    // TF, RF, NT, AC, ID and the arithmetic flags come through.
    expect(pair(guest, VCPU.rflags)).toEqual([0x254fd7, 0]);
    expect(word32(guest, VCPU.nmiMasked)).toBe(0);
  }
});

test('iret: an event that was masked is delivered on top of the new state', () => {
  const guest = running('kernel');
  set(guest, VCPU.eventCallback, [HANDLER, VA_HI]);
  setInfo(guest, 1, 1);
  iret(guest);
  deliverPending(guest.vcpu);
  expect(guest.words(KERNEL_SP - 56 + 0x10, 4)).toEqual([...USER_RIP, 0xe033, 0]);
  expect(upcallMask(guest)).toBe(1);
});

test('iret to a RIP that is not canonical is #GP(0) with the user state in the frame', () => {
  for (const rip of [
    [0, 0x00008000],
    [0, 0xffff7fff],
  ] as const) {
    const guest = running('kernel');
    setTrap(guest, 13, 4);
    iret(guest, { rip });
    expect(word32(guest, VCPU.userMode)).toBe(0);
    expect(pair(guest, VCPU.rip)).toEqual([HANDLER, VA_HI]);
    expect(guest.words(KERNEL_SP - 64 + 0x10, 6)).toEqual([0, 0, ...rip, 0xe033, 0]);
    expect(guest.words(KERNEL_SP - 64 + 0x30, 4)).toEqual([...USER_RSP, 0xe02b, 0]);
  }
});

test('iret to a code selector that is none is #GP with the selector as error code', () => {
  const descriptors: [selector: number, lo: number, hi: number][] = [
    [0x0b, 0xffff, 0x00affb00], // 64-bit code
    [0x13, 0xffff, 0x00cff300], // data
    [0x1b, 0xffff, 0x00af7b00], // code, not present
    [0x23, 0x0067, 0x00008900], // TSS
    [0x2b, 0, 0],
  ];
  const faulting = (selector: number): number | undefined => {
    const guest = running('kernel');
    setTrap(guest, 13, 4);
    guest.vcpu.block.u32[VCPU.gdtEntries >> 2] = 6;
    guest.vcpu.block.u32[VCPU.gdtFrames >> 2] = 7;
    for (const [at, lo, hi] of descriptors) guest.setWords(KERNEL_VA + 7 * 4096 + (at & ~7), [lo, hi]);
    iret(guest, { cs: selector });
    if (pair(guest, VCPU.rip)[0] !== HANDLER) return undefined;
    expect(guest.words(KERNEL_SP - 64 + 0x20, 2)).toEqual([selector, 0]);
    return guest.word(KERNEL_SP - 64 + 0x10);
  };
  for (const good of [0x0b, 0xe033, 0xe023]) expect(faulting(good)).toBe(undefined);
  for (const bad of [0x03, 0x13, 0x1b, 0x23, 0x2b, 0x33, 0x0f, 0xe013, 0xe02b, 0xffff]) {
    expect(faulting(bad)).toBe(bad & 0xfffc);
  }
});

test('iret to a code segment of the LDT', () => {
  const guest = running('kernel');
  setTrap(guest, 13, 4);
  set(guest, VCPU.ldtBase, [KERNEL_VA + 0x7000, VA_HI]);
  guest.vcpu.block.u32[VCPU.ldtEntries >> 2] = 2;
  guest.setWords(KERNEL_VA + 0x7008, [0xffff, 0x00cffb00]);
  iret(guest, { cs: 0x0f });
  expect(pair(guest, VCPU.rip)).toEqual([...USER_RIP]);
  expect(word32(guest, VCPU.cs)).toBe(0x0f);
});

test('iret without user page tables, or from a stack that cannot be read, crashes the domain', () => {
  const noRoot = running('kernel');
  noRoot.vcpu.block.u32[VCPU.userRoot >> 2] = NO_ROOT;
  iret(noRoot);
  expect(crashed(noRoot)).toBe(true);
  const noStack = running('kernel');
  set(noStack, reg(RSP), [UNMAPPED_VA, VA_HI]);
  guestIret(noStack.vcpu);
  expect(crashed(noStack)).toBe(true);
});
