/**
 * How fast a guest may send: `bytes` every `periodUs`, unused credit being good for one large packet or one period, whatever is
 * more. Source: xl-network-configuration(5), rate; Linux's netback, tx_add_credit (behaviour).
 */

/** "A burst big enough to transmit a jumbo packet of up to 128kB". */
const BURST_MIN_BYTES = 131_072;

export class SendCredit {
  readonly #bytes: number;
  readonly #periodMs: number;
  readonly #burst: number;
  readonly #nowMs: () => number;
  #left: number;
  #windowStartMs: number;

  constructor(bytes: number, periodUs: number, nowMs: () => number) {
    this.#bytes = bytes;
    this.#periodMs = periodUs / 1000;
    this.#burst = Math.max(BURST_MIN_BYTES, bytes);
    this.#nowMs = nowMs;
    this.#left = bytes;
    this.#windowStartMs = nowMs();
  }

  /** Takes credit for a packet. 0, or the milliseconds until there may be enough. */
  take(size: number): number {
    if (size > this.#left) {
      const now = this.#nowMs();
      const periods = Math.floor((now - this.#windowStartMs) / this.#periodMs);
      if (periods > 0) {
        this.#left = Math.min(this.#burst, this.#left + periods * this.#bytes);
        this.#windowStartMs += periods * this.#periodMs;
      }
      if (size > this.#left) return this.#windowStartMs + this.#periodMs - now;
    }
    this.#left -= size;
    return 0;
  }
}

/** The `rate` node: "bytes,usec". Null when it is no limit; both numbers from 1 on. */
export function parseRate(text: string): { readonly bytes: number; readonly periodUs: number } | null {
  const match = /^(\d{1,10}),(\d{1,10})$/.exec(text);
  if (match === null) return null;
  const bytes = Number(match[1]);
  const periodUs = Number(match[2]);
  return bytes > 0 && bytes < 0xffffffff && periodUs > 0 ? { bytes, periodUs } : null;
}
