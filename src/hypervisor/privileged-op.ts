/**
 * Privileged instructions of a PV guest. Its kernel runs at CPL 3, so they end in #GP, and Xen executes them in its place.
 *
 * User mode may only have what CPL 3 can have on a CPU too: CPUID, RDTSC, XGETBV, and port I/O when the I/O privilege level is 3.
 * What Xen does not emulate (HLT, INVD, SWAPGS, LGDT, INVLPG, RDPMC ...) stays a #GP.
 *
 * Deviations from Xen: an absent feature is #GP here where the CPU says #UD, because the caller reflects #GP; a #PF on the memory
 * operand of INS or OUTS is a #GP; a single step over an emulated instruction stops after the next one; the I/O bitmap of
 * PHYSDEVOP_set_iobitmap opens no port.
 *
 * Source: xen/arch/x86/pv/emul-priv-op.c (behaviour); Intel SDM vol. 2.
 */

import { MFN_BASE } from '../machine/memory.ts';
import { RAX, RCX, RDI, RDX, RSI, VCPU } from '../machine/vcpu-block.ts';
import { CR4_OSXSAVE, offeredXcr0, XSTATE_AVX, XSTATE_AVX512, XSTATE_SSE, XSTATE_X87 } from './cpuid-policy.ts';
import { executeCpuid } from './forced-cpuid.ts';
import { getDebugreg, setDebugreg } from './hypercalls/debug-registers.ts';
import {
  fetchInstruction,
  finishInstruction,
  gpr,
  instruction,
  registerLo,
  setRegister,
  stepRegister,
  stringAddress,
} from './instruction.ts';
import { newBasePointer } from './mmu.ts';
import { readMsr, writeMsr } from './msr-policy.ts';
import type { Vcpu } from './vcpu.ts';

/** PG AM WP NE ET MP PE: what Xen runs with. */
const CR0_FIXED = 0x80050033;
const CR0_TS = 8;
const CR4_TSD = 1 << 2;
const CR4_DE = 1 << 3;
/** OSXMMEXCPT OSFXSR MCE PAE: always seen set. */
const CR4_FIXED = 0x660;
const RFLAGS_DF = 0x400;
/** vcpu_info.arch.cr2. Source: xen/include/public/arch-x86/xen.h, struct arch_vcpu_info. */
const VCPU_INFO_CR2 = 0x10;
/** Elements that one exit may move: a longer REP comes back for the rest. */
const STRING_ELEMENTS_MAX = 512;

/** CONFIG_ADDRESS of the PCI bus that is not there: reads back what was written, as Xen's latch does. */
const configAddress = new WeakMap<Vcpu, number>();
const PORT_PIT_COUNTER_2 = 0x42;
const PORT_NMI_STATUS = 0x61;
const PORT_PCI_CONFIG_ADDRESS = 0xcf8;

/** Called on #GP with error code 0. True: done, rip is behind the instruction. False: the guest gets its #GP. */
export function emulatePrivileged(v: Vcpu): boolean {
  if (!fetchInstruction(v)) return false;
  const i = instruction;
  if (i.lock) return false;
  switch (i.opcode) {
    case 0xe4:
    case 0xe5:
    case 0xe6:
    case 0xe7:
    case 0xec:
    case 0xed:
    case 0xee:
    case 0xef:
      return portIo(v);
    case 0x6c:
    case 0x6d:
    case 0x6e:
    case 0x6f:
      return stringIo(v);
    case 0x0f31:
      return readTsc(v, false);
    case 0x0fa2:
      executeCpuid(v, false);
      return true;
    case 0x0f01:
      if (i.modrm === 0xd0) return xgetbv(v);
      if (i.modrm === 0xd1) return xsetbv(v);
      return i.modrm === 0xf9 ? readTsc(v, true) : false;
  }
  if (v.inUserMode || !kernelOnly(v)) return false;
  finishInstruction(v);
  return true;
}

/** The instructions that only a kernel may use. */
function kernelOnly(v: Vcpu): boolean {
  const i = instruction;
  const u32 = v.block.u32;
  switch (i.opcode) {
    case 0x0f30:
      return writeMsr(v, u32[gpr(RCX)], u32[gpr(RAX)], u32[gpr(RDX)]);
    case 0x0f32:
      if (!readMsr(v, u32[gpr(RCX)])) return false;
      setRegister(v, RAX, 4, v.access.lo, 0);
      setRegister(v, RDX, 4, v.access.hi, 0);
      return true;
    case 0x0f20:
      return readControlRegister(v);
    case 0x0f22:
      return writeControlRegister(v);
    case 0x0f21:
      return readDebugRegister(v);
    case 0x0f23:
      return writeDebugRegister(v);
    case 0x0f06:
      u32[VCPU.cr0Ts >> 2] = 0;
      return true;
    case 0x0f09:
      // WBINVD: no memory here is out of step with a device.
      return true;
    case 0xfa:
    case 0xfb:
      // The virtual interrupt flag is the upcall mask; these only need the privilege.
      return ioPrivilege(v);
    default:
      return false;
  }
}

/** The kernel counts as CPL 1, programs as CPL 3. */
function ioPrivilege(v: Vcpu): boolean {
  return v.block.u32[VCPU.iopl >> 2] >= (v.inUserMode ? 3 : 1);
}

function readControlRegister(v: Vcpu): boolean {
  const { reg, rm } = instruction;
  const u32 = v.block.u32;
  switch (reg) {
    case 0:
      setRegister(v, rm, 8, CR0_FIXED | (u32[VCPU.cr0Ts >> 2] !== 0 ? CR0_TS : 0), 0);
      return true;
    case 2:
      setRegister(v, rm, 8, u32[VCPU.cr2 >> 2], u32[(VCPU.cr2 >> 2) + 1]);
      return true;
    case 3: {
      const mfn = u32[VCPU.kernelRoot >> 2] + MFN_BASE;
      setRegister(v, rm, 8, mfn << 12, mfn >>> 20);
      return true;
    }
    case 4:
      setRegister(v, rm, 8, u32[VCPU.cr4 >> 2] | CR4_FIXED, 0);
      return true;
    default:
      return false;
  }
}

function writeControlRegister(v: Vcpu): boolean {
  const { reg, rm } = instruction;
  const u32 = v.block.u32;
  const lo = u32[gpr(rm)];
  const hi = u32[gpr(rm) + 1];
  switch (reg) {
    case 0:
      // Only TS is the guest's.
      if (hi !== 0 || (lo & ~CR0_TS) >>> 0 !== CR0_FIXED) return false;
      u32[VCPU.cr0Ts >> 2] = lo & CR0_TS;
      return true;
    case 2: {
      u32[VCPU.cr2 >> 2] = lo;
      u32[(VCPU.cr2 >> 2) + 1] = hi;
      const info = (u32[VCPU.vcpuInfo >> 2] + VCPU_INFO_CR2) >>> 2;
      v.machine.u32[info] = lo;
      v.machine.u32[info + 1] = hi;
      return true;
    }
    case 3:
      return newBasePointer(v, (hi & 0xfffff) * 0x100000 + (lo >>> 12)) === 0;
    case 4: {
      // Bits that are not the guest's stay as they are: a write never faults.
      const guestBits = CR4_TSD | CR4_DE | (offeredXcr0(v) !== 0 ? CR4_OSXSAVE : 0);
      u32[VCPU.cr4 >> 2] = (lo & guestBits) | CR4_FIXED;
      return true;
    }
    default:
      return false;
  }
}

/** DR0-7 go the way of the hypercalls, which check and store; those answer in RAX. */
function readDebugRegister(v: Vcpu): boolean {
  const { reg, rm } = instruction;
  const u32 = v.block.u32;
  const raxLo = u32[gpr(RAX)];
  const raxHi = u32[gpr(RAX) + 1];
  v.args[0] = reg;
  v.args[1] = 0;
  // A finite number is an errno.
  if (Number.isFinite(getDebugreg(v))) return false;
  const lo = u32[gpr(RAX)];
  const hi = u32[gpr(RAX) + 1];
  setRegister(v, RAX, 8, raxLo, raxHi);
  setRegister(v, rm, 8, lo, hi);
  return true;
}

function writeDebugRegister(v: Vcpu): boolean {
  const { reg, rm } = instruction;
  v.args[0] = reg;
  v.args[1] = 0;
  v.args[2] = v.block.u32[gpr(rm)];
  v.args[3] = v.block.u32[gpr(rm) + 1];
  return setDebugreg(v) === 0;
}

/** RDTSC and RDTSCP, when CR4.TSD made them trap. */
function readTsc(v: Vcpu, withAux: boolean): boolean {
  if (v.inUserMode && (v.block.u32[VCPU.cr4 >> 2] & CR4_TSD) !== 0) return false;
  const { tscLo, tscHi } = v.engine.readTsc();
  setRegister(v, RAX, 4, tscLo, 0);
  setRegister(v, RDX, 4, tscHi, 0);
  if (withAux) setRegister(v, RCX, 4, v.block.u32[VCPU.tscAux >> 2], 0);
  finishInstruction(v);
  return true;
}

/** Index 0 is XCR0. Index 1, XCR0 and what is in use, may say "all in use". */
function xgetbv(v: Vcpu): boolean {
  const u32 = v.block.u32;
  if ((u32[VCPU.cr4 >> 2] & CR4_OSXSAVE) === 0 || u32[gpr(RCX)] > 1) return false;
  setRegister(v, RAX, 4, u32[VCPU.xcr0 >> 2], 0);
  setRegister(v, RDX, 4, 0, 0);
  finishInstruction(v);
  return true;
}

/** Source of the checks: Intel SDM vol. 1, 13.3. */
function xsetbv(v: Vcpu): boolean {
  const u32 = v.block.u32;
  if (v.inUserMode || (u32[VCPU.cr4 >> 2] & CR4_OSXSAVE) === 0) return false;
  const value = u32[gpr(RAX)];
  if (u32[gpr(RCX)] !== 0 || u32[gpr(RDX)] !== 0) return false;
  if ((value & XSTATE_X87) === 0 || (value & ~offeredXcr0(v)) !== 0) return false;
  if ((value & XSTATE_AVX) !== 0 && (value & XSTATE_SSE) === 0) return false;
  const avx512 = value & XSTATE_AVX512;
  if (avx512 !== 0 && (avx512 !== XSTATE_AVX512 || (value & XSTATE_AVX) === 0)) return false;
  u32[VCPU.xcr0 >> 2] = value;
  v.engine.xcr0Changed();
  finishInstruction(v);
  return true;
}

/** Bytes of a port access: REX.W widens nothing. */
function portSize(): number {
  return instruction.operandSize === 8 ? 4 : instruction.operandSize;
}

/** What a port reads, `size` bytes of it. No device answers, so the bus floats high. */
function readPort(v: Vcpu, port: number, size: number): number {
  // 0 ends the kernel's PIT calibration at once; it takes the rate from Xen.
  if (port === PORT_PIT_COUNTER_2 || port === PORT_NMI_STATUS) return 0;
  if (port === PORT_PCI_CONFIG_ADDRESS && size === 4) return configAddress.get(v) ?? 0;
  return 0xffffffff;
}

function writePort(v: Vcpu, port: number, size: number, value: number): void {
  if (port === PORT_PCI_CONFIG_ADDRESS && size === 4) configAddress.set(v, value);
}

function portIo(v: Vcpu): boolean {
  if (!ioPrivilege(v)) return false;
  const i = instruction;
  const size = portSize();
  // Bit 3 of the opcode: the port is in DX; bit 1: OUT.
  const port = (i.opcode & 8) !== 0 ? registerLo(v, RDX, 2) : i.immediateLo & 0xff;
  if ((i.opcode & 2) === 0) setRegister(v, RAX, size, readPort(v, port, size), 0);
  else writePort(v, port, size, registerLo(v, RAX, size));
  finishInstruction(v);
  return true;
}

/** INS and OUTS, with and without REP. */
function stringIo(v: Vcpu): boolean {
  if (!ioPrivilege(v)) return false;
  const i = instruction;
  const u32 = v.block.u32;
  const access = v.access;
  const size = portSize();
  const port = registerLo(v, RDX, 2);
  const output = (i.opcode & 2) !== 0;
  const register = output ? RSI : RDI;
  const step = (u32[VCPU.rflags >> 2] & RFLAGS_DF) !== 0 ? -size : size;
  const counterWide = i.long && !i.address32;
  for (let n = 0; n < STRING_ELEMENTS_MAX; n++) {
    if (i.repeat !== 0 && (u32[gpr(RCX)] | (counterWide ? u32[gpr(RCX) + 1] : 0)) === 0) break;
    stringAddress(v, register, output);
    if (output) {
      if (!access.copyIn(i.addressLo, i.addressHi, size, access.currentRoot())) return false;
      writePort(v, port, size, access.words[0]);
    } else {
      access.words[0] = readPort(v, port, size);
      if (!access.copyOut(i.addressLo, i.addressHi, access.bytes, 0, size, access.currentRoot())) return false;
    }
    stepRegister(v, register, step);
    if (i.repeat === 0) break;
    stepRegister(v, RCX, -1);
    if (n === STRING_ELEMENTS_MAX - 1) return true;
  }
  finishInstruction(v);
  return true;
}
