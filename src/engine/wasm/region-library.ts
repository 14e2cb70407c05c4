/**
 * Translated regions that outlive the vCPU that made them: for each the code that it was made of and its function's body, which is the
 * same in whatever domain (region.ts). Whoever finds the same bytes at the same offset in a page need not translate them.
 *
 * Regions are kept in chunks, each of which becomes one module. A chunk is words, little-endian:
 *
 *     magic, size in bytes, checksum of the words behind, regions, offset of the first body
 *     directory      for each region: key, offset of its record, offset of its body, bytes of it
 *     records        offset of the entry in its page | user mode << 12 | blocks << 16, instructions, pieces, bytes of code;
 *                    start and end of each piece from the start of the entry's page, starts of blocks, the code of all pieces
 *     bodies
 *
 * A key is a hash of where the region is entered and of the first bytes there: equal keys are only worth a look.
 * What is in a chunk is as trustworthy as the store that it comes from; a damaged one is not used.
 */

import { INSTRUCTIONS_MAX, PAGES_AROUND } from './region-graph.ts';

/** Where chunks are kept between the runs of domains. */
export interface RegionStore {
  /** Bytes of the chunks there, one behind the other, which stay as they are as long as this store is used. */
  readonly sizeBytes: number;
  /** Reads bytes of them. False: they are not to be had. */
  read(at: number, into: Uint8Array): boolean;
  /** A chunk for the next ones. */
  keep(chunk: Uint8Array<ArrayBuffer>): void;
}

/** What a region was made of. */
export interface RegionCode {
  /** Offset of the entry in its page. */
  readonly entry: number;
  readonly user: boolean;
  readonly instructions: number;
  /** Pairs of start and end of its pieces of code, from the start of the entry's page. */
  readonly pieces: Int32Array;
  /** Where its basic blocks start: other code that branches lead to was not followed. */
  readonly starts: Int32Array;
  /** The bytes of all pieces. */
  readonly code: Uint8Array;
}

const MAGIC = 0x4e475244;
const HEAD_WORDS = 5;
const DIRECTORY_WORDS = 4;
const RECORD_WORDS = 4;
const USER = 1 << 12;
/** Regions of a chunk, and its bytes, at which it is full. */
const REGIONS_MAX = 64;
const CHUNK_BYTES = 1 << 18;
/** No chunk is larger: one more region has been added than it took to fill it. */
const CHUNK_BYTES_MAX = 1 << 22;
/** Code may run on behind what can be branched to. */
const PAST_REACH = (PAGES_AROUND + 2) * 4096;
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

function checksumOf(words: Uint32Array): number {
  let sum = words.length;
  for (let i = 3; i < words.length; i++) sum = Math.imul(sum ^ words[i], 0x9e3779b1) ^ (sum >>> 16);
  return sum >>> 0;
}

interface Chunk {
  readonly at: number;
  readonly sizeBytes: number;
  readonly directory: Uint32Array;
  /** Null until the chunk has been read. */
  regions: readonly RegionCode[] | null;
  /** It is not what it should be. */
  isBad: boolean;
}

/** What waits for a chunk to become full. */
interface Kept {
  readonly key: number;
  readonly region: RegionCode;
  readonly body: Uint8Array;
}

const wordsFor = (bytes: number): number => (bytes + 3) >>> 2;

/** The regions of a chunk that was read whole, or null if it is not as it should be. */
function parse(words: Uint32Array<ArrayBuffer>, directory: Uint32Array): RegionCode[] | null {
  const bytes = new Uint8Array(words.buffer);
  if (checksumOf(words) !== words[2]) return null;
  const regions: RegionCode[] = [];
  for (let i = 0; i < directory.length; i += DIRECTORY_WORDS) {
    const [at, bodyAt, bodyBytes] = [directory[i + 1], directory[i + 2], directory[i + 3]];
    if (at % 4 !== 0 || at + RECORD_WORDS * 4 > words[4] || bodyAt < words[4] || bodyAt + bodyBytes > bytes.length)
      return null;
    const [head, instructions, count, codeBytes] = words.subarray(at / 4, at / 4 + RECORD_WORDS);
    const piecesAt = at + RECORD_WORDS * 4;
    const startsAt = piecesAt + count * 8;
    const codeAt = startsAt + (head >>> 16) * 4;
    if (count > INSTRUCTIONS_MAX || codeAt + codeBytes > words[4]) return null;
    const pieces = new Int32Array(words.buffer.slice(piecesAt, startsAt));
    const starts = new Int32Array(words.buffer.slice(startsAt, codeAt));
    let length = 0;
    for (let n = 0; n < pieces.length; n += 2) {
      const [start, end] = [pieces[n], pieces[n + 1]];
      if (start < -PAGES_AROUND * 4096 || end <= start || end > PAST_REACH) return null;
      length += end - start;
    }
    if (length !== codeBytes) return null;
    const code = bytes.slice(codeAt, codeAt + codeBytes);
    regions.push({ entry: head & 0xfff, user: (head & USER) !== 0, instructions, pieces, starts, code });
  }
  return regions;
}

/** A chunk of regions as it is kept. */
function assemble(kept: readonly Kept[]): Uint8Array<ArrayBuffer> {
  let size = HEAD_WORDS + kept.length * DIRECTORY_WORDS;
  for (const { region } of kept) {
    const { pieces, starts, code } = region;
    size += RECORD_WORDS + pieces.length + starts.length + wordsFor(code.length);
  }
  const bodiesAt = size * 4;
  let bodies = 0;
  for (const { body } of kept) bodies += body.length;
  const words = new Uint32Array(size + wordsFor(bodies));
  const bytes = new Uint8Array(words.buffer);
  words.set([MAGIC, words.byteLength, 0, kept.length, bodiesAt]);
  let at = HEAD_WORDS + kept.length * DIRECTORY_WORDS;
  let bodyAt = bodiesAt;
  kept.forEach(({ key, region, body }, i) => {
    words.set([key >>> 0, at * 4, bodyAt, body.length], HEAD_WORDS + i * DIRECTORY_WORDS);
    words.set([region.entry | (region.user ? USER : 0) | (region.starts.length << 16), region.instructions], at);
    words.set([region.pieces.length / 2, region.code.length], at + 2);
    at += RECORD_WORDS;
    words.set(region.pieces, at);
    at += region.pieces.length;
    words.set(region.starts, at);
    at += region.starts.length;
    bytes.set(region.code, at * 4);
    at += wordsFor(region.code.length);
    bytes.set(body, bodyAt);
    bodyAt += body.length;
  });
  words[2] = checksumOf(words);
  return bytes;
}

/** Of the chunk at a place; null if there is none that could be one. */
function readHead(
  store: Pick<RegionStore, 'sizeBytes' | 'read'>,
  at: number,
): { sizeBytes: number; count: number } | null {
  const head = new Uint32Array(HEAD_WORDS);
  if (at + head.byteLength > store.sizeBytes || !store.read(at, new Uint8Array(head.buffer))) return null;
  const [magic, sizeBytes, , count, bodiesAt] = head;
  const isSound =
    magic === MAGIC &&
    count > 0 &&
    count <= REGIONS_MAX &&
    sizeBytes % 4 === 0 &&
    sizeBytes <= Math.min(CHUNK_BYTES_MAX, store.sizeBytes - at) &&
    bodiesAt >= head.byteLength + count * DIRECTORY_WORDS * 4 &&
    bodiesAt <= sizeBytes;
  return isSound ? { sizeBytes, count } : null;
}

/** Where chunks end, by their heads, up to the first that could not be one. */
export function chunkEnds(store: Pick<RegionStore, 'sizeBytes' | 'read'>): number[] {
  const ends: number[] = [];
  for (let at = 0; ; ) {
    const head = readHead(store, at);
    if (head === null) return ends;
    at += head.sizeBytes;
    ends.push(at);
  }
}

export class RegionLibrary {
  readonly #store: RegionStore;
  readonly #chunks: Chunk[] = [];
  /** Pairs of key and chunk * REGIONS_MAX + region + 1, hashed by key; 0 = free. */
  #index = new Int32Array(2);
  #mask = 0;
  #kept: Kept[] = [];
  #keptBytes = 0;

  constructor(store: RegionStore) {
    this.#store = store;
    let count = 0;
    for (let at = 0; ; ) {
      const chunk = this.#open(at);
      if (chunk === null) break;
      this.#chunks.push(chunk);
      count += chunk.directory.length / DIRECTORY_WORDS;
      at += chunk.sizeBytes;
    }
    let size = 1;
    while (size < count * 2) size *= 2;
    this.#index = new Int32Array(size * 2);
    this.#mask = size - 1;
    this.#chunks.forEach(({ directory }, chunk) => {
      for (let i = 0; i < directory.length; i += DIRECTORY_WORDS)
        this.#enter(directory[i] | 0, chunk * REGIONS_MAX + i / DIRECTORY_WORDS + 1);
    });
  }

  #open(at: number): Chunk | null {
    const head = readHead(this.#store, at);
    if (head === null) return null;
    const directory = new Uint32Array(head.count * DIRECTORY_WORDS);
    if (!this.#store.read(at + HEAD_WORDS * 4, new Uint8Array(directory.buffer))) return null;
    return { at, sizeBytes: head.sizeBytes, directory, regions: null, isBad: false };
  }

  #enter(key: number, value: number): void {
    let i = key & this.#mask;
    while (this.#index[i * 2 + 1] !== 0) i = (i + 1) & this.#mask;
    this.#index[i * 2] = key;
    this.#index[i * 2 + 1] = value;
  }

  /** Calls `accepts` with regions of a key until it says yes. Returns that region's number, -1 = none. */
  find(key: number, accepts: (region: RegionCode) => boolean): number {
    if (this.#chunks.length === 0) return -1;
    for (let i = key & this.#mask; this.#index[i * 2 + 1] !== 0; i = (i + 1) & this.#mask) {
      if (this.#index[i * 2] !== key) continue;
      const number = this.#index[i * 2 + 1] - 1;
      const chunk = this.#chunks[Math.floor(number / REGIONS_MAX)];
      if (chunk.regions === null && !chunk.isBad) this.#read(chunk);
      const region = chunk.regions?.[number % REGIONS_MAX];
      if (region !== undefined && accepts(region)) return number;
    }
    return -1;
  }

  /** Takes a chunk's records into memory. Its words, or null when it is bad. */
  #read(chunk: Chunk): Uint32Array<ArrayBuffer> | null {
    const words = new Uint32Array(chunk.sizeBytes / 4);
    const isRead = this.#store.read(chunk.at, new Uint8Array(words.buffer));
    const regions = isRead ? parse(words, chunk.directory) : null;
    if (regions === null) {
      chunk.isBad = true;
      return null;
    }
    chunk.regions ??= regions;
    return words;
  }

  /** The chunk of a region and the region's place in it. */
  placeOf(number: number): { readonly chunk: number; readonly place: number } {
    return { chunk: Math.floor(number / REGIONS_MAX), place: number % REGIONS_MAX };
  }

  /** The bodies of a chunk's regions, or null when they are not to be had (any more). */
  bodies(chunk: number): Uint8Array[] | null {
    const { directory } = this.#chunks[chunk];
    const words = this.#read(this.#chunks[chunk]);
    if (words === null) return null;
    const bytes = new Uint8Array(words.buffer);
    const bodies: Uint8Array[] = [];
    for (let i = 0; i < directory.length; i += DIRECTORY_WORDS)
      bodies.push(bytes.subarray(directory[i + 2], directory[i + 2] + directory[i + 3]));
    return bodies;
  }

  /** A region that may be of use to others. */
  add(key: number, region: RegionCode, body: Uint8Array): void {
    this.#kept.push({ key, region, body });
    this.#keptBytes += body.length + region.code.length;
    if (this.#kept.length === REGIONS_MAX || this.#keptBytes >= CHUNK_BYTES) this.flush();
  }

  /** What has been added is given to the store. */
  flush(): void {
    if (this.#kept.length === 0) return;
    this.#store.keep(assemble(this.#kept));
    this.#kept = [];
    this.#keptBytes = 0;
  }
}

/** All that a store has, for tests. */
export function* storedRegions(
  store: RegionStore,
): Generator<{ readonly code: RegionCode; readonly body: Uint8Array }> {
  let at = 0;
  for (const end of chunkEnds(store)) {
    const words = new Uint32Array((end - at) / 4);
    store.read(at, new Uint8Array(words.buffer));
    const directory = words.subarray(HEAD_WORDS, HEAD_WORDS + words[3] * DIRECTORY_WORDS);
    const bytes = new Uint8Array(words.buffer);
    for (const [i, code] of (parse(words, directory) ?? []).entries()) {
      const bodyAt = directory[i * DIRECTORY_WORDS + 2];
      yield { code, body: bytes.subarray(bodyAt, bodyAt + directory[i * DIRECTORY_WORDS + 3]) };
    }
    at = end;
  }
}
