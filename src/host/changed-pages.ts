/**
 * Pages of a memory that differ from its base (copied-memory.ts), in a memfd:
 *
 *   u32 count, u32 frame for each, zeros up to a page; 4096 bytes for each
 *
 * The domain stands still while they are copied. That the system finds a page for them takes four times as long as to fill it, so
 * there is room for them before, as far as one can tell then how many they will be.
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
  readonly pages: number;
  readonly fd: number;
  readonly #calls: HostCalls;
  readonly #sizeBytes: number;
  /** Its address; 0: it is mapped no more. */
  #at: number;
  /** So much of it has pages. Who stores behind that where there is no memory left is killed. */
  #filledBytes = 0;
  /** What others need of it. */
  #usedBytes = 0;

  /** Null if there is none. */
  static create(calls: HostCalls, pages: number): ChangesRoom | null {
    const sizeBytes = headerBytesOf(pages) + pages * PAGE_SIZE;
    const fd = calls.memfdCreate('domus-changes', sizeBytes);
    if (fd < 0) return null;
    const at = calls.map(fd, sizeBytes);
    if (at !== 0) return new ChangesRoom(calls, fd, { at, sizeBytes, pages });
    closeSync(fd);
    return null;
  }

  private constructor(calls: HostCalls, fd: number, room: { at: number; sizeBytes: number; pages: number }) {
    this.fd = fd;
    this.pages = room.pages;
    this.#calls = calls;
    this.#at = room.at;
    this.#sizeBytes = room.sizeBytes;
  }

  /** Has the system find its pages. It may be used, or closed, meanwhile. */
  async fill(): Promise<void> {
    for (let done = 0; done < this.#sizeBytes && this.#at !== 0; done += SLICE_BYTES) {
      const bytes = Math.min(SLICE_BYTES, this.#sizeBytes - done);
      // An older kernel, or no memory is left.
      if (!this.#calls.populate(this.#at + done, bytes)) return;
      this.#filledBytes = done + bytes;
      await setImmediate();
    }
  }

  /** `frames` of `bytes`. */
  write(frames: readonly number[], bytes: Uint8Array): void {
    const headerBytes = headerBytesOf(frames.length);
    this.#usedBytes = headerBytes + frames.length * PAGE_SIZE;
    if (this.#usedBytes > this.#filledBytes) {
      writeChanges(this.fd, frames, bytes);
      return;
    }
    writeHeader(this.fd, frames);
    const from = this.#calls.addressOf(bytes);
    forRuns(frames, (first, count, index) => {
      this.#calls.copy(this.#at + headerBytes + index * PAGE_SIZE, from + first * PAGE_SIZE, count * PAGE_SIZE);
    });
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
  writeHeader(fd, frames);
  forRuns(frames, (first, count, index) => {
    const run = bytes.subarray(first * PAGE_SIZE, (first + count) * PAGE_SIZE);
    writeAll(fd, run, headerBytes + index * PAGE_SIZE);
  });
}

/** Where the contents of the first page begin: bytes. */
export function headerBytesOf(count: number): number {
  return Math.ceil((4 + count * 4) / PAGE_SIZE) * PAGE_SIZE;
}

function writeHeader(fd: number, frames: readonly number[]): void {
  const words = new Uint32Array(1 + frames.length);
  words[0] = frames.length;
  words.set(frames, 1);
  writeAll(fd, new Uint8Array(words.buffer), 0);
}

/** The frames of a memory of `framesMax`, as the file of another process has them. @throws HostError */
export function readChangedFrames(fd: number, framesMax: number): Uint32Array {
  const count = new Uint32Array(1);
  readAll(fd, new Uint8Array(count.buffer), 0);
  if (count[0] > framesMax) throw new HostError(`${count[0]} changed pages in a memory of ${framesMax}`);
  const frames = new Uint32Array(count[0]);
  readAll(fd, new Uint8Array(frames.buffer), 4);
  if (frames.some((frame) => frame >= framesMax)) throw new HostError('a changed page outside the memory');
  // Who looks at a mapping behind the end of its file is killed.
  if (fstatSync(fd).size < headerBytesOf(frames.length) + frames.length * PAGE_SIZE)
    throw new HostError('a copy of the memory has fewer changed pages than it says');
  return frames;
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
