/**
 * One vCPU in WebAssembly: the engine behind `engine = "wasm"`.
 *
 * `run` interprets from the block's rip until something happens. What it executes comes from the code cache, addresses go through the
 * TLB in memory 1; both are this vCPU's own. Others reach it only through its flag word, which every branch looks at.
 */

import type { MachineMemory } from '../../machine/memory.ts';
import { FLAG_EVENT, FLAG_FLUSH_TLB, FLAG_TIME, VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import type { CpuidResult, Engine, EngineFacts, ExitKind } from '../engine.ts';
import { EXIT_EXCEPTION, EXIT_HANDLED, EXIT_INTERRUPTED, EXIT_SYSCALL } from '../engine.ts';
import { FORMS } from '../x86/forms.ts';
import { createExactVector } from '../x86/sse-exact.ts';
import { showFeatures } from '../x86/tables.ts';
import { Breakpoints } from './breakpoints.ts';
import { CodeCache } from './code-cache.ts';
import { cpuid, SHOWN_FEATURES } from './cpuid.ts';
import { EntryCheck } from './entry-check.ts';
import { ARITHMETIC_FLAGS, FLAGS_EXPLICIT } from './flags.ts';
import { GuestMemory } from './guest-memory.ts';
import { createInterpreter, type Interpreter } from './interpreter.ts';
import { JumpCache } from './jump-cache.ts';
import { encodeKept, type KeptRegions } from './kept-regions.ts';
import { JUMP_USER_HI, STATE, TLB_SIZE } from './layout.ts';
import { type CodeKnown, decodeNoted, NotedCode } from './noted-code.ts';
import { Processor } from './processor.ts';
import { Rare } from './rare.ts';
import { JUMP, NEXT } from './rare-status.ts';
import { CONTINUE, LEFT, UNWIND } from './region.ts';
import { RegionCache } from './region-cache.ts';
import { RegionLibrary } from './region-library.ts';
import { isStackFault } from './stack-fault.ts';
import { loadVectorState, saveVectorState } from './vector-state.ts';
import { CodeNews, type WasmDomainHandle } from './wasm-domain.ts';
import { divideWide } from './wide-divide.ts';
import type { World } from './world.ts';

/** Branches between two looks at the clock. */
const BUDGET = 10_000;
/** A mask: so many addresses are looked up between two looks. */
const RESOLVED_BETWEEN = 15;
/** Entries that a wanted region waits at most, so that others can join its module. */
const ENTRIES_WAITED = 64;
/** Kinds of rare instructions that the statistics name. */
const RARE_SHOWN = 12;
/** Preparing for code that has run elsewhere ends behind so long a time. */
const PREPARED_MAX_NS = 5e8;
const TF = 0x100;
const RF = 0x10000;
const AC = 0x40000;
/** Forms whose elements need no alignment, whatever RFLAGS.AC says. */
const UNALIGNED: readonly boolean[] = FORMS.map((form) => /^v?p?(gather|maskmov)/.test(form.mnemonic));
/** What executing one instruction comes to if it makes no exit. */
const DONE = -1;
/** Instructions between two looks at the clock while there are breakpoints. */
const WATCHED = 256;
/** DR6: single step. */
const DR6_BS = 0x4000;
const DEBUG_EXCEPTION = 1;
const STACK_FAULT = 12;
const GENERAL_PROTECTION = 13;
/** All exceptions masked. Source: Intel SDM vol. 1, 10.2.3. */
const MXCSR_INITIAL = 0x1f80;

/** What the engine needs of the host. */
export interface WasmHost {
  /** Never translate: interpret all. For tests that compare. */
  readonly interpretOnly?: boolean;
  /** Count the instructions that are executed, for the statistics. It costs time. */
  readonly countInstructions?: boolean;
  /** Monotonic clock in ns, the same in all threads. */
  monotonicNs(): number;
}

export class WasmVcpu implements Engine {
  readonly facts: EngineFacts;
  onHypercall?: () => boolean;
  readonly #host: WasmHost;
  readonly #block: VcpuBlock;
  readonly #others: readonly VcpuBlock[];
  readonly #news: CodeNews;
  readonly #world: World;
  readonly #memory: GuestMemory;
  readonly #code: CodeCache;
  readonly #processor: Processor;
  readonly #entry: EntryCheck;
  readonly #rare: Rare;
  readonly #regions: RegionCache;
  readonly #jumps: JumpCache;
  readonly #interpreter: Interpreter;
  readonly #breakpoints = new Breakpoints();
  /** The TSC at a time, and that time in ns. */
  readonly #tscLine: Float64Array;
  readonly #ticksPerNs: number;
  #deadlineNs = 0;
  #kernelRoot = -1;
  #userRoot = -1;
  /** The next micro-op to find is one instruction alone. */
  #stepping = false;
  /** Size of the code that runs, and of the last that ran, by mode: the jump cache has what was found in it. */
  #bits: 32 | 64 = 64;
  readonly #lastBits: [32 | 64, 32 | 64] = [64, 64];
  /** No region may run: single-stepping. */
  #alone = false;
  /** Entries since regions have been waiting for their module. */
  #waited = 0;
  #resolved = 0;
  /** FLAG_TIME is set. */
  #isLate = false;
  /** What is entered, if that is noted. */
  #noted: NotedCode | null = null;
  readonly #known: CodeKnown;
  #resumed = 0;
  #drops = 0;
  /** The hypervisor has changed the block since the guest ran: what is there is not the guest's work. */
  #isHandled = false;

  constructor(
    handle: WasmDomainHandle,
    machine: MachineMemory,
    blocks: readonly VcpuBlock[],
    id: number,
    host: WasmHost,
  ) {
    showFeatures(SHOWN_FEATURES);
    this.facts = handle.facts;
    this.#tscLine = new Float64Array(handle.tsc);
    this.#ticksPerNs = handle.facts.tscKhz / 1e6;
    this.#host = host;
    this.#block = blocks[id];
    this.#others = blocks.filter((block) => block.vcpuId !== id);
    this.#news = new CodeNews(handle);
    this.#world = this.#news.world(this.#block, this.#others);
    this.#memory = new GuestMemory(machine, this.#block, {
      granules: this.#news.granules,
      changed: (frame, offset, size) => this.#codeChanged(frame, offset, size),
      look: () => this.#look(),
      crowded: () => {
        this.#nextGeneration();
        this.#jumps.clear();
      },
    });
    this.#jumps = new JumpCache(this.#block);
    this.#code = new CodeCache(machine, this.#block, (frame, bits) => this.#watch(frame, bits));
    this.#processor = new Processor(this.#memory, () => this.#interpreter.rflags());
    this.#entry = new EntryCheck(this.#processor);
    this.#rare = new Rare(this.#processor, {
      readTsc: (out) => this.#tsc(out),
      systemCall: () => this.#systemCall(),
      stopWorld: () => this.#stopWorld(),
      startWorld: () => this.#world.start(),
    });
    const divide = (signed: number, high: bigint, low: bigint, divisor: bigint): number =>
      divideWide(this.#block, signed, high, low, divisor);
    const vector = createExactVector(this.#block.buffer, STATE.vector, STATE.mxcsr);
    const scratch = machine.layout.scratchOffset;
    const counting = host.countInstructions === true;
    const known = counting || host.interpretOnly === true ? null : handle.translated;
    this.#regions = new RegionCache({
      counting,
      library: known && new RegionLibrary(known.regions),
      u8: machine.u8,
      guest: machine.memory,
      cpu: this.#block.memory,
      scratch,
      frame: (lo, hi, relative) => this.#frame(lo, hi, relative),
      isWarm: (frame, offset) => this.#code.isDecoded(frame, offset),
      watch: (frame, bits) => this.#watch(frame, bits),
      ready: (frame, lo) => {
        this.#code.markRegion(frame, lo & 0xfff);
        // The jump cache may know the address without its region.
        this.#jumps.forget(lo);
      },
      depends: (lo, relative) => this.#jumps.dependsOn(lo + relative * 4096),
      divide,
      vector,
      rare: () => this.#rareInRegion(),
    });
    this.#known = {
      startsIn: (frame, visit) => this.#code.startsIn(frame, visit),
      region: (frame, offset, user) => this.#regions.region(frame, offset, user),
    };
    this.#interpreter = createInterpreter(
      { guest: machine.memory, cpu: this.#block.memory, table: this.#regions.table, scratch, counting },
      {
        miss: this.#memory.miss,
        commit: this.#memory.commit,
        divide,
        vector,
        hot: (lo, hi, count) => this.#hot(lo, hi, count),
        resume: (lo, hi) => {
          this.#resumed++;
          return this.#microOpAt(lo, hi);
        },
        resolve: (lo, hi, from) => this.#resolve(lo, hi, from),
        rare: () => this.#rare.execute(),
        stop: () => this.#stopWorld(),
        start: () => this.#world.start(),
      },
      known?.interpreter,
    );
    this.#processor.x87.fninit();
    this.#block.u32[STATE.mxcsr >> 2] = MXCSR_INITIAL;
  }

  run(): ExitKind {
    const { u32, i32 } = this.#block;
    this.#world.enter();
    let exit: ExitKind;
    if (Atomics.load(i32, VCPU.flags >> 2) !== 0) exit = EXIT_INTERRUPTED;
    else if (this.#entry.isRefused()) exit = EXIT_EXCEPTION;
    else {
      this.#enter();
      this.#isHandled = false;
      this.#memory.isNonCanonical = false;
      const cs = u32[VCPU.cs >> 2];
      const rflags = u32[VCPU.rflags >> 2];
      this.#checkAlignment((rflags & AC) !== 0);
      const watchful = this.#breakpoints.any || (rflags & AC) !== 0;
      exit = watchful ? this.#watchfully() : (rflags & TF) !== 0 ? this.#step() : this.#interpret();
      u32[VCPU.rflags >> 2] =
        (u32[VCPU.rflags >> 2] & ~ARITHMETIC_FLAGS) | (this.#interpreter.rflags() & ARITHMETIC_FLAGS) | 2;
      if (this.#bits === 32 && u32[VCPU.cs >> 2] === cs) u32[(VCPU.rip >> 2) + 1] = 0;
      if (!this.#isHandled) this.#entry.keep();
      if (exit === EXIT_EXCEPTION && u32[VCPU.exitVector >> 2] === GENERAL_PROTECTION) this.#stackFault();
    }
    if (this.#isLate) {
      this.#isLate = false;
      Atomics.and(i32, VCPU.flags >> 2, ~FLAG_TIME);
    }
    this.#world.leave();
    Atomics.add(i32, VCPU.exitCount >> 2, 1);
    return exit;
  }

  /** #GP for a non-canonical address is #SS if it is the stack's. */
  #stackFault(): void {
    const { u32 } = this.#block;
    if (u32[VCPU.exitErrorCode >> 2] !== 0) return;
    const { isNonCanonical, nonCanonicalLo } = this.#memory;
    const isStack = isStackFault(this.#processor, isNonCanonical ? nonCanonicalLo : -1);
    u32[VCPU.exitVector >> 2] = isStack ? STACK_FAULT : GENERAL_PROTECTION;
    u32[VCPU.exitErrorCode >> 2] = 0;
  }

  /** From the block's registers to the engine's state. */
  #enter(): void {
    this.#useRoots();
    this.#useCodeSize(this.#entry.bits);
    if (this.#news.pending(this.#block.vcpuId)) this.#hearNews();
    if (this.#regions.hasPending && ++this.#waited > ENTRIES_WAITED) this.#translate();
    if (this.#code.isFull || this.#regions.isFull) this.#dropCode();
    this.#useFlags();
  }

  #useRoots(): void {
    const { u32 } = this.#block;
    const kernelRoot = u32[VCPU.kernelRoot >> 2];
    const userRoot = u32[VCPU.userRoot >> 2];
    if (kernelRoot !== this.#kernelRoot || userRoot !== this.#userRoot) {
      const alike = this.#kernelRoot >= 0 && this.#memory.sharesKernelHalf(kernelRoot, this.#kernelRoot);
      this.#kernelRoot = kernelRoot;
      this.#userRoot = userRoot;
      if (alike) this.#flushLowHalf();
      else this.flushTlb();
    }
  }

  #useFlags(): void {
    const { u32 } = this.#block;
    u32[STATE.flagsKind >> 2] = FLAGS_EXPLICIT;
    u32[STATE.flagsA >> 2] = u32[VCPU.rflags >> 2] & ARITHMETIC_FLAGS;
    u32[(STATE.flagsA >> 2) + 1] = 0;
  }

  /** NEXT, JUMP or an ExitKind: a hypercall is carried out here, if the hypervisor can, so that no caller must be left. */
  #systemCall(): number {
    const { u32, i32 } = this.#block;
    const handle = this.onHypercall;
    if (handle === undefined || u32[VCPU.userMode >> 2] !== 0 || this.#alone) return EXIT_SYSCALL;
    const generation = this.#generation;
    const cs = u32[VCPU.cs >> 2];
    this.#entry.keep();
    this.#isHandled = true;
    this.#world.leave();
    Atomics.add(i32, VCPU.exitCount >> 2, 1);
    const goesOn = handle();
    this.#world.enter();
    this.#useFlags();
    const isWatched = this.#breakpoints.any || (u32[VCPU.rflags >> 2] & (TF | AC)) !== 0;
    if (!goesOn || u32[VCPU.cs >> 2] !== cs || isWatched) return EXIT_HANDLED;
    if (Atomics.load(i32, VCPU.flags >> 2) !== 0) return EXIT_INTERRUPTED;
    if (this.#entry.isRefused()) return EXIT_EXCEPTION;
    this.#isHandled = false;
    this.#memory.isNonCanonical = false;
    this.#useRoots();
    return generation === this.#generation ? NEXT : JUMP;
  }

  /** Code of 32 bits is interpreted only. */
  #useCodeSize(bits: 32 | 64): void {
    const { u32 } = this.#block;
    if (bits === 32) u32[(VCPU.rip >> 2) + 1] = 0;
    const { mode } = this.#memory;
    if (this.#lastBits[mode] !== bits) {
      this.#lastBits[mode] = bits;
      this.#jumps.clear();
    }
    if (this.#bits === bits) return;
    this.#bits = bits;
    this.#processor.bits = bits;
    this.#code.bits = bits;
  }

  #interpret(): ExitKind {
    const { i32, u32 } = this.#block;
    const user = u32[VCPU.userMode >> 2] !== 0;
    const tlb = STATE.tlb + (user ? TLB_SIZE : 0);
    const tag = user ? JUMP_USER_HI : 0;
    const cs = u32[VCPU.cs >> 2];
    for (;;) {
      i32[STATE.budget >> 2] = BUDGET;
      const exit = this.#interpreter.interpret(tlb, tag);
      if (exit !== EXIT_INTERRUPTED) return exit;
      if (this.#regions.hasPending) this.#translate();
      // Perhaps of another size.
      if (u32[VCPU.cs >> 2] !== cs) return exit;
      if (Atomics.load(i32, VCPU.flags >> 2) !== 0 || (u32[VCPU.rflags >> 2] & (TF | AC)) !== 0) return exit;
      if (this.#deadlineNs !== 0 && this.#host.monotonicNs() >= this.#deadlineNs) return exit;
      if (this.#code.isFull || this.#regions.isFull) this.#dropCode();
    }
  }

  /** A branch that had to be looked up, or an access that missed the TLB, takes as long as many that were not: the guest's timers must not wait. */
  #look(): void {
    if (this.#deadlineNs === 0 || this.#host.monotonicNs() < this.#deadlineNs) return;
    this.#isLate = true;
    Atomics.or(this.#block.i32, VCPU.flags >> 2, FLAG_TIME);
  }

  #translate(): void {
    this.#waited = 0;
    this.#regions.translate();
  }

  /** One instruction, or one turn of a repeated one, and #DB behind it. */
  #step(): ExitKind {
    const exit = this.#executeOne();
    return exit === DONE ? this.#debugException(DR6_BS) : exit;
  }

  #debugException(detail: number): ExitKind {
    const { u32 } = this.#block;
    u32[VCPU.exitVector >> 2] = DEBUG_EXCEPTION;
    u32[VCPU.exitErrorCode >> 2] = 0;
    u32[VCPU.exitDetail >> 2] = detail;
    return EXIT_EXCEPTION;
  }

  /** Xen has CR0.AM set, and guests run at CPL 3: RFLAGS.AC alone decides. */
  #checkAlignment(wanted: boolean): void {
    if (this.#memory.checksAlignment === wanted) return;
    this.#memory.checksAlignment = wanted;
    if (wanted) this.flushTlb();
  }

  /** One instruction after the other, under the eyes of breakpoints and alignment checks. A breakpoint on an instruction is a fault, others trap. */
  #watchfully(): ExitKind {
    const { i32, u32 } = this.#block;
    const breakpoints = this.#breakpoints;
    for (let count = 0; count < WATCHED; count++) {
      if (Atomics.load(i32, VCPU.flags >> 2) !== 0) return EXIT_INTERRUPTED;
      const rflags = u32[VCPU.rflags >> 2];
      if (((rflags & AC) !== 0) !== this.#memory.checksAlignment) return EXIT_INTERRUPTED;
      const here = (rflags & RF) !== 0 ? 0 : breakpoints.at(u32[VCPU.rip >> 2], u32[(VCPU.rip >> 2) + 1]);
      if (here !== 0) {
        // Who comes back by IRET gets past it.
        u32[VCPU.rflags >> 2] |= RF;
        return this.#debugException(here);
      }
      breakpoints.forget();
      const memory = this.#memory;
      memory.isExempt =
        memory.checksAlignment && this.#processor.decode() && UNALIGNED[this.#processor.instruction.form];
      const exit = this.#executeOne();
      // IRET may have set it for the next one.
      if ((rflags & RF) !== 0) u32[VCPU.rflags >> 2] &= ~RF;
      if (exit !== DONE) return exit;
      const detail = breakpoints.hits | ((rflags & TF) !== 0 ? DR6_BS : 0);
      if (detail !== 0) return this.#debugException(detail);
    }
    return EXIT_INTERRUPTED;
  }

  /** One instruction, or one turn of a repeated one: DONE, or the exit that it made. */
  #executeOne(): ExitKind | typeof DONE {
    const { i32, u32 } = this.#block;
    const user = u32[VCPU.userMode >> 2] !== 0;
    const ripLo = u32[VCPU.rip >> 2];
    const ripHi = u32[(VCPU.rip >> 2) + 1];
    this.#jumps.clear();
    this.#stepping = true;
    this.#alone = true;
    this.#processor.isStepping = true;
    this.#processor.iterated = false;
    // The lookup of the first instruction takes one, that of the second the other.
    i32[STATE.budget >> 2] = 2;
    const exit = this.#interpreter.interpret(STATE.tlb + (user ? TLB_SIZE : 0), user ? JUMP_USER_HI : 0);
    this.#stepping = false;
    this.#alone = false;
    this.#processor.isStepping = false;
    this.#jumps.clear();
    const isDone =
      i32[STATE.budget >> 2] <= 0 ||
      this.#processor.iterated ||
      u32[VCPU.rip >> 2] !== ripLo ||
      u32[(VCPU.rip >> 2) + 1] !== ripHi;
    return exit === EXIT_INTERRUPTED && isDone ? DONE : exit;
  }

  /** The micro-op of an address, for the interpreter's lookup; 0 with a fault in the block. */
  #resolve(lo: number, hi: number, from: number): number {
    const low = lo >>> 0;
    const high = hi >>> 0;
    if (this.#stepping) {
      this.#stepping = false;
      const frame = this.#memory.codeFrame(low, high);
      return frame < 0 ? 0 : this.#code.single(frame, low & 0xfff, () => this.#frame(low, high, 1));
    }
    // The step is done: whatever is wrong with the next instruction's address comes later.
    if (this.#alone) return this.#code.stop(low & 0xfff);
    if ((++this.#resolved & RESOLVED_BETWEEN) === 0) this.#look();
    if (this.#bits === 32 && high !== 0) return this.#code.beyond(low & 0xfff);
    for (;;) {
      const generation = this.#generation;
      const microOp = this.#microOpAt(low, high);
      if (microOp === 0) return 0;
      const frame = this.#code.ownerOf(microOp);
      const slot = this.#bits === 64 ? this.#regions.find(frame, low, high, this.#memory.mode !== 0) : 0;
      // Whoever had this vCPU flush while it waited for others (#watch) must not find the old page here.
      if (generation !== this.#generation) continue;
      if (slot === 0 && from !== 0) this.#code.link(from, microOp, frame, low & 0xfff);
      this.#jumps.add(low, high, this.#memory.mode !== 0, microOp, slot);
      this.#noted?.note(frame, low, this.#memory.mode !== 0, slot !== 0, this.#known);
      return microOp;
    }
  }

  /** The micro-op of an address; 0 with a fault in the block. */
  #microOpAt(lo: number, hi: number): number {
    const low = lo >>> 0;
    const frame = this.#memory.codeFrame(low, hi >>> 0);
    if (frame < 0) return 0;
    const offset = low & 0xfff;
    const microOp = this.#code.find(frame, offset);
    if (microOp !== 0) return microOp;
    const next = this.#frame(low, hi >>> 0, 1);
    if (next < 0) return 0;
    this.#jumps.dependsOn(low + 4096);
    return this.#code.findCrossing(frame, offset, next);
  }

  /** Frame of the page `relative` pages from an address's, or -1. */
  #frame(lo: number, hi: number, relative: number): number {
    const there = (lo & ~0xfff) + relative * 4096;
    const carry = Math.floor(((lo & ~0xfff) >>> 0) / 4096) + relative;
    const high = carry < 0 ? hi - 1 : carry > 0xfffff ? hi + 1 : hi;
    // Never over the ends of the kernel's half: a flush may forget one side alone.
    return high >>> 31 === hi >>> 31 ? this.#memory.codeFrame(there >>> 0, high >>> 0) : -1;
  }

  /** A rare instruction of a region: NEXT, or how the region ends. No region may go on if its code may have changed. */
  #rareInRegion(): number {
    const generation = this.#generation;
    const answer = this.#rare.execute();
    if (answer >= 0) return LEFT + answer;
    if (generation !== this.#generation) return UNWIND;
    return answer === NEXT ? NEXT : CONTINUE;
  }

  get #generation(): number {
    return this.#block.i32[STATE.generation >> 2];
  }

  #nextGeneration(): void {
    this.#block.i32[STATE.generation >> 2]++;
  }

  /** An address has been entered so many times. */
  #hot(lo: number, hi: number, count: number): void {
    const low = lo >>> 0;
    const high = hi >>> 0;
    if (this.#host.interpretOnly === true || this.#bits === 32) return;
    const frame = this.#memory.codeFrame(low, high);
    if (frame >= 0) this.#regions.request(frame, low, high, this.#memory.mode !== 0, count);
  }

  flushTlb(): void {
    let isChanged = false;
    this.#memory.flush((lo) => {
      isChanged = true;
      this.#jumps.addGone(lo);
    });
    // Code that is where it was may go on.
    if (isChanged) this.#nextGeneration();
    this.#jumps.forgetGone();
  }

  /** The low half of the address space has changed, and nothing else. */
  #flushLowHalf(): void {
    this.#nextGeneration();
    this.#memory.flushLowHalf();
    this.#jumps.forgetLow();
  }

  invalidatePage(vaLo: number, vaHi: number): void {
    if (this.#memory.flushPage(vaLo, vaHi >>> 0)) this.#nextGeneration();
    this.#jumps.forgetPage(vaLo);
  }

  // --- code for a vCPU elsewhere

  notedCode(): Uint32Array {
    const noted = this.#noted?.encode(this.#known) ?? new Uint32Array(0);
    this.#noted = new NotedCode();
    // Who is found there is not looked up.
    this.#jumps.clear();
    return noted;
  }

  /** What has been translated here, for domains that come later. */
  keptRegions(): KeptRegions {
    const { made, used } = this.#regions.kept();
    return { count: made.length, made: encodeKept(made), used };
  }

  prepareCode(noted: Uint32Array): void {
    const { starts, regions } = decodeNoted(noted, this.#memory.machine.layout.nameableFrames);
    const endNs = this.#host.monotonicNs() + PREPARED_MAX_NS;
    for (const start of starts) {
      if (this.#code.isFull || this.#host.monotonicNs() > endNs) return;
      this.#code.find(start >>> 12, start & 0xfff);
    }
    this.#code.handlers(this.#interpreter.prepareHandler);
    for (const region of regions) {
      if (this.#regions.isFull || this.#host.monotonicNs() > endNs) break;
      this.#regions.prepare(region);
    }
    this.#regions.translate('optimized');
  }

  // --- code that changes

  /** Code of a frame is about to be decoded for the first time, at these granules. */
  #watch(frame: number, bits: number): boolean {
    const { granules } = this.#news;
    const before = Atomics.or(granules, frame, bits);
    if (before !== 0) return (before & bits) !== bits;
    // Nobody may store there without coming by `GuestMemory.miss`.
    this.#memory.dropWrites(frame);
    if (this.#others.length > 0) this.#flushOthers();
    return true;
  }

  /** Makes the other vCPUs flush, and waits until those in guest code have. Meanwhile this one counts as flushed, and flushes if asked. */
  #flushOthers(): void {
    const waiting: VcpuBlock[] = [];
    for (const other of this.#others) {
      if (Atomics.load(other.i32, VCPU.inGuest >> 2) === 0) {
        Atomics.or(other.i32, VCPU.flags >> 2, FLAG_FLUSH_TLB);
        if (Atomics.load(other.i32, VCPU.inGuest >> 2) === 0) continue;
      } else Atomics.or(other.i32, VCPU.flags >> 2, FLAG_FLUSH_TLB);
      waiting.push(other);
    }
    if (waiting.length === 0) return;
    this.#world.leave();
    for (const { i32 } of waiting)
      while (Atomics.load(i32, VCPU.inGuest >> 2) !== 0 && (Atomics.load(i32, VCPU.flags >> 2) & FLAG_FLUSH_TLB) !== 0)
        Atomics.wait(i32, VCPU.inGuest >> 2, 1, 1);
    this.#world.enter();
    this.#flushIfAsked();
  }

  /** After a time that counted as flushed. */
  #flushIfAsked(): void {
    const flags = Atomics.and(this.#block.i32, VCPU.flags >> 2, ~FLAG_FLUSH_TLB);
    if ((flags & FLAG_FLUSH_TLB) !== 0) this.flushTlb();
  }

  /** No other vCPU executes guest instructions until `#world.start()`. Addresses must be translated anew. */
  #stopWorld(): void {
    if (this.#others.length === 0) return;
    this.#world.stop();
    this.#flushIfAsked();
  }

  /** Bytes of a frame with code have changed. */
  #codeChanged(frame: number, offset: number, size: number): void {
    this.#nextGeneration();
    const { granules } = this.#news;
    const first = offset >>> 7;
    const last = (offset + size - 1) >>> 7;
    for (let granule = first; granule <= last; granule++) {
      if ((Atomics.and(granules, frame, ~(1 << granule)) & (1 << granule)) === 0) continue;
      this.#forget(frame, granule);
      for (const other of this.#others) {
        this.#news.post(other.vcpuId, frame, granule);
        Atomics.or(other.i32, VCPU.flags >> 2, FLAG_EVENT);
      }
    }
  }

  #forget(frame: number, granule: number): void {
    this.#code.invalidate(frame, granule << 7, 128);
    this.#regions.invalidate(frame, granule << 7, 128, this.#jumps.forgetSlot);
  }

  #hearNews(): void {
    const complete = this.#news.take(this.#block.vcpuId, (frame, granule) => this.#forget(frame, granule));
    if (!complete) this.#dropCode();
  }

  #dropCode(): void {
    this.#drops++;
    this.#code.clear();
    this.#regions.clear();
    this.#jumps.clear();
  }

  // --- the rest of the engine's interface

  /** The page walk sees every store. */
  pageTableStored(offset: number): void {
    this.#memory.machine.dirty.mark(offset >>> 12);
  }

  memoryStored(offset: number, size: number): void {
    this.#memory.machine.dirty.markBytes(offset, size);
    const frame = offset >>> 12;
    if (this.#news.granules[frame] !== 0) this.#codeChanged(frame, offset & 0xfff, size);
  }

  /** The M2P needs no page tables here. */
  prepareRoot(_offset: number): void {}

  /** Descriptors are read when a selector is loaded. */
  descriptorTablesChanged(): void {}

  xcr0Changed(): void {}

  debugRegistersChanged(): void {
    this.#breakpoints.read(this.#block.u32);
    this.#memory.watch = this.#breakpoints.any ? this.#breakpoints : null;
    this.flushTlb();
  }

  setRunDeadline(deadlineNs: number): void {
    this.#deadlineNs = deadlineNs;
  }

  #ticksAt(ns: number): number {
    const line = this.#tscLine;
    return Math.floor(line[0] + (ns - line[1]) * this.#ticksPerNs);
  }

  #tsc(out: Uint32Array): void {
    const ticks = this.#ticksAt(this.#host.monotonicNs());
    out[0] = ticks % 0x100000000;
    out[1] = Math.floor(ticks / 0x100000000);
  }

  readTsc(): { tscLo: number; tscHi: number; atNs: number } {
    const atNs = Math.floor(this.#host.monotonicNs());
    const ticks = this.#ticksAt(atNs);
    return { tscLo: ticks % 0x100000000, tscHi: Math.floor(ticks / 0x100000000), atNs };
  }

  cpuid(leaf: number, subleaf: number): CpuidResult {
    return cpuid(leaf, subleaf);
  }

  saveVectorState(area: Uint8Array): void {
    saveVectorState(this.#processor, area);
  }

  loadVectorState(area: Uint8Array): void {
    loadVectorState(this.#processor, area);
  }

  describeError(): string {
    return 'no detail';
  }

  /** Read by scripts/bench/statistics.ts. */
  statistics(): string[] {
    const { translated, stored, instructions, translationMs, compilationMs } = this.#regions;
    const { misses } = this.#memory;
    const { counts } = this.#rare;
    const rare = FORMS.filter((form) => counts[form.index] > 0)
      .sort((a, b) => counts[b.index] - counts[a.index])
      .slice(0, RARE_SHOWN)
      .map((form) => `${form.key} ${counts[form.index]}`);
    const executed = STATE.executed >> 3;
    const { f64 } = this.#block;
    const counted: [string, number][] = [
      ...(this.#host.countInstructions === true
        ? ([
            ['instructions interpreted', f64[executed]],
            ['instructions executed in regions', f64[executed + 1]],
          ] satisfies [string, number][])
        : []),
      ['instructions decoded', this.#code.decoded],
      ['regions', translated],
      ['regions of the library', stored],
      ['instructions in regions', instructions],
      ['ms of translation', translationMs],
      ['ms of compilation', compilationMs],
      ['times all code was dropped', this.#drops],
      ['times the world was stopped', this.#world.stops],
      ['TLB misses', misses],
      ['addresses resolved', this.#resolved],
      ['addresses resumed', this.#resumed],
    ];
    return [
      `engine: ${counted.map(([name, count]) => `${name} ${Math.round(count)}`).join(', ')}`,
      `instructions by TypeScript ${counts.reduce((sum, count) => sum + count, 0)}: ${rare.join(', ')}`,
    ];
  }

  close(): void {}
}
