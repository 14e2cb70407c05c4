/**
 * A domain's memory and registers as a core dump of Xen's: an ELF file of sections, which crash, gdb and libkdumpfile know.
 *
 *   .note.Xen          notes: none, header, xen_version, format_version
 *   .xen_prstatus      vcpu_guest_context for each vCPU
 *   .xen_shared_info   the page
 *   .xen_p2m           { u64 pfn, u64 gmfn } for each page of .xen_pages
 *   .xen_pages         pages that the domain owns
 *
 * Xen's have no program headers, without which gdb takes no core. Ours have some (core-dump-segments.ts), which lie between .xen_p2m and
 * .xen_pages: if crash finds them in the first 304 bytes, it takes the file for the dump of a kernel that has no Xen below it. So it says
 * "PHdr to far into file!" twice, and reads Xen's sections.
 *
 * Source: xen/docs/misc/dump-core-format.txt; xen/include/public/elfnote.h.
 */

import { CPU_USER_REGS, VCPU_GUEST_CONTEXT, VGCF_in_kernel, VGCF_online } from '../abi/vcpu.ts';
import {
  XEN_CAPABILITIES_INFO_LEN,
  XEN_CHANGESET_INFO_LEN,
  XEN_COMPILE_INFO,
  XEN_EXTRAVERSION_LEN,
} from '../abi/version.ts';
import type { Domain } from '../hypervisor/domain.ts';
import {
  COMPILE_BY,
  COMPILE_DATE,
  COMPILE_DOMAIN,
  COMPILER,
  XEN_CAPABILITIES,
  XEN_EXTRAVERSION,
  XEN_MAJOR,
  XEN_MINOR,
} from '../hypervisor/hypercalls/version.ts';
import { MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { NO_ROOT, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { PROGRAM_HEADER_BYTES, programHeaders, registerNotes, segments } from './core-dump-segments.ts';

// ELF-64. Source: System V ABI, "Object Files"; its AMD64 supplement.
const ELF_HEADER_BYTES = 64;
const SECTION_HEADER_BYTES = 64;
const ET_CORE = 4;
const EM_X86_64 = 62;
const SHT_PROGBITS = 1;
const SHT_STRTAB = 3;
const SHT_NOTE = 7;

const XEN_ELFNOTE_DUMPCORE_NONE = 0x2000000;
const XEN_ELFNOTE_DUMPCORE_HEADER = 0x2000001;
const XEN_ELFNOTE_DUMPCORE_XEN_VERSION = 0x2000002;
const XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION = 0x2000003;
const XC_CORE_MAGIC = 0xf00febedn;
const FORMAT_VERSION = 1n;

const INVALID_M2P_ENTRY = 0xffffffff;
/** Pages that are handed on at a time. */
const PAGES_AT_ONCE = 1024;

interface Section {
  readonly name: string;
  readonly type: number;
  readonly bytes: number;
  /** Size of an element of an array. */
  readonly element: number;
  /** Null: the pages, which are not held here. */
  readonly content: Uint8Array | null;
}

/** The file in pieces, one after the other. The domain must not run meanwhile; its vCPUs are parked, or have ended. */
export function* coreDump(domain: Domain): Generator<Uint8Array> {
  const { u8, layout } = domain.machine;
  const pfns = ownedFrames(domain);
  const sharedInfo = u8.subarray(layout.sharedInfoOffset, layout.sharedInfoOffset + PAGE_SIZE);
  const p2m = new BigUint64Array(pfns.length * 2);
  for (const [i, pfn] of pfns.entries()) p2m.set([BigInt(pfn), BigInt(pfn + MFN_BASE)], i * 2);
  const sections: Section[] = [
    data('.note.Xen', notes(domain.vcpus.length, pfns.length), 0, SHT_NOTE),
    data('.xen_prstatus', prstatus(domain), VCPU_GUEST_CONTEXT.SIZE),
    data('.xen_shared_info', Uint8Array.from(sharedInfo), PAGE_SIZE),
    data('.xen_p2m', new Uint8Array(p2m.buffer), 16),
    { name: '.xen_pages', type: SHT_PROGBITS, bytes: pfns.length * PAGE_SIZE, element: PAGE_SIZE, content: null },
  ];
  const names = ['', '.shstrtab', ...sections.map(({ name }) => name)];
  const table = new TextEncoder().encode(names.map((name) => `${name}\0`).join(''));
  const all = [data('.shstrtab', table, 0, SHT_STRTAB), ...sections];

  const head = new Uint8Array(ELF_HEADER_BYTES + (all.length + 1) * SECTION_HEADER_BYTES);
  const view = new DataView(head.buffer);
  head.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, ET_CORE, true);
  view.setUint16(18, EM_X86_64, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(40, BigInt(ELF_HEADER_BYTES), true);
  view.setUint16(52, ELF_HEADER_BYTES, true);
  view.setUint16(58, SECTION_HEADER_BYTES, true);
  view.setUint16(60, all.length + 1, true);
  view.setUint16(62, 1, true);
  let offset = head.length;
  const pieces: Uint8Array[] = [head];
  const append = (content: Uint8Array | null, alignment: number): number => {
    const gap = -offset & (alignment - 1);
    pieces.push(new Uint8Array(gap));
    if (content !== null) pieces.push(content);
    offset += gap + (content?.length ?? 0);
    return offset - (content?.length ?? 0);
  };
  all.forEach(({ name, type, bytes, element, content }, i) => {
    const at = ELF_HEADER_BYTES + (i + 1) * SECTION_HEADER_BYTES;
    const isPages = content === null;
    if (isPages) appendProgramHeaders();
    const alignment = isPages ? PAGE_SIZE : 8;
    view.setUint32(
      at,
      names.slice(0, names.indexOf(name)).reduce((sum, before) => sum + before.length + 1, 0),
      true,
    );
    view.setUint32(at + 4, type, true);
    view.setBigUint64(at + 24, BigInt(append(content, alignment)), true);
    view.setBigUint64(at + 32, BigInt(bytes), true);
    view.setBigUint64(at + 48, BigInt(alignment), true);
    view.setBigUint64(at + 56, BigInt(element), true);
  });

  function appendProgramHeaders(): void {
    const registers = registerNotes(domain);
    const found = segments(domain, pfns);
    const notesAt = append(registers, 8);
    const headersEnd = offset + (1 + found.length) * PROGRAM_HEADER_BYTES;
    const pagesAt = Math.ceil(headersEnd / PAGE_SIZE) * PAGE_SIZE;
    const indexOf = new Uint32Array(layout.maxPages);
    for (const [i, pfn] of pfns.entries()) indexOf[pfn] = i;
    const headers = programHeaders(
      { offset: notesAt, bytes: registers.length },
      found,
      (pfn) => pagesAt + indexOf[pfn] * PAGE_SIZE,
    );
    view.setBigUint64(32, BigInt(append(headers, 8)), true);
    view.setUint16(54, PROGRAM_HEADER_BYTES, true);
    view.setUint16(56, 1 + found.length, true);
  }

  yield* pieces;
  for (let first = 0; first < pfns.length; first += PAGES_AT_ONCE) {
    const some = pfns.slice(first, first + PAGES_AT_ONCE);
    const bytes = new Uint8Array(some.length * PAGE_SIZE);
    for (const [i, pfn] of some.entries())
      bytes.set(u8.subarray(pfn * PAGE_SIZE, (pfn + 1) * PAGE_SIZE), i * PAGE_SIZE);
    yield bytes;
  }
}

function data(name: string, content: Uint8Array, element: number, type = SHT_PROGBITS): Section {
  return { name, type, bytes: content.length, element, content };
}

/** RAM that the domain has not given back. */
function ownedFrames({ machine: { layout, u32 } }: Domain): number[] {
  const owned: number[] = [];
  for (let pfn = 0; pfn < layout.maxPages; pfn++) {
    const entry = (layout.m2pOffset >>> 2) + pfn * 2;
    if (u32[entry] !== INVALID_M2P_ENTRY || u32[entry + 1] !== INVALID_M2P_ENTRY) owned.push(pfn);
  }
  return owned;
}

function note(type: number, descriptor: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(16 + descriptor.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 4, true);
  view.setUint32(4, descriptor.length, true);
  view.setUint32(8, type, true);
  bytes.set(new TextEncoder().encode('Xen\0'), 12);
  bytes.set(descriptor, 16);
  return bytes;
}

function notes(vcpus: number, pages: number): Uint8Array {
  const words = (...values: bigint[]): Uint8Array => new Uint8Array(BigUint64Array.from(values).buffer);
  return concat(
    note(XEN_ELFNOTE_DUMPCORE_NONE, new Uint8Array(0)),
    note(XEN_ELFNOTE_DUMPCORE_HEADER, words(XC_CORE_MAGIC, BigInt(vcpus), BigInt(pages), BigInt(PAGE_SIZE))),
    note(
      XEN_ELFNOTE_DUMPCORE_XEN_VERSION,
      concat(
        words(BigInt(XEN_MAJOR), BigInt(XEN_MINOR)),
        text(XEN_EXTRAVERSION, XEN_EXTRAVERSION_LEN),
        ...[text(COMPILER, 64), text(COMPILE_BY, 16), text(COMPILE_DOMAIN, 32)],
        text(COMPILE_DATE, XEN_COMPILE_INFO.SIZE - 112),
        text(XEN_CAPABILITIES, XEN_CAPABILITIES_INFO_LEN),
        text('', XEN_CHANGESET_INFO_LEN),
        // Where Xen begins: that is the guest's affair no more.
        words(0n, BigInt(PAGE_SIZE)),
      ),
    ),
    note(XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION, words(FORMAT_VERSION)),
  );
}

function text(value: string, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  bytes.set(new TextEncoder().encode(value).subarray(0, size - 1));
  return bytes;
}

function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** cpu_user_regs offsets in the order of VCPU.gpr. */
const GPR_OFFSETS = (
  [
    'rax',
    'rcx',
    'rdx',
    'rbx',
    'rsp',
    'rbp',
    'rsi',
    'rdi',
    'r8',
    'r9',
    'r10',
    'r11',
    'r12',
    'r13',
    'r14',
    'r15',
  ] as const
).map((name) => CPU_USER_REGS[name]);

/** What XEN_DOMCTL_getvcpucontext says. Source: xen/arch/x86/domctl.c, arch_get_info_guest (behaviour). */
function prstatus(domain: Domain): Uint8Array {
  const C = VCPU_GUEST_CONTEXT;
  const bytes = new Uint8Array(domain.vcpus.length * C.SIZE);
  const view = new DataView(bytes.buffer);
  domain.vcpus.forEach(({ u8, u32 }, id) => {
    const base = id * C.SIZE;
    const word = (name: keyof typeof VCPU): number => u32[VCPU[name] >> 2];
    const copy = (to: number, name: keyof typeof VCPU, count = 8): void =>
      bytes.set(u8.subarray(VCPU[name], VCPU[name] + count), base + to);
    const put = (to: number, value: number): void => view.setBigUint64(base + to, BigInt(value), true);
    const inKernel = word('userMode') === 0;
    const isUp = word('state') === VCPU_STATE_UP;
    view.setUint32(base + C.flags, (inKernel ? VGCF_in_kernel : 0) | (isUp ? VGCF_online : 0), true);
    for (const [i, to] of GPR_OFFSETS.entries())
      bytes.set(u8.subarray(VCPU.gpr + i * 8, VCPU.gpr + i * 8 + 8), base + C.user_regs + to);
    copy(C.user_regs + CPU_USER_REGS.rip, 'rip');
    copy(C.user_regs + CPU_USER_REGS.rflags, 'rflags');
    for (const name of ['cs', 'ss', 'ds', 'es', 'fs', 'gs'] as const)
      view.setUint16(base + C.user_regs + CPU_USER_REGS[name], word(name), true);
    for (let vector = 0; vector < 256; vector++) {
      const from = (VCPU.traps >> 2) + vector * 4;
      const to = base + C.trap_ctxt + vector * 16;
      bytes[to] = vector;
      bytes[to + 1] = u32[from + 2];
      view.setUint16(to + 2, u32[from + 3], true);
      view.setUint32(to + 8, u32[from], true);
      view.setUint32(to + 12, u32[from + 1], true);
    }
    copy(C.ldt_base, 'ldtBase');
    put(C.ldt_ents, word('ldtEntries'));
    const gdtEntries = word('gdtEntries');
    for (let i = 0; i * 512 < gdtEntries && i < 16; i++)
      put(C.gdt_frames + i * 8, u32[(VCPU.gdtFrames >> 2) + i] + MFN_BASE);
    put(C.gdt_ents, gdtEntries);
    put(C.kernel_ss, word('kernelSs'));
    copy(C.kernel_sp, 'kernelSp');
    put(C.ctrlreg + 3 * 8, (word('kernelRoot') + MFN_BASE) * PAGE_SIZE);
    if (word('userRoot') !== NO_ROOT) put(C.ctrlreg + 8, (word('userRoot') + MFN_BASE) * PAGE_SIZE);
    put(C.ctrlreg + 4 * 8, word('cr4'));
    copy(C.debugreg, 'dr', 64);
    copy(C.event_callback_eip, 'eventCallback');
    copy(C.failsafe_callback_eip, 'failsafeCallback');
    copy(C.syscall_callback_eip, 'syscallCallback');
    copy(C.fs_base, 'fsBase');
    copy(C.gs_base_kernel, inKernel ? 'gsBase' : 'gsBaseInactive');
    copy(C.gs_base_user, inKernel ? 'gsBaseInactive' : 'gsBase');
  });
  return bytes;
}
