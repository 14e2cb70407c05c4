/** How many ICMP errors the guest is told, whatever it sends. Source: RFC 1812 (4.3.2.8), RFC 4443 (2.4 f). */

const PER_SECOND = 100;

export class ErrorRate {
  #second = 0;
  #count = 0;

  mayTell(nowMs: number): boolean {
    const second = Math.floor(nowMs / 1000);
    if (second !== this.#second) {
      this.#second = second;
      this.#count = 0;
    }
    return ++this.#count <= PER_SECOND;
  }
}
