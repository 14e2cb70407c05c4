/**
 * What travels on a link, and the one interface that everything with a link has: Ethernet switch, NAT, TAP, network backend.
 *
 * A frame is borrowed: it is the sender's again when `send` returns, so whoever keeps it copies it. That way a sender fills one
 * Frame over and over. Frames may be as large as an IP packet (GSO) and may lack their TCP or UDP checksum, as with Linux and
 * Xen's network rings; every port takes every frame, and one whose far side knows no such thing does the work (segments.ts).
 */

/** The frame's TCP or UDP checksum is there, and nobody has checked it. */
export const CHECKSUM_COMPLETE = 0;
/** The checksum field has the sum of the pseudo-header only: addresses, protocol, length. */
export const CHECKSUM_PARTIAL = 1;
/** The checksum is known to be right, or the data never left the host. */
export const CHECKSUM_VALID = 2;

export const GSO_NONE = 0;
export const GSO_TCPV4 = 1;
export const GSO_TCPV6 = 2;

/** Ethernet header. Source: IEEE 802.3. */
export const ETHERNET_HEADER_BYTES = 14;
/** The largest frame: an IP packet of 65535 bytes with Ethernet and VLAN header. */
export const FRAME_BYTES_MAX = 65535 + ETHERNET_HEADER_BYTES + 4;
/** Without GSO, a frame carries at most this much after its Ethernet header. */
export const MTU = 1500;

const NOTHING = new Uint8Array(0);

/** One frame: `head`, then `tail`, so that a sender can put headers before data that lie elsewhere. */
export class Frame {
  /** Has at least all protocol headers of the frame when there is a tail. */
  head: Uint8Array = NOTHING;
  headLength = 0;
  tail: Uint8Array = NOTHING;
  tailStart = 0;
  tailLength = 0;
  /** CHECKSUM_*. */
  checksum = CHECKSUM_COMPLETE;
  /** GSO_*: the frame stands for several TCP segments of `gsoSize` bytes. */
  gsoType = GSO_NONE;
  gsoSize = 0;

  get length(): number {
    return this.headLength + this.tailLength;
  }

  /** Makes it a plain frame of one piece. */
  set(bytes: Uint8Array, length: number): this {
    this.head = bytes;
    this.headLength = length;
    this.tail = NOTHING;
    this.tailStart = 0;
    this.tailLength = 0;
    this.checksum = CHECKSUM_COMPLETE;
    this.gsoType = GSO_NONE;
    this.gsoSize = 0;
    return this;
  }

  /** Adds the piece that follows the head. */
  setTail(bytes: Uint8Array, start: number, length: number): this {
    this.tail = bytes;
    this.tailStart = start;
    this.tailLength = length;
    return this;
  }

  /** Copies the whole frame to `target` at `at`. */
  copyTo(target: Uint8Array, at: number): void {
    this.copyPart(0, this.length, target, at);
  }

  /** Copies `count` bytes from `start` on, which lie within the frame. */
  copyPart(start: number, count: number, target: Uint8Array, at: number): void {
    const fromHead = Math.min(count, this.headLength - start);
    if (fromHead > 0) {
      copyBytes(this.head, start, target, at, fromHead);
      if (fromHead === count) return;
      start += fromHead;
      at += fromHead;
      count -= fromHead;
    }
    copyBytes(this.tail, this.tailStart + start - this.headLength, target, at, count);
  }
}

/** Below this many bytes a loop is quicker than making a view. */
const LOOP_BYTES = 32;

export function copyBytes(source: Uint8Array, start: number, target: Uint8Array, at: number, count: number): void {
  if (count <= LOOP_BYTES) for (let i = 0; i < count; i++) target[at + i] = source[start + i];
  else target.set(source.subarray(start, start + count), at);
}

/** One end of a link. Whoever sits at the other end calls these. */
export interface FramePort {
  /** Takes a frame of at least an Ethernet header. False: there is no room now, the frame is not taken, and `room` will be called. */
  send(frame: Frame): boolean;
  /** Ends a batch of `send`. */
  flush(): void;
  /** What the other end refused with `send` may be tried again. */
  room(): void;
}

/** What a network device is plugged into. */
export interface NetworkEnd extends FramePort {
  /** Plugs in the device. Called once, before anything else. */
  connect(device: FramePort): void;
  /** Unplugs: no more frames either way. What the host had for it is gone when this is done. */
  close(): void | Promise<void>;
}

export interface LinkStatistics {
  /** From the device. */
  framesIn: number;
  bytesIn: number;
  /** To the device. */
  framesOut: number;
  bytesOut: number;
  /** Of either, thrown away. */
  dropped: number;
}

export function createLinkStatistics(): LinkStatistics {
  return { framesIn: 0, bytesIn: 0, framesOut: 0, bytesOut: 0, dropped: 0 };
}
