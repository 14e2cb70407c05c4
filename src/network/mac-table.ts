/**
 * Which port a MAC address was last seen on. Fixed in size: an address may lie in one of PROBES slots, and when all are taken the
 * one seen longest ago goes. So a flood of addresses costs nothing but other entries, and a lost entry costs a flooded frame.
 */

const SLOTS = 4096;
const PROBES = 8;

export class MacTable {
  readonly #low = new Uint32Array(SLOTS);
  readonly #high = new Uint16Array(SLOTS);
  /** Port + 1; 0 is an empty slot. */
  readonly #port = new Uint16Array(SLOTS);
  readonly #seen = new Float64Array(SLOTS);

  #slot(high: number, low: number): number {
    let h = Math.imul(low ^ (high << 13), 0x9e3779b1);
    h ^= h >>> 15;
    return h & (SLOTS - 1);
  }

  /** Notes that the address is at `port` (0..65534), at time `nowMs`. */
  learn(high: number, low: number, port: number, nowMs: number): void {
    const first = this.#slot(high, low);
    let victim = first;
    for (let i = 0; i < PROBES; i++) {
      const s = (first + i) & (SLOTS - 1);
      if (this.#port[s] !== 0 && this.#low[s] === low && this.#high[s] === high) {
        victim = s;
        break;
      }
      if (this.#port[s] === 0) {
        if (this.#port[victim] !== 0) victim = s;
      } else if (this.#port[victim] !== 0 && this.#seen[s] < this.#seen[victim]) victim = s;
    }
    this.#low[victim] = low;
    this.#high[victim] = high;
    this.#port[victim] = port + 1;
    this.#seen[victim] = nowMs;
  }

  /** The port of an address that was seen at `oldestMs` or later, or -1. */
  find(high: number, low: number, oldestMs: number): number {
    const first = this.#slot(high, low);
    for (let i = 0; i < PROBES; i++) {
      const s = (first + i) & (SLOTS - 1);
      if (this.#low[s] === low && this.#high[s] === high && this.#port[s] !== 0)
        return this.#seen[s] >= oldestMs ? this.#port[s] - 1 : -1;
    }
    return -1;
  }

  forgetPort(port: number): void {
    for (let s = 0; s < SLOTS; s++) if (this.#port[s] === port + 1) this.#port[s] = 0;
  }
}
