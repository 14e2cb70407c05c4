/**
 * Decoded code of one vCPU: straight runs of instructions as micro-ops, by the frame that holds them.
 *
 * A run starts where somebody jumped to and ends with a branch, at the end of the page, or where another run begins. Micro-ops lie in
 * chunks that belong to one frame each, so that a branch and its target in the same page can be linked directly: both live and die
 * with the frame's code. An instruction that reaches into the next page is a run of its own (Crossing), valid only together with the
 * frame of that page: nobody links to it; it is found by address.
 *
 * When bytes change, the micro-ops of instructions that hold them become STALE where they are, which sends whoever comes to them
 * back to look the address up. Memory is taken back only by dropping everything.
 */

import type { MachineMemory } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { DECODE_OK, DECODE_SHORT, decode } from '../x86/decoder.ts';
import { FORMS } from '../x86/forms.ts';
import { Instruction } from '../x86/instruction.ts';
import { OPERANDS } from '../x86/operands.ts';
import { ENCODED_MAX, Encoder } from './encode.ts';
import {
  CALL,
  CALL_32,
  ENDS_RUN,
  isConditional,
  isWide,
  JUMP,
  LEAVE_PAGE,
  LINK,
  RARE,
  REGION,
  STALE,
} from './handlers.ts';
import { STATE } from './layout.ts';
import { MICRO_OP } from './micro-op.ts';
import { RunTable } from './run-table.ts';

const CHUNK_SHIFT = 11;
/** Of `stop`, in the chunk that holds ENTER and what `single` makes. */
const STOP_OFFSET = 1024;
const CHUNK_BYTES = 1 << CHUNK_SHIFT;
/** Instructions in a run. */
const RUN_MAX = 64;
const GRANULE_SHIFT = 7;
/** Bytes of the longest instruction. */
const INSTRUCTION_MAX = 15;

/** Forms that may be repeated. */
const STRINGS = Uint8Array.from(FORMS, (form) =>
  form.operands.some((type) => OPERANDS[type].class === 'source' || OPERANDS[type].class === 'destination') ? 1 : 0,
);

/** An instruction that reaches into the next page, valid with this frame there. */
interface Crossing {
  readonly frame: number;
  readonly offset: number;
  readonly nextFrame: number;
  readonly microOp: number;
}

export class CodeCache {
  readonly #machine: MachineMemory;
  readonly #block: VcpuBlock;
  readonly #encoder: Encoder;
  readonly #instruction = new Instruction();
  readonly #bytes = new Uint8Array(16);
  /** (frame, offset) of a run's start -> its first micro-op. */
  readonly #starts = new RunTable();
  /** A bit for each offset where an instruction was decoded. By frame. */
  #decodedBits = new Map<number, Uint8Array>();
  /** By frame * 4096 + offset, and those that reach into a frame. */
  #crossings = new Map<number, Crossing>();
  #tails = new Map<number, Crossing[]>();
  /** Of each chunk: its frame, bytes that are taken, and the frame's chunk before it. */
  readonly #owners: Int32Array;
  readonly #taken: Uint16Array;
  readonly #previous: Int32Array;
  /** The chunk that a frame's next micro-op goes to, -1 = none. */
  readonly #last: Int32Array;
  #nextChunk: number;
  readonly #chunks: number;
  /** Called before a frame's first code is decoded: its granule bits are about to be set. */
  readonly #newGranule: (frame: number, bits: number) => void;
  /** Code size by frame, 0 = none yet: only code of one size is kept of a frame. */
  readonly #sizes: Uint8Array;
  /** Instructions decoded. */
  decoded = 0;

  constructor(machine: MachineMemory, block: VcpuBlock, newGranule: (frame: number, bits: number) => void) {
    this.#machine = machine;
    this.#block = block;
    this.#encoder = new Encoder(block.buffer);
    this.#newGranule = newGranule;
    this.#chunks = block.buffer.byteLength >> CHUNK_SHIFT;
    this.#owners = new Int32Array(this.#chunks).fill(-1);
    this.#taken = new Uint16Array(this.#chunks);
    this.#previous = new Int32Array(this.#chunks);
    this.#last = new Int32Array(machine.u8.length >>> 12).fill(-1);
    this.#sizes = new Uint8Array(this.#last.length);
    // The first one holds ENTER.
    this.#nextChunk = (STATE.microOps >> CHUNK_SHIFT) + 1;
  }

  /** Whether `find` may drop everything for want of room: then links and jump caches are void. */
  get isFull(): boolean {
    return this.#nextChunk + 4 >= this.#chunks;
  }

  /** Forgets all code. */
  clear(): void {
    this.#starts.clear();
    this.#decodedBits = new Map();
    this.#crossings = new Map();
    this.#tails = new Map();
    this.#owners.fill(-1);
    this.#last.fill(-1);
    this.#sizes.fill(0);
    this.#nextChunk = (STATE.microOps >> CHUNK_SHIFT) + 1;
  }

  /** Size of the code that is found from now on. Jump caches hold what was found before. */
  set bits(bits: 32 | 64) {
    this.#encoder.bits = bits;
  }

  /** Code of a frame is wanted: that of the other size is forgotten. */
  #expect(frame: number): void {
    const { bits } = this.#encoder;
    if (this.#sizes[frame] === bits) return;
    if (this.#sizes[frame] !== 0) {
      this.invalidate(frame, 0, 4096);
      this.#decodedBits.delete(frame);
    }
    this.#sizes[frame] = bits;
  }

  /** Frame that a micro-op's code is in, -1 = of none. */
  ownerOf(microOp: number): number {
    return this.#owners[microOp >>> CHUNK_SHIFT];
  }

  /** Whether the interpreter has come to an instruction, or to what is before it without a branch that was taken. */
  isDecoded(frame: number, offset: number): boolean {
    const bits = this.#decodedBits.get(frame);
    return bits !== undefined && (bits[offset >>> 3] & (1 << (offset & 7))) !== 0;
  }

  /** Calls `visit` with the handler of each micro-op that there is. */
  handlers(visit: (handler: number) => void): void {
    for (let chunk = (STATE.microOps >> CHUNK_SHIFT) + 1; chunk < this.#nextChunk; chunk++) {
      const end = (chunk << CHUNK_SHIFT) + this.#taken[chunk];
      for (let at = chunk << CHUNK_SHIFT; at < end; ) {
        const handler = this.#handler(at);
        visit(handler);
        at += isWide(handler) ? MICRO_OP.WIDE_SIZE : MICRO_OP.SIZE;
      }
    }
  }

  /** Calls `visit` with the offsets in a frame where runs of 64-bit code start. */
  startsIn(frame: number, visit: (offset: number) => void): void {
    const bits = this.#decodedBits.get(frame);
    if (bits === undefined || this.#sizes[frame] !== 64) return;
    for (let offset = 0; offset < 4096; offset++)
      if ((bits[offset >>> 3] & (1 << (offset & 7))) !== 0 && this.#starts.get(frame * 4096 + offset) !== 0)
        visit(offset);
  }

  /** The micro-op at an offset of a frame; 0 when the instruction there reaches into the next page. */
  find(frame: number, offset: number): number {
    this.#expect(frame);
    const known = this.#starts.get(frame * 4096 + offset);
    return known !== 0 ? known : this.#decodeRun(frame, offset);
  }

  /** The micro-op of an instruction that starts at `offset` of `frame` and goes on at the start of `nextFrame`. */
  findCrossing(frame: number, offset: number, nextFrame: number): number {
    this.#expect(frame);
    const known = this.#crossings.get(frame * 4096 + offset);
    if (known !== undefined && known.nextFrame === nextFrame) return known.microOp;
    const bytes = this.#bytes;
    const u8 = this.#machine.u8;
    const first = 4096 - offset;
    this.#newGranule(frame, 1 << (offset >>> GRANULE_SHIFT));
    this.#newGranule(nextFrame, 1);
    for (let i = 0; i < 15; i++) bytes[i] = u8[i < first ? frame * 4096 + offset + i : nextFrame * 4096 + i - first];
    const instruction = this.#instruction;
    const status = decode(bytes, 0, 15, this.#encoder.bits, instruction);
    const microOp = this.#room(frame);
    let at = microOp;
    if (status !== DECODE_OK) at = this.#encoder.plain(at, RARE, offset, 0, 0);
    else {
      this.#encoder.restart();
      at = this.#encoder.encode(at, instruction, offset);
      this.decoded++;
      at = this.#encoder.plain(at, LEAVE_PAGE, offset, 0, offset + instruction.length);
    }
    this.#take(at);
    const crossing: Crossing = { frame, offset, nextFrame, microOp };
    this.#crossings.set(frame * 4096 + offset, crossing);
    const tails = this.#tails.get(nextFrame);
    if (tails === undefined) this.#tails.set(nextFrame, [crossing]);
    else tails.push(crossing);
    return microOp;
  }

  /** One instruction alone, not kept: what follows is found by address. 0 with a fault in the block from `nextFrame`. */
  single(frame: number, offset: number, nextFrame: () => number): number {
    const bytes = this.#bytes;
    const u8 = this.#machine.u8;
    const base = frame * 4096 + offset;
    const first = Math.min(15, 4096 - offset);
    for (let i = 0; i < first; i++) bytes[i] = u8[base + i];
    const instruction = this.#instruction;
    let status = decode(bytes, 0, first, this.#encoder.bits, instruction);
    if (status === DECODE_SHORT) {
      const next = nextFrame();
      if (next < 0) return 0;
      for (let i = first; i < 15; i++) bytes[i] = u8[next * 4096 + i - first];
      status = decode(bytes, 0, 15, this.#encoder.bits, instruction);
    }
    const start = STATE.microOps + MICRO_OP.SIZE;
    if (status !== DECODE_OK) {
      this.#encoder.plain(start, RARE, offset, 0, 0);
      return start;
    }
    // A repeated string instruction is to stop after each element: that is for rare-strings.ts.
    const isRepeated = instruction.rep !== 0 && STRINGS[instruction.form] !== 0;
    this.#encoder.restart();
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

  /** A micro-op for an address beyond 4 GiB that 32-bit code has come to (rare.ts). */
  beyond(offset: number): number {
    const at = STATE.microOps + STOP_OFFSET;
    this.#encoder.plain(at, RARE, offset, 0, 0);
    return at;
  }

  /** Room for an instruction and a link behind it; chunks are joined by LINK. */
  #room(frame: number): number {
    const last = this.#last[frame];
    if (last >= 0 && this.#taken[last] + ENCODED_MAX + MICRO_OP.SIZE <= CHUNK_BYTES)
      return (last << CHUNK_SHIFT) + this.#taken[last];
    const chunk = this.#nextChunk++;
    if (chunk >= this.#chunks) throw new Error('bug: no room for micro-ops');
    this.#owners[chunk] = frame;
    this.#taken[chunk] = 0;
    this.#previous[chunk] = last;
    this.#last[frame] = chunk;
    return chunk << CHUNK_SHIFT;
  }

  /** All before `end` is taken in its chunk. */
  #take(end: number): void {
    const chunk = (end - 1) >>> CHUNK_SHIFT;
    this.#taken[chunk] = end - (chunk << CHUNK_SHIFT);
  }

  #decodeRun(frame: number, offset: number): number {
    const u8 = this.#machine.u8;
    const base = frame * 4096;
    const instruction = this.#instruction;
    const encoder = this.#encoder;
    let bits = this.#decodedBits.get(frame);
    if (bits === undefined) {
      bits = new Uint8Array(512);
      this.#decodedBits.set(frame, bits);
    }
    let start = 0;
    let at = 0;
    let here = offset;
    let granules = 0;
    encoder.restart();
    for (let count = 0; ; count++) {
      if (here >= 4096 || count === RUN_MAX) {
        at = encoder.plain(at, LEAVE_PAGE, Math.min(here, 4095), 0, here);
        break;
      }
      const other = count === 0 ? 0 : this.#starts.get(base + here);
      if (other !== 0) {
        at = encoder.plain(at, LINK, here, other, 0);
        break;
      }
      // What is decoded must be watched before it is read.
      const last = Math.min(here + 14, 4095);
      const wanted = (1 << (here >>> GRANULE_SHIFT)) | (1 << (last >>> GRANULE_SHIFT));
      if ((granules & wanted) !== wanted) {
        granules |= wanted;
        this.#newGranule(frame, wanted);
      }
      bits[here >>> 3] |= 1 << (here & 7);
      const status = decode(u8, base + here, base + 4096, encoder.bits, instruction);
      if (status === DECODE_SHORT) {
        if (count === 0) return 0;
        at = encoder.plain(at, LEAVE_PAGE, here, 0, here);
        break;
      }
      const room = this.#room(frame);
      if (count === 0) start = room;
      else if (room !== at) this.#take(encoder.plain(at, LINK, here, room, 0));
      at = room;
      if (status !== DECODE_OK) {
        at = encoder.plain(at, RARE, here, 0, 0);
        break;
      }
      at = encoder.encode(at, instruction, here);
      this.decoded++;
      this.#take(at);
      here += instruction.length;
      // Behind branches that may not be taken the run goes on.
      if (ENDS_RUN[instruction.form] !== 0 && !isConditional(this.#handler(at - MICRO_OP.SIZE))) break;
    }
    this.#take(at);
    this.#starts.set(base + offset, start);
    return start;
  }

  #handler(microOp: number): number {
    return this.#block.u8[microOp] | (this.#block.u8[microOp + 1] << 8);
  }

  /** `from` goes to `target` (both micro-ops), at an offset of the same page: the next time without looking. */
  link(from: number, target: number, frame: number, offset: number): void {
    if (this.ownerOf(from) !== frame) return;
    // Not to what reaches into the next page: that one may be another at the next time.
    if (this.#starts.get(frame * 4096 + offset) !== target) return;
    const handler = this.#handler(from);
    if (handler === STALE) {
      this.#encoder.plain(from, LINK, offset, target, 0);
      return;
    }
    if (handler !== JUMP && handler !== CALL && handler !== CALL_32 && !isConditional(handler)) return;
    const immediate = this.#block.i32[(from + MICRO_OP.immediate) >>> 2];
    // Regions may have run since.
    if (immediate !== offset) return;
    this.#block.i32[(from + MICRO_OP.displacement) >>> 2] = target;
  }

  /** A region starts here: who comes by a link looks the address up. Its instructions are decoded anew when they are needed. */
  markRegion(frame: number, offset: number): void {
    const key = frame * 4096 + offset;
    const microOp = this.#starts.get(key);
    if (microOp === 0) return;
    this.#replace(microOp, REGION);
    this.#starts.delete(key);
  }

  /** A micro-op becomes one without operands, both halves of a wide one. Returns the offset of the next. */
  #replace(microOp: number, handler: number): number {
    const { u8 } = this.#block;
    const end = microOp + (isWide(this.#handler(microOp)) ? MICRO_OP.WIDE_SIZE : MICRO_OP.SIZE);
    for (let half = microOp; half < end; half += MICRO_OP.SIZE) {
      u8[half] = handler;
      u8[half + 1] = 0;
    }
    return end;
  }

  /** Bytes of a frame have changed. */
  invalidate(frame: number, offset: number, size: number): void {
    const first = Math.max(0, offset - INSTRUCTION_MAX + 1);
    const end = offset + size;
    if (this.#last[frame] >= 0) {
      const bits = this.#decodedBits.get(frame);
      for (let at = first; bits !== undefined && at < end; at++)
        if ((bits[at >>> 3] & (1 << (at & 7))) !== 0) this.#starts.delete(frame * 4096 + at);
      this.#void(frame, first, end);
    }
    for (let at = Math.max(first, 4096 - INSTRUCTION_MAX + 1); at < end; at++)
      this.#crossings.delete(frame * 4096 + at);
    const tails = this.#tails.get(frame);
    if (tails === undefined || offset >= INSTRUCTION_MAX) return;
    for (const crossing of tails) {
      this.#replace(crossing.microOp, STALE);
      const key = crossing.frame * 4096 + crossing.offset;
      if (this.#crossings.get(key) === crossing) this.#crossings.delete(key);
    }
    this.#tails.delete(frame);
  }

  /** The micro-ops of a frame's instructions that start in a range. A chunk of which all is stale need not be looked at again. */
  #void(frame: number, first: number, end: number): void {
    const { u8 } = this.#block;
    let later = -1;
    for (let chunk = this.#last[frame]; chunk >= 0; chunk = this.#previous[chunk]) {
      const start = chunk << CHUNK_SHIFT;
      const stop = start + this.#taken[chunk];
      let live = 0;
      for (let at = start; at < stop; ) {
        const offset = (u8[at + MICRO_OP.scale] | (u8[at + MICRO_OP.scale + 1] << 8)) >>> 4;
        const handler = this.#handler(at);
        if (offset >= first && offset < end) at = this.#replace(at, STALE);
        else {
          if (handler !== STALE) live++;
          at += isWide(handler) ? MICRO_OP.WIDE_SIZE : MICRO_OP.SIZE;
        }
      }
      if (live === 0 && later >= 0) this.#previous[later] = this.#previous[chunk];
      else later = chunk;
    }
  }
}
