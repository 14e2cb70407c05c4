/**
 * Fetches and decodes the one instruction at rip, for what Xen executes in the guest's place: privileged instructions (#GP), forced
 * CPUID (#UD) and stores to page tables (#PF). Everything else is left undecoded: `fetchInstruction` is then false and the guest
 * gets its fault.
 *
 *     [legacy prefixes] [REX] opcode | 0F opcode  [ModRM [SIB] [disp8/32]] [imm8/16/32]
 *
 * One record, `instruction`, is filled again and again: a thread runs one vCPU. What it holds was read from guest memory once;
 * another vCPU may change the bytes meanwhile, and what is executed is what was read.
 *
 * The manner of decoding follows the L bit of the code segment, which the guest's GDT holds. Segments in an LDT count as 32-bit.
 * Segment bases are honoured for FS and GS only; 16-bit addressing is not decoded. Source: Intel SDM vol. 2, chapter 2 and
 * appendix A.
 */

import { RSP, VCPU } from '../machine/vcpu-block.ts';
import type { Vcpu } from './vcpu.ts';

/** No instruction is longer. Source: Intel SDM vol. 2, 2.3.11. */
const LENGTH_MAX = 15;

/** Added to the second byte of the two-byte map: `0f a2` is 0x0fa2. */
const MAP_0F = 0x0f00;

// What follows an opcode and how wide its operand is. Zero: not decoded.
const KNOWN = 1;
const MODRM = 2;
const IMM8 = 4;
/** 16 or 32 bits by operand size; sign-extended for 64. */
const IMMZ = 8;
const BYTE_OPERAND = 0x10;
/** ModRM names two registers whatever its mod field says (MOV to and from CR and DR). */
const REGISTERS_ONLY = 0x20;

const ONE_BYTE = new Uint8Array(256);
const TWO_BYTE = new Uint8Array(256);

function fill(map: Uint8Array, attributes: number, ...opcodes: number[]): void {
  for (const opcode of opcodes) map[opcode] = attributes | KNOWN;
}

// add, or, and, sub, xor: r/m, r
fill(ONE_BYTE, MODRM | BYTE_OPERAND, 0x00, 0x08, 0x20, 0x28, 0x30);
fill(ONE_BYTE, MODRM, 0x01, 0x09, 0x21, 0x29, 0x31);
// the same with an immediate
fill(ONE_BYTE, MODRM | BYTE_OPERAND | IMM8, 0x80);
fill(ONE_BYTE, MODRM | IMMZ, 0x81);
fill(ONE_BYTE, MODRM | IMM8, 0x83);
// xchg, mov
fill(ONE_BYTE, MODRM | BYTE_OPERAND, 0x86, 0x88);
fill(ONE_BYTE, MODRM, 0x87, 0x89);
fill(ONE_BYTE, MODRM | BYTE_OPERAND | IMM8, 0xc6);
fill(ONE_BYTE, MODRM | IMMZ, 0xc7);
// movs, stos
fill(ONE_BYTE, BYTE_OPERAND, 0xa4, 0xaa);
fill(ONE_BYTE, 0, 0xa5, 0xab);
// ins, outs, in, out
fill(ONE_BYTE, BYTE_OPERAND, 0x6c, 0x6e, 0xec, 0xee);
fill(ONE_BYTE, 0, 0x6d, 0x6f, 0xed, 0xef);
fill(ONE_BYTE, BYTE_OPERAND | IMM8, 0xe4, 0xe6);
fill(ONE_BYTE, IMM8, 0xe5, 0xe7);
// hlt, cli, sti
fill(ONE_BYTE, 0, 0xf4, 0xfa, 0xfb);
// xgetbv, xsetbv, rdtscp and others by ModRM
fill(TWO_BYTE, MODRM, 0x01);
// clts, invd, wbinvd, ud2, wrmsr, rdtsc, rdmsr, rdpmc, cpuid
fill(TWO_BYTE, 0, 0x06, 0x08, 0x09, 0x0b, 0x30, 0x31, 0x32, 0x33, 0xa2);
// mov cr/dr
fill(TWO_BYTE, MODRM | REGISTERS_ONLY, 0x20, 0x21, 0x22, 0x23);
// bts, btr, btc
fill(TWO_BYTE, MODRM, 0xab, 0xb3, 0xbb);
fill(TWO_BYTE, MODRM | IMM8, 0xba);
// cmpxchg, xadd, movnti, cmpxchg8b
fill(TWO_BYTE, MODRM | BYTE_OPERAND, 0xb0, 0xc0);
fill(TWO_BYTE, MODRM, 0xb1, 0xc1, 0xc3, 0xc7);

const NO_REGISTER = -1;

export class Instruction {
  /** What was read at rip; `fetched` bytes are good. */
  readonly bytes = new Uint8Array(LENGTH_MAX);
  fetched = 0;
  length = 0;
  /** One-byte opcode, or 0x0f00 + the second byte. */
  opcode = 0;
  /** 64-bit code. */
  long = true;
  lock = false;
  /** 0, 0xf2 or 0xf3. */
  repeat = 0;
  /** 0, or the prefix byte of the segment override: 0x64 FS, 0x65 GS; the others have base 0. */
  segment = 0;
  /** 32-bit addresses in 64-bit code. */
  address32 = false;
  /** 0, or the REX byte. */
  rex = 0;
  /** 1, 2, 4 or 8 bytes. */
  operandSize = 0;
  /** ModRM fields, with REX.R and REX.B. */
  mod = 0;
  reg = 0;
  rm = 0;
  /** The whole ModRM byte. */
  modrm = 0;
  /** r/m is a memory operand. */
  memory = false;
  base = NO_REGISTER;
  index = NO_REGISTER;
  scale = 0;
  ripRelative = false;
  /** Signed. */
  displacement = 0;
  /** Sign-extended to 64 bits as two words. */
  immediateLo = 0;
  immediateHi = 0;
  /** Set by `effectiveAddress`. */
  addressLo = 0;
  addressHi = 0;
}

/** The instruction that was decoded last. */
export const instruction = new Instruction();

/** Reads up to 15 bytes at rip, as the current mode sees them, and decodes them into `instruction`. */
export function fetchInstruction(v: Vcpu): boolean {
  const i = instruction;
  const u32 = v.block.u32;
  const access = v.access;
  const u8 = v.machine.u8;
  const root = access.currentRoot();
  const lo = u32[VCPU.rip >> 2];
  const hi = u32[(VCPU.rip >> 2) + 1];
  i.fetched = 0;
  const first = access.translate(root, lo, hi, false);
  if (first < 0) return false;
  const inPage = 4096 - (lo & 0xfff);
  const n = inPage < LENGTH_MAX ? inPage : LENGTH_MAX;
  for (let k = 0; k < n; k++) i.bytes[k] = u8[first + k];
  i.fetched = n;
  if (n < LENGTH_MAX) {
    const nextLo = (lo + n) >>> 0;
    const second = access.translate(root, nextLo, nextLo < n ? (hi + 1) >>> 0 : hi, false);
    if (second >= 0) {
      for (let k = n; k < LENGTH_MAX; k++) i.bytes[k] = u8[second + k - n];
      i.fetched = LENGTH_MAX;
    }
  }
  return decode(i, runsLongMode(v));
}

/** The bytes fetched last are SYSENTER. */
export function isSysenter(): boolean {
  const { bytes, fetched } = instruction;
  return fetched >= 2 && bytes[0] === 0x0f && bytes[1] === 0x34;
}

/** Selectors of Xen's own descriptors start here. Source: xen/include/public/arch-x86/xen.h, FIRST_RESERVED_GDT_BYTE. */
const FIRST_RESERVED_GDT_BYTE = 14 * 4096;
/** Source: xen/include/public/arch-x86/xen-x86_64.h, FLAT_RING3_CS64. */
const FLAT_RING3_CS64 = 0xe033;
/** L bit of a code descriptor, in its high word. */
const DESCRIPTOR_L = 1 << 21;

/** Whether the code segment is a 64-bit one. */
export function runsLongMode(v: Vcpu): boolean {
  const u32 = v.block.u32;
  const selector = u32[VCPU.cs >> 2] & 0xffff;
  if (selector >= FIRST_RESERVED_GDT_BYTE) return (selector | 3) === FLAT_RING3_CS64;
  if ((selector & 4) !== 0) return false;
  const entry = selector >>> 3;
  if (entry >= u32[VCPU.gdtEntries >> 2]) return false;
  const frame = u32[(VCPU.gdtFrames >> 2) + (entry >>> 9)];
  return (v.machine.u32[frame * 1024 + (entry & 511) * 2 + 1] & DESCRIPTOR_L) !== 0;
}

/** Decodes `i.bytes`. False: not an instruction that Xen emulates, or cut off. */
export function decode(i: Instruction, long: boolean): boolean {
  const { bytes, fetched } = i;
  i.long = long;
  i.lock = false;
  i.repeat = 0;
  i.segment = 0;
  i.address32 = false;
  i.rex = 0;
  i.memory = false;
  i.ripRelative = false;
  i.base = NO_REGISTER;
  i.index = NO_REGISTER;
  i.scale = 0;
  i.displacement = 0;
  i.immediateLo = 0;
  i.immediateHi = 0;
  i.mod = 0;
  i.reg = 0;
  i.rm = 0;
  i.modrm = 0;
  let operand16 = false;
  let addressPrefix = false;
  let at = 0;
  prefixes: for (; at < fetched; at++) {
    const byte = bytes[at];
    switch (byte) {
      case 0x26:
      case 0x2e:
      case 0x36:
      case 0x3e:
        // In 64-bit code these are ignored: they do not even undo an FS or GS before them.
        if (!long) i.segment = 0;
        break;
      case 0x64:
      case 0x65:
        i.segment = byte;
        break;
      case 0x66:
        operand16 = true;
        break;
      case 0x67:
        addressPrefix = true;
        break;
      case 0xf0:
        i.lock = true;
        break;
      case 0xf2:
      case 0xf3:
        i.repeat = byte;
        break;
      default:
        if (!long || (byte & 0xf0) !== 0x40) break prefixes;
        i.rex = byte;
        continue;
    }
    // A REX that is not the last prefix counts for nothing.
    i.rex = 0;
  }
  if (at >= fetched) return false;
  i.address32 = long && addressPrefix;
  let attributes: number;
  const opcode = bytes[at++];
  if (opcode === 0x0f) {
    if (at >= fetched) return false;
    i.opcode = MAP_0F + bytes[at];
    attributes = TWO_BYTE[bytes[at++]];
  } else {
    i.opcode = opcode;
    attributes = ONE_BYTE[opcode];
  }
  if (attributes === 0) return false;
  i.operandSize = (attributes & BYTE_OPERAND) !== 0 ? 1 : (i.rex & 8) !== 0 ? 8 : operand16 ? 2 : 4;
  if ((attributes & MODRM) !== 0) {
    if (at >= fetched) return false;
    const modrm = bytes[at++];
    i.modrm = modrm;
    i.mod = modrm >>> 6;
    i.reg = ((modrm >>> 3) & 7) | ((i.rex & 4) << 1);
    i.rm = (modrm & 7) | ((i.rex & 1) << 3);
    if (i.mod !== 3 && (attributes & REGISTERS_ONLY) === 0) {
      if (!long && addressPrefix) return false;
      at = decodeMemory(i, at);
      if (at < 0) return false;
    }
  } else if (!long && addressPrefix) return false;
  const immediateBytes = (attributes & IMM8) !== 0 ? 1 : (attributes & IMMZ) !== 0 ? (i.operandSize === 2 ? 2 : 4) : 0;
  if (at + immediateBytes > fetched) return false;
  if (immediateBytes !== 0) {
    const value =
      immediateBytes === 1
        ? (bytes[at] << 24) >> 24
        : immediateBytes === 2
          ? ((bytes[at] | (bytes[at + 1] << 8)) << 16) >> 16
          : dword(bytes, at);
    i.immediateLo = value >>> 0;
    i.immediateHi = value < 0 ? 0xffffffff : 0;
    at += immediateBytes;
  }
  i.length = at;
  return true;
}

function dword(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
}

/** SIB and displacement. Returns where they end, or -1 when the bytes do. */
function decodeMemory(i: Instruction, at: number): number {
  const { bytes, fetched } = i;
  i.memory = true;
  let displacementBytes = i.mod === 1 ? 1 : i.mod === 2 ? 4 : 0;
  const rm = i.modrm & 7;
  if (rm === 4) {
    if (at >= fetched) return -1;
    const sib = bytes[at++];
    const index = ((sib >>> 3) & 7) | ((i.rex & 2) << 2);
    if (index !== 4) {
      i.index = index;
      i.scale = sib >>> 6;
    }
    if ((sib & 7) === 5 && i.mod === 0) displacementBytes = 4;
    else i.base = (sib & 7) | ((i.rex & 1) << 3);
  } else if (rm === 5 && i.mod === 0) {
    displacementBytes = 4;
    i.ripRelative = i.long;
  } else i.base = i.rm;
  if (at + displacementBytes > fetched) return -1;
  if (displacementBytes === 1) i.displacement = (bytes[at] << 24) >> 24;
  else if (displacementBytes === 4) i.displacement = dword(bytes, at);
  return at + displacementBytes;
}

/** Adds a 64-bit value to `instruction.address`. */
function addToAddress(lo: number, hi: number): void {
  const sum = instruction.addressLo + (lo >>> 0);
  instruction.addressLo = sum >>> 0;
  instruction.addressHi = (instruction.addressHi + hi + (sum > 0xffffffff ? 1 : 0)) >>> 0;
}

function addSegmentBase(v: Vcpu): void {
  const i = instruction;
  const u32 = v.block.u32;
  if (i.segment === 0x64) addToAddress(u32[VCPU.fsBase >> 2], u32[(VCPU.fsBase >> 2) + 1]);
  else if (i.segment === 0x65) addToAddress(u32[VCPU.gsBase >> 2], u32[(VCPU.gsBase >> 2) + 1]);
}

/** The linear address of the memory operand, into `instruction.addressLo/Hi`. */
export function effectiveAddress(v: Vcpu): void {
  const i = instruction;
  const u32 = v.block.u32;
  i.addressLo = 0;
  i.addressHi = 0;
  addToAddress(i.displacement, i.displacement < 0 ? 0xffffffff : 0);
  if (i.ripRelative) {
    addToAddress(u32[VCPU.rip >> 2], u32[(VCPU.rip >> 2) + 1]);
    addToAddress(i.length, 0);
  }
  if (i.base !== NO_REGISTER) addToAddress(u32[gpr(i.base)], u32[gpr(i.base) + 1]);
  if (i.index !== NO_REGISTER) {
    const lo = u32[gpr(i.index)];
    const hi = u32[gpr(i.index) + 1];
    addToAddress(lo << i.scale, i.scale === 0 ? hi : (hi << i.scale) | (lo >>> (32 - i.scale)));
  }
  if (i.address32 || !i.long) i.addressHi = 0;
  addSegmentBase(v);
  if (!i.long) i.addressHi = 0;
}

/** The address that a string instruction has in RSI or RDI (`register`); `segmented`: a segment override counts. */
export function stringAddress(v: Vcpu, register: number, segmented: boolean): void {
  const i = instruction;
  const u32 = v.block.u32;
  i.addressLo = u32[gpr(register)];
  i.addressHi = i.address32 || !i.long ? 0 : u32[gpr(register) + 1];
  if (segmented) addSegmentBase(v);
  if (!i.long) i.addressHi = 0;
}

/** Adds a signed count to a register that string instructions step, in the instruction's address size. */
export function stepRegister(v: Vcpu, register: number, delta: number): void {
  const u32 = v.block.u32;
  const at = gpr(register);
  const sum = u32[at] + delta;
  u32[at] = sum >>> 0;
  if (instruction.address32 || !instruction.long) u32[at + 1] = 0;
  else if (sum < 0) u32[at + 1]--;
  else if (sum > 0xffffffff) u32[at + 1]++;
}

/** RFLAGS.RF: cleared by every instruction that completes. */
const RF = 0x10000;

/** The instruction is done: rip goes behind it. */
export function finishInstruction(v: Vcpu): void {
  const u32 = v.block.u32;
  const at = VCPU.rip >> 2;
  const sum = u32[at] + instruction.length;
  u32[at] = sum >>> 0;
  if (sum > 0xffffffff) u32[at + 1] = instruction.long ? u32[at + 1] + 1 : 0;
  u32[VCPU.rflags >> 2] &= ~RF;
}

/** Word index of a general register in the vCPU block. */
export function gpr(register: number): number {
  return (VCPU.gpr >> 2) + register * 2;
}

/** Without REX, byte registers 4..7 are AH, CH, DH and BH. */
function isHighByte(register: number): boolean {
  return instruction.rex === 0 && register >= RSP && register < RSP + 4;
}

/** Low word of a register operand, cut to `size` bytes. */
export function registerLo(v: Vcpu, register: number, size: number): number {
  const u32 = v.block.u32;
  if (size >= 4) return u32[gpr(register)];
  if (size === 2) return u32[gpr(register)] & 0xffff;
  return isHighByte(register) ? (u32[gpr(register - RSP)] >>> 8) & 0xff : u32[gpr(register)] & 0xff;
}

/** High word of a register operand; 0 below 64 bits. */
export function registerHi(v: Vcpu, register: number, size: number): number {
  return size === 8 ? v.block.u32[gpr(register) + 1] : 0;
}

/** Writes a register operand: 32-bit writes clear the upper half, shorter ones leave it. */
export function setRegister(v: Vcpu, register: number, size: number, lo: number, hi: number): void {
  const u32 = v.block.u32;
  const at = gpr(register);
  if (size >= 4) {
    u32[at] = lo;
    u32[at + 1] = size === 8 ? hi : 0;
  } else if (size === 2) u32[at] = (u32[at] & 0xffff0000) | (lo & 0xffff);
  else if (isHighByte(register))
    u32[gpr(register - RSP)] = (u32[gpr(register - RSP)] & 0xffff00ff) | ((lo & 0xff) << 8);
  else u32[at] = (u32[at] & 0xffffff00) | (lo & 0xff);
}
