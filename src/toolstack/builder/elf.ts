/**
 * ELF64 reader for guest kernels: program headers and the Xen ELF notes.
 *
 * Owns: the checks that turn an untrusted file into a list of segments and notes the domain builder can use without
 * looking back. After `parseXenElf()` returns, every segment lies inside the file, no two segments overlap in
 * guest-physical memory, no sum overflows, and the notes are complete. Every check names the field, what was expected
 * and what was found. Pure: no host imports, so it runs wherever the builder runs.
 *
 * Segments are placed by p_paddr, never by p_vaddr: Linux's percpu segment has p_vaddr 0.
 * Source: xen/common/libelf/libelf-loader.c, elf_parse_binary() and elf_load_binary() (behaviour).
 *
 * Differences from Xen's libelf, all on the strict side: a field that points outside the file is an error even when
 * nothing would have read through it; a legacy `__xen_guest` section without ELF notes is refused by name (kernels
 * before Linux 2.6.23); overlapping PT_LOADs are refused.
 */

import { KernelImageError } from './errors.ts';

/** One PT_LOAD program header. All numbers are bytes except `flags`. */
export interface ElfLoad {
  /** Where the segment's bytes start in the file. */
  readonly offset: number;
  /** p_vaddr; informative only, see the head of the file. */
  readonly vaddr: bigint;
  /** Where the segment goes in guest-physical memory, before PADDR_OFFSET is subtracted. */
  readonly paddr: number;
  readonly filesz: number;
  /** At least `filesz`; the rest is zero. */
  readonly memsz: number;
  /** PF_X = 1, PF_W = 2, PF_R = 4. */
  readonly flags: number;
}

/** The Xen ELF notes of a kernel, with libelf's defaults. Source: xen/include/public/elfnote.h. */
export interface XenElfNotes {
  /** XEN_ELFNOTE_ENTRY: virtual address of the first instruction. */
  readonly entry: bigint;
  /** XEN_ELFNOTE_VIRT_BASE: virtual address of PFN 0. */
  readonly virtBase: bigint;
  /** XEN_ELFNOTE_PADDR_OFFSET: subtracted from p_paddr. 0 if absent. */
  readonly paddrOffset: bigint;
  /** XEN_ELFNOTE_HYPERCALL_PAGE: virtual address of the page to fill with stubs. */
  readonly hypercallPage?: bigint;
  /** XEN_ELFNOTE_INIT_P2M: virtual address at which the initial p2m list is mapped. */
  readonly initP2m?: bigint;
  /** XEN_ELFNOTE_HV_START_LOW: lowest virtual address that Xen may own. */
  readonly hvStartLow?: bigint;
  /** XEN_ELFNOTE_L1_MFN_VALID: (pte & mask) == value means that the entry holds an MFN. First pair only. */
  readonly l1MfnValid?: { readonly mask: bigint; readonly value: bigint };
  /** XEN_ELFNOTE_MOD_START_PFN: start_info.mod_start is a PFN, and the ramdisk need not be mapped. */
  readonly modStartPfn: boolean;
  /** XEN_ELFNOTE_SUSPEND_CANCEL: the guest understands that SCHEDOP_shutdown(suspend) returns 1. */
  readonly suspendCancel: boolean;
  /** XEN_ELFNOTE_SUPPORTED_FEATURES: bitmap of XENFEAT_* that the kernel can do. */
  readonly supportedFeatures?: number;
  /** XEN_ELFNOTE_FEATURES: names separated by '|', '!' in front of a required one. '' if absent. */
  readonly features: string;
  readonly guestOs: string;
  readonly guestVersion: string;
  readonly xenVersion: string;
  readonly loader: string;
}

/** What the domain builder needs of a kernel. */
export interface XenElf {
  /** PT_LOADs with memsz > 0, in the file's order. */
  readonly loads: readonly ElfLoad[];
  readonly notes: XenElfNotes;
}

/** Offsets in Elf64_Ehdr. Source: System V ABI (gABI), chapter 4 "ELF Header". */
const EHDR = {
  SIZE: 64,
  ei_class: 4,
  ei_data: 5,
  ei_version: 6,
  e_type: 0x10,
  e_machine: 0x12,
  e_version: 0x14,
  e_phoff: 0x20,
  e_shoff: 0x28,
  e_ehsize: 0x34,
  e_phentsize: 0x36,
  e_phnum: 0x38,
  e_shentsize: 0x3a,
  e_shnum: 0x3c,
  e_shstrndx: 0x3e,
} as const;

/** Offsets in Elf64_Phdr. Source: gABI, chapter 5 "Program Header". */
const PHDR = {
  SIZE: 56,
  p_type: 0,
  p_flags: 4,
  p_offset: 8,
  p_vaddr: 0x10,
  p_paddr: 0x18,
  p_filesz: 0x20,
  p_memsz: 0x28,
} as const;

/** Offsets in Elf64_Shdr. Source: gABI, chapter 4 "Sections". */
const SHDR = { SIZE: 64, sh_name: 0, sh_type: 4, sh_offset: 0x18, sh_size: 0x20 } as const;

const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const EV_CURRENT = 1;
const ET_EXEC = 2;
const ET_DYN = 3;
const EM_X86_64 = 62;
const PN_XNUM = 0xffff;
const PT_LOAD = 1;
const PT_NOTE = 4;
const SHT_NOTE = 7;
const SHT_NOBITS = 8;

/** Note types. Source: xen/include/public/elfnote.h. */
const XEN_ELFNOTE = {
  ENTRY: 1,
  HYPERCALL_PAGE: 2,
  VIRT_BASE: 3,
  PADDR_OFFSET: 4,
  XEN_VERSION: 5,
  GUEST_OS: 6,
  GUEST_VERSION: 7,
  LOADER: 8,
  FEATURES: 10,
  HV_START_LOW: 12,
  L1_MFN_VALID: 13,
  SUSPEND_CANCEL: 14,
  INIT_P2M: 15,
  MOD_START_PFN: 16,
  SUPPORTED_FEATURES: 17,
} as const;

const MASK64 = 0xffff_ffff_ffff_ffffn;
/** Physical addresses of x86-64 have at most 52 bits. Source: AMD64 APM vol. 2, 5.3. It also keeps them exact as numbers. */
const PADDR_MAX = 2 ** 52;

const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** True if the bytes start as an ELF file does. */
export function isElf(bytes: Uint8Array): boolean {
  return bytes.length >= 4 && bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;
}

/**
 * Reads an ELF64 x86-64 kernel and checks that it can start as a Xen PV guest.
 *
 * @param bytes the whole file
 * @param name the file's name, for messages
 * @throws KernelImageError for anything but a complete, consistent PV kernel
 */
export function parseXenElf(bytes: Uint8Array, name: string): XenElf {
  return new Reader(bytes, name).parse();
}

/** A run of notes in the file. */
interface NoteArea {
  readonly offset: number;
  readonly size: number;
}

/** The notes as found, before defaults and rules. */
interface RawNotes {
  readonly ints: Map<number, bigint>;
  readonly strings: Map<number, string>;
  l1MfnValid?: { mask: bigint; value: bigint };
  count: number;
}

class Reader {
  readonly bytes: Uint8Array;
  readonly name: string;
  readonly view: DataView;

  constructor(bytes: Uint8Array, name: string) {
    this.bytes = bytes;
    this.name = name;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  fail(problem: string): never {
    throw new KernelImageError(this.name, problem);
  }

  u16(offset: number): number {
    return this.view.getUint16(offset, true);
  }

  u32(offset: number): number {
    return this.view.getUint32(offset, true);
  }

  u64(offset: number): bigint {
    return this.view.getBigUint64(offset, true);
  }

  expect(field: string, found: number, expected: number, meaning: string): void {
    if (found !== expected) this.fail(`ELF ${field}: expected ${expected} (${meaning}), found ${found}`);
  }

  /** Reads a u64 file range and checks that it lies inside the file. */
  fileRange(offset: bigint, size: bigint, what: string): NoteArea {
    if (offset + size > BigInt(this.bytes.length)) {
      this.fail(
        `ELF ${what}: ${hex(size)} bytes at ${hex(offset)} pass the file's end at ${hex(this.bytes.length)} (is the file truncated?)`,
      );
    }
    return { offset: Number(offset), size: Number(size) };
  }

  parse(): XenElf {
    this.checkHeader();
    const { loads, noteSegments } = this.readProgramHeaders();
    const sections = this.readSections();
    const raw: RawNotes = { ints: new Map(), strings: new Map(), count: 0 };
    for (const area of noteSegments) this.readNotes(area, raw);
    // Some images have their notes in a section that no segment covers; libelf looks there as well.
    if (raw.count === 0) for (const area of sections.notes) this.readNotes(area, raw);
    if (raw.count === 0) {
      this.fail(
        sections.legacyXenGuest
          ? 'kernel has only the legacy __xen_guest section (before Linux 2.6.23); a kernel with Xen ELF notes is needed'
          : 'not a Xen guest: the ELF file has no Xen ELF notes (a Linux kernel needs CONFIG_XEN_PV=y)',
      );
    }
    const notes = this.checkNotes(raw);
    this.checkAddresses(loads, notes);
    return { loads, notes };
  }

  checkHeader(): void {
    const { bytes } = this;
    if (!isElf(bytes)) this.fail('not an ELF file (the magic 7f 45 4c 46 is missing)');
    if (bytes.length < EHDR.SIZE) this.fail(`ELF header: expected ${EHDR.SIZE} bytes, the file has ${bytes.length}`);
    this.expect('EI_CLASS', bytes[EHDR.ei_class] ?? 0, ELFCLASS64, '64-bit; 32-bit PV guests are not supported');
    this.expect('EI_DATA', bytes[EHDR.ei_data] ?? 0, ELFDATA2LSB, 'little-endian');
    this.expect('EI_VERSION', bytes[EHDR.ei_version] ?? 0, EV_CURRENT, 'EV_CURRENT');
    const type = this.u16(EHDR.e_type);
    if (type !== ET_EXEC && type !== ET_DYN) this.fail(`ELF e_type: expected 2 (EXEC) or 3 (DYN), found ${type}`);
    this.expect('e_machine', this.u16(EHDR.e_machine), EM_X86_64, 'x86-64');
    this.expect('e_version', this.u32(EHDR.e_version), EV_CURRENT, 'EV_CURRENT');
    this.expect('e_ehsize', this.u16(EHDR.e_ehsize), EHDR.SIZE, 'Elf64_Ehdr');
  }

  readProgramHeaders(): { loads: ElfLoad[]; noteSegments: NoteArea[] } {
    const count = this.u16(EHDR.e_phnum);
    if (count === 0) this.fail('ELF e_phnum: expected at least 1 program header, found 0');
    if (count === PN_XNUM) this.fail('ELF e_phnum: expected fewer than 65535 program headers, found 65535');
    this.expect('e_phentsize', this.u16(EHDR.e_phentsize), PHDR.SIZE, 'Elf64_Phdr');
    const table = this.fileRange(this.u64(EHDR.e_phoff), BigInt(count * PHDR.SIZE), 'e_phoff/e_phnum');

    const loads: ElfLoad[] = [];
    const noteSegments: NoteArea[] = [];
    for (let index = 0; index < count; index++) {
      const at = table.offset + index * PHDR.SIZE;
      const type = this.u32(at + PHDR.p_type);
      if (type !== PT_LOAD && type !== PT_NOTE) continue;
      const what = `program header ${index} p_offset/p_filesz`;
      const { offset, size } = this.fileRange(this.u64(at + PHDR.p_offset), this.u64(at + PHDR.p_filesz), what);
      if (type === PT_NOTE) {
        noteSegments.push({ offset, size });
        continue;
      }
      const paddr = this.u64(at + PHDR.p_paddr);
      const memsz = this.u64(at + PHDR.p_memsz);
      if (memsz < BigInt(size)) {
        this.fail(`ELF program header ${index} p_memsz: expected at least p_filesz ${hex(size)}, found ${hex(memsz)}`);
      }
      if (paddr + memsz > BigInt(PADDR_MAX)) {
        this.fail(
          `ELF program header ${index} p_paddr: ${hex(memsz)} bytes at ${hex(paddr)} pass the 52-bit physical limit`,
        );
      }
      if (memsz === 0n) continue;
      loads.push({
        offset,
        vaddr: this.u64(at + PHDR.p_vaddr),
        paddr: Number(paddr),
        filesz: size,
        memsz: Number(memsz),
        flags: this.u32(at + PHDR.p_flags),
      });
    }
    if (loads.length === 0) this.fail('ELF program headers: expected at least one PT_LOAD, found none');
    const sorted = [...loads].sort((a, b) => a.paddr - b.paddr);
    for (let index = 1; index < sorted.length; index++) {
      const low = sorted[index - 1];
      const high = sorted[index];
      if (low && high && low.paddr + low.memsz > high.paddr) {
        this.fail(
          `ELF PT_LOADs overlap: ${hex(low.paddr)}..${hex(low.paddr + low.memsz)} and ${hex(high.paddr)}..${hex(high.paddr + high.memsz)}`,
        );
      }
    }
    return { loads, noteSegments };
  }

  /** Finds SHT_NOTE sections and the legacy marker. A file without section headers is valid. */
  readSections(): { notes: NoteArea[]; legacyXenGuest: boolean } {
    const notes: NoteArea[] = [];
    const count = this.u16(EHDR.e_shnum);
    if (count === 0) return { notes, legacyXenGuest: false };
    this.expect('e_shentsize', this.u16(EHDR.e_shentsize), SHDR.SIZE, 'Elf64_Shdr');
    const table = this.fileRange(this.u64(EHDR.e_shoff), BigInt(count * SHDR.SIZE), 'e_shoff/e_shnum');
    const namesIndex = this.u16(EHDR.e_shstrndx);
    if (namesIndex >= count) this.fail(`ELF e_shstrndx: expected below e_shnum ${count}, found ${namesIndex}`);

    const areas: (NoteArea | undefined)[] = [];
    for (let index = 0; index < count; index++) {
      const at = table.offset + index * SHDR.SIZE;
      const type = this.u32(at + SHDR.sh_type);
      // SHT_NULL and SHT_NOBITS have no bytes in the file, whatever their offset and size say.
      const empty = type === 0 || type === SHT_NOBITS;
      const what = `section ${index} sh_offset/sh_size`;
      const area = empty ? undefined : this.fileRange(this.u64(at + SHDR.sh_offset), this.u64(at + SHDR.sh_size), what);
      areas.push(area);
      if (area && type === SHT_NOTE) notes.push(area);
    }
    const names = areas[namesIndex];
    let legacyXenGuest = false;
    for (let index = 1; names && index < count; index++) {
      const nameAt = this.u32(table.offset + index * SHDR.SIZE + SHDR.sh_name);
      if (nameAt >= names.size)
        this.fail(`ELF section ${index} sh_name: expected below ${names.size}, found ${nameAt}`);
      if (this.text(names.offset + nameAt, names.size - nameAt) === '__xen_guest') legacyXenGuest = true;
    }
    return { notes, legacyXenGuest };
  }

  /** Text up to the first NUL or to `size` bytes: FEATURES is not terminated in Debian's kernels. */
  text(offset: number, size: number): string {
    let end = offset;
    while (end < offset + size && this.bytes[end] !== 0) end++;
    let result = '';
    // Latin-1 by hand: note strings are ASCII, and String.fromCharCode cannot throw on anything.
    for (let at = offset; at < end; at++) result += String.fromCharCode(this.bytes[at] ?? 0);
    return result;
  }

  readNotes(area: NoteArea, raw: RawNotes): void {
    const end = area.offset + area.size;
    let at = area.offset;
    // Elf_Nhdr: namesz, descsz, type as u32, then name and descriptor, each padded to 4 bytes.
    // Source: gABI chapter 5 "Note Section"; Linux and Xen pad to 4 in ELF64 as well.
    while (at + 12 <= end) {
      const nameSize = this.u32(at);
      const descSize = this.u32(at + 4);
      const type = this.u32(at + 8);
      const descAt = at + 12 + Math.ceil(nameSize / 4) * 4;
      if (descAt + descSize > end) {
        this.fail(
          `ELF note at ${hex(at)}: name of ${nameSize} and descriptor of ${descSize} bytes pass the notes' end at ${hex(end)}`,
        );
      }
      if (nameSize === 4 && this.text(at + 12, 4) === 'Xen') this.readNote(type, descAt, descSize, raw);
      at = descAt + Math.ceil(descSize / 4) * 4;
    }
  }

  readNote(type: number, at: number, size: number, raw: RawNotes): void {
    raw.count++;
    switch (type) {
      case XEN_ELFNOTE.XEN_VERSION:
      case XEN_ELFNOTE.GUEST_OS:
      case XEN_ELFNOTE.GUEST_VERSION:
      case XEN_ELFNOTE.LOADER:
      case XEN_ELFNOTE.FEATURES:
        raw.strings.set(type, this.text(at, size));
        return;
      case XEN_ELFNOTE.L1_MFN_VALID:
        if (size < 16) this.fail(`Xen ELF note ${type} (L1_MFN_VALID): expected 16 bytes, found ${size}`);
        raw.l1MfnValid = { mask: this.u64(at), value: this.u64(at + 8) };
        return;
      case XEN_ELFNOTE.ENTRY:
      case XEN_ELFNOTE.HYPERCALL_PAGE:
      case XEN_ELFNOTE.VIRT_BASE:
      case XEN_ELFNOTE.PADDR_OFFSET:
      case XEN_ELFNOTE.HV_START_LOW:
      case XEN_ELFNOTE.SUSPEND_CANCEL:
      case XEN_ELFNOTE.INIT_P2M:
      case XEN_ELFNOTE.MOD_START_PFN:
      case XEN_ELFNOTE.SUPPORTED_FEATURES:
        if (size !== 4 && size !== 8) this.fail(`Xen ELF note ${type}: expected 4 or 8 bytes, found ${size}`);
        raw.ints.set(type, size === 8 ? this.u64(at) : BigInt(this.u32(at)));
        return;
      default:
        // PAE_MODE, PHYS32_ENTRY and others do not concern a 64-bit PV guest.
        return;
    }
  }

  checkNotes(raw: RawNotes): XenElfNotes {
    const { ints, strings } = raw;
    const entry = ints.get(XEN_ELFNOTE.ENTRY);
    const virtBase = ints.get(XEN_ELFNOTE.VIRT_BASE);
    if (entry === undefined) this.fail('not a Xen PV guest: Xen ELF note ENTRY is missing');
    if (virtBase === undefined) this.fail('not a Xen PV guest: Xen ELF note VIRT_BASE is missing');
    const xenVersion = strings.get(XEN_ELFNOTE.XEN_VERSION) ?? '';
    if (!xenVersion.startsWith('xen-3.0')) {
      this.fail(`Xen ELF note XEN_VERSION: expected "xen-3.0", found ${JSON.stringify(xenVersion)}`);
    }
    const guestOs = strings.get(XEN_ELFNOTE.GUEST_OS) ?? '';
    const loader = strings.get(XEN_ELFNOTE.LOADER) ?? '';
    // Source: xen/common/libelf/libelf-dominfo.c, elf_xen_note_check() (behaviour).
    if (!loader.startsWith('generic') && !guestOs.startsWith('linux')) {
      this.fail(
        `Xen ELF notes: expected LOADER "generic" or GUEST_OS "linux", found ${JSON.stringify(loader)} and ${JSON.stringify(guestOs)}`,
      );
    }
    const hypercallPage = ints.get(XEN_ELFNOTE.HYPERCALL_PAGE);
    const initP2m = ints.get(XEN_ELFNOTE.INIT_P2M);
    const hvStartLow = ints.get(XEN_ELFNOTE.HV_START_LOW);
    const supported = ints.get(XEN_ELFNOTE.SUPPORTED_FEATURES);
    return {
      entry,
      virtBase,
      paddrOffset: ints.get(XEN_ELFNOTE.PADDR_OFFSET) ?? 0n,
      ...(hypercallPage === undefined ? {} : { hypercallPage }),
      ...(initP2m === undefined ? {} : { initP2m }),
      ...(hvStartLow === undefined ? {} : { hvStartLow }),
      ...(raw.l1MfnValid === undefined ? {} : { l1MfnValid: raw.l1MfnValid }),
      ...(supported === undefined ? {} : { supportedFeatures: Number(supported & 0xffff_ffffn) }),
      modStartPfn: (ints.get(XEN_ELFNOTE.MOD_START_PFN) ?? 0n) !== 0n,
      suspendCancel: (ints.get(XEN_ELFNOTE.SUSPEND_CANCEL) ?? 0n) !== 0n,
      features: strings.get(XEN_ELFNOTE.FEATURES) ?? '',
      guestOs,
      guestVersion: strings.get(XEN_ELFNOTE.GUEST_VERSION) ?? '',
      xenVersion,
      loader,
    };
  }

  /** Source: xen/common/libelf/libelf-dominfo.c, elf_xen_addr_calc_check() (behaviour). */
  checkAddresses(loads: readonly ElfLoad[], notes: XenElfNotes): void {
    let start = Number.POSITIVE_INFINITY;
    let end = 0;
    for (const load of loads) {
      start = Math.min(start, load.paddr);
      end = Math.max(end, load.paddr + load.memsz);
    }
    if (notes.paddrOffset > BigInt(start)) {
      this.fail(
        `Xen ELF note PADDR_OFFSET: expected at most the lowest p_paddr ${hex(start)}, found ${hex(notes.paddrOffset)}`,
      );
    }
    const shift = notes.virtBase - notes.paddrOffset;
    const virtStart = BigInt(start) + shift;
    const virtEnd = BigInt(end) + shift;
    if (virtEnd > MASK64) this.fail(`Xen ELF note VIRT_BASE: the image would end at ${hex(virtEnd)}, past 64 bits`);
    if (notes.entry < virtStart || notes.entry >= virtEnd) {
      this.fail(
        `Xen ELF note ENTRY: expected in the image ${hex(virtStart)}..${hex(virtEnd)}, found ${hex(notes.entry)}`,
      );
    }
    const page = notes.hypercallPage;
    if (page !== undefined && (page < virtStart || page + 4096n > virtEnd)) {
      this.fail(
        `Xen ELF note HYPERCALL_PAGE: expected a page in the image ${hex(virtStart)}..${hex(virtEnd)}, found ${hex(page)}`,
      );
    }
  }
}
