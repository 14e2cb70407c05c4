/** For tests: frames, made from what a test wants to say. */

import { writeIpv4Checksum } from './checksum.ts';

export interface TcpFrameParts {
  readonly payload: Uint8Array;
  readonly source?: number;
  readonly destination?: number;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly sequence?: number;
  readonly acknowledgement?: number;
  readonly flags?: number;
  readonly window?: number;
  /** Bytes of TCP options, a multiple of 4 of them. */
  readonly options?: readonly number[];
}

export const GUEST_MAC = Uint8Array.of(0x00, 0x16, 0x3e, 0x01, 0x02, 0x03);
export const GATEWAY_MAC = Uint8Array.of(0x52, 0x55, 0x0a, 0x00, 0x02, 0x02);

/** Ethernet and IPv4 header around a payload, from the guest's address to the gateway's. */
export function ipv4Frame(
  protocol: number,
  payload: Uint8Array,
  source = 0x0a00020f,
  destination = 0x0a000202,
  fragment = 0,
  identification = 0,
): Uint8Array {
  const bytes = new Uint8Array(34 + payload.length);
  const view = new DataView(bytes.buffer);
  bytes.set(GATEWAY_MAC);
  bytes.set(GUEST_MAC, 6);
  view.setUint16(12, 0x0800);
  bytes[14] = 0x45;
  view.setUint16(16, 20 + payload.length);
  view.setUint16(18, identification);
  view.setUint16(20, fragment);
  bytes[22] = 64;
  bytes[23] = protocol;
  view.setUint32(26, source);
  view.setUint32(30, destination);
  writeIpv4Checksum(bytes, 14, 20);
  bytes.set(payload, 34);
  return bytes;
}

/** A TCP segment without its checksum. */
export function tcpFrame(parts: TcpFrameParts): Uint8Array {
  const options = parts.options ?? [];
  const header = 20 + options.length;
  const segment = new Uint8Array(header + parts.payload.length);
  const view = new DataView(segment.buffer);
  view.setUint16(0, parts.sourcePort ?? 40_000);
  view.setUint16(2, parts.destinationPort ?? 80);
  view.setUint32(4, (parts.sequence ?? 0) >>> 0);
  view.setUint32(8, (parts.acknowledgement ?? 0) >>> 0);
  segment[12] = (header / 4) << 4;
  segment[13] = parts.flags ?? 0x10;
  view.setUint16(14, parts.window ?? 0xffff);
  segment.set(options, 20);
  segment.set(parts.payload, header);
  return ipv4Frame(6, segment, parts.source, parts.destination);
}

export function udpFrame(
  sourcePort: number,
  destinationPort: number,
  payload: Uint8Array,
  source?: number,
  destination?: number,
): Uint8Array {
  const datagram = new Uint8Array(8 + payload.length);
  const view = new DataView(datagram.buffer);
  view.setUint16(0, sourcePort);
  view.setUint16(2, destinationPort);
  view.setUint16(4, datagram.length);
  datagram.set(payload, 8);
  return ipv4Frame(17, datagram, source, destination);
}
