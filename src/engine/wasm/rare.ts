/**
 * Instructions that are executed by TypeScript: those that are rare, that touch the system, or that need more than a line of
 * WebAssembly. Each finds the flags and rip in the block and answers NEXT, JUMP or an ExitKind.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION, EXIT_INTERRUPTED } from '../engine.ts';
import { FORMS, type Form } from '../x86/forms.ts';
import { X87_STATE } from '../x86/x87/state.ts';
import { Descriptors } from './descriptors.ts';
import { handlerOf, RARE } from './handlers.ts';
import { STATE } from './layout.ts';
import type { Processor } from './processor.ts';
import * as code32 from './rare-32.ts';
import { gatherInstruction } from './rare-gather.ts';
import * as segments from './rare-segments.ts';
import { JUMP, NEXT, type RareHost, type RareInstruction } from './rare-status.ts';
import * as strings from './rare-strings.ts';
import { x87Instruction } from './rare-x87.ts';
import { xsaveInstruction } from './rare-xsave.ts';
import { stem } from './semantics/table.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const RSP = 4;
const RBP = 5;
const RDI = 7;
const R11 = 11;
const CF = 1;
const OF = 0x800;
const CONDITIONS = 'o no b ae e ne be a s ns p np l ge le g'.split(' ');
const ZF = 0x40;
const CR4_TSD = 4;
const XCR0_AVX = 6;

const finish = (p: Processor): number => {
  p.advance();
  return NEXT;
};

const raise =
  (vector: number): RareInstruction =>
  (p) =>
    p.raise(vector);

/** An exception that is reported behind the instruction. */
const trap =
  (vector: number): RareInstruction =>
  (p) => {
    p.advance();
    return p.raise(vector);
  };

const INT80 = 0x80;

/** INT n: gates that CPL 3 may use are those of #BP, #OF and 0x80, as Xen has them; what is behind the others the hypervisor knows. */
const softwareInterrupt: RareInstruction = (p, d, host) => {
  const vector = p.instruction.immLo & 0xff;
  if (vector === 3 || vector === 4 || vector === INT80) return trap(vector)(p, d, host);
  return p.raise(13, vector * 8 + 2);
};

/** Of 32-bit code SYSCALL is AMD's, SYSENTER is Intel's, which this CPU is. The hypervisor knows what SYSENTER means. */
const systemCall: RareInstruction = (p, _d, host) => {
  if (p.bits === 32) return p.raise(6);
  p.advance();
  const { u32 } = p;
  const flags = p.flags();
  u32[VCPU.rflags / 4] = flags;
  p.setGpr(RCX, 8, u32[VCPU.rip / 4], u32[VCPU.rip / 4 + 1]);
  p.setGpr(R11, 8, flags, 0);
  return host.systemCall();
};

const tsc = new Uint32Array(2);

const readTsc: RareInstruction = (p, _d, host) => {
  if ((p.u32[VCPU.cr4 / 4] & CR4_TSD) !== 0) return p.raise(13);
  host.readTsc(tsc);
  p.setGpr(RAX, 4, tsc[0], 0);
  p.setGpr(RDX, 4, tsc[1], 0);
  if (stem(FORMS[p.instruction.form]) === 'rdtscp') p.setGpr(RCX, 4, p.u32[VCPU.tscAux / 4], 0);
  return finish(p);
};

const popFlags: RareInstruction = (p) => {
  const size = p.instruction.operandSize;
  if (!p.read(p.gprLo(RSP), p.gprHi(RSP), size)) return EXIT_EXCEPTION;
  segments.setFlags(p, p.lo, size);
  p.addGpr(RSP, 8, size);
  p.advance();
  return segments.startsWatching(p) ? EXIT_INTERRUPTED : NEXT;
};

/**
 * ENTER. Nesting levels push the frame pointers of the frames around. Pushes are stored one by one, as CPUs do it: those before a
 * fault stay, below the stack pointer, which has not moved.
 */
const enter: RareInstruction = (p) => {
  const i = p.instruction;
  const size = i.operandSize;
  const level = i.imm2 & 31;
  const stackLo = p.gprLo(RSP);
  const stackHi = p.gprHi(RSP);
  const baseLo = p.gprLo(RBP);
  const baseHi = p.gprHi(RBP);
  const push = (n: number, lo: number, hi: number): boolean => {
    const at = stackLo - n * size;
    return p.write(at >>> 0, (stackHi - (at < 0 ? 1 : 0)) >>> 0, size, lo, hi);
  };
  const frame = stackLo - size;
  const frameLo = frame >>> 0;
  const frameHi = (stackHi - (frame < 0 ? 1 : 0)) >>> 0;
  if (!push(1, baseLo, baseHi)) return EXIT_EXCEPTION;
  for (let n = 1; n < level; n++) {
    const at = baseLo - n * size;
    if (!p.read(at >>> 0, (baseHi - (at < 0 ? 1 : 0)) >>> 0, size)) return EXIT_EXCEPTION;
    if (!push(n + 1, p.lo, p.hi)) return EXIT_EXCEPTION;
  }
  if (level > 0 && !push(level + 1, frameLo, frameHi)) return EXIT_EXCEPTION;
  const end = stackLo - (level + 1) * size - (i.immLo & 0xffff);
  const endHi = (stackHi - (end < 0 ? 1 : 0)) >>> 0;
  // The place where the next push goes must be there.
  if (p.writing(end >>> 0, endHi, 1) === -1) return EXIT_EXCEPTION;
  p.setGpr(RBP, size, frameLo, frameHi);
  p.setGpr(RSP, 8, end >>> 0, endHi);
  return finish(p);
};

/** MOV between the accumulator and an absolute address. */
function absoluteMove(toMemory: boolean): RareInstruction {
  return (p) => {
    const i = p.instruction;
    const size = i.operandSize;
    p.lo = i.immLo >>> 0;
    p.hi = i.addressSize === 8 ? i.immHi >>> 0 : 0;
    p.addSegment(i.segment);
    if (toMemory) {
      if (!p.write(p.lo, p.hi, size, p.gprLo(RAX), p.gprHi(RAX))) return EXIT_EXCEPTION;
    } else {
      if (!p.read(p.lo, p.hi, size)) return EXIT_EXCEPTION;
      p.setGpr(RAX, size, p.lo, p.hi);
    }
    return finish(p);
  };
}

const translateByte: RareInstruction = (p) => {
  const i = p.instruction;
  const lo = p.gprLo(RBX) + (p.gprLo(RAX) & 0xff);
  p.lo = i.addressSize === 2 ? lo & 0xffff : lo >>> 0;
  p.hi = i.addressSize !== 8 ? 0 : (p.gprHi(RBX) + (lo > 0xffffffff ? 1 : 0)) >>> 0;
  p.addSegment(i.segment);
  if (!p.read(p.lo, p.hi, 1)) return EXIT_EXCEPTION;
  p.setGpr(RAX, 1, p.lo, 0);
  return finish(p);
};

/**
 * BT, BTS, BTR and BTC of memory with a register as bit number and an address of 32 bits (the others: semantics/bits.ts): the
 * distance is added before the address is cut off.
 */
function bitString(change: 'none' | 'set' | 'reset' | 'complement'): RareInstruction {
  return (p, _d, host) => {
    const i = p.instruction;
    const size = i.operandSize;
    const { segment } = i;
    const number = p.gprLo(i.reg);
    const distance =
      size === 8
        ? ((number >>> 6) | (p.gprHi(i.reg) << 26)) << 3
        : size === 4
          ? (number >> 5) << 2
          : ((number << 16) >> 20) << 1;
    i.segment = -1;
    p.effective();
    i.segment = segment;
    p.lo = (p.lo + distance) >>> 0;
    p.hi = 0;
    p.addSegment(segment);
    // One byte changes, which needs the others to stop only if it is not changed in its place.
    const isAlone = i.lock && p.writing(p.lo, p.hi, size) >>> 0 >= p.memory.scratch;
    if (isAlone) host.stopWorld();
    const at = change === 'none' ? p.reading(p.lo, p.hi, size) : p.writing(p.lo, p.hi, size);
    if (at === -1) {
      if (isAlone) host.startWorld();
      return EXIT_EXCEPTION;
    }
    const { u8 } = p.memory.machine;
    const byte = (at >>> 0) + ((number & (8 * size - 1)) >>> 3);
    const mask = 1 << (number & 7);
    // With or without LOCK.
    const old =
      change === 'set'
        ? Atomics.or(u8, byte, mask)
        : change === 'reset'
          ? Atomics.and(u8, byte, ~mask)
          : change === 'complement'
            ? Atomics.xor(u8, byte, mask)
            : u8[byte];
    if (change !== 'none') p.stored(at, size);
    if (isAlone) host.startWorld();
    const flags = p.flags();
    p.setArithmeticFlags((old & mask) !== 0 ? flags | CF : flags & ~CF);
    return finish(p);
  };
}

/**
 * MASKMOVQ and MASKMOVDQU with a segment or an address of 32 bits (the others: semantics/sse-moves.ts). All bytes must be writable;
 * those whose mask has its top bit are written.
 */
function maskedStore(bytes: 8 | 16): RareInstruction {
  return (p) => {
    const i = p.instruction;
    const { u8 } = p.block;
    if (p.u32[VCPU.cr0Ts / 4] !== 0) return p.raise(7);
    if (bytes === 8) {
      if (p.x87.pending()) return p.raise(16);
      p.x87.enterMmx();
    }
    const registers = bytes === 16 ? STATE.xmm : STATE.x87 + X87_STATE.REGISTERS;
    p.lo = i.addressSize === 2 ? p.gprLo(RDI) & 0xffff : p.gprLo(RDI);
    p.hi = i.addressSize === 8 ? p.gprHi(RDI) : 0;
    p.addSegment(i.segment);
    const { lo, hi } = p;
    if (p.writing(lo, hi, bytes) === -1) return EXIT_EXCEPTION;
    for (let n = 0; n < bytes; n++) {
      if ((u8[registers + 16 * i.rm + n] & 0x80) === 0) continue;
      const to = lo + n;
      if (!p.write(to >>> 0, to > 0xffffffff ? (hi + 1) >>> 0 : hi, 1, u8[registers + 16 * i.reg + n], 0))
        return EXIT_EXCEPTION;
    }
    return finish(p);
  };
}

/** With VEX: #UD unless XCR0 has SSE and AVX. */
function withAvx(execute: RareInstruction): RareInstruction {
  return (p, d, host) => ((p.u32[VCPU.xcr0 / 4] & XCR0_AVX) === XCR0_AVX ? execute(p, d, host) : p.raise(6));
}

/** POP to memory at an address with RSP and a segment, or of 32 bits (the others: semantics/moves.ts). */
const popToMemory: RareInstruction = (p) => {
  const size = p.instruction.operandSize;
  const stackLo = p.gprLo(RSP);
  const stackHi = p.gprHi(RSP);
  if (!p.read(stackLo, stackHi, size)) return EXIT_EXCEPTION;
  const valueLo = p.lo;
  const valueHi = p.hi;
  p.addGpr(RSP, 8, size);
  p.effective();
  if (!p.write(p.lo, p.hi, size, valueLo, valueHi)) {
    p.setGpr(RSP, 8, stackLo, stackHi);
    return EXIT_EXCEPTION;
  }
  return finish(p);
};

/** JMP, CALL and Jcc over nearly 2 GiB (the others are the interpreter's own). `code`: the condition's number, -1 = always. */
function relativeBranch(code: number, isCall: boolean): RareInstruction {
  return (p) => {
    const { immLo, operandSize } = p.instruction;
    // 16 bits of 32-bit code.
    if (operandSize === 2) return p.raise(6);
    const flags = p.flags();
    p.advance();
    const lo = p.u32[VCPU.rip / 4];
    const hi = p.u32[VCPU.rip / 4 + 1];
    if (isCall) {
      const stack = p.gprLo(RSP) - operandSize;
      if (!p.write(stack >>> 0, (p.gprHi(RSP) - (stack < 0 ? 1 : 0)) >>> 0, operandSize, lo, hi)) {
        p.retreat();
        return EXIT_EXCEPTION;
      }
      p.addGpr(RSP, 8, -operandSize);
    }
    if (code >= 0 && !holds(code, flags)) return JUMP;
    const to = lo + immLo;
    p.setRip(to >>> 0, p.bits === 32 ? 0 : (hi + (to > 0xffffffff ? 1 : to < 0 ? -1 : 0)) >>> 0);
    return JUMP;
  };
}

/** A condition code 0-15. Source: Intel SDM vol. 1, appendix B. */
function holds(code: number, flags: number): boolean {
  const less = ((flags >> 7) ^ (flags >> 11)) & 1;
  const zero = (flags >> 6) & 1;
  const bits = [
    (flags >> 11) & 1,
    flags & 1,
    zero,
    (flags & 1) | zero,
    (flags >> 7) & 1,
    (flags >> 2) & 1,
    less,
    less | zero,
  ];
  return (bits[code >> 1] ^ (code & 1)) !== 0;
}

/** The selector operand of LAR, LSL, VERR and VERW; -1 = fault. */
function selectorOperand(p: Processor): number {
  const i = p.instruction;
  if (i.mod === 3) return p.gprLo(i.rm) & 0xffff;
  p.effective();
  return p.read(p.lo, p.hi, 2) ? p.lo : -1;
}

const zeroFlag = (p: Processor, set: boolean): number => {
  const flags = p.flags();
  p.setArithmeticFlags(set ? flags | ZF : flags & ~ZF);
  return finish(p);
};

const loadAccessRights: RareInstruction = (p, d) => {
  const selector = selectorOperand(p);
  if (selector < 0) return EXIT_EXCEPTION;
  const rights = d.accessRights(selector);
  if (rights >= 0) p.setGpr(p.instruction.reg, p.instruction.operandSize, rights, 0);
  return zeroFlag(p, rights >= 0);
};

const loadLimit: RareInstruction = (p, d) => {
  const selector = selectorOperand(p);
  if (selector < 0) return EXIT_EXCEPTION;
  const found = d.hasLimit(selector);
  if (found) p.setGpr(p.instruction.reg, p.instruction.operandSize, d.limit(), 0);
  return zeroFlag(p, found);
};

function verify(write: boolean): RareInstruction {
  return (p, d) => {
    const selector = selectorOperand(p);
    if (selector < 0) return EXIT_EXCEPTION;
    return zeroFlag(p, d.verify(selector, write));
  };
}

/** Stores of other vCPUs become visible in order by themselves; this keeps ours before later loads. */
const memoryFence: RareInstruction = (p) => {
  Atomics.add(p.block.i32, VCPU.exitCount >> 2, 0);
  return finish(p);
};

/** CLFLUSH and its like: the address must be readable. */
const flushLine: RareInstruction = (p) => {
  p.effective();
  return p.reading(p.lo, p.hi, 1) === -1 ? EXIT_EXCEPTION : finish(p);
};

const MXCSR_RESERVED = 0xffff0000;

const loadMxcsr: RareInstruction = (p) => {
  p.effective();
  if (!p.read(p.lo, p.hi, 4)) return EXIT_EXCEPTION;
  if ((p.lo & MXCSR_RESERVED) !== 0) return p.raise(13);
  p.u32[STATE.mxcsr >> 2] = p.lo;
  return finish(p);
};

const storeMxcsr: RareInstruction = (p) => {
  p.effective();
  return p.write(p.lo, p.hi, 4, p.u32[STATE.mxcsr >> 2], 0) ? finish(p) : EXIT_EXCEPTION;
};

const BY_MNEMONIC: Readonly<Record<string, RareInstruction>> = {
  movsb: strings.moveString,
  movsw: strings.moveString,
  stosb: strings.storeString,
  stosw: strings.storeString,
  lodsb: strings.loadString,
  lodsw: strings.loadString,
  cmpsb: strings.compareStrings,
  cmpsw: strings.compareStrings,
  scasb: strings.scanString,
  scasw: strings.scanString,
  int: softwareInterrupt,
  int3: trap(3),
  int1: trap(1),
  syscall: systemCall,
  // Xen answers for the CPU, as with CPUID faulting.
  cpuid: raise(13),
  rdtsc: readTsc,
  rdtscp: readTsc,
  maskmovq: maskedStore(8),
  maskmovdqu: maskedStore(16),
  vmaskmovdqu: withAvx(maskedStore(16)),
  popf: popFlags,
  enter,
  xlatb: translateByte,
  xlat: translateByte,
  lar: loadAccessRights,
  lsl: loadLimit,
  verr: verify(false),
  verw: verify(true),
  mfence: memoryFence,
  clflush: flushLine,
  ldmxcsr: loadMxcsr,
  stmxcsr: storeMxcsr,
  sysenter: raise(13),
  iret: segments.interruptReturn,
  loop: code32.countedBranch('loop'),
  loope: code32.countedBranch('loope'),
  loopne: code32.countedBranch('loopne'),
  jcxz: code32.countedBranch('jcxz'),
  daa: code32.decimalAdjust(1),
  das: code32.decimalAdjust(-1),
  aaa: code32.asciiAdjust(1),
  aas: code32.asciiAdjust(-1),
  aam: code32.asciiMultiply,
  aad: code32.asciiDivide,
  salc: code32.carryToAl,
  pusha: code32.pushAll,
  popa: code32.popAll,
  bound: code32.checkBounds,
  arpl: code32.adjustPrivilege,
  into: (p, d, host) => ((p.flags() & OF) !== 0 ? trap(4)(p, d, host) : finish(p)),
  les: (p, d) => segments.loadFarPointer(p, d, segments.SEGMENTS.es),
  lds: (p, d) => segments.loadFarPointer(p, d, segments.SEGMENTS.ds),
  retf: segments.farReturn,
};

/** Forms of a mnemonic that has others too. */
const BY_KEY: Readonly<Record<string, RareInstruction>> = {
  'mov AL,Ob': absoluteMove(false),
  'mov rAX,Ov': absoluteMove(false),
  'mov Ob,AL': absoluteMove(true),
  'mov Ov,rAX': absoluteMove(true),
  'mov Sw,Ew': segments.loadSegment,
  'jmp Jz': relativeBranch(-1, false),
  'call Jz': relativeBranch(-1, true),
  ...Object.fromEntries(CONDITIONS.map((name, code) => [`j${name} Jz`, relativeBranch(code, false)])),
  'bt Ev,Gv': bitString('none'),
  'bts Ev,Gv': bitString('set'),
  'btr Ev,Gv': bitString('reset'),
  'btc Ev,Gv': bitString('complement'),
  'pop Ev': popToMemory,
  ...Object.fromEntries(
    (['es', 'cs', 'ss', 'ds'] as const).flatMap((name) => [
      [`push ${name.toUpperCase()}`, (p: Processor) => segments.pushSegment(p, segments.SEGMENTS[name])],
      [
        `pop ${name.toUpperCase()}`,
        (p: Processor, d: Descriptors) => segments.popSegment(p, d, segments.SEGMENTS[name]),
      ],
    ]),
  ),
  'push FS': (p) => segments.pushSegment(p, segments.SEGMENTS.fs),
  'push GS': (p) => segments.pushSegment(p, segments.SEGMENTS.gs),
  'pop FS': (p, d) => segments.popSegment(p, d, segments.SEGMENTS.fs),
  'pop GS': (p, d) => segments.popSegment(p, d, segments.SEGMENTS.gs),
  'lss Gv,Mp': (p, d) => segments.loadFarPointer(p, d, segments.SEGMENTS.ss),
  'lfs Gv,Mp': (p, d) => segments.loadFarPointer(p, d, segments.SEGMENTS.fs),
  'lgs Gv,Mp': (p, d) => segments.loadFarPointer(p, d, segments.SEGMENTS.gs),
  'jmp Ap': (p, d) => segments.farJumpDirect(p, d, false),
  'call Ap': (p, d) => segments.farJumpDirect(p, d, true),
  'jmp Mp': (p, d) => segments.farJump(p, d, false),
  'call Mp': (p, d) => segments.farJump(p, d, true),
};

function find(form: Form): RareInstruction {
  switch (form.privilege) {
    case 'cpl0':
    case 'iopl':
    case 'pce':
    case 'umip':
      return raise(13);
    case 'ud':
      return raise(6);
    default:
      break;
  }
  if (Object.hasOwn(BY_KEY, form.key)) return BY_KEY[form.key];
  const name = stem(form);
  if (Object.hasOwn(BY_MNEMONIC, name)) return BY_MNEMONIC[name];
  const gather = gatherInstruction(form);
  if (gather !== undefined) return gather;
  const xsave = xsaveInstruction(form);
  if (xsave !== undefined) return xsave;
  const x87 = x87Instruction(form);
  if (x87 !== undefined) return x87;
  // Not shown in CPUID, or not built: the guest sees what a CPU without it does.
  return raise(6);
}

const TABLE: readonly RareInstruction[] = FORMS.map(find);

/** A branch whose target does not fit into a micro-op (encode.ts). */
function isDistant(p: Processor): boolean {
  const i = p.instruction;
  const target = (p.u32[VCPU.rip / 4] & 0xfff) + i.length + i.immLo;
  return FORMS[i.form].operands[0] === 'Jz' && target !== (target | 0);
}

export class Rare {
  readonly #p: Processor;
  readonly #d: Descriptors;
  readonly #host: RareHost;
  /** Executions by form, for statistics and to see what deserves better. */
  readonly counts = new Uint32Array(FORMS.length);

  constructor(processor: Processor, host: RareHost) {
    this.#p = processor;
    this.#d = new Descriptors(processor);
    this.#host = host;
  }

  /** Executes the instruction at rip. */
  execute(): number {
    const p = this.#p;
    // A branch of 32-bit code by a displacement: its sum has 32 bits.
    if (p.bits === 32 && p.u32[VCPU.rip / 4 + 1] !== 0) {
      p.u32[VCPU.rip / 4 + 1] = 0;
      return JUMP;
    }
    if (!p.decode()) return EXIT_EXCEPTION;
    // Another vCPU has put an instruction here that is none of these; the news of it is on its way.
    if (handlerOf(p.instruction) !== RARE && !p.isStepping && !isDistant(p)) return JUMP;
    const { form } = p.instruction;
    this.counts[form]++;
    return TABLE[form](p, this.#d, this.#host);
  }
}
