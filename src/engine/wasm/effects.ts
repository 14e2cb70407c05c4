/**
 * What an instruction does to registers and flags, seen by running its meaning: for the analysis of regions (region-flow.ts).
 *
 * The meaning is run once for a variant, against a `Cpu` that only takes notes. Which registers the operands are stands in the
 * instruction; `effectsOf` puts them in. Registers are bits of a mask: 0-15 the general ones, 16-31 XMM.
 */

import type { Instruction } from '../x86/instruction.ts';
import type { Access, RegisterField } from './cpu.ts';
import {
  FLAGS_ADD,
  FLAGS_EXPLICIT,
  FLAGS_RESULT,
  FLAGS_STEP,
  FLAGS_SUB,
  type Flags,
  type IntegerSize,
} from './flags.ts';
import { FunctionBuilder } from './function-builder.ts';
import type { Variant } from './handlers.ts';
import { InterpreterCpu, type Runtime } from './interpreter-cpu.ts';
import { I32, I64, i32, i64, type Node, V128 } from './nodes.ts';
import { ANY_KIND, knownKind } from './region-flags.ts';
import { stem } from './semantics/table.ts';

/** An access of memory that takes place whenever its instruction does not leave, at an address of registers that it has not written yet. */
export interface NotedAccess {
  /** General register that the address is the sum of, with a displacement; -1: the memory operand. */
  readonly register: number;
  readonly displacement: number;
  readonly size: number;
  readonly access: Access;
}

export interface Effects {
  /** Masks. In `kills`: all of it is written, in any case. */
  readonly reads: number;
  readonly writes: number;
  readonly kills: number;
  /** The upper half of a general register is zero afterwards; or may be anything. */
  readonly clears: number;
  readonly spoils: number;
  /** It may leave the region at itself: a fault, or what the interpreter must do. */
  readonly mayLeave: boolean;
  /** It may have written some of `writes` by then. */
  readonly leavesLate: boolean;
  /** Its result depends on the flags; only the flags that it writes do. */
  readonly readsFlags: boolean;
  readonly mergesFlags: boolean;
  readonly writesFlags: boolean;
  /** All six are written, in any case; their `knownKind` then, or ANY_KIND. */
  readonly killsFlags: boolean;
  readonly flagsKind: number;
  /** In their order; others may take place too. */
  readonly accesses: readonly NotedAccess[];
}

/** A note about a register operand. */
interface Note {
  readonly field: RegisterField;
  readonly vector: boolean;
  readonly size: number;
  readonly isWrite: boolean;
  readonly isCertain: boolean;
}

/** By numbers of registers, and by operands. */
interface Notes extends Effects {
  readonly operands: readonly Note[];
  readonly usesAddress: boolean;
}

const isGeneralWrite = ({ isWrite, vector }: Note): boolean => isWrite && !vector;

const NO_RUNTIME: Runtime = {
  miss: 0,
  commit: 0,
  divide: 0,
  vector: 0,
  stop: 0,
  start: 0,
  computeFlags: 0,
  scratch: 0,
};

class NotedFlags implements Flags {
  readonly isDead = false;
  readonly #f: FunctionBuilder;
  reads = false;
  writes = false;
  kills = false;
  kind = ANY_KIND;

  constructor(f: FunctionBuilder) {
    this.#f = f;
  }

  #write(kind: number, size: IntegerSize): void {
    this.writes = true;
    const isCertain = this.#f.depth === 0;
    if (isCertain) this.kills = true;
    this.kind = isCertain ? knownKind(kind, size) : ANY_KIND;
  }

  sub(size: IntegerSize): void {
    this.#write(FLAGS_SUB, size);
  }

  add(size: IntegerSize): void {
    this.#write(FLAGS_ADD, size);
  }

  /** Asks for CF, which stays. */
  step(subtract: boolean, size: IntegerSize): void {
    this.reads = true;
    this.#write((subtract ? FLAGS_SUB : FLAGS_ADD) | FLAGS_STEP, size);
  }

  result(size: IntegerSize): void {
    this.#write(FLAGS_RESULT, size);
  }

  explicit(): void {
    this.#write(FLAGS_EXPLICIT, 1);
  }

  bits(): Node {
    this.reads = true;
    return this.#f.temporary(I32);
  }

  carry(): Node {
    return this.bits();
  }

  condition(): Node {
    return this.bits();
  }
}

class NotingCpu extends InterpreterCpu {
  readonly notes: Note[] = [];
  readonly noted: NotedFlags;
  readonly #immediate: Node | null;
  reads = 0;
  writes = 0;
  kills = 0;
  clears = 0;
  spoils = 0;
  readonly accesses: NotedAccess[] = [];
  usesAddress = false;
  #operand: Node | null = null;
  #based: { readonly address: Node; readonly register: number; readonly displacement: number } | null = null;
  mayLeave = false;
  leavesLate = false;

  constructor(f: FunctionBuilder, immediate: Node | null) {
    const flags = new NotedFlags(f);
    const unused = i32.const(0);
    const flagLocals = { kind: unused, a: unused, b: unused, compute: () => unused };
    super(
      { f, flagLocals, pc: unused, tlb: unused, leave: () => undefined, pause: () => undefined },
      NO_RUNTIME,
      flags,
    );
    this.noted = flags;
    this.#immediate = immediate;
  }

  #leave(): void {
    this.mayLeave = true;
    if (this.writes !== 0 || this.notes.some((note) => note.isWrite)) this.leavesLate = true;
  }

  #note(field: RegisterField, vector: boolean, size: number, isWrite: boolean): void {
    this.notes.push({ field, vector, size, isWrite, isCertain: this.f.depth === 0 });
  }

  protected override readRegister(field: RegisterField, size: IntegerSize): Node {
    this.#note(field, false, size, false);
    return this.f.temporary(I64);
  }

  protected override writeRegister(field: RegisterField, size: IntegerSize): void {
    this.#note(field, false, size, true);
  }

  override gpr(number: number): Node {
    this.reads |= 1 << number;
    return this.f.temporary(I64);
  }

  override setGpr(number: number, size: IntegerSize): void {
    const bit = 1 << number;
    this.writes |= bit;
    if (size < 4) this.reads |= bit;
    else if (this.f.depth === 0) this.kills |= bit;
    if (size === 8) this.spoils |= bit;
    else if (size === 4 && this.f.depth === 0) this.clears |= bit;
  }

  override immediate(): Node {
    return this.#immediate ?? this.f.temporary(I64);
  }

  override address(): Node {
    this.usesAddress = true;
    this.#operand = this.f.temporary(I64);
    return this.#operand;
  }

  override based(register: number, displacement: number): Node {
    const address = this.gpr(register);
    this.#based = { address, register, displacement };
    return address;
  }

  override translate(address: Node, size: number, access: Access): Node {
    const isFirst = this.f.depth === 0 && (this.writes & 0xffff) === 0 && !this.notes.some(isGeneralWrite);
    this.#leave();
    if (isFirst && address === this.#operand) this.accesses.push({ register: -1, displacement: 0, size, access });
    else if (isFirst && address === this.#based?.address) {
      const { register, displacement } = this.#based;
      this.accesses.push({ register, displacement, size, access });
    }
    return this.f.temporary(I32);
  }

  override readVector(index: number): Node {
    const operand = this.operands[index];
    if (operand.kind === 'memory') this.translate(this.address(), operand.size, 'read');
    else if (operand.kind === 'xmm') this.#note(operand.field, true, 16, false);
    return this.f.temporary(V128);
  }

  override writeVector(index: number): void {
    const operand = this.operands[index];
    if (operand.kind === 'memory') this.translate(this.address(), operand.size, 'write');
    else if (operand.kind === 'xmm') this.#note(operand.field, true, 16, true);
  }

  override xmm(number: number): Node {
    this.reads |= 1 << (16 + number);
    return this.f.temporary(V128);
  }

  override setXmm(number: number): void {
    const bit = 1 << (16 + number);
    this.writes |= bit;
    if (this.f.depth === 0) this.kills |= bit;
  }

  override requireVectors(): void {
    this.#leave();
  }

  override exactVector(): Node {
    this.#leave();
    return this.f.temporary(V128);
  }

  override exactVectors(_operation: Node, ...operands: readonly (readonly Node[])[]): readonly Node[] {
    this.#leave();
    return operands[0].map(() => this.f.temporary(V128));
  }

  override requireAligned(): void {
    this.#leave();
  }

  override wideDivide(): void {
    this.#leave();
  }

  override repeated(): Node {
    return this.f.temporary(I32);
  }

  override quickly(): Node {
    return this.f.temporary(I32);
  }

  override pause(): void {
    this.#leave();
  }

  override raise(): void {
    this.#leave();
  }
}

function note(variant: Variant, immediate: Node | null): Notes {
  const f = new FunctionBuilder([]);
  const cpu = new NotingCpu(f, immediate);
  cpu.begin(variant.operands, variant.operandSize, variant.locked, variant.wide);
  variant.meaning(cpu);
  const { noted } = cpu;
  // What the opcode map says, and not the meaning: a rotation asks for the flags that it keeps.
  const depends = variant.form.flagsRead !== 0;
  return {
    reads: cpu.reads,
    writes: cpu.writes,
    kills: cpu.kills,
    clears: cpu.clears,
    spoils: cpu.spoils,
    operands: cpu.notes,
    usesAddress: cpu.usesAddress,
    mayLeave: cpu.mayLeave,
    leavesLate: cpu.leavesLate,
    readsFlags: noted.reads && depends,
    mergesFlags: noted.reads && !depends,
    writesFlags: noted.writes,
    killsFlags: noted.kills,
    flagsKind: noted.kind,
    accesses: cpu.accesses,
  };
}

const known = new Map<Variant, Notes>();
/** Of shifts by an immediate: a count of zero changes nothing, others do in any case. */
const knownByCount = new Map<Variant, Notes[]>();
const SHIFTS = new Set(['shl', 'sal', 'shr', 'sar', 'rol', 'ror', 'rcl', 'rcr', 'shld', 'shrd']);

function notesOf(variant: Variant, instruction: Instruction): Notes {
  const notes = known.get(variant);
  if (notes !== undefined) return notes;
  let counts = knownByCount.get(variant);
  if (counts === undefined) {
    if (!SHIFTS.has(stem(variant.form)) || !variant.operands.some(({ kind }) => kind === 'immediate')) {
      const fresh = note(variant, null);
      known.set(variant, fresh);
      return fresh;
    }
    counts = [];
    knownByCount.set(variant, counts);
  }
  const count = instruction.immLo & 0xff;
  counts[count] ??= note(variant, i64.small(count));
  return counts[count];
}

/** The register that a field of an instruction names. */
export function registerNumber(i: Instruction, field: RegisterField): number {
  return field === 0 ? i.reg : field === 1 ? i.rm : field === 2 ? i.vvvv : i.immLo >> 4;
}

/** `knownKind` of the flags behind an instruction, from that before it. */
export function flagsAfter(variant: Variant, instruction: Instruction, before: number): number {
  const { writesFlags, flagsKind } = notesOf(variant, instruction);
  return writesFlags ? flagsKind : before;
}

/** Mask of base and index. */
export function addressRegisters(i: Instruction): number {
  let mask = 0;
  if (i.base >= 0 && i.base < 16) mask |= 1 << i.base;
  if (i.index >= 0) mask |= 1 << i.index;
  return mask;
}

export function effectsOf(variant: Variant, instruction: Instruction): Effects {
  const notes = notesOf(variant, instruction);
  let { reads, writes, kills, clears, spoils } = notes;
  if (notes.usesAddress) reads |= addressRegisters(instruction);
  for (const { field, vector, size, isWrite, isCertain } of notes.operands) {
    const number = registerNumber(instruction, field);
    const isHigh = !vector && size === 1 && instruction.rex === 0 && number >= 4;
    const bit = 1 << (vector ? 16 + number : isHigh ? number - 4 : number);
    if (!isWrite) {
      reads |= bit;
      continue;
    }
    writes |= bit;
    if (size < 4) reads |= bit;
    else if (isCertain) kills |= bit;
    if (size === 8) spoils |= bit;
    else if (size === 4 && isCertain) clears |= bit;
  }
  return { ...notes, reads, writes, kills, clears: clears & ~spoils, spoils };
}
