/** The `Cpu` of translated regions: registers are locals, operands and addresses are known when the code is written. */

import { VCPU } from '../../machine/vcpu-block.ts';
import { RIP } from '../x86/decoder.ts';
import { FORMS } from '../x86/forms.ts';
import type { Instruction } from '../x86/instruction.ts';
import type { Access, RegisterField } from './cpu.ts';
import { registerNumber } from './effects.ts';
import { SELECTORS } from './encode.ts';
import type { IntegerSize } from './flags.ts';
import { FunctionBuilder } from './function-builder.ts';
import type { Variant } from './handlers.ts';
import { type Frame, InterpreterCpu, type Runtime, XCR0_SSE_AVX } from './interpreter-cpu.ts';
import { CPU, TLB_ADDEND, TLB_MASK, TLB_READ, TLB_WRITE } from './layout.ts';
import {
  CONST,
  call,
  I32,
  I64,
  i32,
  i64,
  local,
  MEMORY,
  type Node,
  OPERATION,
  type ValueType,
  within,
} from './nodes.ts';
import type { RegionFlags } from './region-flags.ts';
import type { InstructionFlow } from './region-flow.ts';
import type { Group, GroupedAccess } from './region-groups.ts';
import { stem } from './semantics/table.ts';

const zeroAddress = i32.const(0);

const isShared = (group: Group | null): boolean => group !== null && group.members > 1 && !group.isApart;
const LOAD_32U = i64.load32U(0, zeroAddress, 0).opcode;

/** Operations whose low word depends on the low words alone. */
const BY_LOW_WORDS = new Map<number, (a: Node, b: Node) => Node>(
  (['add', 'sub', 'mul', 'and', 'or', 'xor'] as const).map((name) => [
    i64[name](i64.load(0, zeroAddress, 0), i64.load(0, zeroAddress, 0)).opcode,
    i32[name],
  ]),
);

/** The low word of an i64 as i32, computed in 32 bits as far as that goes. */
function lowWord(value: Node): Node {
  if (value.kind === OPERATION) {
    const operation = BY_LOW_WORDS.get(value.opcode);
    if (operation !== undefined) return operation(lowWord(value.operands[0]), lowWord(value.operands[1]));
  }
  if (value.kind === MEMORY && value.opcode === LOAD_32U) return i32.load(value.hi >> 8, value.operands[0], value.lo);
  return i32.wrap(value);
}

/** Bytes less one, and where in a TLB entry the tag is. */
const requestOf = (size: number, isWrite: boolean): number => (size - 1) | ((isWrite ? TLB_WRITE : TLB_READ) << 12);

/** An address's TLB entry, as an offset in the TLB. */
const entryOf = (address: Node): Node => i32.and(i32.wrap(i64.shrU(address, i64.small(7))), i32.const(TLB_MASK));

const pageOf = (address: Node): Node => i64.and(address, i64.small(-4096));

/** Index of `lookUpSpan`, and the region's slot. */
export interface Span {
  readonly index: number;
  readonly slot: number;
}

/** Parameters of `lookUpSpan`: the first byte's address, what is asked for, the region's slot, and the position of the head. */
export const SPAN_PARAMETERS: readonly ValueType[] = [I64, I32, I32, I32];

/**
 * Of a group whose bytes were not found in one page: their offset in memory 0 if the two pages that they lie in are neighbours there
 * too, else 0. `apart` (slot, position) hears of those that are not.
 */
export function lookUpSpan(tlb: number, apart: number): FunctionBuilder {
  const f = new FunctionBuilder(SPAN_PARAMETERS);
  const low = local(0, I64);
  const asked = local(1, I32);
  const last = f.let(i64.add(low, i64.extendI32U(i32.and(asked, i32.const(0xfff)))));
  const first = f.let(entryOf(low));
  const second = f.let(entryOf(last));
  f.if(i32.eq(first, second), () => f.return(i32.const(0)));
  const tagAt = i32.shrU(asked, i32.const(12));
  const isKnown = (address: Node, entry: Node): Node =>
    i64.eq(i64.load(CPU, i32.add(entry, tagAt), tlb), pageOf(address));
  const addend = (entry: Node): Node => i32.load(CPU, entry, tlb + TLB_ADDEND);
  const areNeighbours = i32.eq(addend(first), addend(second));
  f.if(i32.and(i32.and(isKnown(low, first), isKnown(last, second)), areNeighbours), () =>
    f.return(i32.add(i32.wrap(low), addend(first))),
  );
  f.callVoid(apart, local(2, I32), local(3, I32));
  f.return(i32.const(0));
  return f;
}

export class RegionCpu extends InterpreterCpu {
  /** Locals of the registers (bits of effects.ts) that the region uses. */
  readonly #registers: readonly (Node | null)[];
  /** Local: address of the entry's page. */
  readonly #base: Node;
  readonly #tlb: number;
  readonly #span: Span;
  /** Addresses of the instruction's accesses that may be in groups: not kept, but computed where they are needed. */
  #operand: Node | null = null;
  #basedOn: Node | null = null;
  /** Accesses of the instruction that have been written. */
  #accessed = 0;
  /** Locals of groups that lie in one block: of those before, and of this one. */
  readonly #freePlaces: Node[] = [];
  readonly #takenPlaces: Node[] = [];
  #instruction!: Instruction;
  #flow!: InstructionFlow;
  #position = 0;
  #isLea = false;
  /** CR0.TS is clear. */
  #hasVectors = false;

  constructor(
    frame: Frame,
    runtime: Runtime,
    flags: RegionFlags,
    registers: readonly (Node | null)[],
    base: Node,
    span: Span,
  ) {
    super(frame, runtime, flags);
    this.#registers = registers;
    this.#base = base;
    this.#span = span;
    if (frame.tlb.kind !== CONST) throw new Error("bug: a region's TLB is known");
    this.#tlb = frame.tlb.lo;
  }

  /** Sets up for an instruction at a position from the start of the entry's page. */
  at(instruction: Instruction, position: number, variant: Variant | null, flow: InstructionFlow): void {
    this.#instruction = instruction;
    this.#flow = flow;
    this.#operand = null;
    this.#basedOn = null;
    this.#accessed = 0;
    this.#position = position;
    this.#isLea = variant !== null && stem(variant.form) === 'lea';
    if (variant !== null) this.begin(variant.operands, variant.operandSize, variant.locked, variant.wide);
  }

  /** Number and place in the register of a general-register operand. */
  #general(field: RegisterField, size: IntegerSize): { readonly number: number; readonly high: boolean } {
    const number = this.#number(field);
    const high = size === 1 && this.#instruction.rex === 0 && number >= 4;
    return { number: high ? number - 4 : number, high };
  }

  #number(field: RegisterField): number {
    return registerNumber(this.#instruction, field);
  }

  protected override field(field: RegisterField): Node {
    return i32.const(this.#number(field) << 4);
  }

  protected override selector(): Node {
    return i32.const(SELECTORS[this.#instruction.reg]);
  }

  override immediate(): Node {
    return i64.const(
      this.#instruction.immLo,
      this.#wideImmediate() ? this.#instruction.immHi : this.#instruction.immLo >> 31,
    );
  }

  /** The interpreter keeps all but MOV's 64-bit immediate as 32 bits, sign-extended. */
  #wideImmediate(): boolean {
    return this.instructionSize === 8 && this.#instruction.immHi !== this.#instruction.immLo >> 31;
  }

  // --- registers

  #readable(register: number): Node {
    return this.#local(register, this.#flow.effects.reads, 'reads');
  }

  #writable(register: number): Node {
    return this.#local(register, this.#flow.effects.writes, 'writes');
  }

  #local(register: number, mask: number, does: string): Node {
    const local = this.#registers[register];
    if (local === null || (mask & (1 << register)) === 0)
      throw new Error(`bug: effects.ts does not know that ${FORMS[this.#instruction.form].key} ${does} ${register}`);
    return local;
  }

  protected override readRegister(field: RegisterField, size: IntegerSize): Node {
    const { number, high } = this.#general(field, size);
    if (!high) return this.gpr(number, size);
    return i64.and(i64.shrU(this.#readable(number), i64.small(8)), i64.small(0xff));
  }

  protected override writeRegister(field: RegisterField, size: IntegerSize, value: Node): void {
    const { number, high } = this.#general(field, size);
    if (!high) {
      this.setGpr(number, size, value);
      return;
    }
    const local = this.#writable(number);
    const rest = i64.and(local, i64.small(~0xff00));
    this.f.set(local, i64.or(rest, i64.shl(i64.and(value, i64.small(0xff)), i64.small(8))));
  }

  override gpr(number: number, size: IntegerSize): Node {
    const local = this.#readable(number);
    switch (size) {
      case 1:
        return i64.and(local, i64.small(0xff));
      case 2:
        return i64.and(local, i64.small(0xffff));
      case 4:
        return (this.#flow.clear & (1 << number)) !== 0 ? local : i64.extendI32U(i32.wrap(local));
      default:
        return local;
    }
  }

  override setGpr(number: number, size: IntegerSize, value: Node): void {
    const local = this.#writable(number);
    if (size === 8) this.f.set(local, value);
    else if (size === 4) this.f.set(local, i64.extendI32U(lowWord(value)));
    else {
      const mask = size === 2 ? 0xffff : 0xff;
      this.f.set(local, i64.or(i64.and(local, i64.small(~mask)), i64.and(value, i64.small(mask))));
    }
  }

  override xmm(number: number): Node {
    return this.#readable(16 + number);
  }

  override setXmm(number: number, value: Node): void {
    this.f.set(this.#writable(16 + number), value);
  }

  override readVector(index: number): Node {
    const operand = this.operands[index];
    if (operand.kind !== 'xmm') return super.readVector(index);
    return this.xmm(this.#number(operand.field));
  }

  override writeVector(index: number, value: Node): void {
    const operand = this.operands[index];
    if (operand.kind !== 'xmm') super.writeVector(index, value);
    else this.setXmm(this.#number(operand.field), value);
  }

  // --- memory

  override address(_index: number): Node {
    const i = this.#instruction;
    const displacement = i64.small(i.displacement);
    let sum: Node;
    if (i.base === RIP) {
      const next = this.#position + i.length;
      const low = next + i.displacement;
      sum = i64.add(this.#base, low === (low | 0) ? i64.small(low) : i64.add(i64.small(next), displacement));
    } else if (i.base >= 0) {
      sum = this.gpr(i.base, 8);
      if (i.displacement !== 0) sum = i64.add(sum, displacement);
    } else sum = displacement;
    if (i.index >= 0) {
      const index = this.gpr(i.index, 8);
      sum = i64.add(sum, i.scale === 0 ? index : i64.shl(index, i64.small(i.scale)));
    }
    if (i.addressSize === 4) sum = i64.and(sum, i64.const(-1, 0));
    if (i.segment >= 4 && !this.#isLea)
      sum = i64.add(sum, i64.load(CPU, zeroAddress, i.segment === 4 ? VCPU.fsBase : VCPU.gsBase));
    if (!this.#flow.accesses.some(({ noted, group }) => noted.register < 0 && isShared(group))) return this.f.let(sum);
    this.#operand = { ...sum };
    return this.#operand;
  }

  override based(register: number, displacement: number): Node {
    const { accesses } = this.#flow;
    const isGrouped = ({ noted, group }: GroupedAccess): boolean =>
      noted.register === register && noted.displacement === displacement && isShared(group);
    if (!accesses.some(isGrouped)) return super.based(register, displacement);
    this.#basedOn = { ...i64.add(this.gpr(register, 8), i64.small(displacement)) };
    return this.#basedOn;
  }

  /**
   * A miss is the interpreter's: a branch to the region's end instead of a call keeps the registers where they are. Measured on
   * copies and sums: 1.25 times as fast as a call out of each access.
   */
  override translate(address: Node, size: number, access: Access): Node {
    const grouped = this.#grouped(address, size, access);
    if (grouped !== null) return this.#together(address, grouped, grouped.group as Group);
    const { f } = this;
    const { entry, tag } = this.#entry(address, access);
    const last = size === 1 ? address : i64.add(address, i64.small(size - 1));
    f.seldom(i64.ne(tag, i64.and(last, i64.small(-4096))), () => this.frame.leave());
    return f.let(i32.add(i32.wrap(address), i32.load(CPU, entry, this.#tlb + TLB_ADDEND)));
  }

  /** The next access of the instruction that is in a group, if it is this one. */
  #grouped(address: Node, size: number, access: Access): GroupedAccess | null {
    const isOperand = address === this.#operand;
    if (!isOperand && address !== this.#basedOn) return null;
    const { accesses } = this.#flow;
    while (this.#accessed < accesses.length) {
      const next = accesses[this.#accessed++];
      const { noted, group } = next;
      if (noted.size !== size || noted.access !== access || noted.register < 0 !== isOperand) continue;
      return isShared(group) ? next : null;
    }
    return null;
  }

  /** A local for the place of a group: another one's, from a block that is done, or a new one. */
  #newPlace({ isInBlock }: Group): Node {
    const place = (isInBlock ? this.#freePlaces.pop() : undefined) ?? this.f.newLocal(I32);
    if (isInBlock) this.#takenPlaces.push(place);
    return place;
  }

  /** An access of a group: the first looks up the page for all. */
  #together(address: Node, { displacement, isHead }: GroupedAccess, group: Group): Node {
    const { f } = this;
    if (isHead) {
      const place = this.#newPlace(group);
      group.at = place;
      const low = f.let(i64.add(address, i64.small(group.low - displacement)));
      const { entry, tag } = this.#entry(low, group.isWrite ? 'write' : 'read');
      const bytes = group.high - group.low;
      f.set(place, i32.add(i32.wrap(low), i32.load(CPU, entry, this.#tlb + TLB_ADDEND)));
      f.seldom(i64.ne(tag, pageOf(i64.add(low, i64.small(bytes - 1)))), () => {
        const { index, slot } = this.#span;
        const asked = i32.const(requestOf(bytes, group.isWrite));
        f.set(place, call(index, I32, low, asked, i32.const(slot), i32.const(this.#position)));
        f.seldom(i32.eqz(place), () => this.frame.leave());
      });
    }
    if (group.at === null) throw new Error('bug: an access comes before the first of its group');
    return within(group.at, displacement - group.low);
  }

  /** Offset of an address's TLB entry in the TLB, kept, and its tag. */
  #entry(address: Node, access: Access): { readonly entry: Node; readonly tag: Node } {
    const entry = this.f.let(entryOf(address));
    return { entry, tag: i64.load(CPU, entry, this.#tlb + (access === 'read' ? TLB_READ : TLB_WRITE)) };
  }

  /** The interpreter can. */
  protected override alone(): void {
    this.frame.leave();
  }

  /** Nothing goes to scratch places here. */
  protected override commit(): void {}

  override repeated(): Node {
    return i32.const(this.#instruction.rep === 0 ? 0 : 1);
  }

  /** The interpreter runs the instruction again and raises what is to be raised. */
  override raise(_vector: number): void {
    this.frame.leave();
  }

  /** Nothing is known any more of what has been looked at: a block begins, or others have run. */
  forget(): void {
    this.#hasVectors = false;
    for (const place of this.#takenPlaces) this.#freePlaces.push(place);
    this.#takenPlaces.length = 0;
  }

  /** Nobody sets TS within a block. */
  override requireVectors(): void {
    if (this.#hasVectors) return;
    this.f.seldom(i32.load(CPU, zeroAddress, VCPU.cr0Ts), () => this.frame.leave());
    this.#hasVectors = true;
  }

  override requireAvx(): void {
    const missing = i32.xor(i32.load(CPU, zeroAddress, VCPU.xcr0), i32.const(XCR0_SSE_AVX));
    const wanted = i32.and(missing, i32.const(XCR0_SSE_AVX));
    this.f.seldom(i32.or(wanted, i32.load(CPU, zeroAddress, VCPU.cr0Ts)), () => this.frame.leave());
  }
}
