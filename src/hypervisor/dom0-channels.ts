/**
 * The far ends of a domain's event channels that are not its own: Dom0's, and those of other guests. Either is a handler in the
 * domain's main thread: Dom0's port number is made up here, another guest's is its own. It stands in the guest's port record as the
 * remote port, so that an end whose guest port was closed and bound anew is told apart.
 *
 * Source: xen/include/public/event_channel.h; xen/common/event_channel.c, evtchn_bind_interdomain and evtchn_close (behaviour).
 */

import type { Kicker } from '../engine/engine.ts';
import { DOMAIN, type Domain } from './domain.ts';
import { EVENT_CHANNELS } from './domain-limits.ts';
import {
  ECS_INTERDOMAIN,
  ECS_RESERVED,
  ECS_UNBOUND,
  portA,
  portB,
  portState,
  portVcpu,
  setPending,
  setPort,
  signalFarEnd,
} from './event-channels.ts';

const DOM0 = 0;

/** Called when the guest has signalled. True: there is more to do, call again in a later turn. */
export type EventHandler = () => boolean;

export interface FarEnd {
  /** Sends the guest an event; nothing happens when it has closed its end. */
  notify(): void;
  /** Makes the handler run soon, as if the guest had signalled. */
  signalSelf(): void;
  /** The guest's end becomes unbound. */
  close(): void;
}

export interface ChannelEnds {
  readonly guestPort: number;
  readonly farDomid: number;
  readonly farPort: number;
  readonly onEvent: EventHandler;
  /** The guest has closed its end. */
  readonly onClosed: () => void;
}

class Channel implements FarEnd {
  readonly domain: Domain;
  readonly kicker: Kicker;
  readonly guestPort: number;
  readonly farDomid: number;
  readonly farPort: number;
  readonly onEvent: EventHandler;
  readonly onClosed: () => void;

  constructor(channels: { readonly domain: Domain; readonly kicker: Kicker }, ends: ChannelEnds) {
    this.domain = channels.domain;
    this.kicker = channels.kicker;
    this.guestPort = ends.guestPort;
    this.farDomid = ends.farDomid;
    this.farPort = ends.farPort;
    this.onEvent = ends.onEvent;
    this.onClosed = ends.onClosed;
  }

  get isBound(): boolean {
    const { domain, guestPort } = this;
    return (
      portState(domain, guestPort) === ECS_INTERDOMAIN &&
      portA(domain, guestPort) === this.farDomid &&
      portB(domain, guestPort) === this.farPort
    );
  }

  notify(): void {
    if (this.isBound) setPending(this.domain, this.guestPort, this.kicker);
  }

  signalSelf(): void {
    signalFarEnd(this.domain, this.guestPort);
  }

  close(): void {
    const { domain, guestPort } = this;
    domain.lock();
    if (this.isBound) setPort(domain, guestPort, ECS_UNBOUND, portVcpu(domain, guestPort), this.farDomid, 0);
    domain.unlock();
  }
}

export class Dom0Channels {
  readonly domain: Domain;
  readonly kicker: Kicker;
  readonly #channels: (Channel | null)[] = new Array<Channel | null>(EVENT_CHANNELS).fill(null);
  #lastPort = 0;

  constructor(domain: Domain, kicker: Kicker) {
    this.domain = domain;
    this.kicker = kicker;
  }

  /** EVTCHNOP_bind_interdomain by Dom0; null (EINVAL) unless the guest has made the port for it. The handler runs once, soon. */
  bind(guestPort: number, onEvent: EventHandler): FarEnd | null {
    const ends = { guestPort, farDomid: DOM0, farPort: this.#lastPort + 1, onEvent, onClosed: () => {} };
    const channel = this.#join(ends, ECS_UNBOUND);
    if (channel === null) return null;
    this.#lastPort = ends.farPort;
    channel.signalSelf();
    return channel;
  }

  /** EVTCHNOP_bind_interdomain by another guest; null (EINVAL) unless this one has made the port for it. */
  accept(ends: ChannelEnds): FarEnd | null {
    return this.#join(ends, ECS_UNBOUND);
  }

  /** This guest's EVTCHNOP_bind_interdomain has been accepted; its port is ECS_RESERVED. */
  connect(ends: ChannelEnds): FarEnd | null {
    return this.#join(ends, ECS_RESERVED);
  }

  #join(ends: ChannelEnds, from: number): Channel | null {
    const { domain } = this;
    const { guestPort, farDomid, farPort } = ends;
    if (guestPort >>> 0 !== guestPort || guestPort === 0 || guestPort >= EVENT_CHANNELS) return null;
    this.#dropClosed(guestPort);
    domain.lock();
    const free = portState(domain, guestPort) === from && portA(domain, guestPort) === farDomid;
    if (free) setPort(domain, guestPort, ECS_INTERDOMAIN, portVcpu(domain, guestPort), farDomid, farPort);
    domain.unlock();
    if (!free) return null;
    const channel = new Channel(this, ends);
    this.#channels[guestPort] = channel;
    return channel;
  }

  #dropClosed(guestPort: number): void {
    const channel = this.#channels[guestPort];
    if (channel === null || channel.isBound) return;
    this.#channels[guestPort] = null;
    channel.onClosed();
  }

  /** Calls the handlers of the channels that were signalled. */
  dispatch(): void {
    const pending = this.domain.i32;
    for (let word = 0; word < EVENT_CHANNELS / 32; word++) {
      const index = (DOMAIN.dom0Pending >> 2) + word;
      if (Atomics.load(pending, index) === 0) continue;
      let bits = Atomics.exchange(pending, index, 0);
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits & -bits);
        bits &= bits - 1;
        const port = word * 32 + bit;
        this.#dropClosed(port);
        const channel = this.#channels[port];
        if (channel?.onEvent()) channel.signalSelf();
      }
    }
  }
}
