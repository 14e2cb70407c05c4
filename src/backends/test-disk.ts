/** For tests: a disk in memory, and a frontend of it that does as it is told. */
import * as blkif from '../abi/io/blkif.ts';
import { ringSlots } from '../abi/io/ring.ts';
import type { DiskImage } from '../storage/disk-image.ts';
import { BlockDevice, type BlockOptions } from './block.ts';
import { FakeGuest, FrontRing, makeDevice, type TestDevice, waitForValue } from './testing.ts';
import { XenbusBackend } from './xenbus.ts';

const { BLKIF_REQUEST, BLKIF_RESPONSE } = blkif;

/** A disk in memory that can be told to wait or to fail, and keeps a record. */
export class MemoryImage implements DiskImage {
  readonly format = 'raw';
  readonly readOnly = false;
  bytes: Uint8Array;
  readonly calls: string[] = [];
  /** Requests wait here while it is set. */
  gate: Promise<void> | null = null;
  error: Error | null = null;
  /** Reads and writes are done at once. */
  isQuick = false;
  sizeBytes: number;

  constructor(sectors: number) {
    this.bytes = Uint8Array.from({ length: sectors * 512 }, (_, i) => (i >> 9) + 1);
    this.sizeBytes = this.bytes.length;
  }

  async #call(call: string): Promise<void> {
    this.calls.push(call);
    if (this.gate !== null) await this.gate;
    await Promise.resolve();
    if (this.error !== null) throw this.error;
    this.calls.push(`${call} done`);
  }
  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    await this.#call(`read ${offset} ${buffers.map((b) => b.length).join('+')}`);
    for (let at = offset, i = 0; i < buffers.length; at += buffers[i++].length)
      buffers[i].set(this.bytes.subarray(at, at + buffers[i].length));
  }
  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    await this.#call(`write ${offset} ${buffers.map((b) => b.length).join('+')}`);
    for (let at = offset, i = 0; i < buffers.length; at += buffers[i++].length) this.bytes.set(buffers[i], at);
  }
  readNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    if (!this.isQuick) return false;
    this.calls.push(`read now ${offset} ${lengthBytes}`);
    for (let at = offset, i = 0; i < buffers.length; at += buffers[i++].length)
      buffers[i].set(this.bytes.subarray(at, at + buffers[i].length));
    return true;
  }
  writeNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    if (!this.isQuick) return false;
    this.calls.push(`write now ${offset} ${lengthBytes}`);
    for (let at = offset, i = 0; i < buffers.length; at += buffers[i++].length) this.bytes.set(buffers[i], at);
    return true;
  }
  async flush(): Promise<void> {
    await this.#call('flush');
  }
  async discard(offset: number, lengthBytes: number): Promise<void> {
    await this.#call(`discard ${offset} ${lengthBytes}`);
  }
  async writeZeroes(): Promise<void> {}
  async measure(): Promise<void> {
    this.sizeBytes = this.bytes.length;
  }
  async resize(sizeBytes: number): Promise<void> {
    await this.#call(`resize ${sizeBytes}`);
    const grown = new Uint8Array(sizeBytes);
    grown.set(this.bytes);
    this.bytes = grown;
    this.sizeBytes = sizeBytes;
  }
  async close(): Promise<void> {
    this.calls.push('close');
  }
}

interface Queue {
  readonly ring: FrontRing;
  readonly port: number;
}

interface Response {
  readonly id: number;
  readonly operation: number;
  readonly status: number;
}

export class Frontend {
  readonly guest: FakeGuest;
  readonly image: MemoryImage;
  readonly device: TestDevice;
  readonly backend: XenbusBackend;
  readonly log: string[] = [];
  queues: Queue[] = [];

  static async make(options: Partial<BlockOptions> = {}, guest = new FakeGuest()): Promise<Frontend> {
    const frontend = new Frontend(guest, await makeDevice('vbd', 51712), options);
    await frontend.backend.start();
    return frontend;
  }

  private constructor(guest: FakeGuest, device: TestDevice, options: Partial<BlockOptions>) {
    this.guest = guest;
    this.device = device;
    this.image = new MemoryImage(64);
    this.backend = new XenbusBackend({
      store: device.dom0,
      path: device.backend,
      log: (line) => this.log.push(line),
      device: (bus) =>
        new BlockDevice(guest, bus, {
          image: this.image,
          readOnly: false,
          cdrom: false,
          discards: true,
          sectorBytes: 512,
          ...options,
        }),
    });
  }

  async write(nodes: Record<string, string | number>): Promise<void> {
    for (const [name, value] of Object.entries(nodes))
      await this.device.guest.write(`${this.device.frontend}/${name}`, String(value));
  }

  /** Connects as a good frontend does. */
  async connect({ order = -1, queues = 1 } = {}): Promise<void> {
    this.queues = [];
    if (order >= 0) await this.write({ 'ring-page-order': order });
    if (queues > 1) await this.write({ 'multi-queue-num-queues': queues });
    for (let queue = 0; queue < queues; queue++) {
      const folder = queues === 1 ? '' : `queue-${queue}/`;
      const count = 1 << Math.max(order, 0);
      // Not side by side.
      const pages = Array.from({ length: count }, () => this.guest.allocatePage()).reverse();
      const port = this.guest.allocatePort();
      for (const [i, page] of pages.entries()) {
        this.guest.grant(1000 + queue * 16 + i, page);
        await this.write({ [order < 0 ? `${folder}ring-ref` : `${folder}ring-ref${i}`]: 1000 + queue * 16 + i });
      }
      await this.write({ [`${folder}event-channel`]: port });
      const slots = ringSlots(count * 4096, BLKIF_REQUEST.SIZE);
      this.queues.push({ ring: new FrontRing(this.guest, pages, BLKIF_REQUEST.SIZE, slots), port });
    }
    await this.write({ protocol: 'x86_64-abi', state: 3 });
    await waitForValue(this.device.dom0, `${this.device.backend}/state`, '4');
    await this.write({ state: 4 });
  }

  /** A page with a grant of the same number as it has. */
  page(fill: number, readOnly = false): { gref: number; bytes: Uint8Array } {
    const at = this.guest.allocatePage();
    const bytes = this.guest.memory.u8.subarray(at, at + 4096);
    bytes.fill(fill);
    return { gref: this.guest.grant(at / 4096, at, readOnly), bytes };
  }

  kick(queue = 0): void {
    this.queues[queue].ring.push();
    this.guest.send(this.queues[queue].port);
    this.guest.dispatch();
  }

  /** Waits for so many responses. */
  async responses(count: number, queue = 0): Promise<Response[]> {
    const found: Response[] = [];
    for (let turn = 0; found.length < count && turn < 200; turn++) {
      for (const bytes of this.queues[queue].ring.take(BLKIF_RESPONSE.SIZE)) {
        const view = new DataView(bytes.buffer);
        found.push({ id: Number(view.getBigUint64(0, true)), operation: bytes[8], status: view.getInt16(10, true) });
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
      this.guest.dispatch();
    }
    return found;
  }

  /** One request alone: its status. */
  async ask(bytes: Uint8Array): Promise<number> {
    this.queues[0].ring.put(bytes);
    this.kick();
    const [response] = await this.responses(1);
    return response.status;
  }
}

export interface Segment {
  readonly gref: number;
  readonly first?: number;
  readonly last?: number;
}

export function putSegments(view: DataView, at: number, segments: readonly Segment[]): void {
  for (const { gref, first = 0, last = 7 } of segments) {
    if (at + 8 > view.byteLength) break;
    view.setUint32(at, gref, true);
    view.setUint8(at + 4, first);
    view.setUint8(at + 5, last);
    at += 8;
  }
}

export function request(
  operation: number,
  sector: number | bigint,
  segments: readonly Segment[],
  { id = 1, count = segments.length } = {},
): Uint8Array {
  const bytes = new Uint8Array(BLKIF_REQUEST.SIZE);
  const view = new DataView(bytes.buffer);
  bytes[BLKIF_REQUEST.operation] = operation;
  bytes[BLKIF_REQUEST.nr_segments] = count;
  view.setBigUint64(BLKIF_REQUEST.id, BigInt(id), true);
  view.setBigUint64(BLKIF_REQUEST.sector_number, BigInt(sector), true);
  putSegments(view, BLKIF_REQUEST.seg, segments);
  return bytes;
}

export function discard(sector: number | bigint, sectors: number | bigint, flag = 0): Uint8Array {
  const bytes = request(blkif.BLKIF_OP_DISCARD, sector, []);
  bytes[1] = flag;
  new DataView(bytes.buffer).setBigUint64(24, BigInt(sectors), true);
  return bytes;
}

export function indirect(operation: number, sector: number, gref: number, count: number): Uint8Array {
  const bytes = request(blkif.BLKIF_OP_INDIRECT, sector, []);
  const view = new DataView(bytes.buffer);
  bytes[1] = operation;
  view.setUint16(2, count, true);
  view.setUint32(28, gref, true);
  return bytes;
}

export const { BLKIF_OP_READ: READ, BLKIF_OP_WRITE: WRITE, BLKIF_OP_FLUSH_DISKCACHE: FLUSH } = blkif;
export const { BLKIF_OP_WRITE_BARRIER: BARRIER, BLKIF_RSP_OKAY: OKAY, BLKIF_RSP_ERROR: ERROR } = blkif;
export const UNSUPPORTED = blkif.BLKIF_RSP_EOPNOTSUPP;
