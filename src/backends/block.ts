/**
 * Dom0's side of a virtual disk: what it tells of the disk in xenstore, and the queues that its frontend asks for.
 *
 * feature-persistent is not offered: the guest's pages are used where they are, and to map one costs less than the copy
 * that persistent grants make of everything.
 *
 * Source: xen/include/public/io/blkif.h, "Backend XenBus Nodes" and "Frontend XenBus Nodes".
 */

import { EINVAL } from '../abi/errno.ts';
import { BLKIF_REQUEST, SECTOR_SIZE, VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE } from '../abi/io/blkif.ts';
import { XEN_IO_PROTO_ABI_X86_64 } from '../abi/io/protocols.ts';
import type { DiskImage } from '../storage/disk-image.ts';
import { BackRing } from './back-ring.ts';
import { BlockQueue, INDIRECT_SEGMENTS_MAX } from './block-queue.ts';
import type { GuestPort } from './guest-port.ts';
import { DiskTraffic } from './traffic.ts';
import { type BackendDevice, type DeviceBus, FrontendError, type FrontendNodes, type Nodes } from './xenbus.ts';

/** Offered as max-ring-page-order, as Linux's blkback does: 512 requests. */
const RING_PAGE_ORDER_MAX = 4;
const QUEUES_MAX = 4;
/** Ports are checked when they are bound, references when they are mapped. */
const U32_MAX = 0xffffffff;
/** A request of the toolstack: the size that the disk shall have, in bytes, or that it shall have the size of its file or device. */
export const RESIZE_NODE = 'resize';
export const RESIZE_AS_IT_IS = 'measure';

export interface BlockOptions {
  readonly image: DiskImage;
  readonly readOnly: boolean;
  readonly cdrom: boolean;
  /** May the guest give back what it does not need? */
  readonly discards: boolean;
  /** In bytes: 512 or 4096. */
  readonly sectorBytes: 512 | 4096;
  /** Done when the image is closed. */
  readonly afterClose?: () => Promise<void>;
}

export class BlockDevice implements BackendDevice {
  readonly waitsForHotplug = true;
  readonly requests = { [RESIZE_NODE]: (value: string) => this.#resize(value) };
  readonly traffic = new DiskTraffic();
  readonly #port: GuestPort;
  readonly #bus: DeviceBus;
  readonly #options: Omit<BlockOptions, 'image'>;
  #image: DiskImage;
  #queues: BlockQueue[] = [];

  constructor(port: GuestPort, bus: DeviceBus, { image, ...options }: BlockOptions) {
    this.#port = port;
    this.#bus = bus;
    this.#options = options;
    this.#image = image;
  }

  get image(): DiskImage {
    return this.#image;
  }

  /** The same disk in another image, while no frontend is served. The one before is the caller's to close. */
  set image(image: DiskImage) {
    this.#image = image;
  }

  announce(): Nodes {
    const { readOnly, discards, sectorBytes } = this.#options;
    const writable = readOnly ? '0' : '1';
    return {
      'feature-barrier': writable,
      'feature-flush-cache': writable,
      'feature-persistent': '0',
      'feature-max-indirect-segments': String(INDIRECT_SEGMENTS_MAX),
      'max-ring-page-order': String(RING_PAGE_ORDER_MAX),
      'multi-queue-max-queues': String(QUEUES_MAX),
      ...(discards && !readOnly
        ? {
            'feature-discard': '1',
            'discard-alignment': '0',
            'discard-granularity': String(Math.max(4096, sectorBytes)),
            'discard-secure': '0',
          }
        : {}),
    };
  }

  async connect(frontend: FrontendNodes): Promise<Nodes> {
    const protocol = (await frontend.text('protocol')) ?? XEN_IO_PROTO_ABI_X86_64;
    if (protocol !== XEN_IO_PROTO_ABI_X86_64)
      throw new FrontendError(
        EINVAL,
        `${frontend.path}/protocol: ${XEN_IO_PROTO_ABI_X86_64} is expected, found ${JSON.stringify(protocol)}`,
      );
    const queues = await frontend.number('multi-queue-num-queues', 1, QUEUES_MAX, 1);
    const order = await frontend.number('ring-page-order', 0, RING_PAGE_ORDER_MAX, -1);
    for (let queue = 0; queue < queues; queue++)
      this.#queues.push(await this.#openQueue(frontend, queues === 1 ? '' : `queue-${queue}/`, order));
    const { sectorBytes } = this.#options;
    return {
      ...this.#size(),
      info: String(this.#info()),
      'sector-size': String(sectorBytes),
      'physical-sector-size': String(sectorBytes),
    };
  }

  /** `order` is -1 when the frontend knows of rings of one page only. */
  async #openQueue(frontend: FrontendNodes, folder: string, order: number): Promise<BlockQueue> {
    const eventChannel = await frontend.number(`${folder}event-channel`, 1, U32_MAX);
    const grefs: number[] = [];
    if (order < 0) grefs.push(await frontend.number(`${folder}ring-ref`, 0, U32_MAX));
    else
      for (let page = 0; page < 1 << order; page++)
        grefs.push(await frontend.number(`${folder}ring-ref${page}`, 0, U32_MAX));
    const ring = BackRing.map(this.#port, grefs, BLKIF_REQUEST.SIZE);
    if (ring === null)
      throw new FrontendError(EINVAL, `${frontend.path}/${folder}ring-ref: ${grefs.join(' ')} grant no ring`);
    const { readOnly, discards, sectorBytes } = this.#options;
    const { traffic, image } = this;
    const options = { port: this.#port, bus: this.#bus, image, readOnly, discards, sectorBytes, traffic };
    const queue = BlockQueue.open(options, ring, eventChannel);
    if (queue !== null) return queue;
    ring.unmap();
    throw new FrontendError(EINVAL, `${frontend.path}/${folder}event-channel: ${eventChannel} is no port for Dom0`);
  }

  #info(): number {
    const { cdrom, readOnly } = this.#options;
    return (cdrom ? VDISK_CDROM | VDISK_REMOVABLE : 0) | (readOnly ? VDISK_READONLY : 0);
  }

  #size(): Nodes {
    return { sectors: String(Math.floor(this.#image.sizeBytes / SECTOR_SIZE)) };
  }

  /** Makes the disk larger, or finds that it is, and tells the frontend. */
  async #resize(value: string): Promise<void> {
    const { image } = this;
    await image.measure?.();
    if (value !== RESIZE_AS_IT_IS) {
      const sizeBytes = /^\d{1,16}$/.test(value) ? Number(value) : Number.NaN;
      if (!Number.isSafeInteger(sizeBytes) || sizeBytes % SECTOR_SIZE !== 0)
        throw new Error(
          `a size in bytes, whole sectors of ${SECTOR_SIZE}, is expected, found ${JSON.stringify(value)}`,
        );
      if (sizeBytes < image.sizeBytes)
        throw new Error(
          `cannot shrink from ${image.sizeBytes} to ${sizeBytes} bytes: the guest may use what lies behind that`,
        );
      if (sizeBytes > image.sizeBytes) await image.resize(sizeBytes);
    }
    await this.#bus.update(this.#size());
  }

  async drain(): Promise<void> {
    await Promise.all(this.#queues.map((queue) => queue.drain()));
    // What a guest was told is done, is; and who opens the file next sees it.
    if (this.#queues.length > 0 && !this.#options.readOnly) await this.#image.flush();
  }

  async disconnect(): Promise<void> {
    await Promise.all(this.#queues.splice(0).map((queue) => queue.stop()));
  }

  async close(): Promise<void> {
    await this.#image.close();
    await this.#options.afterClose?.();
  }
}
