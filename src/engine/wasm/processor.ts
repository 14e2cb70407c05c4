/**
 * The vCPU as instructions written in TypeScript see it: registers as words, memory through the TLB's slow path, flags, exceptions.
 * What returns -1 or EXIT_EXCEPTION has left the exception in the block. One object a vCPU; nothing here allocates.
 */

import { VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { DECODE_OK, DECODE_SHORT, DECODE_UD, decode, RIP } from '../x86/decoder.ts';
import { Instruction } from '../x86/instruction.ts';
import { X87 } from '../x86/x87/x87.ts';
import { ARITHMETIC_FLAGS, FLAGS_EXPLICIT, FLAGS_SUB } from './flags.ts';
import { type GuestMemory, READ, WRITE } from './guest-memory.ts';
import { STATE } from './layout.ts';

const RIP_W = VCPU.rip / 4;
const RFLAGS_W = VCPU.rflags / 4;
const SEGMENT_BASES: readonly number[] = [-1, -1, -1, -1, VCPU.fsBase / 4, VCPU.gsBase / 4];

export class Processor {
  readonly block: VcpuBlock;
  readonly u32: Uint32Array<SharedArrayBuffer>;
  readonly memory: GuestMemory;
  readonly instruction = new Instruction();
  /** Size of the code that runs. */
  bits: 32 | 64 = 64;
  readonly x87: X87;
  readonly #bytes = new Uint8Array(16);
  /** The bytes of `instruction`: from codeAt on in code. */
  code: Uint8Array = this.#bytes;
  codeAt = 0;
  readonly #rflags: () => number;
  /** TF is set: a repeated string instruction stops after one element and sets `iterated`. */
  isStepping = false;
  iterated = false;
  /** Results of `effective` and of 64-bit reads. */
  lo = 0;
  hi = 0;

  /** `rflags`: the six arithmetic flags, computed by the interpreter's module. */
  constructor(memory: GuestMemory, rflags: () => number) {
    this.memory = memory;
    this.block = memory.block;
    this.u32 = memory.block.u32;
    this.#rflags = rflags;
    this.x87 = new X87(this.u32, STATE.x87);
  }

  // --- flags

  /** All of RFLAGS. */
  flags(): number {
    return (this.u32[RFLAGS_W] & ~ARITHMETIC_FLAGS) | (this.#rflags() & ARITHMETIC_FLAGS) | 2;
  }

  /** The arithmetic flags become those of `bits`. */
  setArithmeticFlags(bits: number): void {
    const u32 = this.u32;
    u32[STATE.flagsKind >> 2] = FLAGS_EXPLICIT;
    u32[STATE.flagsA >> 2] = bits & ARITHMETIC_FLAGS;
    u32[(STATE.flagsA >> 2) + 1] = 0;
    u32[STATE.flagsB >> 2] = 0;
    u32[(STATE.flagsB >> 2) + 1] = 0;
  }

  /** The flags of comparing two values of `size` bytes, each as two words. */
  compare(size: number, aLo: number, aHi: number, bLo: number, bHi: number): void {
    const u32 = this.u32;
    const a = STATE.flagsA >> 2;
    const b = STATE.flagsB >> 2;
    if (size === 8) {
      u32[a] = aLo;
      u32[a + 1] = aHi;
      u32[b] = bLo;
      u32[b + 1] = bHi;
    } else {
      const shift = 32 - 8 * size;
      u32[a] = 0;
      u32[a + 1] = aLo << shift;
      u32[b] = 0;
      u32[b + 1] = bLo << shift;
    }
    const log2 = size === 1 ? 0 : size === 2 ? 1 : size === 4 ? 2 : 3;
    u32[STATE.flagsKind >> 2] = FLAGS_SUB | (log2 << 2);
  }

  // --- exceptions

  raise(vector: number, error = 0): number {
    this.memory.fault(vector, error);
    return EXIT_EXCEPTION;
  }

  // --- code

  /** Decodes what rip points at. False with a fault in the block. */
  decode(): boolean {
    const lo = this.u32[RIP_W];
    const hi = this.u32[RIP_W + 1];
    const { memory, instruction } = this;
    const frame = memory.codeFrame(lo, hi);
    if (frame < 0) return false;
    const page = frame * 4096;
    const u8 = memory.machine.u8;
    const offset = lo & 0xfff;
    let status = decode(u8, page + offset, page + 4096, this.bits, instruction);
    this.code = u8;
    this.codeAt = page + offset;
    if (status === DECODE_SHORT) {
      const nextLo = ((lo & ~0xfff) + 4096) >>> 0;
      const nextFrame = memory.codeFrame(nextLo, nextLo === 0 ? (hi + 1) >>> 0 : hi);
      if (nextFrame < 0) return false;
      const next = nextFrame * 4096;
      const first = 4096 - offset;
      for (let i = 0; i < 15; i++) this.#bytes[i] = i < first ? u8[page + offset + i] : u8[next + i - first];
      status = decode(this.#bytes, 0, 15, this.bits, instruction);
      this.code = this.#bytes;
      this.codeAt = 0;
    }
    if (status === DECODE_OK) return true;
    memory.fault(status === DECODE_UD ? 6 : 13, 0);
    return false;
  }

  /** rip = after the decoded instruction. */
  advance(): void {
    const u32 = this.u32;
    const lo = u32[RIP_W] + this.instruction.length;
    u32[RIP_W] = lo;
    if (lo > 0xffffffff) u32[RIP_W + 1]++;
  }

  /** rip = at the decoded instruction again. */
  retreat(): void {
    const u32 = this.u32;
    const lo = u32[RIP_W] - this.instruction.length;
    u32[RIP_W] = lo;
    if (lo < 0) u32[RIP_W + 1]--;
  }

  setRip(lo: number, hi: number): void {
    this.u32[RIP_W] = lo;
    this.u32[RIP_W + 1] = hi;
  }

  // --- registers

  /** Low word of a general register. */
  gprLo(number: number): number {
    return this.u32[VCPU.gpr / 4 + number * 2];
  }

  gprHi(number: number): number {
    return this.u32[VCPU.gpr / 4 + number * 2 + 1];
  }

  /** Writes the low `size` bytes; 4 clears the upper half. */
  setGpr(number: number, size: number, lo: number, hi: number): void {
    const at = VCPU.gpr / 4 + number * 2;
    const u32 = this.u32;
    if (size === 8) {
      u32[at] = lo;
      u32[at + 1] = hi;
    } else if (size === 4) {
      u32[at] = lo;
      u32[at + 1] = 0;
    } else if (size === 2) u32[at] = (u32[at] & ~0xffff) | (lo & 0xffff);
    else u32[at] = (u32[at] & ~0xff) | (lo & 0xff);
  }

  /** Adds a signed number to a register of `size` 2, 4 (zero-extends) or 8. */
  addGpr(number: number, size: number, value: number): void {
    const at = VCPU.gpr / 4 + number * 2;
    const u32 = this.u32;
    const sum = u32[at] + value;
    if (size === 2) {
      u32[at] = (u32[at] & ~0xffff) | (sum & 0xffff);
      return;
    }
    u32[at] = sum;
    if (size === 4) u32[at + 1] = 0;
    else if (sum > 0xffffffff) u32[at + 1]++;
    else if (sum < 0) u32[at + 1]--;
  }

  // --- addresses: results in lo and hi

  /** The memory operand's address. */
  effective(): void {
    this.effectiveOffset();
    this.addSegment(this.instruction.segment);
  }

  /** The same without the base of its segment. */
  effectiveOffset(): void {
    const i = this.instruction;
    let lo = i.displacement >>> 0;
    let hi = i.displacement < 0 ? -1 : 0;
    if (i.base === RIP) {
      const next = this.u32[RIP_W] + i.length;
      lo += next >>> 0;
      hi += this.u32[RIP_W + 1] + (next > 0xffffffff ? 1 : 0);
    } else if (i.base >= 0) {
      lo += this.gprLo(i.base);
      hi += this.gprHi(i.base);
    }
    if (lo > 0xffffffff) hi++;
    lo >>>= 0;
    if (i.index >= 0) {
      const indexLo = this.gprLo(i.index);
      const indexHi = this.gprHi(i.index);
      const scaledLo = i.scale === 0 ? indexLo : (indexLo << i.scale) >>> 0;
      const scaledHi = i.scale === 0 ? indexHi : (indexHi << i.scale) | (indexLo >>> (32 - i.scale));
      lo += scaledLo;
      hi += scaledHi;
      if (lo > 0xffffffff) hi++;
      lo >>>= 0;
    }
    if (i.addressSize === 4) hi = 0;
    else if (i.addressSize === 2) {
      lo &= 0xffff;
      hi = 0;
    }
    this.lo = lo;
    this.hi = hi >>> 0;
  }

  /** Adds an FS or GS base to lo and hi. The other segments are flat, in 32-bit code too (descriptors.ts). */
  addSegment(segment: number): void {
    if (segment < 4) return;
    const at = SEGMENT_BASES[segment];
    const lo = this.lo + this.u32[at];
    this.hi = (this.hi + this.u32[at + 1] + (lo > 0xffffffff ? 1 : 0)) >>> 0;
    this.lo = lo >>> 0;
    if (this.bits === 32) this.hi = 0;
  }

  // --- memory: `at` is an offset of memory 0, -1 = fault

  reading(lo: number, hi: number, size: number): number {
    return this.memory.access(lo, hi, size | (READ << 8));
  }

  writing(lo: number, hi: number, size: number): number {
    return this.memory.access(lo, hi, size | (WRITE << 8));
  }

  /** After a store at an offset from `writing`. */
  stored(at: number, size: number): void {
    const offset = at >>> 0;
    if (offset >= this.memory.scratch) this.memory.commit(at, size);
  }

  /** Up to 4 bytes at an offset of memory 0. */
  load(at: number, size: number): number {
    const u8 = this.memory.machine.u8;
    const o = at >>> 0;
    if (size === 1) return u8[o];
    if (size === 2) return u8[o] | (u8[o + 1] << 8);
    return (u8[o] | (u8[o + 1] << 8) | (u8[o + 2] << 16) | (u8[o + 3] << 24)) >>> 0;
  }

  /** Stores up to 4 bytes, without `stored`. */
  store(at: number, size: number, value: number): void {
    const u8 = this.memory.machine.u8;
    const o = at >>> 0;
    u8[o] = value;
    if (size === 1) return;
    u8[o + 1] = value >>> 8;
    if (size === 2) return;
    u8[o + 2] = value >>> 16;
    u8[o + 3] = value >>> 24;
  }

  /** Reads up to 8 bytes at a guest address into lo and hi, zero-extended. False: fault. */
  read(lo: number, hi: number, size: number): boolean {
    const at = this.reading(lo, hi, size);
    if (at === -1) return false;
    this.lo = this.load(at, Math.min(size, 4));
    this.hi = size === 8 ? this.load((at >>> 0) + 4, 4) : 0;
    return true;
  }

  /** Writes up to 8 bytes at a guest address. False: fault. */
  write(lo: number, hi: number, size: number, valueLo: number, valueHi: number): boolean {
    const at = this.writing(lo, hi, size);
    if (at === -1) return false;
    this.store(at, Math.min(size, 4), valueLo);
    if (size === 8) this.store((at >>> 0) + 4, 4, valueHi);
    this.stored(at, size);
    return true;
  }
}
