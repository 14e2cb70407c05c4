/**
 * What a core dump of Xen's does not have, for gdb: program headers. The registers of each vCPU are notes as in the core of a process of
 * Linux, a thread for each; and what vCPU 0's page tables map are segments at the guest's virtual addresses, whose bytes are the pages of
 * the dump. So it is the kernel and the process that vCPU 0 was in.
 *
 * The tables are the guest's, and may lead anywhere, round and round too: how many are read is limited, and how many segments there are.
 *
 * Source: System V ABI, "Program Header"; linux/include/uapi/linux/elfcore.h, struct elf_prstatus; arch/x86/include/asm/user_64.h.
 */

import type { Domain } from '../hypervisor/domain.ts';
import { MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';

export const PROGRAM_HEADER_BYTES = 56;
const PT_LOAD = 1;
const PT_NOTE = 4;
const PF_X = 1;
const PF_W = 2;
const PF_R = 4;
const NT_PRSTATUS = 1;

/** e_phnum has 16 bits, of which 0xffff means something else; one header is the notes'. */
const SEGMENTS_MAX = 0xfffd;

/** At how many addresses a page is shown: Linux maps one page a quarter of a million times, where its list of pages has nothing. */
const MAPPINGS_MAX = 4;

/** struct elf_prstatus: pr_pid, pr_reg. */
const PRSTATUS = { SIZE: 336, pid: 32, registers: 112 } as const;
/** VCPU.gpr by their place in struct user_regs_struct: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi. */
const GPRS: readonly number[] = [15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7];
const RSP = 4;

/** Page table entries. Source: Intel SDM vol. 3, 5.5.4. */
const PRESENT = 1;
const PAGE_SIZE_BIT = 0x80;
/** Slots of the PML4 that are Xen's. */
const XEN_FIRST = 256;
const XEN_LAST = 271;

/** Pages that follow each other as virtual and as pseudo-physical addresses. */
export interface Segment {
  /** Virtual address / 4096, 36 bits. */
  readonly page: number;
  readonly pfn: number;
  count: number;
}

/** What vCPU 0's page tables map, by address. `owned`: the PFNs that the dump has. */
export function segments({ machine, vcpus }: Domain, owned: readonly number[]): Segment[] {
  const { u32, layout } = machine;
  /** 0 for what the dump does not have; else 1 + at how many addresses the page may be shown still. */
  const left = new Uint8Array(layout.maxPages);
  for (const pfn of owned) left[pfn] = 1 + MAPPINGS_MAX;
  const found: Segment[] = [];
  // Enough to map all of memory eight times, by pages of 4 KiB.
  let tables = 4096 + owned.length / 64;

  const walk = (table: number, level: number, firstPage: number, first = 0, last = 511): void => {
    if (tables-- <= 0) return;
    for (let index = first; index <= last; index++) {
      const at = table * 1024 + index * 2;
      const low = u32[at];
      if ((low & PRESENT) === 0 || (level > 0 && (low & PAGE_SIZE_BIT) !== 0)) continue;
      const pfn = (u32[at + 1] & 0xfffff) * 2 ** 20 + (low >>> 12) - MFN_BASE;
      if (pfn < 0 || pfn >= layout.maxPages || left[pfn] === 0) continue;
      const page = firstPage + index * 512 ** level;
      if (level > 0) walk(pfn, level - 1, page);
      else if (left[pfn] > 1) add(page, pfn);
    }
  };
  const add = (page: number, pfn: number): void => {
    left[pfn]--;
    const before = found.at(-1);
    if (before !== undefined && page === before.page + before.count && pfn === before.pfn + before.count)
      before.count++;
    else if (found.length < SEGMENTS_MAX) found.push({ page, pfn, count: 1 });
  };
  const root = vcpus[0].u32[VCPU.kernelRoot >> 2];
  if (root >= layout.maxPages || left[root] === 0) return [];
  // What matters most first: the kernel's text, its memory, and the process.
  walk(root, 3, 0, 511, 511);
  walk(root, 3, 0, XEN_LAST + 1, 510);
  walk(root, 3, 0, 0, XEN_FIRST - 1);
  return found.sort((a, b) => a.page - b.page);
}

/** A note for each vCPU, in their order: pr_pid is its number + 1, since gdb takes 0 for none. */
export function registerNotes({ vcpus }: Domain): Uint8Array {
  const noteBytes = 20 + PRSTATUS.SIZE;
  const bytes = new Uint8Array(vcpus.length * noteBytes);
  const view = new DataView(bytes.buffer);
  for (const [id, { u8, u32 }] of vcpus.entries()) {
    const at = id * noteBytes;
    view.setUint32(at, 5, true);
    view.setUint32(at + 4, PRSTATUS.SIZE, true);
    view.setUint32(at + 8, NT_PRSTATUS, true);
    bytes.set(new TextEncoder().encode('CORE'), at + 12);
    view.setUint32(at + 20 + PRSTATUS.pid, id + 1, true);
    let to = at + 20 + PRSTATUS.registers;
    const copy = (from: number): void => {
      bytes.set(u8.subarray(from, from + 8), to);
      to += 8;
    };
    const put = (value: number): void => {
      view.setBigInt64(to, BigInt(value), true);
      to += 8;
    };
    const selector = (name: 'cs' | 'ss' | 'ds' | 'es' | 'fs' | 'gs'): void => put(u32[VCPU[name] >> 2]);
    for (const gpr of GPRS) copy(VCPU.gpr + gpr * 8);
    // orig_rax: it is in no system call.
    put(-1);
    copy(VCPU.rip);
    selector('cs');
    copy(VCPU.rflags);
    copy(VCPU.gpr + RSP * 8);
    selector('ss');
    copy(VCPU.fsBase);
    copy(VCPU.gsBase);
    for (const name of ['ds', 'es', 'fs', 'gs'] as const) selector(name);
  }
  return bytes;
}

/** The table. Offsets in the file: of the notes, and of the page of the dump that has this PFN. */
export function programHeaders(
  notes: { readonly offset: number; readonly bytes: number },
  all: readonly Segment[],
  pageOffset: (pfn: number) => number,
): Uint8Array {
  const bytes = new Uint8Array((1 + all.length) * PROGRAM_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  const put = (at: number, ...words: readonly (number | bigint)[]): void => {
    for (const [i, word] of words.entries()) view.setBigUint64(at + i * 8, BigInt(word), true);
  };
  view.setUint32(0, PT_NOTE, true);
  view.setUint32(4, PF_R, true);
  put(8, notes.offset, 0, 0, notes.bytes, 0, 4);
  for (const [i, { page, pfn, count }] of all.entries()) {
    const at = (i + 1) * PROGRAM_HEADER_BYTES;
    view.setUint32(at, PT_LOAD, true);
    view.setUint32(at + 4, PF_R | PF_W | PF_X, true);
    const size = count * PAGE_SIZE;
    put(at + 8, pageOffset(pfn), virtualAddress(page), pfn * PAGE_SIZE, size, size, PAGE_SIZE);
  }
  return bytes;
}

/** Canonical: bit 47 goes on upwards. */
function virtualAddress(page: number): bigint {
  return BigInt.asUintN(64, BigInt.asIntN(48, BigInt(page) << 12n));
}
