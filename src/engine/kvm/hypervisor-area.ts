/**
 * The engine's own guest memory: what a PV guest cannot name but its VM needs. It is a memory slot of its own, below 4 GiB of
 * guest-physical addresses; memory 0 is the slot at MFN_BASE << 12, so that an MFN is a guest-physical frame.
 *
 * Slot 257 of every root page table points to the tables built here (slot 256, Xen's first, cannot be reached from CPL 3 on every
 * KVM). All vCPUs use the same tables; what is per vCPU stands at different addresses:
 *
 *   ffff8080_00000000   M2P, user read-only: entry of MFN 0; mapped from the entry of MFN_BASE on
 *   ffff8080_40000000   probe page, user read-execute: code that the engine runs at CPL 3 to ask the CPU something
 *   ffff80c0_00000000   shared pages, supervisor: IDT, exception stubs, SYSCALL stubs, then the L1 tables of the windows
 *   ffff80c0_00200000   windows, one of WINDOW_PAGES a vCPU, supervisor:
 *                         pages 0-13  the guest's GDT frames, page 14 Xen's descriptors, page 15 zero
 *                         page  16    TSS      page 17  ring-0 stack      page 18  IST stacks
 *                         page  20-   the resume code, written by the vCPU thread before each use
 *   ffff80e0_00000000   all of memory 0, supervisor read-write
 *
 * Ring 0 runs only: stubs of `out; hlt` that hand an exception to the host, and the resume code.
 */

import { FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64 } from '../../abi/xen.ts';
import type { MachineLayout } from '../../machine/memory.ts';
import { MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';

export const AREA_GPA = 0x10000000;
/** Which entry of a root page table the hypervisor area hangs in. */
export const HOLE_SLOT = 257;

export const M2P_VA_HI = 0xffff8080;
export const M2P_VA_LO = 0;
export const PROBE_VA_HI = 0xffff8080;
export const PROBE_VA_LO = 0x40000000;
export const AREA_VA_HI = 0xffff80c0;
export const DIRECT_MAP_VA_HI = 0xffff80e0;

// Shared pages, as low words of addresses under AREA_VA_HI.
export const IDT_VA_LO = 0x0000;
export const STUBS_VA_LO = 0x1000;
export const STUB_BYTES = 16;
export const LSTAR_VA_LO = 0x2000;
export const CSTAR_VA_LO = 0x2010;
const WINDOW_TABLES_VA_LO = 0x10000;

const WINDOWS_VA_LO = 0x200000;
const WINDOW_PAGES = 32;
export const GUEST_GDT_PAGES = 14;
const WINDOW_XEN_GDT = 14;
const WINDOW_ZERO = 15;
const WINDOW_TSS = 16;
const WINDOW_STACK = 17;
const WINDOW_IST = 18;
const WINDOW_RESUME = 20;
export const RESUME_PAGES = 4;
export const VCPUS_MAX = 128;

/** Ports of the `out` instructions that leave ring 0. */
export const PORT_EXCEPTION = 0x10;
export const PORT_SYSCALL = 0x11;
export const PORT_SYSCALL32 = 0x12;
export const PORT_STORES_DONE = 0x14;

// Xen's reserved selectors. Source: xen/include/public/arch-x86/xen-x86_64.h.
export const RING0_CS = 0xe008;
export const RING0_SS = 0xe010;
export const FLAT_CS32 = FLAT_RING3_CS32;
export const FLAT_SS = FLAT_RING3_SS64;
export const FLAT_CS64 = FLAT_RING3_CS64;
export const TSS_SELECTOR = 0xe040;

/** Descriptors of those selectors, high words (low words are all 0000ffff). Source: Intel SDM vol. 3, 3.4.5. */
const DESCRIPTORS: readonly (readonly [selector: number, high: number])[] = [
  [RING0_CS, 0x00af9b00],
  [RING0_SS, 0x00cf9300],
  [FLAT_CS32, 0x00cffb00],
  [FLAT_SS, 0x00cff300],
  [FLAT_CS64, 0x00affb00],
];

const PRESENT = 1;
const WRITE = 2;
const USER = 4;
const LARGE = 0x80;
/** Accessed and dirty, set from the start: the CPU need not. */
const AD = 0x60;
const NO_EXECUTE = 0x80000000;

/** Vectors whose stubs run on a stack of their own: #DB, NMI, #DF, #MC. */
export const IST_VECTORS: readonly number[] = [1, 2, 8, 18];
const IST_STACK_BYTES = 1024;
/** Gates that INT n may use from CPL 3: #BP, #OF and Xen's 0x80. */
export const USER_GATES: readonly number[] = [3, 4, 0x80];

/** Code in the probe page: RDTSC, XGETBV or CPUID, then INT3. */
export const PROBE_RDTSC = 0;
export const PROBE_XGETBV = 16;
export const PROBE_CPUID = 32;
const PROBE_CODE: readonly (readonly [offset: number, code: readonly number[]])[] = [
  [PROBE_RDTSC, [0x0f, 0x31, 0xcc]],
  [PROBE_XGETBV, [0x0f, 0x01, 0xd0, 0xcc]],
  [PROBE_CPUID, [0x0f, 0xa2, 0xcc]],
];

/** Per vCPU: where its pages are in the area (byte offsets) and in the address space (low words under AREA_VA_HI). */
export interface VcpuWindow {
  readonly vaLo: number;
  readonly stackOffset: number;
  readonly istOffset: number;
  readonly resumeOffset: number;
  /** The window's first L1 entry: its offset, and the address at which ring 0 sees it. */
  readonly gdtEntryOffset: number;
  readonly gdtEntryVaLo: number;
}

export interface HypervisorArea {
  readonly memory: WebAssembly.Memory;
  /** Offset of a root page table with nothing but the hole: for ring-0 work while no guest root may be used. */
  readonly idleRootOffset: number;
  /** Low word of the L4 entry for HOLE_SLOT; its high word is 0. */
  readonly holeEntryLo: number;
  readonly zeroPageOffset: number;
  readonly windows: readonly VcpuWindow[];
}

export const windowTssVaLo = (w: VcpuWindow): number => w.vaLo + WINDOW_TSS * PAGE_SIZE;
/** Top of the stack that exceptions from CPL 3 use. */
export const windowStackTopVaLo = (w: VcpuWindow): number => w.vaLo + (WINDOW_STACK + 1) * PAGE_SIZE;
export const windowIstVaLo = (w: VcpuWindow): number => w.vaLo + WINDOW_IST * PAGE_SIZE;
export const windowResumeVaLo = (w: VcpuWindow): number => w.vaLo + WINDOW_RESUME * PAGE_SIZE;
/** Top of the IST stack of IST_VECTORS[index], from the start of the IST page. */
export const istTop = (index: number): number => (index + 1) * IST_STACK_BYTES;

export function buildHypervisorArea(machine: MachineLayout, vcpus: number): HypervisorArea {
  if (!(vcpus >= 1 && vcpus <= VCPUS_MAX))
    throw new RangeError(`a KVM domain has 1 to ${VCPUS_MAX} vCPUs, not ${vcpus}`);
  const m2pPages = Math.ceil((machine.m2pEntries * 8) / PAGE_SIZE);
  const windowTables = Math.ceil((vcpus * WINDOW_PAGES) / 512);
  const pagesMax = 32 + Math.ceil(m2pPages / 512) + windowTables + vcpus * (4 + RESUME_PAGES);
  const wasmPages = Math.ceil((pagesMax * PAGE_SIZE) / 65536);
  const memory = new WebAssembly.Memory({ initial: wasmPages, maximum: wasmPages, shared: true });
  const u8 = new Uint8Array(memory.buffer);
  const u32 = new Uint32Array(memory.buffer);
  let allocated = 0;
  const allocatePage = (): number => {
    const offset = allocated;
    allocated += PAGE_SIZE;
    return offset;
  };
  /** Points a table entry at a guest-physical address. */
  const setEntry = (table: number, index: number, guestPhysical: number, flags: number, high = 0): void => {
    const word = table / 4 + index * 2;
    u32[word] = (guestPhysical >>> 0) | flags;
    u32[word + 1] = Math.floor(guestPhysical / 2 ** 32) | high;
  };
  const inArea = (offset: number): number => AREA_GPA + offset;
  const TABLE = PRESENT | WRITE | AD;

  const idleRoot = allocatePage();
  const l3 = allocatePage();
  setEntry(idleRoot, HOLE_SLOT, inArea(l3), TABLE | USER);
  const zeroPage = allocatePage();

  // M2P.
  const m2pL2 = allocatePage();
  setEntry(l3, 0, inArea(m2pL2), TABLE | USER);
  const m2pFirst = (MFN_BASE * 8) / PAGE_SIZE;
  const m2pFrameGpa = MFN_BASE * PAGE_SIZE + machine.m2pOffset;
  let m2pL1 = 0;
  for (let page = 0; page < m2pPages; page++) {
    const index = m2pFirst + page;
    if (page === 0 || index % 512 === 0) {
      m2pL1 = allocatePage();
      setEntry(m2pL2, index >> 9, inArea(m2pL1), TABLE | USER);
    }
    setEntry(m2pL1, index % 512, m2pFrameGpa + page * PAGE_SIZE, PRESENT | USER | AD, NO_EXECUTE);
  }

  // Probe page.
  const probeL2 = allocatePage();
  const probeL1 = allocatePage();
  const probePage = allocatePage();
  setEntry(l3, 1, inArea(probeL2), TABLE | USER);
  setEntry(probeL2, 0, inArea(probeL1), TABLE | USER);
  setEntry(probeL1, 0, inArea(probePage), PRESENT | USER | AD);
  for (const [offset, code] of PROBE_CODE) u8.set(code, probePage + offset);

  // Direct map of memory 0, by 2 MiB pages. The last one may reach past the slot: nothing asks for those addresses.
  const largePages = Math.ceil(machine.sizeBytes / 0x200000);
  let directL2 = 0;
  for (let page = 0; page < largePages; page++) {
    if (page % 512 === 0) {
      directL2 = allocatePage();
      setEntry(l3, 384 + page / 512, inArea(directL2), TABLE);
    }
    setEntry(directL2, page % 512, MFN_BASE * PAGE_SIZE + page * 0x200000, TABLE | LARGE, NO_EXECUTE);
  }

  // Shared pages.
  const areaL2 = allocatePage();
  const sharedL1 = allocatePage();
  setEntry(l3, 256, inArea(areaL2), TABLE);
  setEntry(areaL2, 0, inArea(sharedL1), TABLE);
  const idt = allocatePage();
  const stubs = allocatePage();
  const syscallStubs = allocatePage();
  setEntry(sharedL1, IDT_VA_LO / PAGE_SIZE, inArea(idt), TABLE, NO_EXECUTE);
  setEntry(sharedL1, STUBS_VA_LO / PAGE_SIZE, inArea(stubs), PRESENT | AD);
  setEntry(sharedL1, LSTAR_VA_LO / PAGE_SIZE, inArea(syscallStubs), PRESENT | AD);
  for (let vector = 0; vector < 256; vector++) {
    const stubLo = STUBS_VA_LO + vector * STUB_BYTES;
    const gateType = USER_GATES.includes(vector) ? 0xee00 : 0x8e00;
    const word = idt / 4 + vector * 4;
    u32[word] = (RING0_CS << 16) | (stubLo & 0xffff);
    u32[word + 1] = (stubLo & 0xffff0000) | gateType | (IST_VECTORS.indexOf(vector) + 1);
    u32[word + 2] = AREA_VA_HI;
    u8.set([0xe6, PORT_EXCEPTION, 0xf4], stubs + vector * STUB_BYTES); // out 0x10, al; hlt
  }
  u8.set([0xe6, PORT_SYSCALL, 0xf4], syscallStubs);
  u8.set([0xe6, PORT_SYSCALL32, 0xf4], syscallStubs + (CSTAR_VA_LO - LSTAR_VA_LO));

  // Windows.
  const tables: number[] = [];
  for (let i = 0; i < windowTables; i++) {
    const table = allocatePage();
    tables.push(table);
    setEntry(areaL2, WINDOWS_VA_LO / 0x200000 + i, inArea(table), TABLE);
    setEntry(sharedL1, WINDOW_TABLES_VA_LO / PAGE_SIZE + i, inArea(table), TABLE, NO_EXECUTE);
  }
  const windows: VcpuWindow[] = [];
  for (let vcpu = 0; vcpu < vcpus; vcpu++) {
    const firstPage = vcpu * WINDOW_PAGES;
    const table = tables[firstPage >> 9];
    const first = firstPage % 512;
    const gdt = allocatePage();
    const tss = allocatePage();
    const stack = allocatePage();
    const ist = allocatePage();
    for (let i = 0; i < GUEST_GDT_PAGES; i++) setEntry(table, first + i, inArea(zeroPage), PRESENT | AD, NO_EXECUTE);
    setEntry(table, first + WINDOW_XEN_GDT, inArea(gdt), TABLE, NO_EXECUTE);
    setEntry(table, first + WINDOW_ZERO, inArea(zeroPage), PRESENT | AD, NO_EXECUTE);
    setEntry(table, first + WINDOW_TSS, inArea(tss), TABLE, NO_EXECUTE);
    setEntry(table, first + WINDOW_STACK, inArea(stack), TABLE, NO_EXECUTE);
    setEntry(table, first + WINDOW_IST, inArea(ist), TABLE, NO_EXECUTE);
    const resume = allocatePage();
    for (let i = 1; i < RESUME_PAGES; i++) allocatePage();
    for (let i = 0; i < RESUME_PAGES; i++) {
      setEntry(table, first + WINDOW_RESUME + i, inArea(resume + i * PAGE_SIZE), PRESENT | AD);
    }
    const window: VcpuWindow = {
      vaLo: WINDOWS_VA_LO + firstPage * PAGE_SIZE,
      stackOffset: stack,
      istOffset: ist,
      resumeOffset: resume,
      gdtEntryOffset: table + first * 8,
      gdtEntryVaLo: WINDOW_TABLES_VA_LO + (firstPage >> 9) * PAGE_SIZE + first * 8,
    };
    windows.push(window);

    for (const [selector, high] of DESCRIPTORS) {
      const word = (gdt + (selector & 0xff8)) / 4;
      u32[word] = 0x0000ffff;
      u32[word + 1] = high;
    }
    const tssLo = windowTssVaLo(window);
    const tssWord = (gdt + (TSS_SELECTOR & 0xff8)) / 4;
    u32[tssWord] = (tssLo << 16) | 0x67;
    u32[tssWord + 1] = (tssLo & 0xff000000) | 0x8900 | ((tssLo >>> 16) & 0xff);
    u32[tssWord + 2] = AREA_VA_HI;
    // 64-bit TSS: rsp0 at 4, ist1 at 0x24, I/O map base at 0x66 (past the limit: no map). Source: Intel SDM vol. 3, 8.7.
    u32[tss / 4 + 1] = windowStackTopVaLo(window);
    u32[tss / 4 + 2] = AREA_VA_HI;
    for (let i = 0; i < IST_VECTORS.length; i++) {
      u32[tss / 4 + 9 + i * 2] = windowIstVaLo(window) + istTop(i);
      u32[tss / 4 + 10 + i * 2] = AREA_VA_HI;
    }
    u32[tss / 4 + 25] = 0x68 << 16;
  }

  return {
    memory,
    idleRootOffset: idleRoot,
    holeEntryLo: u32[idleRoot / 4 + HOLE_SLOT * 2],
    zeroPageOffset: zeroPage,
    windows,
  };
}
