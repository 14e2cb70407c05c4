/**
 * To the guest: copies frames into the pages that it has put on the rx ring. A frame that needs more pages than there are is
 * refused whole, and the network is told when the guest has put more.
 *
 * Source: xen/include/public/io/netif.h; Linux's netback, rx.c (behaviour).
 */

import { EINVAL } from '../abi/errno.ts';
import * as netif from '../abi/io/netif.ts';
import { CHECKSUM_COMPLETE, CHECKSUM_PARTIAL, Frame, GSO_NONE, GSO_TCPV4, GSO_TCPV6 } from '../network/frame.ts';
import { LAYER_IPV6, locate, PacketLayout } from '../network/packet.ts';
import { countSegments, softenFrame } from '../network/segments.ts';
import type { BackRing } from './back-ring.ts';
import type { GuestPort } from './guest-port.ts';
import { countFrame, type FrameCounts } from './traffic.ts';
import { FrontendError } from './xenbus.ts';

const PAGE_SIZE = 4096;
/** Ethernet and VLAN header, the longest IPv4 header or IPv6 with extensions, the longest TCP header. */
const HEADERS_MAX = 18 + 40 + 8 * 264 + 60;

/** What the frontend takes as it is. */
export interface RxFeatures {
  /** Frames of more than one page. */
  readonly sg: boolean;
  readonly gsoTcpv4: boolean;
  readonly gsoTcpv6: boolean;
  /** Frames without checksum. */
  readonly csumIpv4: boolean;
  readonly csumIpv6: boolean;
}

export interface NetworkRxOptions {
  readonly port: GuestPort;
  readonly ring: BackRing;
  readonly features: RxFeatures;
  readonly counts: FrameCounts;
  /** Tells the guest that there are responses. */
  readonly notify: () => void;
}

const layout = new PacketLayout();

export class NetworkRx {
  readonly #options: NetworkRxOptions;
  readonly #request = new Uint8Array(netif.NETIF_RX_REQUEST.SIZE);
  readonly #requestView = new DataView(this.#request.buffer);
  readonly #response = new Uint8Array(netif.NETIF_RX_RESPONSE.SIZE);
  readonly #responseView = new DataView(this.#response.buffer);
  readonly #plain = new Frame();
  readonly #putPlain = (frame: Frame): void => this.#put(frame);
  /** Slots that the frame refused last needs; 0: none was refused. */
  #wanted = 0;

  constructor(options: NetworkRxOptions) {
    this.#options = options;
  }

  /** True: a frame was refused, and there is no room for it yet. */
  get isFull(): boolean {
    return this.#wanted > 0;
  }

  /** False: the guest has not put enough pages. */
  send(frame: Frame): boolean {
    const { ring } = this.#options;
    const soften = this.#mustSoften(frame);
    const segments = soften ? countSegments(frame) : 1;
    const longest = segments > 1 ? HEADERS_MAX + frame.gsoSize : frame.length;
    const extras = !soften && frame.gsoType !== GSO_NONE ? 1 : 0;
    const slots = segments * Math.ceil(longest / PAGE_SIZE) + extras;
    // What can never be received is lost.
    if (slots > ring.slots || (longest > PAGE_SIZE && !this.#options.features.sg)) {
      this.#options.counts.dropped++;
      return true;
    }
    if (ring.waiting < slots && !ring.askForEvent(slots)) {
      this.#wanted = slots;
      return false;
    }
    if (soften) softenFrame(frame, this.#plain, this.#putPlain);
    else this.#put(frame);
    return true;
  }

  /** Shows the guest what it has got. */
  flush(): void {
    if (this.#options.ring.push()) this.#options.notify();
  }

  /**
   * The guest may have put pages. True: there is room for the frame that was refused.
   * @throws FrontendError when the guest has broken the protocol
   */
  service(): boolean {
    const { ring } = this.#options;
    if (!ring.isSane) throw new FrontendError(EINVAL, 'more requests on the rx ring than it has slots');
    if (this.#wanted === 0 || !ring.askForEvent(this.#wanted)) return false;
    this.#wanted = 0;
    return true;
  }

  #mustSoften(frame: Frame): boolean {
    const { features } = this.#options;
    if (frame.gsoType === GSO_TCPV4) return !features.gsoTcpv4;
    if (frame.gsoType === GSO_TCPV6) return !features.gsoTcpv6;
    if (frame.checksum !== CHECKSUM_PARTIAL || (features.csumIpv4 && features.csumIpv6)) return false;
    return locate(frame, layout) && !(layout.layer === LAYER_IPV6 ? features.csumIpv6 : features.csumIpv4);
  }

  /** Copies a frame for which there is room. */
  #put(frame: Frame): void {
    const { ring, port } = this.#options;
    const { u8 } = port.memory;
    const length = frame.length;
    countFrame(this.#options.counts, length);
    let first = 0;
    if (frame.checksum === CHECKSUM_PARTIAL) first = netif.XEN_NETRXF_csum_blank | netif.XEN_NETRXF_data_validated;
    else if (frame.checksum !== CHECKSUM_COMPLETE) first = netif.XEN_NETRXF_data_validated;
    const gso = frame.gsoType !== GSO_NONE;
    if (gso) first |= netif.XEN_NETRXF_extra_info;
    for (let done = 0; done < length; ) {
      ring.takeRequest(this.#request, netif.NETIF_RX_REQUEST.SIZE);
      const id = this.#requestView.getUint16(netif.NETIF_RX_REQUEST.id, true);
      const gref = this.#requestView.getUint32(netif.NETIF_RX_REQUEST.gref, true);
      const count = Math.min(PAGE_SIZE, length - done);
      const page = port.mapGrant(gref, true);
      if (page >= 0) {
        frame.copyPart(done, count, u8, page);
        port.unmapGrant(gref, true);
        port.memoryStored(page, count);
      }
      const isFirst = done === 0;
      done += count;
      const flags = (isFirst ? first : 0) | (done < length ? netif.XEN_NETRXF_more_data : 0);
      this.#putResponse(id, flags, page >= 0 ? count : netif.XEN_NETIF_RSP_ERROR);
      if (isFirst && gso) this.#putGso(frame);
    }
  }

  #putResponse(id: number, flags: number, status: number): void {
    const R = netif.NETIF_RX_RESPONSE;
    const view = this.#responseView;
    view.setUint16(R.id, id, true);
    view.setUint16(R.offset, 0, true);
    view.setUint16(R.flags, flags, true);
    view.setInt16(R.status, status, true);
    this.#options.ring.putResponse(this.#response, R.SIZE);
  }

  /** An extra info takes a slot, and the page in it goes back to the guest unused. */
  #putGso(frame: Frame): void {
    const E = netif.NETIF_EXTRA_INFO;
    this.#options.ring.takeRequest(this.#request, netif.NETIF_RX_REQUEST.SIZE);
    const bytes = this.#response;
    bytes.fill(0);
    bytes[E.type] = netif.XEN_NETIF_EXTRA_TYPE_GSO;
    bytes[E.gso_type] = frame.gsoType;
    this.#responseView.setUint16(E.gso_size, frame.gsoSize, true);
    this.#options.ring.putResponse(bytes, E.SIZE);
  }
}
