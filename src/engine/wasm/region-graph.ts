/**
 * A region: a function-like piece of guest code as a graph of basic blocks, for the translator (region.ts).
 *
 * It starts where execution often enters, follows direct jumps and goes on behind calls, over at most PAGES_MAX pages around the
 * entry, and stops at INSTRUCTIONS_MAX. What leaves it is an exit. Positions are bytes from the start of the entry's page, so that
 * one translation serves all addresses at which its frames are mapped.
 *
 * Small functions that it calls become part of it, each call with a copy of its own: a kernel calls one every twenty-odd instructions, and
 * a call of a region takes and brings all registers by way of memory. CALL and RET stay what they are, so that the stack is as it should
 * be wherever the region is left.
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
/** Of a function that becomes part of its caller: instructions, and calls one in the other. */
export const INLINE_INSTRUCTIONS_MAX = 40;
const INLINE_DEPTH_MAX = 4;
/** With all that became part of it. */
const INSTRUCTIONS_IN_ALL_MAX = 480;
export const REGION_PAGES_MAX = 10;

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
  /** CALL of a function that is part of the region. */
  | { readonly kind: 'enter'; readonly body: Body }
  /** RET of such a function, if it comes back where it should. */
  | { readonly kind: 'return' }
  /** RET, an indirect jump, or a rare instruction that goes elsewhere: the last instruction says where to. */
  | { readonly kind: 'leave' }
  /** The interpreter goes on at `next`: what is there is not translated. */
  | { readonly kind: 'resume'; readonly next: number };

/** The code that was entered as the region, or by one call. */
export interface Body {
  readonly entry: number;
  /** Who calls it, and where it comes back; null = the region's own. */
  readonly caller: { readonly body: Body; readonly next: number } | null;
  readonly blocks: Map<number, Block>;
}

export interface Block {
  readonly start: number;
  readonly body: Body;
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
  /** Code of a program: a page of it that no process has asked for yet may be missing in a new one, and with it all that is part of a region. */
  readonly isUser: boolean;
  /** Code at an offset of a frame has been executed, as far as anyone knows: the rest is not worth translating. */
  isWarm(frame: number, offset: number): boolean;
  /** Functions that were found too large to be part of others: frame * 4096 + offset. It may be out of date, and is added to. */
  readonly large: Set<number>;
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

/** Decodes the instruction at a position; null when it cannot be part of a region that has `pagesMax` pages. */
function decodeAt(
  source: CodeSource,
  pages: Map<number, number>,
  pagesMax: number,
  position: number,
): RegionInstruction | null {
  const frameOf = (relative: number): number => {
    const known = pages.get(relative);
    if (known !== undefined) return known;
    if (pages.size >= pagesMax) return -1;
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
/** Where its callees may be: they and what is behind them are such numbers too. */
export const isNear = (position: number): boolean => Math.abs(position) < 0x7fff0000;

/** What is known of a body while it is explored. */
interface Found {
  readonly body: Body;
  readonly depth: number;
  readonly instructions: Map<number, RegionInstruction>;
  readonly leaders: Set<number>;
  /** Calls that may become part of it, by the position of the CALL. */
  readonly calls: Map<number, { readonly target: number; readonly next: number }>;
  /** Those that have. */
  readonly entered: Map<number, Body>;
}

const newFound = (entry: number, caller: Body['caller'], depth: number): Found => ({
  body: { entry, caller, blocks: new Map() },
  depth,
  instructions: new Map(),
  leaders: new Set([entry]),
  calls: new Map(),
  entered: new Map(),
});

/** Follows the code of a body as far as it goes, at most `max` instructions. False when there was more. */
function explore(source: CodeSource, pages: Map<number, number>, pagesMax: number, max: number, found: Found): boolean {
  const { instructions, leaders, calls, body } = found;
  const pending: number[] = [body.entry];
  let isWhole = true;
  while (pending.length > 0 && instructions.size < max) {
    let position = pending.shift() as number;
    while (!instructions.has(position)) {
      if (instructions.size === max) return false;
      const at = decodeAt(source, pages, pagesMax, position);
      if (at === null) {
        isWhole = false;
        break;
      }
      instructions.set(position, at);
      const next = position + at.instruction.length;
      const end = endOf(at);
      position = next;
      if (end === null) continue;
      const follow = (to: number): void => {
        if (!inReach(to - (body.entry & ~0xfff))) return;
        const frame = pages.get(to >> 12) ?? source.frame(to >> 12);
        if (frame < 0 || !source.isWarm(frame, to & 0xfff)) return;
        leaders.add(to);
        pending.push(to);
      };
      if (end.kind === 'jump' || end.kind === 'branch') follow(end.target);
      if (end.kind === 'branch' || end.kind === 'call') follow(end.next);
      if (end.kind === 'call' && end.target !== -1 && leaders.has(end.next))
        calls.set(at.position, { target: end.target, next: end.next });
      break;
    }
  }
  return isWhole && pending.every((position) => instructions.has(position));
}

/** The function that a call enters, if it is small, known, and comes back. */
function callee(
  source: CodeSource,
  pages: Map<number, number>,
  caller: Found,
  { target, next }: { readonly target: number; readonly next: number },
): Found | null {
  if (caller.depth === INLINE_DEPTH_MAX || !isNear(target)) return null;
  for (let body: Body | undefined = caller.body; body !== undefined; body = body.caller?.body)
    if (body.entry === target) return null;
  const frame = pages.get(target >> 12) ?? source.frame(target >> 12);
  const place = frame * 4096 + (target & 0xfff);
  if (frame < 0 || !source.isWarm(frame, target & 0xfff) || source.large.has(place)) return null;
  const found = newFound(target, { body: caller.body, next }, caller.depth + 1);
  const tried = new Map(pages);
  const pagesMax = source.isUser ? pages.size : REGION_PAGES_MAX;
  if (!explore(source, tried, pagesMax, INLINE_INSTRUCTIONS_MAX, found)) {
    if (found.instructions.size === INLINE_INSTRUCTIONS_MAX) source.large.add(place);
    return null;
  }
  if (![...found.instructions.values()].some(({ handler }) => handler === RETURN)) return null;
  for (const [relative, page] of tried) pages.set(relative, page);
  return found;
}

/** Discovers the region that starts at `entry` (0-4095). Null when its first instruction cannot be translated. */
export function discover(source: CodeSource, entry: number): RegionGraph | null {
  const pages = new Map<number, number>();
  const root = newFound(entry, null, 0);
  explore(source, pages, PAGES_MAX, INSTRUCTIONS_MAX, root);
  if (!root.instructions.has(entry)) return null;
  const bodies: Found[] = [root];
  let count = root.instructions.size;
  for (const found of bodies)
    for (const [position, call] of found.calls) {
      const inner = callee(source, pages, found, call);
      if (inner === null || count + inner.instructions.size > INSTRUCTIONS_IN_ALL_MAX) continue;
      count += inner.instructions.size;
      found.entered.set(position, inner.body);
      bodies.push(inner);
    }
  for (const found of bodies) makeBlocks(source, pages, found);
  const blocks = bodies.flatMap(({ body }) => [...body.blocks.values()]);
  return order(root.body.blocks.get(entry) as Block, blocks, pages);
}

function makeBlocks(source: CodeSource, pages: Map<number, number>, found: Found): void {
  const { body, leaders } = found;
  for (const start of leaders) {
    if (!found.instructions.has(start)) continue;
    const instructions: RegionInstruction[] = [];
    let position = start;
    let end: BlockEnd | null = null;
    while (end === null) {
      const at = found.instructions.get(position);
      if (at === undefined) {
        // What did not fit may become a region of its own.
        const more = position !== start && decodeAt(source, pages, pages.size, position) !== null;
        end = more ? { kind: 'jump', target: position } : { kind: 'resume', next: position };
      } else if (position !== start && leaders.has(position)) end = { kind: 'jump', target: position };
      else {
        instructions.push(at);
        position += at.instruction.length;
        end = endOf(at);
        const entered = found.entered.get(at.position);
        if (entered !== undefined) end = { kind: 'enter', body: entered };
        else if (at.handler === RETURN && body.caller !== null) end = { kind: 'return' };
      }
    }
    const fresh = { start, body, instructions, end, order: -1, dominator: null, successors: [], predecessors: [] };
    body.blocks.set(start, { ...fresh, isLoop: false, isMerge: false, children: [] });
  }
}

/** The blocks that a block may go on at, as far as they are in the region. */
function successorsOf({ body, end }: Block): (Block | undefined)[] {
  switch (end.kind) {
    case 'jump':
      return [body.blocks.get(end.target)];
    case 'branch':
      return [body.blocks.get(end.target), body.blocks.get(end.next)];
    case 'call':
      return [body.blocks.get(end.next)];
    case 'enter':
      return [end.body.blocks.get(end.body.entry)];
    case 'return':
      return [body.caller?.body.blocks.get(body.caller.next)];
    default:
      return [];
  }
}

function order(first: Block, blocks: readonly Block[], pages: Map<number, number>): RegionGraph {
  for (const block of blocks)
    for (const successor of successorsOf(block))
      if (successor !== undefined && !block.successors.includes(successor)) block.successors.push(successor);
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
  return { entry: first.start, blocks: ordered, pages, instructions };
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
