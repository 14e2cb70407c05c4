/**
 * The backend's side of a shared ring (abi/io/ring.ts): takes requests, puts responses, and knows when to send an event.
 *
 * The ring is in pages of the guest, mapped writable one by one, which need not lie side by side: a slot may begin in one
 * page and end in the next. Only two indices are believed, and they are ours; req_prod and rsp_event are read once each time
 * and bounded. A request is copied out before anybody looks at it.
 */

import { ringSlots, SRING } from '../abi/io/ring.ts';
import type { GuestPort } from './guest-port.ts';

const PAGE_SIZE = 4096;
/** Source: xen/include/public/io/blkif.h, max-ring-page-order: the largest that any backend offers. */
export const RING_PAGES_MAX = 16;

export class BackRing {
  readonly slots: number;
  readonly #port: GuestPort;
  readonly #slotBytes: number;
  readonly #grefs: readonly number[];
  /** Byte offsets of the pages in guest memory. */
  readonly #pages: readonly number[];
  readonly #u8: Uint8Array<SharedArrayBuffer>;
  readonly #i32: Int32Array<SharedArrayBuffer>;
  /** Index in i32 of the header. */
  readonly #header: number;
  /** Next request to take; responses put; responses that the guest has been shown. */
  #reqCons: number;
  #rspProd: number;
  #rspShown: number;

  /** Maps the ring. Null when a page is not granted, or its indices make no sense. */
  static map(port: GuestPort, grefs: readonly number[], slotBytes: number): BackRing | null {
    const pages: number[] = [];
    for (const gref of grefs) {
      const page = port.mapGrant(gref, true);
      if (page < 0) break;
      pages.push(page);
    }
    if (pages.length === grefs.length) {
      const ring = new BackRing(port, grefs, pages, slotBytes);
      if (ring.isSane) return ring;
    }
    for (let i = 0; i < pages.length; i++) port.unmapGrant(grefs[i], true);
    return null;
  }

  private constructor(port: GuestPort, grefs: readonly number[], pages: readonly number[], slotBytes: number) {
    this.#port = port;
    this.#grefs = grefs;
    this.#pages = pages;
    this.#slotBytes = slotBytes;
    this.slots = ringSlots(pages.length * PAGE_SIZE, slotBytes);
    this.#u8 = port.memory.u8;
    this.#i32 = port.memory.i32;
    this.#header = pages[0] >>> 2;
    // A frontend that kept its ring while the backend was away: all that it has no response for is asked again.
    this.#rspProd = Atomics.load(this.#i32, this.#header + (SRING.rsp_prod >> 2));
    this.#rspShown = this.#rspProd;
    this.#reqCons = this.#rspProd;
  }

  unmap(): void {
    for (const gref of this.#grefs) this.#port.unmapGrant(gref, true);
  }

  /** The guest has not asked for more than the ring holds. False: it has broken the protocol. */
  get isSane(): boolean {
    const prod = Atomics.load(this.#i32, this.#header + (SRING.req_prod >> 2));
    return (prod - this.#rspProd) >>> 0 <= this.slots && (prod - this.#reqCons) >>> 0 <= this.slots;
  }

  /** Requests that can be taken now: at most `slots`, whatever the guest says. 0 if the ring is not sane. */
  get waiting(): number {
    const prod = Atomics.load(this.#i32, this.#header + (SRING.req_prod >> 2));
    const waiting = (prod - this.#reqCons) >>> 0;
    return waiting <= this.slots && (prod - this.#rspProd) >>> 0 <= this.slots ? waiting : 0;
  }

  /** Requests taken that have no response yet. */
  get unanswered(): number {
    return (this.#reqCons - this.#rspProd) >>> 0;
  }

  /** Takes the next request: its first `length` bytes. Only when there is one `waiting`. */
  takeRequest(into: Uint8Array, length: number): void {
    let at = SRING.ring + (this.#reqCons & (this.slots - 1)) * this.#slotBytes;
    this.#reqCons = (this.#reqCons + 1) | 0;
    for (let done = 0; done < length; ) {
      const inPage = at & (PAGE_SIZE - 1);
      const count = Math.min(length - done, PAGE_SIZE - inPage);
      const from = this.#pages[at >>> 12] + inPage;
      for (let i = 0; i < count; i++) into[done + i] = this.#u8[from + i];
      done += count;
      at += count;
    }
  }

  /** Puts the next response. The guest sees it with the next `push`. */
  putResponse(bytes: Uint8Array, length: number): void {
    let at = SRING.ring + (this.#rspProd & (this.slots - 1)) * this.#slotBytes;
    this.#rspProd = (this.#rspProd + 1) | 0;
    for (let i = 0; i < length; i++, at++) this.#u8[this.#pages[at >>> 12] + (at & (PAGE_SIZE - 1))] = bytes[i];
  }

  /** Shows the guest what was put. True: it wants an event. */
  push(): boolean {
    const shown = this.#rspShown;
    if (shown === this.#rspProd) return false;
    this.#rspShown = this.#rspProd;
    Atomics.store(this.#i32, this.#header + (SRING.rsp_prod >> 2), this.#rspProd);
    const event = Atomics.load(this.#i32, this.#header + (SRING.rsp_event >> 2));
    return (this.#rspProd - event) >>> 0 < (this.#rspProd - shown) >>> 0;
  }

  /** Before going to sleep: asks for an event when `count` requests wait. True: they do already. */
  askForEvent(count = 1): boolean {
    if (this.waiting >= count) return true;
    Atomics.store(this.#i32, this.#header + (SRING.req_event >> 2), this.#reqCons + count);
    return this.waiting >= count;
  }
}
