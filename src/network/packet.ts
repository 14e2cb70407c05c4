/**
 * Where the headers of a frame lie. Every length is checked against the bytes that are there: what is not a whole, well-formed
 * IPv4 or IPv6 packet with TCP or UDP in it is `LAYER_OTHER`, and left alone. Source: RFC 791, 8200, 9293, 768; IEEE 802.1Q.
 */

import { ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN } from './ethernet.ts';
import type { Frame } from './frame.ts';

export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;

export const LAYER_OTHER = 0;
export const LAYER_IPV4 = 4;
export const LAYER_IPV6 = 6;

const IPV6_HOP_BY_HOP = 0;
const IPV6_ROUTING = 43;
const IPV6_DESTINATION = 60;
const IPV6_EXTENSIONS_MAX = 8;

/** Filled by `locate`; made once by whoever needs it. Offsets are from the frame's start, within its head. */
export class PacketLayout {
  layer = LAYER_OTHER;
  ipOffset = 0;
  /** PROTOCOL_TCP or PROTOCOL_UDP. */
  protocol = 0;
  l4Offset = 0;
  /** Length of the TCP or UDP header. */
  l4HeaderLength = 0;
  /** Where the IP packet ends; bytes after it are padding. */
  end = 0;
}

const u16 = (b: Uint8Array, at: number): number => (b[at] << 8) | b[at + 1];

/** Finds the TCP or UDP header. False: there is none that is whole, or the packet is a fragment. */
export function locate(frame: Frame, layout: PacketLayout): boolean {
  const b = frame.head;
  const have = frame.headLength;
  layout.layer = LAYER_OTHER;
  let at = 14;
  if (have < at) return false;
  let type = u16(b, 12);
  if (type === ETHERTYPE_VLAN) {
    if (have < 18) return false;
    type = u16(b, 16);
    at = 18;
  }
  layout.ipOffset = at;
  let protocol: number;
  let l4: number;
  let end: number;
  if (type === ETHERTYPE_IPV4) {
    if (have < at + 20 || b[at] >> 4 !== 4) return false;
    const header = (b[at] & 15) * 4;
    if (header < 20 || have < at + header) return false;
    end = at + u16(b, at + 2);
    if ((u16(b, at + 6) & 0x3fff) !== 0) return false;
    protocol = b[at + 9];
    l4 = at + header;
  } else if (type === ETHERTYPE_IPV6) {
    if (have < at + 40 || b[at] >> 4 !== 6) return false;
    end = at + 40 + u16(b, at + 4);
    protocol = b[at + 6];
    l4 = at + 40;
    for (let i = 0; protocol === IPV6_HOP_BY_HOP || protocol === IPV6_ROUTING || protocol === IPV6_DESTINATION; i++) {
      if (i === IPV6_EXTENSIONS_MAX || have < l4 + 8) return false;
      protocol = b[l4];
      l4 += (b[l4 + 1] + 1) * 8;
    }
  } else return false;
  if (end > frame.length || end < l4) return false;
  const headerMin = protocol === PROTOCOL_TCP ? 20 : protocol === PROTOCOL_UDP ? 8 : -1;
  if (headerMin < 0 || l4 + headerMin > end || l4 + headerMin > have) return false;
  const headerLength = protocol === PROTOCOL_TCP ? (b[l4 + 12] >> 4) * 4 : 8;
  if (headerLength < headerMin || l4 + headerLength > end || l4 + headerLength > have) return false;
  layout.layer = type === ETHERTYPE_IPV4 ? LAYER_IPV4 : LAYER_IPV6;
  layout.protocol = protocol;
  layout.l4Offset = l4;
  layout.l4HeaderLength = headerLength;
  layout.end = end;
  return true;
}
