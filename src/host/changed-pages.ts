/**
 * Pages of a memory that differ from its base (copied-memory.ts), in a memfd:
 *
 *   u32 count, u32 capacity, u32 frame for each, zeros up to a page behind room for `capacity` of them; 4096 bytes for each
 *
 * The domain stands still while they are copied. That the system finds a page for them takes four times as long as to fill it, so
 * there is room for them before, as far as one can tell then which they will be. Those have their places from then on: who will read them can map
 * them before they are there.
 */

import { closeSync, fstatSync, ftruncateSync, readSync, writeSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { PAGE_SIZE } from '../machine/memory.ts';
import { HostError } from './host-error.ts';
import type { HostCalls } from './libc.ts';

/** What the system is asked for in one turn of the thread that serves the guest: 2 MiB. */
const SLICE_BYTES = 2 << 20;

/** A memfd for some pages, mapped. */
export class ChangesRoom {
  /** How many there is room for. */
  readonly pages: number;
  readonly fd: number;
  /** Somebody may have mapped it. */
  isShown = false;
  /** The domain stands still: no time for more. */
  isTaken = false;
  /** Frames that have their places, in the order of those. */
  readonly #planned: readonly number[];
  readonly #calls: HostCalls;
  readonly #sizeBytes: number;
  /** Its address; 0: it is mapped no more. */
  #at: number;
  /** So much of it has pages. Who stores behind that where there is no memory left is killed. */
  #filledBytes = 0;
  /** What others need of it. */
  #usedBytes = 0;

  /** Null if there is none. `planned`: frames, ascending, that will be written. */
  static create(calls: HostCalls, planned: readonly number[], pages: number): ChangesRoom | null {
    const sizeBytes = headerBytesOf(pages) + pages * PAGE_SIZE;
    const fd = calls.memfdCreate('domus-changes', sizeBytes);
    if (fd < 0) return null;
    const at = calls.map(fd, sizeBytes);
    if (at === 0) {
      closeSync(fd);
      return null;
    }
    writeHeader(fd, planned, pages);
    return new ChangesRoom(calls, fd, { at, sizeBytes, pages, planned });
  }

  private constructor(
    calls: HostCalls,
    fd: number,
    room: { at: number; sizeBytes: number; pages: number; planned: readonly number[] },
  ) {
    this.fd = fd;
    this.pages = room.pages;
    this.#planned = room.planned;
    this.#calls = calls;
    this.#at = room.at;
    this.#sizeBytes = room.sizeBytes;
  }

  /** How many frames have their places. */
  get planned(): number {
    return this.#planned.length;
  }

  /** Has the system find its pages. It may be used, or closed, meanwhile, or has to do with what it has. */
  async fill(): Promise<void> {
    for (let done = 0; done < this.#sizeBytes && this.#at !== 0 && !this.isTaken; done += SLICE_BYTES) {
      const bytes = Math.min(SLICE_BYTES, this.#sizeBytes - done);
      // An older kernel, or no memory is left.
      if (!this.#calls.populate(this.#at + done, bytes)) return;
      this.#filledBytes = done + bytes;
      await setImmediate();
    }
  }

  /** `frames`, ascending, of `bytes`, and those that were planned. False: there is no room for so many. */
  write(frames: readonly number[], bytes: Uint8Array): boolean {
    const all = [...this.#planned];
    let next = 0;
    for (const frame of frames) {
      while (next < this.#planned.length && this.#planned[next] < frame) next++;
      if (this.#planned[next] !== frame) all.push(frame);
    }
    if (all.length > this.pages) return false;
    const headerBytes = headerBytesOf(this.pages);
    this.#usedBytes = headerBytes + all.length * PAGE_SIZE;
    writeHeader(this.fd, all, this.pages);
    const from = this.#calls.addressOf(bytes);
    forRuns(all, (first, count, index) => {
      const at = headerBytes + index * PAGE_SIZE;
      const sizeBytes = count * PAGE_SIZE;
      if (at + sizeBytes <= this.#filledBytes) this.#calls.copy(this.#at + at, from + first * PAGE_SIZE, sizeBytes);
      else writeAll(this.fd, bytes.subarray(first * PAGE_SIZE, first * PAGE_SIZE + sizeBytes), at);
    });
    return true;
  }

  /** Those who have opened it have it. */
  close(): void {
    this.#calls.unmap(this.#at, this.#sizeBytes);
    this.#at = 0;
    if (this.#usedBytes > 0 && this.#usedBytes < this.#sizeBytes) ftruncateSync(this.fd, this.#usedBytes);
    closeSync(this.fd);
  }
}

/** Writes `frames` of `bytes` to an empty file. */
export function writeChanges(fd: number, frames: readonly number[], bytes: Uint8Array): void {
  const headerBytes = headerBytesOf(frames.length);
  writeHeader(fd, frames, frames.length);
  forRuns(frames, (first, count, index) => {
    const run = bytes.subarray(first * PAGE_SIZE, (first + count) * PAGE_SIZE);
    writeAll(fd, run, headerBytes + index * PAGE_SIZE);
  });
}

const FRAMES_AT = 8;

function headerBytesOf(capacity: number): number {
  return Math.ceil((FRAMES_AT + capacity * 4) / PAGE_SIZE) * PAGE_SIZE;
}

function writeHeader(fd: number, frames: readonly number[], capacity: number): void {
  const words = new Uint32Array(2 + frames.length);
  words.set([frames.length, capacity]);
  words.set(frames, 2);
  writeAll(fd, new Uint8Array(words.buffer), 0);
}

/** Which pages there are in a file. */
export interface ChangedFrames {
  /** In the order of their places. */
  readonly frames: Uint32Array;
  /** Where the contents of the first page begin: bytes. */
  readonly pagesAt: number;
}

/** The frames of a memory of `framesMax`, as the file of another process has them. `known`: so many have been looked at before. @throws HostError */
export function readChangedFrames(fd: number, framesMax: number, known = 0): ChangedFrames {
  const header = new Uint32Array(2);
  readAll(fd, new Uint8Array(header.buffer), 0);
  const [count, capacity] = header;
  if (count > capacity || capacity > framesMax)
    throw new HostError(`${count} changed pages, at most ${capacity}, in a memory of ${framesMax}`);
  const frames = new Uint32Array(count);
  readAll(fd, new Uint8Array(frames.buffer), FRAMES_AT);
  if (frames.subarray(known).some((frame) => frame >= framesMax))
    throw new HostError('a changed page outside the memory');
  const pagesAt = headerBytesOf(capacity);
  // Who looks at a mapping behind the end of its file is killed.
  if (fstatSync(fd).size < pagesAt + count * PAGE_SIZE)
    throw new HostError('a copy of the memory has fewer changed pages than it says');
  return { frames, pagesAt };
}

/** Calls `visit` for frames that follow each other: the first, how many, and the place of the first in the list. */
export function forRuns(frames: ArrayLike<number>, visit: (first: number, count: number, index: number) => void): void {
  let start = 0;
  for (let i = 1; i <= frames.length; i++) {
    if (i < frames.length && frames[i] === frames[i - 1] + 1) continue;
    visit(frames[start], i - start, start);
    start = i;
  }
}

export function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, position + at);
}

export function readAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let at = 0; at < bytes.length; ) {
    const count = readSync(fd, bytes, at, bytes.length - at, position + at);
    if (count === 0) throw new HostError(`a copy of the memory ends after ${position + at} bytes`);
    at += count;
  }
}
