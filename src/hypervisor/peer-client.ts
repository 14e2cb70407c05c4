/** This domain's end of a connection to another domain's process: requests, and the channels that were bound by them. */

import { EINVAL, ESRCH } from '../abi/errno.ts';
import type { Dom0Channels } from './dom0-channels.ts';
import { PeerChannels } from './peer-channels.ts';
import * as peer from './peer-protocol.ts';

/** Null: the other domain is gone. Called in the turn in which the answer comes, before what comes behind it is looked at. */
export type OnAnswer = (body: Uint8Array<ArrayBuffer> | null) => void;

export class PeerClient {
  readonly #channels: PeerChannels;
  readonly #dom0: Dom0Channels;
  readonly #send: (message: Uint8Array) => void;
  readonly #waiting = new Map<number, OnAnswer>();
  #lastId = 0;
  #gone = false;

  constructor(
    farDomid: number,
    channels: Dom0Channels,
    send: (message: Uint8Array) => void,
    isCongested: () => boolean,
  ) {
    this.#channels = new PeerChannels(farDomid, send, isCongested);
    this.#dom0 = channels;
    this.#send = send;
  }

  get isGone(): boolean {
    return this.#gone;
  }

  request(kind: number, words: ArrayLike<number>, bytes: Uint8Array | undefined, onAnswer: OnAnswer): void {
    if (this.#gone) {
      onAnswer(null);
      return;
    }
    const id = ++this.#lastId >>> 0;
    this.#waiting.set(id, onAnswer);
    this.#send(peer.encodePeerMessage(kind, id, words, bytes));
  }

  /** EVTCHNOP_bind_interdomain; `onDone` gets 0 or -errno. */
  bind(remotePort: number, localPort: number, onDone: (rc: number) => void): void {
    this.request(peer.PEER_BIND, [remotePort, localPort], undefined, (body) => {
      if (body === null) return onDone(-ESRCH);
      const errno = peer.wordsOf(body)[0] ?? EINVAL;
      if (errno !== 0) return onDone(-errno);
      const bound = this.#channels.add(localPort, remotePort, (ends) => this.#dom0.connect(ends));
      if (!bound) this.#send(peer.encodePeerMessage(peer.PEER_CLOSED, 0, [remotePort, localPort]));
      onDone(bound ? 0 : -EINVAL);
    });
  }

  /** False: that is no message for a client, and the connection has to end. */
  handle({ kind, id, body }: peer.PeerMessage): boolean {
    const words = peer.wordsOf(body);
    switch (kind) {
      case peer.PEER_ANSWER: {
        const onAnswer = this.#waiting.get(id);
        this.#waiting.delete(id);
        onAnswer?.(body);
        return onAnswer !== undefined;
      }
      case peer.PEER_EVENT:
        if (words.length === 2) this.#channels.signalled(words[0], words[1]);
        return words.length === 2;
      case peer.PEER_CLOSED:
        if (words.length === 2) this.#channels.closed(words[0], words[1]);
        return words.length === 2;
      default:
        return false;
    }
  }

  /** The connection has ended: nobody waits any more. */
  close(): void {
    this.#gone = true;
    this.#channels.closeAll();
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const onAnswer of waiting) onAnswer(null);
  }
}
