/**
 * Dom0's side of a network interface: what it tells of itself in xenstore, and the two rings between the guest and whatever the
 * interface is plugged into.
 *
 * One pair of rings: all interfaces of a domain are served by one thread, so more queues would only take turns. The control ring
 * (hashing for several queues), multicast filters and packet space for XDP are not offered.
 *
 * Source: xen/include/public/io/netif.h; Linux's netback, xenbus.c (behaviour).
 */

import { EINVAL, EOPNOTSUPP } from '../abi/errno.ts';
import { NETIF_RX_REQUEST, NETIF_TX_REQUEST } from '../abi/io/netif.ts';
import type { Frame, FramePort, NetworkEnd } from '../network/frame.ts';
import { BackRing } from './back-ring.ts';
import { SendCredit } from './credit.ts';
import type { GuestChannel, GuestPort } from './guest-port.ts';
import { NetworkRx, type RxFeatures } from './network-rx.ts';
import { NetworkTx } from './network-tx.ts';
import { NetworkTraffic } from './traffic.ts';
import { type BackendDevice, type DeviceBus, FrontendError, type FrontendNodes, type Nodes } from './xenbus.ts';

const U32_MAX = 0xffffffff;
/** A frontend that does not say when it has put pages is asked this often, while something waits for them. */
const RX_POLL_MS = 30;

export interface NetworkOptions {
  /** What the interface is plugged into; closed with the device. */
  readonly network: NetworkEnd;
  /** Done before that, when the frontend is gone. */
  readonly beforeClose?: () => Promise<void>;
  /** The only address that the guest may send from; null for any. */
  readonly onlyMac: Uint8Array | null;
  /** What the guest may send, or null for no limit. */
  readonly rate: { readonly bytes: number; readonly periodUs: number } | null;
  readonly nowMs: () => number;
  /** Calls back once; the answer cancels. */
  readonly setTimer: (delayMs: number, callback: () => void) => () => void;
}

/** A connected frontend. */
interface Link {
  readonly tx: NetworkTx;
  readonly rx: NetworkRx;
  readonly txRing: BackRing;
  readonly rxRing: BackRing;
  readonly txChannel: GuestChannel;
  readonly rxChannel: GuestChannel;
  readonly features: RxFeatures;
  readonly rxNotify: boolean;
}

export class NetworkDevice implements BackendDevice, FramePort {
  readonly waitsForHotplug = true;
  readonly traffic = new NetworkTraffic();
  readonly #port: GuestPort;
  readonly #bus: DeviceBus;
  readonly #options: NetworkOptions;
  #link: Link | null = null;
  #cancelTx: (() => void) | null = null;
  #cancelRx: (() => void) | null = null;

  constructor(port: GuestPort, bus: DeviceBus, options: NetworkOptions) {
    this.#port = port;
    this.#bus = bus;
    this.#options = options;
    options.network.connect(this);
  }

  /** Whether the frontend takes GSO frames of IPv4 as they are. */
  get takesGso(): boolean {
    return this.#link?.features.gsoTcpv4 ?? false;
  }

  // ---- the bus's side ----------------------------------------------------------------------------------------------

  announce(): Nodes {
    return {
      'feature-sg': '1',
      'feature-gso-tcpv4': '1',
      'feature-gso-tcpv6': '1',
      'feature-ipv6-csum-offload': '1',
      'feature-rx-copy': '1',
      'feature-rx-flip': '0',
      'feature-split-event-channels': '1',
      'multi-queue-max-queues': '1',
    };
  }

  async connect(frontend: FrontendNodes): Promise<Nodes> {
    const flag = async (name: string): Promise<boolean> => (await frontend.number(name, 0, U32_MAX, 0)) !== 0;
    if (!(await flag('request-rx-copy')))
      throw new FrontendError(EOPNOTSUPP, `${frontend.path}/request-rx-copy: 1 is expected`);
    await frontend.number('multi-queue-num-queues', 1, 1, 1);
    const features: RxFeatures = {
      sg: await flag('feature-sg'),
      gsoTcpv4: await flag('feature-gso-tcpv4'),
      gsoTcpv6: await flag('feature-gso-tcpv6'),
      csumIpv4: !(await flag('feature-no-csum-offload')),
      csumIpv6: await flag('feature-ipv6-csum-offload'),
    };
    const rxNotify = await flag('feature-rx-notify');
    const txRef = await frontend.number('tx-ring-ref', 0, U32_MAX);
    const rxRef = await frontend.number('rx-ring-ref', 0, U32_MAX);
    const shared = await frontend.number('event-channel', 1, U32_MAX, 0);
    const txPort = shared || (await frontend.number('event-channel-tx', 1, U32_MAX));
    const rxPort = shared || (await frontend.number('event-channel-rx', 1, U32_MAX));

    const undo: (() => void)[] = [];
    try {
      const map = (name: string, gref: number, slotBytes: number): BackRing => {
        const ring = BackRing.map(this.#port, [gref], slotBytes);
        if (ring === null) throw new FrontendError(EINVAL, `${frontend.path}/${name}: ${gref} grants no ring`);
        undo.push(() => ring.unmap());
        return ring;
      };
      const bind = (port: number, onEvent: () => boolean): GuestChannel => {
        const channel = this.#port.bindEventChannel(port, onEvent);
        if (channel === null)
          throw new FrontendError(EINVAL, `${frontend.path}/event-channel: ${port} is no port for Dom0`);
        undo.push(() => channel.close());
        return channel;
      };
      const txRing = map('tx-ring-ref', txRef, NETIF_TX_REQUEST.SIZE);
      const rxRing = map('rx-ring-ref', rxRef, NETIF_RX_REQUEST.SIZE);
      const isShared = txPort === rxPort;
      const txChannel = bind(txPort, () => {
        const more = this.#serviceTx();
        if (isShared) this.#serviceRx();
        return more;
      });
      const rxChannel = isShared ? txChannel : bind(rxPort, () => this.#serviceRx());
      const { network, onlyMac, rate, nowMs } = this.#options;
      const tx = new NetworkTx({
        port: this.#port,
        ring: txRing,
        network,
        onlyMac,
        credit: rate === null ? null : new SendCredit(rate.bytes, rate.periodUs, nowMs),
        counts: this.traffic.received,
        notify: () => txChannel.notify(),
        later: (delayMs) => this.#serviceTxLater(delayMs),
      });
      const counts = this.traffic.sent;
      const rx = new NetworkRx({ port: this.#port, ring: rxRing, features, counts, notify: () => rxChannel.notify() });
      this.#link = { tx, rx, txRing, rxRing, txChannel, rxChannel, features, rxNotify };
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
    return {};
  }

  async drain(): Promise<void> {
    this.flush();
  }

  async disconnect(): Promise<void> {
    const link = this.#link;
    if (link === null) return;
    this.#link = null;
    this.#cancelTx?.();
    this.#cancelTx = null;
    this.#cancelRx?.();
    this.#cancelRx = null;
    link.txChannel.close();
    if (link.rxChannel !== link.txChannel) link.rxChannel.close();
    link.txRing.unmap();
    link.rxRing.unmap();
    // What waited for this frontend is lost with it.
    this.#options.network.room();
  }

  async close(): Promise<void> {
    await this.#options.beforeClose?.();
    await this.#options.network.close();
  }

  // ---- the guest's side --------------------------------------------------------------------------------------------

  #serviceTx(): boolean {
    const link = this.#link;
    if (link === null) return false;
    try {
      return link.tx.service();
    } catch (error) {
      this.#fail(error);
      return false;
    }
  }

  #serviceTxLater(delayMs: number): void {
    this.#cancelTx?.();
    this.#cancelTx = this.#options.setTimer(delayMs, () => {
      this.#cancelTx = null;
      this.#link?.txChannel.signalSelf();
    });
  }

  #serviceRx(): boolean {
    const link = this.#link;
    if (link === null) return false;
    try {
      if (link.rx.service()) this.#options.network.room();
    } catch (error) {
      this.#fail(error);
    }
    return false;
  }

  /** The rings are not looked at any more; the bus closes the device. */
  #fail(error: unknown): void {
    if (!(error instanceof FrontendError)) throw error;
    this.#bus.fail(error);
    void this.disconnect();
  }

  // ---- the network's side ------------------------------------------------------------------------------------------

  send(frame: Frame): boolean {
    const link = this.#link;
    // Nobody listens: the frame is lost, as on a cable that leads nowhere.
    if (link === null) {
      this.traffic.sent.dropped++;
      return true;
    }
    if (link.rx.send(frame)) return true;
    if (!link.rxNotify)
      this.#cancelRx ??= this.#options.setTimer(RX_POLL_MS, () => {
        this.#cancelRx = null;
        this.#serviceRx();
      });
    return false;
  }

  flush(): void {
    this.#link?.rx.flush();
  }

  room(): void {
    const link = this.#link;
    if (link?.tx.room()) link.txChannel.signalSelf();
  }
}
