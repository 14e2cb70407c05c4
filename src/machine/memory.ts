/**
 * Memory 0: the machine memory of one domain.
 *
 *   offset 0            RAM, pseudo-physical frame PFN at offset PFN << 12 (maxPages frames)
 *   sharedInfoOffset    the shared_info page                                (1 frame)
 *   grantTableOffset    grant table frames                                  (grantFramesMax frames)
 *   statusOffset        status frames of a grant table of version 2         (grantStatusFramesMax frames)
 *   foreignOffset       frames of other domains that this one has mapped    (FOREIGN_FRAMES frames)
 *   m2pOffset           machine-to-physical table, u64 an entry: index = MFN - MFN_BASE
 *   scratchOffset       an engine's own, for accesses that cross pages    (SCRATCH_BYTES for each vCPU), and a word as a lock
 *
 * MFN = (offset >> 12) + MFN_BASE for every frame, so that a PFN used as an MFN (or the reverse) never works by luck.
 * A guest can name RAM, shared_info, the grant table frames, with version 2 the status frames, and the foreign ones; the M2P is shown to it read-only by the engine.
 * An MFN that comes from the guest becomes an offset in `mfnToOffset` and nowhere else.
 */

import { XEN_LEGACY_MAX_VCPUS } from '../abi/arch-x86/shared-info.ts';
import { DirtyFrames } from './dirty-frames.ts';

declare const mfnBrand: unique symbol;
declare const pfnBrand: unique symbol;
/** Machine frame number as the guest sees it: MFN_BASE + (memory 0 offset >> 12). */
export type Mfn = number & { readonly [mfnBrand]: 'mfn' };
/** Pseudo-physical frame number: index of a RAM page of the domain. */
export type Pfn = number & { readonly [pfnBrand]: 'pfn' };

export const PAGE_SHIFT = 12;
export const PAGE_SIZE = 4096;
/** First MFN of every domain. Fixed at creation; saved with the domain. */
export const MFN_BASE = 0x100000;
/** Frames of the grant table; v1 entries are 8 bytes, so 512 references a frame. Source: Xen's default `gnttab_max_frames`. */
export const GRANT_FRAMES_MAX = 64;
/** Status frames for those in version 2: entries of 16 bytes, each with a u16. */
export const GRANT_STATUS_FRAMES_MAX = 8;
/** Frames of other domains that a domain can have mapped at a time. */
export const FOREIGN_FRAMES = 4096;
/** A shared WebAssembly.Memory (memory32) is at most 65536 pages of 64 KiB; the guest-visible extras and the M2P need room in it. */
export const RAM_PAGES_MAX = 0xfe000;

/** Of one vCPU. */
export const SCRATCH_BYTES = 2048;
/** Bytes from `scratchOffset` to the engine's lock. */
export const ENGINE_LOCK: number = XEN_LEGACY_MAX_VCPUS * SCRATCH_BYTES;
const ENGINE_LOCK_BYTES = 8;

const WASM_PAGE_SIZE = 65536;

/** Where things lie in memory 0; plain data that can be posted to a worker. All offsets in bytes. */
export interface MachineLayout {
  /** RAM the guest was given at boot, in pages. */
  readonly ramPages: number;
  /** RAM the guest may balloon up to, in pages. */
  readonly maxPages: number;
  readonly sharedInfoOffset: number;
  readonly grantTableOffset: number;
  readonly statusOffset: number;
  readonly foreignOffset: number;
  /** First frame (offset >> 12) that no guest may name. */
  readonly nameableFrames: number;
  readonly m2pOffset: number;
  readonly m2pEntries: number;
  readonly scratchOffset: number;
  readonly sizeBytes: number;
}

export function machineLayout(ramPages: number, maxPages: number): MachineLayout {
  const sharedInfoOffset = maxPages * PAGE_SIZE;
  const grantTableOffset = sharedInfoOffset + PAGE_SIZE;
  const statusOffset = grantTableOffset + GRANT_FRAMES_MAX * PAGE_SIZE;
  const foreignOffset = statusOffset + GRANT_STATUS_FRAMES_MAX * PAGE_SIZE;
  const nameableFrames = foreignOffset / PAGE_SIZE + FOREIGN_FRAMES;
  const m2pOffset = nameableFrames * PAGE_SIZE;
  const m2pPages = Math.ceil((nameableFrames * 8) / PAGE_SIZE);
  const scratchOffset = m2pOffset + m2pPages * PAGE_SIZE;
  const sizeBytes = Math.ceil((scratchOffset + ENGINE_LOCK + ENGINE_LOCK_BYTES) / WASM_PAGE_SIZE) * WASM_PAGE_SIZE;
  return {
    ramPages,
    maxPages,
    sharedInfoOffset,
    grantTableOffset,
    statusOffset,
    foreignOffset,
    nameableFrames,
    m2pOffset,
    m2pEntries: nameableFrames,
    scratchOffset,
    sizeBytes,
  };
}

/** What another thread needs to attach to the same machine memory. */
export interface MachineMemoryHandle {
  readonly layout: MachineLayout;
  readonly memory: WebAssembly.Memory;
  /** Of `DirtyFrames`; left out by who makes the memory. */
  readonly dirty?: SharedArrayBuffer;
}

export class MachineMemory {
  readonly layout: MachineLayout;
  readonly memory: WebAssembly.Memory;
  /** Frames that have been written to. */
  readonly dirty: DirtyFrames;
  readonly u8: Uint8Array<SharedArrayBuffer>;
  readonly u16: Uint16Array<SharedArrayBuffer>;
  readonly u32: Uint32Array<SharedArrayBuffer>;
  readonly i32: Int32Array<SharedArrayBuffer>;
  /** Control plane only. */
  readonly u64: BigUint64Array<SharedArrayBuffer>;

  constructor(handle: MachineMemoryHandle) {
    this.layout = handle.layout;
    this.memory = handle.memory;
    this.dirty = new DirtyFrames(handle.layout, handle.dirty);
    const buffer = handle.memory.buffer as unknown as SharedArrayBuffer;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
  }

  handle(): MachineMemoryHandle {
    return { layout: this.layout, memory: this.memory, dirty: this.dirty.shared };
  }

  /** Byte offset of the frame a guest named, or -1 when it may not name it. `mfn` may be any number. */
  mfnToOffset(mfn: number): number {
    const frame = mfn - MFN_BASE;
    return frame >= 0 && frame < this.layout.nameableFrames ? frame * PAGE_SIZE : -1;
  }
}

/** MFN of the frame at a byte offset of memory 0. */
export function offsetToMfn(offset: number): Mfn {
  return (Math.floor(offset / PAGE_SIZE) + MFN_BASE) as Mfn;
}

/**
 * Allocates zeroed machine memory and fills the M2P: frames that the domain owns map to their PFN, all else reads ~0
 * (INVALID_M2P_ENTRY).
 */
export function createMachineMemory(ramPages: number, maxPages: number): MachineMemory {
  const layout = machineLayout(ramPages, maxPages);
  const pages = layout.sizeBytes / WASM_PAGE_SIZE;
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const machine = new MachineMemory({ layout, memory });
  const base = layout.m2pOffset / 4;
  const end = layout.scratchOffset / 4;
  machine.u32.fill(0xffffffff, base, end);
  for (let pfn = 0; pfn < ramPages; pfn++) {
    machine.u32[base + pfn * 2] = pfn;
    machine.u32[base + pfn * 2 + 1] = 0;
  }
  return machine;
}
