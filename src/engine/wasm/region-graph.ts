/**
 * A region: a function-like piece of guest code as a graph of basic blocks, for the translator (region.ts).
 *
 * It starts where execution often enters, follows direct jumps and goes on behind calls, over at most PAGES_MAX pages around the
 * entry, and stops at INSTRUCTIONS_MAX. What leaves it is an exit. Positions are bytes from the start of the entry's page, so that
 * one translation serves all addresses at which its frames are mapped.
 */

import { DECODE_OK, DECODE_SHORT, decode } from '../x86/decoder.ts';
import { Instruction } from '../x86/instruction.ts';
import {
  CALL,
  CALL_INDIRECT,
  CALL_MEMORY,
  ENDS_RUN,
  handlerOf,
  JCC,
  JUMP,
  JUMP_INDIRECT,
  JUMP_MEMORY,
  LOOP,
  RARE,
  RETURN,
  type Variant,
  variantOf,
} from './handlers.ts';

export const INSTRUCTIONS_MAX = 240;
const PAGES_MAX = 3;

export interface RegionInstruction {
  /** Bytes from the start of the entry's page. */
  readonly position: number;
  readonly instruction: Instruction;
  readonly handler: number;
  readonly variant: Variant | null;
}

export type BlockEnd =
  /** Goes on at `target`. */
  | { readonly kind: 'jump'; readonly target: number }
  /** The last instruction is a conditional branch (JCC, LOOP*, JRCXZ). */
  | { readonly kind: 'branch'; readonly target: number; readonly next: number }
  /** CALL: `target` -1 = indirect; comes back at `next`. */
  | { readonly kind: 'call'; readonly target: number; readonly next: number }
  /** RET, an indirect jump, or a rare instruction that goes elsewhere: the last instruction says where to. */
  | { readonly kind: 'leave' }
  /** The interpreter goes on at `next`: what is there is not translated. */
  | { readonly kind: 'resume'; readonly next: number };

export interface Block {
  readonly start: number;
  readonly instructions: RegionInstruction[];
  end: BlockEnd;
  /** Index in the region's `blocks`, which are in reverse postorder. */
  order: number;
  dominator: Block | null;
  readonly successors: Block[];
  readonly predecessors: Block[];
  /** A back edge from a block that this one dominates comes here. */
  isLoop: boolean;
  /** More than one forward edge comes here. */
  isMerge: boolean;
  readonly children: Block[];
}

export interface RegionGraph {
  readonly entry: number;
  readonly blocks: readonly Block[];
  /** Relative page -> frame that it was read from. */
  readonly pages: ReadonlyMap<number, number>;
  readonly instructions: number;
}

export interface CodeSource {
  /** Memory 0. */
  readonly u8: Uint8Array;
  /** Frame of the page `relative` pages from the entry's, or -1. */
  frame(relative: number): number;
  /** Code at an offset of a frame has been executed, as far as anyone knows: the rest is not worth translating. */
  isWarm(frame: number, offset: number): boolean;
}

function copy(from: Instruction): Instruction {
  const to = new Instruction();
  to.length = from.length;
  to.form = from.form;
  to.operandSize = from.operandSize;
  to.addressSize = from.addressSize;
  to.lock = from.lock;
  to.rep = from.rep;
  to.segment = from.segment;
  to.rex = from.rex;
  to.mod = from.mod;
  to.reg = from.reg;
  to.rm = from.rm;
  to.base = from.base;
  to.index = from.index;
  to.scale = from.scale;
  to.displacement = from.displacement;
  to.immLo = from.immLo;
  to.immHi = from.immHi;
  to.imm2 = from.imm2;
  to.vexL = from.vexL;
  to.vvvv = from.vvvv;
  to.vexW = from.vexW;
  return to;
}

const work = new Instruction();
const gathered = new Uint8Array(16);

/** Decodes the instruction at a position; null when it cannot be part of a region. */
function decodeAt(source: CodeSource, pages: Map<number, number>, position: number): RegionInstruction | null {
  const frameOf = (relative: number): number => {
    const known = pages.get(relative);
    if (known !== undefined) return known;
    if (pages.size >= PAGES_MAX) return -1;
    const frame = source.frame(relative);
    if (frame >= 0) pages.set(relative, frame);
    return frame;
  };
  const relative = position >> 12;
  const frame = frameOf(relative);
  if (frame < 0) return null;
  const offset = position & 0xfff;
  const base = frame * 4096;
  let status = decode(source.u8, base + offset, base + 4096, 64, work);
  if (status === DECODE_SHORT) {
    const next = frameOf(relative + 1);
    if (next < 0) return null;
    const first = 4096 - offset;
    for (let i = 0; i < 15; i++)
      gathered[i] = i < first ? source.u8[base + offset + i] : source.u8[next * 4096 + i - first];
    status = decode(gathered, 0, 15, 64, work);
  }
  if (status !== DECODE_OK) return null;
  const handler = handlerOf(work);
  return { position, instruction: copy(work), handler, variant: variantOf(handler) };
}

const isConditional = (handler: number): boolean => handler >= LOOP && handler < JCC + 16;

/** The branch's target, relative to the entry's page. */
const targetOf = ({ position, instruction }: RegionInstruction): number =>
  position + instruction.length + instruction.immLo;

/** How the code ends at an instruction, or null when it goes on behind it. */
function endOf(at: RegionInstruction): BlockEnd | null {
  const next = at.position + at.instruction.length;
  switch (at.handler) {
    case JUMP:
      return { kind: 'jump', target: targetOf(at) };
    case CALL:
      return { kind: 'call', target: targetOf(at), next };
    case CALL_INDIRECT:
    case CALL_MEMORY:
      return { kind: 'call', target: -1, next };
    case RETURN:
    case JUMP_INDIRECT:
    case JUMP_MEMORY:
      return { kind: 'leave' };
    case RARE:
      return ENDS_RUN[at.instruction.form] !== 0 ? { kind: 'leave' } : null;
    default:
      return isConditional(at.handler) ? { kind: 'branch', target: targetOf(at), next } : null;
  }
}

/** Positions that a region may be entered at or branch to: within its pages, as signed 32-bit numbers. */
const inReach = (position: number): boolean => position >= -8192 && position < 12288;

/** Discovers the region that starts at `entry` (0-4095). Null when its first instruction cannot be translated. */
export function discover(source: CodeSource, entry: number): RegionGraph | null {
  const pages = new Map<number, number>();
  const found = new Map<number, RegionInstruction>();
  const leaders = new Set<number>([entry]);
  const pending: number[] = [entry];
  while (pending.length > 0 && found.size < INSTRUCTIONS_MAX) {
    let position = pending.shift() as number;
    while (!found.has(position) && found.size < INSTRUCTIONS_MAX) {
      const at = decodeAt(source, pages, position);
      if (at === null) break;
      found.set(position, at);
      position += at.instruction.length;
      const end = endOf(at);
      if (end === null) continue;
      const follow = (to: number): void => {
        if (!inReach(to)) return;
        const frame = pages.get(to >> 12) ?? source.frame(to >> 12);
        if (frame < 0 || !source.isWarm(frame, to & 0xfff)) return;
        leaders.add(to);
        pending.push(to);
      };
      if (end.kind === 'jump' || end.kind === 'branch') follow(end.target);
      if (end.kind === 'branch' || end.kind === 'call') follow(end.next);
      break;
    }
  }
  if (!found.has(entry)) return null;

  const blocks = new Map<number, Block>();
  for (const start of leaders) {
    if (!found.has(start)) continue;
    const instructions: RegionInstruction[] = [];
    let position = start;
    let end: BlockEnd | null = null;
    while (end === null) {
      const at = found.get(position);
      if (at === undefined) {
        // What did not fit may become a region of its own.
        const more = position !== start && decodeAt(source, pages, position) !== null;
        end = more ? { kind: 'jump', target: position } : { kind: 'resume', next: position };
      } else if (position !== start && leaders.has(position)) end = { kind: 'jump', target: position };
      else {
        instructions.push(at);
        position += at.instruction.length;
        end = endOf(at);
      }
    }
    const fresh = { start, instructions, end, order: -1, dominator: null, successors: [], predecessors: [] };
    blocks.set(start, { ...fresh, isLoop: false, isMerge: false, children: [] });
  }
  return order(entry, blocks, pages);
}

function order(entry: number, blocks: ReadonlyMap<number, Block>, pages: Map<number, number>): RegionGraph {
  const first = blocks.get(entry) as Block;
  for (const block of blocks.values()) {
    const { end } = block;
    const to =
      end.kind === 'jump'
        ? [end.target]
        : end.kind === 'branch'
          ? [end.target, end.next]
          : end.kind === 'call'
            ? [end.next]
            : [];
    for (const position of to) {
      const successor = blocks.get(position);
      if (successor !== undefined && !block.successors.includes(successor)) block.successors.push(successor);
    }
  }
  // Reverse postorder, without recursion.
  const postorder: Block[] = [];
  const seen = new Set<Block>([first]);
  const stack: { readonly block: Block; next: number }[] = [{ block: first, next: 0 }];
  while (stack.length > 0) {
    const top = stack[stack.length - 1];
    if (top.next < top.block.successors.length) {
      const successor = top.block.successors[top.next++];
      if (!seen.has(successor)) {
        seen.add(successor);
        stack.push({ block: successor, next: 0 });
      }
    } else {
      postorder.push(top.block);
      stack.pop();
    }
  }
  const ordered = postorder.reverse();
  ordered.forEach((block, i) => {
    block.order = i;
  });
  for (const block of ordered) for (const successor of block.successors) successor.predecessors.push(block);
  dominate(ordered);
  let instructions = 0;
  for (const block of ordered) {
    let forward = 0;
    for (const predecessor of block.predecessors) {
      if (predecessor.order < block.order) forward++;
      else if (dominates(block, predecessor)) block.isLoop = true;
    }
    block.isMerge = forward > 1;
    block.dominator?.children.push(block);
    instructions += block.instructions.length;
  }
  return { entry, blocks: ordered, pages, instructions };
}

/** Immediate dominators. Source: Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm". */
function dominate(ordered: readonly Block[]): void {
  const [entry] = ordered;
  entry.dominator = entry;
  for (let changed = true; changed; ) {
    changed = false;
    for (const block of ordered) {
      if (block === entry) continue;
      let best: Block | null = null;
      for (const predecessor of block.predecessors) {
        if (predecessor.dominator === null) continue;
        best = best === null ? predecessor : meet(best, predecessor);
      }
      if (best !== block.dominator) {
        block.dominator = best;
        changed = true;
      }
    }
  }
  entry.dominator = null;
}

function meet(one: Block, other: Block): Block {
  let a = one;
  let b = other;
  while (a !== b) {
    while (a.order > b.order) a = a.dominator as Block;
    while (b.order > a.order) b = b.dominator as Block;
  }
  return a;
}

export function dominates(above: Block, below: Block): boolean {
  for (let block: Block | null = below; block !== null; block = block.dominator) if (block === above) return true;
  return false;
}
