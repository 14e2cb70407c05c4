/**
 * Pages of a domain that runs, sent again and again: of one that has been sent twice and changes still, only the words that differ from what
 * was sent last. A program that goes round in memory stores into all of its pages meanwhile, but seldom all of a page.
 *
 *   PART_DELTAS  u32 count, then for each page u32 frame, u32 runs; for each run u32 (first word, and how many in the upper half), and
 *                those words; frames and words ascend
 *
 * The sender keeps the pages that have been sent a second time, up to KEPT_BYTES_MAX: what has been sent once may never change. The reader
 * keeps nothing: what was sent last is in its memory.
 */

import { type MachineMemory, PAGE_SIZE } from '../../machine/memory.ts';
import { type CompareLines, createCompareLines, LINE_BYTES, LINES_COMPARED } from './page-compare.ts';
import { PART_DELTAS, PART_PAGES, type Part, SaveFileError } from './save-file.ts';
import { encodeFrames, framesToSend, PAGES_MAX } from './saved-memory.ts';

const PAGE_WORDS = PAGE_SIZE / 4;
/** Of one with more, all is sent. */
const WORDS_MAX = PAGE_WORDS / 4;
const PAGE_HEADER_WORDS = 2;
/** Each word that differs may be a run. */
const DELTA_WORDS_MAX = PAGE_HEADER_WORDS + 2 * WORDS_MAX;
const KEPT_BYTES_MAX = 64 << 20;
const LINE_WORDS = LINE_BYTES / 4;
const WASM_PAGE_BYTES = 65536;
const NOT_KEPT = -1;

export class SentPages {
  readonly #machine: MachineMemory;
  readonly #keptMax: number;
  /** By frame: which of the pages kept it is. */
  readonly #places: Int32Array;
  /** Pages kept, one behind the other; those that are not are memory that nobody has touched. */
  readonly #sent: Uint8Array;
  readonly #sentWords: Uint32Array;
  readonly #compare: CompareLines;
  #kept = 0;
  /** A part in the making. */
  readonly #words = new Uint32Array(1 + PAGES_MAX * DELTA_WORDS_MAX);
  #filled = 1;

  constructor(machine: MachineMemory, keptBytesMax: number = KEPT_BYTES_MAX) {
    this.#machine = machine;
    this.#keptMax = Math.floor(keptBytesMax / PAGE_SIZE);
    this.#places = new Int32Array(machine.layout.nameableFrames).fill(NOT_KEPT);
    const pages = Math.ceil((this.#keptMax * PAGE_SIZE) / WASM_PAGE_BYTES);
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.#sent = new Uint8Array(memory.buffer);
    this.#sentWords = new Uint32Array(memory.buffer);
    this.#compare = createCompareLines(machine.memory, memory);
  }

  /** Parts with what these pages hold now, as far as the domain owns them; they ascend. The reader must have all that was encoded before. */
  *encode(wanted: readonly number[]): Generator<Part> {
    const whole: number[] = [];
    let deltas = 0;
    for (const frame of framesToSend(this.#machine, wanted)) {
      if (this.#addDelta(frame)) deltas++;
      else whole.push(frame);
      if (deltas === PAGES_MAX) {
        yield this.#takeDeltas(deltas);
        deltas = 0;
      }
      if (whole.length === PAGES_MAX) yield this.#encodeWhole(whole.splice(0));
    }
    if (deltas > 0) yield this.#takeDeltas(deltas);
    if (whole.length > 0) yield this.#encodeWhole(whole);
  }

  #encodeWhole(frames: readonly number[]): Part {
    const bytes = encodeFrames(this.#machine.u8, frames);
    // The guest may have stored into them since: what is kept is what is sent.
    let at = 4 + frames.length * 4;
    for (const frame of frames) {
      this.#keep(frame, bytes, at);
      at += PAGE_SIZE;
    }
    return { kind: PART_PAGES, bytes };
  }

  #keep(frame: number, bytes: Uint8Array, at: number): void {
    if (this.#places[frame] === NOT_KEPT) {
      if (this.#kept === this.#keptMax) return;
      this.#places[frame] = this.#kept++;
    }
    this.#sent.set(bytes.subarray(at, at + PAGE_SIZE), this.#places[frame] * PAGE_SIZE);
  }

  #takeDeltas(count: number): Part {
    this.#words[0] = count;
    const bytes = new Uint8Array(this.#words.slice(0, this.#filled).buffer);
    this.#filled = 1;
    return { kind: PART_DELTAS, bytes };
  }

  /** False: all of it has to be sent. */
  #addDelta(frame: number): boolean {
    const place = this.#places[frame];
    if (place === NOT_KEPT) return false;
    const now = this.#machine.u32;
    const sent = this.#sentWords;
    const words = this.#words;
    const nowAt = frame * PAGE_WORDS;
    const sentAt = place * PAGE_WORDS;
    const start = this.#filled;
    let at = start + PAGE_HEADER_WORDS;
    let runs = 0;
    /** The run that may go on: its header, and the word behind it. */
    let run = 0;
    let next = -1;
    let left = WORDS_MAX;
    for (let first = 0; first < PAGE_WORDS; first += LINES_COMPARED * LINE_WORDS) {
      let lines = this.#compare((nowAt + first) * 4, (sentAt + first) * 4);
      while (lines !== 0) {
        const line = 31 - Math.clz32(lines & -lines);
        lines &= lines - 1;
        const from = first + line * LINE_WORDS;
        for (let word = from; word < from + LINE_WORDS; word++) {
          const value = now[nowAt + word];
          if (value === sent[sentAt + word]) continue;
          if (left-- === 0) return false;
          sent[sentAt + word] = value;
          if (word !== next) {
            runs++;
            run = at++;
            words[run] = word;
          }
          words[at++] = value;
          words[run] += 1 << 16;
          next = word + 1;
        }
      }
    }
    words[start] = frame;
    words[start + 1] = runs;
    this.#filled = at;
    return true;
  }
}

/** Stores what PART_DELTAS says into pages that are there. `stored`: called with each frame behind that. @throws SaveFileError */
export function decodeDeltas(
  bytes: Uint8Array,
  { u32, layout }: MachineMemory,
  stored: (frame: number) => void = () => {},
): void {
  const bad = (what: string): SaveFileError => new SaveFileError(`damaged: ${what} in a part of changed words`);
  if (bytes.length < 4 || bytes.length % 4 !== 0) throw bad(`${bytes.length} bytes`);
  const words = new Uint32Array(Uint8Array.from(bytes).buffer);
  let at = 1;
  let last = -1;
  for (let page = 0; page < words[0]; page++) {
    if (at + PAGE_HEADER_WORDS > words.length) throw bad(`${page} pages of ${words[0]}`);
    const frame = words[at++];
    const runs = words[at++];
    if (frame <= last || frame >= layout.nameableFrames) throw bad(`frame ${frame} behind frame ${last}`);
    last = frame;
    let next = 0;
    for (let run = 0; run < runs; run++) {
      const first = at < words.length ? words[at] & 0xffff : PAGE_WORDS;
      const count = at < words.length ? words[at] >>> 16 : 0;
      at++;
      if (first < next || count === 0 || first + count > PAGE_WORDS || at + count > words.length)
        throw bad(`${count} words at ${first} of frame ${frame}`);
      u32.set(words.subarray(at, at + count), frame * PAGE_WORDS + first);
      at += count;
      next = first + count;
    }
    stored(frame);
  }
  if (at !== words.length) throw bad(`${words.length - at} words too many`);
}
