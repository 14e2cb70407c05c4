/**
 * The operations of `exactVector`, by number: operation | shape << 8 | TWO_HALVES | immediate << 16. Operands are vectors a, b and
 * c of 128 or 256 bits; the result takes the place of a.
 */

export const ADD = 0;
export const SUBTRACT = 1;
export const MULTIPLY = 2;
export const DIVIDE = 3;
/** Of b. */
export const SQRT = 4;
export const MINIMUM = 5;
export const MAXIMUM = 6;
/** Immediate: the predicate, 0 to 31. */
export const COMPARE = 7;
/** The low words become the bits CF, PF and ZF of RFLAGS. */
export const COMPARE_ORDERED = 8;
export const COMPARE_UNORDERED = 9;
export const HORIZONTAL_ADD = 10;
export const HORIZONTAL_SUBTRACT = 11;
/** Differences in even lanes, sums in odd ones. */
export const ADD_SUBTRACT = 12;
/** Immediate: which lanes to multiply, and which get the sum. */
export const DOT_PRODUCT = 13;
/** Of b. Immediate: as ROUNDPS has it. */
export const ROUND = 14;
// Conversions of b. The shape is that of the floating-point side; scalars keep the rest of a.
/** To the other precision: packed ones clear what is left over. */
export const CONVERT_PRECISION = 15;
/** To 32-bit integers; scalars: to one of 32 or 64 bits in the low lane. Immediate: bit 0 truncates. */
export const TO_INT32 = 16;
export const TO_INT64 = 17;
/** From the 32-bit lanes, or from the low 64 bits. */
export const FROM_INT32 = 18;
export const FROM_INT64 = 19;
/** As FROM_INT32 with PS, of two lanes; the upper half of a stays. */
export const FROM_INT32_PAIR = 20;
/** As TO_INT32 with PS, of two lanes; the upper half is cleared. */
export const TO_INT32_PAIR = 21;
export const RECIPROCAL = 22;
export const RECIPROCAL_SQRT = 23;
/** a * b + c. Immediate: NEGATE_PRODUCT and NEGATE_ADDEND of sse-fused.ts for even lanes, 2 bits further up for odd ones. */
export const FUSED = 24;
/** Singles from the low 16-bit lanes of b, and the other way round; immediate: the rounding. */
export const FROM_HALF = 25;
export const TO_HALF = 26;

export const PS = 0;
export const PD = 1;
export const SS = 2;
export const SD = 3;

/** 256 bits: what is said of lanes below holds for each half, exceptions are those of both. */
export const TWO_HALVES = 0x400;

export const operationNumber = (operation: number, shape: number, immediate = 0): number =>
  operation | (shape << 8) | (immediate << 16);
