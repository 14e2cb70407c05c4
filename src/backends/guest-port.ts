/**
 * All that a backend needs of the domain it serves: pages that were granted to it, and event channels. The host hands it in.
 *
 * Memory is memory 0 itself, not a copy. A backend touches only pages whose grant it holds, reads each word of them once, and
 * believes nothing of what it read: the guest may change it at any moment.
 */

export interface GuestMemory {
  readonly u8: Uint8Array<SharedArrayBuffer>;
  readonly i32: Int32Array<SharedArrayBuffer>;
}

export interface GuestChannel {
  /** Sends the guest an event; nothing happens when it has closed its end. */
  notify(): void;
  /** Makes the handler run soon, as if the guest had signalled. */
  signalSelf(): void;
  close(): void;
}

export interface GuestPort {
  readonly domid: number;
  readonly memory: GuestMemory;
  /**
   * Maps a granted page. Byte offset of the page in `memory`, or a GNTST_* (negative) for a reference that grants nothing or,
   * with `writable`, no writing. `gref` may be any number. Each mapping is released by `unmapGrant` with the same arguments.
   */
  mapGrant(gref: number, writable: boolean): number;
  unmapGrant(gref: number, writable: boolean): void;
  /** A page of the domain's RAM by its MFN, as Dom0 may map any: byte offset in `memory`, or -1. `mfn` may be any number. */
  mapFrame(mfn: number): number;
  /** Something was stored into a mapped page, where the guest may have code. Before the guest is told that it was. */
  memoryStored(offset: number, sizeBytes: number): void;
  /**
   * Binds to a port that the guest has made for Dom0; null if there is none. `port` may be any number. `onEvent` is called in a
   * turn of its own, once at first and then when the guest has signalled; true from it: call again in a later turn.
   */
  bindEventChannel(port: number, onEvent: () => boolean): GuestChannel | null;
}
