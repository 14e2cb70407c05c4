/**
 * One vCPU's part in stopping the world: while a vCPU has stopped it, no other one of its domain executes guest instructions.
 * For what WebAssembly's atomics cannot do: LOCK on operands that are not aligned.
 *
 *     who stops                                   the others
 *     1 takes the word (waits while it is taken)  1 inGuest = 1
 *     2 inGuest = 0; makes the others leave,      2 the word is free: go on
 *       waits until none has inGuest                taken: inGuest = 0, wait until it is free, from 1
 *     3 inGuest = 1
 *     4 does its work, frees the word
 *
 * Word and `inGuest` are written and read in one order by all (Atomics), so of two vCPUs one sees the other. Who waits has `inGuest` 0,
 * which also counts as having flushed the TLB: it must flush when it goes on, if it was asked to meanwhile. Hypercalls run on.
 */

import { FLAG_EVENT, VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';

const IN_GUEST = VCPU.inGuest >> 2;
const FLAGS = VCPU.flags >> 2;
const FREE = 0;
const TAKEN = 1;
/** A lost wake-up costs this. */
const WAIT_MS = 1;

export class World {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #word: number;
  readonly #mine: Int32Array<SharedArrayBuffer>;
  readonly #others: readonly VcpuBlock[];
  #isStopped = false;
  /** Times that this vCPU stopped the others. For statistics. */
  stops = 0;

  /** `words[word]` is the domain's, 0 at first. */
  constructor(words: Int32Array<SharedArrayBuffer>, word: number, block: VcpuBlock, others: readonly VcpuBlock[]) {
    this.#words = words;
    this.#word = word;
    this.#mine = block.i32;
    this.#others = others;
  }

  /** This vCPU is about to execute guest instructions. */
  enter(): void {
    const words = this.#words;
    for (;;) {
      Atomics.store(this.#mine, IN_GUEST, 1);
      if (this.#isStopped || Atomics.load(words, this.#word) === FREE) return;
      this.leave();
      Atomics.wait(words, this.#word, TAKEN, WAIT_MS);
    }
  }

  /** It executes none any more, or waits. */
  leave(): void {
    Atomics.store(this.#mine, IN_GUEST, 0);
    Atomics.notify(this.#mine, IN_GUEST);
  }

  /** Stops the others. The caller flushes its TLB if it was asked to, and then `start`s the world again, whatever happens. */
  stop(): void {
    if (this.#others.length === 0) return;
    const words = this.#words;
    this.leave();
    while (Atomics.compareExchange(words, this.#word, FREE, TAKEN) !== FREE)
      Atomics.wait(words, this.#word, TAKEN, WAIT_MS);
    for (const { i32 } of this.#others)
      while (Atomics.load(i32, IN_GUEST) !== 0) {
        // Every branch in guest code looks at the flag word.
        Atomics.or(i32, FLAGS, FLAG_EVENT);
        Atomics.wait(i32, IN_GUEST, 1, WAIT_MS);
      }
    this.#isStopped = true;
    this.stops++;
    this.enter();
  }

  start(): void {
    if (!this.#isStopped) return;
    this.#isStopped = false;
    Atomics.store(this.#words, this.#word, FREE);
    Atomics.notify(this.#words, this.#word);
  }
}
