/**
 * The ring that the two ends of a split device share: a header, then a power of two of slots, each as large as the larger of a
 * request and a response. Indices run freely modulo 2^32; index i lives in slot i & (slots - 1).
 *
 * An end that consumes says in *_event at which index it wants to be woken next; an end that produces sends an event when that
 * index is among those it has just published. Source: xen/include/public/io/ring.h.
 */
export const SRING = {
  /** [GST] */
  req_prod: 0,
  /** [back] */
  req_event: 4,
  /** [back] */
  rsp_prod: 8,
  /** [GST] */
  rsp_event: 12,
  /** Slots from here on. */
  ring: 64,
} as const;

/** Slots of a ring of so many bytes: the largest power of two that fits. Source: ring.h, __RING_SIZE. */
export function ringSlots(ringBytes: number, slotBytes: number): number {
  return 1 << (31 - Math.clz32(Math.floor((ringBytes - SRING.ring) / slotBytes)));
}
