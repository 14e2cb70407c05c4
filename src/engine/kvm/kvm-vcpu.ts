/**
 * One vCPU on KVM: runs the guest from its vCPU block, one KVM_RUN and no other system call an exit.
 *
 * Entry. Registers go from the block into kvm_run's synchronised registers. With nothing pending the vCPU starts directly at CPL 3.
 * With page-table stores or a TLB flush pending it starts at ring 0 in the resume code (resume-code.ts).
 *
 * Exit. Stubs at ring 0 hand exceptions and system calls over with `out`. The block stays untouched from entry until an exit is
 * understood, so that a run interrupted inside the resume code is simply forgotten and made again.
 *
 * Peculiarities of a KVM without hardware virtualisation (PVM), which ordinary ones do not have:
 *   - SYSCALL arrives as a page fault at LSTAR. Its frame has IF clear, which CPL 3 cannot do otherwise: a jump to LSTAR has it set.
 *   - INT n other than INT 3 and INT 4, and all of them in 32-bit code, is #UD. software-interrupt.ts makes of it what the CPU would
 *     have done.
 *   - SYSCALL of 32-bit code is #UD: software-interrupt.ts again.
 *   - 64-bit code loads its own 0x2b into a data segment register without KVM learning of it; 32-bit code then has a null segment.
 *   - CR0.TS, XCR0 and CPUID are the host's at CPL 3: no #NM, the host's vector state.
 *
 * Who does what, each with state of its own that the others do not touch:
 *
 *   vcpu-file.ts         the file descriptor, KVM_RUN, kicks        resume-code.ts         stores and flushes, shown on the way in
 *   registers.ts         general registers in and out               run-alone.ts           the engine's own code, without the guest
 *   segments.ts          segment registers                          probe.ts               CPUID and RDTSC by such code
 *   descriptor-tables.ts the guest's GDT and LDT                    exceptions.ts          frames of the stubs
 *   system-registers.ts  control and debug registers, MSRs          software-interrupt.ts  INT n where KVM has none
 *   cpuid-list.ts        CPUID where KVM intercepts it              internal-error.ts      what went wrong, in words
 *   vector-state.ts      x87, SSE, AVX, AVX-512 for who keeps them
 */

import type { DirtyFrames } from '../../machine/dirty-frames.ts';
import type { MachineMemory } from '../../machine/memory.ts';
import { MFN_BASE, PAGE_SHIFT } from '../../machine/memory.ts';
import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { FLAG_STOP, NO_ROOT, VCPU } from '../../machine/vcpu-block.ts';
import type { CpuidResult, Engine, EngineFacts, ExitKind } from '../engine.ts';
import { EXIT_EXCEPTION, EXIT_INTERRUPTED, EXIT_SYSCALL } from '../engine.ts';
import {
  CR0_BASE,
  CR0_TS,
  CR4_DE,
  CR4_TSD,
  EINTR,
  KVM_EXIT_IO,
  REGS_RFLAGS_W,
  REGS_RIP_W,
  RFLAGS_FORCED_OFF,
  RFLAGS_FORCED_ON,
  RUN_DIRTY_REGS_W,
  RUN_EVENTS_EXCEPTION_MASK,
  RUN_EVENTS_NR_MASK,
  RUN_EVENTS_NR_SHIFT,
  RUN_EVENTS_W,
  RUN_EXIT_REASON_W,
  RUN_EXIT_W,
  SREGS_CR0_W,
  SREGS_CR3_W,
  SREGS_CR4_W,
  SREGS_CS_W,
  SYNC_ALL,
  SYNC_REGS_AND_SREGS,
} from './abi.ts';
import { type CpuidEntry, cpuidListOf, setCpuidList } from './cpuid-list.ts';
import { DescriptorTables } from './descriptor-tables.ts';
import { Exceptions, RFLAGS_IF } from './exceptions.ts';
import {
  AREA_VA_HI,
  CSTAR_VA_LO,
  FLAT_CS32,
  FLAT_CS64,
  FLAT_SS,
  HOLE_SLOT,
  LSTAR_VA_LO,
  PORT_EXCEPTION,
  PORT_SYSCALL,
  PORT_SYSCALL32,
} from './hypervisor-area.ts';
import { DETAIL_BAD_PORT, DETAIL_BAD_ROOT, DETAIL_CLOSED, DETAIL_LIVELOCK, InternalError } from './internal-error.ts';
import { Probe } from './probe.ts';
import { Registers } from './registers.ts';
import { ResumeCode } from './resume-code.ts';
import { AloneRunner } from './run-alone.ts';
import { Segments } from './segments.ts';
import { SoftwareInterrupts } from './software-interrupt.ts';
import { cr4Base, DebugRegisters, initialiseSystemRegisters, setXcr0 } from './system-registers.ts';
import { RERUNS_MAX, VcpuFile } from './vcpu-file.ts';
import { createViews, vcpuWindow } from './vcpu-views.ts';
import { VectorState } from './vector-state.ts';
import type { KvmDomainHandle } from './vm.ts';

// Word indexes of the vCPU block.
const RIP = VCPU.rip / 4;
const RFLAGS = VCPU.rflags / 4;
const CS = VCPU.cs / 4;
const SS = VCPU.ss / 4;
const EXIT_VECTOR = VCPU.exitVector / 4;
const EXIT_ERROR_CODE = VCPU.exitErrorCode / 4;
const USER_MODE = VCPU.userMode / 4;
const KERNEL_ROOT = VCPU.kernelRoot / 4;
const USER_ROOT = VCPU.userRoot / 4;

const VECTOR_BP = 3;
const CR0_TS_WORD = VCPU.cr0Ts / 4;
const CR4_WORD = VCPU.cr4 / 4;
const XCR0 = VCPU.xcr0 / 4;

/** CPUID of the state components: size and place of each in a subleaf. */
const XSAVE_LEAF = 0xd;

/** Bits of CR4 that are the guest's. */
const CR4_GUEST = CR4_TSD | CR4_DE;

export class KvmVcpu implements Engine {
  readonly facts: EngineFacts;
  readonly fd: number;
  readonly #handle: KvmDomainHandle;
  readonly #file: VcpuFile;
  /** The vCPU block. */
  readonly #b: Uint32Array;
  /** The kvm_run page. */
  readonly #r: Uint32Array;
  readonly #mem: Uint32Array;
  readonly #framesMax: number;
  readonly #dirty: DirtyFrames;
  readonly #cr4Base: number;
  readonly #registers: Registers;
  readonly #segments: Segments;
  readonly #tables: DescriptorTables;
  readonly #resume: ResumeCode;
  readonly #exceptions: Exceptions;
  readonly #debug: DebugRegisters;
  readonly #probe: Probe;
  readonly #error: InternalError;
  readonly #vector: VectorState;
  #deadlineNs = 0;

  constructor(handle: KvmDomainHandle, machine: MachineMemory, block: VcpuBlock) {
    const window = vcpuWindow(handle, block.vcpuId);
    const file = new VcpuFile(handle, block);
    const views = createViews(handle, machine, block, file);
    const error = new InternalError(views);
    const alone = new AloneRunner(file, handle.area.idleRootOffset, error);
    const resume = new ResumeCode(views, file, alone);
    const tables = new DescriptorTables(views, handle.area.zeroPageOffset, resume);
    const segments = new Segments(views, tables, !handle.interceptsCpuid);
    const registers = new Registers(views, segments);
    const debug = new DebugRegisters(file, block.u32);
    const software = handle.interceptsCpuid ? null : new SoftwareInterrupts(views, tables);
    this.facts = handle.facts;
    this.fd = file.fd;
    this.#handle = handle;
    this.#file = file;
    this.#b = views.block;
    this.#r = views.run;
    this.#mem = views.memory;
    this.#framesMax = views.framesMax;
    this.#dirty = machine.dirty;
    this.#cr4Base = cr4Base(handle.cpuid);
    this.#registers = registers;
    this.#segments = segments;
    this.#tables = tables;
    this.#resume = resume;
    this.#exceptions = new Exceptions(views, { registers, segments, resume, debug, software, error });
    this.#debug = debug;
    this.#probe = new Probe(file, alone, this.#cr4Base);
    this.#error = error;
    this.#vector = new VectorState(file, (component) => this.#probe.cpuid(XSAVE_LEAF, component));

    setCpuidList(file, handle.cpuid, handle.interceptsCpuid);
    initialiseSystemRegisters(file, window, this.#cr4Base);
    if (this.facts.xcr0Mask !== 0) this.setXcr0(this.facts.xcr0Mask);
    this.descriptorTablesChanged();
    file.publish();
  }

  /** True when KVM took the value. */
  setXcr0(value: number): boolean {
    return setXcr0(this.#file, value);
  }

  /** What CPUID answers where KVM intercepts it. Before the first `run` only. False when KVM refuses. */
  setCpuidPolicy(entries: readonly CpuidEntry[]): boolean {
    return setCpuidList(this.#file, cpuidListOf(entries), this.#handle.interceptsCpuid);
  }

  run(): ExitKind {
    const b = this.#b;
    const r = this.#r;
    const file = this.#file;
    const resume = this.#resume;
    if (!file.usable()) return this.#error.fail(DETAIL_CLOSED, 'the vCPU or its domain is closed');

    // The root.
    let frame = b[KERNEL_ROOT];
    if (b[USER_MODE] !== 0 && b[USER_ROOT] !== NO_ROOT) frame = b[USER_ROOT];
    if (frame >= this.#framesMax)
      return this.#error.fail(DETAIL_BAD_ROOT, 'the root page table is no frame of the domain');
    const rootLo = (frame << PAGE_SHIFT) >>> 0;
    const rootHi = (frame + MFN_BASE) >>> (32 - PAGE_SHIFT);

    // What the CPU would refuse in an IRET.
    const ripHi = b[RIP + 1];
    if (ripHi >>> 15 !== 0 && ripHi >>> 15 !== 0x1ffff) return this.#exceptions.refuse(0);
    const cs = (b[CS] & 0xffff) | 3;
    const ss = (b[SS] & 0xffff) | 3;
    if (!this.#segments.loadCode(cs)) return this.#exceptions.refuse(cs & 0xfffc);
    if (!this.#segments.loadStack(ss)) return this.#exceptions.refuse(ss & 0xfffc);

    this.#registers.load();
    const rflags = (b[RFLAGS] & ~RFLAGS_FORCED_OFF) | RFLAGS_FORCED_ON;
    r[SREGS_CR0_W] = CR0_BASE | (b[CR0_TS_WORD] & CR0_TS);
    r[SREGS_CR4_W] = this.#cr4Base | (b[CR4_WORD] & CR4_GUEST);
    r[SREGS_CR3_W] = rootLo;
    r[SREGS_CR3_W + 1] = rootHi;
    const viaRing0 = resume.isNeeded(rootLo, rootHi);
    if (viaRing0) {
      // IRET takes its descriptors from the tables; a code segment that is Xen's by value must be Xen's by selector.
      resume.enterGuest(cs, rflags, (ss & 0xfffc) === 0 ? FLAT_SS : ss);
    } else {
      r[REGS_RIP_W] = b[RIP];
      r[REGS_RIP_W + 1] = ripHi;
      r[REGS_RFLAGS_W] = rflags;
      r[REGS_RFLAGS_W + 1] = 0;
    }
    file.armDeadline(this.#deadlineNs);

    if (file.entering() !== 0) {
      file.left();
      this.#segments.keep();
      return EXIT_INTERRUPTED;
    }
    r[RUN_DIRTY_REGS_W] = SYNC_REGS_AND_SREGS;
    if (this.#lastException() === VECTOR_BP) {
      r[RUN_EVENTS_W] = r[RUN_EVENTS_W] & ~RUN_EVENTS_NR_MASK;
      r[RUN_DIRTY_REGS_W] = SYNC_ALL;
    }
    let errno = file.enter();
    let reruns = 0;
    while (errno !== 0) {
      if (errno !== EINTR) {
        file.left();
        return this.#error.failByErrno(errno);
      }
      const ring0 = (r[SREGS_CS_W + 3] & 3) === 0;
      const queued = (r[RUN_EVENTS_W] & RUN_EVENTS_EXCEPTION_MASK) !== 0;
      if (!queued) {
        if (!ring0) break;
        if (viaRing0 && resume.contains(r[REGS_RIP_W], r[REGS_RIP_W + 1])) {
          // Not one guest instruction has run: the block still says it all, and what is pending stays pending.
          file.left();
          this.#segments.keep();
          return EXIT_INTERRUPTED;
        }
      }
      // An exception is on its way to its stub. It must arrive: changing registers now would give it to the wrong context.
      if (++reruns > RERUNS_MAX) {
        file.left();
        return this.#error.fail(DETAIL_LIVELOCK, 'KVM_RUN makes no progress');
      }
      // A guest that wrote to the engine's area by page tables of its own may loop in ring 0: its end waits for nothing.
      if ((file.enteringAgain() & FLAG_STOP) !== 0) {
        file.left();
        return EXIT_INTERRUPTED;
      }
      errno = file.enter();
    }
    file.left();
    resume.settled();

    if (errno !== 0) return this.#interruptedExit();
    if (r[RUN_EXIT_REASON_W] !== KVM_EXIT_IO) return this.#error.failByExitReason();
    const port = r[RUN_EXIT_W] >>> 16;
    if (port === PORT_EXCEPTION) return this.#exceptions.exit();
    if (port === PORT_SYSCALL || port === PORT_SYSCALL32) {
      this.#registers.save();
      this.#registers.saveStackPointer();
      this.#registers.saveSyscallReturn();
      if (port === PORT_SYSCALL32) b[CS] = FLAT_CS32;
      else if (cs === FLAT_CS32) b[CS] = FLAT_CS64;
      return EXIT_SYSCALL;
    }
    return this.#error.fail(DETAIL_BAD_PORT | port, `ring 0 wrote to port ${port}`);
  }

  /** The vector of the last exception that KVM had for the vCPU. */
  #lastException(): number {
    return (this.#r[RUN_EVENTS_W] & RUN_EVENTS_NR_MASK) >>> RUN_EVENTS_NR_SHIFT;
  }

  #interruptedExit(): ExitKind {
    const r = this.#r;
    this.#registers.saveAll();
    // A signal that comes while a #BP is on its way makes a KVM without hardware virtualisation forget it: it counts on meeting the INT3
    // again, which the CPU has left behind. That there was one is still known, and no earlier one is.
    if (this.#lastException() === VECTOR_BP) {
      this.#b[EXIT_VECTOR] = VECTOR_BP;
      this.#b[EXIT_ERROR_CODE] = 0;
      return EXIT_EXCEPTION;
    }
    // The signal came between SYSCALL and the page fault that shows it: entering again with IF set would make a jump of it.
    const atStub = r[REGS_RIP_W + 1] === AREA_VA_HI && (r[REGS_RIP_W] === LSTAR_VA_LO || r[REGS_RIP_W] === CSTAR_VA_LO);
    if (atStub && (r[REGS_RFLAGS_W] & RFLAGS_IF) === 0) {
      this.#registers.saveSyscallReturn();
      return EXIT_SYSCALL;
    }
    return EXIT_INTERRUPTED;
  }

  describeError(): string {
    return this.#error.message;
  }

  flushTlb(): void {
    this.#resume.flush();
  }

  invalidatePage(_vaLo: number, _vaHi: number): void {
    this.#resume.flush();
  }

  pageTableStored(offset: number): void {
    this.#dirty.mark(offset >>> PAGE_SHIFT);
    this.#resume.stored(offset);
  }

  /** The CPU sees every store by itself; KVM's log has those of the guest only. */
  memoryStored(offset: number, size: number): void {
    this.#dirty.markBytes(offset, size);
  }

  prepareRoot(offset: number): void {
    const entry = offset + HOLE_SLOT * 8;
    const mem = this.#mem;
    const lo = this.#handle.area.holeEntryLo;
    if (mem[entry / 4] === lo && mem[entry / 4 + 1] === 0) return;
    mem[entry / 4 + 1] = 0;
    mem[entry / 4] = lo;
    this.#resume.stored(entry);
  }

  descriptorTablesChanged(): void {
    if (this.#file.usable()) this.#tables.changed();
  }

  xcr0Changed(): void {
    if (this.facts.xcr0Mask !== 0) this.setXcr0((this.#b[XCR0] & this.facts.xcr0Mask) | 1);
  }

  debugRegistersChanged(): void {
    this.#debug.load();
  }

  setRunDeadline(deadlineNs: number): void {
    this.#deadlineNs = deadlineNs;
    if (deadlineNs === 0) this.#file.armDeadline(0);
  }

  cpuid(leaf: number, subleaf: number): CpuidResult {
    return this.#probe.cpuid(leaf, subleaf);
  }

  saveVectorState(area: Uint8Array): void {
    this.#vector.save(area);
  }

  loadVectorState(area: Uint8Array): void {
    this.#vector.load(area);
  }

  /** Runs code of the probe page at CPL 3 until its INT3, with these values in eax and ecx. False when it does not come there. */
  runProbe(offset: number, eax = 0, ecx = 0): boolean {
    return this.#probe.run(offset, eax, ecx);
  }

  /** What the probe left in eax and edx. */
  probeEax(): number {
    return this.#probe.eax();
  }

  probeEdx(): number {
    return this.#probe.edx();
  }

  readTsc(): { tscLo: number; tscHi: number; atNs: number } {
    return this.#probe.readTsc();
  }

  /** The exits are counted by the hypervisor. */
  statistics(): string[] {
    return [];
  }

  close(): void {
    this.#file.close();
  }
}

/** To be called in the thread that will run the vCPU; once for each vCPU of a domain. Throws when KVM refuses. */
export function openKvmVcpu(handle: KvmDomainHandle, machine: MachineMemory, block: VcpuBlock): KvmVcpu {
  return new KvmVcpu(handle, machine, block);
}
