/**
 * Says whether the next request of a file is worth doing on the spot, by how the last ones went.
 *
 * What the host's page cache has takes some microseconds; by way of Node's thread pool it takes several times as much, for two threads
 * have to be woken. But a request that goes to the device holds up all else that this thread does. So after one that was slow the
 * next ones are left to the pool, and more of them each time that another try was slow too.
 */

/** Longer is slow: far above a copy of memory, far below a disk that turns. */
const SLOW_MS = 0.5;
const LEAVE_FIRST = 16;
const LEAVE_MAX = 4096;

export class Pace {
  readonly #nowMs: () => number;
  #startMs = 0;
  /** Requests still to be left to the pool, and how many it will be after the next slow one. */
  #leave = 0;
  #leaveNext = LEAVE_FIRST;

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  /** True: do it now, and call `end`. */
  begin(): boolean {
    if (this.#leave > 0) {
      this.#leave--;
      return false;
    }
    this.#startMs = this.#nowMs();
    return true;
  }

  end(): void {
    if (this.#nowMs() - this.#startMs < SLOW_MS) {
      this.#leaveNext = Math.max(LEAVE_FIRST, this.#leaveNext >> 1);
      return;
    }
    this.#leave = this.#leaveNext;
    this.#leaveNext = Math.min(LEAVE_MAX, this.#leaveNext * 2);
  }
}
