/** For the tests of this folder: requests from text, replies as text. */
import { XS } from '../abi/io/xs-wire.ts';
import type { Connection } from './connection.ts';
import { bytesToText, type Message, textToBytes } from './wire.ts';

/** Payload of the reply as text, one char per byte; an error as "!" and its name. */
export function ask(connection: Connection, type: number, text: string, txId = 0): string {
  const reply = connection.handle({ type, reqId: 77, txId, payload: textToBytes(text) });
  if (reply.reqId !== 77 || reply.txId !== txId) throw new Error('reply does not repeat req_id and tx_id');
  if (reply.type === XS.ERROR) return '!' + bytesToText(reply.payload).replace(/\0$/, '');
  if (reply.type !== type) throw new Error(`reply of type ${reply.type} to ${type}`);
  return bytesToText(reply.payload);
}

/** All waiting events as "path token". */
export function takeEvents(connection: Connection): string[] {
  const events: string[] = [];
  for (let event = connection.takeOutput(); event !== null; event = connection.takeOutput())
    events.push(eventText(event));
  return events;
}

export function eventText(event: Message): string {
  if (event.type !== XS.WATCH_EVENT || event.reqId !== 0 || event.txId !== 0) throw new Error('not an event');
  return bytesToText(event.payload).split('\0').slice(0, 2).join(' ');
}

/** A repeatable source of numbers 0 <= n < below (mulberry32). */
export function randomSource(seed: number): (below: number) => number {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below);
  };
}
