/**
 * The container of a saved domain: a header, and parts behind it, each with a checksum of its own. docs/save-format.md is the
 * specification.
 *
 *   header   8 bytes "DomusSav", u32 version, u32 CRC-32 of these 12 bytes
 *   part     u32 kind, u32 encoding, u32 stored bytes, u32 bytes, u32 CRC-32 of the stored bytes, u32 CRC-32 of these 20 bytes; then the
 *            stored bytes
 *
 * All numbers are little-endian. The last part is PART_END; a file without it is not whole. A reader that meets a kind it does not
 * know refuses: nothing of a domain may be left out.
 */

export const VERSION = 1;
export const HEADER_BYTES = 16;
export const PART_HEADER_BYTES = 24;
/** Of a part, stored and not: what a reader has to hold at a time. */
export const PART_BYTES_MAX = 16 << 20;

const MAGIC = Uint8Array.from('DomusSav', (letter) => letter.charCodeAt(0));

/** Kinds of parts, in the order in which they come. */
export const PART_DESCRIPTION = 1;
export const PART_DOMAIN = 2;
export const PART_VCPU = 3;
export const PART_M2P = 4;
export const PART_PAGES = 5;
export const PART_END = 6;
/** In the stream of a domain that moves only: pages that should be there already. */
export const PART_CHECK = 7;
/** There, too: nothing is in it. The reader says when it has come so far. */
export const PART_ROUND = 8;
/** There, too: words that differ from what was sent before (page-deltas.ts). */
export const PART_DELTAS = 9;
/** There, too: entries of the M2P that differ from the M2P among the pages. */
export const PART_M2P_CHANGES = 10;
/** There, too: u32 vCPU, and what its engine has noted of the code that it runs (Engine.notedCode). */
export const PART_CODE = 11;

const ENCODING_RAW = 0;
const ENCODING_ZSTD = 1;

/** The file is no saved domain, or damaged, or from a newer Domus. One line, without the file's name. */
export class SaveFileError extends Error {
  override readonly name = 'SaveFileError';
}

/** What the host has to offer: browsers have other means than Node. */
export interface Codec {
  crc32(bytes: Uint8Array): number;
  compress(bytes: Uint8Array): Promise<Uint8Array>;
  /** Rejects when the bytes are no zstd frame or come to more than `bytesMax`. */
  decompress(bytes: Uint8Array, bytesMax: number): Promise<Uint8Array>;
}

/** Where bytes go. Resolves when there is room for more. */
export type Sink = (bytes: Uint8Array) => Promise<void>;
/** Where they come from: the next `count` bytes; fewer at the end only. */
export type Source = (count: number) => Promise<Uint8Array>;

export interface Part {
  readonly kind: number;
  readonly bytes: Uint8Array;
}

/** `at`: the byte at which it begins. */
interface PlacedPart extends Part {
  readonly at: number;
}

interface StoredPart {
  readonly at: number;
  readonly kind: number;
  readonly encoding: number;
  readonly stored: Uint8Array;
  /** How many it decodes to. */
  readonly bytes: number;
}

function damaged(at: number, what: string): SaveFileError {
  return new SaveFileError(`damaged: ${what} at byte ${at}`);
}

export class SaveWriter {
  readonly #sink: Sink;
  readonly #codec: Codec;

  constructor(sink: Sink, codec: Codec) {
    this.#sink = sink;
    this.#codec = codec;
  }

  async start(): Promise<void> {
    const header = new Uint8Array(HEADER_BYTES);
    const view = new DataView(header.buffer);
    header.set(MAGIC);
    view.setUint32(8, VERSION, true);
    view.setUint32(12, this.#codec.crc32(header.subarray(0, 12)), true);
    await this.#sink(header);
  }

  /** Writes a part of up to PART_BYTES_MAX. */
  async part(kind: number, bytes: Uint8Array): Promise<void> {
    if (bytes.length > PART_BYTES_MAX) throw new Error(`bug: a part of ${bytes.length} bytes in a saved domain`);
    const compressed = await this.#codec.compress(bytes);
    const isSmaller = compressed.length < bytes.length;
    const stored = isSmaller ? compressed : bytes;
    const header = new Uint8Array(PART_HEADER_BYTES);
    const view = new DataView(header.buffer);
    view.setUint32(0, kind, true);
    view.setUint32(4, isSmaller ? ENCODING_ZSTD : ENCODING_RAW, true);
    view.setUint32(8, stored.length, true);
    view.setUint32(12, bytes.length, true);
    view.setUint32(16, this.#codec.crc32(stored), true);
    view.setUint32(20, this.#codec.crc32(header.subarray(0, 20)), true);
    await this.#sink(header);
    await this.#sink(stored);
  }
}

/** Parts that are read and decompressed before they are asked for, if nobody wants more. */
const PARTS_AHEAD = 3;

export class SaveReader {
  readonly #source: Source;
  readonly #codec: Codec;
  /** Bytes read so far: where a message says that something is wrong. */
  #at = 0;
  #aheadMax = 0;
  /** What comes next, in its order. */
  readonly #ahead: Promise<PlacedPart>[] = [];
  /** Resolves when the source is free for the next part; false: there is none. */
  #isFree: Promise<boolean> = Promise.resolve(true);

  constructor(source: Source, codec: Codec) {
    this.#source = source;
    this.#codec = codec;
  }

  /** @throws SaveFileError when this is no file that can be read here */
  async start(): Promise<void> {
    const header = await this.#source(HEADER_BYTES);
    // As xl says it.
    if (header.length < HEADER_BYTES || MAGIC.some((byte, i) => header[i] !== byte))
      throw new SaveFileError('File has wrong magic number - corrupt or for a different tool?');
    this.#at = HEADER_BYTES;
    const view = new DataView(header.buffer, header.byteOffset);
    if (view.getUint32(12, true) !== this.#codec.crc32(header.subarray(0, 12)))
      throw new SaveFileError('damaged: the header does not match its checksum');
    const version = view.getUint32(8, true);
    if (version !== VERSION)
      throw new SaveFileError(`its format has version ${version}, and this Domus reads version ${VERSION}`);
  }

  /** The next part. @throws SaveFileError */
  async part(): Promise<Part> {
    return await this.#next();
  }

  /** From now on, so many parts are read and decompressed before they are asked for, up to the end. */
  readAhead(parts = PARTS_AHEAD): void {
    this.#aheadMax = Math.max(this.#aheadMax, parts);
    while (this.#ahead.length < this.#aheadMax) this.#ahead.push(this.#begin());
  }

  #next(): Promise<PlacedPart> {
    while (this.#ahead.length <= this.#aheadMax) this.#ahead.push(this.#begin());
    return this.#ahead.shift() ?? Promise.reject(new Error('bug: no part is read'));
  }

  /** Behind the end, or what cannot be read, the source is left alone. */
  #begin(): Promise<PlacedPart> {
    const stored = this.#isFree.then((isFree) => (isFree ? this.#stored() : null));
    this.#isFree = stored.then(
      (part) => part !== null && part.kind !== PART_END,
      () => false,
    );
    const part = stored.then(async (found) => {
      if (found === null) throw new SaveFileError('damaged: parts behind the end');
      return { at: found.at, kind: found.kind, bytes: await this.#decoded(found) };
    });
    // Whoever asks for it hears of it.
    part.catch(() => undefined);
    return part;
  }

  /** The next part as it is stored. */
  async #stored(): Promise<StoredPart> {
    const at = this.#at;
    const header = await this.#source(PART_HEADER_BYTES);
    if (header.length < PART_HEADER_BYTES)
      throw new SaveFileError(`truncated: it ends after ${at + header.length} bytes`);
    const view = new DataView(header.buffer, header.byteOffset);
    if (view.getUint32(20, true) !== this.#codec.crc32(header.subarray(0, 20)))
      throw damaged(at, "a part's header does not match its checksum");
    const kind = view.getUint32(0, true);
    const encoding = view.getUint32(4, true);
    const storedBytes = view.getUint32(8, true);
    const bytes = view.getUint32(12, true);
    if (encoding > ENCODING_ZSTD || storedBytes > PART_BYTES_MAX || bytes > PART_BYTES_MAX)
      throw damaged(at, 'a part that cannot be');
    const stored = await this.#source(storedBytes);
    this.#at += PART_HEADER_BYTES + stored.length;
    if (stored.length < storedBytes) throw new SaveFileError(`truncated: it ends after ${this.#at} bytes`);
    if (view.getUint32(16, true) !== this.#codec.crc32(stored)) throw damaged(at, 'a part does not match its checksum');
    if (encoding === ENCODING_RAW && storedBytes !== bytes) throw damaged(at, 'a part of two lengths');
    return { at, kind, encoding, stored, bytes };
  }

  async #decoded({ at, encoding, stored, bytes }: StoredPart): Promise<Uint8Array> {
    if (encoding === ENCODING_RAW) return stored;
    let decoded: Uint8Array;
    try {
      decoded = await this.#codec.decompress(stored, bytes);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw damaged(at, `a part that does not decompress (${why})`);
    }
    if (decoded.length !== bytes) throw damaged(at, 'a part of another length than it says');
    return decoded;
  }

  /** The next part, which has to be of this kind. @throws SaveFileError */
  async expect(kind: number): Promise<Uint8Array> {
    const part = await this.#next();
    if (part.kind !== kind)
      throw new SaveFileError(
        `damaged: a part of kind ${part.kind} at byte ${part.at}, where kind ${kind} is expected`,
      );
    return part.bytes;
  }
}
