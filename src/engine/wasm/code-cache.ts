/**
 * Decoded code of one vCPU: straight runs of instructions as micro-ops, by the frame that holds them.
 *
 * A run (Run) starts where somebody jumped to and ends with a branch, at the end of the page, or where another run begins. Micro-ops
 * lie in chunks that belong to one frame each, so that a branch and its target in the same page can be linked directly: both live
 * and die with the frame's code. An instruction that reaches into the next page is a run of its own, valid only together with the
 * frame of that page: nobody links to it; it is found by address.
 *
 * When bytes change, the micro-ops of the runs that hold them become STALE where they are, which sends whoever runs them, or comes
 * to them by a link, back to look the address up. Memory is taken back only by dropping everything.
 */

import type { MachineMemory } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { DECODE_OK, DECODE_SHORT, decode } from '../x86/decoder.ts';
import { FORMS } from '../x86/forms.ts';
import { Instruction } from '../x86/instruction.ts';
import { OPERANDS } from '../x86/operands.ts';
import { ENCODED_MAX, Encoder } from './encode.ts';
import { CALL, ENDS_RUN, JCC, JUMP, LEAVE_PAGE, LINK, LOOP, RARE, REGION, STALE } from './handlers.ts';
import { STATE } from './layout.ts';
import { MICRO_OP } from './micro-op.ts';

const CHUNK_SHIFT = 11;
/** Of `stop`, in the chunk that holds ENTER and what `single` makes. */
const STOP_OFFSET = 1024;
const CHUNK_BYTES = 1 << CHUNK_SHIFT;
/** Instructions in a run. */
const RUN_MAX = 64;
const GRANULE_SHIFT = 7;

/** Forms that may be repeated. */
const STRINGS = Uint8Array.from(FORMS, (form) =>
  form.operands.some((type) => OPERANDS[type].class === 'source' || OPERANDS[type].class === 'destination') ? 1 : 0,
);

interface Run {
  readonly frame: number;
  /** Bytes of the page, `end` after the last. */
  readonly start: number;
  end: number;
  /** Offsets of its micro-ops, each in memory 1. */
  readonly microOps: number[];
  /** For an instruction that crosses pages: the frame of its second part; -1 otherwise. */
  readonly nextFrame: number;
}

interface CodePage {
  readonly runs: Map<number, Run>;
  readonly crossing: Map<number, Run>;
  /** Runs of the page before that reach into this one. */
  readonly tails: Run[];
  /** A bit for each offset where an instruction was decoded. */
  readonly decoded: Uint8Array;
  /** Where the next micro-op goes, and the end of that chunk. */
  next: number;
  chunkEnd: number;
}

export class CodeCache {
  readonly #machine: MachineMemory;
  readonly #block: VcpuBlock;
  readonly #encoder: Encoder;
  readonly #instruction = new Instruction();
  readonly #bytes = new Uint8Array(16);
  #pages = new Map<number, CodePage>();
  /** Frame of each chunk. */
  readonly #owners: Int32Array;
  #nextChunk: number;
  readonly #chunks: number;
  /** Called before a frame's first code is decoded: its granule bits are about to be set. */
  readonly #newGranule: (frame: number, bits: number) => void;
  /** Instructions decoded. */
  decoded = 0;

  constructor(machine: MachineMemory, block: VcpuBlock, newGranule: (frame: number, bits: number) => void) {
    this.#machine = machine;
    this.#block = block;
    this.#encoder = new Encoder(block.buffer);
    this.#newGranule = newGranule;
    this.#chunks = block.buffer.byteLength >> CHUNK_SHIFT;
    this.#owners = new Int32Array(this.#chunks).fill(-1);
    // The first one holds ENTER.
    this.#nextChunk = (STATE.microOps >> CHUNK_SHIFT) + 1;
  }

  /** Whether `find` may drop everything for want of room: then links and jump caches are void. */
  get isFull(): boolean {
    return this.#nextChunk + 4 >= this.#chunks;
  }

  /** Forgets all code. */
  clear(): void {
    this.#pages = new Map();
    this.#owners.fill(-1);
    this.#nextChunk = (STATE.microOps >> CHUNK_SHIFT) + 1;
  }

  #page(frame: number): CodePage {
    let page = this.#pages.get(frame);
    if (page === undefined) {
      page = { runs: new Map(), crossing: new Map(), tails: [], decoded: new Uint8Array(512), next: 0, chunkEnd: 0 };
      this.#pages.set(frame, page);
    }
    return page;
  }

  /** Frame that a micro-op's code is in, -1 = of none. */
  ownerOf(microOp: number): number {
    return this.#owners[microOp >>> CHUNK_SHIFT];
  }

  /** Whether the interpreter has come to an instruction, or to what is before it without a branch that was taken. */
  isDecoded(frame: number, offset: number): boolean {
    const page = this.#pages.get(frame);
    return page !== undefined && (page.decoded[offset >>> 3] & (1 << (offset & 7))) !== 0;
  }

  /** The micro-op at an offset of a frame; 0 when the instruction there reaches into the next page. */
  find(frame: number, offset: number): number {
    const page = this.#page(frame);
    const known = page.runs.get(offset);
    if (known !== undefined) return known.microOps[0];
    return this.#decodeRun(frame, page, offset);
  }

  /** The micro-op of an instruction that starts at `offset` of `frame` and goes on at the start of `nextFrame`. */
  findCrossing(frame: number, offset: number, nextFrame: number): number {
    const page = this.#page(frame);
    const known = page.crossing.get(offset);
    if (known !== undefined && known.nextFrame === nextFrame) return known.microOps[0];
    const bytes = this.#bytes;
    const u8 = this.#machine.u8;
    const first = 4096 - offset;
    this.#newGranule(frame, 1 << (offset >>> GRANULE_SHIFT));
    this.#newGranule(nextFrame, 1);
    for (let i = 0; i < 15; i++) bytes[i] = u8[i < first ? frame * 4096 + offset + i : nextFrame * 4096 + i - first];
    const instruction = this.#instruction;
    const status = decode(bytes, 0, 15, 64, instruction);
    const run: Run = { frame, start: offset, end: 4096, microOps: [], nextFrame };
    let at = this.#room(frame, page);
    const start = at;
    if (status !== DECODE_OK) at = this.#encoder.plain(at, RARE, offset, 0, 0);
    else {
      at = this.#encoder.encode(at, instruction, offset);
      this.decoded++;
      at = this.#encoder.plain(at, LEAVE_PAGE, offset, 0, offset + instruction.length);
    }
    for (let microOp = start; microOp < at; microOp += MICRO_OP.SIZE) run.microOps.push(microOp);
    page.next = at;
    page.crossing.set(offset, run);
    this.#page(nextFrame).tails.push(run);
    return start;
  }

  /** One instruction alone, not kept: what follows is found by address. 0 with a fault in the block from `nextFrame`. */
  single(frame: number, offset: number, nextFrame: () => number): number {
    const bytes = this.#bytes;
    const u8 = this.#machine.u8;
    const base = frame * 4096 + offset;
    const first = Math.min(15, 4096 - offset);
    for (let i = 0; i < first; i++) bytes[i] = u8[base + i];
    const instruction = this.#instruction;
    let status = decode(bytes, 0, first, 64, instruction);
    if (status === DECODE_SHORT) {
      const next = nextFrame();
      if (next < 0) return 0;
      for (let i = first; i < 15; i++) bytes[i] = u8[next * 4096 + i - first];
      status = decode(bytes, 0, 15, 64, instruction);
    }
    const start = STATE.microOps + MICRO_OP.SIZE;
    if (status !== DECODE_OK) {
      this.#encoder.plain(start, RARE, offset, 0, 0);
      return start;
    }
    // A repeated string instruction is to stop after each element: that is for rare-strings.ts.
    const isRepeated = instruction.rep !== 0 && STRINGS[instruction.form] !== 0;
    const end = isRepeated
      ? this.#encoder.plain(start, RARE, offset, 0, 0)
      : this.#encoder.encode(start, instruction, offset);
    this.#encoder.plain(end, LEAVE_PAGE, offset, 0, offset + instruction.length);
    return start;
  }

  /** A micro-op that says where single-stepping has come to, and does nothing else. */
  stop(offset: number): number {
    const at = STATE.microOps + STOP_OFFSET;
    this.#encoder.plain(at, LEAVE_PAGE, offset, 0, offset);
    return at;
  }

  /** Room for an instruction and a link behind it; chunks are joined by LINK. */
  #room(frame: number, page: CodePage): number {
    if (page.next + ENCODED_MAX + MICRO_OP.SIZE <= page.chunkEnd) return page.next;
    const chunk = this.#nextChunk++;
    if (chunk >= this.#chunks) throw new Error('bug: no room for micro-ops');
    this.#owners[chunk] = frame;
    page.next = chunk << CHUNK_SHIFT;
    page.chunkEnd = page.next + CHUNK_BYTES;
    return page.next;
  }

  #decodeRun(frame: number, page: CodePage, offset: number): number {
    const u8 = this.#machine.u8;
    const base = frame * 4096;
    const instruction = this.#instruction;
    const encoder = this.#encoder;
    const run: Run = { frame, start: offset, end: offset, microOps: [], nextFrame: -1 };
    let at = 0;
    let here = offset;
    let granules = 0;
    for (let count = 0; ; count++) {
      const other = count === 0 ? undefined : page.runs.get(here);
      if (other !== undefined) {
        run.microOps.push(at);
        at = encoder.plain(at, LINK, here, other.microOps[0], 0);
        break;
      }
      if (here >= 4096 || count === RUN_MAX) {
        run.microOps.push(at);
        at = encoder.plain(at, LEAVE_PAGE, Math.min(here, 4095), 0, here);
        break;
      }
      // What is decoded must be watched before it is read.
      const last = Math.min(here + 14, 4095);
      const wanted = (1 << (here >>> GRANULE_SHIFT)) | (1 << (last >>> GRANULE_SHIFT));
      if ((granules & wanted) !== wanted) {
        granules |= wanted;
        this.#newGranule(frame, wanted);
      }
      page.decoded[here >>> 3] |= 1 << (here & 7);
      const status = decode(u8, base + here, base + 4096, 64, instruction);
      if (status === DECODE_SHORT) {
        if (count === 0) return 0;
        run.microOps.push(at);
        at = encoder.plain(at, LEAVE_PAGE, here, 0, here);
        break;
      }
      const room = this.#room(frame, page);
      if (count > 0 && room !== at) {
        run.microOps.push(at);
        encoder.plain(at, LINK, here, room, 0);
      }
      at = room;
      const from = at;
      if (status !== DECODE_OK) {
        run.microOps.push(at);
        at = encoder.plain(at, RARE, here, 0, 0);
        here = Math.min(4096, here + 15);
        page.next = at;
        break;
      }
      at = encoder.encode(at, instruction, here);
      this.decoded++;
      for (let microOp = from; microOp < at; microOp += MICRO_OP.SIZE) run.microOps.push(microOp);
      page.next = at;
      here += instruction.length;
      if (ENDS_RUN[instruction.form] !== 0) {
        // Also behind branches that may not be taken: there the run goes on.
        if (!fallsThrough(this.#handler(at - MICRO_OP.SIZE))) break;
      }
    }
    run.end = here;
    if (at > page.next) page.next = at;
    page.runs.set(offset, run);
    return run.microOps[0];
  }

  #handler(microOp: number): number {
    return this.#block.u8[microOp] | (this.#block.u8[microOp + 1] << 8);
  }

  /** `from` goes to `target` (both micro-ops), at an offset of the same page: the next time without looking. */
  link(from: number, target: number, frame: number, offset: number): void {
    if (this.ownerOf(from) !== frame) return;
    // Not to what reaches into the next page: that one may be another at the next time.
    if (this.#pages.get(frame)?.runs.get(offset)?.microOps[0] !== target) return;
    const handler = this.#handler(from);
    if (handler === STALE) {
      this.#encoder.plain(from, LINK, offset, target, 0);
      return;
    }
    if (handler !== JUMP && handler !== CALL && !(handler >= LOOP && handler <= JCC + 15)) return;
    const immediate = this.#block.i32[(from + MICRO_OP.immediate) >>> 2];
    // Regions may have run since.
    if (immediate !== offset) return;
    this.#block.i32[(from + MICRO_OP.displacement) >>> 2] = target;
  }

  /** A region starts here: who comes by a link looks the address up. Its instructions are decoded anew when they are needed. */
  markRegion(frame: number, offset: number): void {
    const runs = this.#pages.get(frame)?.runs;
    const run = runs?.get(offset);
    if (run === undefined) return;
    this.#block.u8[run.microOps[0]] = REGION;
    this.#block.u8[run.microOps[0] + 1] = 0;
    runs?.delete(offset);
  }

  /** Bytes of a frame have changed. */
  invalidate(frame: number, offset: number, size: number): void {
    const page = this.#pages.get(frame);
    if (page === undefined) return;
    const end = offset + size;
    for (const [start, run] of page.runs) {
      if (run.end <= offset || run.start >= end) continue;
      this.#void(run);
      page.runs.delete(start);
    }
    for (const [start, run] of page.crossing) {
      if (run.start >= end) continue;
      this.#void(run);
      page.crossing.delete(start);
    }
    if (offset < 15 && page.tails.length > 0) {
      for (const run of page.tails) {
        this.#void(run);
        const first = this.#pages.get(run.frame)?.crossing;
        if (first?.get(run.start) === run) first.delete(run.start);
      }
      page.tails.length = 0;
    }
  }

  #void(run: Run): void {
    const u8 = this.#block.u8;
    for (const microOp of run.microOps) {
      u8[microOp] = STALE;
      u8[microOp + 1] = 0;
    }
  }
}

function fallsThrough(handler: number): boolean {
  return handler >= LOOP && handler <= JCC + 15;
}
