/**
 * What is where in a region: which registers its code has in locals, which of them memory 1 does not have yet, which flags somebody
 * asks for. Four analyses over the graph of basic blocks, each to a fixed point.
 *
 * At the entry, and behind each boundary (a call of another region, an instruction by TypeScript), everything is in memory 1.
 *
 *   dirty   forward, may: the register was written since, so whoever leaves must store it
 *   live    backward, may: somebody reads it, or stores it when leaving, before it is written: the entry or boundary loads it
 *   known   forward, must: of what kind the flags are
 *   clear   forward, must: the upper half of the register is zero
 *
 * Who leaves stores the first registers of `chain`, as many as it takes to have all that are dirty: so a few epilogues, each going on
 * into the next, serve all. The others of those first are live then too.
 *
 * Registers are bits as in effects.ts.
 */

import { addressRegisters, type Effects, effectsOf, type NotedAccess } from './effects.ts';
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
import { ANY_KIND } from './region-flags.ts';
import type { Block, RegionGraph, RegionInstruction } from './region-graph.ts';
import type { GroupedAccess } from './region-groups.ts';

const RCX = 1 << 1;
const RSP = 1 << 4;

const NOTHING: Effects = {
  reads: 0,
  writes: 0,
  kills: 0,
  clears: 0,
  spoils: 0,
  mayLeave: false,
  leavesLate: false,
  readsFlags: false,
  mergesFlags: false,
  writesFlags: false,
  killsFlags: false,
  flagsKind: ANY_KIND,
  accesses: [],
};

const PUSH: NotedAccess = { register: 4, displacement: -8, size: 8, access: 'write' };
const TOP: NotedAccess = { register: 4, displacement: 0, size: 8, access: 'read' };
const TARGET: NotedAccess = { register: -1, displacement: 0, size: 8, access: 'read' };

function branchEffects({ handler, instruction }: RegionInstruction): Effects {
  const rm = 1 << instruction.rm;
  switch (handler) {
    case CALL:
      return { ...NOTHING, reads: RSP, writes: RSP, kills: RSP, spoils: RSP, mayLeave: true, accesses: [PUSH] };
    case RETURN:
      return { ...NOTHING, reads: RSP, writes: RSP, kills: RSP, spoils: RSP, mayLeave: true, accesses: [TOP] };
    case CALL_INDIRECT:
      return { ...NOTHING, reads: RSP | rm, writes: RSP, kills: RSP, spoils: RSP, mayLeave: true, accesses: [PUSH] };
    case CALL_MEMORY:
      return {
        ...NOTHING,
        reads: RSP | addressRegisters(instruction),
        writes: RSP,
        kills: RSP,
        spoils: RSP,
        mayLeave: true,
        accesses: [TARGET, PUSH],
      };
    case JUMP_INDIRECT:
      return { ...NOTHING, reads: rm, mayLeave: true };
    case JUMP_MEMORY:
      return { ...NOTHING, reads: addressRegisters(instruction), mayLeave: true, accesses: [TARGET] };
    case JRCXZ:
      return { ...NOTHING, reads: RCX };
    case LOOP:
    case LOOPE:
    case LOOPNE:
      return { ...NOTHING, reads: RCX, writes: RCX, kills: RCX, spoils: RCX, readsFlags: handler !== LOOP };
    case JUMP:
    case RARE:
      return NOTHING;
    default:
      return handler >= JCC && handler < JCC + 16 ? { ...NOTHING, readsFlags: true } : NOTHING;
  }
}

/** What the writer of an instruction must know. */
export interface InstructionFlow {
  readonly effects: Effects;
  /** All state is in memory 1 behind it: a call, or an instruction by TypeScript. */
  readonly isBoundary: boolean;
  /** Before it. */
  dirty: number;
  dirtyFlags: boolean;
  clear: number;
  /** Behind it: of a boundary, what is to be loaded. */
  live: number;
  liveFlags: boolean;
  /** Of `effects.accesses`: by region-groups.ts. */
  accesses: readonly GroupedAccess[];
}

export interface BlockFlow {
  readonly instructions: readonly InstructionFlow[];
  /** At its start. */
  dirty: number;
  dirtyFlags: boolean;
  live: number;
  liveFlags: boolean;
  clear: number;
  known: number;
  /** At its end. */
  dirtyOut: number;
  dirtyFlagsOut: boolean;
}

/** No path has come here yet. */
const NO_KIND = -2;
const ALL = -1;

export class RegionFlow {
  readonly #graph: RegionGraph;
  readonly #blocks = new Map<Block, BlockFlow>();
  /** Registers in the order in which leaving stores them, and the mask of the first n. */
  readonly chain: number[] = [];
  readonly #firstOf: number[] = [0];

  constructor(graph: RegionGraph) {
    this.#graph = graph;
    for (const block of graph.blocks) this.#blocks.set(block, start(block));
    this.#dirty();
    this.#order();
    this.#live();
    this.#known();
    this.#clear();
  }

  of(block: Block): BlockFlow {
    return this.#blocks.get(block) as BlockFlow;
  }

  /** Registers of the chain that store all of a dirty mask. */
  levelOf(dirty: number): number {
    let level = 0;
    while ((dirty & ~this.#firstOf[level]) !== 0) level++;
    return level;
  }

  /** What an instruction may have made dirty when it leaves. */
  leavesWith({ dirty, effects }: InstructionFlow): number {
    return effects.leavesLate ? dirty | effects.writes : dirty;
  }

  /** Number of an epilogue: how many registers of the chain it stores, and whether it stores the flags. */
  epilogue(dirty: number, flags: boolean): number {
    return this.levelOf(dirty) * 2 + (flags ? 1 : 0);
  }

  /** The epilogues that somebody may leave by. */
  get epilogues(): Set<number> {
    const wanted = new Set<number>();
    for (const [block, flow] of this.#blocks) {
      wanted.add(this.epilogue(flow.dirtyOut, flow.dirtyFlagsOut));
      if (block.isLoop) wanted.add(this.epilogue(flow.dirty, flow.dirtyFlags));
      for (const at of flow.instructions)
        if (at.effects.mayLeave) wanted.add(this.epilogue(this.leavesWith(at), at.dirtyFlags));
    }
    return wanted;
  }

  /** Mask of all registers that are in locals at some time. */
  get used(): number {
    let mask = 0;
    for (const flow of this.#blocks.values()) {
      mask |= flow.live;
      for (const { effects, live } of flow.instructions) mask |= effects.reads | effects.writes | live;
    }
    return mask;
  }

  #dirty(): void {
    for (let changed = true; changed; ) {
      changed = false;
      for (const block of this.#graph.blocks) {
        const flow = this.of(block);
        let dirty = 0;
        let flags = false;
        for (const predecessor of block.predecessors) {
          const { dirtyOut, dirtyFlagsOut } = this.of(predecessor);
          dirty |= dirtyOut;
          flags ||= dirtyFlagsOut;
        }
        flow.dirty = dirty;
        flow.dirtyFlags = flags;
        for (const at of flow.instructions) {
          at.dirty = dirty;
          at.dirtyFlags = flags;
          dirty = at.isBoundary ? 0 : dirty | at.effects.writes;
          flags = !at.isBoundary && (flags || at.effects.writesFlags);
        }
        if (dirty !== flow.dirtyOut || flags !== flow.dirtyFlagsOut) changed = true;
        flow.dirtyOut = dirty;
        flow.dirtyFlagsOut = flags;
      }
    }
  }

  /** The chain: as registers become dirty first. */
  #order(): void {
    let seen = 0;
    const add = (mask: number): void => {
      for (let rest = mask & ~seen; rest !== 0; rest &= rest - 1) {
        const register = 31 - Math.clz32(rest & -rest);
        seen |= 1 << register;
        this.chain.push(register);
        this.#firstOf.push(seen);
      }
    };
    for (const block of this.#graph.blocks) {
      const flow = this.of(block);
      add(flow.dirty);
      for (const { effects } of flow.instructions) add(effects.writes);
    }
  }

  #live(): void {
    const { blocks } = this.#graph;
    for (let changed = true; changed; ) {
      changed = false;
      for (let i = blocks.length - 1; i >= 0; i--) {
        const block = blocks[i];
        const flow = this.of(block);
        // Each block has an end that may leave, to what is not in the region.
        let live = this.#firstOf[this.levelOf(flow.dirtyOut)];
        let flags = flow.dirtyFlagsOut;
        for (const successor of block.successors) {
          const next = this.of(successor);
          live |= next.live;
          flags ||= next.liveFlags;
        }
        for (let n = flow.instructions.length - 1; n >= 0; n--) {
          const at = flow.instructions[n];
          const { effects } = at;
          at.live = live;
          at.liveFlags = flags;
          if (at.isBoundary) {
            live = 0;
            flags = false;
            // A call pushes first, and may leave at that; then all that is dirty is stored.
            live |= at.dirty | effects.reads;
            flags ||= at.dirtyFlags;
          } else {
            live = (live & ~effects.kills) | effects.reads;
            const keepsFlags = flags && (!effects.killsFlags || effects.mergesFlags);
            flags = keepsFlags || effects.readsFlags;
          }
          if (effects.mayLeave) {
            live |= this.#firstOf[this.levelOf(this.leavesWith(at))];
            flags ||= at.dirtyFlags;
          }
        }
        // The poll of a loop may leave.
        if (block.isLoop) {
          live |= this.#firstOf[this.levelOf(flow.dirty)];
          flags ||= flow.dirtyFlags;
        }
        if (live !== flow.live || flags !== flow.liveFlags) changed = true;
        flow.live = live;
        flow.liveFlags = flags;
      }
    }
  }

  #known(): void {
    const { blocks } = this.#graph;
    const out = new Map<Block, number>();
    for (let changed = true; changed; ) {
      changed = false;
      for (const block of blocks) {
        const flow = this.of(block);
        let known = block.order === 0 ? ANY_KIND : NO_KIND;
        for (const predecessor of block.predecessors) {
          const there = out.get(predecessor) ?? NO_KIND;
          if (known === NO_KIND) known = there;
          else if (there !== NO_KIND && there !== known) known = ANY_KIND;
        }
        flow.known = known;
        for (const { effects, isBoundary } of flow.instructions) {
          if (isBoundary) known = ANY_KIND;
          else if (effects.writesFlags) known = effects.flagsKind;
        }
        if (out.get(block) !== known) changed = true;
        out.set(block, known);
      }
    }
  }

  #clear(): void {
    const { blocks } = this.#graph;
    const out = new Map<Block, number>();
    for (let changed = true; changed; ) {
      changed = false;
      for (const block of blocks) {
        const flow = this.of(block);
        let clear = block.order === 0 ? 0 : ALL;
        for (const predecessor of block.predecessors) clear &= out.get(predecessor) ?? ALL;
        flow.clear = clear;
        for (const at of flow.instructions) {
          at.clear = clear;
          clear = at.isBoundary ? 0 : (clear & ~at.effects.spoils) | at.effects.clears;
        }
        if (out.get(block) !== clear) changed = true;
        out.set(block, clear);
      }
    }
  }
}

function start(block: Block): BlockFlow {
  const instructions = block.instructions.map((at): InstructionFlow => {
    const effects = at.variant === null ? branchEffects(at) : effectsOf(at.variant, at.instruction);
    const isCall = at.handler === CALL || at.handler === CALL_INDIRECT || at.handler === CALL_MEMORY;
    return {
      effects,
      isBoundary: (isCall && block.end.kind !== 'enter') || at.handler === RARE,
      dirty: 0,
      dirtyFlags: false,
      clear: 0,
      live: 0,
      liveFlags: false,
      accesses: [],
    };
  });
  return {
    instructions,
    dirty: 0,
    dirtyFlags: false,
    live: 0,
    liveFlags: false,
    clear: 0,
    known: ANY_KIND,
    dirtyOut: 0,
    dirtyFlagsOut: false,
  };
}
