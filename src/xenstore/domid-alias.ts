/**
 * A guest that knows itself by another domid than it has: one that was restored where its own was taken. It holds paths of xenstore
 * that contain the domid, as frontends do of their backends. So paths are translated between the guest and the store:
 *
 *   /local/domain/DOMID/...                    its own nodes
 *   /local/domain/0/backend/KIND/DOMID/...     those of its backends
 *
 * to the store in requests, to the guest in the paths of events, and in values that are such a path and nothing else.
 */

import { XS } from '../abi/io/xs-wire.ts';
import { bytesToText, type Message, textToBytes } from './wire.ts';

/** Replaces a domid where it makes a path one of this domain's. All else comes back as it is. */
export function translatePath(path: string, from: number, to: number): string {
  const match = /^(\/local\/domain\/(?:0\/backend\/[^/]+\/)?)(\d+)(?=\/|$)/.exec(path);
  if (match === null || match[2] !== String(from)) return path;
  return `${match[1]}${to}${path.slice(match[0].length)}`;
}

/** Requests whose payload begins with a path. */
const WITH_PATH: ReadonlySet<number> = new Set([
  ...[XS.READ, XS.WRITE, XS.MKDIR, XS.RM, XS.DIRECTORY, XS.DIRECTORY_PART],
  ...[XS.GET_PERMS, XS.SET_PERMS, XS.WATCH, XS.UNWATCH],
]);

/** A value that is longer is no path. */
const PATH_MAX = 3072;

export class DomidAlias {
  /** As the guest knows itself, and as the store knows it. */
  readonly known: number;
  readonly real: number;

  constructor(known: number, real: number) {
    this.known = known;
    this.real = real;
  }

  /** What the store gets of a request of the guest's. */
  request(message: Message): Message {
    if (!WITH_PATH.has(message.type)) return message;
    const end = message.payload.indexOf(0);
    if (end < 0) return message;
    return this.#withPath(message, end, this.known, this.real);
  }

  /** What the guest gets of an event, or of a reply. */
  reply(message: Message): Message {
    const { type, payload } = message;
    if (type === XS.WATCH_EVENT) return this.#withPath(message, payload.indexOf(0), this.real, this.known);
    if ((type === XS.READ || type === XS.GET_DOMAIN_PATH) && payload.length <= PATH_MAX) {
      const end = payload.at(-1) === 0 ? payload.length - 1 : payload.length;
      return this.#withPath(message, end, this.real, this.known);
    }
    return message;
  }

  #withPath(message: Message, end: number, from: number, to: number): Message {
    const path = bytesToText(message.payload.subarray(0, end));
    const translated = translatePath(path, from, to);
    if (translated === path) return message;
    const payload = new Uint8Array(translated.length + message.payload.length - end);
    payload.set(textToBytes(translated));
    payload.set(message.payload.subarray(end), translated.length);
    return { ...message, payload };
  }
}
