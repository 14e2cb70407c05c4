/** The two rings that a domain has with Dom0 from the start: those of xenstore and of its console. */

import { ConsoleBackend } from '../backends/console.ts';
import type { Dom0Channels, EventHandler, FarEnd } from '../hypervisor/dom0-channels.ts';
import { type MachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import type { LinkConnection } from '../xenstore/link-connection.ts';
import { createRingServer, type RingServer } from '../xenstore/ring-server.ts';
import { HostError } from './host-error.ts';

export interface GuestRingsOptions {
  readonly machine: MachineMemory;
  readonly storePfn: number;
  readonly consolePfn: number;
  /** To xenstore. */
  readonly connection: LinkConnection;
  /** What the guest writes to its console. */
  readonly output: (bytes: Uint8Array) => void;
}

export class GuestRings {
  readonly store: RingServer;
  readonly console: ConsoleBackend;
  #storeChannel: FarEnd | null = null;
  #consoleChannel: FarEnd | null = null;

  constructor({ machine, storePfn, consolePfn, connection, output }: GuestRingsOptions) {
    const page = (pfn: number): Uint8Array => machine.u8.subarray(pfn * PAGE_SIZE, (pfn + 1) * PAGE_SIZE);
    this.store = createRingServer({
      page: page(storePfn),
      connection,
      notify: () => this.#storeChannel?.notify(),
    });
    this.console = new ConsoleBackend({
      page: page(consolePfn),
      notify: () => this.#consoleChannel?.notify(),
      output,
    });
  }

  /** Nothing is served before. @throws HostError if the guest has no such ports */
  bind(channels: Dom0Channels, storePort: number, consolePort: number): void {
    // A guest that moves here has gone on while this was made.
    this.store.takeUp();
    this.#storeChannel = bindFirst(channels, storePort, () => this.store.service());
    this.#consoleChannel = bindFirst(channels, consolePort, () => this.console.service());
  }
}

/** Binds to a port that the toolstack has made for the guest. */
function bindFirst(channels: Dom0Channels, port: number, onEvent: EventHandler): FarEnd {
  const channel = channels.bind(port, onEvent);
  if (channel === null) throw new HostError(`port ${port} of the domain is not free for Dom0`);
  return channel;
}
