/**
 * A set of host clusters, as a bitmap: which clusters of an image hold its own tables.
 *
 * A guest's data must never be written there, whatever the image's tables say: a hostile image could otherwise let its
 * guest rewrite the header and with it name files of the host.
 */

/** 64 MiB of bits: 32 TiB of file with clusters of 64 KiB. */
const CLUSTERS_MAX = 2 ** 29;

export class ClusterSet {
  #bits = new Uint32Array(1024);

  /** False if the cluster is further away than a bitmap of reasonable size reaches. */
  add(cluster: number): boolean {
    if (cluster >= CLUSTERS_MAX) return false;
    const word = cluster >>> 5;
    if (word >= this.#bits.length) {
      const bits = new Uint32Array(Math.max(word + 1, this.#bits.length * 2));
      bits.set(this.#bits);
      this.#bits = bits;
    }
    this.#bits[word]! |= 1 << (cluster & 31);
    return true;
  }

  delete(cluster: number): void {
    const word = cluster >>> 5;
    if (cluster < CLUSTERS_MAX && word < this.#bits.length) this.#bits[word]! &= ~(1 << (cluster & 31));
  }

  has(cluster: number): boolean {
    const word = cluster >>> 5;
    return cluster < CLUSTERS_MAX && word < this.#bits.length && (this.#bits[word]! & (1 << (cluster & 31))) !== 0;
  }
}
