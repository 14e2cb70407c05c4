/**
 * Regions (region-graph.ts) as WebAssembly: one function a region, many in a module.
 *
 *     region(va i64, depth i32) -> i32
 *
 * runs guest code from `va`, the region's entry, and answers how it ended; rip, registers and flags are in memory 1 then:
 *
 *     CONTINUE      at rip, by the jump cache
 *     RESUME        at rip, by the interpreter: what is there is not translated, or faults
 *     INTERRUPTED   somebody wants something
 *     LEFT + n      with ExitKind n: a rare instruction (rare.ts) said so
 *
 * General registers are locals, loaded at the start, stored at the end and around calls. A guest CALL is a call: the callee's region
 * is looked up in the jump cache; when it comes back with CONTINUE and the expected rip, this region goes on. All else unwinds.
 * Loops are real loops, in the structure that the dominator tree gives. Source: N. Ramsey, "Beyond Relooper", ICFP 2022.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
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
import { ModuleBuilder } from './module-builder.ts';
import { call, callIndirect, I32, I64, i32, i64, local, type Node } from './nodes.ts';
import { JUMP as JUMP_TO_RIP, NEXT } from './rare-status.ts';
import { RegionCpu } from './region-cpu.ts';
import { type Block, dominates, type RegionGraph, type RegionInstruction } from './region-graph.ts';
import { dropStack, push, stackTop } from './semantics/moves.ts';

export const CONTINUE = 0;
export const RESUME = 1;
export const INTERRUPTED = 2;
export const LEFT = 16;

const RCX = 1;
const GENERAL_PROTECTION = 13;
const zeroAddress = i32.const(0);

/** What a module of regions is for: its constants. */
export interface RegionTarget {
  readonly guestPages: number;
  readonly cpuPages: number;
  /** Byte offset of the mode's TLB, and the bit in its jump-cache tags. */
  readonly tlb: number;
  readonly userBit: number;
}

/** A module whose regions take the table's places from `firstSlot` on. */
export function translateRegions(
  graphs: readonly RegionGraph[],
  target: RegionTarget,
  firstSlot: number,
): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();
  const miss = m.importFunction('e', 'fill', [I32, I32, I32], [I32]);
  const divide = m.importFunction('e', 'divide', [I32, I64, I64, I64], [I32]);
  const vector = m.importFunction('e', 'vector', [I32], [I32]);
  const rare = m.importFunction('e', 'rare', [I32], [I32]);
  m.importMemory('e', 'guest', target.guestPages, target.guestPages);
  m.importMemory('e', 'cpu', target.cpuPages, target.cpuPages);
  m.importTable('e', 'table', 1);
  const scratch = m.importGlobal('e', 'scratch', I32);
  const compute = m.declare([I32, I64, I64], [I32]);
  m.define(compute, computeFlags());
  const type = m.type([I64, I32], [I32]);
  // `commit` is never called in a region.
  const runtime: Runtime = { miss, commit: -1, divide, vector, computeFlags: compute, scratch };
  const functions = graphs.map((graph) => {
    const index = m.declare([I64, I32], [I32]);
    m.define(index, new RegionWriter(graph, target, runtime, type, rare).write());
    return index;
  });
  m.element(firstSlot, functions);
  return m.finish();
}

class RegionWriter {
  readonly #graph: RegionGraph;
  readonly #target: RegionTarget;
  readonly #type: number;
  readonly #rare: number;
  readonly #f = new FunctionBuilder([I64, I32]);
  readonly #depth = local(1, I32);
  readonly #base: Node;
  readonly #registers: (Node | null)[] = [];
  readonly #flags: FlagLocals;
  readonly #cpu: RegionCpu;
  /** Position of the instruction that runs, for RESUME. */
  readonly #position: Node;
  /** How and where it ends. */
  readonly #reason: Node;
  readonly #rip: Node;
  #resume!: Label;
  #exit!: Label;
  readonly #loops = new Map<Block, Label>();
  readonly #merges = new Map<Block, Label>();
  readonly #blockAt = new Map<number, Block>();
  /** What `Flags.known` is at the end of a block. */
  readonly #knownAfter = new Map<Block, number>();

  constructor(graph: RegionGraph, target: RegionTarget, runtime: Runtime, type: number, rare: number) {
    const f = this.#f;
    this.#graph = graph;
    this.#target = target;
    this.#type = type;
    this.#rare = rare;
    this.#base = f.newLocal(I64);
    this.#position = f.newLocal(I32);
    this.#reason = f.newLocal(I32);
    this.#rip = f.newLocal(I64);
    this.#flags = {
      kind: f.newLocal(I32),
      a: f.newLocal(I64),
      b: f.newLocal(I64),
      compute: (kind, a, b) => call(runtime.computeFlags, I32, kind, a, b),
    };
    for (let number = 0; number < 16; number++)
      this.#registers.push((graph.used & (1 << number)) !== 0 ? f.newLocal(I64) : null);
    const frame: Frame = {
      f,
      flagLocals: this.#flags,
      pc: zeroAddress,
      tlb: i32.const(target.tlb),
      leave: () => f.br(this.#resume),
      pause: () => this.#leave(i64.add(this.#base, i64.extendI32S(this.#position)), INTERRUPTED),
    };
    this.#cpu = new RegionCpu(frame, runtime, this.#registers, graph.written, this.#base);
    for (const block of graph.blocks) this.#blockAt.set(block.start, block);
  }

  write(): FunctionBuilder {
    const f = this.#f;
    f.set(this.#base, i64.and(local(0, I64), i64.small(-4096)));
    this.#loadState();
    f.block((exit) => {
      this.#exit = exit;
      f.block((resume) => {
        this.#resume = resume;
        this.#tree(this.#graph.blocks[0]);
      });
      f.set(this.#rip, i64.add(this.#base, i64.extendI32S(this.#position)));
      f.set(this.#reason, i32.const(RESUME));
    });
    this.#storeState();
    f.store(8, CPU, zeroAddress, VCPU.rip, this.#rip);
    f.return(this.#reason);
    return f;
  }

  #loadState(): void {
    const f = this.#f;
    this.#registers.forEach((register, number) => {
      if (register !== null) f.set(register, i64.load(CPU, zeroAddress, VCPU.gpr + number * 8));
    });
    f.set(this.#flags.kind, i32.load(CPU, zeroAddress, STATE.flagsKind));
    f.set(this.#flags.a, i64.load(CPU, zeroAddress, STATE.flagsA));
    f.set(this.#flags.b, i64.load(CPU, zeroAddress, STATE.flagsB));
    this.#cpu.flags.forget();
  }

  #storeState(): void {
    const f = this.#f;
    this.#registers.forEach((register, number) => {
      if (register !== null && (this.#graph.written & (1 << number)) !== 0)
        f.store(8, CPU, zeroAddress, VCPU.gpr + number * 8, register);
    });
    f.store(4, CPU, zeroAddress, STATE.flagsKind, this.#flags.kind);
    f.store(8, CPU, zeroAddress, STATE.flagsA, this.#flags.a);
    f.store(8, CPU, zeroAddress, STATE.flagsB, this.#flags.b);
  }

  #leave(rip: Node, reason: number): void {
    const f = this.#f;
    f.set(this.#rip, rip);
    f.set(this.#reason, i32.const(reason));
    f.br(this.#exit);
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

  /** Goes to the block at a position, from `source`. */
  #go(source: Block, position: number): void {
    const f = this.#f;
    const to = this.#blockAt.get(position);
    if (to === undefined || to.order < 0) {
      this.#leave(this.#address(position), CONTINUE);
      return;
    }
    if (to.order <= source.order) {
      const label = this.#loops.get(to);
      // A loop with two entries: in by the front door.
      if (label !== undefined && dominates(to, source)) f.br(label);
      else this.#leave(this.#address(position), CONTINUE);
      return;
    }
    const label = this.#merges.get(to);
    if (to.isMerge && label !== undefined) f.br(label);
    else this.#tree(to);
  }

  /** At a loop's head: time is up, or somebody wants something. */
  #poll(block: Block): void {
    const f = this.#f;
    const left = f.let(i32.sub(i32.load(CPU, zeroAddress, STATE.budget), i32.const(1)));
    f.store(4, CPU, zeroAddress, STATE.budget, left);
    const wanted = i32.load(CPU, zeroAddress, VCPU.flags);
    f.if(i32.or(i32.leS(left, i32.const(0)), wanted), () => this.#leave(this.#address(block.start), INTERRUPTED));
    f.releaseTemporaries();
  }

  // --- a block

  #block(block: Block): void {
    const cpu = this.#cpu;
    const f = this.#f;
    const [only] = block.predecessors;
    const known = block.predecessors.length === 1 && block.order > 0 ? this.#knownAfter.get(only) : undefined;
    cpu.flags.known = known ?? -1;
    const { end } = block;
    const hasBranch = end.kind === 'branch' || end.kind === 'call' || end.kind === 'leave' || this.#endsInJump(block);
    const straight = hasBranch ? block.instructions.length - 1 : block.instructions.length;
    for (let i = 0; i < straight; i++) this.#straight(block.instructions[i]);
    const last = block.instructions[straight] as RegionInstruction | undefined;
    this.#knownAfter.set(block, cpu.flags.known);
    switch (end.kind) {
      case 'jump':
        this.#go(block, end.target);
        return;
      case 'resume':
        f.set(this.#position, i32.const(end.next));
        f.br(this.#resume);
        return;
      case 'branch':
        this.#conditional(block, last as RegionInstruction, end.target, end.next);
        return;
      case 'call':
        this.#call(last as RegionInstruction, end.target, end.next);
        this.#knownAfter.set(block, -1);
        this.#go(block, end.next);
        return;
      default:
        this.#indirect(last as RegionInstruction);
    }
  }

  /** A `jump` block may end with its JMP, or only run into the next block. */
  #endsInJump(block: Block): boolean {
    const last = block.instructions[block.instructions.length - 1] as RegionInstruction | undefined;
    return block.end.kind === 'jump' && last !== undefined && last.handler === JUMP;
  }

  #begin(at: RegionInstruction): void {
    this.#f.set(this.#position, i32.const(at.position));
    this.#cpu.at(at.instruction, at.position, at.variant);
  }

  #straight(at: RegionInstruction): void {
    if (at.handler === RARE) this.#rarely(at);
    if (at.variant === null) return;
    this.#begin(at);
    at.variant.meaning(this.#cpu);
    // What may leave the flags alone has left them unknown.
    if (at.variant.form.flagsConditional) this.#cpu.flags.forget();
    this.#f.releaseTemporaries();
  }

  /** An instruction by TypeScript: all of the state is in memory 1 meanwhile. */
  #rarely(at: RegionInstruction): void {
    const f = this.#f;
    this.#storeState();
    f.store(8, CPU, zeroAddress, VCPU.rip, this.#address(at.position));
    const answer = f.let(call(this.#rare, I32, zeroAddress));
    f.if(i32.ne(answer, i32.const(NEXT)), () => {
      f.if(i32.eq(answer, i32.const(JUMP_TO_RIP)), () => f.return(i32.const(CONTINUE)));
      f.return(i32.add(answer, i32.const(LEFT)));
    });
    this.#loadState();
    f.releaseTemporaries();
  }

  #conditional(block: Block, at: RegionInstruction, target: number, next: number): void {
    const f = this.#f;
    const cpu = this.#cpu;
    this.#begin(at);
    const condition = f.let(this.#condition(at));
    const { known } = cpu.flags;
    f.if(condition, () => this.#go(block, target));
    cpu.flags.known = known;
    f.releaseTemporaries();
    this.#go(block, next);
  }

  #condition({ handler, instruction }: RegionInstruction): Node {
    const f = this.#f;
    const cpu = this.#cpu;
    if (handler >= JCC) return i32.ne(cpu.flags.condition(handler - JCC), i32.const(0));
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
    this.#f.if(i64.ne(extended, to), () => this.#cpu.raise(GENERAL_PROTECTION));
  }

  #indirect(at: RegionInstruction): void {
    const f = this.#f;
    const cpu = this.#cpu;
    if (at.handler === RARE) {
      this.#rarely(at);
      // It went elsewhere, or it was one that goes on after all.
      this.#leave(this.#address(at.position + at.instruction.length), CONTINUE);
      return;
    }
    this.#begin(at);
    if (at.handler === RETURN) {
      const to = stackTop(cpu, 8);
      this.#requireCanonical(to);
      dropStack(cpu, 8 + (at.instruction.immLo & 0xffff));
      this.#leave(to, CONTINUE);
    } else if (at.handler === JUMP_INDIRECT || at.handler === JUMP_MEMORY)
      this.#leave(this.#targetOperand(at), CONTINUE);
    else throw new Error('bug: a block ends in what is no branch');
    f.releaseTemporaries();
  }

  #call(at: RegionInstruction, position: number, next: number): void {
    const f = this.#f;
    const cpu = this.#cpu;
    this.#begin(at);
    const indirect = at.handler === CALL_INDIRECT || at.handler === CALL_MEMORY;
    const to = f.let(indirect ? this.#targetOperand(at) : this.#address(position));
    const back = f.let(this.#address(next));
    push(cpu, 8, back);
    this.#storeState();
    f.store(8, CPU, zeroAddress, VCPU.rip, to);
    const low = i32.wrap(to);
    const hash = i32.and(i32.xor(low, i32.shrU(low, i32.const(JUMP_SHIFT))), i32.const(JUMP_ENTRIES - 1));
    const entry = f.let(i32.mul(hash, i32.const(JUMP_ENTRY)));
    const tag = this.#target.userBit === 0 ? to : i64.xor(to, i64.const(0, this.#target.userBit));
    const slot = f.let(i32.load(CPU, entry, STATE.jumpCache + JUMP_SLOT));
    const here = i64.eq(i64.load(CPU, entry, STATE.jumpCache + JUMP_TAG), tag);
    const reason = f.temporary(I32);
    f.if(
      i32.and(i32.and(here, i32.ne(slot, i32.const(0))), i32.gtS(this.#depth, i32.const(0))),
      () => {
        f.set(reason, callIndirect(this.#type, I32, to, i32.sub(this.#depth, i32.const(1)), slot));
        f.if(reason, () => f.return(reason));
        f.if(i64.ne(i64.load(CPU, zeroAddress, VCPU.rip), back), () => f.return(i32.const(CONTINUE)));
      },
      () => f.return(i32.const(CONTINUE)),
    );
    this.#loadState();
    f.releaseTemporaries();
    if (at.handler !== CALL && !indirect) throw new Error('bug: a block ends in what is no call');
  }
}
