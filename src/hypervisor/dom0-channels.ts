/**
 * Dom0's ends of the event channels between it and a domain. A Dom0 port here is a handler in the domain's main thread; its number
 * stands in the guest's port record as the remote port, so that an end whose guest port was closed and bound anew is told apart.
 *
 * Source: xen/include/public/event_channel.h; xen/common/event_channel.c, evtchn_bind_interdomain and evtchn_close (behaviour).
 */

import type { Kicker } from '../engine/engine.ts';
import { DOMAIN, type Domain, EVENT_CHANNELS } from './domain.ts';
import {
  ECS_INTERDOMAIN,
  ECS_UNBOUND,
  portA,
  portB,
  portState,
  portVcpu,
  setPending,
  setPort,
  signalDom0,
} from './event-channels.ts';

const DOM0 = 0;

/** Called when the guest has signalled. True: there is more to do, call again in a later turn. */
export type EventHandler = () => boolean;

export interface Dom0Channel {
  /** Sends the guest an event; nothing happens when it has closed its end. */
  notify(): void;
  /** Makes the handler run soon, as if the guest had signalled. */
  signalSelf(): void;
  /** The guest's end becomes unbound. */
  close(): void;
}

class Channel implements Dom0Channel {
  readonly domain: Domain;
  readonly kicker: Kicker;
  readonly guestPort: number;
  readonly dom0Port: number;
  readonly onEvent: EventHandler;

  constructor(domain: Domain, kicker: Kicker, guestPort: number, dom0Port: number, onEvent: EventHandler) {
    this.domain = domain;
    this.kicker = kicker;
    this.guestPort = guestPort;
    this.dom0Port = dom0Port;
    this.onEvent = onEvent;
  }

  get isBound(): boolean {
    const { domain, guestPort } = this;
    return (
      portState(domain, guestPort) === ECS_INTERDOMAIN &&
      portA(domain, guestPort) === DOM0 &&
      portB(domain, guestPort) === this.dom0Port
    );
  }

  notify(): void {
    if (this.isBound) setPending(this.domain, this.guestPort, this.kicker);
  }

  signalSelf(): void {
    signalDom0(this.domain, this.guestPort);
  }

  close(): void {
    const { domain, guestPort } = this;
    domain.lock();
    if (this.isBound) setPort(domain, guestPort, ECS_UNBOUND, portVcpu(domain, guestPort), DOM0, 0);
    domain.unlock();
  }
}

export class Dom0Channels {
  readonly #domain: Domain;
  readonly #kicker: Kicker;
  readonly #channels: (Channel | null)[] = new Array<Channel | null>(EVENT_CHANNELS).fill(null);
  #lastPort = 0;

  constructor(domain: Domain, kicker: Kicker) {
    this.#domain = domain;
    this.#kicker = kicker;
  }

  /** EVTCHNOP_bind_interdomain by Dom0; null (EINVAL) unless the guest has made the port for it. The handler runs once, soon. */
  bind(guestPort: number, onEvent: EventHandler): Dom0Channel | null {
    const domain = this.#domain;
    if (guestPort >>> 0 !== guestPort || guestPort === 0 || guestPort >= EVENT_CHANNELS) return null;
    domain.lock();
    const free = portState(domain, guestPort) === ECS_UNBOUND && portA(domain, guestPort) === DOM0;
    const dom0Port = this.#lastPort + 1;
    if (free) setPort(domain, guestPort, ECS_INTERDOMAIN, portVcpu(domain, guestPort), DOM0, dom0Port);
    domain.unlock();
    if (!free) return null;
    this.#lastPort = dom0Port;
    const channel = new Channel(domain, this.#kicker, guestPort, dom0Port, onEvent);
    this.#channels[guestPort] = channel;
    channel.signalSelf();
    return channel;
  }

  /** Calls the handlers of the channels that were signalled. */
  dispatch(): void {
    const pending = this.#domain.i32;
    for (let word = 0; word < EVENT_CHANNELS / 32; word++) {
      const index = (DOMAIN.dom0Pending >> 2) + word;
      if (Atomics.load(pending, index) === 0) continue;
      let bits = Atomics.exchange(pending, index, 0);
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits & -bits);
        bits &= bits - 1;
        const channel = this.#channels[word * 32 + bit];
        if (channel?.isBound && channel.onEvent()) channel.signalSelf();
      }
    }
  }
}
