/**
 * ARP: gateway and name server answer for themselves. Source: RFC 826.
 */

import { ETHERTYPE_ARP } from '../ethernet.ts';
import { Frame } from '../frame.ts';
import { read16, read32, write16, write32 } from './ipv4.ts';
import type { Lan } from './lan.ts';

const ARP_BYTES = 28;
const HARDWARE_ETHERNET = 1;
const PROTOCOL_IPV4 = 0x0800;
const REQUEST = 1;
const REPLY = 2;
const AT = 14;

const reply = new Uint8Array(60);
const frame = new Frame();

/** Answers an ARP request of `length` bytes for one of the NAT's own addresses. */
export function handleArp(lan: Lan, b: Uint8Array, length: number): void {
  if (length < AT + ARP_BYTES) return;
  if (read16(b, AT) !== HARDWARE_ETHERNET || read16(b, AT + 2) !== PROTOCOL_IPV4 || b[AT + 4] !== 6 || b[AT + 5] !== 4)
    return;
  const target = read32(b, AT + 24);
  const { gatewayIp, dnsIp } = lan.addresses;
  if (read16(b, AT + 6) !== REQUEST || (target !== gatewayIp && target !== dnsIp)) return;
  reply.fill(0);
  for (let i = 0; i < 6; i++) {
    reply[i] = b[AT + 8 + i];
    reply[6 + i] = lan.gatewayMac[i];
    reply[AT + 8 + i] = lan.gatewayMac[i];
    reply[AT + 18 + i] = b[AT + 8 + i];
  }
  write16(reply, 12, ETHERTYPE_ARP);
  write16(reply, AT, HARDWARE_ETHERNET);
  write16(reply, AT + 2, PROTOCOL_IPV4);
  reply[AT + 4] = 6;
  reply[AT + 5] = 4;
  write16(reply, AT + 6, REPLY);
  write32(reply, AT + 14, target);
  write32(reply, AT + 24, read32(b, AT + 14));
  lan.deliver(frame.set(reply, reply.length));
}
