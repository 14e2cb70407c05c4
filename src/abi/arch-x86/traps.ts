/** Source: xen/include/public/arch-x86/xen.h, struct trap_info. The guest writes all; a table ends with address 0. */
export const TRAP_INFO = {
  SIZE: 16,
  /** u8 */
  vector: 0,
  /** u8: bits 0-1 the DPL that INT n needs, TI_IF. */
  flags: 1,
  /** u16 */
  cs: 2,
  /** u64 */
  address: 8,
} as const;

/** Source: arch-x86/xen.h, TI_SET_IF: event delivery is off when the handler is entered. */
export const TI_IF = 4;
/** Vectors of a trap table. */
export const X86_NR_VECTORS = 256;
export const TRAP_nmi = 2;
