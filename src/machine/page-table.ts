/** Bits of a page-table entry. Source: Intel SDM vol. 3, 4.5.4, tables 4-15 to 4-20. */

export const PTE_P = 1;
export const PTE_RW = 2;
export const PTE_US = 4;
export const PTE_A = 0x20;
export const PTE_D = 0x40;
export const PTE_PSE = 0x80;
export const PTE_G = 0x100;
/** In the high word. */
export const PTE_NX_HI = 0x80000000;
