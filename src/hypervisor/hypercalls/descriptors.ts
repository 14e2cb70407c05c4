/**
 * set_gdt and update_descriptor: descriptor tables are frames of the guest. Source: xen/arch/x86/pv/descriptor-tables.c (behaviour);
 * Intel SDM vol. 3, 3.4.5.
 *
 * Descriptors that are checked get DPL 3 in place, since the guest kernel runs at CPL 3 too. The guest may change the frame behind
 * our back when it maps it writable (Xen forbids that by frame types); an engine must therefore not trust what it finds there.
 */

import { EFAULT, EINVAL } from '../../abi/errno.ts';
import { FIRST_RESERVED_GDT_ENTRY, FLAT_KERNEL_CS64 } from '../../abi/xen.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import type { Vcpu } from '../vcpu.ts';

const ENTRIES_PER_FRAME = 512;
const GDT_FRAMES = 16;
/** Bits of a descriptor's high word. */
const SEGMENT_P = 0x8000;
const SEGMENT_DPL = 0x6000;
const SEGMENT_S = 0x1000;
const SEGMENT_TYPE = 0xf00;
const TYPE_CALL_GATE = 0xc00;
const GATE_RESERVED = 0xff;

/** A checked descriptor: what `checkDescriptor` made of it. */
let checkedLo = 0;
let checkedHi = 0;

/** A selector that a call gate may name. */
function gateSelectorOkay(selector: number): boolean {
  return selector === FLAT_KERNEL_CS64 || (selector & 4) !== 0 || selector >>> 3 < FIRST_RESERVED_GDT_ENTRY;
}

/** False for a descriptor that no guest may have; else checkedLo/Hi is the descriptor with its privilege put right. */
function checkDescriptor(lo: number, hi: number): boolean {
  checkedLo = lo;
  checkedHi = hi;
  if ((hi & SEGMENT_P) === 0) return true;
  if ((hi & SEGMENT_S) !== 0) {
    checkedHi = (hi | SEGMENT_DPL) >>> 0;
    return true;
  }
  // Type 0 is the second half of a call gate.
  if ((hi & SEGMENT_TYPE) === 0) return true;
  if ((hi & SEGMENT_TYPE) !== TYPE_CALL_GATE) return false;
  if (!gateSelectorOkay(lo >>> 16) || (hi & GATE_RESERVED) !== 0) return false;
  // DPL 0, so that every use faults.
  checkedHi = (hi & ~SEGMENT_DPL) >>> 0;
  checkedLo = (lo | 0x30000) >>> 0;
  return true;
}

/** Checks all descriptors of a frame, and only then changes any. */
function checkFrame(v: Vcpu, frame: number): boolean {
  const u32 = v.machine.u32;
  const base = (frame * PAGE_SIZE) >>> 2;
  for (let i = 0; i < ENTRIES_PER_FRAME; i++)
    if (!checkDescriptor(u32[base + i * 2], u32[base + i * 2 + 1])) return false;
  for (let i = 0; i < ENTRIES_PER_FRAME; i++) {
    const lo = u32[base + i * 2];
    const hi = u32[base + i * 2 + 1];
    if (!checkDescriptor(lo, hi)) return false;
    if (checkedLo !== lo) u32[base + i * 2] = checkedLo;
    if (checkedHi !== hi) u32[base + i * 2 + 1] = checkedHi;
    if (checkedLo !== lo || checkedHi !== hi) v.engine.memoryStored((base + i * 2) * 4, 8);
  }
  return true;
}

/** Index of a RAM frame that is no page table, or -1. The MFN is two words. */
function plainFrame(v: Vcpu, lo: number, hi: number): number {
  const frame = lo - MFN_BASE;
  if (hi !== 0 || frame < 0 || frame >= v.machine.layout.maxPages) return -1;
  return v.domain.frameTypes[frame] === 0 ? frame : -1;
}

const newFrames = new Uint32Array(GDT_FRAMES);

/** (u64 *frames, entries) */
export function setGdt(v: Vcpu): number {
  const entries = v.args[2];
  const access = v.access;
  if (entries > FIRST_RESERVED_GDT_ENTRY) return -EINVAL;
  const count = Math.ceil(entries / ENTRIES_PER_FRAME);
  if (!access.copyIn(v.args[0], v.args[1], count * 8)) return -EFAULT;
  newFrames.fill(0);
  for (let i = 0; i < count; i++) {
    const frame = plainFrame(v, access.words[i * 2], access.words[i * 2 + 1]);
    if (frame < 0) return -EINVAL;
    newFrames[i] = frame;
  }
  for (let i = 0; i < count; i++) if (!checkFrame(v, newFrames[i])) return -EINVAL;
  const block = v.block.u32;
  block[VCPU.gdtEntries >> 2] = entries;
  for (let i = 0; i < GDT_FRAMES; i++) block[(VCPU.gdtFrames >> 2) + i] = newFrames[i];
  v.engine.descriptorTablesChanged();
  return 0;
}

/** True when the frame may hold descriptors that this vCPU has loaded: one of its GDT, or any while it has an LDT. */
function mayBeLoaded(v: Vcpu, frame: number): boolean {
  const block = v.block.u32;
  if (block[VCPU.ldtEntries >> 2] !== 0) return true;
  const count = Math.ceil(block[VCPU.gdtEntries >> 2] / ENTRIES_PER_FRAME);
  for (let i = 0; i < count; i++) if (block[(VCPU.gdtFrames >> 2) + i] === frame) return true;
  return false;
}

/** (u64 machine address, u64 descriptor) */
export function updateDescriptor(v: Vcpu): number {
  const addressLo = v.args[0];
  const addressHi = v.args[1];
  if ((addressLo & 7) !== 0 || !checkDescriptor(v.args[2], v.args[3])) return -EINVAL;
  const mfn = addressHi * 0x100000 + (addressLo >>> 12);
  const frame = mfn > 0xffffffff ? -1 : plainFrame(v, mfn, 0);
  if (frame < 0) return -EINVAL;
  const index = (frame * PAGE_SIZE + (addressLo & 0xfff)) >>> 2;
  Atomics.store(v.machine.u32, index, checkedLo);
  Atomics.store(v.machine.u32, index + 1, checkedHi);
  v.engine.memoryStored(index * 4, 8);
  if (mayBeLoaded(v, frame)) v.engine.descriptorTablesChanged();
  return 0;
}
