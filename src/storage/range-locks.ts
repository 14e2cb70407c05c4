/** Exclusive holds on ranges of numbers, for writers that must not work on the same clusters at once. */

export interface RangeLock {
  release(): void;
}

interface Held extends RangeLock {
  readonly first: number;
  readonly last: number;
  readonly released: Promise<void>;
}

export class RangeLocks {
  readonly #held = new Set<Held>();

  /**
   * Takes `first` to `last` if nobody holds any of it. Otherwise waits until the one in the way is done and gives
   * undefined: what the caller knew of the range may be no longer true.
   */
  async tryTake(first: number, last: number): Promise<RangeLock | undefined> {
    for (const held of this.#held) {
      if (held.first <= last && first <= held.last) {
        await held.released;
        return undefined;
      }
    }
    let done = (): void => {};
    const released = new Promise<void>((resolve) => {
      done = resolve;
    });
    const lock: Held = {
      first,
      last,
      released,
      release: () => {
        this.#held.delete(lock);
        done();
      },
    };
    this.#held.add(lock);
    return lock;
  }

  async take(first: number, last: number): Promise<RangeLock> {
    for (;;) {
      const lock = await this.tryTake(first, last);
      if (lock !== undefined) return lock;
    }
  }
}
