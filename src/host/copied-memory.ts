/**
 * A domain's memory for copies of it, on Linux with koffi. What it was at one moment goes into a memfd, the *base*, which nobody writes any
 * more; the domain and its copies map that so that what each writes stays with it. A later copy gets the same base, and in a second
 * memfd the pages that the domain has written since, unless they are too many: then there is a new base.
 *
 * Which pages those are, the kernel knows: they are anonymous. What a guest has given back since is mapped anew (vcpu-host.ts), and zeros.
 *
 * Source: Documentation/admin-guide/mm/pagemap.rst; proc_pid_maps(5).
 */

import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { getSystemErrorName } from 'node:util';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import { decodeM2p } from '../toolstack/saved/saved-memory.ts';
import {
  type ChangedFrames,
  ChangesRoom,
  forRuns,
  readAll,
  readChangedFrames,
  writeAll,
  writeChanges,
} from './changed-pages.ts';
import { HostError } from './host-error.ts';
import { type HostCalls, hostCalls } from './libc.ts';
import { anonymousPages, isPresent, readPagemap } from './pagemap.ts';

/** Of the memory, at most this part is handed on as changes. */
const CHANGES_PART = 1 / 4;
/** Of changes, what is mapped instead of read: a mapping costs as much as some pages. */
const MAPPED_PAGES = 16;
/** The system allows a process some 65 000 mappings. */
const MAPPINGS = 4096;
/** Room for changes: more than there are, for those that come. */
const ROOM_PART = 1.25;
const ROOM_PAGES = 256;
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

/** Frames of a memory that stands still, which may differ from its base; null: there is none of which that can be told. */
export type LookedAt = readonly number[] | null;

/** What a copy has mapped before its domain was copied. */
interface Expected {
  readonly base: string;
  /** Null: no changes. */
  readonly changes: { readonly file: string; readonly count: number } | null;
}

export class CopiedMemory {
  readonly #calls: HostCalls;
  readonly #domain: Domain;
  readonly #bytes: Uint8Array<SharedArrayBuffer>;
  /** Its descriptor; null: the memory is no copy of any. */
  #base: number | null = null;
  /** Some of the memory shows another file than the base. */
  #isMixed = false;
  /** For what has been written since. */
  #room: ChangesRoom | null = null;
  #expected: Expected | null = null;

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
    this.leaveRoom();
  }

  /** Makes room for what has been written since there is a base, and somewhat more; the domain runs. `spare`: so many more are expected. */
  async makeRoom(spare = 0): Promise<void> {
    const changed = this.#changedFrames() ?? [];
    const count = changed.length;
    const most = Math.floor(this.#frames * CHANGES_PART);
    if (count === 0 || count > most) return;
    const room = this.#room;
    const isLarge = room !== null && Math.min(most, count + spare) <= room.pages;
    // Those who have mapped it had better find their pages there.
    if (isLarge && (room.isShown || spare === 0 || count <= room.planned + spare)) return;
    this.leaveRoom();
    const pages = Math.min(most, Math.max(Math.ceil(count * ROOM_PART) + ROOM_PAGES, count + 2 * spare));
    this.#room = ChangesRoom.create(this.#calls, changed, pages);
    await this.#room?.fill();
  }

  /** Nobody is about to copy the memory any more. */
  leaveRoom(): void {
    this.#room?.close();
    this.#room = null;
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
    const entries = readPagemap(this.#calls.addressOf(this.#bytes), this.#frames);
    let present = 0;
    for (let frame = first; frame < this.#frames; frame++) {
      if (isPresent(entries[frame * 2 + 1])) present++;
      if (present > PART_PAGES) return frame;
    }
    return this.#frames;
  }

  /** What copies may map while the domain runs, so that little is left when it has been copied. Null: nothing. */
  early(): FrozenMemory | null {
    if (this.#base === null || this.#isMixed) return null;
    if (this.#room !== null) this.#room.isShown = true;
    return { base: pathOf(this.#base), changes: this.#room === null ? null : pathOf(this.#room.fd) };
  }

  /** For `freeze`, which follows before anybody touches the memory again. */
  look(): LookedAt {
    if (this.#room !== null) this.#room.isTaken = true;
    return this.#changedFrames();
  }

  /**
   * The memory as it is now, which nobody touches meanwhile. `isShared`: others must go on to see what is written, so it stays where it is.
   * @throws HostError
   */
  freeze(
    isShared: boolean,
    changed: LookedAt = this.look(),
  ): { readonly memory: FrozenMemory; readonly release: Release } {
    if (this.#base !== null && changed !== null && changed.length <= this.#frames * CHANGES_PART)
      return this.#handOut(this.#base, changed);
    const base = this.#newFile(this.#bytes.length);
    try {
      this.#copyTo(base, 0, this.#frames, isShared);
      if (isShared) return this.#handOut(base, []);
      this.#mapAll(base);
    } catch (error) {
      closeSync(base);
      throw error;
    }
    this.#setBase(base);
    return this.#handOut(base, []);
  }

  /**
   * Maps what `early` of another domain has given, and the other one still writes to: `adopt` of the same files has less to do then. The domain has not run.
   * @throws HostError, and the host's errors
   */
  expect(memory: FrozenMemory): void {
    this.#withFiles(memory, (base, changes) => {
      const found = changes === null ? null : readChangedFrames(changes, this.#frames);
      this.#takeBase(base);
      // What is read instead of mapped is not there yet.
      const isMapped = changes !== null && found !== null && planOf(found.frames).allAreMapped;
      if (isMapped) this.#takeChanges(changes, found, 0);
      this.#expected = {
        base: fileOf(base),
        changes: isMapped ? { file: fileOf(changes), count: found.frames.length } : null,
      };
    });
  }

  /** Takes over what another domain's memory was; the domain has not run. @throws HostError */
  adopt(memory: FrozenMemory): void {
    this.#withFiles(memory, (base, changes) => {
      const expected = this.#expected;
      this.#expected = null;
      const isThere =
        expected?.base === fileOf(base) &&
        (expected.changes === null || (changes !== null && expected.changes.file === fileOf(changes)));
      if (!isThere) this.#takeBase(base);
      const before = isThere ? (expected.changes?.count ?? 0) : 0;
      if (changes !== null) this.#takeChanges(changes, readChangedFrames(changes, this.#frames, before), before);
    });
  }

  #withFiles(memory: FrozenMemory, act: (base: number, changes: number | null) => void): void {
    const base = openSync(memory.base, 'r');
    let changes: number | null = null;
    try {
      changes = memory.changes === null ? null : openSync(memory.changes, 'r');
      act(base, changes);
    } finally {
      if (changes !== null) closeSync(changes);
      if (this.#base !== base) closeSync(base);
    }
  }

  #takeBase(base: number): void {
    if (fstatSync(base).size !== this.#bytes.length)
      throw new HostError(`a memory of ${fstatSync(base).size} bytes, where ${this.#bytes.length} are expected`);
    this.#mapAll(base);
    this.#setBase(base);
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

  /** While the domain does not run. */
  #mapAll(base: number): void {
    this.#map(base, 0, this.#frames);
    Atomics.store(this.#domain.i32, DOMAIN.mappedAnew >> 2, 0);
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
    const changes = changed.length === 0 ? null : this.#setAside(changed);
    if (base !== this.#base) closeSync(base);
    return {
      memory: { base: pathOf(own), changes: changes === null ? null : pathOf(changes.fd) },
      release: () => {
        closeSync(own);
        changes?.close();
      },
    };
  }

  #setAside(changed: readonly number[]): { readonly fd: number; close(): void } {
    const room = this.#room;
    this.#room = null;
    if (room?.write(changed, this.#bytes)) return room;
    room?.close();
    const fd = this.#newFile(0);
    writeChanges(fd, changed, this.#bytes);
    return { fd, close: () => closeSync(fd) };
  }

  /** Copies frames to a new base: what this process has not touched it need not have, but its base may. */
  #copyTo(fd: number, from: number, to: number, isShared: boolean): void {
    const entries = readPagemap(this.#calls.addressOf(this.#bytes), this.#frames);
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
    const own = anonymousPages(this.#calls, this.#calls.addressOf(this.#bytes), this.#frames);
    const isAnew = this.#framesMappedAnew();
    if (!isAnew.includes(1)) return own;
    for (const frame of own) isAnew[frame] = 1;
    const frames: number[] = [];
    for (let frame = isAnew.indexOf(1); frame >= 0; frame = isAnew.indexOf(1, frame + 1)) frames.push(frame);
    return frames;
  }

  /** A byte for each frame: 1 where no file shows through. */
  #framesMappedAnew(): Uint8Array {
    const isAnew = new Uint8Array(this.#frames);
    // The list of all mappings takes half a millisecond to read.
    if (Atomics.load(this.#domain.i32, DOMAIN.mappedAnew >> 2) === 0) return isAnew;
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

  /** `before`: so many of them are mapped already. */
  #takeChanges(fd: number, { frames, pagesAt }: ChangedFrames, before: number): void {
    const more = frames.subarray(before);
    const { isMixed, allAreMapped } = planOf(more, before > 0);
    if (isMixed) this.#isMixed = true;
    forRuns(more, (first, pages, place) => {
      const offset = pagesAt + (before + place) * PAGE_SIZE;
      if (pages < MAPPED_PAGES && !allAreMapped) {
        readAll(fd, this.#bytes.subarray(first * PAGE_SIZE, (first + pages) * PAGE_SIZE), offset);
        return;
      }
      this.#mapFrom(fd, offset, first, pages);
    });
  }
}

interface Plan {
  readonly isMixed: boolean;
  readonly allAreMapped: boolean;
}

/**
 * Of changes, long runs are mapped, so that what is never looked at is never copied. Then some of the memory shows another file than the base, and the
 * short ones may as well. `isMapped`: some are already.
 */
function planOf(frames: Uint32Array, isMapped = false): Plan {
  let isMixed = isMapped;
  let runs = 0;
  forRuns(frames, (_, pages) => {
    if (pages >= MAPPED_PAGES) isMixed = true;
    runs++;
  });
  return { isMixed, allAreMapped: isMixed && runs <= MAPPINGS };
}

function pathOf(fd: number): string {
  return `/proc/${process.pid}/fd/${fd}`;
}

/** Which file it is, as long as it is open. */
function fileOf(fd: number): string {
  const { dev, ino } = fstatSync(fd);
  return `${dev}:${ino}`;
}
