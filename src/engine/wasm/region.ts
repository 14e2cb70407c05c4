/**
 * Regions (region-graph.ts) as WebAssembly: one function a region, many in a module.
 *
 *     region(va i64, depth i32, back i64) -> i32
 *
 * runs guest code from `va`, the region's entry, and answers how it ended; rip, registers and flags are in memory 1 then:
 *
 *     RETURNED      at `back`, where the caller goes on: rip is not written
 *     CONTINUE      at rip, by the jump cache
 *     RESUME        at rip, by the interpreter: what is there is not translated, or faults
 *     INTERRUPTED   somebody wants something
 *     UNWIND        at rip, by the jump cache, and no caller may go on: code has changed, or where it is mapped
 *     LEFT + n      with ExitKind n: a rare instruction (rare.ts) said so
 *
 * Registers are locals; region-flow.ts says when they are loaded and who stores which. A guest CALL is a call: the callee's region is
 * looked up in the jump cache; when it comes back with RETURNED, this region goes on. If there is no such region, or it ends elsewhere
 * or with RESUME, an interpreter is called (NEST_SLOT, interpreter.ts) that runs until rip is as expected; it looks for a region there
 * first.
 * Otherwise all of the caller would be interpreted behind the call, and its callers too. All else unwinds.
 * Loops are real loops, in the structure that the dominator tree gives. Source: N. Ramsey, "Beyond Relooper", ICFP 2022.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_INTERRUPTED } from '../engine.ts';
import { addExecuted, TRANSLATED } from './executed.ts';
import { computeFlags, type FlagLocals } from './flags.ts';
import { FunctionBuilder, type Label } from './function-builder.ts';
import {
  CALL,
  CALL_INDIRECT,
  CALL_MEMORY,
  JCC,
  JRCXZ,
  JUMP,
  JUMP_INDIRECT,
  JUMP_MEMORY,
  LOOP,
  LOOPE,
  LOOPNE,
  RARE,
  RETURN,
} from './handlers.ts';
import type { Frame, Runtime } from './interpreter-cpu.ts';
import { CPU, JUMP_ENTRIES, JUMP_ENTRY, JUMP_SHIFT, JUMP_SLOT, JUMP_TAG, STATE } from './layout.ts';
import { type Compilation, MEMORY_PAGES_MAX, ModuleBuilder } from './module-builder.ts';
import {
  call,
  callIndirect,
  I32,
  I64,
  i32,
  i64,
  local,
  type Node,
  select,
  simdLoad,
  V128,
  type ValueType,
} from './nodes.ts';
import { NEXT } from './rare-status.ts';
import { lookUpSpan, RegionCpu, SPAN_PARAMETERS, type Span } from './region-cpu.ts';
import { ANY_KIND, RegionFlags } from './region-flags.ts';
import { type InstructionFlow, RegionFlow } from './region-flow.ts';
import { type Block, type Body, dominates, type RegionGraph, type RegionInstruction } from './region-graph.ts';
import { groupAccesses } from './region-groups.ts';
import { dropStack, push, stackTop } from './semantics/moves.ts';

export const RETURNED = 0;
export const CONTINUE = 1;
export const INTERRUPTED: number = EXIT_INTERRUPTED;
export const RESUME = 3;
export const UNWIND = 4;
export const LEFT = 16;

export const REGION_PARAMETERS: readonly ValueType[] = [I64, I32, I64];

/**
 * The table's place for the interpreter that a region calls: (rip to come back at, calls that may nest, reason of the callee, TLB, user
 * bit) -> RETURNED when it is there, else how the region must end.
 */
export const NEST_SLOT = 1;
export const NEST_PARAMETERS: readonly ValueType[] = [I64, I32, I32, I32, I32];

/** Turns of loops, a power of two, of which one looks at the flag word. */
const POLL = 32;

const RCX = 1;
const GENERAL_PROTECTION = 13;
const zeroAddress = i32.const(0);

/** What a module of regions is for: its constants. */
export interface RegionTarget {
  /** Byte offset of the mode's TLB, and the bit in its jump-cache tags. */
  readonly tlb: number;
  readonly userBit: number;
  /** Counts instructions (executed.ts). */
  readonly counting: boolean;
}

export interface RegionToWrite {
  readonly graph: RegionGraph;
  /** Positions where no group of accesses begins. */
  readonly apart: ReadonlySet<number>;
}

/** A module whose regions take the table's places from `firstSlot` on. It is the same for all sizes of memory. */
export function translateRegions(
  regions: readonly RegionToWrite[],
  target: RegionTarget,
  firstSlot: number,
  compilation: Compilation = 'when called',
): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();
  const divide = m.importFunction('e', 'divide', [I32, I64, I64, I64], [I32]);
  const vector = m.importFunction('e', 'vector', [I32], [I32]);
  const rare = m.importFunction('e', 'rare', [I32], [I32]);
  const hearApart = m.importFunction('e', 'apart', [I32, I32]);
  m.importMemory('e', 'cpu', 1, MEMORY_PAGES_MAX);
  m.importMemory('e', 'guest', 1, MEMORY_PAGES_MAX);
  m.importTable('e', 'table', 1);
  const scratch = m.importGlobal('e', 'scratch', I32);
  const compute = m.declare([I32, I64, I64], [I32]);
  m.define(compute, computeFlags());
  const span = m.declare(SPAN_PARAMETERS, [I32]);
  m.define(span, lookUpSpan(target.tlb, hearApart));
  const types = { region: m.type(REGION_PARAMETERS, [I32]), nest: m.type(NEST_PARAMETERS, [I32]) };
  // Those with -1 are never called in a region.
  const runtime: Runtime = {
    miss: -1,
    commit: -1,
    stop: -1,
    start: -1,
    divide,
    vector,
    computeFlags: compute,
    scratch,
  };
  const functions = regions.map(({ graph, apart }, i) => {
    const index = m.declare(REGION_PARAMETERS, [I32]);
    m.define(
      index,
      new RegionWriter(graph, target, runtime, types, rare, { index: span, slot: firstSlot + i }, apart).write(),
    );
    return index;
  });
  m.element(firstSlot, functions);
  return m.finish(compilation);
}

/** Type indexes of what regions call by the table. */
interface CalleeTypes {
  readonly region: number;
  readonly nest: number;
}

class RegionWriter {
  readonly #graph: RegionGraph;
  readonly #target: RegionTarget;
  readonly #types: CalleeTypes;
  readonly #rare: number;
  readonly #f = new FunctionBuilder(REGION_PARAMETERS);
  readonly #depth = local(1, I32);
  readonly #back = local(2, I64);
  readonly #base: Node;
  readonly #flow: RegionFlow;
  readonly #registers: (Node | null)[] = [];
  readonly #flags: RegionFlags;
  readonly #cpu: RegionCpu;
  /** Where the region is left: of the instruction that runs, or the place to go on. Bytes from the start of the entry's page. */
  readonly #position: Node;
  /** How it is left: RESUME until somebody says otherwise. */
  readonly #reason: Node;
  /** Branches until the clock is looked at; null in a region without a loop. */
  readonly #budget: Node | null;
  readonly #epilogues = new Map<number, Label>();
  /** That of the instruction that runs. */
  #leaving = 0;
  readonly #loops = new Map<Block, Label>();
  readonly #merges = new Map<Block, Label>();

  constructor(
    graph: RegionGraph,
    target: RegionTarget,
    runtime: Runtime,
    types: CalleeTypes,
    rare: number,
    span: Span,
    apart: ReadonlySet<number>,
  ) {
    const f = this.#f;
    this.#graph = graph;
    this.#target = target;
    this.#types = types;
    this.#rare = rare;
    this.#flow = new RegionFlow(graph);
    groupAccesses(graph, this.#flow, apart);
    this.#base = f.newLocal(I64);
    this.#position = f.newLocal(I32);
    this.#reason = f.newLocal(I32);
    this.#budget = graph.blocks.some((block) => block.isLoop) ? f.newLocal(I32) : null;
    const flagLocals: FlagLocals = {
      kind: f.newLocal(I32),
      a: f.newLocal(I64),
      b: f.newLocal(I64),
      compute: (kind, a, b) => call(runtime.computeFlags, I32, kind, a, b),
    };
    const { used } = this.#flow;
    for (let register = 0; register < 32; register++)
      this.#registers.push((used & (1 << register)) !== 0 ? f.newLocal(register < 16 ? I64 : V128) : null);
    const frame: Frame = {
      f,
      flagLocals,
      pc: zeroAddress,
      tlb: i32.const(target.tlb),
      leave: () => f.br(this.#label(this.#leaving)),
      pause: () => {
        f.set(this.#reason, i32.const(INTERRUPTED));
        f.br(this.#label(this.#leaving));
      },
    };
    this.#flags = new RegionFlags(f, flagLocals);
    this.#cpu = new RegionCpu(frame, runtime, this.#flags, this.#registers, this.#base, span);
  }

  write(): FunctionBuilder {
    const f = this.#f;
    const entry = this.#flow.of(this.#graph.blocks[0]);
    f.set(this.#base, i64.and(local(0, I64), i64.small(-4096)));
    f.set(this.#reason, i32.const(RESUME));
    this.#load(entry.live, entry.liveFlags);
    this.#withEpilogues(() => this.#tree(this.#graph.blocks[0]));
    this.#storeRip(i64.add(this.#base, i64.extendI32S(this.#position)));
    f.return(this.#reason);
    return f;
  }

  // --- locals and memory 1

  #load(registers: number, flags: boolean): void {
    const f = this.#f;
    this.#registers.forEach((register, number) => {
      if (register === null || (registers & (1 << number)) === 0) return;
      if (number < 16) f.set(register, i64.load(CPU, zeroAddress, VCPU.gpr + number * 8));
      else f.set(register, simdLoad(0, CPU, zeroAddress, STATE.xmm + (number - 16) * 16));
    });
    if (flags) this.#flags.load();
    if (this.#budget !== null) f.set(this.#budget, i32.load(CPU, zeroAddress, STATE.budget));
  }

  #storeRegister(number: number): void {
    const register = this.#registers[number];
    if (register === null) throw new Error('bug: a register without a local is dirty');
    if (number < 16) this.#f.store(8, CPU, zeroAddress, VCPU.gpr + number * 8, register);
    else this.#f.store(16, CPU, zeroAddress, STATE.xmm + (number - 16) * 16, register);
  }

  /** Everything but rip. */
  #store(dirty: number, flags: boolean): void {
    for (let number = 0; number < 32; number++) if ((dirty & (1 << number)) !== 0) this.#storeRegister(number);
    if (flags) this.#flags.store();
    this.#storeBudget();
  }

  #storeBudget(): void {
    if (this.#budget !== null) this.#f.store(4, CPU, zeroAddress, STATE.budget, this.#budget);
  }

  #storeRip(rip: Node): void {
    this.#f.store(8, CPU, zeroAddress, VCPU.rip, rip);
  }

  /**
   * The body, and behind it the epilogues: those that store flags, then those that store registers of the chain, from the longest
   * to the one that stores none.
   */
  #withEpilogues(body: () => void): void {
    const f = this.#f;
    const { chain, epilogues } = this.#flow;
    /** A block that ends at an epilogue's code, if anybody leaves by it. */
    const opened = (which: number, inner: () => void): void => {
      if (!epilogues.has(which)) {
        inner();
        return;
      }
      f.block((label) => {
        this.#epilogues.set(which, label);
        inner();
      });
    };
    const withFlags = [...epilogues].filter((which) => (which & 1) !== 0);
    // They go on to the one that stores the same registers.
    for (const which of withFlags) epilogues.add(which - 1);
    const levels = Math.max(...epilogues) >> 1;
    const flagsToo = (index: number): void => {
      if (index === withFlags.length) {
        body();
        return;
      }
      opened(withFlags[index], () => flagsToo(index + 1));
      this.#flags.known = ANY_KIND;
      this.#flags.store();
      f.br(this.#label(withFlags[index] - 1));
    };
    const registers = (level: number): void => {
      opened(level * 2, () => {
        if (level < levels) registers(level + 1);
        else flagsToo(0);
      });
      if (level > 0) this.#storeRegister(chain[level - 1]);
    };
    registers(0);
    this.#storeBudget();
  }

  #label(which: number): Label {
    return this.#epilogues.get(which) as Label;
  }

  /** Leaves for a place in reach of the region, with these dirty. */
  #leave(position: number, reason: number, dirty: number, flags: boolean): void {
    const f = this.#f;
    f.set(this.#position, i32.const(position));
    f.set(this.#reason, i32.const(reason));
    f.br(this.#label(this.#flow.epilogue(dirty, flags)));
  }

  /** Leaves for an address, at the end of a block. */
  #leaveTo(rip: Node, dirty: number, flags: boolean): void {
    this.#store(dirty, flags);
    this.#storeRip(rip);
    this.#f.return(i32.const(CONTINUE));
  }

  #address(position: number): Node {
    return i64.add(this.#base, i64.small(position));
  }

  // --- structure

  /** A block and all that it dominates. */
  #tree(block: Block): void {
    const merges = block.children.filter((child) => child.isMerge).sort((a, b) => b.order - a.order);
    if (!block.isLoop) {
      this.#within(block, merges);
      return;
    }
    const f = this.#f;
    f.loop((label) => {
      this.#loops.set(block, label);
      this.#poll(block);
      this.#within(block, merges);
    });
  }

  #within(block: Block, merges: readonly Block[]): void {
    if (merges.length === 0) {
      this.#block(block);
      return;
    }
    const [outer, ...rest] = merges;
    this.#f.block((label) => {
      this.#merges.set(outer, label);
      this.#within(block, rest);
    });
    this.#tree(outer);
  }

  /** Goes to the block at a position, from the end of `source`. */
  #go(source: Block, position: number, body: Body = source.body): void {
    const f = this.#f;
    const to = body.blocks.get(position);
    const outside = (): void => {
      const { dirtyOut, dirtyFlagsOut } = this.#flow.of(source);
      if (position === (position | 0)) this.#leave(position, CONTINUE, dirtyOut, dirtyFlagsOut);
      else {
        this.#flags.known = ANY_KIND;
        this.#leaveTo(this.#address(position), dirtyOut, dirtyFlagsOut);
      }
    };
    if (to === undefined || to.order < 0) {
      outside();
      return;
    }
    if (to.order <= source.order) {
      const label = this.#loops.get(to);
      // A loop with two entries: in by the front door.
      if (label !== undefined && dominates(to, source)) f.br(label);
      else outside();
      return;
    }
    const label = this.#merges.get(to);
    if (to.isMerge && label !== undefined) f.br(label);
    else this.#tree(to);
  }

  /**
   * At a loop's head: time is up, or somebody wants something. Every turn counts, but only one in POLL looks: whoever counts down to a
   * multiple of POLL is who looks.
   */
  #poll(block: Block): void {
    const f = this.#f;
    const budget = this.#budget;
    if (budget === null) throw new Error('bug: a loop without a budget');
    const { dirty, dirtyFlags } = this.#flow.of(block);
    f.set(budget, i32.sub(budget, i32.const(1)));
    f.seldom(i32.eqz(i32.and(budget, i32.const(POLL - 1))), () => {
      const wanted = i32.load(CPU, zeroAddress, VCPU.flags);
      f.if(i32.or(i32.leS(budget, i32.const(0)), wanted), () =>
        this.#leave(block.start, INTERRUPTED, dirty, dirtyFlags),
      );
    });
    f.releaseTemporaries();
  }

  // --- a block

  #block(block: Block): void {
    const f = this.#f;
    const flow = this.#flow.of(block);
    this.#flags.known = flow.known;
    this.#cpu.forget();
    if (this.#target.counting) addExecuted(f, TRANSLATED, block.instructions.length);
    const { end } = block;
    const hasBranch = (end.kind !== 'jump' && end.kind !== 'resume') || this.#endsInJump(block);
    const straight = hasBranch ? block.instructions.length - 1 : block.instructions.length;
    for (let i = 0; i < straight; i++) this.#straight(block.instructions[i], flow.instructions[i]);
    const last = block.instructions[straight] as RegionInstruction;
    const lastFlow = flow.instructions[straight];
    switch (end.kind) {
      case 'jump':
        this.#go(block, end.target);
        return;
      case 'resume':
        f.set(this.#position, i32.const(end.next));
        f.br(this.#label(this.#flow.epilogue(flow.dirtyOut, flow.dirtyFlagsOut)));
        return;
      case 'branch':
        this.#conditional(block, last, lastFlow, end.target, end.next);
        return;
      case 'call':
        this.#call(last, lastFlow, end.target, end.next);
        this.#go(block, end.next);
        return;
      case 'enter':
        this.#begin(last, lastFlow);
        push(this.#cpu, 8, this.#address(last.position + last.instruction.length));
        f.releaseTemporaries();
        this.#go(block, end.body.entry, end.body);
        return;
      case 'return':
        this.#return(block, last, lastFlow);
        return;
      default:
        this.#indirect(last, lastFlow);
    }
  }

  /** A `jump` block may end with its JMP, or only run into the next block. */
  #endsInJump(block: Block): boolean {
    const last = block.instructions[block.instructions.length - 1] as RegionInstruction | undefined;
    return block.end.kind === 'jump' && last !== undefined && last.handler === JUMP;
  }

  #begin(at: RegionInstruction, flow: InstructionFlow): void {
    const { effects, liveFlags, dirtyFlags } = flow;
    if (effects.mayLeave) {
      this.#f.set(this.#position, i32.const(at.position));
      this.#leaving = this.#flow.epilogue(this.#flow.leavesWith(flow), dirtyFlags);
    }
    this.#flags.isDead = effects.writesFlags && !liveFlags && !effects.readsFlags;
    this.#cpu.at(at.instruction, at.position, at.variant, flow);
  }

  #straight(at: RegionInstruction, flow: InstructionFlow): void {
    if (at.handler === RARE) this.#rarely(at, flow);
    if (at.variant === null) return;
    this.#begin(at, flow);
    at.variant.meaning(this.#cpu);
    if (flow.effects.writesFlags) this.#flags.known = flow.effects.flagsKind;
    this.#flags.isDead = false;
    this.#f.releaseTemporaries();
  }

  /** An instruction by TypeScript: all of the state is in memory 1 meanwhile. */
  #rarely(at: RegionInstruction, { dirty, dirtyFlags, live, liveFlags }: InstructionFlow): void {
    const f = this.#f;
    this.#store(dirty, dirtyFlags);
    this.#storeRip(this.#address(at.position));
    const answer = f.let(call(this.#rare, I32, zeroAddress));
    f.seldom(i32.ne(answer, i32.const(NEXT)), () => f.return(answer));
    this.#load(live, liveFlags);
    this.#flags.known = ANY_KIND;
    this.#cpu.forget();
    f.releaseTemporaries();
  }

  #conditional(block: Block, at: RegionInstruction, flow: InstructionFlow, target: number, next: number): void {
    const f = this.#f;
    this.#begin(at, flow);
    const condition = this.#condition(at);
    // What is behind it would be written once for each way.
    if (target === next) {
      f.releaseTemporaries();
      this.#go(block, next);
      return;
    }
    f.if(condition, () => {
      f.releaseTemporaries();
      this.#go(block, target);
    });
    f.releaseTemporaries();
    this.#go(block, next);
  }

  #condition({ handler, instruction }: RegionInstruction): Node {
    const f = this.#f;
    const cpu = this.#cpu;
    if (handler >= JCC) return cpu.flags.condition(handler - JCC);
    const size = instruction.addressSize === 4 ? 4 : 8;
    if (handler === JRCXZ) return i64.eqz(cpu.gpr(RCX, size));
    const left = f.let(i64.sub(cpu.gpr(RCX, size), i64.small(1)));
    cpu.setGpr(RCX, size, left);
    const again = i64.ne(cpu.gpr(RCX, size), i64.small(0));
    if (handler === LOOP) return again;
    const equal = i32.ne(cpu.flags.condition(handler === LOOPE ? 4 : 5), i32.const(0));
    return handler === LOOPE || handler === LOOPNE ? i32.and(again, equal) : again;
  }

  /** The target operand of an indirect branch. */
  #targetOperand(at: RegionInstruction): Node {
    const memory = at.handler === CALL_MEMORY || at.handler === JUMP_MEMORY;
    this.#cpu.begin([memory ? { kind: 'memory', size: 8 } : { kind: 'gpr', size: 8, field: 1 }], 8, false, false);
    const to = this.#f.let(this.#cpu.read(0));
    this.#requireCanonical(to);
    return to;
  }

  /** A branch to an address that is not canonical is #GP where it stands: the interpreter raises it. */
  #requireCanonical(to: Node): void {
    const extended = i64.shrS(i64.shl(to, i64.small(16)), i64.small(16));
    this.#f.seldom(i64.ne(extended, to), () => this.#cpu.raise(GENERAL_PROTECTION));
  }

  #indirect(at: RegionInstruction, flow: InstructionFlow): void {
    const f = this.#f;
    const cpu = this.#cpu;
    if (at.handler === RARE) {
      this.#rarely(at, flow);
      // It went elsewhere, or it was one that goes on after all.
      this.#leaveTo(this.#address(at.position + at.instruction.length), 0, false);
      return;
    }
    this.#begin(at, flow);
    const dirty = flow.dirty | flow.effects.writes;
    if (at.handler === RETURN) {
      const to = stackTop(cpu, 8);
      const answer = f.temporary(I32);
      f.set(answer, i32.const(RETURNED));
      // Where it was called from is canonical.
      f.seldom(i64.ne(to, this.#back), () => {
        this.#requireCanonical(to);
        this.#storeRip(to);
        f.set(answer, i32.const(CONTINUE));
      });
      dropStack(cpu, 8 + (at.instruction.immLo & 0xffff));
      this.#store(dirty, flow.dirtyFlags);
      f.return(answer);
    } else if (at.handler === JUMP_INDIRECT || at.handler === JUMP_MEMORY)
      this.#leaveTo(this.#targetOperand(at), dirty, flow.dirtyFlags);
    else throw new Error('bug: a block ends in what is no branch');
    f.releaseTemporaries();
  }

  /** RET of a function that is part of the region: to where it was called, unless the stack says otherwise. */
  #return(block: Block, at: RegionInstruction, flow: InstructionFlow): void {
    const f = this.#f;
    const { caller } = block.body;
    if (caller === null) throw new Error('bug: nobody has called');
    this.#begin(at, flow);
    const to = stackTop(this.#cpu, 8);
    const drop = (): void => dropStack(this.#cpu, 8 + (at.instruction.immLo & 0xffff));
    f.seldom(i64.ne(to, this.#address(caller.next)), () => {
      this.#requireCanonical(to);
      drop();
      this.#leaveTo(to, flow.dirty | flow.effects.writes, flow.dirtyFlags);
    });
    drop();
    f.releaseTemporaries();
    this.#go(block, caller.next, caller.body);
  }

  #call(at: RegionInstruction, flow: InstructionFlow, position: number, next: number): void {
    const f = this.#f;
    const cpu = this.#cpu;
    this.#begin(at, flow);
    const indirect = at.handler === CALL_INDIRECT || at.handler === CALL_MEMORY;
    const to = f.let(indirect ? this.#targetOperand(at) : this.#address(position));
    const back = f.let(this.#address(next));
    push(cpu, 8, back);
    this.#store(flow.dirty | flow.effects.writes, flow.dirtyFlags);
    const low = i32.wrap(to);
    const hash = i32.and(i32.xor(low, i32.shrU(low, i32.const(JUMP_SHIFT))), i32.const(JUMP_ENTRIES - 1));
    const entry = f.let(i32.mul(hash, i32.const(JUMP_ENTRY)));
    const { tlb, userBit } = this.#target;
    const tag = userBit === 0 ? to : i64.xor(to, i64.const(0, userBit));
    f.seldom(i32.leS(this.#depth, i32.const(0)), () => {
      this.#storeRip(to);
      f.return(i32.const(CONTINUE));
    });
    const isKnown = i64.eq(i64.load(CPU, entry, STATE.jumpCache + JUMP_TAG), tag);
    // Who calls no region (slot 0) comes back at once, with rip at `to`.
    const slot = select(i32.load(CPU, entry, STATE.jumpCache + JUMP_SLOT), i32.const(0), isKnown);
    const depth = i32.sub(this.#depth, i32.const(1));
    const reason = f.let(callIndirect(this.#types.region, I32, to, depth, back, slot));
    f.seldom(reason, () => {
      const parameters = [back, depth, reason, i32.const(tlb), i32.const(userBit)];
      f.set(reason, callIndirect(this.#types.nest, I32, ...parameters, i32.const(NEST_SLOT)));
      f.if(reason, () => f.return(reason));
    });
    this.#load(flow.live, flow.liveFlags);
    this.#flags.known = ANY_KIND;
    f.releaseTemporaries();
    if (at.handler !== CALL && !indirect) throw new Error('bug: a block ends in what is no call');
  }
}
