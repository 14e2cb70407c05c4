/**
 * Memory 1: the block of one vCPU, at the start of a shared WebAssembly.Memory.
 *
 * The vCPU's own worker writes everything here, but for the words marked [any], which other threads set with Atomics.
 * The engine loads the registers from here on entry and stores them back on exit; the hypervisor changes them in between.
 * All 64-bit values are two little-endian 32-bit words (low word first): hot paths use the u32 view, never bigint.
 * General registers stand in hardware encoding order (rax rcx rdx rbx rsp rbp rsi rdi r8..r15).
 */

/** Byte offsets. Divide by 4 for `u32`, by 8 for `u64`. */
export const VCPU = {
  // --- architectural registers: engine <-> hypervisor
  gpr: 0x000, // u64[16]
  rip: 0x080, // u64
  rflags: 0x088, // u64
  fsBase: 0x090, // u64
  /** Active GS base: the kernel's in kernel mode, the user's in user mode. */
  gsBase: 0x098, // u64
  cs: 0x0a0, // u32 selectors
  ss: 0x0a4,
  ds: 0x0a8,
  es: 0x0ac,
  fs: 0x0b0,
  gs: 0x0b4,
  /** Three words of an engine's own beside the registers. */
  engineSlots: 0x0b8, // u64[3]
  // --- hidden state of a PV vCPU: written by the hypervisor
  /** 0 kernel mode, 1 user mode. Both run at CPL 3. Source: xen/arch/x86/include/asm/domain.h, TF_kernel_mode. */
  userMode: 0x0d0, // u32
  /** Root page-table frames as byte offsets in memory 0; userRoot 0xffffffff = none. Offsets are page numbers: offset >> 12. */
  kernelRoot: 0x0d4, // u32 frame index (offset >> 12)
  userRoot: 0x0d8, // u32 frame index, NO_ROOT = none
  kernelSs: 0x0dc, // u32
  kernelSp: 0x0e0, // u64
  gsBaseInactive: 0x0e8, // u64
  /** CR0.TS as the guest sees it (0 or 8). */
  cr0Ts: 0x0f0, // u32
  cr4: 0x0f4, // u32, guest's shadow
  iopl: 0x0f8, // u32
  /** XCR0 as the guest set it (low word; high is 0). */
  xcr0: 0x0fc, // u32
  dr: 0x100, // u64[8]
  ldtBase: 0x140, // u64
  ldtEntries: 0x148, // u32
  gdtEntries: 0x14c, // u32
  gdtFrames: 0x150, // u32[16] frame indexes (offset >> 12) in memory 0
  eventCallback: 0x190, // u64; 0 = none
  failsafeCallback: 0x198, // u64
  syscallCallback: 0x1a0, // u64
  syscall32Callback: 0x1a8, // u64
  sysenterCallback: 0x1b0, // u64
  /** Bits CALLBACK_MASKS_*: events are masked on entry. */
  callbackFlags: 0x1b8, // u32
  tscAux: 0x1bc, // u32
  /** Byte offset in memory 0 of the registered vcpu_info. */
  vcpuInfo: 0x1c0, // u32
  vcpuInfoRegistered: 0x1c4, // u32
  runstateVa: 0x1c8, // u64, 0 = none
  timeVa: 0x1d0, // u64, 0 = none: the second copy of vcpu_time_info
  runstate: 0x1d8, // u32
  vmAssistRunstateFlag: 0x1dc, // u32
  runstateEntryNs: 0x1e0, // f64
  runstateTimeNs: 0x1e8, // f64[4]
  /** Absolute system time in ns of the singleshot timer; 0 = off. */
  singleshotNs: 0x208, // f64
  periodicNs: 0x210, // f64: period; 0 = off
  periodicNextNs: 0x218, // f64
  /** Exception to deliver at next entry: bit 31 set = there is one, bits 0-7 vector; error code beside it. */
  nmiPending: 0x220, // u32 [any]
  nmiMasked: 0x224, // u32
  // --- words shared with other threads
  /** [any] Requests to this vCPU: FLAG_*. */
  flags: 0x240, // i32
  /** [vCPU] 1 while guest code may run with translations of its own; 0 otherwise. */
  inGuest: 0x244, // i32
  /** [any] Incremented to wake the vCPU out of Atomics.wait. */
  wake: 0x248, // i32
  /** [vCPU, any under the domain lock] VCPU_STATE_*. */
  state: 0x24c, // i32
  /** [vCPU] Incremented each time the vCPU leaves the guest. */
  exitCount: 0x250, // i32
  /** [vCPU] 1 while in SCHEDOP_poll: a pending port wakes it even when masked. */
  polling: 0x254, // i32
  /** [vCPU] hypercall nesting etc. for logs */
  initialised: 0x258, // u32 [under the domain lock]
  /** [vCPU] exits by kind, for the statistics: u32[STATS_EXITS]. */
  stats: 0x280,
  /** Hypercalls by number: u32[64]. */
  hypercallStats: 0x300,
  /** Port bound to each per-vCPU VIRQ, 0 = none: u32[24]. [under the domain lock] */
  virqPorts: 0x400,
  // --- the last exit: written by the engine
  /** Set for a page fault (vector 14). */
  cr2: 0x460, // u64
  exitVector: 0x468, // u32, for EXIT_EXCEPTION
  exitErrorCode: 0x46c, // u32, for vectors that push one
  /** For EXIT_INTERNAL_ERROR: an engine's own code, for the log. */
  exitDetail: 0x470, // u32
  // --- what the host's scheduler does with it
  /** CPU time that its thread has used, ns, as of its last account (hypervisor/scheduling.ts). */
  cpuNs: 0x478, // f64
  /** [main thread] Bit n: it may use CPU n of the host, or n + 32, and so on. */
  affinity: 0x480, // u32
  /** [main thread] How many CPUs these are. */
  affinityCount: 0x484, // i32
  /** The host's id of its thread; 0 = not known. */
  threadId: 0x488, // i32
  // --- trap table: 256 entries of { u64 address, u32 flags, u32 cs }
  traps: 0x1000,
  SIZE: 0x2000,
} as const;

export const NO_ROOT = 0xffffffff;

/** Indexes into `gpr`, hardware encoding. Source: Intel SDM vol. 2, table 2-2. */
export const RAX = 0;
export const RCX = 1;
export const RDX = 2;
export const RBX = 3;
export const RSP = 4;
export const RBP = 5;
export const RSI = 6;
export const RDI = 7;
export const R8 = 8;
export const R9 = 9;
export const R10 = 10;
export const R11 = 11;

/** Requests in the flag word. */
export const FLAG_FLUSH_TLB = 1;
/** The domain stops: leave the run loop. */
export const FLAG_STOP = 2;
/** An event may have become pending: only makes the vCPU leave the guest. */
export const FLAG_EVENT = 4;
/** The domain is paused: wait until it is not. */
export const FLAG_PAUSE = 8;
/** The toolstack wants to know which code runs. */
export const FLAG_TELL_CODE = 16;
/** The engine's own, within one run: the clock says that it is over. */
export const FLAG_TIME = 32;

/** Values of `state`. */
export const VCPU_STATE_DOWN = 0;
export const VCPU_STATE_UP = 1;

/** Bits of `callbackFlags`. */
export const CALLBACK_MASKS_SYSCALL = 1;
export const CALLBACK_MASKS_SYSCALL32 = 2;
export const CALLBACK_MASKS_SYSENTER = 4;
export const CALLBACK_MASKS_FAILSAFE = 8;

/** Room behind the block for an engine's own state of the vCPU. Only what is touched takes memory. */
const VCPU_MEMORY_PAGES = 1024;

export class VcpuBlock {
  readonly vcpuId: number;
  readonly memory: WebAssembly.Memory;
  readonly buffer: SharedArrayBuffer;
  readonly u8: Uint8Array<SharedArrayBuffer>;
  readonly u32: Uint32Array<SharedArrayBuffer>;
  readonly i32: Int32Array<SharedArrayBuffer>;
  readonly f64: Float64Array<SharedArrayBuffer>;
  readonly u64: BigUint64Array<SharedArrayBuffer>;

  constructor(vcpuId: number, memory: WebAssembly.Memory) {
    this.vcpuId = vcpuId;
    this.memory = memory;
    const buffer = memory.buffer as unknown as SharedArrayBuffer;
    this.buffer = buffer;
    this.u8 = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.f64 = new Float64Array(buffer);
    this.u64 = new BigUint64Array(buffer);
  }
}

export function createVcpuBlock(vcpuId: number): VcpuBlock {
  const pages = { initial: VCPU_MEMORY_PAGES, maximum: VCPU_MEMORY_PAGES, shared: true };
  return new VcpuBlock(vcpuId, new WebAssembly.Memory(pages));
}
