/**
 * One ring of a block device: requests from the guest to a disk image, responses back.
 *
 * A request is copied out of the ring, and its segment descriptors out of their pages, before they are checked; the data goes
 * straight between the guest's pages and the image. Grants are held only while a request is under way, and are given back before
 * its response: the frontend looks. A request that makes no sense gets an error, as from Linux's blkback; indices that make none
 * end the device.
 *
 * What the image can do within the call is done and answered in it. All else runs side by side, REQUESTS_MAX requests at most, and
 * completes in any order. A flush covers all that had been answered when it
 * was taken from the ring. A barrier waits until all before it have completed, and nothing after it begins before it has.
 *
 * Source: xen/include/public/io/blkif.h.
 */

import { EINVAL } from '../abi/errno.ts';
import * as blkif from '../abi/io/blkif.ts';
import type { DiskImage } from '../storage/disk-image.ts';
import type { BackRing } from './back-ring.ts';
import type { GuestChannel, GuestPort } from './guest-port.ts';
import type { DiskTraffic } from './traffic.ts';
import { type DeviceBus, FrontendError } from './xenbus.ts';

/** Offered as feature-max-indirect-segments, as Linux's blkback does: 1 MiB in a request. */
export const INDIRECT_SEGMENTS_MAX = 256;
/** Requests under way in one queue. */
const REQUESTS_MAX = 64;
/** Requests taken in one call, so that a guest that never stops asking leaves room for others. */
const REQUESTS_PER_CALL = 256;
/** One that is done in the call counts once more for each piece of data of so many bytes, as power of two. */
const PIECE_BITS = 14;

const { SECTOR_SIZE, SECTORS_PER_PAGE, BLKIF_REQUEST, BLKIF_REQUEST_SEGMENT, BLKIF_RESPONSE } = blkif;
const TWO_32 = 0x100000000;
/** A sector number whose high word is below this is an exact number in bytes too. */
const SECTOR_HI_END = 1 << 12;

export interface BlockQueueOptions {
  readonly port: GuestPort;
  readonly bus: DeviceBus;
  readonly image: DiskImage;
  readonly readOnly: boolean;
  readonly discards: boolean;
  /** Of the disk, in bytes: 512 or 4096. Requests are whole sectors. */
  readonly sectorBytes: number;
  readonly traffic: DiskTraffic;
}

/** A request under way. Made once, used again and again. */
interface Request {
  readonly idBytes: Uint8Array;
  /** What the response says the request was. */
  operation: number;
  kind: number;
  /** Is the guest's memory written? */
  fills: boolean;
  readonly grefs: Uint32Array;
  grants: number;
  /** Views of guest memory, one for each run of pages that lie side by side. */
  readonly buffers: Uint8Array[];
  offset: number;
  lengthBytes: number;
}

function makeRequest(): Request {
  return {
    idBytes: new Uint8Array(8),
    operation: 0,
    kind: 0,
    fills: false,
    grefs: new Uint32Array(INDIRECT_SEGMENTS_MAX),
    grants: 0,
    buffers: [],
    offset: 0,
    lengthBytes: 0,
  };
}

export class BlockQueue {
  readonly #options: BlockQueueOptions;
  readonly #ring: BackRing;
  readonly #channel: GuestChannel;
  readonly #free: Request[] = Array.from({ length: REQUESTS_MAX }, makeRequest);
  /** The request as it stood in the ring, and the segments of an indirect one. */
  readonly #bytes = new Uint8Array(BLKIF_REQUEST.SIZE);
  readonly #words = new Uint32Array(this.#bytes.buffer);
  readonly #segments = new Uint8Array(INDIRECT_SEGMENTS_MAX * BLKIF_REQUEST_SEGMENT.SIZE);
  readonly #segmentWords = new Uint32Array(this.#segments.buffer);
  readonly #response = new Uint8Array(BLKIF_RESPONSE.SIZE);
  readonly #responseView = new DataView(this.#response.buffer);
  #underWay = 0;
  /** A barrier that waits, or is under way. */
  #barrier: Request | null = null;
  /** Requests wait in the ring for one that completes. */
  #starved = false;
  #stopped = false;
  #whenIdle: (() => void) | null = null;
  /** No more requests are taken: `drain`. */
  #isDraining = false;

  /** Null when the event channel is not the guest's to give. */
  static open(options: BlockQueueOptions, ring: BackRing, eventChannel: number): BlockQueue | null {
    let queue: BlockQueue | null = null;
    const channel = options.port.bindEventChannel(eventChannel, () => queue?.service() ?? false);
    if (channel === null) return null;
    queue = new BlockQueue(options, ring, channel);
    return queue;
  }

  private constructor(options: BlockQueueOptions, ring: BackRing, channel: GuestChannel) {
    this.#options = options;
    this.#ring = ring;
    this.#channel = channel;
  }

  /** Takes what the guest asks for. True: it asks for more; call again in a later turn. */
  service(): boolean {
    if (this.#stopped || this.#isDraining) return false;
    const ring = this.#ring;
    let left = REQUESTS_PER_CALL;
    this.#starved = false;
    do {
      if (!ring.isSane) {
        this.#stopped = true;
        this.#options.bus.fail(new FrontendError(EINVAL, 'the ring holds more requests than it has room for'));
        return false;
      }
      while (ring.waiting > 0) {
        if (this.#free.length === 0 || this.#barrier !== null) {
          this.#starved = true;
          if (this.#barrier === null) this.#options.traffic.outOfRequests++;
          break;
        }
        if (left <= 0) break;
        left -= this.#take();
      }
    } while (!this.#starved && left > 0 && ring.askForEvent());
    this.#push();
    return left <= 0 && !this.#starved;
  }

  /** Takes no more requests; when this resolves, those under way have been answered. Before `stop`. */
  async drain(): Promise<void> {
    this.#isDraining = true;
    await this.#idle();
  }

  async #idle(): Promise<void> {
    if (this.#underWay > 0)
      await new Promise<void>((resolve) => {
        this.#whenIdle = resolve;
      });
  }

  /** Takes no more requests; when this resolves, those under way are over and the ring is the guest's again. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#channel.close();
    await this.#idle();
    this.#ring.unmap();
  }

  #push(): void {
    if (this.#ring.push()) this.#channel.notify();
  }

  #respond(request: Request, status: number): void {
    this.#response.set(request.idBytes, BLKIF_RESPONSE.id);
    this.#response[BLKIF_RESPONSE.operation] = request.operation;
    this.#responseView.setInt16(BLKIF_RESPONSE.status, status, true);
    this.#ring.putResponse(this.#response, BLKIF_RESPONSE.SIZE);
  }

  /** Takes one request from the ring and begins with it, or answers it at once; what that counts of REQUESTS_PER_CALL. */
  #take(): number {
    this.#ring.takeRequest(this.#bytes, BLKIF_REQUEST.SIZE);
    const request = this.#free.pop()!;
    for (let i = 0; i < 8; i++) request.idBytes[i] = this.#bytes[BLKIF_REQUEST.id + i];
    request.operation = this.#bytes[BLKIF_REQUEST.operation];
    request.kind = request.operation;
    request.fills = false;
    const status = this.#prepare(request);
    if (status !== null) {
      this.#respond(request, status);
      this.#free.push(request);
      return 1;
    }
    this.#count(request);
    if (this.#doNow(request)) {
      this.#release(request);
      this.#respond(request, blkif.BLKIF_RSP_OKAY);
      this.#free.push(request);
      return 1 + (request.lengthBytes >>> PIECE_BITS);
    }
    this.#underWay++;
    if (request.kind === blkif.BLKIF_OP_WRITE_BARRIER) this.#barrier = request;
    if (this.#barrier === null || this.#underWay === 1) void this.#run(request);
    return 1;
  }

  /** False: it is not done yet. */
  #doNow({ kind, offset, buffers, lengthBytes }: Request): boolean {
    const { image } = this.#options;
    if (kind === blkif.BLKIF_OP_READ) return image.readNow?.(offset, buffers, lengthBytes) === true;
    return kind === blkif.BLKIF_OP_WRITE && image.writeNow?.(offset, buffers, lengthBytes) === true;
  }

  #count(request: Request): void {
    const { traffic } = this.#options;
    const sectors = request.lengthBytes / SECTOR_SIZE;
    if (request.kind === blkif.BLKIF_OP_READ) {
      traffic.reads++;
      traffic.readSectors += sectors;
    } else if (request.kind === blkif.BLKIF_OP_WRITE || request.kind === blkif.BLKIF_OP_WRITE_BARRIER) {
      traffic.writes++;
      traffic.writtenSectors += sectors;
    }
  }

  /** Checks the request and maps its pages. Null, or the status that answers it. */
  #prepare(request: Request): number | null {
    const { readOnly, discards } = this.#options;
    const bytes = this.#bytes;
    switch (request.operation) {
      case blkif.BLKIF_OP_READ:
      case blkif.BLKIF_OP_WRITE:
      case blkif.BLKIF_OP_WRITE_BARRIER:
      case blkif.BLKIF_OP_FLUSH_DISKCACHE: {
        const count = bytes[BLKIF_REQUEST.nr_segments];
        if (count > blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST) return this.#refuse(`${count} segments`);
        return this.#transfer(request, count, bytes, this.#words, BLKIF_REQUEST.seg);
      }
      case blkif.BLKIF_OP_INDIRECT: {
        const I = blkif.BLKIF_REQUEST_INDIRECT;
        request.operation = bytes[I.indirect_op];
        request.kind = request.operation;
        if (request.kind !== blkif.BLKIF_OP_READ && request.kind !== blkif.BLKIF_OP_WRITE)
          return this.#refuse(`indirect operation ${request.kind}`);
        const count = bytes[I.nr_segments] | (bytes[I.nr_segments + 1] << 8);
        if (count > INDIRECT_SEGMENTS_MAX) return this.#refuse(`${count} indirect segments`);
        // They fit one page: INDIRECT_SEGMENTS_MAX is less than SEGS_PER_INDIRECT_FRAME.
        const gref = this.#words[I.indirect_grefs >> 2];
        const page = this.#options.port.mapGrant(gref, false);
        if (page < 0) return this.#refuse(`grant ${gref} of its segments: status ${page}`);
        const { u8 } = this.#options.port.memory;
        const length = count * BLKIF_REQUEST_SEGMENT.SIZE;
        for (let i = 0; i < length; i++) this.#segments[i] = u8[page + i];
        this.#options.port.unmapGrant(gref, false);
        return this.#transfer(request, count, this.#segments, this.#segmentWords, 0);
      }
      case blkif.BLKIF_OP_DISCARD: {
        const D = blkif.BLKIF_REQUEST_DISCARD;
        if (readOnly) return this.#refuse('a discard on a read-only disk');
        if (!discards || (bytes[D.flag] & blkif.BLKIF_DISCARD_SECURE) !== 0) return blkif.BLKIF_RSP_EOPNOTSUPP;
        const hi = this.#words[(D.nr_sectors >> 2) + 1];
        if (hi !== 0) return this.#refuse('a discard of more sectors than any disk has');
        return this.#place(request, this.#words[D.nr_sectors >> 2]) ? null : blkif.BLKIF_RSP_ERROR;
      }
      default:
        return blkif.BLKIF_RSP_EOPNOTSUPP;
    }
  }

  /** Maps the pages of `count` segments. */
  #transfer(request: Request, count: number, bytes: Uint8Array, words: Uint32Array, at: number): number | null {
    const { port, readOnly } = this.#options;
    const { kind } = request;
    const flushes = kind === blkif.BLKIF_OP_FLUSH_DISKCACHE || kind === blkif.BLKIF_OP_WRITE_BARRIER;
    if (count === 0) {
      request.lengthBytes = 0;
      return flushes ? null : this.#refuse('no segments');
    }
    if (readOnly && kind !== blkif.BLKIF_OP_READ) return this.#refuse('a write on a read-only disk');
    request.fills = kind === blkif.BLKIF_OP_READ;
    const { u8 } = port.memory;
    let sectors = 0;
    let runStart = 0;
    let runEnd = 0;
    for (let i = 0; i < count; i++, at += BLKIF_REQUEST_SEGMENT.SIZE) {
      const gref = words[at >> 2];
      const first = bytes[at + BLKIF_REQUEST_SEGMENT.first_sect];
      const last = bytes[at + BLKIF_REQUEST_SEGMENT.last_sect];
      if (first > last || last >= SECTORS_PER_PAGE) {
        this.#release(request);
        return this.#refuse(`sectors ${first} to ${last} of a page`);
      }
      const page = port.mapGrant(gref, request.fills);
      if (page < 0) {
        this.#release(request);
        return this.#refuse(`grant ${gref}: status ${page}`);
      }
      request.grefs[request.grants++] = gref;
      const start = page + first * SECTOR_SIZE;
      if (start !== runEnd || runEnd === runStart) {
        if (runEnd > runStart) request.buffers.push(u8.subarray(runStart, runEnd));
        runStart = start;
      }
      runEnd = page + (last + 1) * SECTOR_SIZE;
      sectors += last - first + 1;
    }
    request.buffers.push(u8.subarray(runStart, runEnd));
    if (this.#place(request, sectors)) return null;
    this.#release(request);
    return blkif.BLKIF_RSP_ERROR;
  }

  /** Where on the disk: false, after a word about it, when that is not on the disk. */
  #place(request: Request, sectors: number): boolean {
    const { image, sectorBytes } = this.#options;
    const lo = this.#words[BLKIF_REQUEST.sector_number >> 2];
    const hi = this.#words[(BLKIF_REQUEST.sector_number >> 2) + 1];
    request.offset = (hi * TWO_32 + lo) * SECTOR_SIZE;
    request.lengthBytes = sectors * SECTOR_SIZE;
    if (hi < SECTOR_HI_END && request.offset + request.lengthBytes <= image.sizeBytes) {
      if (request.offset % sectorBytes === 0 && request.lengthBytes % sectorBytes === 0) return true;
      this.#refuse(
        `${sectors} sectors at ${request.offset / SECTOR_SIZE}, on a disk with sectors of ${sectorBytes} bytes`,
      );
      return false;
    }
    this.#refuse(`${sectors} sectors at ${hi * TWO_32 + lo}, on a disk of ${image.sizeBytes / SECTOR_SIZE}`);
    return false;
  }

  #refuse(what: string): number {
    this.#options.bus.complain(`refused: ${what}`);
    return blkif.BLKIF_RSP_ERROR;
  }

  /** Gives the guest's pages back, with the word that they were stored into if they may have been. */
  #release(request: Request): void {
    const { port } = this.#options;
    if (request.fills) for (const buffer of request.buffers) port.memoryStored(buffer.byteOffset, buffer.byteLength);
    for (let i = 0; i < request.grants; i++) port.unmapGrant(request.grefs[i], request.fills);
    request.grants = 0;
    request.buffers.length = 0;
  }

  async #run(request: Request): Promise<void> {
    const { image, bus } = this.#options;
    let status = blkif.BLKIF_RSP_OKAY;
    try {
      switch (request.kind) {
        case blkif.BLKIF_OP_READ:
          await image.read(request.offset, request.buffers);
          break;
        case blkif.BLKIF_OP_WRITE:
          await image.write(request.offset, request.buffers);
          break;
        case blkif.BLKIF_OP_DISCARD:
          await image.discard(request.offset, request.lengthBytes);
          break;
        default:
          // The flush comes first: it is about what was written before.
          await image.flush();
          if (request.lengthBytes > 0) await image.write(request.offset, request.buffers);
          if (request.kind === blkif.BLKIF_OP_WRITE_BARRIER) await image.flush();
      }
    } catch (error) {
      status = blkif.BLKIF_RSP_ERROR;
      bus.complain(error instanceof Error ? error.message : String(error));
    }
    this.#release(request);
    this.#completed(request, status);
  }

  #completed(request: Request, status: number): void {
    this.#underWay--;
    if (this.#barrier === request) this.#barrier = null;
    if (!this.#stopped) {
      this.#respond(request, status);
      this.#push();
    }
    this.#free.push(request);
    const barrier = this.#barrier;
    if (barrier !== null && this.#underWay === 1) void this.#run(barrier);
    if (this.#underWay === 0) this.#whenIdle?.();
    if (this.#starved && this.service()) this.#channel.signalSelf();
  }
}
