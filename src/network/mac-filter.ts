/**
 * `macfilter=1`: whether a frame is from whom its interface belongs to. What a frame says of its sender is the Ethernet source, and in
 * ARP and RARP the sender's hardware address again, which is what others note. Behind VLAN tags it is looked for, too.
 *
 * IP addresses are not looked at, nor what IPv6's neighbour discovery says in its options. Source: IEEE 802.3, 802.1Q; RFC 826, 903.
 */

import { ETHERTYPE_ARP, ETHERTYPE_VLAN, MAC_BYTES } from './ethernet.ts';
import type { Frame } from './frame.ts';

const ETHERTYPE_RARP = 0x8035;
/** Of service tags. Source: IEEE 802.1ad. */
const ETHERTYPE_PROVIDER_VLAN = 0x88a8;
const TAG_BYTES = 4;
const TYPE_AT = 2 * MAC_BYTES;
/** In the packet: behind hardware type, protocol type, two lengths and the operation. */
const ARP_SENDER_AT = 8;

/** `frame` has at least an Ethernet header; `mac`: 6 bytes. An ARP packet that ends before its sender is from nobody. */
export function isFrom(frame: Frame, mac: Uint8Array): boolean {
  const b = frame.head;
  const have = frame.headLength;
  if (!isAt(b, MAC_BYTES, mac)) return false;
  let at = TYPE_AT;
  let type = (b[at] << 8) | b[at + 1];
  while (type === ETHERTYPE_VLAN || type === ETHERTYPE_PROVIDER_VLAN) {
    at += TAG_BYTES;
    // A tag with nothing behind it.
    if (at + 2 > have) return true;
    type = (b[at] << 8) | b[at + 1];
  }
  if (type !== ETHERTYPE_ARP && type !== ETHERTYPE_RARP) return true;
  const sender = at + 2 + ARP_SENDER_AT;
  return sender + MAC_BYTES <= have && isAt(b, sender, mac);
}

function isAt(b: Uint8Array, at: number, mac: Uint8Array): boolean {
  for (let i = 0; i < MAC_BYTES; i++) if (b[at + i] !== mac[i]) return false;
  return true;
}
