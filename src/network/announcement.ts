/**
 * A frame that tells switches where an address is now: what a guest that has moved would have to send, and does not, since it does not
 * know. A request of RARP, which needs no IP address, to all. Source: RFC 903; QEMU's announce-self sends the same.
 */

import { ETHERNET_HEADER_BYTES, Frame } from './frame.ts';

const ETHERTYPE_RARP = 0x8035;
const ETHERTYPE_IPV4 = 0x0800;
const HARDWARE_ETHERNET = 1;
const REQUEST_REVERSE = 3;
/** Ethernet's least, without its checksum. */
const FRAME_BYTES_MIN = 60;

/** `mac`: 6 bytes. */
export function announcement(mac: Uint8Array): Frame {
  const bytes = new Uint8Array(FRAME_BYTES_MIN);
  const view = new DataView(bytes.buffer);
  bytes.fill(0xff, 0, 6);
  bytes.set(mac, 6);
  view.setUint16(12, ETHERTYPE_RARP);
  const body = ETHERNET_HEADER_BYTES;
  view.setUint16(body, HARDWARE_ETHERNET);
  view.setUint16(body + 2, ETHERTYPE_IPV4);
  bytes[body + 4] = 6;
  bytes[body + 5] = 4;
  view.setUint16(body + 6, REQUEST_REVERSE);
  // Both hardware addresses are its own, both protocol addresses unknown.
  bytes.set(mac, body + 8);
  bytes.set(mac, body + 18);
  return new Frame().set(bytes, bytes.length);
}
