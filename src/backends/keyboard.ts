/**
 * Dom0's side of a virtual keyboard and pointer: puts what somebody types and points at into the guest's ring.
 *
 * As the framebuffer, its page is named by MFN. Events that find the ring full are dropped: the guest does not read.
 *
 * Source: xen/include/public/io/kbdif.h.
 */

import { EINVAL } from '../abi/errno.ts';
import * as kbdif from '../abi/io/kbdif.ts';
import type { GuestChannel, GuestPort } from './guest-port.ts';
import { type BackendDevice, FrontendError, type FrontendNodes, type Nodes } from './xenbus.ts';

const { XENKBD_PAGE } = kbdif;

export class KeyboardDevice implements BackendDevice {
  readonly waitsForHotplug = false;
  readonly #port: GuestPort;
  #channel: GuestChannel | null = null;
  #page = 0;
  #absolute = false;
  #x = 0;
  #y = 0;

  constructor(port: GuestPort) {
    this.#port = port;
  }

  announce(): Nodes {
    return { 'feature-abs-pointer': '1' };
  }

  async connect(frontend: FrontendNodes): Promise<Nodes> {
    const mfn = await frontend.number('page-ref', 0, 0xffffffff);
    const port = await frontend.number('event-channel', 1, 0xffffffff);
    this.#absolute = (await frontend.number('request-abs-pointer', 0, 1, 0)) === 1;
    const page = this.#port.mapFrame(mfn);
    if (page < 0) throw new FrontendError(EINVAL, `${frontend.path}/page-ref: ${mfn} is no page of the domain`);
    this.#page = page;
    // The guest sends no events that anybody knows.
    this.#channel = this.#port.bindEventChannel(port, () => false);
    if (this.#channel === null)
      throw new FrontendError(EINVAL, `${frontend.path}/event-channel: ${port} is no port for Dom0`);
    return {};
  }

  async disconnect(): Promise<void> {
    this.#channel?.close();
    this.#channel = null;
  }

  async close(): Promise<void> {}

  /** A key or button: Linux's KEY_* or BTN_*. */
  key(keycode: number, pressed: boolean): void {
    this.#put(kbdif.XENKBD_TYPE_KEY | (pressed ? 0x100 : 0), keycode, 0, 0);
  }

  /** The pointer is at a place of the screen; `wheel`: steps away from the user. */
  pointer(x: number, y: number, wheel: number): void {
    if (this.#absolute) this.#put(kbdif.XENKBD_TYPE_POS, x, y, -wheel);
    else this.#put(kbdif.XENKBD_TYPE_MOTION, x - this.#x, y - this.#y, -wheel);
    this.#x = x;
    this.#y = y;
  }

  #put(type: number, a: number, b: number, c: number): void {
    if (this.#channel === null) return;
    const { i32 } = this.#port.memory;
    const head = this.#page >>> 2;
    const prod = i32[head + (XENKBD_PAGE.in_prod >> 2)];
    const cons = Atomics.load(i32, head + (XENKBD_PAGE.in_cons >> 2));
    if ((prod - cons) >>> 0 >= kbdif.XENKBD_IN_RING_LEN) return;
    const slot = (prod >>> 0) % kbdif.XENKBD_IN_RING_LEN;
    const at = (this.#page + kbdif.XENKBD_IN_RING + slot * kbdif.XENKBD_EVENT_SIZE) >>> 2;
    i32.fill(0, at, at + (kbdif.XENKBD_EVENT_SIZE >> 2));
    i32[at] = type;
    i32[at + 1] = a;
    i32[at + 2] = b;
    i32[at + 3] = c;
    Atomics.store(i32, head + (XENKBD_PAGE.in_prod >> 2), prod + 1);
    this.#channel.notify();
  }
}
