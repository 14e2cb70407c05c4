/**
 * The ring of bytes between the thread that reads a TAP device and the one that has the guest's rings. One writes, one reads.
 * Indices run freely mod 2^32; an entry is its length (4 bytes), then virtio's header and the frame, contiguous, aligned to 4.
 */

export const TAP_RING = {
  /** Index of the next byte to be written; the reader of the device writes it. */
  producer: 0,
  /** Index of the next byte to be taken. */
  consumer: 4,
  /** Not 0: nothing is taken any more, and the reader of the device ends. */
  stop: 8,
  data: 64,
  /** A power of two. */
  size: 1 << 20,
} as const;

/** In the place of a length: the entry starts at the beginning of the ring. */
export const TAP_WRAP = -1;

export interface TapWorkerData {
  readonly fd: number;
  /** Readable when the worker has to end. */
  readonly stopFd: number;
  readonly ring: SharedArrayBuffer;
}
