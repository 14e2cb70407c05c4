/**
 * Memory 1 behind the vCPU block: what the wasm engine keeps of a vCPU. Byte offsets; only the vCPU's own worker touches them.
 * The first 256 bytes of the block can be named by one byte in a micro-op (micro-op.ts).
 */

import { VCPU } from '../../machine/vcpu-block.ts';

export const STATE = {
  /** u64, always 0: the base or index that an address does not have. */
  zero: VCPU.engineSlots,
  /** u64: an address that a micro-op has computed for the next one. */
  address: VCPU.engineSlots + 8,
  /** u64: virtual address of the page that runs: what RIP-relative addresses start from. */
  codePage: VCPU.engineSlots + 16,
  /** v128[16], and the high halves of the YMM registers. */
  xmm: 0x2000,
  ymmHigh: 0x2100,
  /** x87 and MMX state (x87/state.ts). */
  x87: 0x2200,
  mxcsr: 0x2400, // u32
  /** Arithmetic flags between calls: flags.ts. */
  flagsKind: 0x2404, // i32
  flagsA: 0x2408, // i64
  flagsB: 0x2410, // i64
  /** The micro-op that left the interpreter, or that wants its target resolved. */
  microOp: 0x2418, // i32
  /** Branches until the interpreter comes back to look at the clock. */
  budget: 0x241c, // i32
  /** Results of a helper. */
  helper: 0x2420, // i64[2]
  /** Operands a, b and c of an exact vector operation, each low and high half; its result takes the place of the first. */
  vector: 0x2430, // v128[3][2]
  /** Counts changes of code and flushes: what was found or begun before one may be wrong after it. */
  generation: 0x24a0, // i32
  /** Instructions executed, interpreted and in regions: f64[2], when they are counted. */
  executed: 0x2500,
  /** Two translation caches, of kernel and of user mode: TLB_ENTRIES of TLB_ENTRY bytes each. */
  tlb: 0x10000,
  jumpCache: 0x110000,
  /** Times that addresses were entered, i32, by a hash of the address: HOT_COUNTS of them. */
  hotCounts: 0x8000,
  /** Micro-ops to the end of the memory. */
  microOps: 0x210000,
} as const;

export const TLB_ENTRIES = 16384;
/** Mask of an entry's offset in an address moved down by 7. */
export const TLB_MASK = (TLB_ENTRIES - 1) << 5;
/** { i64 readTag, i64 writeTag, i32 addend, i32 frame }: a tag is the page's address, or TLB_INVALID. */
export const TLB_ENTRY = 32;
export const TLB_READ = 0;
export const TLB_WRITE = 8;
export const TLB_ADDEND = 16;
export const TLB_FRAME = 20;
/** Bytes from the kernel's TLB to the user's. */
export const TLB_SIZE = TLB_ENTRIES * TLB_ENTRY;
/** No page address has its low bits set: low word of a tag that never matches. */
export const TLB_INVALID = 1;

export const JUMP_ENTRIES = 65536;
/** Bits of an address that its hash moves down. */
export const JUMP_SHIFT = 14;
/**
 * { i64 tag, i32 micro-op, i32 slot }: the tag is the address, with bit 62 inverted in user mode; the slot is the region's place in the
 * table, 0 = none.
 */
export const JUMP_ENTRY = 16;
export const JUMP_TAG = 0;
export const JUMP_MICRO_OP = 8;
export const JUMP_SLOT = 12;
export const HOT_COUNTS = 4096;
/** Bit of the tag's high word that tells the modes apart; 1 in user mode. */
export const JUMP_USER_HI = 0x40000000;

/**
 * Indexes in the engine's modules of what is called memory 1 and memory 0: the vCPU's comes first, because V8 keeps the address of a
 * module's first memory in a register, and loads that of any other before each access.
 */
export const CPU = 0;
export const GUEST = 1;

// --- state in the guest's memory: areas of XSAVE. Source: Intel SDM vol. 1, 13.4.

/** Bits of XCR0: x87, SSE, and AVX, which is the upper halves of the YMM registers. */
export const COMPONENTS = 7;
export const UPPER_AT = 576;
export const UPPER_BYTES = 256;
export const AREA: number = UPPER_AT + UPPER_BYTES;
