/**
 * A domain's memory as parts of a saved domain (save-file.ts): pages that are not zero, in the order of their frames, and the M2P.
 * Frames that the guest has given back, whose M2P entry is invalid, are left out.
 *
 *   PART_M2P     u64 for each frame that the guest may name
 *   PART_M2P_CHANGES  u32 frame and u64 for each entry that is another one than before
 *   PART_PAGES   u32 count, u32[count] frames, each with 4096 bytes behind them all; frames ascend from part to part, and in the
 *                stream of a domain that runs within a part
 */

import { type Domain, rootFrames } from '../../hypervisor/domain.ts';
import { HOLE_END_SLOT, HOLE_FIRST_SLOT } from '../../hypervisor/guest-access.ts';
import { GRANT_STATUS_FRAMES_MAX, type MachineLayout, type MachineMemory, PAGE_SIZE } from '../../machine/memory.ts';
import { SaveFileError } from './save-file.ts';

/** Pages of a part: 4 MiB, which compress while others are read. */
export const PAGES_MAX = 1024;
const PAGE_WORDS = PAGE_SIZE / 4;
const INVALID_M2P_ENTRY = 0xffffffff;

/**
 * Frames of which the file has a type and an M2P entry. Only those of RAM say anything, and there are as many others as when there were no
 * status frames, of which old files know nothing.
 */
export function savedFrames({ nameableFrames }: MachineLayout): number {
  return nameableFrames - GRANT_STATUS_FRAMES_MAX;
}

export function encodeM2p({ u8, layout }: MachineMemory): Uint8Array {
  return Uint8Array.from(u8.subarray(layout.m2pOffset, layout.m2pOffset + savedFrames(layout) * 8));
}

/** @throws SaveFileError */
export function decodeM2p(bytes: Uint8Array, { u8, layout }: MachineMemory): void {
  if (bytes.length !== savedFrames(layout) * 8) throw new SaveFileError('damaged: an M2P of another length');
  u8.set(bytes, layout.m2pOffset);
}

const M2P_CHANGE_BYTES = 12;

/** What has become of an M2P that `encodeM2p` gave. */
export function encodeM2pChanges({ u8, layout }: MachineMemory, before: Uint8Array): Uint8Array {
  const now = new Uint32Array(u8.buffer, u8.byteOffset + layout.m2pOffset, savedFrames(layout) * 2);
  const old = new Uint32Array(before.buffer, before.byteOffset, now.length);
  const changes: number[] = [];
  for (let word = 0; word < now.length; word += 2)
    if (now[word] !== old[word] || now[word + 1] !== old[word + 1]) changes.push(word >> 1, now[word], now[word + 1]);
  return new Uint8Array(Uint32Array.from(changes).buffer);
}

/** @throws SaveFileError */
export function decodeM2pChanges(bytes: Uint8Array, { u32, layout }: MachineMemory): void {
  if (bytes.length % M2P_CHANGE_BYTES !== 0)
    throw new SaveFileError(`damaged: changes of the M2P in ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at < bytes.length; at += M2P_CHANGE_BYTES) {
    const frame = view.getUint32(at, true);
    if (frame >= savedFrames(layout)) throw new SaveFileError(`damaged: frame ${frame} in changes of the M2P`);
    const entry = (layout.m2pOffset >>> 2) + frame * 2;
    u32[entry] = view.getUint32(at + 4, true);
    u32[entry + 1] = view.getUint32(at + 8, true);
  }
}

/** Parts with all pages, one after the other. Of a domain that runs meanwhile, they are of different times. */
export function* encodePages(machine: MachineMemory): Generator<Uint8Array> {
  const { layout, u8 } = machine;
  const frames: number[] = [];
  for (let frame = 0; frame < layout.nameableFrames; frame++) {
    if (!isOwned(machine, frame) || isZero(machine, frame)) continue;
    frames.push(frame);
    if (frames.length === PAGES_MAX) yield encodeFrames(u8, frames.splice(0));
  }
  if (frames.length > 0) yield encodeFrames(u8, frames);
}

/** Frames that the domain owns of those that are wanted. */
export function framesToSend(machine: MachineMemory, wanted: readonly number[]): number[] {
  return wanted.filter((frame) => isOwned(machine, frame));
}

/** Frames that the domain does not own are zeros again: a copy of a domain that ran may have put pages there. */
export function clearUnowned(machine: MachineMemory): void {
  for (let frame = 0; frame < machine.layout.maxPages; frame++)
    if (!isOwned(machine, frame) && !isZero(machine, frame))
      machine.u8.fill(0, frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE);
}

function isOwned({ layout, u32 }: MachineMemory, frame: number): boolean {
  if (frame >= layout.maxPages) return true;
  const entry = (layout.m2pOffset >>> 2) + frame * 2;
  return u32[entry] !== INVALID_M2P_ENTRY || u32[entry + 1] !== INVALID_M2P_ENTRY;
}

function isZero({ i32 }: MachineMemory, frame: number): boolean {
  const first = frame * PAGE_WORDS;
  for (let word = first; word < first + PAGE_WORDS; word += 4)
    if ((i32[word] | i32[word + 1] | i32[word + 2] | i32[word + 3]) !== 0) return false;
  return true;
}

/** A part with these pages. */
export function encodeFrames(u8: Uint8Array, frames: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(4 + frames.length * (4 + PAGE_SIZE));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, frames.length, true);
  let at = 4 + frames.length * 4;
  frames.forEach((frame, i) => {
    view.setUint32(4 + i * 4, frame, true);
    bytes.set(u8.subarray(frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE), at);
    at += PAGE_SIZE;
  });
  return bytes;
}

/** How many pages a part has. @throws SaveFileError */
function checkCount(bytes: Uint8Array): number {
  const count = bytes.length >= 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) : 0;
  if (count === 0 || count > PAGES_MAX || bytes.length !== 4 + count * (4 + PAGE_SIZE))
    throw new SaveFileError(`damaged: ${count} pages in a part of ${bytes.length} bytes`);
  return count;
}

/**
 * Stores the pages of one part; the last frame. `after`: the last one of the part before; `stored`: called with each behind that.
 * @throws SaveFileError
 */
export function decodePages(
  bytes: Uint8Array,
  { u8, layout }: MachineMemory,
  after: number,
  stored: (frame: number) => void = () => {},
): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const count = checkCount(bytes);
  let at = 4 + count * 4;
  let last = after;
  for (let i = 0; i < count; i++, at += PAGE_SIZE) {
    const frame = view.getUint32(4 + i * 4, true);
    if (frame <= last || frame >= layout.nameableFrames)
      throw new SaveFileError(`damaged: frame ${frame} behind frame ${last}`);
    u8.set(bytes.subarray(at, at + PAGE_SIZE), frame * PAGE_SIZE);
    stored(frame);
    last = frame;
  }
  return last;
}

/**
 * Compares the pages of a part of `encodePages` with what is there; the last frame. The frames that `encodePages` has left out must be
 * zeros. @throws SaveFileError at the first that differs
 */
export function comparePages(bytes: Uint8Array, machine: MachineMemory, after: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const count = checkCount(bytes);
  let at = 4 + count * 4;
  let last = after;
  for (let i = 0; i < count; i++, at += PAGE_SIZE) {
    const frame = view.getUint32(4 + i * 4, true);
    compareZeros(machine, last, frame);
    if (frame >= machine.layout.nameableFrames) throw new SaveFileError(`damaged: frame ${frame}`);
    for (let byte = 0; byte < PAGE_SIZE; byte++)
      if (machine.u8[frame * PAGE_SIZE + byte] !== bytes[at + byte])
        throw new SaveFileError(`frame ${frame} is not what it is at the source`);
    last = frame;
  }
  return last;
}

/** Frames between two that are not zeros. @throws SaveFileError */
export function compareZeros(machine: MachineMemory, after: number, before: number): void {
  for (let frame = after + 1; frame < before; frame++)
    if (isOwned(machine, frame) && !isZero(machine, frame))
      throw new SaveFileError(`frame ${frame} is not zero as it is at the source`);
}

/** What an engine has put into the slots of root page tables that are Xen's. The next engine puts in its own. */
export function clearHoles(domain: Domain): void {
  const { u32 } = domain.machine;
  for (const frame of rootFrames(domain))
    u32.fill(0, frame * 1024 + HOLE_FIRST_SLOT * 2, frame * 1024 + HOLE_END_SLOT * 2);
}
