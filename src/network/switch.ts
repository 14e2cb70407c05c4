/**
 * An Ethernet switch: one bridge, isolated from every other. It learns where addresses are, forgets them after five minutes, sends
 * what is for nobody known to all, and holds a bounded queue for each port, so that a device that does not take its frames loses
 * its own and nobody else's. There is no spanning tree: ports are devices of guests, not cables. Source: IEEE 802.1D, clause 7.
 */

import { isGroupAddress, MAC_BYTES, macHigh, macLow } from './ethernet.ts';
import {
  createLinkStatistics,
  ETHERNET_HEADER_BYTES,
  type Frame,
  type FramePort,
  type LinkStatistics,
  type NetworkEnd,
} from './frame.ts';
import { FrameQueue } from './frame-queue.ts';
import { MacTable } from './mac-table.ts';

export const SWITCH_PORTS_MAX = 1024;
/** Source: IEEE 802.1D, table 7-5, Ageing Time, recommended value. */
const AGEING_MS = 300_000;
/** Of frames that wait for a port. */
const QUEUE_BYTES = 1 << 20;

export class EthernetSwitch {
  readonly #ports: (SwitchPort | null)[] = [];
  readonly #table = new MacTable();
  readonly #now: () => number;
  #count = 0;

  /** `nowMs` is a monotonic clock in milliseconds. */
  constructor(nowMs: () => number) {
    this.#now = nowMs;
  }

  get portCount(): number {
    return this.#count;
  }

  /** A new port, or null when the switch is full. */
  attach(): SwitchPort | null {
    if (this.#count === SWITCH_PORTS_MAX) return null;
    let index = this.#ports.indexOf(null);
    if (index < 0) index = this.#ports.length;
    const port = new SwitchPort(this, index);
    this.#ports[index] = port;
    this.#count++;
    return port;
  }

  /** For SwitchPort. */
  detach(port: SwitchPort): void {
    if (this.#ports[port.index] !== port) return;
    this.#ports[port.index] = null;
    this.#count--;
    this.#table.forgetPort(port.index);
  }

  /** For SwitchPort: a frame that its device sent. */
  forward(from: SwitchPort, frame: Frame): void {
    const b = frame.head;
    const now = this.#now();
    if (!isGroupAddress(b, MAC_BYTES)) this.#table.learn(macHigh(b, MAC_BYTES), macLow(b, MAC_BYTES), from.index, now);
    const known = isGroupAddress(b, 0) ? -1 : this.#table.find(macHigh(b, 0), macLow(b, 0), now - AGEING_MS);
    if (known >= 0) {
      if (known !== from.index) this.#ports[known]?.deliver(frame);
      return;
    }
    for (let i = 0; i < this.#ports.length; i++) {
      const port = this.#ports[i];
      if (port !== null && port !== from) port.deliver(frame);
    }
  }

  /** For SwitchPort: the end of a batch that one of the devices sent. */
  flushAll(): void {
    for (let i = 0; i < this.#ports.length; i++) this.#ports[i]?.endBatch();
  }
}

/** The switch's end of the link to one device. */
export class SwitchPort implements NetworkEnd {
  readonly index: number;
  readonly statistics: LinkStatistics = createLinkStatistics();
  readonly #switch: EthernetSwitch;
  #device: FramePort | null = null;
  #queue: FrameQueue | null = null;
  #delivered = false;

  constructor(owner: EthernetSwitch, index: number) {
    this.#switch = owner;
    this.index = index;
  }

  connect(device: FramePort): void {
    this.#device = device;
  }

  close(): void {
    this.#switch.detach(this);
    this.#device = null;
    this.#queue = null;
  }

  send(frame: Frame): boolean {
    const s = this.statistics;
    if (this.#device === null) return true;
    if (frame.headLength < ETHERNET_HEADER_BYTES) {
      s.dropped++;
      return true;
    }
    s.framesIn++;
    s.bytesIn += frame.length;
    this.#switch.forward(this, frame);
    return true;
  }

  flush(): void {
    this.#switch.flushAll();
  }

  room(): void {
    const queue = this.#queue;
    const device = this.#device;
    if (queue === null || device === null) return;
    for (let frame = queue.peek(); frame !== null; frame = queue.peek()) {
      if (!device.send(frame)) break;
      this.#count(frame);
      queue.shift();
    }
    device.flush();
  }

  /** For EthernetSwitch: a frame for this port's device. */
  deliver(frame: Frame): void {
    const device = this.#device;
    if (device === null) return;
    if ((this.#queue === null || this.#queue.frames === 0) && device.send(frame)) {
      this.#count(frame);
      this.#delivered = true;
      return;
    }
    this.#queue ??= new FrameQueue(QUEUE_BYTES);
    if (!this.#queue.push(frame)) this.statistics.dropped++;
  }

  /** For EthernetSwitch. */
  endBatch(): void {
    if (!this.#delivered) return;
    this.#delivered = false;
    this.#device?.flush();
  }

  #count(frame: Frame): void {
    this.statistics.framesOut++;
    this.statistics.bytesOut += frame.length;
  }
}
