/**
 * Ports of the host that lead into the guest. A far side appears to the guest as a port of the gateway, as it must: the guest could
 * not route an answer to 127.0.0.1.
 *
 * Written as QEMU's `hostfwd`: `tcp:127.0.0.1:8022-:22`, `udp::5353-10.0.2.15:53`. Without an address of the host it is 127.0.0.1,
 * so that nothing is opened to the network unasked.
 */

import type { HostDatagram, HostListener, HostNetwork, HostPlace } from './host-network.ts';
import { formatIpv4, parseIpv4, read16 } from './ipv4.ts';
import type { Lan } from './lan.ts';
import type { TcpRelay } from './tcp.ts';
import type { UdpSender } from './udp.ts';

export interface Forward {
  readonly protocol: 'tcp' | 'udp';
  /** Address and port of the host. */
  readonly address: string;
  readonly port: number;
  readonly guestPort: number;
}

/** Far sides of all UDP forwards. */
const PEERS_MAX = 256;
const PEER_IDLE_MS = 60_000;
const PEER_PORT_FIRST = 40_000;
const UDP_HEADER_BYTES = 8;

/** A forward, or one line that says what is wrong with the text. With `guestIp`, the guest's address must be that if it is named. */
export function parseForward(text: string, guestIp: number | null): Forward | string {
  const match = /^(tcp|udp):([^:]*):(\d{1,5})-([^:]*):(\d{1,5})$/.exec(text);
  if (match === null) return `expected tcp|udp:[ADDRESS]:PORT-[GUEST]:PORT, found \`${text}'`;
  const [, protocol, address, hostPort, guest, port] = match;
  if (address !== '' && parseIpv4(address) < 0) return `\`${address}' in \`${text}' is not an IPv4 address`;
  if (guest !== '' && guestIp !== null && parseIpv4(guest) !== guestIp)
    return `\`${guest}' in \`${text}' is not the guest's address ${formatIpv4(guestIp)}`;
  for (const number of [hostPort, port])
    if (Number(number) < 1 || Number(number) > 65535) return `port ${number} in \`${text}' is not in 1..65535`;
  return {
    protocol: protocol as 'tcp' | 'udp',
    address: address || '127.0.0.1',
    port: Number(hostPort),
    guestPort: Number(port),
  };
}

interface UdpPeer {
  /** Its port at the gateway, as the guest sees it. */
  readonly alias: number;
  readonly guestPort: number;
  readonly address: string;
  readonly port: number;
  readonly socket: HostDatagram;
  lastMs: number;
}

export class Forwards {
  readonly #lan: Lan;
  readonly #host: HostNetwork;
  readonly #sender: UdpSender;
  readonly #tcp: TcpRelay;
  readonly #log: (line: string) => void;
  readonly #listeners: HostListener[] = [];
  /** By alias - PEER_PORT_FIRST. */
  readonly #peers: (UdpPeer | undefined)[] = [];

  constructor(lan: Lan, host: HostNetwork, sender: UdpSender, tcp: TcpRelay, log: (line: string) => void) {
    this.#lan = lan;
    this.#host = host;
    this.#sender = sender;
    this.#tcp = tcp;
    this.#log = log;
  }

  /** Null when the host listens, else one line. What goes wrong later is logged. */
  open(forward: Forward): Promise<string | null> {
    const { protocol, address, port } = forward;
    return new Promise((resolve) => {
      let isOpen = false;
      const opened = (): void => {
        isOpen = true;
        resolve(null);
      };
      const failed = (why: string): void => {
        const line = `cannot forward ${protocol} ${address}:${port}: ${why}`;
        if (isOpen) this.#log(line);
        else resolve(line);
      };
      this.#listen(forward, { address, port, opened, failed });
    });
  }

  #listen({ protocol, guestPort }: Forward, place: HostPlace): void {
    if (protocol === 'tcp') {
      this.#listeners.push(this.#host.listen(place, (stream) => this.#tcp.accept(stream, guestPort)));
      return;
    }
    const socket = this.#host.openDatagram(
      4,
      place,
      (bytes, from, fromPort) => {
        const peer = this.#peer(socket, guestPort, from, fromPort);
        if (peer === null) return;
        const { gatewayIp, guestIp } = this.#lan.addresses;
        this.#sender.send(gatewayIp, peer.alias, guestIp, guestPort, bytes);
        this.#lan.flush();
      },
      place.failed,
    );
    this.#listeners.push(socket);
  }

  #peer(socket: HostDatagram, guestPort: number, address: string, port: number): UdpPeer | null {
    const now = this.#host.nowMs();
    let free = -1;
    for (let i = 0; i < PEERS_MAX; i++) {
      const peer = this.#peers[i];
      if (peer === undefined || now - peer.lastMs > PEER_IDLE_MS) {
        if (free < 0) free = i;
      } else if (peer.socket === socket && peer.port === port && peer.address === address) {
        peer.lastMs = now;
        return peer;
      }
    }
    if (free < 0) return null;
    const made = { alias: PEER_PORT_FIRST + free, guestPort, address, port, socket, lastMs: now };
    this.#peers[free] = made;
    return made;
  }

  /** A datagram from the guest. True: it was an answer to somebody outside, and went there. */
  handle(b: Uint8Array, source: number, destination: number, l4: number, end: number): boolean {
    const { gatewayIp, guestIp } = this.#lan.addresses;
    if (destination !== gatewayIp || source !== guestIp) return false;
    const peer = this.#peers[read16(b, l4 + 2) - PEER_PORT_FIRST];
    if (peer === undefined || peer.guestPort !== read16(b, l4)) return false;
    const start = l4 + UDP_HEADER_BYTES;
    peer.lastMs = this.#host.nowMs();
    peer.socket.send(b, start, end - start, peer.address, peer.port);
    return true;
  }

  close(): void {
    for (const listener of this.#listeners.splice(0)) listener.close();
    this.#peers.length = 0;
  }
}
