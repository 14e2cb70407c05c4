/**
 * Writable page tables: a guest kernel has its page tables mapped read-only and asks Xen to change them, but its atomic operations
 * on entries (xchg, lock and, bts ...) just store. The store faults, and Xen carries it out here as `mmu_update` would.
 *
 *   1. The fault is a write by the kernel to a present, read-only page, and that page's frame is a page table.
 *   2. The instruction is one of those below, and its operand is an aligned 1, 2, 4 or 8 bytes in the entry of CR2.
 *   3. Under the domain lock: read the entry, compute the new one, store it; then registers, flags and rip.
 *
 * The CPU sets A and D in present entries at any time, also while this runs. Where an L1 entry stays with its frame or goes away,
 * which is where an A or D could be lost, the low word is therefore exchanged only if it is still what was read (step 3 starts over
 * otherwise). Such a store names no new frame, so `storePte` has nothing to check. All other stores are `storePte`'s: an entry that
 * is not present is not touched by the CPU.
 *
 * Anything else is left to the guest as the page fault that it is. String stores do one element and fault again for the next.
 * Source: xen/arch/x86/pv/ro-page-fault.c (behaviour); Intel SDM vol. 2 for the instructions and their flags.
 */

import { PTE_A, PTE_D, PTE_G, PTE_P, PTE_RW, PTE_US } from '../machine/page-table.ts';
import { RAX, RBX, RCX, RDI, RDX, RSI, VCPU } from '../machine/vcpu-block.ts';
import { FRAME_LEVEL_MASK } from './domain.ts';
import {
  effectiveAddress,
  fetchInstruction,
  finishInstruction,
  gpr,
  instruction,
  registerHi,
  registerLo,
  setRegister,
  stepRegister,
  stringAddress,
} from './instruction.ts';
import { allVcpus, flushVcpus, storePte } from './mmu.ts';
import type { Vcpu } from './vcpu.ts';

const CF = 1;
const PF = 4;
const AF = 0x10;
const ZF = 0x40;
const SF = 0x80;
const OF = 0x800;
const DF = 0x400;
const ARITHMETIC_FLAGS = CF | PF | AF | ZF | SF | OF;

/** Flags of an entry that the fast store may change: R/W (only to 0), A, D, G, the three software bits. U is always set. */
const FLAGS_CHANGEABLE = PTE_RW | PTE_US | PTE_A | PTE_D | PTE_G | 0xe00;

/** An entry that changes under us this often is being played with. */
const RETRIES_MAX = 64;

/** The instruction computes; these are its operand before and after, and the RFLAGS bits it sets. */
let oldLo = 0;
let oldHi = 0;
let newLo = 0;
let newHi = 0;
let flagsMask = 0;
let flags = 0;

/** Called on #PF (present, write) in kernel mode. True: the store is done. False: the guest gets its #PF. */
export function emulatePageTableWrite(v: Vcpu): boolean {
  if (v.inUserMode) return false;
  const u32 = v.block.u32;
  const cr2Lo = u32[VCPU.cr2 >> 2];
  const cr2Hi = u32[(VCPU.cr2 >> 2) + 1];
  const access = v.access;
  const target = access.translate(access.kernelRoot(), cr2Lo, cr2Hi, false);
  if (target < 0 || access.writable) return false;
  if (((v.domain.frameTypes[target >>> 12] ?? 0) & FRAME_LEVEL_MASK) === 0) return false;
  if (!fetchInstruction(v)) return false;
  const i = instruction;
  const string = i.opcode >= 0xa4 && i.opcode <= 0xab;
  if (string) {
    // Without the check a REP with a zero count would store once.
    if (i.repeat !== 0 && countIsZero(v)) return false;
    stringAddress(v, RDI, false);
  } else {
    if (!i.memory) return false;
    effectiveAddress(v);
  }
  // The bit of BTS and its kin may lie far from the address in the instruction.
  const bit = string ? 0 : bitOffset(v);
  if (bit < 0) return false;
  const byte = i.addressLo & 7;
  if (i.addressHi !== cr2Hi || i.addressLo - byte !== cr2Lo - (cr2Lo & 7)) return false;
  const size = operandBytes();
  if (size === 0 || (byte & (size - 1)) !== 0) return false;
  if (string && !loadString(v, size)) return false;

  const entry = target - (target & 7);
  v.domain.lock();
  const done = performStore(v, entry, byte, size, bit);
  v.domain.unlock();
  if (!done) return false;
  if (v.flushAll) {
    v.flushAll = false;
    flushVcpus(v, allVcpus(v.domain));
  }
  if (string) finishString(v, size);
  else {
    u32[VCPU.rflags >> 2] = (u32[VCPU.rflags >> 2] & ~flagsMask) | (flags & flagsMask);
    writeRegisters(v, size);
    finishInstruction(v);
  }
  return true;
}

/** Bytes that the instruction stores, or 0 when it stores none here. */
function operandBytes(): number {
  const i = instruction;
  if (i.opcode !== 0x0fc7) return i.operandSize;
  // CMPXCHG8B; with REX.W it is CMPXCHG16B, which is two entries.
  return (i.reg & 7) === 1 && (i.rex & 8) === 0 ? 8 : 0;
}

/**
 * For BTS, BTR and BTC: the bit in the operand. With the offset in a register the operand is the one that far from the address,
 * in units of its size; `instruction.address` moves there. -1: too far for CR2 to be there.
 */
function bitOffset(v: Vcpu): number {
  const i = instruction;
  const bits = i.operandSize * 8;
  if (i.opcode === 0x0fba) return i.immediateLo & (bits - 1);
  if (i.opcode !== 0x0fab && i.opcode !== 0x0fb3 && i.opcode !== 0x0fbb) return 0;
  const lo = registerLo(v, i.reg, i.operandSize);
  const hi = registerHi(v, i.reg, i.operandSize);
  const signed = i.operandSize === 2 ? (lo << 16) >> 16 : lo | 0;
  if (i.operandSize === 8 && hi !== (signed < 0 ? 0xffffffff : 0)) return -1;
  const bytes = ((signed >> (Math.clz32(i.operandSize) ^ 31)) >> 3) * i.operandSize;
  const sum = i.addressLo + bytes;
  i.addressLo = sum >>> 0;
  if (sum < 0) i.addressHi = (i.addressHi - 1) >>> 0;
  else if (sum > 0xffffffff) i.addressHi = (i.addressHi + 1) >>> 0;
  return lo & (bits - 1);
}

/** The new value of MOVS or STOS, into `newLo` and `newHi`. */
function loadString(v: Vcpu, size: number): boolean {
  const i = instruction;
  if (i.opcode >= 0xaa) {
    newLo = registerLo(v, RAX, size);
    newHi = registerHi(v, RAX, size);
    return true;
  }
  const access = v.access;
  stringAddress(v, RSI, true);
  access.words[0] = 0;
  access.words[1] = 0;
  if (!access.copyIn(i.addressLo, i.addressHi, size, access.kernelRoot())) return false;
  newLo = access.words[0];
  newHi = access.words[1];
  return true;
}

function countIsZero(v: Vcpu): boolean {
  const wide = instruction.long && !instruction.address32;
  return (v.block.u32[gpr(RCX)] | (wide ? v.block.u32[gpr(RCX) + 1] : 0)) === 0;
}

function finishString(v: Vcpu, size: number): void {
  const step = (v.block.u32[VCPU.rflags >> 2] & DF) !== 0 ? -size : size;
  stepRegister(v, RDI, step);
  if (instruction.opcode < 0xaa) stepRegister(v, RSI, step);
  if (instruction.repeat !== 0) {
    stepRegister(v, RCX, -1);
    if (!countIsZero(v)) return;
  }
  finishInstruction(v);
}

/** Reads the entry, computes, stores; again when the CPU changed A or D in between. */
function performStore(v: Vcpu, entry: number, byte: number, size: number, bit: number): boolean {
  const { i32, u32 } = v.machine;
  const word = entry >>> 2;
  const shift = (byte & 3) * 8;
  const mask = size >= 4 ? 0xffffffff : (1 << (size * 8)) - 1;
  for (let tries = 0; tries < RETRIES_MAX; tries++) {
    const currentLo = Atomics.load(i32, word) >>> 0;
    const currentHi = u32[word + 1];
    oldLo = (((byte < 4 ? currentLo : currentHi) >>> shift) & mask) >>> 0;
    oldHi = size === 8 ? currentHi : 0;
    if (!compute(v, size, bit)) return false;
    let lo = currentLo;
    let hi = currentHi;
    if (size === 8) {
      lo = newLo;
      hi = newHi;
    } else if (byte < 4) lo = ((currentLo & ~(mask << shift)) | ((newLo & mask) << shift)) >>> 0;
    else hi = ((currentHi & ~(mask << shift)) | ((newLo & mask) << shift)) >>> 0;
    if (lo === currentLo && hi === currentHi) return true;
    if (!replacesFlagsOnly(v, entry, currentLo, currentHi, lo, hi)) return storePte(v, entry, lo, hi) === 0;
    if ((lo & PTE_P) !== 0) lo = (lo | PTE_US) & ~PTE_G;
    if (Atomics.compareExchange(i32, word, currentLo | 0, lo | 0) !== (currentLo | 0)) continue;
    if (hi !== currentHi) Atomics.store(i32, word + 1, hi | 0);
    v.engine.pageTableStored(entry);
    return true;
  }
  return false;
}

/** A present L1 entry goes away, or keeps its frame and gets no new rights. */
function replacesFlagsOnly(v: Vcpu, entry: number, fromLo: number, fromHi: number, lo: number, hi: number): boolean {
  if ((fromLo & PTE_P) === 0 || (v.domain.frameTypes[entry >>> 12] & FRAME_LEVEL_MASK) !== 1) return false;
  if ((lo & PTE_P) === 0) return true;
  return hi === fromHi && ((lo ^ fromLo) & ~FLAGS_CHANGEABLE) === 0 && (lo & ~fromLo & PTE_RW) === 0;
}

/** From `oldLo/Hi` and the registers to `newLo/Hi` and `flags`. False: not an instruction that stores. */
function compute(v: Vcpu, size: number, bit: number): boolean {
  const i = instruction;
  flagsMask = 0;
  flags = 0;
  switch (i.opcode) {
    case 0xa4:
    case 0xa5:
    case 0xaa:
    case 0xab:
      return true;
    case 0x86:
    case 0x87:
    case 0x88:
    case 0x89:
    case 0x0fc3:
      newLo = registerLo(v, i.reg, size);
      newHi = registerHi(v, i.reg, size);
      // MOVNTI has no short form.
      return i.opcode !== 0x0fc3 || size >= 4;
    case 0xc6:
    case 0xc7:
      newLo = i.immediateLo;
      newHi = size === 8 ? i.immediateHi : 0;
      return (i.reg & 7) === 0;
    case 0x80:
    case 0x81:
    case 0x83:
      return alu(i.reg & 7, i.immediateLo, i.immediateHi, size);
    case 0x00:
    case 0x01:
    case 0x08:
    case 0x09:
    case 0x20:
    case 0x21:
    case 0x28:
    case 0x29:
    case 0x30:
    case 0x31:
      return alu(i.opcode >>> 3, registerLo(v, i.reg, size), registerHi(v, i.reg, size), size);
    case 0x0fc0:
    case 0x0fc1:
      return alu(ALU_ADD, registerLo(v, i.reg, size), registerHi(v, i.reg, size), size);
    case 0x0fb0:
    case 0x0fb1: {
      const equal = registerLo(v, RAX, size) === oldLo && registerHi(v, RAX, size) === oldHi;
      setSubtractFlags(registerLo(v, RAX, size), registerHi(v, RAX, size), oldLo, oldHi, size);
      newLo = equal ? registerLo(v, i.reg, size) : oldLo;
      newHi = equal ? registerHi(v, i.reg, size) : oldHi;
      return true;
    }
    case 0x0fc7: {
      const u32 = v.block.u32;
      const equal = u32[gpr(RAX)] === oldLo && u32[gpr(RDX)] === oldHi;
      flagsMask = ZF;
      flags = equal ? ZF : 0;
      newLo = equal ? u32[gpr(RBX)] : oldLo;
      newHi = equal ? u32[gpr(RCX)] : oldHi;
      return true;
    }
    case 0x0fab:
      return changeBit(5, bit);
    case 0x0fb3:
      return changeBit(6, bit);
    case 0x0fbb:
      return changeBit(7, bit);
    case 0x0fba:
      return changeBit(i.reg & 7, bit);
    default:
      return false;
  }
}

/** The registers that an instruction gives back, once the store is done. */
function writeRegisters(v: Vcpu, size: number): void {
  const i = instruction;
  switch (i.opcode) {
    case 0x86:
    case 0x87:
    case 0x0fc0:
    case 0x0fc1:
      setRegister(v, i.reg, size, oldLo, oldHi);
      return;
    case 0x0fb0:
    case 0x0fb1:
      if ((flags & ZF) === 0) setRegister(v, RAX, size, oldLo, oldHi);
      return;
    case 0x0fc7:
      if ((flags & ZF) === 0) {
        setRegister(v, RAX, 4, oldLo, 0);
        setRegister(v, RDX, 4, oldHi, 0);
      }
  }
}

/** Group 0f ba: 5 BTS, 6 BTR, 7 BTC. CF is the bit as it was; the other flags stay. */
function changeBit(operation: number, bit: number): boolean {
  if (operation < 5) return false;
  const inLow = bit < 32;
  const mask = 1 << (bit & 31);
  const old = inLow ? oldLo : oldHi;
  const next = (operation === 5 ? old | mask : operation === 6 ? old & ~mask : old ^ mask) >>> 0;
  newLo = inLow ? next : oldLo;
  newHi = inLow ? oldHi : next;
  flagsMask = CF;
  flags = (old & mask) !== 0 ? CF : 0;
  return true;
}

/** Operations of groups 80, 81 and 83, and bits 3-5 of the plain opcodes. */
const ALU_ADD = 0;
const ALU_OR = 1;
const ALU_AND = 4;
const ALU_SUB = 5;
const ALU_XOR = 6;

/** old <- old op b. ADC and SBB are not done: no page table needs them; CMP does not store. */
function alu(operation: number, bLo: number, bHi: number, size: number): boolean {
  const mask = size >= 4 ? 0xffffffff : (1 << (size * 8)) - 1;
  bLo = (bLo & mask) >>> 0;
  if (size < 8) bHi = 0;
  switch (operation) {
    case ALU_ADD: {
      const sumLo = oldLo + bLo;
      const sumHi = oldHi + bHi + (sumLo > 0xffffffff ? 1 : 0);
      newLo = (sumLo & mask) >>> 0;
      newHi = size === 8 ? sumHi >>> 0 : 0;
      const carry = size === 8 ? sumHi > 0xffffffff : sumLo > mask;
      const overflow = signOf(~(oldLo ^ bLo) & (oldLo ^ newLo), ~(oldHi ^ bHi) & (oldHi ^ newHi), size);
      setResultFlags(newLo, newHi, size);
      flags |= (carry ? CF : 0) | (overflow ? OF : 0) | ((oldLo ^ bLo ^ newLo) & AF);
      return true;
    }
    case ALU_SUB:
      setSubtractFlags(oldLo, oldHi, bLo, bHi, size);
      newLo = ((oldLo - bLo) & mask) >>> 0;
      newHi = size === 8 ? (oldHi - bHi - (oldLo < bLo ? 1 : 0)) >>> 0 : 0;
      return true;
    case ALU_OR:
      newLo = (oldLo | bLo) >>> 0;
      newHi = (oldHi | bHi) >>> 0;
      break;
    case ALU_AND:
      newLo = (oldLo & bLo) >>> 0;
      newHi = (oldHi & bHi) >>> 0;
      break;
    case ALU_XOR:
      newLo = (oldLo ^ bLo) >>> 0;
      newHi = (oldHi ^ bHi) >>> 0;
      break;
    default:
      return false;
  }
  setResultFlags(newLo, newHi, size);
  return true;
}

/** Flags of a - b. */
function setSubtractFlags(aLo: number, aHi: number, bLo: number, bHi: number, size: number): void {
  const mask = size >= 4 ? 0xffffffff : (1 << (size * 8)) - 1;
  const lo = ((aLo - bLo) & mask) >>> 0;
  const hi = size === 8 ? (aHi - bHi - (aLo < bLo ? 1 : 0)) >>> 0 : 0;
  const borrow = aHi < bHi || (aHi === bHi && aLo < bLo);
  const overflow = signOf((aLo ^ bLo) & (aLo ^ lo), (aHi ^ bHi) & (aHi ^ hi), size);
  setResultFlags(lo, hi, size);
  flags |= (borrow ? CF : 0) | (overflow ? OF : 0) | ((aLo ^ bLo ^ lo) & AF);
}

/** SF, ZF and PF of a result; CF, OF and AF clear. */
function setResultFlags(lo: number, hi: number, size: number): void {
  flagsMask = ARITHMETIC_FLAGS;
  flags = (signOf(lo, hi, size) ? SF : 0) | ((lo | hi) === 0 ? ZF : 0) | (evenParity(lo) ? PF : 0);
}

function signOf(lo: number, hi: number, size: number): boolean {
  return size === 8 ? hi >>> 31 !== 0 : ((lo >>> (size * 8 - 1)) & 1) !== 0;
}

function evenParity(lo: number): boolean {
  const nibbles = (lo ^ (lo >>> 4)) & 0xf;
  return ((0x6996 >>> nibbles) & 1) === 0;
}
