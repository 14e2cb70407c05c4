/**
 * The name server that the guest is told of: hands queries on to the host's own name servers and answers back, unread. Each query
 * has a socket of its own on the host, so that its port is as hard to guess as the host makes it. A query that is asked again
 * goes to the next server. Over TCP the NAT does the same with a connection. Source: RFC 1035 (4.2), RFC 5452 (ports).
 */

import type { HostDatagram, HostNetwork } from './host-network.ts';
import { read16 } from './ipv4.ts';
import { IPV6_FIRST, isIpv6 } from './ipv6.ts';
import type { Lan } from './lan.ts';
import type { UdpSender } from './udp.ts';

export const DNS_PORT = 53;
const QUERIES_MAX = 128;
const TIMEOUT_MS = 10_000;
const UDP_HEADER_BYTES = 8;
const DNS_HEADER_BYTES = 12;

interface Query {
  readonly key: number;
  readonly source: number;
  readonly sockets: HostDatagram[];
  tries: number;
  cancelTimer: () => void;
}

export class DnsRelay {
  readonly #lan: Lan;
  readonly #host: HostNetwork;
  readonly #sender: UdpSender;
  readonly #queries = new Map<number, Query>();

  constructor(lan: Lan, host: HostNetwork, sender: UdpSender) {
    this.#lan = lan;
    this.#host = host;
    this.#sender = sender;
  }

  /** A query to the name server's address of either family: UDP header at `l4`, ending at `end`. */
  handle(b: Uint8Array, source: number, destination: number, l4: number, end: number): void {
    const start = l4 + UDP_HEADER_BYTES;
    if (end - start < DNS_HEADER_BYTES) return;
    const guestPort = read16(b, l4);
    const key = (isIpv6(source) ? IPV6_FIRST : 0) + guestPort * 0x10000 + read16(b, start);
    const servers = this.#host.nameServers();
    if (servers.length === 0) return;
    let query = this.#queries.get(key);
    if (query === undefined) {
      if (this.#queries.size >= QUERIES_MAX) this.#close(this.#queries.values().next().value!);
      const made: Query = { key, source, sockets: [], tries: 0, cancelTimer: () => undefined };
      made.cancelTimer = this.#host.setTimer(TIMEOUT_MS, () => this.#close(made));
      this.#queries.set(key, made);
      query = made;
    }
    const asked = query;
    const server = servers[asked.tries++ % servers.length];
    if (asked.sockets.length === servers.length) asked.sockets.shift()!.close();
    const family = server.includes(':') ? 6 : 4;
    const socket = this.#host.openDatagram(
      family,
      null,
      (bytes, address, port) => {
        // The text of an IPv6 address may differ.
        if (port !== DNS_PORT || (family === 4 && address !== server)) return;
        if (this.#queries.get(key) !== asked) return;
        if (bytes.length < DNS_HEADER_BYTES || read16(bytes, 0) !== key % 0x10000) return;
        this.#sender.send(destination, DNS_PORT, source, guestPort, bytes);
        this.#close(asked);
        this.#lan.flush();
      },
      () => undefined,
    );
    asked.sockets.push(socket);
    socket.send(b, start, end - start, server, DNS_PORT);
  }

  /** Addresses of the guest that wait for answers. */
  addAddresses(to: Set<number>): void {
    for (const { source } of this.#queries.values()) to.add(source);
  }

  #close(query: Query): void {
    query.cancelTimer();
    for (const socket of query.sockets) socket.close();
    if (this.#queries.get(query.key) === query) this.#queries.delete(query.key);
  }

  close(): void {
    for (const query of this.#queries.values()) this.#close(query);
  }
}
