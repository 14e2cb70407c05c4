/**
 * The codec of xenstore messages: a header of four u32 and up to 4096 bytes of payload.
 *
 * Text on the wire is bytes. Here paths, tokens and permissions are strings with one char per byte (0..255), so that
 * what a client sent comes back unchanged whatever its encoding; values stay Uint8Array.
 *
 * Source: xen/include/public/io/xs_wire.h, docs/misc/xenstore.txt.
 */
import { XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG } from '../abi/io/xs-wire.ts';

/** One message, request or reply. `payload` is at most XENSTORE_PAYLOAD_MAX bytes and shared with nobody who writes it. */
export interface Message {
  readonly type: number;
  readonly reqId: number;
  readonly txId: number;
  readonly payload: Uint8Array;
}

/** Header and payload as one run of bytes. */
export function encodeMessage(message: Message): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(XSD_SOCKMSG.SIZE + message.payload.length);
  const header = new DataView(bytes.buffer);
  header.setUint32(XSD_SOCKMSG.type, message.type, true);
  header.setUint32(XSD_SOCKMSG.req_id, message.reqId, true);
  header.setUint32(XSD_SOCKMSG.tx_id, message.txId, true);
  header.setUint32(XSD_SOCKMSG.len, message.payload.length, true);
  bytes.set(message.payload, XSD_SOCKMSG.SIZE);
  return bytes;
}

/** What `MessageDecoder.push` found: more bytes are needed, a whole message, or a length over the limit. */
export type Decoded =
  | { readonly kind: 'partial' }
  | { readonly kind: 'message'; readonly message: Message }
  | { readonly kind: 'violation' };

const PARTIAL: Decoded = { kind: 'partial' };
const VIOLATION: Decoded = { kind: 'violation' };

/**
 * Puts messages together from a byte stream cut anywhere. The caller asks how many bytes are `wanted`, pushes at most
 * that many, and so keeps the rest in its own buffer until it wants the next message.
 *
 * After a 'violation' the stream has lost its framing: `reset` is for a new stream.
 */
export class MessageDecoder {
  readonly #buffer = new Uint8Array(XSD_SOCKMSG.SIZE + XENSTORE_PAYLOAD_MAX);
  readonly #header = new DataView(this.#buffer.buffer);
  #filled = 0;
  #messageBytes: number = XSD_SOCKMSG.SIZE;
  #hasHeader = false;

  /** Bytes until the header, then the message, is complete; never 0 before a violation. */
  get wanted(): number {
    return this.#messageBytes - this.#filled;
  }

  /** Takes `bytes` (at most `wanted`), which are copied before anything in them is looked at. */
  push(bytes: Uint8Array): Decoded {
    this.#buffer.set(bytes, this.#filled);
    this.#filled += bytes.length;
    if (this.#filled < this.#messageBytes) return PARTIAL;
    if (!this.#hasHeader) {
      const payloadBytes = this.#header.getUint32(XSD_SOCKMSG.len, true);
      if (payloadBytes > XENSTORE_PAYLOAD_MAX) return VIOLATION;
      this.#hasHeader = true;
      this.#messageBytes += payloadBytes;
      if (payloadBytes > 0) return PARTIAL;
    }
    const message: Message = {
      type: this.#header.getUint32(XSD_SOCKMSG.type, true),
      reqId: this.#header.getUint32(XSD_SOCKMSG.req_id, true),
      txId: this.#header.getUint32(XSD_SOCKMSG.tx_id, true),
      payload: this.#buffer.slice(XSD_SOCKMSG.SIZE, this.#messageBytes),
    };
    this.reset();
    return { kind: 'message', message };
  }

  /** No part of a message has come. */
  get isEmpty(): boolean {
    return this.#filled === 0;
  }

  /** Forgets a message read in part. */
  reset(): void {
    this.#filled = 0;
    this.#messageBytes = XSD_SOCKMSG.SIZE;
    this.#hasHeader = false;
  }
}

/** One char per byte. */
export function bytesToText(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

/** One byte per char; the chars must be 0..255, as all text that came from `bytesToText` is. */
export function textToBytes(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/**
 * The NUL-terminated strings of a payload. What follows the last NUL is left out (docs/misc/xenstore.txt: reserved);
 * `rest` tells how many bytes that was.
 */
export function splitStrings(payload: Uint8Array): { readonly strings: string[]; readonly rest: number } {
  const strings: string[] = [];
  let start = 0;
  for (let end = payload.indexOf(0); end >= 0; end = payload.indexOf(0, start)) {
    strings.push(bytesToText(payload.subarray(start, end)));
    start = end + 1;
  }
  return { strings, rest: payload.length - start };
}

/** Strings, each with its NUL, as a payload. */
export function joinStrings(strings: readonly string[]): Uint8Array {
  return textToBytes(strings.map((text) => text + '\0').join(''));
}
