/**
 * For tests: files in memory that record every write and flush, so that any crash can be played through.
 *
 * A crash keeps what was flushed. Of what was written since, a killed process keeps all up to the moment; a power cut
 * keeps any of it, sector by sector.
 */
import type { BlockFile, Files, OpenFileOptions } from '../block-file.ts';
import { DiskImageError, lengthOf } from '../block-file.ts';
import { decompress } from './decompress.ts';

type Change =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: 'truncate'; readonly sizeBytes: number }
  | { readonly kind: 'flush' };

export class MemoryFile implements BlockFile {
  readonly path: string;
  readonly readOnly: boolean;
  readonly log: Change[] = [];
  /** What was there before the log began. */
  readonly #before: Uint8Array;
  #bytes: Uint8Array;
  #sizeBytes: number;
  /** Lets requests end in another order than they came in. */
  readonly #delay: () => Promise<void>;

  constructor(path: string, content: Uint8Array, readOnly: boolean, delay: () => Promise<void> = async () => {}) {
    this.path = path;
    this.readOnly = readOnly;
    this.#before = content.slice();
    this.#bytes = content.slice();
    this.#sizeBytes = content.length;
    this.#delay = delay;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get content(): Uint8Array {
    return this.#bytes.subarray(0, this.#sizeBytes);
  }

  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    await this.#delay();
    let at = offset;
    for (const buffer of buffers) {
      const there = Math.max(0, Math.min(buffer.length, this.#sizeBytes - at));
      if (there > 0) buffer.set(this.#bytes.subarray(at, at + there));
      buffer.fill(0, there);
      at += buffer.length;
    }
  }

  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    if (this.readOnly) throw new Error(`bug: ${this.path} is open for reading only`);
    const bytes = new Uint8Array(lengthOf(buffers));
    let at = 0;
    for (const buffer of buffers) {
      bytes.set(buffer, at);
      at += buffer.length;
    }
    await this.#delay();
    this.#apply({ kind: 'write', offset, bytes });
  }

  readNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    if (offset + lengthBytes > this.#sizeBytes) return false;
    for (const buffer of buffers) {
      buffer.set(this.#bytes.subarray(offset, offset + buffer.length));
      offset += buffer.length;
    }
    return true;
  }

  writeNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    if (this.readOnly || offset + lengthBytes > this.#sizeBytes) return false;
    for (const buffer of buffers) {
      this.#apply({ kind: 'write', offset, bytes: buffer.slice() });
      offset += buffer.length;
    }
    return true;
  }

  async flush(): Promise<void> {
    await this.#delay();
    this.log.push({ kind: 'flush' });
  }

  async punch(offset: number, lengthBytes: number): Promise<boolean> {
    await this.write(offset, [new Uint8Array(lengthBytes)]);
    return true;
  }

  async measure(): Promise<void> {}

  async truncate(sizeBytes: number): Promise<void> {
    this.#apply({ kind: 'truncate', sizeBytes });
  }

  async close(): Promise<void> {}

  #apply(change: Change): void {
    this.log.push(change);
    [this.#bytes, this.#sizeBytes] = applied(this.#bytes, this.#sizeBytes, change);
  }

  /** The file if the process was killed when `changes` of the log had been done. */
  afterKill(changes: number): Uint8Array {
    return this.#replay(changes, () => true);
  }

  /** The file if the power failed then: unflushed sectors are there or not, as `isKept` says. */
  afterPowerCut(changes: number, isKept: () => boolean): Uint8Array {
    let flushed = 0;
    for (let index = 0; index < changes; index++) if (this.log[index]!.kind === 'flush') flushed = index;
    return this.#replay(changes, (index) => index < flushed || isKept());
  }

  #replay(changes: number, isKept: (index: number) => boolean): Uint8Array {
    let bytes: Uint8Array = this.#before.slice();
    let sizeBytes = bytes.length;
    for (let index = 0; index < changes; index++) {
      const change = this.log[index]!;
      if (change.kind !== 'write') {
        [bytes, sizeBytes] = applied(bytes, sizeBytes, change);
        continue;
      }
      for (let at = 0; at < change.bytes.length; at += 512) {
        if (!isKept(index)) continue;
        const sector = { ...change, offset: change.offset + at, bytes: change.bytes.subarray(at, at + 512) };
        [bytes, sizeBytes] = applied(bytes, sizeBytes, sector);
      }
    }
    return bytes.subarray(0, sizeBytes);
  }
}

function applied(bytes: Uint8Array, sizeBytes: number, change: Change): [Uint8Array, number] {
  if (change.kind === 'flush') return [bytes, sizeBytes];
  const end = change.kind === 'write' ? change.offset + change.bytes.length : change.sizeBytes;
  if (end > bytes.length) {
    if (end > 2 ** 28) throw new DiskImageError(`the test's file would grow to ${end} bytes`);
    const larger = new Uint8Array(Math.max(end, bytes.length * 2));
    larger.set(bytes.subarray(0, sizeBytes));
    bytes = larger;
  }
  if (change.kind === 'truncate') {
    bytes.fill(0, Math.min(end, sizeBytes));
    return [bytes, end];
  }
  bytes.set(change.bytes, change.offset);
  return [bytes, Math.max(sizeBytes, end)];
}

export class MemoryFiles implements Files {
  readonly contents = new Map<string, Uint8Array>();
  readonly opened = new Map<string, MemoryFile>();
  readonly #delay: (() => Promise<void>) | undefined;
  readonly decompress = decompress;

  constructor(delay?: () => Promise<void>) {
    this.#delay = delay;
  }

  async open(path: string, { readOnly }: OpenFileOptions): Promise<MemoryFile> {
    const content = this.contents.get(path);
    if (content === undefined) throw new DiskImageError(`${path}: there is no such file`);
    const file = new MemoryFile(path, content, readOnly, this.#delay);
    this.opened.set(path, file);
    return file;
  }

  resolve(_imagePath: string, name: string): string {
    return name;
  }

  async identity(path: string): Promise<string> {
    return path;
  }
}

/** A generator of random numbers in [0, 1) that a seed repeats. Source: mulberry32. */
export function seededRandom(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
