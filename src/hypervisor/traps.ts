/**
 * Entering the guest's kernel: exceptions, system calls and event upcalls ("bounce frames"), and HYPERVISOR_iret back.
 *
 * The frame, from the final rsp upwards: RCX, R11, [error code], RIP, CS | saved upcall mask << 32, RFLAGS, RSP, SS.
 * Source: xen/arch/x86/x86_64/entry.S, create_bounce_frame (behaviour); xen/include/public/arch-x86/xen-x86_64.h, struct iret_context.
 */

import { FLAT_KERNEL_CS64, FLAT_KERNEL_SS64, FLAT_RING3_CS32, FLAT_RING3_CS64, SHUTDOWN_crash } from '../abi/xen.ts';
import { CALLBACK_MASKS_SYSENTER, NO_ROOT, R11, RAX, RCX, RSP, VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN } from './domain.ts';
import type { Vcpu } from './vcpu.ts';

const TF = 0x100;
const IF = 0x200;
const DF = 0x400;
const NT = 0x4000;
const RF = 0x10000;
const VM = 0x20000;
const AC = 0x40000;
const IOPL = 0x3000;
/** Flags that the frame of iret may set: all defined ones but IOPL and VM. */
const IRET_FLAGS = 0x254dd5;

/** vcpu_info offsets. */
const UPCALL_PENDING = 0;
const UPCALL_MASK = 1;
const ARCH_CR2 = 0x10;

export const gprWord = (register: number): number => (VCPU.gpr >> 2) + register * 2;
const RIP = VCPU.rip >> 2;
const RFLAGS = VCPU.rflags >> 2;
const RSP_WORD = (VCPU.gpr >> 2) + RSP * 2;
const RCX_WORD = (VCPU.gpr >> 2) + RCX * 2;
const R11_WORD = (VCPU.gpr >> 2) + R11 * 2;
const RAX_WORD = (VCPU.gpr >> 2) + RAX * 2;

const hex = (lo: number, hi: number): string =>
  `0x${(hi >>> 0).toString(16).padStart(8, '0')}${(lo >>> 0).toString(16).padStart(8, '0')}`;

/** The registers of a vCPU as Xen prints them when a domain crashes. Source: xen/arch/x86/x86_64/traps.c, show_registers (form). */
export function describeRegisters(v: Vcpu): string[] {
  const u = v.block.u32;
  const reg = (name: string, offset: number): string =>
    `${name}: ${hex(u[offset >> 2], u[(offset >> 2) + 1]).slice(2)}`;
  const g = (name: string, n: number): string => reg(name, VCPU.gpr + n * 8);
  return [
    `RIP:    ${u[VCPU.cs >> 2].toString(16)}:[<${hex(u[RIP], u[RIP + 1]).slice(2)}>]`,
    `RFLAGS: ${hex(u[RFLAGS], u[RFLAGS + 1]).slice(2)}   CONTEXT: pv guest ${v.inUserMode ? 'user' : 'kernel'} (d${v.domain.domid}v${v.id})`,
    `${g('rax', 0)}   ${g('rbx', 3)}   ${g('rcx', 1)}`,
    `${g('rdx', 2)}   ${g('rsi', 6)}   ${g('rdi', 7)}`,
    `${g('rbp', 5)}   ${g('rsp', 4)}   ${g('r8 ', 8)}`,
    `${g('r9 ', 9)}   ${g('r10', 10)}   ${g('r11', 11)}`,
    `${g('r12', 12)}   ${g('r13', 13)}   ${g('r14', 14)}`,
    `${g('r15', 15)}   ${reg('cr2', VCPU.cr2)}   kernel root: ${u[VCPU.kernelRoot >> 2].toString(16)}   user root: ${u[VCPU.userRoot >> 2].toString(16)}`,
    `${reg('fsb', VCPU.fsBase)}   ${reg('gsb', VCPU.gsBase)}   ss: ${u[VCPU.ss >> 2].toString(16)}`,
  ];
}

/** The guest broke the ABI past answering: its domain crashes, with its state in the log. */
export function crashDomain(v: Vcpu, why: string): void {
  if (Atomics.compareExchange(v.domain.i32, DOMAIN.crashVcpu >> 2, -1, v.id) === -1) {
    v.host.log(`domain_crash: d${v.domain.domid}v${v.id}: ${why}`);
    for (const line of describeRegisters(v)) v.host.log(line);
  }
  v.domain.shutdown(SHUTDOWN_crash);
}

function toggleMode(v: Vcpu): void {
  const u = v.block.u32;
  u[VCPU.userMode >> 2] ^= 1;
  const a = VCPU.gsBase >> 2;
  const b = VCPU.gsBaseInactive >> 2;
  const lo = u[a];
  const hi = u[a + 1];
  u[a] = u[b];
  u[a + 1] = u[b + 1];
  u[b] = lo;
  u[b + 1] = hi;
}

const frame = new Uint32Array(16);
const frameBytes = new Uint8Array(frame.buffer);

/** Pushes a bounce frame and goes on at the handler in kernel mode. A handler of 0 or a bad stack crashes the domain. */
export function bounce(
  v: Vcpu,
  handlerLo: number,
  handlerHi: number,
  hasError: boolean,
  error: number,
  maskEvents: boolean,
): void {
  const u = v.block.u32;
  if ((handlerLo | handlerHi) === 0) {
    crashDomain(v, 'no handler for an event that the guest must take');
    return;
  }
  const u8 = v.machine.u8;
  const info = u[VCPU.vcpuInfo >> 2];
  let cs = u[VCPU.cs >> 2];
  let spLo = u[RSP_WORD];
  let spHi = u[RSP_WORD + 1];
  const oldLo = spLo;
  const oldHi = spHi;
  if (u[VCPU.userMode >> 2] !== 0) {
    toggleMode(v);
    spLo = u[VCPU.kernelSp >> 2];
    spHi = u[(VCPU.kernelSp >> 2) + 1];
  } else cs &= ~3;
  spLo = (spLo & ~0xf) >>> 0;
  const size = hasError ? 64 : 56;
  if (spLo < size) spHi = (spHi - 1) >>> 0;
  spLo = (spLo - size) >>> 0;
  const mask = Atomics.load(u8, info + UPCALL_MASK);
  let i = 0;
  frame[i++] = u[RCX_WORD];
  frame[i++] = u[RCX_WORD + 1];
  frame[i++] = u[R11_WORD];
  frame[i++] = u[R11_WORD + 1];
  if (hasError) {
    frame[i++] = error;
    frame[i++] = 0;
  }
  frame[i++] = u[RIP];
  frame[i++] = u[RIP + 1];
  frame[i++] = cs & 0xffff;
  frame[i++] = mask;
  const flags = u[RFLAGS];
  frame[i++] = (flags & ~(IF | IOPL)) | (mask !== 0 ? 0 : IF);
  frame[i++] = u[RFLAGS + 1];
  frame[i++] = oldLo;
  frame[i++] = oldHi;
  frame[i++] = u[VCPU.ss >> 2] & 0xffff;
  frame[i++] = 0;
  const slot = (spHi >>> 7) & 511;
  if ((spHi >>> 15 === 0x1ffff && slot >= 256 && slot < 272) || !v.access.copyOut(spLo, spHi, frameBytes, 0, size)) {
    crashDomain(v, `cannot write an exception frame to the guest's kernel stack at ${hex(spLo, spHi)}`);
    return;
  }
  if (maskEvents) Atomics.store(u8, info + UPCALL_MASK, 1);
  u[VCPU.cs >> 2] = FLAT_KERNEL_CS64;
  u[VCPU.ss >> 2] = FLAT_KERNEL_SS64;
  u[RIP] = handlerLo;
  u[RIP + 1] = handlerHi;
  u[RSP_WORD] = spLo;
  u[RSP_WORD + 1] = spHi;
  u[RFLAGS] = (flags & ~(AC | VM | RF | NT | TF | IOPL)) | IF | 2;
  u[RFLAGS + 1] = 0;
}

/** Vectors that push an error code. Source: Intel SDM vol. 3, table 6-1. */
export const VECTORS_WITH_ERROR = 0x60227d00;

/** Delivers an exception to the guest's kernel through its trap table. */
export function deliverTrap(v: Vcpu, vector: number, error: number): void {
  const u = v.block.u32;
  const trap = (VCPU.traps >> 2) + vector * 4;
  if ((u[trap] | u[trap + 1]) === 0) {
    crashDomain(
      v,
      `exception ${vector} (error code ${error.toString(16)}, cr2 ${hex(u[VCPU.cr2 >> 2], u[(VCPU.cr2 >> 2) + 1])}) and no handler in the guest's trap table`,
    );
    return;
  }
  if (vector === 14) {
    const cr2 = (u[VCPU.vcpuInfo >> 2] + ARCH_CR2) >>> 2;
    v.machine.u32[cr2] = u[VCPU.cr2 >> 2];
    v.machine.u32[cr2 + 1] = u[(VCPU.cr2 >> 2) + 1];
  }
  bounce(
    v,
    u[trap],
    u[trap + 1],
    vector < 32 && ((VECTORS_WITH_ERROR >>> vector) & 1) !== 0,
    error,
    (u[trap + 2] & 4) !== 0,
  );
}

/** True when an event upcall is due now. */
export function upcallDue(v: Vcpu): boolean {
  const info = v.block.u32[VCPU.vcpuInfo >> 2];
  return (
    Atomics.load(v.machine.u8, info + UPCALL_PENDING) !== 0 && Atomics.load(v.machine.u8, info + UPCALL_MASK) === 0
  );
}

/** True when an event is pending, masked or not: what SCHEDOP_block looks at after it cleared the mask. */
export function upcallPending(v: Vcpu): boolean {
  return Atomics.load(v.machine.u8, v.block.u32[VCPU.vcpuInfo >> 2] + UPCALL_PENDING) !== 0;
}

export function setUpcallMask(v: Vcpu, mask: number): void {
  Atomics.store(v.machine.u8, v.block.u32[VCPU.vcpuInfo >> 2] + UPCALL_MASK, mask);
}

/** What is due before guest code runs: an NMI, then an event upcall. Source: xen/arch/x86/x86_64/entry.S, test_all_events (order). */
export function deliverPending(v: Vcpu): void {
  const u = v.block.u32;
  if (Atomics.load(u, VCPU.nmiPending >> 2) !== 0 && u[VCPU.nmiMasked >> 2] === 0) {
    Atomics.store(u, VCPU.nmiPending >> 2, 0);
    const trap = (VCPU.traps >> 2) + 2 * 4;
    if ((u[trap] | u[trap + 1]) !== 0) {
      u[VCPU.nmiMasked >> 2] = 1;
      deliverTrap(v, 2, 0);
    }
  }
  const callback = VCPU.eventCallback >> 2;
  if (upcallDue(v) && (u[callback] | u[callback + 1]) !== 0) bounce(v, u[callback], u[callback + 1], false, 0, true);
}

/** A system call of the guest's user code: SYSCALL in user mode, 64-bit or compatibility mode. */
export function deliverSyscall(v: Vcpu): void {
  const u = v.block.u32;
  const compat = u[VCPU.cs >> 2] === FLAT_RING3_CS32 || u[VCPU.cs >> 2] === 0x23;
  const callback = (compat ? VCPU.syscall32Callback : VCPU.syscallCallback) >> 2;
  if ((u[callback] | u[callback + 1]) === 0) {
    const low = u[RIP];
    u[RIP] = (low - 2) >>> 0;
    if (low < 2) u[RIP + 1] = (u[RIP + 1] - 1) >>> 0;
    deliverTrap(v, 6, 0);
    return;
  }
  u[VCPU.cs >> 2] = compat ? FLAT_RING3_CS32 : FLAT_RING3_CS64;
  u[VCPU.ss >> 2] = FLAT_KERNEL_SS64;
  const flag = compat ? 2 : 1;
  bounce(v, u[callback], u[callback + 1], false, 0, (u[VCPU.callbackFlags >> 2] & flag) !== 0);
  u[RFLAGS] &= ~DF;
}

/**
 * SYSENTER in user mode, which comes as #GP(0): the instruction tells nobody where it was, so the frame has 0 for rip and rsp. False: the
 * guest has no handler for it and gets its #GP. Source: xen/arch/x86/x86_64/entry.S, sysenter_entry.
 */
export function deliverSysenter(v: Vcpu): boolean {
  const u = v.block.u32;
  const callback = VCPU.sysenterCallback >> 2;
  if ((u[callback] | u[callback + 1]) === 0) return false;
  u[VCPU.cs >> 2] = 3;
  u[VCPU.ss >> 2] = FLAT_KERNEL_SS64;
  u[RIP] = 0;
  u[RIP + 1] = 0;
  u[RSP_WORD] = 0;
  u[RSP_WORD + 1] = 0;
  bounce(v, u[callback], u[callback + 1], false, 0, (u[VCPU.callbackFlags >> 2] & CALLBACK_MASKS_SYSENTER) !== 0);
  return true;
}

/** A code selector that the guest may return to: Xen's flat ones, or a present code segment of the guest's own tables. */
function validCodeSelector(v: Vcpu, selector: number): boolean {
  if (selector === FLAT_RING3_CS64 || selector === FLAT_RING3_CS32) return true;
  const u = v.block.u32;
  const index = selector >>> 3;
  let at: number;
  if ((selector & 4) !== 0) {
    if (index >= u[VCPU.ldtEntries >> 2]) return false;
    const base = VCPU.ldtBase >> 2;
    if (!v.access.readU64((u[base] + index * 8) >>> 0, u[base + 1])) return false;
    return (v.access.hi & 0x9800) === 0x9800;
  }
  if (index === 0 || index >= u[VCPU.gdtEntries >> 2]) return false;
  at = u[(VCPU.gdtFrames >> 2) + (index >>> 9)] * 4096 + (index & 511) * 8;
  if (at + 8 > v.machine.layout.sharedInfoOffset) return false;
  at = v.machine.u32[(at >>> 2) + 1];
  return (at & 0x9800) === 0x9800;
}

/** HYPERVISOR_iret: the frame at rsp. The vCPU's registers are all set here. */
export function guestIret(v: Vcpu): void {
  const u = v.block.u32;
  if (!v.access.copyIn(u[RSP_WORD], u[RSP_WORD + 1], 72)) {
    crashDomain(v, `iret: cannot read the frame at ${hex(u[RSP_WORD], u[RSP_WORD + 1])}`);
    return;
  }
  const w = v.access.words;
  const inSyscall = (w[6] & 0x100) !== 0;
  const cs = w[10] & 0xffff;
  const toUser = (cs & 3) === 3;
  if (toUser) {
    if (u[VCPU.userRoot >> 2] === NO_ROOT) {
      crashDomain(v, 'iret: to user mode without user page tables');
      return;
    }
    toggleMode(v);
  }
  u[RAX_WORD] = w[0];
  u[RAX_WORD + 1] = w[1];
  const flags = w[12];
  const ripLo = w[8];
  const ripHi = w[9];
  if (inSyscall) {
    u[RCX_WORD] = ripLo;
    u[RCX_WORD + 1] = ripHi;
    u[R11_WORD] = flags;
    u[R11_WORD + 1] = 0;
  } else {
    u[R11_WORD] = w[2];
    u[R11_WORD + 1] = w[3];
    u[RCX_WORD] = w[4];
    u[RCX_WORD + 1] = w[5];
  }
  u[RIP] = ripLo;
  u[RIP + 1] = ripHi;
  u[VCPU.cs >> 2] = cs | 3;
  u[RFLAGS] = (flags & IRET_FLAGS) | IF | 2;
  u[RFLAGS + 1] = 0;
  u[RSP_WORD] = w[14];
  u[RSP_WORD + 1] = w[15];
  u[VCPU.ss >> 2] = (w[16] & 0xffff) | 3;
  u[VCPU.nmiMasked >> 2] = 0;
  setUpcallMask(v, (flags & IF) !== 0 ? 0 : 1);
  const top = ripHi >>> 15;
  if (top !== 0 && top !== 0x1ffff) deliverTrap(v, 13, 0);
  else if (!validCodeSelector(v, cs | 3)) deliverTrap(v, 13, cs & 0xfffc);
}
