/**
 * From the guest: takes packets off the tx ring, one whole packet at a time, and hands them to the network as frames. The data is
 * copied before anything in it is looked at, and the guest has its pages back before the network has seen the frame.
 *
 * What breaks the protocol (chains that do not end, fragments beyond their page or the packet, extra infos that are none) closes
 * the device. What is merely wrong with one packet (a page that is not granted, a frame too short) fails that packet. One from another
 * address than the guest's own is dropped, where that is wanted (network/mac-filter.ts).
 *
 * Source: xen/include/public/io/netif.h; Linux's netback, xenvif_tx_build_gops and xenvif_count_requests (behaviour).
 */

import { EINVAL } from '../abi/errno.ts';
import * as netif from '../abi/io/netif.ts';
import {
  CHECKSUM_PARTIAL,
  CHECKSUM_VALID,
  ETHERNET_HEADER_BYTES,
  FRAME_BYTES_MAX,
  Frame,
  type FramePort,
  GSO_NONE,
  GSO_TCPV4,
} from '../network/frame.ts';
import { isFrom } from '../network/mac-filter.ts';
import { LAYER_IPV4, LAYER_IPV6, locate, PacketLayout, PROTOCOL_TCP } from '../network/packet.ts';
import type { BackRing } from './back-ring.ts';
import type { SendCredit } from './credit.ts';
import type { GuestPort } from './guest-port.ts';
import { countFrame, type FrameCounts } from './traffic.ts';
import { FrontendError } from './xenbus.ts';

const PAGE_SIZE = 4096;
/** A frontend that needs more slots for a packet is out of its mind. Source: Linux's netback, fatal_skb_slots. */
const SLOTS_MAX = 20;
/** Packets taken in one turn, so that a guest that never stops leaves room for others. */
const PACKETS_PER_TURN = 256;

const layout = new PacketLayout();

export interface NetworkTxOptions {
  readonly port: GuestPort;
  readonly ring: BackRing;
  readonly network: FramePort;
  /** The only address that frames may be from; null for any. */
  readonly onlyMac: Uint8Array | null;
  readonly credit: SendCredit | null;
  readonly counts: FrameCounts;
  /** Tells the guest that there are responses. */
  readonly notify: () => void;
  /** Makes `service` run again after a time. */
  readonly later: (delayMs: number) => void;
}

export class NetworkTx {
  readonly #options: NetworkTxOptions;
  readonly #frame = new Frame();
  readonly #bytes = new Uint8Array(FRAME_BYTES_MAX);
  readonly #slot = new Uint8Array(netif.NETIF_TX_REQUEST.SIZE);
  readonly #view = new DataView(this.#slot.buffer);
  readonly #response = new Uint8Array(netif.NETIF_TX_RESPONSE.SIZE);
  readonly #responseView = new DataView(this.#response.buffer);
  /** Of the packet at hand: each fragment's gref, offset, size and id, and how many extra infos there were. */
  readonly #grefs = new Uint32Array(SLOTS_MAX);
  readonly #offsets = new Uint16Array(SLOTS_MAX);
  readonly #sizes = new Uint16Array(SLOTS_MAX);
  readonly #ids = new Uint16Array(SLOTS_MAX);
  #fragments = 0;
  #extras = 0;
  #flags = 0;
  #gsoType = 0;
  #gsoSize = 0;
  /** The frame waits: for the network's room, or for credit. */
  #held = false;
  #paid = false;
  #waitsForRoom = false;

  constructor(options: NetworkTxOptions) {
    this.#options = options;
  }

  /**
   * Takes what the guest has sent. True: there is more; call again in a later turn.
   * @throws FrontendError when the guest has broken the protocol
   */
  service(): boolean {
    const { ring, network, notify } = this.#options;
    if (!ring.isSane) throw new FrontendError(EINVAL, 'more requests on the tx ring than it has slots');
    let packets = 0;
    let more = false;
    if (this.#sendHeld()) {
      for (;;) {
        if (packets === PACKETS_PER_TURN) {
          more = true;
          break;
        }
        if (ring.waiting === 0 && !ring.askForEvent()) break;
        packets++;
        this.#takePacket();
        if (!this.#sendHeld()) break;
      }
    }
    if (ring.push()) notify();
    network.flush();
    return more;
  }

  /** The network has room again. True: `service` is wanted. */
  room(): boolean {
    const waited = this.#waitsForRoom;
    this.#waitsForRoom = false;
    return waited;
  }

  /** Sends the frame at hand, if there is one. False: it has to wait. */
  #sendHeld(): boolean {
    if (!this.#held) return true;
    if (this.#waitsForRoom) return false;
    const { credit, network, later } = this.#options;
    if (!this.#paid && credit !== null) {
      const waitMs = credit.take(this.#frame.length);
      if (waitMs > 0) {
        later(waitMs);
        return false;
      }
    }
    this.#paid = true;
    if (!network.send(this.#frame)) {
      this.#waitsForRoom = true;
      return false;
    }
    this.#held = false;
    this.#paid = false;
    return true;
  }

  #takePacket(): void {
    this.#readRequests();
    const status = this.#copy();
    if (status === netif.XEN_NETIF_RSP_OKAY) countFrame(this.#options.counts, this.#frame.length);
    else if (status === netif.XEN_NETIF_RSP_DROPPED) this.#options.counts.dropped++;
    else this.#options.counts.errors++;
    this.#respond(status);
  }

  #next(length: number): void {
    const { ring } = this.#options;
    if (ring.waiting === 0) throw new FrontendError(EINVAL, 'a packet on the tx ring does not end');
    ring.takeRequest(this.#slot, length);
  }

  /** Reads and checks all slots of the next packet. */
  #readRequests(): void {
    const R = netif.NETIF_TX_REQUEST;
    const view = this.#view;
    let total = 0;
    let rest = 0;
    this.#fragments = 0;
    this.#extras = 0;
    this.#gsoType = netif.XEN_NETIF_GSO_TYPE_NONE;
    this.#gsoSize = 0;
    for (let more = true; more; ) {
      if (this.#fragments === SLOTS_MAX)
        throw new FrontendError(EINVAL, `a packet of more than ${SLOTS_MAX} fragments on the tx ring`);
      this.#next(R.SIZE);
      const i = this.#fragments++;
      this.#grefs[i] = view.getUint32(R.gref, true);
      this.#offsets[i] = view.getUint16(R.offset, true);
      this.#sizes[i] = view.getUint16(R.size, true);
      this.#ids[i] = view.getUint16(R.id, true);
      const flags = view.getUint16(R.flags, true);
      more = (flags & netif.XEN_NETTXF_more_data) !== 0;
      if (i === 0) {
        this.#flags = flags;
        total = this.#sizes[0];
        if ((flags & netif.XEN_NETTXF_extra_info) !== 0) this.#readExtras();
      } else {
        rest += this.#sizes[i];
        if (rest > total)
          throw new FrontendError(EINVAL, `fragments of ${rest} bytes in a packet of ${total} bytes on the tx ring`);
      }
    }
    this.#sizes[0] = total - rest;
    for (let i = 0; i < this.#fragments; i++)
      if (this.#offsets[i] + this.#sizes[i] > PAGE_SIZE)
        throw new FrontendError(
          EINVAL,
          `a fragment of ${this.#sizes[i]} bytes at ${this.#offsets[i]} of a page on the tx ring`,
        );
  }

  #readExtras(): void {
    const E = netif.NETIF_EXTRA_INFO;
    for (let more = true; more; ) {
      this.#next(E.SIZE);
      this.#extras++;
      const type = this.#slot[E.type];
      more = (this.#slot[E.flags] & netif.XEN_NETIF_EXTRA_FLAG_MORE) !== 0;
      if (type === 0 || type >= netif.XEN_NETIF_EXTRA_TYPE_MAX || this.#extras >= netif.XEN_NETIF_EXTRA_TYPE_MAX)
        throw new FrontendError(EINVAL, `extra info of type ${type} on the tx ring`);
      if (type !== netif.XEN_NETIF_EXTRA_TYPE_GSO) continue;
      this.#gsoType = this.#slot[E.gso_type];
      this.#gsoSize = this.#view.getUint16(E.gso_size, true);
      if (this.#gsoType !== netif.XEN_NETIF_GSO_TYPE_TCPV4 && this.#gsoType !== netif.XEN_NETIF_GSO_TYPE_TCPV6)
        throw new FrontendError(EINVAL, `GSO of type ${this.#gsoType} on the tx ring`);
      if (this.#gsoSize === 0) throw new FrontendError(EINVAL, 'GSO of size 0 on the tx ring');
    }
  }

  /** Copies the packet's data into the frame. Its status. */
  #copy(): number {
    const { port, onlyMac } = this.#options;
    const { u8 } = port.memory;
    let at = 0;
    for (let i = 0; i < this.#fragments; i++) {
      const size = this.#sizes[i];
      if (size === 0) continue;
      const page = port.mapGrant(this.#grefs[i], false);
      if (page < 0) return netif.XEN_NETIF_RSP_ERROR;
      const from = page + this.#offsets[i];
      this.#bytes.set(u8.subarray(from, from + size), at);
      port.unmapGrant(this.#grefs[i], false);
      at += size;
    }
    if (at < ETHERNET_HEADER_BYTES) return netif.XEN_NETIF_RSP_ERROR;
    const frame = this.#frame.set(this.#bytes, at);
    if (onlyMac !== null && !isFrom(frame, onlyMac)) return netif.XEN_NETIF_RSP_DROPPED;
    if ((this.#flags & netif.XEN_NETTXF_csum_blank) !== 0) frame.checksum = CHECKSUM_PARTIAL;
    else if ((this.#flags & netif.XEN_NETTXF_data_validated) !== 0) frame.checksum = CHECKSUM_VALID;
    if ((frame.checksum === CHECKSUM_PARTIAL || this.#gsoType !== GSO_NONE) && !this.#isAsClaimed(frame))
      return netif.XEN_NETIF_RSP_ERROR;
    // XEN_NETIF_GSO_TYPE_* and GSO_* are the same numbers.
    frame.gsoType = this.#gsoType;
    frame.gsoSize = this.#gsoSize;
    this.#held = true;
    return netif.XEN_NETIF_RSP_OKAY;
  }

  /** A packet whose checksum or segments somebody else has to make must have a header to make them from. */
  #isAsClaimed(frame: Frame): boolean {
    if (!locate(frame, layout)) return false;
    if (this.#gsoType === GSO_NONE) return true;
    return layout.protocol === PROTOCOL_TCP && layout.layer === (this.#gsoType === GSO_TCPV4 ? LAYER_IPV4 : LAYER_IPV6);
  }

  #respond(status: number): void {
    for (let i = 0; i < this.#fragments; i++) {
      this.#put(this.#ids[i], status);
      if (i === 0) for (let extra = 0; extra < this.#extras; extra++) this.#put(0, netif.XEN_NETIF_RSP_NULL);
    }
  }

  #put(id: number, status: number): void {
    this.#responseView.setUint16(netif.NETIF_TX_RESPONSE.id, id, true);
    this.#responseView.setInt16(netif.NETIF_TX_RESPONSE.status, status, true);
    this.#options.ring.putResponse(this.#response, netif.NETIF_TX_RESPONSE.SIZE);
  }
}
