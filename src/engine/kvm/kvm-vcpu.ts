/**
 * One vCPU on KVM: runs the guest from its vCPU block, one KVM_RUN and no other system call an exit.
 *
 * Entry. Registers go from the block into kvm_run's synchronised registers. With nothing pending the vCPU starts directly at CPL 3.
 * With page-table stores or a TLB flush pending it starts at ring 0 in the resume code, which this file writes anew each time:
 *
 *     lock or qword [r15 + disp32], 0      one per page-table store: 12 bytes; r15 = middle of the direct map of memory 0
 *     mov r15, imm64; lock or qword ...    for stores into the area's own tables
 *     mov rax, cr3; mov cr3, rax           forget the translations
 *     pop r15; pop rax; iretq              the guest's frame, from the ring-0 stack
 *
 * A KVM with shadow page tables does not see the stores that the host makes; the locked OR changes nothing and shows them to it, atomically, so
 * that no store of another vCPU and no accessed or dirty bit is lost. Where the CPU walks the guest's tables itself it costs nothing.
 *
 * Exit. Stubs at ring 0 hand exceptions and system calls over with `out`. The block stays untouched from entry until an exit is
 * understood, so that a run interrupted inside the resume code is simply forgotten and made again.
 *
 * Peculiarities of a KVM without hardware virtualisation (PVM), which ordinary ones do not have:
 *   - SYSCALL arrives as a page fault at LSTAR. Its frame has IF clear, which CPL 3 cannot do otherwise: a jump to LSTAR has it set.
 *   - INT n other than INT 3 and INT 4, and all of them in 32-bit code, is #UD. `#softwareInterrupt` makes of it what the CPU would have done.
 *   - SYSCALL of 32-bit code is #UD: `#softwareInterrupt` again.
 *   - 64-bit code loads its own 0x2b into a data segment register without KVM learning of it; 32-bit code then has a null segment.
 *   - CR0.TS, XCR0 and CPUID are the host's at CPL 3: no #NM, the host's vector state.
 */

import type { MachineMemory } from '../../machine/memory.ts';
import { MFN_BASE, PAGE_SHIFT } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { FLAG_STOP, NO_ROOT, R11, RCX, VCPU } from '../../machine/vcpu-block.ts';
import type { CpuidResult, Engine, EngineFacts, ExitKind } from '../engine.ts';
import { EXIT_EXCEPTION, EXIT_INTERNAL_ERROR, EXIT_INTERRUPTED, EXIT_SYSCALL } from '../engine.ts';
import {
  CPUID_ENTRY_WORDS,
  CPUID2_HEADER_WORDS,
  CR0_BASE,
  CR0_TS,
  CR4_BASE,
  CR4_DE,
  CR4_FSGSBASE,
  CR4_OSXSAVE,
  CR4_TSD,
  DEBUGREGS_BYTES,
  EFER_BASE,
  EINTR,
  KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
  KVM_CREATE_VCPU,
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_IO,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  KVM_GET_DEBUGREGS,
  KVM_GET_SREGS,
  KVM_REGS_SLOT,
  KVM_RUN,
  KVM_SET_CPUID2,
  KVM_SET_DEBUGREGS,
  KVM_SET_MSRS,
  KVM_SET_XCRS,
  MAP_SHARED,
  MSR_CSTAR,
  MSR_LSTAR,
  MSR_STAR,
  MSR_SYSCALL_MASK,
  PROT_READ_WRITE,
  REGS_R11_W,
  REGS_R15_W,
  REGS_RAX_W,
  REGS_RBX_W,
  REGS_RCX_W,
  REGS_RDX_W,
  REGS_RFLAGS_W,
  REGS_RIP_W,
  REGS_RSP_W,
  RFLAGS_FORCED_OFF,
  RFLAGS_FORCED_ON,
  RUN_DIRTY_REGS_W,
  RUN_EVENTS_EXCEPTION_MASK,
  RUN_EVENTS_W,
  RUN_EXIT_REASON_W,
  RUN_EXIT_W,
  RUN_IMMEDIATE_EXIT,
  RUN_REGS_W,
  RUN_SREGS,
  RUN_VALID_REGS_W,
  SREGS_CR0_W,
  SREGS_CR2_W,
  SREGS_CR3_W,
  SREGS_CR4_W,
  SREGS_CS_W,
  SREGS_DS_W,
  SREGS_EFER_W,
  SREGS_ES_W,
  SREGS_FS_W,
  SREGS_GDT_W,
  SREGS_GS_W,
  SREGS_IDT_W,
  SREGS_LDT_W,
  SREGS_SS_W,
  SREGS_TR_W,
  SYNC_ALL,
  SYNC_REGS_AND_SREGS,
  SYSCALL_MASK,
  XCRS_BYTES,
} from './abi.ts';
import type { Host } from './host.ts';
import { monotonicNs, requireHost } from './host.ts';
import type { VcpuWindow } from './hypervisor-area.ts';
import {
  AREA_GPA,
  AREA_VA_HI,
  CSTAR_VA_LO,
  DIRECT_MAP_VA_HI,
  FLAT_CS32,
  FLAT_CS64,
  FLAT_SS,
  GUEST_GDT_PAGES,
  HOLE_SLOT,
  IDT_VA_LO,
  IST_VECTORS,
  istTop,
  LSTAR_VA_LO,
  M2P_VA_HI,
  M2P_VA_LO,
  PORT_EXCEPTION,
  PORT_STORES_DONE,
  PORT_SYSCALL,
  PORT_SYSCALL32,
  PROBE_CPUID,
  PROBE_RDTSC,
  PROBE_VA_HI,
  PROBE_VA_LO,
  RESUME_PAGES,
  RING0_CS,
  RING0_SS,
  STUBS_VA_LO,
  TSS_SELECTOR,
  USER_GATES,
  windowIstVaLo,
  windowResumeVaLo,
  windowStackTopVaLo,
  windowTssVaLo,
} from './hypervisor-area.ts';
import { lockRecord, RECORD_WORDS, REGISTRY, unlockRecord } from './registry.ts';
import type { KvmDomainHandle } from './vm.ts';
import { isVmClosed, releaseVcpu } from './vm.ts';

// Word indexes of the vCPU block.
const GPR = VCPU.gpr / 4;
const RIP = VCPU.rip / 4;
const RFLAGS = VCPU.rflags / 4;
const FS_BASE = VCPU.fsBase / 4;
const GS_BASE = VCPU.gsBase / 4;
const CS = VCPU.cs / 4;
const SS = VCPU.ss / 4;
const DS = VCPU.ds / 4;
const ES = VCPU.es / 4;
const FS = VCPU.fs / 4;
const GS = VCPU.gs / 4;
const CR2 = VCPU.cr2 / 4;
const EXIT_VECTOR = VCPU.exitVector / 4;
const EXIT_ERROR_CODE = VCPU.exitErrorCode / 4;
const EXIT_DETAIL = VCPU.exitDetail / 4;
const USER_MODE = VCPU.userMode / 4;
const KERNEL_ROOT = VCPU.kernelRoot / 4;
const USER_ROOT = VCPU.userRoot / 4;
const CR0_TS_WORD = VCPU.cr0Ts / 4;
const CR4_WORD = VCPU.cr4 / 4;
const XCR0 = VCPU.xcr0 / 4;
const DR = VCPU.dr / 4;
const LDT_BASE = VCPU.ldtBase / 4;
const LDT_ENTRIES = VCPU.ldtEntries / 4;
const GDT_ENTRIES = VCPU.gdtEntries / 4;
const GDT_FRAMES = VCPU.gdtFrames / 4;
const FLAGS = VCPU.flags / 4;
const IN_GUEST = VCPU.inGuest / 4;
const EXIT_COUNT = VCPU.exitCount / 4;
const RSP_WORD = GPR + 4 * 2;

/** exitDetail of EXIT_INTERNAL_ERROR: one of these in the top byte, more in the rest. `describeError` says it in words. */
export const DETAIL_KVM_EXIT = 0x01000000;
export const DETAIL_ERRNO = 0x02000000;
export const DETAIL_RING0_FAULT = 0x03000000;
export const DETAIL_BAD_PORT = 0x04000000;
export const DETAIL_BAD_ROOT = 0x05000000;
export const DETAIL_MMIO = 0x06000000;
export const DETAIL_LIVELOCK = 0x07000000;
export const DETAIL_CLOSED = 0x08000000;

/** Words 3 and 4 of struct kvm_segment (see abi.ts) without selector, for flat segments. */
const CODE_W3 = 0x010b0000;
const DATA_W3 = 0x01030000;
const CODE64_DPL3_W4 = 0x01010003;
const FLAT32_DPL3_W4 = 0x00010103;
const CODE64_DPL0_W4 = 0x01010000;
const DATA_DPL0_W4 = 0x00010100;
const UNUSABLE_W5 = 0x00010000;

/** Vectors whose exception pushes an error code: 8, 10-14, 17, 21, 29, 30. Source: AMD64 APM vol. 2, table 8-1. */
const ERROR_CODE_VECTORS = 0x60227d00;
const VECTOR_DB = 1;
const VECTOR_GP = 13;
const VECTOR_PF = 14;
const VECTOR_BP = 3;
const VECTOR_OF = 4;
const VECTOR_UD = 6;
const RFLAGS_IF = 0x200;
const RFLAGS_OF = 0x800;
const RFLAGS_RF = 0x10000;

/** `lock or qword [r15 + disp32], imm32 0` is these 4 bytes, disp32, imm32. */
const TOUCH_OPCODE = 0x8f8149f0;
const TOUCH_WORDS = 3;
/** mov rax,cr3; mov cr3,rax; pop r15; pop rax; iretq */
const TAIL_FLUSH = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
const TAIL_RESUME = [0x41, 0x5f, 0x58, 0x48, 0xcf];
/** out PORT_STORES_DONE, al; hlt */
const TAIL_OUT = [0xe6, PORT_STORES_DONE, 0xf4];
/** Page-table stores that one resume takes; the rest of the resume pages is for area stores and the tail. */
const TOUCHES_MAX = Math.floor((RESUME_PAGES * 4096 - 1024) / (TOUCH_WORDS * 4));
const AREA_TOUCHES_MAX = 16;
/** KVM_RUN calls in a row that end in ring 0 with nothing done. */
const RERUNS_MAX = 100_000;
/** Frame of the resume code: r15, rax, rip, cs, rflags, rsp, ss. */
const RESUME_FRAME_BYTES = 7 * 8;
const TSC_PROBES = 5;
/** ebx, ecx, edx of leaf 0. */
const GENUINE_INTEL: readonly number[] = [0x756e6547, 0x6c65746e, 0x49656e69];
/** Linux's user data selector, which such a host has in its own GDT. */
const HOST_DATA_SELECTOR = 0x2b;

/** Word offsets in kvm_run of the general registers, in the block's order. */
const RUN_GPR_W = Int32Array.from(KVM_REGS_SLOT, (slot) => RUN_REGS_W + slot * 2);

export interface CpuidEntry {
  readonly leaf: number;
  readonly subleaf: number;
  /** The entry answers for its subleaf only. */
  readonly subleafMatters: boolean;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

export class KvmVcpu implements Engine {
  readonly facts: EngineFacts;
  readonly #host: Host;
  readonly #handle: KvmDomainHandle;
  readonly #vcpuId: number;
  readonly #registry: Int32Array;
  readonly fd: number;
  readonly #window: VcpuWindow;
  /** The vCPU block. */
  readonly #b: Uint32Array;
  readonly #bi: Int32Array;
  /** The kvm_run page. */
  readonly #r: Uint32Array;
  readonly #r8: Uint8Array;
  readonly #mem: Uint32Array;
  /** The hypervisor area. */
  readonly #a: Uint32Array;
  readonly #a8: Uint8Array;
  readonly #rootFrames: number;
  readonly #stackTopLo: number;
  readonly #stackTopWord: number;
  readonly #resumeLo: number;
  readonly #resumeWord: number;
  readonly #cr4Base: number;
  readonly #timer: number;
  readonly #debugRegisters = new Uint32Array(DEBUGREGS_BYTES / 4);
  readonly #debugRegistersAddress: number;
  #open = true;
  /** Page-table stores written as code into the resume pages. */
  #touches = 0;
  #lastTouch = -1;
  readonly #areaTouches = new Uint32Array(AREA_TOUCHES_MAX);
  #areaTouchCount = 0;
  #flushPending = false;
  #lastRootLo = 0;
  #lastRootHi = 0;
  #startLo = 0;
  #iretLo = 0;
  readonly #cpuidAnswers = new Map<number, CpuidResult>();
  #deadlineNs = 0;
  #armedNs = 0;
  #error = '';
  /** What stands in kvm_run's segment registers, as the block knew it last. */
  #ds = -1;
  #es = -1;
  #fs = -1;
  #gs = -1;

  constructor(handle: KvmDomainHandle, machine: MachineMemory, block: VcpuBlock) {
    const host = requireHost();
    const vcpuId = block.vcpuId;
    const window = handle.area.windows[vcpuId];
    if (window === undefined) throw new RangeError(`vCPU ${vcpuId} of a KVM domain with ${handle.vcpus}`);
    this.facts = handle.facts;
    this.#host = host;
    this.#handle = handle;
    this.#vcpuId = vcpuId;
    this.#window = window;
    this.#b = block.u32;
    this.#bi = block.i32;
    this.#mem = machine.u32;
    this.#a = new Uint32Array(handle.area.memory.buffer);
    this.#a8 = new Uint8Array(handle.area.memory.buffer);
    this.#rootFrames = machine.layout.nameableFrames;
    this.#stackTopLo = windowStackTopVaLo(window);
    this.#stackTopWord = (window.stackOffset + 4096) / 4;
    this.#resumeLo = windowResumeVaLo(window);
    this.#resumeWord = window.resumeOffset / 4;
    this.#debugRegistersAddress = host.addressOf(new Uint8Array(this.#debugRegisters.buffer));

    const registry = new Int32Array(handle.registry);
    this.#registry = registry;
    const record = vcpuId * RECORD_WORDS;
    this.fd = host.ioctl(handle.vmFd, KVM_CREATE_VCPU, vcpuId);
    if (this.fd < 0) throw new Error(`KVM_CREATE_VCPU of vCPU ${vcpuId} failed with errno ${host.errno()}`);
    Atomics.store(registry, record + REGISTRY.fdPlusOne, this.fd + 1);
    const runAddress = host.mmap(handle.runBytes, PROT_READ_WRITE, MAP_SHARED, this.fd);
    if (runAddress === -1) {
      const errno = host.errno();
      releaseVcpu(handle, vcpuId);
      throw new Error(`the kvm_run page of vCPU ${vcpuId} cannot be mapped (errno ${errno})`);
    }
    const run = host.view(runAddress, 4096);
    this.#r = new Uint32Array(run);
    this.#r8 = new Uint8Array(run);
    this.#timer = host.createThreadTimer();
    if (this.#timer >= 0) Atomics.store(registry, record + REGISTRY.timerPlusOne, this.#timer + 1);

    // KVM refuses bits of CR4 that it does not list.
    let cr4 = CR4_BASE;
    if ((supportedCpuidEntry(handle.cpuid, 1).ecx & (1 << 26)) !== 0) cr4 |= CR4_OSXSAVE;
    if ((supportedCpuidEntry(handle.cpuid, 7).ebx & 1) !== 0) cr4 |= CR4_FSGSBASE;
    this.#cr4Base = cr4;

    this.#initialise(runAddress);

    const locked = lockRecord(registry, vcpuId);
    Atomics.store(registry, record + REGISTRY.runAddressLo, runAddress | 0);
    Atomics.store(registry, record + REGISTRY.runAddressHi, Math.floor(runAddress / 2 ** 32));
    Atomics.store(registry, record + REGISTRY.tid, host.gettid());
    if (locked) unlockRecord(registry, vcpuId);
  }

  #initialise(runAddress: number): void {
    const host = this.#host;
    const r = this.#r;
    this.#setCpuid(this.#handle.cpuid);

    host.ioctl(this.fd, KVM_GET_SREGS, runAddress + RUN_SREGS);
    const window = this.#window;
    r[SREGS_TR_W] = windowTssVaLo(window);
    r[SREGS_TR_W + 1] = AREA_VA_HI;
    r[SREGS_TR_W + 2] = 0x67;
    r[SREGS_TR_W + 3] = 0x010b0000 | TSS_SELECTOR;
    r[SREGS_TR_W + 4] = 0;
    r[SREGS_TR_W + 5] = 0;
    r[SREGS_GDT_W] = window.vaLo;
    r[SREGS_GDT_W + 1] = AREA_VA_HI;
    r[SREGS_GDT_W + 2] = 0xffff;
    r[SREGS_IDT_W] = IDT_VA_LO;
    r[SREGS_IDT_W + 1] = AREA_VA_HI;
    r[SREGS_IDT_W + 2] = 0xfff;
    r[SREGS_CR0_W] = CR0_BASE;
    r[SREGS_CR4_W] = this.#cr4Base;
    r[SREGS_EFER_W] = EFER_BASE;
    r[RUN_VALID_REGS_W] = SYNC_ALL;

    // struct kvm_msrs { u32 nmsrs, pad; { u32 index, reserved; u64 data }[] }
    const msrs: readonly (readonly [number, number, number])[] = [
      [MSR_STAR, 0, ((FLAT_CS32 << 16) | RING0_CS) >>> 0],
      [MSR_LSTAR, LSTAR_VA_LO, AREA_VA_HI],
      [MSR_CSTAR, CSTAR_VA_LO, AREA_VA_HI],
      [MSR_SYSCALL_MASK, SYSCALL_MASK, 0],
    ];
    const list = new Uint32Array(2 + msrs.length * 4);
    list[0] = msrs.length;
    msrs.forEach(([index, lo, hi], i) => {
      list.set([index, 0, lo, hi], 2 + i * 4);
    });
    host.ioctl(this.fd, KVM_SET_MSRS, host.addressOf(new Uint8Array(list.buffer)));

    if (this.facts.xcr0Mask !== 0) this.setXcr0(this.facts.xcr0Mask);
    this.descriptorTablesChanged();
    this.#setRoot(AREA_GPA + this.#handle.area.idleRootOffset, 0);
  }

  /** True when KVM took the value. */
  setXcr0(value: number): boolean {
    const xcrs = new Uint32Array(XCRS_BYTES / 4);
    xcrs[0] = 1;
    xcrs[4] = value;
    return this.#host.ioctl(this.fd, KVM_SET_XCRS, this.#host.addressOf(new Uint8Array(xcrs.buffer))) === 0;
  }

  #setCpuid(entries: Uint32Array): boolean {
    const buffer = new Uint32Array(CPUID2_HEADER_WORDS + entries.length);
    buffer[0] = entries.length / CPUID_ENTRY_WORDS;
    buffer.set(entries, CPUID2_HEADER_WORDS);
    if (!this.#handle.interceptsCpuid) {
      // The guest never sees this list, but KVM's emulator asks it: for any vendor but Intel it would run the SYSCALL of 32-bit code
      // and land, at ring 0, at the low half of CSTAR, which is the guest's own code.
      for (let i = CPUID2_HEADER_WORDS; i < buffer.length; i += CPUID_ENTRY_WORDS) {
        if (buffer[i] === 0) buffer.set(GENUINE_INTEL, i + 4);
      }
    }
    return this.#host.ioctl(this.fd, KVM_SET_CPUID2, this.#host.addressOf(new Uint8Array(buffer.buffer))) === 0;
  }

  /** What CPUID answers where KVM intercepts it. Before the first `run` only. False when KVM refuses. */
  setCpuidPolicy(entries: readonly CpuidEntry[]): boolean {
    const words = new Uint32Array(entries.length * CPUID_ENTRY_WORDS);
    entries.forEach((e, i) => {
      const flags = e.subleafMatters ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
      words.set([e.leaf, e.subleaf, flags, e.eax, e.ebx, e.ecx, e.edx], i * CPUID_ENTRY_WORDS);
    });
    return this.#setCpuid(words);
  }

  /**
   * Asks the CPU by CPUID at CPL 3: one KVM does not intercept it there, and what guest code sees is what counts. Where KVM does
   * intercept it, its own list (KVM_GET_SUPPORTED_CPUID) answers. Asked once a leaf.
   */
  cpuid(leaf: number, subleaf: number): CpuidResult {
    const key = leaf * 2 ** 32 + subleaf;
    let result = this.#cpuidAnswers.get(key);
    if (result === undefined) {
      const r = this.#r;
      result = this.runProbe(PROBE_CPUID, leaf, subleaf)
        ? { eax: r[REGS_RAX_W], ebx: r[REGS_RBX_W], ecx: r[REGS_RCX_W], edx: r[REGS_RDX_W] }
        : { eax: 0, ebx: 0, ecx: 0, edx: 0 };
      this.#cpuidAnswers.set(key, result);
    }
    return result;
  }

  // --- segments

  #writeSegment(w: number, selector: number, w3: number, w4: number, w5: number): void {
    const r = this.#r;
    r[w] = 0;
    r[w + 1] = 0;
    r[w + 2] = 0xffffffff;
    r[w + 3] = w3 | selector;
    r[w + 4] = w4;
    r[w + 5] = w5;
  }

  /** Word index in memory 0 of the descriptor of a selector, or -1. */
  #findDescriptor(selector: number): number {
    const b = this.#b;
    const index = selector >> 3;
    if ((selector & 4) !== 0) return this.#findLdtDescriptor(index);
    if (index >= b[GDT_ENTRIES] || index >= GUEST_GDT_PAGES * 512) return -1;
    const frame = b[GDT_FRAMES + (index >> 9)];
    if (frame >= this.#rootFrames) return -1;
    return frame * 1024 + (index & 511) * 2;
  }

  #findLdtDescriptor(index: number): number {
    const b = this.#b;
    if (index >= b[LDT_ENTRIES]) return -1;
    const lo = b[LDT_BASE] + index * 8;
    const vaLo = lo >>> 0;
    const vaHi = (b[LDT_BASE + 1] + (lo > 0xffffffff ? 1 : 0)) >>> 0;
    const frame = this.#walk(b[KERNEL_ROOT], vaLo, vaHi);
    return frame < 0 ? -1 : frame * 1024 + ((vaLo & 0xfff) >> 2);
  }

  /** Frame index in memory 0 that a root maps a VA to by 4 KiB pages, or -1. */
  #walk(root: number, vaLo: number, vaHi: number): number {
    const mem = this.#mem;
    let frame = root;
    for (let level = 3; level >= 0; level--) {
      if (frame < 0 || frame >= this.#rootFrames) return -1;
      const index =
        level === 3
          ? (vaHi >>> 7) & 511
          : level === 2
            ? ((vaHi << 2) | (vaLo >>> 30)) & 511
            : (vaLo >>> (12 + 9 * level)) & 511;
      const word = frame * 1024 + index * 2;
      const lo = mem[word];
      if ((lo & 1) === 0) return -1;
      frame = ((lo >>> 12) | ((mem[word + 1] & 0xfffff) << 20)) - MFN_BASE;
      if (level !== 0 && (lo & 0x80) !== 0) return -1;
    }
    return frame >= 0 && frame < this.#rootFrames ? frame : -1;
  }

  /**
   * Loads kvm_run's segment from the descriptor tables, DPL 3. False when there is no such descriptor of the wanted kind
   * (kind 0 data or readable code, 1 code, 2 writable data).
   */
  #loadSegment(w: number, selector: number, kind: number): boolean {
    const at = this.#findDescriptor(selector);
    if (at < 0) return false;
    const lo = this.#mem[at];
    const hi = this.#mem[at + 1];
    if ((hi & 0x9000) !== 0x9000) return false; // present, not a system segment
    const type = (hi >>> 8) & 15;
    if (kind === 1 ? (type & 8) === 0 : kind === 2 ? (type & 10) !== 2 : (type & 10) === 8) return false;
    const limit = (lo & 0xffff) | (hi & 0xf0000);
    const r = this.#r;
    r[w] = (lo >>> 16) | ((hi & 0xff) << 16) | (hi & 0xff000000);
    r[w + 1] = 0;
    r[w + 2] = (hi & 0x800000) !== 0 ? (limit << 12) | 0xfff : limit;
    r[w + 3] = selector | ((type | 1) << 16) | 0x01000000;
    r[w + 4] = 0x00010003 | (((hi >>> 22) & 1) << 8) | (((hi >>> 21) & 1) << 24);
    r[w + 5] = ((hi >>> 23) & 1) | (((hi >>> 20) & 1) << 8);
    return true;
  }

  #loadCodeSegment(selector: number): boolean {
    if (selector === FLAT_CS64) {
      this.#writeSegment(SREGS_CS_W, selector, CODE_W3, CODE64_DPL3_W4, 1);
      return true;
    }
    if (selector === FLAT_CS32) {
      this.#writeSegment(SREGS_CS_W, selector, CODE_W3, FLAT32_DPL3_W4, 1);
      return true;
    }
    return this.#loadSegment(SREGS_CS_W, selector, 1);
  }

  #loadStackSegment(selector: number): boolean {
    if (selector === FLAT_SS || (selector & 0xfffc) === 0) {
      // A 64-bit PV kernel may believe that it runs at ring 0 with a null SS.
      this.#writeSegment(SREGS_SS_W, FLAT_SS, DATA_W3, FLAT32_DPL3_W4, 1);
      return true;
    }
    return this.#loadSegment(SREGS_SS_W, selector, 2);
  }

  /** A selector that cannot be loaded becomes the null selector, as in Xen. */
  #loadDataSegment(w: number, selector: number): void {
    if (selector === FLAT_SS) this.#writeSegment(w, selector, DATA_W3, FLAT32_DPL3_W4, 1);
    else if ((selector & 0xfffc) === 0) this.#writeSegment(w, selector, 0, 3, UNUSABLE_W5);
    else if (!this.#loadSegment(w, selector, 0)) this.#writeSegment(w, 0, 0, 3, UNUSABLE_W5);
  }

  // --- the run

  #setRoot(lo: number, hi: number): void {
    this.#r[SREGS_CR3_W] = lo;
    this.#r[SREGS_CR3_W + 1] = hi;
    this.#lastRootLo = lo >>> 0;
    this.#lastRootHi = hi;
  }

  /** Writes what follows the touches into the resume pages. */
  #writeTail(resume: boolean): void {
    const a = this.#a8;
    const base = this.#window.resumeOffset;
    let at = base + this.#touches * TOUCH_WORDS * 4;
    for (let i = 0; i < this.#areaTouchCount; i++) {
      const vaLo = this.#areaTouches[i];
      // mov r15, imm64; lock or qword [r15 + 0], 0
      a[at] = 0x49;
      a[at + 1] = 0xbf;
      a[at + 2] = vaLo;
      a[at + 3] = vaLo >>> 8;
      a[at + 4] = vaLo >>> 16;
      a[at + 5] = vaLo >>> 24;
      a[at + 6] = AREA_VA_HI & 0xff;
      a[at + 7] = (AREA_VA_HI >>> 8) & 0xff;
      a[at + 8] = 0xff;
      a[at + 9] = 0xff;
      a[at + 10] = 0xf0;
      a[at + 11] = 0x49;
      a[at + 12] = 0x81;
      a[at + 13] = 0x8f;
      for (let zero = 14; zero < 22; zero++) a[at + zero] = 0;
      at += 22;
    }
    for (let i = 0; i < TAIL_FLUSH.length; i++) a[at + i] = TAIL_FLUSH[i];
    at += TAIL_FLUSH.length;
    const tail = resume ? TAIL_RESUME : TAIL_OUT;
    for (let i = 0; i < tail.length; i++) a[at + i] = tail[i];
    this.#startLo = this.#resumeLo;
    this.#iretLo = this.#resumeLo + (at - base) + 3;
  }

  #enterRing0(rspLo: number): void {
    const r = this.#r;
    this.#writeSegment(SREGS_CS_W, RING0_CS, CODE_W3, CODE64_DPL0_W4, 1);
    this.#writeSegment(SREGS_SS_W, RING0_SS, DATA_W3, DATA_DPL0_W4, 1);
    r[REGS_RIP_W] = this.#startLo;
    r[REGS_RIP_W + 1] = AREA_VA_HI;
    r[REGS_RSP_W] = rspLo;
    r[REGS_RSP_W + 1] = AREA_VA_HI;
    r[REGS_RFLAGS_W] = 2;
    r[REGS_RFLAGS_W + 1] = 0;
    // Middle of the direct map, so that a signed 32-bit displacement reaches all of memory 0.
    r[REGS_R15_W] = 0x80000000;
    r[REGS_R15_W + 1] = DIRECT_MAP_VA_HI;
  }

  run(): ExitKind {
    const b = this.#b;
    const bi = this.#bi;
    const r = this.#r;
    if (!this.#usable()) return this.#fail(DETAIL_CLOSED, 'the vCPU or its domain is closed');

    // The root.
    let frame = b[KERNEL_ROOT];
    if (b[USER_MODE] !== 0 && b[USER_ROOT] !== NO_ROOT) frame = b[USER_ROOT];
    if (frame >= this.#rootFrames) return this.#fail(DETAIL_BAD_ROOT, 'the root page table is no frame of the domain');
    const rootLo = (frame << PAGE_SHIFT) >>> 0;
    const rootHi = (frame + MFN_BASE) >>> (32 - PAGE_SHIFT);
    const rootChanges = rootLo !== this.#lastRootLo || rootHi !== this.#lastRootHi;

    // What the CPU would refuse in an IRET.
    const ripHi = b[RIP + 1];
    if (ripHi >>> 15 !== 0 && ripHi >>> 15 !== 0x1ffff) return this.#refuse(0);
    const cs = (b[CS] & 0xffff) | 3;
    const ss = (b[SS] & 0xffff) | 3;
    if (!this.#loadCodeSegment(cs)) return this.#refuse(cs & 0xfffc);
    if (!this.#loadStackSegment(ss)) return this.#refuse(ss & 0xfffc);

    if (!this.#handle.interceptsCpuid && r[SREGS_CS_W + 4] >>> 24 === 0) {
      if ((b[DS] & 0xfffc) === 0) b[DS] = HOST_DATA_SELECTOR;
      if ((b[ES] & 0xfffc) === 0) b[ES] = HOST_DATA_SELECTOR;
    }
    for (let i = 0; i < 16; i++) {
      const w = RUN_GPR_W[i];
      r[w] = b[GPR + i * 2];
      r[w + 1] = b[GPR + i * 2 + 1];
    }
    const rflags = (b[RFLAGS] & ~RFLAGS_FORCED_OFF) | RFLAGS_FORCED_ON;
    if (b[DS] !== this.#ds) this.#loadDataSegment(SREGS_DS_W, b[DS] & 0xffff);
    if (b[ES] !== this.#es) this.#loadDataSegment(SREGS_ES_W, b[ES] & 0xffff);
    if (b[FS] !== this.#fs) this.#loadDataSegment(SREGS_FS_W, b[FS] & 0xffff);
    if (b[GS] !== this.#gs) this.#loadDataSegment(SREGS_GS_W, b[GS] & 0xffff);
    this.#ds = this.#es = this.#fs = this.#gs = -1;
    r[SREGS_FS_W] = b[FS_BASE];
    r[SREGS_FS_W + 1] = b[FS_BASE + 1];
    r[SREGS_GS_W] = b[GS_BASE];
    r[SREGS_GS_W + 1] = b[GS_BASE + 1];
    r[SREGS_CR0_W] = CR0_BASE | (b[CR0_TS_WORD] & CR0_TS);
    r[SREGS_CR4_W] = this.#cr4Base | (b[CR4_WORD] & (CR4_TSD | CR4_DE));
    r[SREGS_CR3_W] = rootLo;
    r[SREGS_CR3_W + 1] = rootHi;

    const viaRing0 = this.#touches !== 0 || this.#areaTouchCount !== 0 || (this.#flushPending && !rootChanges);
    if (viaRing0) {
      const a = this.#a;
      const f = this.#stackTopWord - RESUME_FRAME_BYTES / 4;
      a[f] = b[GPR + 30]; // r15
      a[f + 1] = b[GPR + 31];
      a[f + 2] = b[GPR]; // rax
      a[f + 3] = b[GPR + 1];
      a[f + 4] = b[RIP];
      a[f + 5] = ripHi;
      // IRET takes its descriptors from the tables; a code segment that is Xen's by value must be Xen's by selector.
      a[f + 6] = cs;
      a[f + 7] = 0;
      a[f + 8] = rflags;
      a[f + 9] = 0;
      a[f + 10] = b[RSP_WORD];
      a[f + 11] = b[RSP_WORD + 1];
      a[f + 12] = (ss & 0xfffc) === 0 ? FLAT_SS : ss;
      a[f + 13] = 0;
      this.#writeTail(true);
      this.#enterRing0(this.#stackTopLo - RESUME_FRAME_BYTES);
    } else {
      r[REGS_RIP_W] = b[RIP];
      r[REGS_RIP_W + 1] = ripHi;
      r[REGS_RFLAGS_W] = rflags;
      r[REGS_RFLAGS_W + 1] = 0;
    }
    if (this.#deadlineNs !== this.#armedNs) {
      this.#armedNs = this.#deadlineNs;
      if (this.#timer >= 0) this.#host.armTimer(this.#timer, this.#deadlineNs);
    }

    // A kicker sets a flag first and immediate_exit after it: whoever clears immediate_exit must look at the flags afterwards.
    this.#r8[RUN_IMMEDIATE_EXIT] = 0;
    Atomics.store(bi, IN_GUEST, 1);
    if (Atomics.load(bi, FLAGS) !== 0) {
      this.#left();
      this.#keepSelectors();
      return EXIT_INTERRUPTED;
    }
    r[RUN_DIRTY_REGS_W] = SYNC_REGS_AND_SREGS;
    let failed = this.#host.ioctl(this.fd, KVM_RUN, 0);
    let reruns = 0;
    while (failed !== 0) {
      if (this.#host.errno() !== EINTR) {
        this.#left();
        return this.#fail(DETAIL_ERRNO | this.#host.errno(), `KVM_RUN failed with errno ${this.#host.errno()}`);
      }
      const ring0 = (r[SREGS_CS_W + 3] & 3) === 0;
      const queued = (r[RUN_EVENTS_W] & RUN_EVENTS_EXCEPTION_MASK) !== 0;
      if (!queued) {
        if (!ring0) break;
        const at = r[REGS_RIP_W] - this.#resumeLo;
        if (viaRing0 && at >= 0 && at < RESUME_PAGES * 4096 && r[REGS_RIP_W + 1] === AREA_VA_HI) {
          // Not one guest instruction has run: the block still says it all, and what is pending stays pending.
          this.#left();
          this.#lastRootLo = rootLo;
          this.#lastRootHi = rootHi;
          this.#keepSelectors();
          return EXIT_INTERRUPTED;
        }
      }
      // An exception is on its way to its stub. It must arrive: changing registers now would give it to the wrong context.
      if (++reruns > RERUNS_MAX) {
        this.#left();
        return this.#fail(DETAIL_LIVELOCK, 'KVM_RUN makes no progress');
      }
      this.#r8[RUN_IMMEDIATE_EXIT] = 0;
      // A guest that wrote to the engine's area by page tables of its own may loop in ring 0: its end waits for nothing.
      if ((Atomics.load(bi, FLAGS) & FLAG_STOP) !== 0) {
        this.#left();
        return EXIT_INTERRUPTED;
      }
      failed = this.#host.ioctl(this.fd, KVM_RUN, 0);
    }
    this.#left();
    this.#lastRootLo = rootLo;
    this.#lastRootHi = rootHi;
    this.#touches = 0;
    this.#lastTouch = -1;
    this.#areaTouchCount = 0;
    this.#flushPending = false;

    if (failed !== 0) {
      this.#saveRegisters();
      b[RSP_WORD] = r[REGS_RSP_W];
      b[RSP_WORD + 1] = r[REGS_RSP_W + 1];
      b[RIP] = r[REGS_RIP_W];
      b[RIP + 1] = r[REGS_RIP_W + 1];
      b[RFLAGS] = r[REGS_RFLAGS_W];
      b[RFLAGS + 1] = 0;
      b[CS] = r[SREGS_CS_W + 3] & 0xffff;
      b[SS] = r[SREGS_SS_W + 3] & 0xffff;
      // The signal came between SYSCALL and the page fault that shows it: entering again with IF set would make a jump of it.
      const atStub =
        r[REGS_RIP_W + 1] === AREA_VA_HI && (r[REGS_RIP_W] === LSTAR_VA_LO || r[REGS_RIP_W] === CSTAR_VA_LO);
      if (atStub && (r[REGS_RFLAGS_W] & RFLAGS_IF) === 0) {
        this.#saveSyscallReturn();
        return EXIT_SYSCALL;
      }
      return EXIT_INTERRUPTED;
    }
    if (r[RUN_EXIT_REASON_W] !== KVM_EXIT_IO) return this.#failByExitReason();
    const port = r[RUN_EXIT_W] >>> 16;
    if (port === PORT_EXCEPTION) return this.#exceptionExit();
    if (port === PORT_SYSCALL || port === PORT_SYSCALL32) {
      this.#saveRegisters();
      b[RSP_WORD] = r[REGS_RSP_W];
      b[RSP_WORD + 1] = r[REGS_RSP_W + 1];
      this.#saveSyscallReturn();
      if (port === PORT_SYSCALL32) b[CS] = FLAT_CS32;
      else if (cs === FLAT_CS32) b[CS] = FLAT_CS64;
      return EXIT_SYSCALL;
    }
    return this.#fail(DETAIL_BAD_PORT | port, `ring 0 wrote to port ${port}`);
  }

  /** kvm_run is still mapped. */
  #usable(): boolean {
    return this.#open && !isVmClosed(this.#registry, this.#handle.vcpus);
  }

  /** The guest is left: tell whoever waits for it. */
  #left(): void {
    const bi = this.#bi;
    Atomics.store(bi, IN_GUEST, 0);
    Atomics.add(bi, EXIT_COUNT, 1);
    Atomics.notify(bi, IN_GUEST);
  }

  /** The block's data selectors are those in kvm_run. */
  #keepSelectors(): void {
    const b = this.#b;
    this.#ds = b[DS];
    this.#es = b[ES];
    this.#fs = b[FS];
    this.#gs = b[GS];
  }

  /** All but rsp, rip, rflags, cs and ss, which may stand in an exception frame. */
  #saveRegisters(): void {
    const b = this.#b;
    const r = this.#r;
    for (let i = 0; i < 16; i++) {
      if (i === 4) continue;
      const w = RUN_GPR_W[i];
      b[GPR + i * 2] = r[w];
      b[GPR + i * 2 + 1] = r[w + 1];
    }
    b[FS_BASE] = r[SREGS_FS_W];
    b[FS_BASE + 1] = r[SREGS_FS_W + 1];
    b[GS_BASE] = r[SREGS_GS_W];
    b[GS_BASE + 1] = r[SREGS_GS_W + 1];
    b[DS] = r[SREGS_DS_W + 3] & 0xffff;
    b[ES] = r[SREGS_ES_W + 3] & 0xffff;
    b[FS] = r[SREGS_FS_W + 3] & 0xffff;
    b[GS] = r[SREGS_GS_W + 3] & 0xffff;
    this.#keepSelectors();
  }

  #saveSyscallReturn(): void {
    const b = this.#b;
    const r = this.#r;
    b[RIP] = r[REGS_RCX_W];
    b[RIP + 1] = r[REGS_RCX_W + 1];
    b[RFLAGS] = r[REGS_R11_W];
    b[RFLAGS + 1] = 0;
  }

  #exceptionExit(): ExitKind {
    const b = this.#b;
    const r = this.#r;
    const a = this.#a;
    const stub = r[REGS_RIP_W] - STUBS_VA_LO;
    const vector = stub >> 4;
    if (stub < 0 || vector > 255 || r[REGS_RIP_W + 1] !== AREA_VA_HI) {
      return this.#fail(DETAIL_RING0_FAULT, 'an exception outside the stubs');
    }
    const hasErrorCode = vector < 32 && ((ERROR_CODE_VECTORS >>> vector) & 1) !== 0;
    const frameBytes = hasErrorCode ? 48 : 40;
    let topLo = this.#stackTopLo;
    let topWord = this.#stackTopWord;
    const ist = vector === VECTOR_DB ? 0 : vector < 32 ? IST_VECTORS.indexOf(vector) : -1;
    if (ist >= 0) {
      topLo = windowIstVaLo(this.#window) + istTop(ist);
      topWord = (this.#window.istOffset + istTop(ist)) / 4;
    }
    const rspLo = r[REGS_RSP_W];
    if (r[REGS_RSP_W + 1] !== AREA_VA_HI || rspLo > topLo - frameBytes || rspLo < topLo - 1024) {
      return this.#fail(
        DETAIL_RING0_FAULT | vector,
        `exception ${vector} on a stack at ${hex(r[REGS_RSP_W + 1], rspLo)}`,
      );
    }
    let f = topWord - (topLo - rspLo) / 4;
    let errorCode = 0;
    if (hasErrorCode) {
      errorCode = a[f];
      f += 2;
    }
    const frameRip = a[f];
    const frameCs = a[f + 2] & 0xffff;
    const inArea = a[f + 1] === AREA_VA_HI;
    if ((frameCs & 3) === 0) {
      if (inArea && frameRip === this.#iretLo) return this.#refuse(errorCode);
      if (!(inArea && vector === VECTOR_DB && (frameRip === LSTAR_VA_LO || frameRip === CSTAR_VA_LO))) {
        return this.#fail(
          DETAIL_RING0_FAULT | vector,
          `exception ${vector} in ring 0 at ${hex(a[f + 1], frameRip)}, error code ${errorCode.toString(16)}, ` +
            `cr2 ${hex(r[SREGS_CR2_W + 1], r[SREGS_CR2_W])}`,
        );
      }
    }
    this.#saveRegisters();
    b[RSP_WORD] = a[f + 6];
    b[RSP_WORD + 1] = a[f + 7];
    if ((frameCs & 3) === 0) {
      // A trap that SYSCALL under single step left for the entry stub: the call counts.
      this.#saveSyscallReturn();
      return EXIT_SYSCALL;
    }
    b[CS] = frameCs;
    b[SS] = a[f + 8] & 0xffff;
    if (vector === VECTOR_PF) {
      if (inArea && (a[f + 4] & RFLAGS_IF) === 0 && (frameRip === LSTAR_VA_LO || frameRip === CSTAR_VA_LO)) {
        this.#saveSyscallReturn();
        return EXIT_SYSCALL;
      }
      b[CR2] = r[SREGS_CR2_W];
      b[CR2 + 1] = r[SREGS_CR2_W + 1];
    } else if (vector === VECTOR_DB) {
      this.#saveDebugStatus();
    }
    b[RIP] = frameRip;
    b[RIP + 1] = a[f + 1];
    b[RFLAGS] = a[f + 4];
    b[RFLAGS + 1] = 0;
    b[EXIT_VECTOR] = vector;
    b[EXIT_ERROR_CODE] = errorCode;
    return vector === VECTOR_UD && !this.#handle.interceptsCpuid ? this.#softwareInterrupt() : EXIT_EXCEPTION;
  }

  /**
   * An #UD at INT n becomes the interrupt where its gate allows CPL 3, and #GP(n * 8 + 2) elsewhere; at SYSCALL of 32-bit code it
   * becomes the call, as on an AMD CPU.
   */
  #softwareInterrupt(): ExitKind {
    const b = this.#b;
    const opcode = this.#codeByte(0);
    if (opcode === 0xcc || (opcode === 0xce && !this.#codeSegmentIsLong(b[CS]) && (b[RFLAGS] & RFLAGS_OF) !== 0)) {
      this.#skip(1);
      b[EXIT_VECTOR] = opcode === 0xcc ? VECTOR_BP : VECTOR_OF;
      return EXIT_EXCEPTION;
    }
    if (opcode !== 0xcd && opcode !== 0x0f) return EXIT_EXCEPTION;
    const operand = this.#codeByte(1);
    if (opcode === 0x0f) {
      if (operand !== 0x05 || this.#codeSegmentIsLong(b[CS])) return EXIT_EXCEPTION;
      this.#skip(2);
      b[GPR + RCX * 2] = b[RIP];
      b[GPR + RCX * 2 + 1] = 0;
      b[GPR + R11 * 2] = b[RFLAGS];
      b[GPR + R11 * 2 + 1] = 0;
      return EXIT_SYSCALL;
    }
    if (operand < 0) return EXIT_EXCEPTION;
    if (USER_GATES.includes(operand)) {
      this.#skip(2);
      b[EXIT_VECTOR] = operand;
      b[EXIT_ERROR_CODE] = 0;
    } else {
      b[EXIT_VECTOR] = VECTOR_GP;
      b[EXIT_ERROR_CODE] = operand * 8 + 2;
    }
    return EXIT_EXCEPTION;
  }

  /** Past an instruction that is not run again. */
  #skip(bytes: number): void {
    const b = this.#b;
    const rip = b[RIP] + bytes;
    b[RIP] = rip;
    if (rip > 0xffffffff) b[RIP + 1] = b[RIP + 1] + 1;
    b[RFLAGS] = b[RFLAGS] & ~RFLAGS_RF;
  }

  #codeSegmentIsLong(selector: number): boolean {
    if (selector === FLAT_CS64) return true;
    if (selector === FLAT_CS32) return false;
    const at = this.#findDescriptor(selector);
    return at < 0 || (this.#mem[at + 1] & 0x200000) !== 0;
  }

  /** The byte at rip + index (index below 4096), or -1. */
  #codeByte(index: number): number {
    const b = this.#b;
    const sum = b[RIP] + index;
    const root = b[USER_MODE] !== 0 && b[USER_ROOT] !== NO_ROOT ? b[USER_ROOT] : b[KERNEL_ROOT];
    const vaLo = sum >>> 0;
    const frame = this.#walk(root, vaLo, sum > 0xffffffff ? (b[RIP + 1] + 1) >>> 0 : b[RIP + 1]);
    if (frame < 0) return -1;
    const offset = frame * 4096 + (vaLo & 0xfff);
    return (this.#mem[offset >>> 2] >>> ((offset & 3) * 8)) & 0xff;
  }

  /** #GP on the way into the guest, as if IRET had failed: the block stays as it was. */
  #refuse(errorCode: number): ExitKind {
    this.#ds = this.#es = this.#fs = this.#gs = -1;
    this.#b[EXIT_VECTOR] = VECTOR_GP;
    this.#b[EXIT_ERROR_CODE] = errorCode;
    return EXIT_EXCEPTION;
  }

  #saveDebugStatus(): void {
    const d = this.#debugRegisters;
    this.#host.ioctl(this.fd, KVM_GET_DEBUGREGS, this.#debugRegistersAddress);
    this.#b[DR + 12] = d[8];
    this.#b[DR + 13] = 0;
  }

  #fail(detail: number, message: string): ExitKind {
    this.#b[EXIT_DETAIL] = detail;
    this.#error = message;
    return EXIT_INTERNAL_ERROR;
  }

  #failByExitReason(): ExitKind {
    const r = this.#r;
    const reason = r[RUN_EXIT_REASON_W];
    const at = `rip ${hex(r[REGS_RIP_W + 1], r[REGS_RIP_W])}`;
    switch (reason) {
      case KVM_EXIT_MMIO:
        return this.#fail(
          DETAIL_MMIO,
          `access to guest-physical ${hex(r[RUN_EXIT_W + 1], r[RUN_EXIT_W])}, which is no memory, ${at}`,
        );
      case KVM_EXIT_SHUTDOWN:
        return this.#fail(DETAIL_KVM_EXIT | reason, `triple fault, ${at}`);
      case KVM_EXIT_FAIL_ENTRY:
        return this.#fail(
          DETAIL_KVM_EXIT | reason,
          `the CPU refuses the guest state (${r[RUN_EXIT_W].toString(16)}), ${at}`,
        );
      case KVM_EXIT_INTERNAL_ERROR:
        return this.#fail(DETAIL_KVM_EXIT | reason, `KVM internal error ${r[RUN_EXIT_W]}, ${at}`);
      default:
        return this.#fail(DETAIL_KVM_EXIT | reason, `KVM exit ${reason}, ${at}`);
    }
  }

  /** The last EXIT_INTERNAL_ERROR in words. */
  describeError(): string {
    return this.#error;
  }

  // --- translations

  flushTlb(): void {
    this.#flushPending = true;
  }

  invalidatePage(_vaLo: number, _vaHi: number): void {
    this.#flushPending = true;
  }

  pageTableStored(offset: number): void {
    if (offset === this.#lastTouch) return;
    if (this.#touches === TOUCHES_MAX) this.#showStores();
    const w = this.#resumeWord + this.#touches * TOUCH_WORDS;
    const a = this.#a;
    a[w] = TOUCH_OPCODE;
    a[w + 1] = (offset & ~7) - 0x80000000;
    a[w + 2] = 0;
    this.#touches++;
    this.#lastTouch = offset;
  }

  prepareRoot(offset: number): void {
    const entry = offset + HOLE_SLOT * 8;
    const mem = this.#mem;
    if (mem[entry / 4] === this.#handle.area.holeEntryLo && mem[entry / 4 + 1] === 0) return;
    mem[entry / 4 + 1] = 0;
    mem[entry / 4] = this.#handle.area.holeEntryLo;
    this.pageTableStored(entry);
  }

  /** Runs the touches now, on the engine's own root; the guest's state stands in the block. */
  #showStores(): void {
    if (!this.#usable()) {
      this.#touches = 0;
      this.#areaTouchCount = 0;
      return;
    }
    this.#writeTail(false);
    this.#enterRing0(this.#stackTopLo - RESUME_FRAME_BYTES);
    // When it fails the vCPU is broken, and the next run says so; the list must not overflow.
    this.#runAlone();
    this.#touches = 0;
    this.#lastTouch = -1;
    this.#areaTouchCount = 0;
    this.#flushPending = true;
  }

  /** Runs engine code (already in the registers) on the idle root until it writes to a port. False and an error when it does not. */
  #runAlone(): boolean {
    const r = this.#r;
    this.#setRoot(AREA_GPA + this.#handle.area.idleRootOffset, 0);
    r[RUN_DIRTY_REGS_W] = SYNC_REGS_AND_SREGS;
    for (let runs = 0; runs < RERUNS_MAX; runs++) {
      this.#r8[RUN_IMMEDIATE_EXIT] = 0;
      if (this.#host.ioctl(this.fd, KVM_RUN, 0) === 0) {
        if (r[RUN_EXIT_REASON_W] === KVM_EXIT_IO) return true;
        this.#failByExitReason();
        return false;
      }
      if (this.#host.errno() !== EINTR) break;
    }
    this.#fail(DETAIL_ERRNO | this.#host.errno(), `KVM_RUN failed with errno ${this.#host.errno()}`);
    return false;
  }

  // --- other state

  descriptorTablesChanged(): void {
    if (!this.#usable()) return;
    const b = this.#b;
    const r = this.#r;
    const a = this.#a;
    const entries = b[GDT_ENTRIES];
    for (let i = 0; i < GUEST_GDT_PAGES; i++) {
      const frame = b[GDT_FRAMES + i];
      const mapped = i * 512 < entries && frame < this.#rootFrames;
      const lo = mapped ? ((frame << PAGE_SHIFT) | 0x63) >>> 0 : AREA_GPA + this.#handle.area.zeroPageOffset + 0x61;
      const hi = (mapped ? (frame + MFN_BASE) >>> (32 - PAGE_SHIFT) : 0) + 0x80000000;
      const w = (this.#window.gdtEntryOffset + i * 8) / 4;
      if (a[w] === lo && a[w + 1] === hi) continue;
      a[w] = lo;
      a[w + 1] = hi;
      if (this.#areaTouchCount === AREA_TOUCHES_MAX) this.#showStores();
      this.#areaTouches[this.#areaTouchCount++] = this.#window.gdtEntryVaLo + i * 8;
    }
    const ldtEntries = b[LDT_ENTRIES];
    r[SREGS_LDT_W] = b[LDT_BASE];
    r[SREGS_LDT_W + 1] = b[LDT_BASE + 1];
    r[SREGS_LDT_W + 2] = ldtEntries === 0 ? 0 : ldtEntries * 8 - 1;
    // Type 2 is an LDT; the selector is never loaded, only the cache counts.
    r[SREGS_LDT_W + 3] = ldtEntries === 0 ? 0x00020000 : 0x01020000 | 0xe050;
    r[SREGS_LDT_W + 4] = 0;
    r[SREGS_LDT_W + 5] = ldtEntries === 0 ? UNUSABLE_W5 : 0;
  }

  xcr0Changed(): void {
    if (this.facts.xcr0Mask !== 0) this.setXcr0((this.#b[XCR0] & this.facts.xcr0Mask) | 1);
  }

  debugRegistersChanged(): void {
    const b = this.#b;
    const d = this.#debugRegisters;
    d.fill(0);
    for (let i = 0; i < 8; i++) d[i] = b[DR + i];
    d[8] = b[DR + 12];
    d[10] = b[DR + 14];
    this.#host.ioctl(this.fd, KVM_SET_DEBUGREGS, this.#debugRegistersAddress);
  }

  setRunDeadline(deadlineNs: number): void {
    this.#deadlineNs = deadlineNs;
  }

  /** Runs code of the probe page at CPL 3 until its INT3. The results are in rax and rdx of kvm_run. */
  runProbe(offset: number, eax = 0, ecx = 0): boolean {
    if (!this.#usable()) return false;
    const r = this.#r;
    r[REGS_RAX_W] = eax;
    r[REGS_RAX_W + 1] = 0;
    r[REGS_RCX_W] = ecx;
    r[REGS_RCX_W + 1] = 0;
    this.#writeSegment(SREGS_CS_W, FLAT_CS64, CODE_W3, CODE64_DPL3_W4, 1);
    this.#writeSegment(SREGS_SS_W, FLAT_SS, DATA_W3, FLAT32_DPL3_W4, 1);
    r[REGS_RIP_W] = PROBE_VA_LO + offset;
    r[REGS_RIP_W + 1] = PROBE_VA_HI;
    r[REGS_RFLAGS_W] = RFLAGS_FORCED_ON;
    r[REGS_RFLAGS_W + 1] = 0;
    r[SREGS_CR0_W] = CR0_BASE;
    r[SREGS_CR4_W] = this.#cr4Base;
    return this.#runAlone() && r[REGS_RIP_W] >> 4 === (STUBS_VA_LO >> 4) + 3;
  }

  /** What the probe left in eax and edx. */
  probeEax(): number {
    return this.#r[REGS_RAX_W];
  }

  probeEdx(): number {
    return this.#r[REGS_RDX_W];
  }

  readTsc(): { tscLo: number; tscHi: number; atNs: number } {
    let narrowest = Number.POSITIVE_INFINITY;
    const result = { tscLo: 0, tscHi: 0, atNs: monotonicNs() };
    if (!this.#usable()) return result;
    // The root changes: whatever was pending for the old one is settled by loading it again.
    for (let i = 0; i < TSC_PROBES; i++) {
      const before = monotonicNs();
      const read = this.runProbe(PROBE_RDTSC);
      const after = monotonicNs();
      if (read && after - before < narrowest) {
        narrowest = after - before;
        result.tscLo = this.probeEax();
        result.tscHi = this.probeEdx();
        result.atNs = before + narrowest / 2;
      }
    }
    return result;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    releaseVcpu(this.#handle, this.#vcpuId);
  }
}

function supportedCpuidEntry(list: Uint32Array, leaf: number): CpuidResult {
  for (let i = 0; i < list.length; i += CPUID_ENTRY_WORDS) {
    if (list[i] === leaf) return { eax: list[i + 3], ebx: list[i + 4], ecx: list[i + 5], edx: list[i + 6] };
  }
  return { eax: 0, ebx: 0, ecx: 0, edx: 0 };
}

function hex(hi: number, lo: number): string {
  return hi.toString(16).padStart(8, '0') + lo.toString(16).padStart(8, '0');
}

/** To be called in the thread that will run the vCPU; once for each vCPU of a domain. Throws when KVM refuses. */
export function openKvmVcpu(handle: KvmDomainHandle, machine: MachineMemory, block: VcpuBlock): KvmVcpu {
  return new KvmVcpu(handle, machine, block);
}

/** Where the M2P is shown, for the facts. */
export const M2P_VA = { lo: M2P_VA_LO, hi: M2P_VA_HI } as const;
