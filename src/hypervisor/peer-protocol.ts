/**
 * What the processes of two domains say to each other, so that one can map grants of the other and share event channels with it.
 *
 * One connection serves one direction: who has connected is the client and asks, the other answers. Whatever the client holds of the
 * server's domain belongs to the connection and goes with it. Numbers are u32, little-endian. A message is
 *
 *   size of the whole | kind | id | words and bytes
 *
 *   HELLO    client's domid, server's domid   -> process id, descriptor of the memory + 1 (0: it cannot be mapped)
 *   BIND     server's port, client's port     -> 0, or an errno
 *   MAP      (gref, writable)*                -> frame, or a GNTST_*, of each
 *   RELEASE  (gref, writable)*                -> nothing
 *   READ     (gref, offset, length)*          -> GNTST_* of each, then the bytes of those that are 0
 *   WRITE    n, (gref, offset, length)*, bytes  -> GNTST_* of each
 *   TRANSFER gref, a page                  -> GNTST_*
 *   ANSWER   to the request with this id
 *   EVENT    receiver's port, sender's port: either side has signalled
 *   CLOSED   receiver's port, sender's port: either side has closed its end
 *
 * Messages are in order: what a client did before an event, the server has seen before it.
 */

export const PEER_HELLO = 1;
export const PEER_BIND = 2;
export const PEER_MAP = 3;
export const PEER_RELEASE = 4;
export const PEER_READ = 5;
export const PEER_WRITE = 6;
export const PEER_ANSWER = 7;
export const PEER_EVENT = 8;
export const PEER_CLOSED = 9;
export const PEER_TRANSFER = 10;

export interface PeerMessage {
  readonly kind: number;
  readonly id: number;
  /** A copy, of its own buffer. */
  readonly body: Uint8Array<ArrayBuffer>;
}

const HEADER_BYTES = 12;
/** More than the largest message, 64 copies of a page. */
export const PEER_MESSAGE_MAX = 512 << 10;

export function encodePeerMessage(
  kind: number,
  id: number,
  words: ArrayLike<number>,
  bytes: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const size = HEADER_BYTES + words.length * 4 + bytes.length;
  const message = new Uint8Array(size);
  const view = new DataView(message.buffer);
  view.setUint32(0, size, true);
  view.setUint32(4, kind, true);
  view.setUint32(8, id, true);
  for (let i = 0; i < words.length; i++) view.setUint32(HEADER_BYTES + i * 4, words[i] >>> 0, true);
  message.set(bytes, HEADER_BYTES + words.length * 4);
  return message;
}

/** The words at the start of a body, `count` of them or as many as there are. */
export function wordsOf(body: Uint8Array<ArrayBuffer>, count = body.length >> 2): Uint32Array<ArrayBuffer> {
  return new Uint32Array(body.buffer, body.byteOffset, Math.min(count, body.length >> 2));
}

/** Cuts a stream into messages. `take` gives the complete ones; null when what comes is none. */
export class PeerReader {
  #rest = new Uint8Array(0);

  take(chunk: Uint8Array): PeerMessage[] | null {
    let bytes: Uint8Array = chunk;
    if (this.#rest.length > 0) {
      bytes = new Uint8Array(this.#rest.length + chunk.length);
      bytes.set(this.#rest);
      bytes.set(chunk, this.#rest.length);
    }
    const messages: PeerMessage[] = [];
    let at = 0;
    while (bytes.length - at >= HEADER_BYTES) {
      const view = new DataView(bytes.buffer, bytes.byteOffset + at);
      const size = view.getUint32(0, true);
      if (size < HEADER_BYTES || size > PEER_MESSAGE_MAX) return null;
      if (bytes.length - at < size) break;
      const body = Uint8Array.from(bytes.subarray(at + HEADER_BYTES, at + size));
      messages.push({ kind: view.getUint32(4, true), id: view.getUint32(8, true), body });
      at += size;
    }
    this.#rest = Uint8Array.from(bytes.subarray(at));
    return messages;
  }
}
