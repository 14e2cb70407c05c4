/**
 * Dom0's side of a virtual framebuffer: pixels of 32 bits in the guest's own pages, read when somebody looks. The guest says which
 * part has changed.
 *
 * The interface is older than grants: the guest names its pages by MFN, and Dom0 may map any page of a domain. Whatever it
 * names is bounded to its own RAM; geometry is copied and checked before it is used.
 *
 * Source: xen/include/public/io/fbif.h.
 */

import { EINVAL } from '../abi/errno.ts';
import * as fbif from '../abi/io/fbif.ts';
import type { GuestChannel, GuestPort } from './guest-port.ts';
import { type BackendDevice, type DeviceBus, FrontendError, type FrontendNodes, type Nodes } from './xenbus.ts';

const { XENFB_PAGE, XENFB_UPDATE, XENFB_RESIZE } = fbif;
const PAGE_SIZE = 4096;
/** Side of the largest screen, in pixels, and its memory: what 32 directory pages name. */
const SIDE_MAX = 4096;
const FRAMES_MAX = 32 * fbif.XENFB_FRAMES_PER_DIRECTORY;
const MFN_MAX = 2 ** 40;

/** Who looks at the screen. */
export interface ScreenViewer {
  /** Part of the screen has changed; within it. */
  onDamage(x: number, y: number, width: number, height: number): void;
  /** The screen has another size, or is another one. */
  onResize(): void;
}

interface Geometry {
  readonly width: number;
  readonly height: number;
  /** Bytes from one line to the next, and in front of the first. */
  readonly stride: number;
  readonly offset: number;
}

const NO_SCREEN: Geometry = { width: 640, height: 480, stride: 0, offset: 0 };

export class FramebufferDevice implements BackendDevice {
  readonly waitsForHotplug = false;
  viewer: ScreenViewer | null = null;
  readonly #port: GuestPort;
  readonly #bus: DeviceBus;
  #channel: GuestChannel | null = null;
  /** Byte offset of the shared page in guest memory. */
  #page = 0;
  /** Byte offsets of the framebuffer's pages; none without a guest. */
  #frames: readonly number[] = [];
  #bytes = 0;
  #geometry = NO_SCREEN;

  constructor(port: GuestPort, bus: DeviceBus) {
    this.#port = port;
    this.#bus = bus;
  }

  get width(): number {
    return this.#geometry.width;
  }
  get height(): number {
    return this.#geometry.height;
  }

  announce(): Nodes {
    return { 'feature-resize': '1', 'request-update': '1' };
  }

  async connect(frontend: FrontendNodes): Promise<Nodes> {
    const mfn = await frontend.number('page-ref', 0, 0xffffffff);
    const port = await frontend.number('event-channel', 1, 0xffffffff);
    const page = this.#port.mapFrame(mfn);
    if (page < 0) throw new FrontendError(EINVAL, `${frontend.path}/page-ref: ${mfn} is no page of the domain`);
    this.#page = page;
    const word = (offset: number): number => Atomics.load(this.#port.memory.i32, (page + offset) >>> 2);
    this.#bytes = word(XENFB_PAGE.mem_length) >>> 0;
    this.#frames = this.#findFrames();
    const depth = word(XENFB_PAGE.depth) & 0xff;
    this.#setGeometry(word(XENFB_PAGE.width), word(XENFB_PAGE.height), word(XENFB_PAGE.line_length), depth, 0);
    this.#channel = this.#port.bindEventChannel(port, () => this.#service());
    if (this.#channel === null)
      throw new FrontendError(EINVAL, `${frontend.path}/event-channel: ${port} is no port for Dom0`);
    this.viewer?.onResize();
    return {};
  }

  async disconnect(): Promise<void> {
    this.#channel?.close();
    this.#channel = null;
    this.#frames = [];
    this.#geometry = NO_SCREEN;
    this.viewer?.onResize();
  }

  async close(): Promise<void> {}

  /** Copies part of a line, which must lie on the screen, as pixels 0x00RRGGBB. */
  readLine(x: number, y: number, count: number, into: Uint32Array, at: number): void {
    const { stride, offset } = this.#geometry;
    if (this.#frames.length === 0) {
      into.fill(0, at, at + count);
      return;
    }
    const { i32 } = this.#port.memory;
    let byte = offset + y * stride + x * 4;
    for (let i = 0; i < count; i++, byte += 4)
      into[at + i] = i32[(this.#frames[byte >>> 12] + (byte & (PAGE_SIZE - 1))) >>> 2] & 0xffffff;
  }

  #findFrames(): number[] {
    const count = Math.ceil(this.#bytes / PAGE_SIZE);
    if (count === 0 || count > FRAMES_MAX)
      throw new FrontendError(
        EINVAL,
        `a framebuffer of ${this.#bytes} bytes: expected up to ${FRAMES_MAX * PAGE_SIZE}`,
      );
    const frames: number[] = [];
    for (let i = 0; i < count; i++) {
      const inDirectory = i % fbif.XENFB_FRAMES_PER_DIRECTORY;
      const directory = this.#mapEntry(
        this.#page + XENFB_PAGE.pd + ((i - inDirectory) / fbif.XENFB_FRAMES_PER_DIRECTORY) * 8,
      );
      frames.push(this.#mapEntry(directory + inDirectory * 8));
    }
    return frames;
  }

  /** The page that the u64 at a byte offset names. */
  #mapEntry(at: number): number {
    const { i32 } = this.#port.memory;
    const mfn = (i32[(at >>> 2) + 1] >>> 0) * 0x100000000 + (i32[at >>> 2] >>> 0);
    const page = mfn < MFN_MAX ? this.#port.mapFrame(mfn) : -1;
    if (page < 0) throw new FrontendError(EINVAL, `the framebuffer names MFN ${mfn}, which is no page of the domain`);
    return page;
  }

  #setGeometry(width: number, height: number, stride: number, depth: number, offset: number): void {
    const isSane =
      depth === 32 &&
      width > 0 &&
      width <= SIDE_MAX &&
      height > 0 &&
      height <= SIDE_MAX &&
      stride >= width * 4 &&
      stride <= SIDE_MAX * 16 &&
      (stride | offset) % 4 === 0 &&
      offset >= 0 &&
      offset + (height - 1) * stride + width * 4 <= this.#bytes;
    if (!isSane)
      throw new FrontendError(
        EINVAL,
        `a screen of ${width}x${height} pixels of ${depth} bits, lines of ${stride} bytes from ${offset} in ${this.#bytes}`,
      );
    this.#geometry = { width, height, stride, offset };
  }

  #service(): boolean {
    const { i32 } = this.#port.memory;
    const head = this.#page >>> 2;
    const prod = Atomics.load(i32, head + (XENFB_PAGE.out_prod >> 2));
    let cons = i32[head + (XENFB_PAGE.out_cons >> 2)];
    if ((prod - cons) >>> 0 > fbif.XENFB_OUT_RING_LEN) {
      this.#bus.fail(new FrontendError(EINVAL, 'the ring holds more events than it has room for'));
      return false;
    }
    for (; cons !== prod; cons = (cons + 1) | 0) {
      const slot = (cons >>> 0) % fbif.XENFB_OUT_RING_LEN;
      this.#event((this.#page + fbif.XENFB_OUT_RING + slot * fbif.XENFB_EVENT_SIZE) >>> 2);
    }
    Atomics.store(i32, head + (XENFB_PAGE.out_cons >> 2), cons);
    this.#channel?.notify();
    return false;
  }

  /** `at`: index of the event in i32. */
  #event(at: number): void {
    const { i32 } = this.#port.memory;
    const type = i32[at] & 0xff;
    if (type === fbif.XENFB_TYPE_UPDATE) {
      const { width, height } = this.#geometry;
      const left = Math.max(0, i32[at + (XENFB_UPDATE.x >> 2)]);
      const top = Math.max(0, i32[at + (XENFB_UPDATE.y >> 2)]);
      const w = Math.min(i32[at + (XENFB_UPDATE.width >> 2)], width - left);
      const h = Math.min(i32[at + (XENFB_UPDATE.height >> 2)], height - top);
      if (w > 0 && h > 0) this.viewer?.onDamage(left, top, w, h);
    } else if (type === fbif.XENFB_TYPE_RESIZE) {
      const word = (offset: number): number => i32[at + (offset >> 2)];
      try {
        this.#setGeometry(
          word(XENFB_RESIZE.width),
          word(XENFB_RESIZE.height),
          word(XENFB_RESIZE.stride),
          word(XENFB_RESIZE.depth),
          word(XENFB_RESIZE.offset),
        );
        this.viewer?.onResize();
      } catch (error) {
        if (!(error instanceof FrontendError)) throw error;
        this.#bus.complain(`refused: ${error.message}`);
      }
    }
  }
}
