/** Where decoded code starts: a hash table from a place in memory 0 (u32) to a micro-op, in one array, so that a look costs one miss. */

/** Words of an entry: key, value. A value of EMPTY was never there, one of GONE was. */
const WORDS = 2;
const EMPTY = 0;
const GONE = -1;
const FIRST_BITS = 14;

export class RunTable {
  #bits = FIRST_BITS;
  #entries = new Int32Array(WORDS << FIRST_BITS);
  /** Entries that are not EMPTY. */
  #used = 0;

  #indexOf(key: number): number {
    return Math.imul(key, 0x9e3779b1) >>> (32 - this.#bits);
  }

  /** The value of a key, 0 = none. */
  get(key: number): number {
    const entries = this.#entries;
    const mask = (1 << this.#bits) - 1;
    for (let i = this.#indexOf(key); ; i = (i + 1) & mask) {
      const value = entries[i * WORDS + 1];
      if (value === EMPTY) return 0;
      if (entries[i * WORDS] === (key | 0)) return value === GONE ? 0 : value;
    }
  }

  /** `value` is above 0. */
  set(key: number, value: number): void {
    if (this.#used * 4 > 3 << this.#bits) this.#grow();
    const entries = this.#entries;
    const mask = (1 << this.#bits) - 1;
    for (let i = this.#indexOf(key); ; i = (i + 1) & mask) {
      const isEmpty = entries[i * WORDS + 1] === EMPTY;
      if (!isEmpty && entries[i * WORDS] !== (key | 0)) continue;
      if (isEmpty) this.#used++;
      entries[i * WORDS] = key;
      entries[i * WORDS + 1] = value;
      return;
    }
  }

  delete(key: number): void {
    const entries = this.#entries;
    const mask = (1 << this.#bits) - 1;
    for (let i = this.#indexOf(key); entries[i * WORDS + 1] !== EMPTY; i = (i + 1) & mask)
      if (entries[i * WORDS] === (key | 0)) entries[i * WORDS + 1] = GONE;
  }

  clear(): void {
    this.#bits = FIRST_BITS;
    this.#entries = new Int32Array(WORDS << FIRST_BITS);
    this.#used = 0;
  }

  #grow(): void {
    const old = this.#entries;
    let live = 0;
    for (let i = 1; i < old.length; i += WORDS) if (old[i] > 0) live++;
    while (live * 2 > 1 << this.#bits) this.#bits++;
    this.#entries = new Int32Array(WORDS << this.#bits);
    this.#used = 0;
    for (let i = 0; i < old.length; i += WORDS) if (old[i + 1] > 0) this.set(old[i], old[i + 1]);
  }
}
