/**
 * The domain builder: turns a kernel, a ramdisk and a command line into memory and a first vCPU that can start.
 *
 * `planLayout()` (layout.ts) decides and checks everything; what follows here only writes, and cannot fail. The machine
 * memory must be as createMachineMemory() made it (all zero but for the M2P), the vCPU block as createVcpuBlock() made it.
 *
 * Left to the caller: event channels (the two ports are only named here), time and wallclock in shared_info, marking and
 * pinning the page-table frames, FPU state (FCW 0x37f, MXCSR 0x1f80), and that the vCPU is initialised and up.
 *
 * Source: xen/include/public/xen.h, "Start-of-day memory layout", struct start_info;
 * tools/libs/guest/xg_dom_x86.c, setup_pgtables_pv(), start_info_x86_64(), shared_info_x86_64(), vcpu_x86_64() (behaviour).
 *
 * Deviation: start_info.mod_len is the ramdisk's size in bytes, as xen.h says; libxc rounds it up to pages, which hides
 * what Linux looks for at a ramdisk's end (bootconfig).
 */

import { fillHypercallPage } from '../../abi/arch-x86/hypercall-page.ts';
import { SHARED_INFO, VCPU_INFO, XEN_LEGACY_MAX_VCPUS } from '../../abi/arch-x86/shared-info.ts';
import {
  MAX_GUEST_CMDLINE,
  SIF_MOD_START_PFN,
  SIF_VIRT_P2M_4TOOLS,
  START_INFO,
  START_INFO_MAGIC,
} from '../../abi/start-info.ts';
import { FLAT_KERNEL_CS64, FLAT_KERNEL_SS64 } from '../../abi/xen.ts';
import type { MachineMemory, Mfn, Pfn } from '../../machine/memory.ts';
import { MFN_BASE, offsetToMfn, PAGE_SHIFT, PAGE_SIZE } from '../../machine/memory.ts';
import { PTE_A, PTE_D, PTE_P, PTE_RW, PTE_US } from '../../machine/page-table.ts';
import { NO_ROOT, RSI, RSP, VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import { BuildError } from './build-error.ts';
import {
  type DomainLayout,
  entryShift,
  type KernelImage,
  type PageTable,
  type PageTableLevel,
  planLayout,
  tableBase,
} from './layout.ts';

export interface BuildOptions {
  readonly ramdisk: Uint8Array | null;
  /** For messages. */
  readonly ramdiskName?: string;
  readonly cmdline: string;
  /** The guest's ports of the xenstore and the console ring. */
  readonly storePort: number;
  readonly consolePort: number;
}

/** A frame that holds a page table: for the caller to mark and, the one of level 4, to pin. */
export interface PageTableFrame {
  /** Frame index in memory 0 (offset >> 12). */
  readonly frame: number;
  readonly level: PageTableLevel;
}

/** A domain that was built: what the caller and the backends need of it. */
export interface BuiltDomain {
  readonly startInfoPfn: Pfn;
  readonly storePfn: Pfn;
  readonly consolePfn: Pfn;
  readonly storeMfn: Mfn;
  readonly consoleMfn: Mfn;
  /** Byte offset in memory 0 of the hypercall page, when the kernel names one. */
  readonly hypercallPageOffset?: number;
  readonly pageTableFrames: readonly PageTableFrame[];
  readonly layout: DomainLayout;
}

/** Flags of entries. Source: xg_dom_x86.c, x86_64_params.lvl_prot. */
const TABLE_FLAGS = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D;
/** Everything is executable: Linux 6.12 patches its own text before it has page tables of its own. */
const PAGE_FLAGS = PTE_P | PTE_RW | PTE_A;

/** XENCONS ring: u8, 1 until a backend has attached. Source: xen/include/public/io/console.h, struct xencons_interface. */
const XENCONS_CONNECTION = 0xc10;
const XENCONSOLE_DISCONNECTED = 1;

/** Grant references that the toolstack fills. Source: xen/include/public/grant_table.h, GNTTAB_RESERVED_*. */
const GNTTAB_RESERVED_CONSOLE = 0;
const GNTTAB_RESERVED_XENSTORE = 1;
/** struct grant_entry_v1: u16 flags, u16 domid, u32 frame. Source: grant_table.h. */
const GRANT_ENTRY_SIZE = 8;
const GTF_PERMIT_ACCESS = 1;
/** The backends of both rings live in Dom0. */
const DOM0 = 0;

/** IF as the CPU has it, and the bit that always reads 1. The guest's own mask is evtchn_upcall_mask. */
const RFLAGS_START = 0x202n;
/** What the guest reads from CR4 before it has written it: PAE, MCE, OSFXSR, OSXMMEXCPT. Source: Intel SDM vol. 3, 2.5. */
const CR4_START = 0x660;
/** Values after reset. Source: Intel SDM vol. 3, "Processor State After Reset". */
const DR6_START = 0xffff0ff0n;
const DR7_START = 0x400n;
/** x87, which cannot be off. Source: Intel SDM vol. 1, 13.3. */
const XCR0_START = 1;

/**
 * Builds a domain in fresh machine memory.
 *
 * @throws BuildError, before anything is written, when kernel, ramdisk, command line and memory do not fit each other
 */
export function buildDomain(
  machine: MachineMemory,
  vcpu0: VcpuBlock,
  image: KernelImage,
  opts: BuildOptions,
): BuiltDomain {
  const { ramdisk } = opts;
  const cmdline = encodeCmdline(opts.cmdline);
  const ramdiskSize = ramdisk && { sizeBytes: ramdisk.length, name: opts.ramdiskName ?? '(unnamed)' };
  const layout = planLayout(image, machine.layout.ramPages, ramdiskSize);

  loadKernel(machine, image);
  if (ramdisk) machine.u8.set(ramdisk, layout.ramdiskPfn * PAGE_SIZE);
  fillP2m(machine, layout);
  fillPageTables(machine, image, layout);
  fillStartInfo(machine, image, layout, opts, cmdline);
  machine.u8[layout.consolePfn * PAGE_SIZE + XENCONS_CONNECTION] = XENCONSOLE_DISCONNECTED;
  fillSharedInfo(machine);
  grantToDom0(machine, GNTTAB_RESERVED_CONSOLE, layout.consolePfn);
  grantToDom0(machine, GNTTAB_RESERVED_XENSTORE, layout.storePfn);
  const { virtBase, hypercallPage } = image.elf.notes;
  const hypercallPageOffset = hypercallPage === undefined ? undefined : Number(hypercallPage - virtBase);
  if (hypercallPageOffset !== undefined) {
    fillHypercallPage(machine.u8.subarray(hypercallPageOffset, hypercallPageOffset + PAGE_SIZE));
  }
  setInitialRegisters(machine, vcpu0, image, layout);

  return {
    startInfoPfn: layout.startInfoPfn as Pfn,
    storePfn: layout.storePfn as Pfn,
    consolePfn: layout.consolePfn as Pfn,
    storeMfn: mfnOf(layout.storePfn),
    consoleMfn: mfnOf(layout.consolePfn),
    ...(hypercallPageOffset === undefined ? {} : { hypercallPageOffset }),
    pageTableFrames: allTables(layout).map(({ pfn, level }) => ({ frame: pfn, level })),
    layout,
  };
}

const mfnOf = (pfn: number): Mfn => offsetToMfn(pfn * PAGE_SIZE);
const pfnToVa = (image: KernelImage, pfn: number): bigint =>
  image.elf.notes.virtBase + (BigInt(pfn) << BigInt(PAGE_SHIFT));
const allTables = (layout: DomainLayout): PageTable[] => [...layout.bootstrapTables, ...layout.p2mTables];

function encodeCmdline(cmdline: string): Uint8Array {
  const bytes = new TextEncoder().encode(cmdline);
  const max = MAX_GUEST_CMDLINE - 1;
  if (bytes.length > max) {
    throw new BuildError(`the kernel command line is ${bytes.length} bytes long; a guest takes at most ${max}`);
  }
  if (bytes.includes(0)) throw new BuildError('the kernel command line contains a NUL character');
  return bytes;
}

/** Copies each segment to p_paddr - PADDR_OFFSET, and zeroes the rest of it. */
function loadKernel(machine: MachineMemory, image: KernelImage): void {
  const { loads, notes } = image.elf;
  for (const { offset, filesz, memsz, paddr } of loads) {
    const target = Number(BigInt(paddr) - notes.paddrOffset);
    machine.u8.set(image.bytes.subarray(offset, offset + filesz), target);
    machine.u8.fill(0, target + filesz, target + memsz);
  }
}

/** The p2m list: one u64 a page of RAM, its MFN. */
function fillP2m(machine: MachineMemory, layout: DomainLayout): void {
  const word = (layout.p2mPfn * PAGE_SIZE) >>> 2;
  for (let pfn = 0; pfn < machine.layout.ramPages; pfn++) {
    machine.u32[word + pfn * 2] = pfn + MFN_BASE;
    machine.u32[word + pfn * 2 + 1] = 0;
  }
}

/** Links the tables to each other, then maps the pages. A page that holds a table is mapped read-only. */
function fillPageTables(machine: MachineMemory, image: KernelImage, layout: DomainLayout): void {
  const tables = new Map<string, PageTable>();
  const key = (level: number, va: bigint): string => `${level}:${va}`;
  for (const table of allTables(layout)) tables.set(key(table.level, table.va), table);
  const setEntry = (level: PageTableLevel, va: bigint, pfn: number, flags: number): void => {
    const table = tables.get(key(level, tableBase(level, va)));
    if (!table) throw new Error(`bug: no page table of level ${level} for 0x${va.toString(16)}`);
    const word = (table.pfn * PAGE_SIZE) / 4 + Number((va >> entryShift(level)) & 511n) * 2;
    const mfn = mfnOf(pfn);
    machine.u32[word] = ((mfn << PAGE_SHIFT) | flags) >>> 0;
    machine.u32[word + 1] = mfn >>> (32 - PAGE_SHIFT);
  };

  for (const { level, va, pfn } of tables.values()) {
    if (level < 4) setEntry((level + 1) as PageTableLevel, va, pfn, TABLE_FLAGS);
  }
  const tablePfns = new Set(allTables(layout).map(({ pfn }) => pfn));
  const map = (va: bigint, firstPfn: number, pages: number): void => {
    for (let page = 0; page < pages; page++) {
      const pfn = firstPfn + page;
      const flags = tablePfns.has(pfn) ? PAGE_FLAGS & ~PTE_RW : PAGE_FLAGS;
      setEntry(1, va + (BigInt(page) << BigInt(PAGE_SHIFT)), pfn, flags);
    }
  };
  map(image.elf.notes.virtBase, 0, layout.mappedEndPfn);
  if (layout.p2mSeparate) map(layout.p2mVa, layout.p2mPfn, layout.p2mPages);
}

function fillStartInfo(
  machine: MachineMemory,
  image: KernelImage,
  layout: DomainLayout,
  opts: BuildOptions,
  cmdline: Uint8Array,
): void {
  const page = layout.startInfoPfn * PAGE_SIZE;
  const u64 = (field: number, value: number | bigint): void => {
    machine.u64[(page + field) / 8] = BigInt(value);
  };
  const u32 = (field: number, value: number): void => {
    machine.u32[(page + field) / 4] = value;
  };
  const hasRamdisk = layout.ramdiskPages > 0;
  const ramdiskUnmapped = hasRamdisk && image.elf.notes.modStartPfn;

  machine.u8.set(new TextEncoder().encode(START_INFO_MAGIC), page + START_INFO.magic);
  u64(START_INFO.nr_pages, machine.layout.ramPages);
  u64(START_INFO.shared_info, BigInt(offsetToMfn(machine.layout.sharedInfoOffset)) << BigInt(PAGE_SHIFT));
  u32(START_INFO.flags, SIF_VIRT_P2M_4TOOLS | (ramdiskUnmapped ? SIF_MOD_START_PFN : 0));
  u64(START_INFO.store_mfn, mfnOf(layout.storePfn));
  u32(START_INFO.store_evtchn, opts.storePort);
  u64(START_INFO.console_mfn, mfnOf(layout.consolePfn));
  u32(START_INFO.console_evtchn, opts.consolePort);
  u64(START_INFO.pt_base, pfnToVa(image, layout.bootstrapTables[0].pfn));
  u64(START_INFO.nr_pt_frames, layout.bootstrapTables.length);
  u64(START_INFO.mfn_list, layout.p2mVa);
  if (hasRamdisk) {
    u64(START_INFO.mod_start, ramdiskUnmapped ? layout.ramdiskPfn : pfnToVa(image, layout.ramdiskPfn));
    u64(START_INFO.mod_len, opts.ramdisk?.length ?? 0);
  }
  machine.u8.set(cmdline, page + START_INFO.cmd_line);
  if (layout.p2mSeparate) {
    u64(START_INFO.first_p2m_pfn, layout.p2mPfn);
    u64(START_INFO.nr_p2m_frames, layout.p2mPages + layout.p2mTables.length);
  }
}

/** Every vCPU starts with its upcalls masked: an event before the guest has handlers would crash it. */
function fillSharedInfo(machine: MachineMemory): void {
  const infos = machine.layout.sharedInfoOffset + SHARED_INFO.vcpu_info;
  for (let vcpu = 0; vcpu < XEN_LEGACY_MAX_VCPUS; vcpu++) {
    machine.u8[infos + vcpu * VCPU_INFO.SIZE + VCPU_INFO.evtchn_upcall_mask] = 1;
  }
}

function grantToDom0(machine: MachineMemory, gref: number, pfn: number): void {
  const entry = machine.layout.grantTableOffset + gref * GRANT_ENTRY_SIZE;
  machine.u16[entry / 2] = GTF_PERMIT_ACCESS;
  machine.u16[entry / 2 + 1] = DOM0;
  machine.u32[entry / 4 + 1] = mfnOf(pfn);
}

/** Source: xen.h, "Start-of-day memory layout": what RSI and RSP hold; all that is not set here starts as 0. */
function setInitialRegisters(
  machine: MachineMemory,
  { u32, u64 }: VcpuBlock,
  image: KernelImage,
  layout: DomainLayout,
): void {
  const stackTop = pfnToVa(image, layout.bootStackPfn + 1);
  u64[VCPU.gpr / 8 + RSP] = stackTop;
  u64[VCPU.gpr / 8 + RSI] = pfnToVa(image, layout.startInfoPfn);
  u64[VCPU.rip / 8] = image.elf.notes.entry;
  u64[VCPU.rflags / 8] = RFLAGS_START;
  // DS, ES, FS and GS stay NUL: FLAT_KERNEL_DS64 is 0.
  u32[VCPU.cs / 4] = FLAT_KERNEL_CS64;
  u32[VCPU.ss / 4] = FLAT_KERNEL_SS64;
  u32[VCPU.userMode / 4] = 0;
  u32[VCPU.kernelRoot / 4] = layout.bootstrapTables[0].pfn;
  u32[VCPU.userRoot / 4] = NO_ROOT;
  u32[VCPU.kernelSs / 4] = FLAT_KERNEL_SS64;
  u64[VCPU.kernelSp / 8] = stackTop;
  u32[VCPU.cr4 / 4] = CR4_START;
  u32[VCPU.iopl / 4] = 0;
  u32[VCPU.xcr0 / 4] = XCR0_START;
  u64[VCPU.dr / 8 + 6] = DR6_START;
  u64[VCPU.dr / 8 + 7] = DR7_START;
  u32[VCPU.vcpuInfo / 4] = machine.layout.sharedInfoOffset + SHARED_INFO.vcpu_info;
}
