/**
 * What regions were made of, for domains that come later: they run the same kernels and programs, so that others can translate before them.
 *
 * A record is believed by nobody. Who translates it takes the bytes as what a guest might have in its memory; who enters what was made of it compares
 * all of its code with what is there (region-library.ts).
 *
 * Records are words, little-endian, one behind the other:
 *
 *     words of the record, key, offset of the entry in its page | user mode << 12 | hot << 13, runs since it was used, pieces, starts, apart, bytes of code
 *     start and end of each piece of code, from the start of the entry's page; starts of basic blocks; positions of groups that lie apart
 *     the code of all pieces, up to a whole word
 */

import { discover, isNear, type RegionGraph } from './region-graph.ts';

export interface KeptRegion {
  /** A hash of where it is entered and of the first bytes there: equal keys are only worth a look. */
  readonly key: number;
  /** Offset of the entry in its page. */
  readonly entry: number;
  readonly user: boolean;
  /** Some domain has found it worth translating; others have only noted it. */
  readonly isHot: boolean;
  /** Runs of domains since one has used it. */
  readonly unused: number;
  /** Pairs of start and end of its pieces of code, from the start of the entry's page; the first begins with the entry. */
  readonly pieces: Int32Array;
  /** Where its basic blocks start: other code that branches lead to was not followed. */
  readonly starts: Int32Array;
  /** Where accesses do not share a look-up, since their bytes have often been in two pages. */
  readonly apart: Int32Array;
  /** The bytes of all pieces. */
  readonly code: Uint8Array;
}

/** What one vCPU has to tell at its end. */
export interface KeptRegions {
  /** What it has translated: how many, and records of them. */
  readonly count: number;
  readonly made: Uint32Array<ArrayBuffer>;
  /** By number in the library: whether it has used that. */
  readonly used: Uint8Array;
}

const HEAD_WORDS = 8;
const USER = 1 << 12;
const IS_HOT = 1 << 13;
/** Of pieces, starts and positions, which instructions limit, and bytes of them. */
const COUNT_MAX = 2048;
const CODE_MAX = 15 * COUNT_MAX;
/** Bytes that a key looks at. */
const KEY_BYTES = 12;

/** Of the entry at an offset of a frame, in memory 0. */
export function keyOfCode(u8: Uint8Array, frame: number, entry: number, user: boolean): number {
  let key = Math.imul(entry * 2 + (user ? 1 : 0) + 1, 0x9e3779b1);
  const at = frame * 4096 + entry;
  const end = Math.min(at + KEY_BYTES, frame * 4096 + 4096);
  for (let i = at; i < end; i++) key = Math.imul((key ^ u8[i]) + 0x7f4a7c15, 0x85ebca6b) ^ (key >>> 15);
  return key | 0;
}

export function encodeKept(regions: readonly KeptRegion[]): Uint32Array<ArrayBuffer> {
  const sizes = regions.map(
    ({ pieces, starts, apart, code }) =>
      HEAD_WORDS + pieces.length + starts.length + apart.length + ((code.length + 3) >>> 2),
  );
  const words = new Uint32Array(sizes.reduce((sum, size) => sum + size, 0));
  const bytes = new Uint8Array(words.buffer);
  let at = 0;
  regions.forEach(({ key, entry, user, isHot, unused, pieces, starts, apart, code }, i) => {
    const head = [sizes[i], key >>> 0, entry | (user ? USER : 0) | (isHot ? IS_HOT : 0), unused];
    words.set([...head, pieces.length, starts.length, apart.length, code.length], at);
    let to = at + HEAD_WORDS;
    for (const part of [pieces, starts, apart]) {
      words.set(part, to);
      to += part.length;
    }
    bytes.set(code, to * 4);
    at += sizes[i];
  });
  return words;
}

/** As far as records are sound. */
export function decodeKept(words: Uint32Array): KeptRegion[] {
  const regions: KeptRegion[] = [];
  for (let at = 0; at + HEAD_WORDS <= words.length; ) {
    const [size, key, place, unused, pieceCount, startCount, apartCount, codeBytes] = words.subarray(
      at,
      at + HEAD_WORDS,
    );
    if (Math.max(pieceCount, startCount, apartCount) > COUNT_MAX || codeBytes > CODE_MAX) break;
    const wanted = HEAD_WORDS + pieceCount + startCount + apartCount + ((codeBytes + 3) >>> 2);
    if (size !== wanted || at + size > words.length) break;
    let from = at + HEAD_WORDS;
    const take = (count: number): Int32Array => {
      const taken = Int32Array.from(words.subarray(from, from + count));
      from += count;
      return taken;
    };
    const [pieces, starts, apart] = [take(pieceCount), take(startCount), take(apartCount)];
    const code = new Uint8Array(words.buffer, words.byteOffset + from * 4, codeBytes).slice();
    const entry = place & 0xfff;
    if (!isSound(entry, pieces, codeBytes)) break;
    const flags = { user: (place & USER) !== 0, isHot: (place & IS_HOT) !== 0 };
    regions.push({ key: key | 0, entry, ...flags, unused, pieces, starts, apart, code });
    at += size;
  }
  return regions;
}

function isSound(entry: number, pieces: Int32Array, codeBytes: number): boolean {
  if (pieces.length < 2 || pieces.length % 2 !== 0 || pieces[0] !== entry) return false;
  for (let i = 0; i < pieces.length; i += 2)
    if (!isNear(pieces[i]) || !isNear(pieces[i + 1]) || pieces[i + 1] <= pieces[i]) return false;
  return sizeOf(pieces) === codeBytes;
}

/** Bytes of all pieces. */
export function sizeOf(pieces: Int32Array): number {
  let size = 0;
  for (let i = 0; i < pieces.length; i += 2) size += pieces[i + 1] - pieces[i];
  return size;
}

/** The runs of adjacent instructions of a region: pairs of start and end from the start of the entry's page. */
export function piecesOf(graph: RegionGraph): Int32Array {
  const pieces: number[] = [];
  for (const block of graph.blocks)
    for (const { position, instruction } of block.instructions) {
      if (pieces[pieces.length - 1] === position) pieces[pieces.length - 1] += instruction.length;
      else pieces.push(position, position + instruction.length);
    }
  return Int32Array.from(pieces);
}

/** The graph of a region that was kept, and its pieces as they are in it. Null if the code alone does not lead to it. */
export function rebuild(kept: KeptRegion): { readonly graph: RegionGraph; readonly kept: KeptRegion } | null {
  const { pieces, code, starts, entry, user } = kept;
  // A little memory that has its pages one behind the other.
  const places = new Map<number, number>();
  for (let i = 0; i < pieces.length; i += 2)
    for (let page = pieces[i] >> 12; page <= (pieces[i + 1] - 1) >> 12; page++)
      if (!places.has(page)) places.set(page, places.size);
  const pages = [...places.keys()];
  const u8 = new Uint8Array(pages.length * 4096);
  const isKnown = new Uint8Array(u8.length);
  const placeOf = (position: number): number => (places.get(position >> 12) ?? -1) * 4096 + (position & 0xfff);
  let n = 0;
  for (let i = 0; i < pieces.length; i += 2)
    for (let position = pieces[i]; position < pieces[i + 1]; position++) {
      const place = placeOf(position);
      u8[place] = code[n++];
      isKnown[place] = 1;
    }
  const warm = new Set(starts);
  const graph = discover(
    {
      u8,
      frame: (relative) => places.get(relative) ?? -1,
      isUser: user,
      isWarm: (place, offset) => warm.has(pages[place] * 4096 + offset),
      large: new Set(),
    },
    entry,
  );
  if (graph === null) return null;
  const found = piecesOf(graph);
  const foundCode: number[] = [];
  for (let i = 0; i < found.length; i += 2)
    for (let position = found[i]; position < found[i + 1]; position++) {
      const place = placeOf(position);
      // It goes on where nobody has looked.
      if (isKnown[place] !== 1) return null;
      foundCode.push(u8[place]);
    }
  return { graph, kept: { ...kept, pieces: found, code: Uint8Array.from(foundCode) } };
}
