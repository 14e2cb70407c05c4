/**
 * Linux's TAP device: opening one, and the header that goes before each of its frames (virtio's). The calls that Node lacks are
 * libc's through koffi, an optional dependency. Source: Documentation/networking/tuntap.rst, linux/if_tun.h, linux/virtio_net.h.
 */

import { closeSync, constants, openSync } from 'node:fs';
import { createRequire } from 'node:module';
import {
  CHECKSUM_COMPLETE,
  CHECKSUM_PARTIAL,
  CHECKSUM_VALID,
  type Frame,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
} from '../frame.ts';
import { locate, PacketLayout, PROTOCOL_TCP } from '../packet.ts';

const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const TUN_F_CSUM = 1;
const TUN_F_TSO4 = 2;
const TUN_F_TSO6 = 4;
/** struct ifreq: name[16], then a union. */
const IFREQ_BYTES = 40;
export const INTERFACE_NAME_MAX = 15;

const POLLIN = 1;

type ForeignFunction = (...parameters: readonly (number | bigint | Uint8Array)[]) => number;

interface Libc {
  ioctl: ForeignFunction;
  poll: ForeignFunction;
  pipe: ForeignFunction;
}

function loadLibc(): Libc | null {
  try {
    const koffi = createRequire(import.meta.url)('koffi') as {
      load(path: null): { func(definition: string): ForeignFunction };
    };
    const libc = koffi.load(null);
    return {
      ioctl: libc.func('int ioctl(int, unsigned long, _Inout_ uint8_t*)'),
      poll: libc.func('int poll(_Inout_ uint8_t*, unsigned long, int)'),
      pipe: libc.func('int pipe(_Out_ uint8_t*)'),
    };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND') return null;
    throw error;
  }
}

/** The host gives no TAP device. One line. */
export class TapError extends Error {
  override readonly name = 'TapError';
}

/** Opens a new TAP device with the given name. Throws TapError. The device is gone when the descriptor is closed. */
export function openTap(name: string): number {
  if (name.length === 0 || name.length > INTERFACE_NAME_MAX || !/^[\x21-\x2e\x30-\x7e]+$/.test(name))
    throw new TapError(`\`${name}' cannot be the name of a network interface (1 to ${INTERFACE_NAME_MAX} characters)`);
  const libc = loadLibc();
  if (libc === null) throw new TapError('TAP devices need the package koffi, which is not installed');
  let fd: number;
  try {
    fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK);
  } catch (error) {
    throw new TapError(`cannot open /dev/net/tun: ${(error as NodeJS.ErrnoException).code}`);
  }
  const request = new Uint8Array(IFREQ_BYTES);
  new TextEncoder().encodeInto(name, request);
  new DataView(request.buffer).setUint16(16, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, true);
  if (libc.ioctl(fd, TUNSETIFF, request) !== 0) {
    closeSync(fd);
    throw new TapError(
      `cannot make the TAP device ${name}: it is there already, or this process may not (CAP_NET_ADMIN)`,
    );
  }
  return fd;
}

/** Says which frames the far side takes as they are: all that Frame knows. False: the kernel refuses. */
export function setTapOffloads(fd: number): boolean {
  const libc = loadLibc();
  if (libc === null) return false;
  const koffi = createRequire(import.meta.url)('koffi') as {
    load(path: null): { func(definition: string): ForeignFunction };
  };
  // This request's argument is a number where the others take an address.
  const ioctl = koffi.load(null).func('int ioctl(int, unsigned long, unsigned long)');
  return ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) === 0;
}

/** Two descriptors: what is written to the second can be read from the first. */
export function makePipe(): [number, number] {
  const fds = new Uint8Array(8);
  if (loadLibc()?.pipe(fds) !== 0) throw new TapError('cannot make a pipe');
  const view = new DataView(fds.buffer);
  return [view.getInt32(0, true), view.getInt32(4, true)];
}

/** A function that sleeps until one of two descriptors can be read; true: the first can. */
export function createWaiter(first: number, second: number): () => boolean {
  const libc = loadLibc();
  if (libc === null) throw new TapError('koffi is gone');
  const fds = new Uint8Array(16);
  const view = new DataView(fds.buffer);
  return () => {
    for (const [at, fd] of [
      [0, first],
      [8, second],
    ]) {
      view.setInt32(at, fd, true);
      view.setInt16(at + 4, POLLIN, true);
      view.setInt16(at + 6, 0, true);
    }
    libc.poll(fds, 2, -1);
    return view.getInt16(14, true) === 0 && view.getInt16(6, true) !== 0;
  };
}

/** struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset. */
export const VNET_HEADER_BYTES = 10;
const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
const VIRTIO_NET_HDR_F_DATA_VALID = 2;
const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
const VIRTIO_NET_HDR_GSO_ECN = 0x80;

const layout = new PacketLayout();

/** Writes the header for a frame. */
export function writeVnetHeader(frame: Frame, h: Uint8Array): void {
  h.fill(0, 0, VNET_HEADER_BYTES);
  if (frame.checksum === CHECKSUM_VALID) h[0] = VIRTIO_NET_HDR_F_DATA_VALID;
  if (frame.checksum !== CHECKSUM_PARTIAL && frame.gsoType === GSO_NONE) return;
  if (!locate(frame, layout)) return;
  const isTcp = layout.protocol === PROTOCOL_TCP;
  h[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  h[6] = layout.l4Offset & 0xff;
  h[7] = layout.l4Offset >> 8;
  h[8] = isTcp ? 16 : 6;
  if (frame.gsoType === GSO_NONE || !isTcp) return;
  const headers = layout.l4Offset + layout.l4HeaderLength;
  h[1] = frame.gsoType === GSO_TCPV4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
  h[2] = headers & 0xff;
  h[3] = headers >> 8;
  h[4] = frame.gsoSize & 0xff;
  h[5] = frame.gsoSize >> 8;
}

/** Takes over into the frame what the header at `at` says. */
export function readVnetHeader(b: Uint8Array, at: number, frame: Frame): void {
  frame.checksum =
    (b[at] & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0
      ? CHECKSUM_PARTIAL
      : (b[at] & VIRTIO_NET_HDR_F_DATA_VALID) !== 0
        ? CHECKSUM_VALID
        : CHECKSUM_COMPLETE;
  const gso = b[at + 1] & ~VIRTIO_NET_HDR_GSO_ECN;
  frame.gsoType =
    gso === VIRTIO_NET_HDR_GSO_TCPV4 ? GSO_TCPV4 : gso === VIRTIO_NET_HDR_GSO_TCPV6 ? GSO_TCPV6 : GSO_NONE;
  frame.gsoSize = frame.gsoType === GSO_NONE ? 0 : b[at + 4] | (b[at + 5] << 8);
}
