/** The event channels that one connection between two domains' processes carries; the same at both of its ends. */

import type { ChannelEnds, FarEnd } from './dom0-channels.ts';
import { encodePeerMessage, PEER_CLOSED, PEER_EVENT } from './peer-protocol.ts';

export class PeerChannels {
  readonly #farDomid: number;
  readonly #send: (message: Uint8Array) => void;
  readonly #isCongested: () => boolean;
  /** By the own domain's port. */
  readonly #channels = new Map<number, { readonly farPort: number; readonly end: FarEnd }>();

  constructor(farDomid: number, send: (message: Uint8Array) => void, isCongested: () => boolean) {
    this.#farDomid = farDomid;
    this.#send = send;
    this.#isCongested = isCongested;
  }

  /** Joins an own port to one of the other domain by `join`, which may refuse: false. */
  add(guestPort: number, farPort: number, join: (ends: ChannelEnds) => FarEnd | null): boolean {
    const end = join({
      guestPort,
      farDomid: this.#farDomid,
      farPort,
      onEvent: () => {
        // Events that wait are one event.
        if (this.#isCongested()) return true;
        this.#send(encodePeerMessage(PEER_EVENT, 0, [farPort, guestPort]));
        return false;
      },
      onClosed: () => {
        if (this.#channels.get(guestPort)?.end !== end) return;
        this.#channels.delete(guestPort);
        this.#send(encodePeerMessage(PEER_CLOSED, 0, [farPort, guestPort]));
      },
    });
    if (end === null) return false;
    this.#channels.set(guestPort, { farPort, end });
    return true;
  }

  /** PEER_EVENT. What names no channel has crossed with its end. */
  signalled(guestPort: number, farPort: number): void {
    const channel = this.#channels.get(guestPort);
    if (channel?.farPort === farPort) channel.end.notify();
  }

  /** PEER_CLOSED. */
  closed(guestPort: number, farPort: number): void {
    const channel = this.#channels.get(guestPort);
    if (channel?.farPort !== farPort) return;
    this.#channels.delete(guestPort);
    channel.end.close();
  }

  /** The other domain is gone. */
  closeAll(): void {
    const channels = [...this.#channels.values()];
    this.#channels.clear();
    for (const { end } of channels) end.close();
  }
}
