/**
 * The one thing that hypervisor and engines know of each other.
 *
 * An engine runs one vCPU from its vCPU block (machine/vcpu-block.ts) and comes back with an exit. The hypervisor handles the
 * exit by changing the block and guest memory, and calls `run` again. An Engine object belongs to the vCPU's worker thread; only
 * a Kicker may be used from other threads.
 *
 * Guest kernel and guest user both run at CPL 3. The root of translation is `kernelRoot` in kernel mode, `userRoot` in user mode.
 */

import type { KeptRegions } from './wasm/kept-regions.ts';

/** What `Engine.run` returns. */
export type ExitKind = number;
/**
 * SYSCALL was executed (in either mode). As the CPU leaves it: rip = next instruction, RCX = rip, R11 = rflags, rsp unchanged;
 * cs and ss still the caller's selectors; rflags in the block = R11.
 */
export const EXIT_SYSCALL = 0;
/** An exception or software interrupt: exitVector, exitErrorCode, cr2; registers as before the instruction (after, for traps and INT n). */
export const EXIT_EXCEPTION = 1;
/** The run was interrupted by a kick, a timer or a flag; nothing to handle. */
export const EXIT_INTERRUPTED = 2;
/** The engine cannot go on with this guest (triple fault, KVM internal error): exitDetail; the domain crashes. */
export const EXIT_INTERNAL_ERROR = 3;
/** A hypercall has been carried out by `onHypercall`, which does not let the guest go on as it is. */
export const EXIT_HANDLED = 4;

/** Legacy region, header, and state components 2, 5, 6 and 7. Source: Intel SDM vol. 1, 13.4 and 13.5. */
export const VECTOR_STATE_BYTES = 2688;

export interface CpuidResult {
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** Facts about the engine that belong to the domain: they are fixed when the domain is created. */
export interface EngineFacts {
  readonly name: 'kvm' | 'wasm';
  /** Rate of the TSC that the guest reads with RDTSC, in kHz. */
  readonly tscKhz: number;
  /** The TSCs of all vCPUs agree. */
  readonly tscStable: boolean;
  /** Bits of XCR0 that a guest may set; 0 when the engine has no XSAVE. */
  readonly xcr0Mask: number;
  /** VA where the M2P is shown, low and high word; entry 0 of it is MFN 0 (entries below MFN_BASE are not mapped). */
  readonly m2pVaLo: number;
  readonly m2pVaHi: number;
}

export interface Engine {
  readonly facts: EngineFacts;
  /**
   * An engine may call this for a SYSCALL in kernel mode, in the middle of `run`, instead of coming back with EXIT_SYSCALL: what it has in
   * hand of the guest's callers stays. The block is as at the exit. True when the guest goes on behind the instruction, in the same
   * mode and with nothing to deliver; otherwise the engine leaves with EXIT_HANDLED.
   */
  onHypercall?: () => boolean;
  /** Runs guest code until something happens. Delivers nothing itself: the block is exactly what runs. */
  run(): ExitKind;
  /** Forget all translations of this vCPU (both roots) before guest code runs again. */
  flushTlb(): void;
  /** Forget translations of one page. VA as two words. */
  invalidatePage(vaLo: number, vaHi: number): void;
  /** The hypervisor has stored a page-table entry at this offset of memory 0 (already done). */
  pageTableStored(offset: number): void;
  /** The hypervisor has stored into guest memory, within a page, at this offset of memory 0: there may be code. */
  memoryStored(offset: number, size: number): void;
  /** A frame (byte offset) becomes a root page table: the engine makes its part of the Xen hole visible there. */
  prepareRoot(offset: number): void;
  /** gdtFrames/gdtEntries/ldtBase/ldtEntries of the block changed: reload before the next run. */
  descriptorTablesChanged(): void;
  /** XCR0 in the block changed. */
  xcr0Changed(): void;
  /** Debug registers in the block changed. */
  debugRegistersChanged(): void;
  /** Ask to leave `run` no later than this system time (ns on the engine's clock, see `nowNs`); 0 = no limit, from now on. */
  setRunDeadline(deadlineNs: number): void;
  /** The guest's TSC now, and the host's monotonic clock at the same instant (ns, as `monotonicNs`). */
  readTsc(): { tscLo: number; tscHi: number; atNs: number };
  /** The CPU's own CPUID answer for what this engine can run, before the hypervisor's policy. */
  cpuid(leaf: number, subleaf: number): CpuidResult;
  /**
   * The vCPU's x87, SSE, AVX and AVX-512 state, which no block holds, as an XSAVE area in the standard form: VECTOR_STATE_BYTES, each
   * component where Intel's CPUs have it, whatever the host's CPU does. Not while the guest runs.
   */
  saveVectorState(area: Uint8Array): void;
  /** The other way round. Components that the engine does not have must be in their initial state, or are lost. */
  loadVectorState(area: Uint8Array): void;
  /** What code has run since the last call, for `prepareCode` of the same engine elsewhere. Not while the guest runs. An engine without code of its own has neither. */
  notedCode?(): Uint32Array;
  /** Code that the vCPU may go on with, as it is in memory now. A hint: numbers that cannot be are left out. */
  prepareCode?(noted: Uint32Array): void;
  /** At the end: what was translated, for domains that come later (wasm/kept-regions.ts). */
  keptRegions?(): KeptRegions;
  /** After EXIT_INTERNAL_ERROR: what happened, in words for the log. */
  describeError(): string;
  /** What the engine counted, a line each, for DOMUS_STATS. */
  statistics(): readonly string[];
  close(): void;
}

/** Makes a vCPU that may be in guest mode on another thread leave it soon. Usable from any thread. */
export interface Kicker {
  kick(vcpuId: number): void;
}
