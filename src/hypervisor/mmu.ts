/**
 * Page tables: storing entries, marking frames as page tables, base pointers, TLB flushes across vCPUs.
 *
 * Every domain has memory of its own, so tables need no validation for safety; what is checked here is what a guest can see. A
 * frame in use as a page table carries its level in `domain.frameTypes`: set when it is pinned, becomes a base pointer or is
 * linked from a table above; cleared when an L1 entry maps it writable again (Linux does so for every table it frees).
 *
 * All entries in use carry the U bit, as under Xen: kernel and user of a 64-bit PV guest both run at CPL 3.
 */

import { EINVAL } from '../abi/errno.ts';
import { type MachineMemory, MFN_BASE } from '../machine/memory.ts';
import { PTE_A, PTE_D, PTE_G, PTE_P, PTE_PSE, PTE_RW, PTE_US } from '../machine/page-table.ts';
import { FLAG_FLUSH_TLB, NO_ROOT, VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN, type Domain, FRAME_LEVEL_MASK, FRAME_PINNED, FRAME_VALIDATING } from './domain.ts';
import { grantVersion } from './grant-entries.ts';
import { HOLE_END_SLOT, HOLE_FIRST_SLOT, pteMfn } from './guest-access.ts';
import type { Vcpu } from './vcpu.ts';

/** Frame index of RAM that an MFN names, or -1: only RAM can be a page table. */
export function ramFrame(v: Vcpu, mfn: number): number {
  const offset = v.machine.mfnToOffset(mfn);
  return offset < 0 || offset >= v.machine.layout.sharedInfoOffset ? -1 : offset >>> 12;
}

/**
 * Writes an aligned entry so that a page walk on another vCPU never sees halves of two present entries: where the high word
 * changes under a present entry, the entry is not present for an instant, and a fault on it is found to be spurious.
 */
function writeEntry(i32: Int32Array, index: number, lo: number, hi: number): void {
  const oldHi = i32[index + 1];
  if ((oldHi | 0) === (hi | 0)) {
    Atomics.store(i32, index, lo | 0);
    return;
  }
  if ((i32[index] & PTE_P) !== 0) Atomics.store(i32, index, lo & ~PTE_P);
  Atomics.store(i32, index + 1, hi | 0);
  Atomics.store(i32, index, lo | 0);
}

/**
 * Stores a page-table entry at a byte offset of memory 0 (8-aligned) as mmu_update does: checks the frame it names, adds the U bit,
 * links and marks lower tables. Returns 0 or -EINVAL. `keepAd`: A and D of the old entry stay set (MMU_PT_UPDATE_PRESERVE_AD).
 * A frame of another domain is named by `storeGrantPte` only; what is there may lose rights.
 * Source: xen/arch/x86/mm.c, mod_l1_entry .. mod_l4_entry (behaviour).
 */
export function storePte(v: Vcpu, offset: number, lo: number, hi: number, keepAd = false): number {
  return store(v, offset, lo, hi, keepAd, false);
}

/** Stores an L1 entry that names a frame of another domain, which this one has mapped by a grant. 0 or -EINVAL. */
export function storeGrantPte(v: Vcpu, offset: number, lo: number, hi: number): number {
  return store(v, offset, lo, hi, false, true);
}

function store(v: Vcpu, offset: number, lo: number, hi: number, keepAd: boolean, isGrant: boolean): number {
  const domain = v.domain;
  const machine = v.machine;
  const level = domain.frameTypes[offset >>> 12] & FRAME_LEVEL_MASK;
  const index = offset >>> 2;
  if (level === 4) {
    const slot = (offset >>> 3) & 511;
    if (slot >= HOLE_FIRST_SLOT && slot < HOLE_END_SLOT) return -EINVAL;
  }
  let value = lo >>> 0;
  if ((lo & PTE_P) !== 0 && level !== 0) {
    const target = machine.mfnToOffset(pteMfn(lo, hi));
    if (target < 0) return -EINVAL;
    value = (value | PTE_US) >>> 0;
    const frame = target >>> 12;
    if (level === 1) {
      if (!isGrant && target >= machine.layout.statusOffset && target >= ownEnd(domain))
        if (!losesRights(machine, index, lo, hi)) return -EINVAL;
      value = (value & ~PTE_G) >>> 0;
      if ((lo & PTE_RW) !== 0 && domain.frameTypes[frame] !== 0) {
        if ((domain.frameTypes[frame] & FRAME_PINNED) !== 0) return -EINVAL;
        domain.frameTypes[frame] = 0;
      }
    } else {
      if ((lo & PTE_PSE) !== 0) return -EINVAL;
      if (target >= machine.layout.sharedInfoOffset) return -EINVAL;
      const rc = markTable(v, frame, level - 1);
      if (rc !== 0) return rc;
    }
  }
  const i32 = machine.i32;
  const oldLo = machine.u32[index];
  if (keepAd) {
    for (;;) {
      const old = i32[index];
      const next = value | (old & (PTE_A | PTE_D)) | 0;
      if ((i32[index + 1] | 0) !== (hi | 0)) {
        writeEntry(i32, index, next, hi);
        break;
      }
      if (Atomics.compareExchange(i32, index, old, next) === old) break;
    }
  } else {
    writeEntry(i32, index, value, hi);
  }
  v.engine.pageTableStored(offset);
  if (level > 1 && (oldLo & PTE_P) !== 0) v.flushAll = true;
  return 0;
}

/** Offset behind what an entry may name without a grant: the status frames are there with version 2 of the grant table only. */
function ownEnd(d: Domain): number {
  return grantVersion(d) === 2 ? d.machine.layout.foreignOffset : d.machine.layout.statusOffset;
}

/** The entry stays with its frame, and gets no right to write that it has not had. */
function losesRights({ u32 }: MachineMemory, index: number, lo: number, hi: number): boolean {
  const [oldLo, oldHi] = [u32[index], u32[index + 1]];
  if ((oldLo & PTE_P) === 0 || pteMfn(oldLo, oldHi) !== pteMfn(lo, hi)) return false;
  return (lo & ~oldLo & PTE_RW) === 0;
}

/**
 * Marks a frame as a page table of `level` and everything below it. Entries get the U bit. -EINVAL for an entry that names a
 * frame outside the domain, a large page, or a table that contains itself.
 */
export function markTable(v: Vcpu, frame: number, level: number): number {
  const types = v.domain.frameTypes;
  const type = types[frame];
  if ((type & FRAME_LEVEL_MASK) === level) return 0;
  if ((type & (FRAME_VALIDATING | FRAME_PINNED)) !== 0) return -EINVAL;
  types[frame] = level | FRAME_VALIDATING;
  const machine = v.machine;
  const u32 = machine.u32;
  const first = frame * 1024;
  const end = ownEnd(v.domain);
  let rc = 0;
  for (let slot = 0; slot < 512; slot++) {
    if (level === 4 && slot === HOLE_FIRST_SLOT) slot = HOLE_END_SLOT;
    const index = first + slot * 2;
    const lo = u32[index];
    if ((lo & PTE_P) === 0) continue;
    const target = machine.mfnToOffset(pteMfn(lo, u32[index + 1]));
    if (
      target < 0 ||
      target >= end ||
      (level > 1 && ((lo & PTE_PSE) !== 0 || target >= machine.layout.sharedInfoOffset))
    ) {
      rc = -EINVAL;
      break;
    }
    if (level > 1) {
      rc = markTable(v, target >>> 12, level - 1);
      if (rc !== 0) break;
    }
    const fixed = level === 1 ? (lo | PTE_US) & ~PTE_G : lo | PTE_US;
    if ((fixed | 0) !== (lo | 0)) {
      Atomics.store(machine.i32, index, fixed | 0);
      v.engine.pageTableStored(index * 4);
    }
  }
  types[frame] = rc === 0 ? level : 0;
  return rc;
}

/** Takes over the tables that the domain builder made: marked, the first one (the L4) pinned, all entries with the U bit. */
export function adoptPageTables(
  domain: Domain,
  tables: readonly { readonly frame: number; readonly level: number }[],
): void {
  const u32 = domain.machine.u32;
  tables.forEach(({ frame, level }, i) => {
    domain.frameTypes[frame] = i === 0 ? level | FRAME_PINNED : level;
    for (let index = frame * 1024; index < (frame + 1) * 1024; index += 2)
      if ((u32[index] & PTE_P) !== 0) u32[index] |= PTE_US;
  });
}

/** MMUEXT_NEW_BASEPTR: the kernel's root. Returns 0 or -EINVAL. */
export function newBasePointer(v: Vcpu, mfn: number): number {
  const frame = ramFrame(v, mfn);
  if (frame < 0) return -EINVAL;
  const rc = markTable(v, frame, 4);
  if (rc !== 0) return rc;
  v.engine.prepareRoot(frame * 4096);
  if (v.block.u32[VCPU.kernelRoot >> 2] === frame) v.engine.flushTlb();
  v.block.u32[VCPU.kernelRoot >> 2] = frame;
  v.block.u32[VCPU.ldtEntries >> 2] = 0;
  return 0;
}

/** MMUEXT_NEW_USER_BASEPTR: the root of user mode; MFN 0 = none. Returns 0 or -EINVAL. */
export function newUserBasePointer(v: Vcpu, mfn: number): number {
  if (mfn === 0) {
    v.block.u32[VCPU.userRoot >> 2] = NO_ROOT;
    return 0;
  }
  const frame = ramFrame(v, mfn);
  if (frame < 0) return -EINVAL;
  const rc = markTable(v, frame, 4);
  if (rc !== 0) return rc;
  v.engine.prepareRoot(frame * 4096);
  v.block.u32[VCPU.userRoot >> 2] = frame;
  return 0;
}

export function pinTable(v: Vcpu, mfn: number, level: number): number {
  const frame = ramFrame(v, mfn);
  if (frame < 0) return -EINVAL;
  const types = v.domain.frameTypes;
  if ((types[frame] & FRAME_PINNED) !== 0) return -EINVAL;
  const rc = markTable(v, frame, level);
  if (rc !== 0) return rc;
  types[frame] |= FRAME_PINNED;
  if (level === 4) v.engine.prepareRoot(frame * 4096);
  return 0;
}

export function unpinTable(v: Vcpu, mfn: number): number {
  const frame = ramFrame(v, mfn);
  if (frame < 0) return -EINVAL;
  const types = v.domain.frameTypes;
  if ((types[frame] & FRAME_PINNED) === 0) return -EINVAL;
  types[frame] &= ~FRAME_PINNED;
  return 0;
}

/**
 * All vCPUs in the mask (bit per id) forget their translations before this returns. A vCPU outside the guest flushes before it
 * enters it again, so only those inside are kicked and waited for.
 */
export function flushVcpus(v: Vcpu, mask: number): void {
  const vcpus = v.domain.vcpus;
  if ((mask & (1 << v.id)) !== 0) v.engine.flushTlb();
  let inside = 0;
  for (let id = 0; id < vcpus.length; id++) {
    if (id === v.id || (mask & (1 << id)) === 0) continue;
    const i32 = vcpus[id].i32;
    Atomics.or(i32, VCPU.flags >> 2, FLAG_FLUSH_TLB);
    if (Atomics.load(i32, VCPU.inGuest >> 2) !== 0) {
      v.kicker.kick(id);
      inside |= 1 << id;
    }
  }
  if (inside === 0) return;
  for (let id = 0; id < vcpus.length; id++) {
    if ((inside & (1 << id)) === 0) continue;
    const i32 = vcpus[id].i32;
    while (Atomics.load(i32, VCPU.inGuest >> 2) !== 0 && (Atomics.load(i32, VCPU.flags >> 2) & FLAG_FLUSH_TLB) !== 0) {
      Atomics.wait(i32, VCPU.inGuest >> 2, 1, 1);
      if (Atomics.load(i32, VCPU.inGuest >> 2) !== 0) v.kicker.kick(id);
    }
  }
}

/** Whether a table of level 1 names one of `count` frames. Tables of higher levels name tables only, which have a type. */
export function isMapped({ machine, frameTypes }: Domain, frame: number, count: number): boolean {
  const { u32, layout } = machine;
  const mfn = MFN_BASE + frame;
  for (let table = 0; table < layout.maxPages; table++) {
    if ((frameTypes[table] & FRAME_LEVEL_MASK) !== 1) continue;
    for (let index = table * 1024; index < (table + 1) * 1024; index += 2) {
      if ((u32[index] & PTE_P) === 0) continue;
      const named = pteMfn(u32[index], u32[index + 1]) - mfn;
      if (named >= 0 && named < count) return true;
    }
  }
  return false;
}

/** Mask of all vCPUs of the domain. */
export function allVcpus(domain: Domain): number {
  const count = domain.i32[DOMAIN.vcpuCount >> 2];
  return count >= 32 ? -1 : ~(-1 << count);
}
