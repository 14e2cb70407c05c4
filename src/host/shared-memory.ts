/**
 * Memory that processes share. On Linux with koffi a domain has a memfd, which takes the place of what WebAssembly has allocated when
 * another domain maps the first page: until then the memory is private, which has huge pages. The other's process opens it below /proc
 * and maps single pages of it over the foreign frames of its own. Stores are then seen by both at once, atomics included, on either
 * engine.
 */
import { closeSync, fstatSync, openSync, writeSync } from 'node:fs';
import { getSystemErrorName } from 'node:util';
import { type MachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import { type HostCalls, hostCalls } from './libc.ts';
import type { Freezer } from './save-domain.ts';

/** What is zero is not written: it takes no memory. */
const CHUNK_BYTES = 64 << 10;

/** What others may map of a domain: all that is before its foreign frames. */
export class ShareableMemory {
  /** What other processes open. */
  readonly fd: number;
  readonly #calls: HostCalls;
  readonly #bytes: Uint8Array<SharedArrayBuffer>;
  #shared: Promise<boolean> | null = null;
  #isShared = false;
  /** Called when the memfd has taken the place of the memory. */
  onShared: () => void = () => {};

  /** Null where memory cannot be shared. */
  static create({ u8, layout }: MachineMemory): ShareableMemory | null {
    const calls = hostCalls();
    const fd = calls?.memfdCreate('domus', layout.foreignOffset) ?? -1;
    if (calls === null || fd < 0) return null;
    return new ShareableMemory(fd, calls, u8.subarray(0, layout.foreignOffset));
  }

  private constructor(fd: number, calls: HostCalls, bytes: Uint8Array<SharedArrayBuffer>) {
    this.fd = fd;
    this.#calls = calls;
    this.#bytes = bytes;
  }

  /** The memory is the memfd's. */
  get isShared(): boolean {
    return this.#isShared;
  }

  /** From now on the memory is the memfd's. False, and a line in the log: it cannot be, or the domain ends. */
  share(freezer: Pick<Freezer, 'whileFrozen'>, log: (line: string) => void): Promise<boolean> {
    this.#shared ??= this.#shareWhileFrozen(freezer, log);
    return this.#shared;
  }

  async #shareWhileFrozen(freezer: Pick<Freezer, 'whileFrozen'>, log: (line: string) => void): Promise<boolean> {
    let errno = 0;
    try {
      await freezer.whileFrozen(async () => {
        errno = this.#replace();
        return 'as before';
      });
    } catch (error) {
      if (!(error instanceof NotSavable)) throw error;
      log(`xl: memory that another domain wants to map: ${error.message}`);
      return false;
    }
    if (errno !== 0) log(`xl: memory that another domain wants to map: ${getSystemErrorName(-errno)}`);
    return errno === 0;
  }

  /** Puts the memfd in the place of the memory, which nobody may use meanwhile; an errno if that fails, and then nothing has changed. */
  #replace(): number {
    const bytes = this.#bytes;
    const zeros = Buffer.alloc(CHUNK_BYTES);
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
      const chunk = bytes.subarray(at, at + CHUNK_BYTES);
      if (zeros.compare(chunk, 0, chunk.length, 0, chunk.length) !== 0) writeSync(this.fd, chunk, 0, chunk.length, at);
    }
    const errno = this.#calls.mapAt(this.#calls.addressOf(bytes), bytes.length, this.fd, 0, 'write');
    this.#isShared = errno === 0;
    if (this.#isShared) this.onShared();
    return errno;
  }

  /** Others keep what they have mapped. */
  close(): void {
    closeSync(this.fd);
  }
}

/** The memory of another domain. */
export interface RemoteMemory {
  readonly fd: number;
  readonly frames: number;
}

/** Opens a memfd of another process; null if it cannot be had. */
export function openRemoteMemory(pid: number, remoteFd: number): RemoteMemory | null {
  try {
    const fd = openSync(`/proc/${pid}/fd/${remoteFd}`, 'r+');
    return { fd, frames: Math.floor(fstatSync(fd).size / PAGE_SIZE) };
  } catch {
    return null;
  }
}

interface Slot {
  readonly memory: RemoteMemory;
  readonly key: number;
  mappings: number;
}

/** The foreign frames of a domain: which pages of which others stand there. */
export class ForeignFrames {
  readonly #calls: HostCalls;
  readonly #machine: MachineMemory;
  readonly #free: number[] = [];
  /** By frame. */
  readonly #slots = new Map<number, Slot>();
  readonly #byPage = new Map<RemoteMemory, Map<number, number>>();

  /** Null where memory cannot be shared. */
  static create(machine: MachineMemory): ForeignFrames | null {
    const calls = hostCalls();
    return calls === null ? null : new ForeignFrames(machine, calls);
  }

  private constructor(machine: MachineMemory, calls: HostCalls) {
    this.#machine = machine;
    this.#calls = calls;
    const first = machine.layout.foreignOffset / PAGE_SIZE;
    for (let frame = machine.layout.nameableFrames - 1; frame >= first; frame--) this.#free.push(frame);
  }

  /** The frame (offset >> 12 in memory 0) where a page of another domain stands from now on; -1: there is no room, or no such page. */
  map(memory: RemoteMemory, remoteFrame: number, writable: boolean): number {
    if (remoteFrame >= memory.frames) return -1;
    const key = remoteFrame * 2 + (writable ? 1 : 0);
    const pages = this.#byPage.get(memory) ?? new Map<number, number>();
    const known = pages.get(key);
    const slot = known === undefined ? undefined : this.#slots.get(known);
    if (known !== undefined && slot !== undefined) {
      slot.mappings++;
      return known;
    }
    const frame = this.#free.pop();
    if (frame === undefined) return -1;
    const { fd } = memory;
    if (
      this.#calls.mapAt(this.#addressOf(frame), PAGE_SIZE, fd, remoteFrame * PAGE_SIZE, writable ? 'write' : 'read')
    ) {
      this.#free.push(frame);
      return -1;
    }
    this.#slots.set(frame, { memory, key, mappings: 1 });
    pages.set(key, frame);
    this.#byPage.set(memory, pages);
    return frame;
  }

  /** Takes one mapping of a frame back. After the last one, a page of the domain's own stands there. */
  unmap(frame: number): void {
    const slot = this.#slots.get(frame);
    if (slot === undefined || --slot.mappings > 0) return;
    this.#slots.delete(frame);
    const pages = this.#byPage.get(slot.memory);
    pages?.delete(slot.key);
    if (pages?.size === 0) this.#byPage.delete(slot.memory);
    const errno = this.#calls.mapAt(this.#addressOf(frame), PAGE_SIZE, -1, 0, 'write');
    // A frame that still shows the other's page must not be given out again.
    if (errno === 0) this.#free.push(frame);
  }

  #addressOf(frame: number): number {
    return this.#calls.addressOf(this.#machine.u8) + frame * PAGE_SIZE;
  }
}
