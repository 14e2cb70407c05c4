/**
 * A TAP device as a network: what the host sends to the interface comes to the guest, and the reverse. A thread waits for frames
 * (tap-worker.ts); frames to the host are written at once, which takes some microseconds.
 */

import { closeSync, writeSync, writevSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { createLinkStatistics, Frame, type FramePort, type LinkStatistics, type NetworkEnd } from '../frame.ts';
import { makePipe, openTap, readVnetHeader, setTapOffloads, VNET_HEADER_BYTES, writeVnetHeader } from './tap-device.ts';
import { TAP_RING, TAP_WRAP, type TapWorkerData } from './tap-ring.ts';

const PRODUCER = TAP_RING.producer >> 2;
const CONSUMER = TAP_RING.consumer >> 2;
const STOP = TAP_RING.stop >> 2;
/** Frames handed on in one turn of the event loop. */
const FRAMES_PER_TURN = 256;

export class TapPort implements NetworkEnd {
  readonly name: string;
  readonly statistics: LinkStatistics = createLinkStatistics();
  /** Called once, when the port is closed. */
  onClose: (() => Promise<void>) | null = null;
  readonly #fd: number;
  readonly #stopFd: number;
  readonly #worker: Worker;
  /** The interface is gone. */
  readonly #gone: Promise<void>;
  readonly #bytes: Uint8Array;
  readonly #words: Int32Array;
  readonly #frame = new Frame();
  readonly #header = new Uint8Array(VNET_HEADER_BYTES);
  #device: FramePort | null = null;
  #open = true;
  #stalled = false;

  /** Makes the interface. Throws TapError. */
  constructor(name: string) {
    this.name = name;
    this.#fd = openTap(name);
    setTapOffloads(this.#fd);
    const [stopFd, wakeFd] = makePipe();
    this.#stopFd = wakeFd;
    const ring = new SharedArrayBuffer(TAP_RING.data + TAP_RING.size);
    this.#bytes = new Uint8Array(ring);
    this.#words = new Int32Array(ring);
    const data: TapWorkerData = { fd: this.#fd, stopFd, ring };
    const url = new URL(import.meta.url.endsWith('.ts') ? './tap-worker.ts' : './tap-worker.js', import.meta.url);
    this.#worker = new Worker(url, { workerData: data });
    this.#worker.unref();
    this.#gone = new Promise((resolve) => {
      this.#worker.on('exit', () => {
        // Somebody else may have taken the interface away; the numbers are others' soon.
        this.#open = false;
        this.#device = null;
        closeSync(this.#fd);
        closeSync(stopFd);
        closeSync(wakeFd);
        resolve();
      });
    });
  }

  connect(device: FramePort): void {
    this.#device = device;
    void this.#serve();
  }

  async close(): Promise<void> {
    const told = this.onClose?.();
    this.onClose = null;
    if (!this.#open) return void (await Promise.all([told, this.#gone]));
    this.#open = false;
    this.#device = null;
    // Somebody waits for its end.
    this.#worker.ref();
    writeSync(this.#stopFd, Uint8Array.of(1));
    Atomics.store(this.#words, STOP, 1);
    // Both sides may sleep on the ring.
    Atomics.store(this.#words, CONSUMER, Atomics.load(this.#words, PRODUCER));
    Atomics.notify(this.#words, CONSUMER);
    Atomics.notify(this.#words, PRODUCER);
    await Promise.all([told, this.#gone]);
  }

  send(frame: Frame): boolean {
    if (!this.#open) return true;
    writeVnetHeader(frame, this.#header);
    const parts = [this.#header, frame.head.subarray(0, frame.headLength)];
    if (frame.tailLength > 0) parts.push(frame.tail.subarray(frame.tailStart, frame.tailStart + frame.tailLength));
    try {
      writevSync(this.#fd, parts);
    } catch (error) {
      // The interface is down (EIO), full (EAGAIN), or takes no such frame (EINVAL): as with a cable, the frame is lost.
      if (!['EIO', 'EAGAIN', 'EINVAL', 'ENOBUFS'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
      this.statistics.dropped++;
      return true;
    }
    this.statistics.framesIn++;
    this.statistics.bytesIn += frame.length;
    return true;
  }

  flush(): void {}

  room(): void {
    if (this.#stalled) {
      this.#stalled = false;
      this.#take();
    }
  }

  async #serve(): Promise<void> {
    while (this.#open) {
      const producer = Atomics.load(this.#words, PRODUCER);
      if (this.#stalled || producer === Atomics.load(this.#words, CONSUMER)) {
        const wait = Atomics.waitAsync(this.#words, PRODUCER, producer);
        if (wait.async) await wait.value;
      } else {
        this.#take();
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
  }

  /** Hands on what is in the ring. */
  #take(): void {
    const device = this.#device;
    if (device === null) return;
    const words = this.#words;
    let consumer = Atomics.load(words, CONSUMER);
    for (let i = 0; i < FRAMES_PER_TURN && consumer !== Atomics.load(words, PRODUCER); i++) {
      const at = consumer & (TAP_RING.size - 1);
      const length = words[(TAP_RING.data + at) >> 2];
      if (length === TAP_WRAP) {
        consumer = (consumer + TAP_RING.size - at) | 0;
        continue;
      }
      const start = TAP_RING.data + at + 4;
      if (length > VNET_HEADER_BYTES) {
        const size = length - VNET_HEADER_BYTES;
        const from = start + VNET_HEADER_BYTES;
        this.#frame.set(this.#bytes.subarray(from, from + size), size);
        readVnetHeader(this.#bytes, start, this.#frame);
        if (!device.send(this.#frame)) {
          this.#stalled = true;
          break;
        }
        this.statistics.framesOut++;
        this.statistics.bytesOut += size;
      }
      consumer = (consumer + ((4 + length + 3) & ~3)) | 0;
    }
    Atomics.store(words, CONSUMER, consumer);
    Atomics.notify(words, CONSUMER);
    device.flush();
  }
}
