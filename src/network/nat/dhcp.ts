/**
 * A DHCP server with one address to give, to whoever asks: there is one guest on the cable. It remembers nothing, because the
 * answer is always the same. Source: RFC 2131 (3, 4.3), RFC 2132, RFC 3397 (domain search).
 */

import { Frame } from '../frame.ts';
import { PROTOCOL_UDP } from '../packet.ts';
import { L4, read16, read32, write16, write32, writeHeaders } from './ipv4.ts';
import type { Lan } from './lan.ts';

export const DHCP_SERVER_PORT = 67;
const DHCP_CLIENT_PORT = 68;

const BOOTREQUEST = 1;
const BOOTREPLY = 2;
const MAGIC_COOKIE = 0x63825363;
const BOOTP_BYTES = 236;
const OPTIONS = BOOTP_BYTES + 4;
const FLAG_BROADCAST = 0x8000;

const OPTION_PAD = 0;
const OPTION_SUBNET_MASK = 1;
const OPTION_ROUTER = 3;
const OPTION_DNS = 6;
const OPTION_REQUESTED_ADDRESS = 50;
const OPTION_LEASE_TIME = 51;
const OPTION_MESSAGE_TYPE = 53;
const OPTION_SERVER = 54;
const OPTION_END = 255;
const OPTION_DOMAIN_SEARCH = 119;

const DISCOVER = 1;
const OFFER = 2;
const REQUEST = 3;
const ACK = 5;
const NAK = 6;
const INFORM = 8;

const LEASE_SECONDS = 86_400;
/** Bytes of the DHCP message, so that the smallest client takes it. Source: RFC 2131 (2), 576 bytes of IP packet. */
const MESSAGE_BYTES_MAX = 548;
const UDP_HEADER_BYTES = 8;
const BROADCAST_MAC = new Uint8Array(6).fill(0xff);

const bytes = new Uint8Array(L4 + UDP_HEADER_BYTES + MESSAGE_BYTES_MAX);
const frame = new Frame();

/** Where the value of an option starts, its length byte being before it; or -1. */
function findOption(b: Uint8Array, at: number, end: number, wanted: number): number {
  while (at < end) {
    const option = b[at];
    if (option === OPTION_END) return -1;
    if (option === OPTION_PAD) {
      at++;
      continue;
    }
    if (at + 2 > end || at + 2 + b[at + 1] > end) return -1;
    if (option === wanted) return at + 2;
    at += 2 + b[at + 1];
  }
  return -1;
}

function readAddress(b: Uint8Array, at: number): number {
  return at >= 0 && b[at - 1] === 4 ? read32(b, at) : 0;
}

/** Names as DNS spells them, as many as fit. */
export function encodeNames(names: readonly string[]): number[] {
  const out: number[] = [];
  for (const name of names) {
    const labels = name.split('.').filter((label) => label !== '');
    const size = labels.reduce((sum, label) => sum + 1 + label.length, 1);
    if (labels.some((label) => label.length > 63 || !/^[\x21-\x7e]+$/.test(label)) || out.length + size > 200) continue;
    for (const label of labels) out.push(label.length, ...Array.from(label, (c) => c.charCodeAt(0)));
    out.push(0);
  }
  return out;
}

/** Answers a message to the server's port: DHCP from `at` to `end`. */
export function handleDhcp(lan: Lan, searchDomains: readonly string[], b: Uint8Array, at: number, end: number): void {
  if (end - at < OPTIONS || b[at] !== BOOTREQUEST || b[at + 1] !== 1 || b[at + 2] !== 6) return;
  if (read32(b, at + BOOTP_BYTES) !== MAGIC_COOKIE) return;
  const type = findOption(b, at + OPTIONS, end, OPTION_MESSAGE_TYPE);
  if (type < 0 || b[type - 1] !== 1) return;
  const { gatewayIp, dnsIp, guestIp, netmask } = lan.addresses;
  const clientIp = read32(b, at + 12);
  const server = readAddress(b, findOption(b, at + OPTIONS, end, OPTION_SERVER));
  if (server !== 0 && server !== gatewayIp) return;

  let answer: number;
  switch (b[type]) {
    case DISCOVER:
      answer = OFFER;
      break;
    case REQUEST: {
      const wanted = readAddress(b, findOption(b, at + OPTIONS, end, OPTION_REQUESTED_ADDRESS)) || clientIp;
      answer = wanted === guestIp ? ACK : NAK;
      break;
    }
    case INFORM:
      answer = ACK;
      break;
    default:
      return;
  }

  const m = L4 + UDP_HEADER_BYTES;
  bytes.fill(0);
  bytes[m] = BOOTREPLY;
  bytes[m + 1] = 1;
  bytes[m + 2] = 6;
  bytes.set(b.subarray(at + 4, at + 8), m + 4);
  bytes.set(b.subarray(at + 10, at + 12), m + 10);
  write32(bytes, m + 12, answer === NAK ? 0 : clientIp);
  if (answer !== NAK && b[type] !== INFORM) write32(bytes, m + 16, guestIp);
  if (answer !== NAK) write32(bytes, m + 20, gatewayIp);
  bytes.set(b.subarray(at + 24, at + 44), m + 24);
  write32(bytes, m + BOOTP_BYTES, MAGIC_COOKIE);
  let o = m + OPTIONS;
  const option = (code: number, value: readonly number[]): void => {
    bytes[o] = code;
    bytes[o + 1] = value.length;
    bytes.set(value, o + 2);
    o += 2 + value.length;
  };
  const address = (value: number): number[] => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
  option(OPTION_MESSAGE_TYPE, [answer]);
  option(OPTION_SERVER, address(gatewayIp));
  if (answer !== NAK) {
    if (b[type] !== INFORM) option(OPTION_LEASE_TIME, address(LEASE_SECONDS));
    option(OPTION_SUBNET_MASK, address(netmask));
    option(OPTION_ROUTER, address(gatewayIp));
    option(OPTION_DNS, address(dnsIp));
    const search = encodeNames(searchDomains);
    if (search.length > 0) option(OPTION_DOMAIN_SEARCH, search);
  }
  bytes[o++] = OPTION_END;
  // BOOTP clients and relays want at least 300 bytes.
  const length = UDP_HEADER_BYTES + Math.max(300, o - m);

  const toAll = answer === NAK || (clientIp === 0 && (read16(b, at + 10) & FLAG_BROADCAST) !== 0);
  const to = toAll ? 0xffffffff : clientIp || guestIp;
  const mac = toAll ? BROADCAST_MAC : b.subarray(at + 28, at + 34);
  writeHeaders(bytes, mac, lan.gatewayMac, gatewayIp, to, PROTOCOL_UDP, length, lan.nextIdentification(), 0);
  write16(bytes, L4, DHCP_SERVER_PORT);
  write16(bytes, L4 + 2, DHCP_CLIENT_PORT);
  write16(bytes, L4 + 4, length);
  // No UDP checksum: IPv4 allows it, and clients read this from raw sockets.
  lan.deliver(frame.set(bytes, L4 + length));
}
