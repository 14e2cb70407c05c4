/**
 * In software what a network card does for a driver: completes partial checksums, and cuts a GSO frame into TCP segments. For
 * far sides that know neither: a guest without these features, a TAP without a header for them. Source: RFC 1071, 9293.
 */

import { pseudoSum4, pseudoSum6, sumBytes, writeIpv4Checksum } from './checksum.ts';
import { CHECKSUM_COMPLETE, CHECKSUM_PARTIAL, FRAME_BYTES_MAX, type Frame, GSO_NONE } from './frame.ts';
import { LAYER_IPV4, locate, PacketLayout, PROTOCOL_TCP } from './packet.ts';

const TCP_FIN = 1;
const TCP_PSH = 8;
const TCP_CWR = 0x80;

const layout = new PacketLayout();
const whole = new Uint8Array(FRAME_BYTES_MAX);
const segment = new Uint8Array(FRAME_BYTES_MAX);

function writeTransportChecksum(bytes: Uint8Array): void {
  const { ipOffset, l4Offset, end, protocol } = layout;
  const at = l4Offset + (protocol === PROTOCOL_TCP ? 16 : 6);
  const length = end - l4Offset;
  const pseudo =
    layout.layer === LAYER_IPV4
      ? pseudoSum4(bytes, ipOffset, protocol, length)
      : pseudoSum6(bytes, ipOffset, protocol, length);
  bytes[at] = 0;
  bytes[at + 1] = 0;
  let sum = pseudo + sumBytes(bytes, l4Offset, length);
  sum = ((sum & 0xffff) + (sum >>> 16)) ^ 0xffff;
  // UDP spells a sum of 0 as 0xffff, because 0 means "none".
  if (sum === 0 && protocol !== PROTOCOL_TCP) sum = 0xffff;
  bytes[at] = sum >>> 8;
  bytes[at + 1] = sum & 0xff;
}

/** How many frames `softenFrame` makes of this one. */
export function countSegments(frame: Frame): number {
  if (frame.gsoType === GSO_NONE || frame.gsoSize === 0 || !locate(frame, layout) || layout.protocol !== PROTOCOL_TCP)
    return 1;
  const payload = layout.end - layout.l4Offset - layout.l4HeaderLength;
  return Math.max(1, Math.ceil(payload / frame.gsoSize));
}

/**
 * Hands on the frame as frames of one piece without GSO, with complete checksums, each borrowed for the call. A frame that is
 * not what it claims to be goes on as it is.
 */
export function softenFrame(frame: Frame, out: Frame, take: (frame: Frame) => void): void {
  const length = frame.length;
  if (length > FRAME_BYTES_MAX) return;
  const known = (frame.checksum === CHECKSUM_PARTIAL || frame.gsoType !== GSO_NONE) && locate(frame, layout);
  frame.copyTo(whole, 0);
  if (!known) {
    take(out.set(whole, length));
    return;
  }
  const { ipOffset, l4Offset, l4HeaderLength } = layout;
  const data = l4Offset + l4HeaderLength;
  const payload = layout.end - data;
  const size = frame.gsoSize;
  if (frame.gsoType === GSO_NONE || layout.protocol !== PROTOCOL_TCP || size === 0 || payload <= size) {
    writeTransportChecksum(whole);
    take(out.set(whole, length));
    return;
  }
  segment.set(whole.subarray(0, data));
  const isIpv4 = layout.layer === LAYER_IPV4;
  const view = new DataView(segment.buffer);
  const sequence = view.getUint32(l4Offset + 4);
  const identification = view.getUint16(ipOffset + 4);
  const flags = segment[l4Offset + 13];
  for (let done = 0, index = 0; done < payload; done += size, index++) {
    const count = Math.min(size, payload - done);
    segment.set(whole.subarray(data + done, data + done + count), data);
    layout.end = data + count;
    view.setUint32(l4Offset + 4, (sequence + done) >>> 0);
    segment[l4Offset + 13] = flags & ~(done + count < payload ? TCP_FIN | TCP_PSH : 0) & ~(index > 0 ? TCP_CWR : 0);
    if (isIpv4) {
      view.setUint16(ipOffset + 2, layout.end - ipOffset);
      view.setUint16(ipOffset + 4, (identification + index) & 0xffff);
      writeIpv4Checksum(segment, ipOffset, l4Offset - ipOffset);
    } else view.setUint16(ipOffset + 4, layout.end - ipOffset - 40);
    writeTransportChecksum(segment);
    const one = out.set(segment, layout.end);
    one.checksum = CHECKSUM_COMPLETE;
    take(one);
  }
}
