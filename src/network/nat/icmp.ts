/**
 * ICMP: the gateway answers echo requests for itself, hands others to the host where that may send them, and tells the guest what
 * cannot be reached. Source: RFC 792, 1122 (3.2.2), 1812 (4.3.2).
 */

import { sumBytes } from '../checksum.ts';
import { Frame } from '../frame.ts';
import { PROTOCOL_ICMP } from '../packet.ts';
import { ErrorRate } from './error-rate.ts';
import type { HostNetwork } from './host-network.ts';
import { formatIpv4, IP, L4, read32, write16, writeHeaders } from './ipv4.ts';
import type { Lan } from './lan.ts';

const ECHO_REPLY = 0;
const DESTINATION_UNREACHABLE = 3;
const ECHO_REQUEST = 8;
const TIME_EXCEEDED = 11;

export const UNREACHABLE_HOST = 1;
export const UNREACHABLE_PROTOCOL = 2;
export const UNREACHABLE_PORT = 3;
export const UNREACHABLE_PROHIBITED = 13;

/** Echo requests to the outside that wait for their answer. */
const PINGS_MAX = 64;
const PING_TIMEOUT_MS = 10_000;
/** Of an echo request; larger ones come in fragments and go unanswered. */
const ECHO_BYTES_MAX = 1480;

export class Icmp {
  readonly #lan: Lan;
  readonly #host: HostNetwork;
  readonly #frame = new Frame();
  readonly #bytes = new Uint8Array(1514);
  #pings = 0;
  readonly #errors = new ErrorRate();

  constructor(lan: Lan, host: HostNetwork) {
    this.#lan = lan;
    this.#host = host;
  }

  /** A whole packet: IP header at IP, ICMP from `l4` to `end`. */
  handle(b: Uint8Array, source: number, destination: number, l4: number, end: number): void {
    const length = end - l4;
    if (length < 8 || length > ECHO_BYTES_MAX || b[l4] !== ECHO_REQUEST) return;
    const { gatewayIp, dnsIp } = this.#lan.addresses;
    if (destination === gatewayIp || destination === dnsIp) {
      this.#reply(destination, source, b.subarray(l4 + 4, end));
      return;
    }
    const ping = this.#host.ping;
    if (ping === null) {
      this.unreachable(b, UNREACHABLE_PROHIBITED, l4 + 8);
      return;
    }
    if (this.#pings === PINGS_MAX) return;
    this.#pings++;
    let open = true;
    const close = (): void => {
      if (open) this.#pings--;
      open = false;
    };
    const cancel = this.#host.setTimer(PING_TIMEOUT_MS, close);
    const identity = new Uint8Array(b.subarray(l4 + 4, l4 + 8));
    ping(formatIpv4(destination), new Uint8Array(b.subarray(l4 + 8, end)), (answer) => {
      if (!open || answer.length > ECHO_BYTES_MAX - 8) return;
      cancel();
      close();
      const body = new Uint8Array(4 + answer.length);
      body.set(identity);
      body.set(answer, 4);
      this.#reply(destination, source, body);
      this.#lan.flush();
    });
  }

  /** `body`: identifier, sequence number, data. */
  #reply(source: number, destination: number, body: Uint8Array): void {
    const b = this.#bytes;
    b[L4] = ECHO_REPLY;
    b[L4 + 1] = 0;
    b.set(body, L4 + 4);
    this.#send(source, destination, 4 + body.length);
  }

  /** Tells the guest that the packet (IP header at IP, `length` bytes of frame) did not get through. */
  unreachable(b: Uint8Array, code: number, length: number): void {
    this.#error(DESTINATION_UNREACHABLE, code, b, length);
  }

  timeExceeded(b: Uint8Array, length: number): void {
    this.#error(TIME_EXCEEDED, 0, b, length);
  }

  #error(type: number, code: number, original: Uint8Array, length: number): void {
    if (!this.#errors.mayTell(this.#host.nowMs())) return;
    const header = (original[IP] & 15) * 4;
    const quoted = Math.min(header + 8, length - IP);
    const source = read32(original, IP + 12);
    const b = this.#bytes;
    b[L4] = type;
    b[L4 + 1] = code;
    b.fill(0, L4 + 4, L4 + 8);
    b.set(original.subarray(IP, IP + quoted), L4 + 8);
    this.#send(this.#lan.addresses.gatewayIp, source, 8 + quoted);
  }

  #send(source: number, destination: number, length: number): void {
    const b = this.#bytes;
    const lan = this.#lan;
    write16(b, L4 + 2, 0);
    write16(b, L4 + 2, sumBytes(b, L4, length) ^ 0xffff);
    writeHeaders(
      b,
      lan.guestMac,
      lan.gatewayMac,
      source,
      destination,
      PROTOCOL_ICMP,
      length,
      lan.nextIdentification(),
      0,
    );
    lan.deliver(this.#frame.set(b, L4 + length));
  }
}
