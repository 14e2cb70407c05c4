/**
 * Dom0's side of a channel: a console that the guest sets up itself, by a grant and an event channel, and that leads to a program
 * on the host instead of a terminal.
 *
 * Nothing is lost while both ends are there: output stays in the ring as long as the host's end takes no more, and the host's end
 * is not read while the guest takes none. What the guest writes while nobody is connected is gone, as with QEMU's.
 *
 * Source: xen/include/public/io/console.h; docs/misc/channel.txt (behaviour).
 */

import { EINVAL } from '../abi/errno.ts';
import { ConsoleBackend } from './console.ts';
import type { GuestChannel, GuestPort } from './guest-port.ts';
import { type BackendDevice, FrontendError, type FrontendNodes, type Nodes } from './xenbus.ts';

/** The host's end of a channel. */
export interface ChannelEnd {
  /** Bytes of the guest; they are the end's own. Never throws. */
  write(bytes: Uint8Array): void;
  /** False while what was written has not been taken; `onRoom` is called when it has. */
  hasRoom(): boolean;
  /** Who gets what comes in, and is told of room. Null: nobody, and what comes in waits. */
  attach(guest: { readonly input: (bytes: Uint8Array) => void; readonly onRoom: () => void } | null): void;
  /** What comes in waits, or does not. */
  setPaused(paused: boolean): void;
  close(): void;
}

const PAGE_SIZE = 4096;
/** Bytes for the guest beyond which no more are read, and below which they are again. */
const INPUT_HIGH = 64 << 10;
const INPUT_LOW = 16 << 10;

export class ConsoleChannelDevice implements BackendDevice {
  readonly waitsForHotplug = false;
  readonly #port: GuestPort;
  readonly #end: ChannelEnd;
  #gref = -1;
  #channel: GuestChannel | null = null;
  #paused = false;

  constructor(port: GuestPort, end: ChannelEnd) {
    this.#port = port;
    this.#end = end;
  }

  announce(): Nodes {
    return {};
  }

  async connect(frontend: FrontendNodes): Promise<Nodes> {
    const gref = await frontend.number('ring-ref', 0, 0xffffffff);
    const eventPort = await frontend.number('port', 1, 0xffffffff);
    const port = this.#port;
    const page = port.mapGrant(gref, true);
    if (page < 0) throw new FrontendError(EINVAL, `${frontend.path}/ring-ref: ${gref} grants no page to Dom0`);
    this.#gref = gref;
    const end = this.#end;
    const ring = new ConsoleBackend({
      page: port.memory.u8.subarray(page, page + PAGE_SIZE),
      notify: () => this.#channel?.notify(),
      output: (bytes) => end.write(bytes),
      hasRoom: () => end.hasRoom(),
    });
    this.#channel = port.bindEventChannel(eventPort, () => {
      const more = ring.service();
      if (this.#paused && ring.inputBytes < INPUT_LOW) this.#setPaused(false);
      return more;
    });
    if (this.#channel === null)
      throw new FrontendError(EINVAL, `${frontend.path}/port: ${eventPort} is no port for Dom0`);
    end.attach({
      input: (bytes) => {
        ring.input(bytes);
        if (ring.inputBytes >= INPUT_HIGH) this.#setPaused(true);
      },
      onRoom: () => this.#channel?.signalSelf(),
    });
    return {};
  }

  async disconnect(): Promise<void> {
    this.#end.attach(null);
    this.#setPaused(false);
    this.#channel?.close();
    this.#channel = null;
    if (this.#gref >= 0) this.#port.unmapGrant(this.#gref, true);
    this.#gref = -1;
  }

  async close(): Promise<void> {
    this.#end.close();
  }

  #setPaused(paused: boolean): void {
    if (this.#paused === paused) return;
    this.#paused = paused;
    this.#end.setPaused(paused);
  }
}
