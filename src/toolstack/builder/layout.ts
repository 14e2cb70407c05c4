/**
 * Where everything lies in a new domain: pure arithmetic, checked in full before one byte of the domain is written.
 *
 * In the order of PFNs, as Xen's own builder places it. "Mapped" means: at virtBase + (PFN << 12) in the bootstrap page
 * tables, which map every page from PFN 0 to `mappedEndPfn`.
 *
 *   PFN 0 ..        nothing, up to the kernel                      mapped
 *   kernel          its segments, placed by p_paddr                mapped
 *   ramdisk         only without ELF note MOD_START_PFN            mapped
 *   p2m list        only without ELF note INIT_P2M                 mapped
 *   start_info, xenstore ring, console ring: 1 page each           mapped
 *   bootstrap page tables: L4, L3, L2, L1s, ascending              mapped, read-only
 *   boot stack      1 page                                         mapped
 *   padding         to mappedEndPfn                                mapped
 *   ramdisk         with MOD_START_PFN                             not mapped
 *   p2m list, then the tables that map it: L3, L2, L1s             at the VA of INIT_P2M; tables not mapped
 *   free RAM
 *
 * Source: xen/include/public/xen.h, "Start-of-day memory layout"; tools/libs/guest/xg_dom_core.c, xc_dom_build_image()
 * and xg_dom_x86.c, alloc_pgtables_pv(), alloc_p2m_list_x86_64() (behaviour).
 *
 * Deviations: libxc unpacks a ramdisk that is gzip; here the kernel does that itself. libxc allows a mapping of several
 * L3 slots; here it is an error, because Linux copies exactly one L2 table out of the bootstrap tables.
 */

import { PAGE_SHIFT, PAGE_SIZE, RAM_PAGES_MAX } from '../../machine/memory.ts';
import { BuildError } from './build-error.ts';
import type { XenElf } from './elf.ts';

/** A kernel that has been read: its ELF file, what is in it, and its name for messages. */
export interface KernelImage {
  readonly elf: XenElf;
  readonly bytes: Uint8Array;
  readonly name: string;
}

/** A ramdisk for messages and arithmetic. */
export interface RamdiskSize {
  readonly sizeBytes: number;
  readonly name: string;
}

/** Level of a page table: 1 holds the entries of 4 KiB pages, 4 is a root. */
export type PageTableLevel = 1 | 2 | 3 | 4;

/** A page table that the builder makes. */
export interface PageTable {
  readonly level: PageTableLevel;
  /** First VA that it covers (0 for the root). */
  readonly va: bigint;
  readonly pfn: number;
}

export interface DomainLayout {
  /** First page of the kernel, and the PFN after its last one. */
  readonly kernelStartPfn: number;
  readonly kernelEndPfn: number;
  readonly startInfoPfn: number;
  readonly storePfn: number;
  readonly consolePfn: number;
  readonly bootStackPfn: number;
  /** PFN after the last page that the bootstrap tables map. */
  readonly mappedEndPfn: number;
  /** The bootstrap tables; the first one is the L4. Their PFNs are contiguous. */
  readonly bootstrapTables: readonly PageTable[];
  readonly ramdiskPages: number;
  /** 0 when there is no ramdisk. */
  readonly ramdiskPfn: number;
  readonly p2mPfn: number;
  readonly p2mPages: number;
  readonly p2mVa: bigint;
  /** The p2m list lies outside the bootstrap mapping, with tables of its own. */
  readonly p2mSeparate: boolean;
  /** Tables that only the p2m list needs; empty unless p2mSeparate. */
  readonly p2mTables: readonly PageTable[];
  /** PFN after the last page in use. */
  readonly endPfn: number;
}

/** Mapped padding after the boot stack is at least 512 KiB. Source: xen.h, start-of-day layout, item 8. */
const PADDING_PAGES = (512 * 1024) / PAGE_SIZE;
/** The end of the mapping is rounded up to 4 MiB of virtual addresses. Source: as above. */
const MAPPING_ALIGN = 4n << 20n;
/** Bytes of a p2m list entry. */
const P2M_ENTRY_SIZE = 8;
const LEVELS: readonly PageTableLevel[] = [4, 3, 2, 1];

/** Canonical addresses are sign-extended from bit 47. Source: AMD64 APM vol. 2, 5.3.1. */
const LOWER_HALF_END = 1n << 47n;
const VA_END = 1n << 64n;
/**
 * The upper half begins with L4 slots 256-271, which belong to Xen; the guest's part begins here.
 * Source: arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END.
 */
const XEN_HOLE_END = 0xffff880000000000n;

const pagesToVa = (pages: number): bigint => BigInt(pages) << BigInt(PAGE_SHIFT);
const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** Address bits that one entry of a table of `level` covers: 12, 21, 30 or 39. */
export function entryShift(level: PageTableLevel): bigint {
  return BigInt(PAGE_SHIFT + 9 * (level - 1));
}

/** First VA covered by the table of `level` that covers `va`; 0 for the root. */
export function tableBase(level: PageTableLevel, va: bigint): bigint {
  if (level === 4) return 0n;
  const shift = entryShift(level) + 9n;
  return (va >> shift) << shift;
}

/** A size for messages. What is needed is rounded up, what there is down, so that two numbers never contradict. */
function size(pages: number, rounding: 'up' | 'down'): string {
  const round = rounding === 'up' ? Math.ceil : Math.floor;
  if (pages < 256) return `${pages * 4} KiB`;
  return `${round((pages / 256) * 10) / 10} MiB`;
}

/**
 * Plans a domain.
 *
 * @param ramPages pages of RAM that the domain has at boot
 * @throws BuildError when the parts do not fit, or the kernel asks for what cannot be
 */
export function planLayout(kernel: KernelImage, ramPages: number, ramdisk: RamdiskSize | null): DomainLayout {
  if (ramPages < 1) throw new BuildError('the domain has no memory');
  const kernelPages = checkSegments(kernel, ramPages);
  checkVirtBase(kernel);

  const memory = `the domain's ${size(ramPages, 'down')} of memory`;
  const bare = place(kernel, kernelPages, ramPages, 0);
  if (bare.endPfn > ramPages) {
    throw new BuildError(
      `${memory} is too small: kernel ${kernel.name} takes it up to ${size(kernelPages.end, 'up')}, and with what it needs to start ${size(bare.endPfn, 'up')}`,
    );
  }
  const ramdiskPages = ramdisk ? Math.ceil(ramdisk.sizeBytes / PAGE_SIZE) : 0;
  const layout = place(kernel, kernelPages, ramPages, ramdiskPages);
  if (ramdisk && layout.endPfn > ramPages) {
    const free = ramdiskPagesMax(kernel, kernelPages, ramPages, ramdiskPages);
    throw new BuildError(
      `ramdisk ${ramdisk.name} is ${size(ramdiskPages, 'up')} and does not fit in ${memory} (${size(free, 'down')} free after the kernel)`,
    );
  }
  checkMapping(kernel, layout, ramdisk);
  return layout;
}

/** First page and page after the last of the kernel. */
interface KernelPages {
  readonly start: number;
  readonly end: number;
}

/** Checks each segment against file and RAM; segments come from a file that anybody may have written. */
function checkSegments(kernel: KernelImage, ramPages: number): KernelPages {
  const { loads, notes } = kernel.elf;
  const fail = (problem: string): never => {
    throw new BuildError(`kernel ${kernel.name}: ${problem}`);
  };
  if (loads.length === 0) fail('it has no segments to load');
  let start = Number.POSITIVE_INFINITY;
  let end = 0;
  for (const [index, load] of loads.entries()) {
    const { offset, filesz, memsz, paddr } = load;
    for (const [field, value] of Object.entries({ offset, filesz, memsz, paddr })) {
      if (!Number.isSafeInteger(value) || value < 0) fail(`segment ${index}: ${field} ${value} is not a byte count`);
    }
    if (offset + filesz > kernel.bytes.length) {
      fail(
        `segment ${index}: ${filesz} bytes at file offset ${offset} pass the file's end at ${kernel.bytes.length} bytes`,
      );
    }
    if (filesz > memsz) fail(`segment ${index}: ${filesz} bytes in the file, but only ${memsz} in memory`);
    // The segment goes to p_paddr - PADDR_OFFSET, never by p_vaddr: Linux's percpu segment has p_vaddr 0.
    const first = BigInt(paddr) - notes.paddrOffset;
    const last = first + BigInt(memsz);
    if (first < 0n || last > BigInt(RAM_PAGES_MAX) * BigInt(PAGE_SIZE)) {
      fail(`segment ${index}: guest-physical ${hex(first)}..${hex(last)} is outside the memory of any domain`);
    }
    start = Math.min(start, Number(first));
    end = Math.max(end, Number(last));
  }
  const pages = { start: Math.floor(start / PAGE_SIZE), end: Math.ceil(end / PAGE_SIZE) };
  if (pages.end > ramPages) {
    throw new BuildError(
      `kernel ${kernel.name} takes memory up to ${size(pages.end, 'up')} and does not fit in the domain's ${size(ramPages, 'down')} of memory`,
    );
  }
  return pages;
}

/** Page offsets in VA and PFN must agree, or no segment could be mapped. */
function checkVirtBase(kernel: KernelImage): void {
  const { virtBase } = kernel.elf.notes;
  if (virtBase % BigInt(PAGE_SIZE) !== 0n) {
    throw new BuildError(`kernel ${kernel.name}: virtual base ${hex(virtBase)} is not page aligned`);
  }
}

/** Places everything. Never fails: whether it fits is for the caller to see. */
function place(kernel: KernelImage, kernelPages: KernelPages, ramPages: number, ramdiskPages: number): DomainLayout {
  const { notes } = kernel.elf;
  const { virtBase } = notes;
  let nextPfn = kernelPages.end;
  const take = (pages: number): number => {
    nextPfn += pages;
    return nextPfn - pages;
  };

  const p2mPages = Math.ceil((ramPages * P2M_ENTRY_SIZE) / PAGE_SIZE);
  // An INIT_P2M that Xen's builder cannot use counts as absent. Source: xg_dom_core.c, xc_dom_build_image() (behaviour).
  const { initP2m } = notes;
  const separateVa =
    initP2m !== undefined && initP2m < virtBase && initP2m % BigInt(PAGE_SIZE) === 0n ? initP2m : undefined;

  let ramdiskPfn = !notes.modStartPfn && ramdiskPages > 0 ? take(ramdiskPages) : 0;
  let p2mPfn = separateVa === undefined ? take(p2mPages) : 0;
  const startInfoPfn = take(1);
  const storePfn = take(1);
  const consolePfn = take(1);

  // The tables lie in what they map, so their number depends on itself: grow until it is stable.
  const tablesPfn = nextPfn;
  let bootstrapTables: PageTable[] = [];
  let mappedEnd = 0n;
  for (;;) {
    const least = virtBase + pagesToVa(tablesPfn + bootstrapTables.length + 1 + PADDING_PAGES);
    mappedEnd = ((least + MAPPING_ALIGN - 1n) / MAPPING_ALIGN) * MAPPING_ALIGN;
    const tables = missingTables(virtBase, mappedEnd, tablesPfn, []);
    const stable = tables.length === bootstrapTables.length;
    bootstrapTables = tables;
    if (stable) break;
  }
  take(bootstrapTables.length);
  const bootStackPfn = take(1);
  const mappedEndPfn = Number((mappedEnd - virtBase) >> BigInt(PAGE_SHIFT));
  take(mappedEndPfn - nextPfn);

  if (notes.modStartPfn && ramdiskPages > 0) ramdiskPfn = take(ramdiskPages);
  let p2mTables: PageTable[] = [];
  if (separateVa !== undefined) {
    p2mPfn = take(p2mPages);
    p2mTables = missingTables(separateVa, separateVa + pagesToVa(p2mPages), nextPfn, bootstrapTables);
    take(p2mTables.length);
  }
  return {
    kernelStartPfn: kernelPages.start,
    kernelEndPfn: kernelPages.end,
    startInfoPfn,
    storePfn,
    consolePfn,
    bootStackPfn,
    mappedEndPfn,
    bootstrapTables,
    ramdiskPages,
    ramdiskPfn,
    p2mPfn,
    p2mPages,
    p2mVa: separateVa ?? virtBase + pagesToVa(p2mPfn),
    p2mSeparate: separateVa !== undefined,
    p2mTables,
    endPfn: nextPfn,
  };
}

/** The tables that [from, to) needs besides the existing ones, from the root down, each level ascending, from `pfn` on. */
function missingTables(from: bigint, to: bigint, pfn: number, existing: readonly PageTable[]): PageTable[] {
  const tables: PageTable[] = [];
  for (const level of LEVELS) {
    const step = 1n << (entryShift(level) + 9n);
    const last = tableBase(level, to - 1n);
    for (let va = tableBase(level, from); va <= last; va += step) {
      if (existing.some((table) => table.level === level && table.va === va)) continue;
      tables.push({ level, va, pfn: pfn + tables.length });
    }
  }
  return tables;
}

/** The largest ramdisk that fits, in pages; `tooMany` does not. */
function ramdiskPagesMax(kernel: KernelImage, kernelPages: KernelPages, ramPages: number, tooMany: number): number {
  let fits = 0;
  while (tooMany - fits > 1) {
    const middle = (fits + tooMany) >>> 1;
    if (place(kernel, kernelPages, ramPages, middle).endPfn <= ramPages) fits = middle;
    else tooMany = middle;
  }
  return fits;
}

/** Checks the virtual addresses of a layout that fits in RAM. */
function checkMapping(kernel: KernelImage, layout: DomainLayout, ramdisk: RamdiskSize | null): void {
  const { notes } = kernel.elf;
  const { virtBase, entry, hypercallPage } = notes;
  const fail = (problem: string): never => {
    throw new BuildError(`kernel ${kernel.name}: ${problem}`);
  };
  const end = virtBase + pagesToVa(layout.mappedEndPfn);
  const mapping = `the initial mapping ${hex(virtBase)}..${hex(end)}`;
  if (!isGuestRange(virtBase, end)) fail(`${mapping} is not in the part of the address space that a guest has`);
  if (virtBase >> 30n !== (end - 1n) >> 30n) {
    const cause = ramdisk && !notes.modStartPfn ? ` (with ramdisk ${ramdisk.name} in it)` : '';
    fail(`${mapping}${cause} does not stay within the 1 GiB (one L3 slot) of its virtual base`);
  }
  const imageStart = virtBase + pagesToVa(layout.kernelStartPfn);
  const imageEnd = virtBase + pagesToVa(layout.kernelEndPfn);
  const image = `its image at ${hex(imageStart)}..${hex(imageEnd)}`;
  if (entry < imageStart || entry >= imageEnd) fail(`entry point ${hex(entry)} is outside ${image}`);
  if (hypercallPage !== undefined) {
    if (hypercallPage % BigInt(PAGE_SIZE) !== 0n) fail(`hypercall page ${hex(hypercallPage)} is not page aligned`);
    if (hypercallPage < imageStart || hypercallPage >= imageEnd) {
      fail(`hypercall page ${hex(hypercallPage)} is outside ${image}`);
    }
  }
  if (layout.p2mSeparate) {
    const p2mEnd = layout.p2mVa + pagesToVa(layout.p2mPages);
    const range = `the p2m list at ${hex(layout.p2mVa)}..${hex(p2mEnd)}`;
    if (p2mEnd > virtBase) fail(`${range} overlaps ${mapping}`);
    if (!isGuestRange(layout.p2mVa, p2mEnd)) fail(`${range} is not in the part of the address space that a guest has`);
  }
}

/** Canonical, in one half, and not in Xen's hole. */
function isGuestRange(from: bigint, to: bigint): boolean {
  if (from < 0n || to <= from || to > VA_END) return false;
  return to <= LOWER_HALF_END || from >= XEN_HOLE_END;
}
