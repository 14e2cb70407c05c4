/** The thread that waits for frames of a TAP device, and puts them into the ring. */

import { readSync } from 'node:fs';
import { workerData } from 'node:worker_threads';
import { FRAME_BYTES_MAX } from '../frame.ts';
import { createWaiter, VNET_HEADER_BYTES } from './tap-device.ts';
import { TAP_RING, TAP_WRAP, type TapWorkerData } from './tap-ring.ts';

const { fd, stopFd, ring } = workerData as TapWorkerData;
const bytes = new Uint8Array(ring);
const words = new Int32Array(ring);
const PRODUCER = TAP_RING.producer >> 2;
const CONSUMER = TAP_RING.consumer >> 2;
const STOP = TAP_RING.stop >> 2;
const ENTRY_MAX = (4 + VNET_HEADER_BYTES + FRAME_BYTES_MAX + 3) & ~3;

/** Sleeps until `need` bytes are free. False: nobody wants them any more. */
function waitForRoom(producer: number, need: number): boolean {
  for (;;) {
    const consumer = Atomics.load(words, CONSUMER);
    if (Atomics.load(words, STOP) !== 0) return false;
    if (TAP_RING.size - ((producer - consumer) >>> 0) >= need) return true;
    Atomics.wait(words, CONSUMER, consumer);
  }
}

/** Reads one frame into the ring. False: there is none now; null: the device is gone, or nobody wants it. */
function readOne(): boolean | null {
  let producer = Atomics.load(words, PRODUCER);
  let at = producer & (TAP_RING.size - 1);
  if (TAP_RING.size - at < ENTRY_MAX) {
    if (!waitForRoom(producer, TAP_RING.size - at + ENTRY_MAX)) return null;
    Atomics.store(words, (TAP_RING.data + at) >> 2, TAP_WRAP);
    producer = (producer + TAP_RING.size - at) | 0;
    at = 0;
  } else if (!waitForRoom(producer, ENTRY_MAX)) return null;
  let count: number;
  try {
    count = readSync(fd, bytes, TAP_RING.data + at + 4, ENTRY_MAX - 4, null);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EAGAIN' ? false : null;
  }
  Atomics.store(words, (TAP_RING.data + at) >> 2, count);
  Atomics.store(words, PRODUCER, (producer + ((4 + count + 3) & ~3)) | 0);
  Atomics.notify(words, PRODUCER);
  return true;
}

const wait = createWaiter(fd, stopFd);
for (;;) {
  const read = readOne();
  if (read === null || (!read && !wait())) break;
}
