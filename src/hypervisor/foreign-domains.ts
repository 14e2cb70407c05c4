/**
 * What the hypervisor of one domain asks that of another, which lives in another process. Called in a vCPU's thread, which waits for
 * the answer; so never under the domain lock, since the other one may be asking too. A domain that is gone, or does not answer
 * in time, is one that does not exist.
 */

/** Grants or copies of one call. */
export const FOREIGN_BATCH = 64;

/** Words of a request in `map` and `release`: reference; 1 = for writing. */
export const GRANT_WORDS = 2;
/** Words of a request in `read` and `write`: reference, offset in the page, length. */
export const COPY_WORDS = 3;

export interface ForeignDomains {
  /** Joins an own port, which is ECS_RESERVED, to the other domain's. 0, or -errno; on 0 the port's record is set. */
  bind(domid: number, remotePort: number, localPort: number): number;
  /**
   * Maps granted pages into foreign frames of memory 0. `results`: the frame (offset >> 12), or a GNTST_* (negative), of each
   * of `count` requests.
   */
  map(domid: number, requests: Uint32Array, count: number, results: Int32Array): void;
  /** Gives mappings back; `frames` are those of `map`. No vCPU may use them any more. When it returns, the other domain has them back. */
  release(domid: number, requests: Uint32Array, count: number, frames: Int32Array): void;
  /** Copies from granted pages into `bytes`, one piece behind the other. `results`: GNTST_* of each; a piece that failed is left out. */
  read(domid: number, requests: Uint32Array, count: number, bytes: Uint8Array, results: Int32Array): void;
  /** Copies pieces of `bytes`, one behind the other, into granted pages. `results`: GNTST_* of each. */
  write(domid: number, requests: Uint32Array, count: number, bytes: Uint8Array, results: Int32Array): void;
  /** Gives the other domain a page with these contents, by an entry of its table. GNTST_*; whatever it is, the page is not the caller's. */
  transfer(domid: number, gref: number, page: Uint8Array): number;
}
