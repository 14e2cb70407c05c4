/**
 * How a domain's vCPUs wake its main thread, which sleeps in its event loop: by a byte in a pipe, where there are pipes (Linux with
 * koffi). Otherwise by Atomics.waitAsync, which works everywhere, but wakes the thread while the waker still holds two locks
 * that it needs next (Node's task queue and V8's list of waiters). Where both share a CPU, that is three changes of thread for each ring.
 */

import { closeSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { hostCalls } from './libc.ts';

const BYTE = Uint8Array.of(1);

/** In a thread that rings: `fd` is what `Doorbell` says. */
export function ringByPipe(domain: Domain, fd: number | null): void {
  if (fd !== null) domain.wakeMain = () => void writeSync(fd, BYTE);
}

/** In the main thread of the domain. */
export class Doorbell {
  /** Where the other threads write to; null if they need not. */
  readonly fd: number | null;
  readonly #domain: Domain;
  readonly #socket: Socket | null = null;
  #wake: (() => void) | null = null;

  constructor(domain: Domain, pipe = hostCalls()?.pipe() ?? null) {
    this.#domain = domain;
    this.fd = pipe?.[1] ?? null;
    if (pipe === null) return;
    // One byte is under way at most.
    this.#socket = new Socket({
      fd: pipe[0],
      readable: true,
      writable: false,
      onread: {
        buffer: new Uint8Array(16),
        callback: () => {
          this.#rung();
          return true;
        },
      },
    });
    this.#socket.unref();
    domain.wakeMain = () => this.#rung();
  }

  /** Resolves when it has been rung since it showed `ticket` (DOMAIN.doorbell); null if it has been already. */
  wait(ticket: number): Promise<unknown> | null {
    const { i32 } = this.#domain;
    if (this.#socket === null) {
      const wait = Atomics.waitAsync(i32, DOMAIN.doorbell >> 2, ticket);
      return wait.async ? wait.value : null;
    }
    Atomics.store(i32, DOMAIN.mainSleeps >> 2, 1);
    if (Atomics.load(i32, DOMAIN.doorbell >> 2) !== ticket) {
      // Who has rung may be about to write: then that byte wakes nobody.
      Atomics.store(i32, DOMAIN.mainSleeps >> 2, 0);
      return null;
    }
    return new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }

  #rung(): void {
    // A byte for a sleep that ended before it came.
    Atomics.store(this.#domain.i32, DOMAIN.mainSleeps >> 2, 0);
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }

  /** When no other thread rings any more. */
  close(): void {
    this.#socket?.destroy();
    if (this.fd !== null) closeSync(this.fd);
    this.#domain.wakeMain = null;
  }
}
