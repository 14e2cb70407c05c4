/**
 * A domain's memory for copies of it, on Linux with koffi. What it was at one moment goes into a memfd, the *base*, which nobody writes any
 * more; the domain and its copies map that so that what each writes stays with it. A later copy gets the same base, and in a second
 * memfd the pages that the domain has written since, unless they are too many: then there is a new base.
 *
 * Which pages those are, the kernel knows: they are anonymous. What a guest has given back since is mapped anew (vcpu-host.ts), and zeros.
 *
 *   changes   u32 count, u32 frame for each, zeros up to a page; 4096 bytes for each
 *
 * Source: Documentation/admin-guide/mm/pagemap.rst; proc_pid_maps(5).
 */

import { closeSync, fstatSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { getSystemErrorName } from 'node:util';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import { decodeM2p } from '../toolstack/saved/saved-memory.ts';
import { HostError } from './host-error.ts';
import { type HostCalls, hostCalls } from './libc.ts';

/** Bits 61, 62 and 63 of an entry of pagemap, in its upper half. */
const PAGE_IS_FILE = 0x20000000;
const PAGE_IS_SWAPPED = 0x40000000;
const PAGE_IS_PRESENT = 0x80000000;
/** Of the memory, at most this part is handed on as changes. */
const CHANGES_PART = 1 / 4;
/** Of changes, what is mapped instead of read: a mapping costs as much as some pages. */
const MAPPED_PAGES = 16;
/** What is zero is not written: it takes no memory. */
const CHUNK_PAGES = 16;
/** What is copied in one moment of rest: 16 MiB. */
const PART_PAGES = 4096;

/** What another process opens to have the memory as it was. */
export interface FrozenMemory {
  readonly base: string;
  /** Null: there are none. */
  readonly changes: string | null;
}

/** The memory as it was, in a domain that never runs; `m2p` as encodeM2p gives it. @throws HostError, SaveFileError */
export function frozenDomain({ domid, machine: { layout } }: Domain, memory: FrozenMemory, m2p: Uint8Array): Domain {
  const machine = createMachineMemory(layout.ramPages, layout.maxPages);
  const domain = createDomain(machine, domid, 1, new Uint8Array(16));
  const copied = CopiedMemory.create(domain);
  if (copied === null) throw new HostError('memory cannot be shared here');
  copied.adopt(memory);
  decodeM2p(m2p, machine);
  // What is mapped stays.
  copied.close();
  return domain;
}

/** Those who have been given it have opened it, or never will. */
export type Release = () => void;

export class CopiedMemory {
  readonly #calls: HostCalls;
  readonly #domain: Domain;
  readonly #bytes: Uint8Array<SharedArrayBuffer>;
  /** Its descriptor; null: the memory is no copy of any. */
  #base: number | null = null;
  /** Some of the memory shows another file than the base. */
  #isMixed = false;

  /** Null where there is no such thing. */
  static create(domain: Domain): CopiedMemory | null {
    const calls = hostCalls();
    return calls === null ? null : new CopiedMemory(domain, calls);
  }

  private constructor(domain: Domain, calls: HostCalls) {
    const { u8, layout } = domain.machine;
    this.#domain = domain;
    this.#calls = calls;
    this.#bytes = u8.subarray(0, layout.foreignOffset);
  }

  /** The memory is something else from now on, which others share. */
  forget(): void {
    this.#setBase(null);
  }

  close(): void {
    if (this.#base !== null) closeSync(this.#base);
    this.#base = null;
  }

  /**
   * Makes a base while the domain runs, if there is none that will do: part by part, each in a moment of rest, so that no moment is long.
   * @throws HostError, and what `atRest` throws; memory is sound then, without a base
   */
  async prepare(atRest: (act: () => void) => Promise<void>): Promise<void> {
    const changed = this.#changedFrames();
    if (changed !== null && changed.length <= this.#frames * CHANGES_PART) return;
    const base = this.#newFile(this.#bytes.length);
    try {
      for (let first = 0; first < this.#frames; )
        await atRest(() => {
          const end = this.#endOfPart(first);
          // From the first part on: pages of some are the file's.
          Atomics.store(this.#domain.i32, DOMAIN.memoryIsCopy >> 2, 1);
          this.#copyTo(base, first, end, false);
          this.#map(base, first, end);
          first = end;
        });
    } catch (error) {
      closeSync(base);
      this.#isMixed = true;
      throw error;
    }
    this.#setBase(base);
  }

  /** Behind the frames from `first` on that are worth one moment. */
  #endOfPart(first: number): number {
    const entries = this.#pagemap();
    let present = 0;
    for (let frame = first; frame < this.#frames; frame++) {
      if (isPresent(entries[frame * 2 + 1])) present++;
      if (present > PART_PAGES) return frame;
    }
    return this.#frames;
  }

  /**
   * The memory as it is now, which nobody touches meanwhile. `isShared`: others must go on to see what is written, so it stays where it is.
   * @throws HostError
   */
  freeze(isShared: boolean): { readonly memory: FrozenMemory; readonly release: Release } {
    const changed = this.#changedFrames();
    if (this.#base !== null && changed !== null && changed.length <= this.#frames * CHANGES_PART)
      return this.#handOut(this.#base, changed);
    const base = this.#newFile(this.#bytes.length);
    try {
      this.#copyTo(base, 0, this.#frames, isShared);
      if (isShared) return this.#handOut(base, []);
      this.#map(base, 0, this.#frames);
    } catch (error) {
      closeSync(base);
      throw error;
    }
    this.#setBase(base);
    return this.#handOut(base, []);
  }

  /** Takes over what another domain's memory was; the domain has not run. @throws HostError */
  adopt(memory: FrozenMemory): void {
    const base = openSync(memory.base, 'r');
    const changes = memory.changes === null ? null : openSync(memory.changes, 'r');
    try {
      if (fstatSync(base).size !== this.#bytes.length)
        throw new HostError(`a memory of ${fstatSync(base).size} bytes, where ${this.#bytes.length} are expected`);
      this.#map(base, 0, this.#frames);
      this.#setBase(base);
      if (changes !== null) this.#takeChanges(changes);
    } finally {
      if (changes !== null) closeSync(changes);
      if (this.#base !== base) closeSync(base);
    }
  }

  get #frames(): number {
    return this.#bytes.length / PAGE_SIZE;
  }

  #setBase(base: number | null): void {
    if (this.#base !== null) closeSync(this.#base);
    this.#base = base;
    this.#isMixed = false;
    Atomics.store(this.#domain.i32, DOMAIN.memoryIsCopy >> 2, base === null ? 0 : 1);
  }

  #map(base: number, first: number, end: number): void {
    this.#mapFrom(base, first * PAGE_SIZE, first, end - first);
  }

  /** Frames from `first` on show a file from `offset` on. */
  #mapFrom(fd: number, offset: number, first: number, count: number): void {
    const address = this.#calls.addressOf(this.#bytes) + first * PAGE_SIZE;
    const errno = this.#calls.mapAt(address, count * PAGE_SIZE, fd, offset, 'copy');
    if (errno !== 0) throw new HostError(`memory cannot be mapped: ${getSystemErrorName(-errno)}`);
  }

  #newFile(sizeBytes: number): number {
    const fd = this.#calls.memfdCreate('domus-copy', sizeBytes);
    if (fd < 0) throw new HostError('the system has no room for a copy of the memory');
    return fd;
  }

  /** The copies open files of their own, so that this one may be replaced meanwhile. */
  #handOut(base: number, changed: readonly number[]): { readonly memory: FrozenMemory; readonly release: Release } {
    const own = openSync(`/proc/self/fd/${base}`, 'r');
    const changes = changed.length === 0 ? null : this.#writeChanges(changed);
    if (base !== this.#base) closeSync(base);
    const pathOf = (fd: number): string => `/proc/${process.pid}/fd/${fd}`;
    return {
      memory: { base: pathOf(own), changes: changes === null ? null : pathOf(changes) },
      release: () => {
        closeSync(own);
        if (changes !== null) closeSync(changes);
      },
    };
  }

  /** Copies frames to a new base: what this process has not touched it need not have, but its base may. */
  #copyTo(fd: number, from: number, to: number, isShared: boolean): void {
    const entries = this.#pagemap();
    const isAnew = this.#framesMappedAnew();
    // What others have written to shared pages need not show in this process's tables.
    const whole =
      isShared || this.#isMixed || (this.#base === null && this.#domain.i32[DOMAIN.memoryIsCopy >> 2] !== 0);
    const sourceOf = (frame: number): 'memory' | 'base' | 'none' => {
      if (whole || isPresent(entries[frame * 2 + 1])) return 'memory';
      return this.#base === null || isAnew[frame] !== 0 ? 'none' : 'base';
    };
    const zeros = Buffer.alloc(CHUNK_PAGES * PAGE_SIZE);
    const read = Buffer.alloc(CHUNK_PAGES * PAGE_SIZE);
    for (let frame = from, end = from; frame < to; frame = end) {
      const source = sourceOf(frame);
      for (end = frame + 1; end < to && end < frame + CHUNK_PAGES && sourceOf(end) === source; ) end++;
      if (source === 'none') continue;
      const at = frame * PAGE_SIZE;
      let chunk: Uint8Array = this.#bytes.subarray(at, end * PAGE_SIZE);
      // Read as a file, holes stay holes.
      if (source === 'base') {
        chunk = read.subarray(0, chunk.length);
        readAll(this.#base ?? -1, chunk, at);
      }
      if (zeros.compare(chunk, 0, chunk.length, 0, chunk.length) !== 0) writeAll(fd, chunk, at);
    }
  }

  /** Frames that may differ from the base; null: there is none of which that can be told. */
  #changedFrames(): number[] | null {
    if (this.#base === null || this.#isMixed) return null;
    const frames: number[] = [];
    const entries = this.#pagemap();
    const isAnew = this.#framesMappedAnew();
    const isAnonymous = (entry: number): boolean => isPresent(entry) && (entry & PAGE_IS_FILE) === 0;
    for (let frame = 0; frame < this.#frames; frame++)
      if (isAnonymous(entries[frame * 2 + 1]) || isAnew[frame] !== 0) frames.push(frame);
    return frames;
  }

  /** A byte for each frame: 1 where no file shows through. */
  #framesMappedAnew(): Uint8Array {
    const isAnew = new Uint8Array(this.#frames);
    const start = this.#calls.addressOf(this.#bytes);
    for (const line of readFileSync('/proc/self/maps', 'latin1').split('\n')) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)/.exec(line);
      if (match === null || match[3] !== '0') continue;
      const first = (Number.parseInt(match[1], 16) - start) / PAGE_SIZE;
      const end = (Number.parseInt(match[2], 16) - start) / PAGE_SIZE;
      if (end > 0 && first < this.#frames) isAnew.fill(1, Math.max(0, first), Math.min(end, this.#frames));
    }
    return isAnew;
  }

  /** Two words for each frame, the lower half first. */
  #pagemap(): Uint32Array {
    const entries = new Uint32Array(this.#frames * 2);
    const bytes = new Uint8Array(entries.buffer);
    const at = (this.#calls.addressOf(this.#bytes) / PAGE_SIZE) * 8;
    const fd = openSync('/proc/self/pagemap', 'r');
    try {
      readAll(fd, bytes, at);
    } finally {
      closeSync(fd);
    }
    return entries;
  }

  #writeChanges(frames: readonly number[]): number {
    const headerBytes = headerBytesOf(frames.length);
    const fd = this.#newFile(headerBytes + frames.length * PAGE_SIZE);
    const header = Uint32Array.of(frames.length, ...frames);
    writeAll(fd, new Uint8Array(header.buffer), 0);
    forRuns(frames, (first, count, index) => {
      const bytes = this.#bytes.subarray(first * PAGE_SIZE, (first + count) * PAGE_SIZE);
      writeAll(fd, bytes, headerBytes + index * PAGE_SIZE);
    });
    return fd;
  }

  /** Long runs are mapped, so that what is never looked at is never copied. Then some of the memory shows another file than the base. */
  #takeChanges(fd: number): void {
    const count = new Uint32Array(1);
    readAll(fd, new Uint8Array(count.buffer), 0);
    if (count[0] > this.#frames) throw new HostError(`${count[0]} changed pages in a memory of ${this.#frames}`);
    const frames = new Uint32Array(count[0]);
    readAll(fd, new Uint8Array(frames.buffer), 4);
    if (frames.some((frame) => frame >= this.#frames)) throw new HostError('a changed page outside the memory');
    // Who looks at a mapping behind the end of its file is killed.
    if (fstatSync(fd).size < headerBytesOf(frames.length) + frames.length * PAGE_SIZE)
      throw new HostError('a copy of the memory has fewer changed pages than it says');
    forRuns(Array.from(frames), (first, pages, index) => {
      const offset = headerBytesOf(frames.length) + index * PAGE_SIZE;
      if (pages < MAPPED_PAGES) {
        readAll(fd, this.#bytes.subarray(first * PAGE_SIZE, (first + pages) * PAGE_SIZE), offset);
        return;
      }
      this.#isMixed = true;
      this.#mapFrom(fd, offset, first, pages);
    });
  }
}

function headerBytesOf(count: number): number {
  return Math.ceil((4 + count * 4) / PAGE_SIZE) * PAGE_SIZE;
}

/** Calls `visit` for frames that follow each other: the first, how many, and the place of the first in the list. */
function forRuns(frames: readonly number[], visit: (first: number, count: number, index: number) => void): void {
  let start = 0;
  for (let i = 1; i <= frames.length; i++) {
    if (i < frames.length && frames[i] === frames[i - 1] + 1) continue;
    visit(frames[start], i - start, start);
    start = i;
  }
}

/** The kernel has something for the page, in memory or elsewhere. */
function isPresent(entry: number): boolean {
  return (entry & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)) !== 0;
}

function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, position + at);
}

function readAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let at = 0; at < bytes.length; ) {
    const count = readSync(fd, bytes, at, bytes.length - at, position + at);
    if (count === 0) throw new HostError(`a copy of the memory ends after ${position + at} bytes`);
    at += count;
  }
}
