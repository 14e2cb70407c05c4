/**
 * Which accesses of memory in a region share a look-up in the TLB: those that are near each other by the same registers.
 *
 * An access is known by what its address is the sum of: a value (nobody knows which, but where it came to be), and a displacement.
 * Values go with MOV, and with what adds a constant: PUSH, POP, ADD, SUB, LEA, and CALL and RET of what is part of the region. Accesses of one value form a group if the first of
 * them, the head, has run whenever another one runs, with nothing in between that may change the TLB: calls, and instructions by
 * TypeScript. The head looks up the page for all; if they do not lie in one page, or if it is not there, each looks for
 * itself (region-cpu.ts), so only the access itself ever faults.
 *
 * A group has the write tag if its head or an access in the head's block writes, which then runs too; other writes form groups of
 * their own.
 */

import { RIP } from '../x86/decoder.ts';
import { FORMS } from '../x86/forms.ts';
import type { Instruction } from '../x86/instruction.ts';
import type { Operand } from './cpu.ts';
import { type NotedAccess, registerNumber } from './effects.ts';
import { CALL, RETURN, type Variant } from './handlers.ts';
import type { Node } from './nodes.ts';
import type { InstructionFlow, RegionFlow } from './region-flow.ts';
import type { Block, RegionGraph, RegionInstruction } from './region-graph.ts';
import { stem } from './semantics/table.ts';

/** Bytes from the first of a group to behind its last: less than a page. The longer, the more often it lies in two pages. */
const SPAN_MAX = 256;
/** Groups that are known at a place, at most: of more the oldest take in nothing any more. */
const GROUPS_MAX = 24;
const RSP = 4;
const RBP = 5;
/** Displacements of values stay below it. */
const FAR = 0x40000000;

/** Accesses with one look-up. Bytes from the value. */
export interface Group {
  readonly key: number;
  readonly head: Block;
  low: number;
  /** Behind the last byte. */
  high: number;
  isWrite: boolean;
  members: number;
  /** All of them are in the head's block. */
  isInBlock: boolean;
  /** Each of its accesses looks for itself. */
  readonly isApart: boolean;
  /** Local (i32): offset in memory 0 of `low`, or 0 if each looks for itself. */
  at: Node | null;
}

/** An access of an instruction, in the order of `Effects.accesses`. */
export interface GroupedAccess {
  readonly noted: NotedAccess;
  readonly group: Group | null;
  /** Of its first byte from the value. */
  readonly displacement: number;
  readonly isHead: boolean;
}

/** Instructions that move a value, or add a constant to it; 0 = all others. */
const MOTIONS = ['', 'push', 'pushf', 'pushfq', 'pop', 'leave', 'mov', 'add', 'sub', 'inc', 'dec', 'lea'] as const;
type Motion = (typeof MOTIONS)[number];
const MOTION_OF_FORM: readonly Motion[] = FORMS.map((form) => MOTIONS.find((name) => name === stem(form)) ?? '');

/** What is known at a place. */
interface State {
  /** Of each general register: number of its value, and what is added. */
  readonly values: number[];
  readonly added: number[];
  groups: readonly Group[];
}

const NO_GROUPS: readonly Group[] = [];

/** Values that are no register's: 0, and the address of the entry's page. */
const ZERO = 0;
const PAGE = 1;
const FIRST_FREE = 2;

const alone = (noted: NotedAccess): GroupedAccess => ({ noted, group: null, displacement: 0, isHead: false });

/** Number of a 64-bit general register operand, or -1. */
function wholeRegister(instruction: Instruction, operand: Operand | undefined): number {
  if (operand?.kind === 'gpr' && operand.size === 8) return registerNumber(instruction, operand.field);
  return operand?.kind === 'fixed' && operand.size === 8 ? operand.gpr : -1;
}

/** Says in `flow` which accesses are in which group. `apart`: positions of instructions whose groups are none after all. */
export function groupAccesses(graph: RegionGraph, flow: RegionFlow, apart: ReadonlySet<number>): void {
  new Grouping(graph, flow, apart);
}

class Grouping {
  readonly #graph: RegionGraph;
  readonly #flow: RegionFlow;
  readonly #out = new Map<Block, State>();
  readonly #apart: ReadonlySet<number>;
  #next = FIRST_FREE;

  constructor(graph: RegionGraph, flow: RegionFlow, apart: ReadonlySet<number>) {
    this.#apart = apart;
    this.#graph = graph;
    this.#flow = flow;
    for (const block of graph.blocks) this.#block(block);
  }

  #fresh(): State {
    const state: State = { values: [], added: [], groups: NO_GROUPS };
    this.#spoilAll(state);
    return state;
  }

  #spoilAll(state: State): void {
    const { values, added } = state;
    for (let register = 0; register < 16; register++) {
      values[register] = this.#next + register;
      added[register] = 0;
    }
    this.#next += 16;
    state.groups = NO_GROUPS;
  }

  #spoil(state: State, register: number): void {
    state.values[register] = this.#next++;
    state.added[register] = 0;
  }

  #block(block: Block): void {
    const state = this.#start(block);
    const flow = this.#flow.of(block);
    const { instructions } = block;
    for (let i = 0; i < instructions.length; i++)
      this.#instruction(state, block, instructions[i], flow.instructions[i]);
    this.#out.set(block, state);
  }

  /** What all who come here agree on. */
  #start(block: Block): State {
    let state: State | null = null;
    let last: Block | null = null;
    for (const predecessor of block.predecessors) {
      const out = this.#out.get(predecessor);
      if (out === undefined) {
        if (last === null || predecessor.order > last.order) last = predecessor;
      } else if (state === null) state = { values: out.values.slice(), added: out.added.slice(), groups: out.groups };
      else this.#meet(state, out);
    }
    if (state === null || block.order === 0) return this.#fresh();
    if (last !== null) this.#enterLoop(state, block, last);
    return state;
  }

  #meet(state: State, other: State): void {
    for (let register = 0; register < 16; register++) {
      const isSame =
        state.values[register] === other.values[register] && state.added[register] === other.added[register];
      if (!isSame) this.#spoil(state, register);
    }
    if (state.groups !== other.groups) state.groups = state.groups.filter((group) => other.groups.includes(group));
  }

  /** Of the loop it is known only that it lies between its head and the last block that leads to one of its own, in their order. */
  #enterLoop(state: State, head: Block, last: Block): void {
    let written = 0;
    let end = last.order;
    for (let order = head.order; order <= end; order++) {
      const block = this.#graph.blocks[order];
      for (const predecessor of block.predecessors) end = Math.max(end, predecessor.order);
      for (const { effects, isBoundary } of this.#flow.of(block).instructions) {
        written |= isBoundary ? 0xffff : effects.writes;
        if (isBoundary) state.groups = NO_GROUPS;
      }
    }
    for (let register = 0; register < 16; register++)
      if ((written & (1 << register)) !== 0) this.#spoil(state, register);
  }

  #instruction(state: State, block: Block, at: RegionInstruction, flow: InstructionFlow): void {
    const { effects } = flow;
    if (effects.accesses.length > 0)
      flow.accesses = effects.accesses.map((noted) => this.#access(state, block, at, noted));
    if (flow.isBoundary) {
      this.#spoilAll(state);
      return;
    }
    const writes = effects.writes & 0xffff;
    if (writes === 0) return;
    if (at.handler === CALL || at.handler === RETURN) {
      const change = at.handler === CALL ? -8 : 8 + (at.instruction.immLo & 0xffff);
      this.#set(state, RSP, state.values[RSP], state.added[RSP] + change);
      return;
    }
    if (at.variant === null || !this.#moves(state, at, at.variant, effects.accesses))
      for (let register = 0; register < 16; register++)
        if ((writes & (1 << register)) !== 0) this.#spoil(state, register);
  }

  #set(state: State, register: number, value: number, added: number): void {
    if (added > -FAR && added < FAR) {
      state.values[register] = value;
      state.added[register] = added;
    } else this.#spoil(state, register);
  }

  /** Follows an instruction that moves a value or adds a constant; false if it is another. */
  #moves(
    state: State,
    { instruction }: RegionInstruction,
    variant: Variant,
    accesses: readonly NotedAccess[],
  ): boolean {
    const motion = MOTION_OF_FORM[variant.form.index];
    if (motion === '') return false;
    const { values, added } = state;
    const [first, second] = variant.operands;
    const to = wholeRegister(instruction, first);
    switch (motion) {
      case 'push':
      case 'pushf':
      case 'pushfq':
        this.#set(state, RSP, values[RSP], added[RSP] - variant.operandSize);
        return true;
      case 'pop':
        if (to < 0) return false;
        this.#set(state, RSP, values[RSP], added[RSP] + 8);
        this.#spoil(state, to);
        return true;
      case 'leave':
        if (accesses[0].size !== 8) return false;
        this.#set(state, RSP, values[RBP], added[RBP] + 8);
        this.#spoil(state, RBP);
        return true;
      case 'mov': {
        const from = wholeRegister(instruction, second);
        if (to < 0 || from < 0) return false;
        this.#set(state, to, values[from], added[from]);
        return true;
      }
      case 'add':
      case 'sub': {
        if (to < 0 || second.kind !== 'immediate') return false;
        const sign = motion === 'add' ? 1 : -1;
        this.#set(state, to, values[to], added[to] + sign * instruction.immLo);
        return true;
      }
      case 'inc':
      case 'dec':
        if (to < 0) return false;
        this.#set(state, to, values[to], added[to] + (motion === 'inc' ? 1 : -1));
        return true;
      case 'lea': {
        const { base, index, displacement, addressSize } = instruction;
        if (to < 0 || base < 0 || base === RIP || index >= 0 || addressSize !== 8) return false;
        this.#set(state, to, values[base], added[base] + displacement);
        return true;
      }
      default:
        return false;
    }
  }

  #access(state: State, block: Block, at: RegionInstruction, noted: NotedAccess): GroupedAccess {
    const { values, added } = state;
    let key: number;
    let displacement: number;
    if (noted.register >= 0) {
      key = values[noted.register];
      displacement = added[noted.register] + noted.displacement;
    } else {
      const { base, index, scale, segment, addressSize } = at.instruction;
      if (addressSize !== 8) return alone(noted);
      const isRelative = base === RIP;
      key = isRelative ? PAGE : base < 0 ? ZERO : values[base];
      displacement = at.instruction.displacement;
      if (isRelative) displacement += at.position + at.instruction.length;
      else if (base >= 0) displacement += added[base];
      if (index >= 0) {
        key += (values[index] * 4 + scale) * 0x10000;
        displacement += added[index] * (1 << scale);
      }
      if (segment >= 4) key = -1 - key * 2 - (segment & 1);
    }
    if (displacement <= -FAR || displacement >= FAR) return alone(noted);
    const high = displacement + noted.size;
    const isWrite = noted.access !== 'read';
    for (let i = state.groups.length - 1; i >= 0; i--) {
      const group = state.groups[i];
      if (group.key !== key) continue;
      if (Math.max(group.high, high) - Math.min(group.low, displacement) > SPAN_MAX) continue;
      if (isWrite && !group.isWrite) {
        if (group.head !== block) continue;
        group.isWrite = true;
      }
      group.low = Math.min(group.low, displacement);
      group.high = Math.max(group.high, high);
      group.members++;
      if (group.head !== block) group.isInBlock = false;
      return { noted, group, displacement, isHead: false };
    }
    const group: Group = {
      key,
      head: block,
      low: displacement,
      high,
      isWrite,
      members: 1,
      isInBlock: true,
      isApart: this.#apart.has(at.position),
      at: null,
    };
    const known = state.groups;
    state.groups = (known.length < GROUPS_MAX ? known : known.slice(1)).concat(group);
    return { noted, group, displacement, isHead: true };
  }
}
