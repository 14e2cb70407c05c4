/**
 * What the NAT needs of the host: ordinary sockets, a clock, the host's name servers. Handed in, so that the NAT itself knows no
 * operating system. Addresses are text, as the host's calls take them. Bytes handed to a callback are borrowed for the call.
 */

export type StreamFailure = 'refused' | 'unreachable' | 'timeout' | 'reset' | 'no-resources';

/** What a host stream tells its flow. After `failed`, nothing more comes. */
export interface StreamEvents {
  connected(): void;
  /** False: no more until `resume` is called. */
  data(bytes: Uint8Array): boolean;
  /** The far side sends no more. */
  end(): void;
  failed(failure: StreamFailure): void;
}

/** A TCP connection of the host. */
export interface HostStream {
  /** Sends bytes, which stay untouched until `done`; `done` is called when the host's kernel has them, or never. */
  write(bytes: Uint8Array, done: () => void): void;
  /** Sends no more, after all that was written. */
  end(): void;
  resume(): void;
  /** Gives the connection up at once; events end. */
  reset(): void;
  /** Lets go of a connection that has ended both ways; events end. */
  close(): void;
}

/** Where the host is to listen. */
export interface HostPlace {
  readonly address: string;
  readonly port: number;
  /** It does. */
  readonly opened: () => void;
  /** It cannot, or not any more: one line. */
  readonly failed: (why: string) => void;
}

export interface HostListener {
  close(): void;
}

export interface HostDatagram {
  /** Sends a datagram; the bytes are copied or sent before it returns. False: too many wait already. */
  send(bytes: Uint8Array, start: number, length: number, address: string, port: number): boolean;
  close(): void;
}

export type DatagramHandler = (bytes: Uint8Array, address: string, port: number) => void;

export interface HostNetwork {
  /** Monotonic milliseconds. */
  nowMs(): number;
  /** Calls back once, `delayMs` from now; the answer cancels. */
  setTimer(delayMs: number, callback: () => void): () => void;
  connect(address: string, port: number, events: StreamEvents): HostStream;
  /** `accept` answers null to refuse a connection. */
  listen(place: HostPlace, accept: (stream: HostStream) => StreamEvents | null): HostListener;
  /** A datagram socket, bound to a port when that is given. Errors of single datagrams are passed over. */
  openDatagram(
    family: 4 | 6,
    bind: HostPlace | null,
    receive: DatagramHandler,
    failed: (why: string) => void,
  ): HostDatagram;
  /** Addresses of the host's name servers, best first; may change. */
  nameServers(): readonly string[];
  /** Domains that the host's resolver searches. */
  searchDomains(): readonly string[];
  /**
   * Sends an ICMP echo request to an IPv4 address and calls back with the data of the answer, if one comes. Null: the host lets
   * this process send none.
   */
  readonly ping: ((address: string, bytes: Uint8Array, answer: (bytes: Uint8Array) => void) => void) | null;
}
