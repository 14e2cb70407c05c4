/**
 * How a client reaches a store: whole messages in order, whoever carries them. A link is the client's end.
 *
 *   linkToStore(store)      a store in this process (tests, browsers)
 *   linkOverBytes(channel)  a store behind a byte stream: a socket, a MessagePort
 */
import type { Connection } from './connection.ts';
import type { Store } from './store.ts';
import { encodeMessage, type Message, MessageDecoder } from './wire.ts';

export interface LinkHandlers {
  onMessage(message: Message): void;
  /** The other side is gone, and nothing follows; why, in a few words. Not called after `close`. */
  onEnd(reason: string): void;
}

export interface StoreLink {
  /** Sends one request. After the end it does nothing. */
  send(request: Message): void;
  /** Sets who gets replies and events. Once, before the first `send`. Handlers are never called from within `send`. */
  receive(handlers: LinkHandlers): void;
  close(): void;
}

/** A duplex stream of bytes, handed in by who can open one. */
export interface ByteChannel {
  /** The bytes belong to the channel from here on. */
  write(bytes: Uint8Array): void;
  /** Sets who gets what arrives; once. What arrives earlier waits. */
  receive(onBytes: (bytes: Uint8Array) => void, onEnd: (reason: string) => void): void;
  close(): void;
}

/** A link over a byte stream that speaks the wire protocol. */
export function linkOverBytes(channel: ByteChannel): StoreLink {
  const decoder = new MessageDecoder();
  let closed = false;
  return {
    send: (request) => {
      if (!closed) channel.write(encodeMessage(request));
    },
    receive: ({ onMessage, onEnd }) => {
      channel.receive(
        (bytes) => {
          for (let at = 0; at < bytes.length && !closed; ) {
            const chunk = bytes.subarray(at, at + decoder.wanted);
            at += chunk.length;
            const decoded = decoder.push(chunk);
            if (decoded.kind === 'message') onMessage(decoded.message);
            else if (decoded.kind === 'violation') {
              closed = true;
              channel.close();
              onEnd('xenstored sent a message over the limit');
            }
          }
        },
        (reason) => {
          if (closed) return;
          closed = true;
          onEnd(reason);
        },
      );
    },
    close: () => {
      closed = true;
      channel.close();
    },
  };
}

/** A link to a store in this process, on behalf of `domid`. */
export function linkToStore(store: Store, domid = 0): StoreLink {
  return new DirectLink(store.connect(domid));
}

class DirectLink implements StoreLink {
  readonly #connection: Connection;
  #handlers: LinkHandlers | null = null;
  #pumpQueued = false;

  constructor(connection: Connection) {
    this.#connection = connection;
  }

  send(request: Message): void {
    if (this.#connection.isClosed) return;
    this.#connection.submit(request);
    this.#queuePump();
  }

  receive(handlers: LinkHandlers): void {
    this.#handlers = handlers;
    this.#connection.onEvent = () => this.#queuePump();
    this.#connection.onClose = () => {
      if (this.#handlers === null) return;
      this.#handlers = null;
      handlers.onEnd(`domain ${this.#connection.domid} was released`);
    };
    this.#queuePump();
  }

  close(): void {
    this.#handlers = null;
    this.#connection.close();
  }

  /** Later, since the store may be in the middle of another client's request. */
  #queuePump(): void {
    if (this.#pumpQueued) return;
    this.#pumpQueued = true;
    queueMicrotask(() => {
      this.#pumpQueued = false;
      while (this.#handlers !== null) {
        const message = this.#connection.takeOutput();
        if (message === null) break;
        this.#handlers.onMessage(message);
      }
    });
  }
}
