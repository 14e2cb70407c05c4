/** The ring of a guest whose store is elsewhere: replies come later, one by one, and stop coming now and then. */
import { beforeEach, expect, test } from 'vitest';
import { XENSTORE_RECONNECT, XS, XENSTORE_DOMAIN_INTERFACE as XSDI } from '../abi/io/xs-wire.ts';
import type { LinkHandlers } from './link.ts';
import { LinkConnection } from './link-connection.ts';
import { createRingServer, type RingServer } from './ring-server.ts';
import { TestGuest } from './test-guest.ts';
import { bytesToText, encodeMessage, type Message, textToBytes } from './wire.ts';

let guest: TestGuest;
let ring: RingServer;
let connection: LinkConnection;
/** What has been sent over the link and not been answered. */
let sent: Message[];
let handlers: LinkHandlers;

beforeEach(() => {
  guest = new TestGuest();
  sent = [];
  connection = new LinkConnection({
    send: (request) => sent.push(request),
    receive: (given) => {
      handlers = given;
    },
    close: () => {},
  });
  ring = createRingServer({ page: guest.page, connection, notify: () => guest.notified++ });
});

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));
const request = (reqId: number): Uint8Array =>
  encodeMessage({ type: XS.READ, reqId, txId: 0, payload: textToBytes('a\0') });
const event = (path: string): Message => ({
  type: XS.WATCH_EVENT,
  reqId: 0,
  txId: 0,
  payload: textToBytes(`${path}\0t\0`),
});

/** Answers the oldest request with its own number. */
function answer(): void {
  const message = sent.shift();
  if (message === undefined) throw new Error('nothing to answer');
  handlers.onMessage({ ...message, payload: textToBytes(`value ${message.reqId}`) });
}

test('no more than 20 requests are under way; the rest are taken up as replies come, without the guest`s help', async () => {
  let written = 0;
  const total = 200;
  const bytes = Buffer.concat(Array.from({ length: total }, (_, i) => request(i)));
  const answers: number[] = [];
  while (answers.length < total) {
    if (written < bytes.length) {
      written += guest.write(bytes.subarray(written));
      ring.service();
    }
    expect(sent.length).toBeLessThanOrEqual(20);
    if (sent.length > 0) answer();
    await turn();
    for (const message of guest.read()) answers.push(message.reqId);
  }
  expect(answers).toEqual(Array.from({ length: total }, (_, i) => i));
});

test('an event that comes while requests are under way is told at once', () => {
  guest.write(request(1));
  ring.service();
  const before = guest.notified;
  handlers.onMessage(event('device'));
  expect(guest.notified).toBe(before + 1);
  expect(guest.read().map(({ payload }) => bytesToText(payload))).toEqual(['device\0t\0']);
  answer();
  expect(guest.read().map(({ reqId }) => reqId)).toEqual([1]);
});

test('after a reconnect of the guest nothing of before arrives', () => {
  for (const reqId of [1, 2, 3]) guest.write(request(reqId));
  ring.service();
  answer();
  guest.setWord(XSDI.connection, XENSTORE_RECONNECT);
  ring.service();
  guest.write(request(4));
  ring.service();
  expect(sent.map(({ type }) => type)).toEqual([XS.READ, XS.READ, XS.RESET_WATCHES, XS.READ]);
  handlers.onMessage(event('of before'));
  answer();
  answer();
  handlers.onMessage(event('of before, too'));
  answer();
  handlers.onMessage(event('after'));
  answer();
  expect(guest.read().map(({ payload }) => bytesToText(payload))).toEqual(['after\0t\0', 'value 4']);
});

test('a guest that takes no events loses those beyond its quota, and only events', () => {
  guest.write(request(1));
  ring.service();
  for (let i = 0; i < 3000; i++) handlers.onMessage(event(`device/${i}`));
  answer();
  // 1024 wait, and those that were in the ring when it was full.
  expect(connection.eventsLost).toBeGreaterThan(1900);
  expect(connection.eventsLost).toBeLessThan(2000);
  const read: Message[] = [];
  for (let messages = guest.read(); messages.length > 0; messages = guest.read()) {
    read.push(...messages);
    ring.service();
  }
  expect(read.length).toBe(3001 - connection.eventsLost);
  expect(read.at(-1)?.reqId).toBe(1);
});

test('when xenstored will serve the domain no more, that is told, and requests stay where they are', () => {
  let reason = '';
  connection.onEnd = (why) => {
    reason = why;
  };
  handlers.onEnd('domain 5 was released');
  expect(reason).toBe('domain 5 was released');
  guest.write(request(1));
  expect(ring.service()).toBe(false);
  expect(sent).toEqual([]);
});

test('it knows the guest`s watches and transactions, and whether anything is under way', async () => {
  const say = (type: number, text: string, txId = 0): void => {
    guest.write(encodeMessage({ type, reqId: 1, txId, payload: textToBytes(text) }));
    ring.service();
  };
  const reply = async (text: string, type?: number): Promise<void> => {
    const message = sent.shift()!;
    handlers.onMessage({ ...message, type: type ?? message.type, payload: textToBytes(text) });
    await turn();
    guest.read();
  };
  expect(connection.isIdle).toBe(true);
  say(XS.WATCH, 'device\0one\0');
  expect(connection.isIdle).toBe(false);
  await reply('OK\0');
  say(XS.WATCH, 'refused\0two\0');
  await reply('EINVAL\0', XS.ERROR);
  say(XS.WATCH, 'control\0three\x001\0');
  await reply('OK\0');
  expect(connection.watches).toEqual([
    ['device', 'one'],
    ['control', 'three', '1'],
  ]);
  expect(connection.isIdle).toBe(true);
  say(XS.UNWATCH, 'device\0one\0');
  await reply('OK\0');
  say(XS.TRANSACTION_START, '\0');
  await reply('5\0');
  expect(connection.isIdle).toBe(false);
  say(XS.TRANSACTION_END, 'T\0', 5);
  await reply('OK\0');
  expect([connection.isIdle, connection.watches]).toEqual([true, [['control', 'three', '1']]]);
  say(XS.RESET_WATCHES, '\0');
  await reply('OK\0');
  expect(connection.watches).toEqual([]);
});

test('watches that it sets itself fire, and the guest hears of no reply', async () => {
  connection.setWatches([['device', 'one']]);
  expect(connection.isIdle).toBe(false);
  handlers.onMessage(event('device'));
  const message = sent.shift()!;
  expect([message.type, bytesToText(message.payload)]).toEqual([XS.WATCH, 'device\0one\0']);
  handlers.onMessage({ ...message, payload: textToBytes('OK\0') });
  await turn();
  expect(guest.read().map(({ type }) => type)).toEqual([XS.WATCH_EVENT]);
  expect([connection.isIdle, connection.watches]).toEqual([true, [['device', 'one']]]);
});

test('a ring that is held is left alone, and served when it is released', async () => {
  ring.hold();
  guest.write(request(1));
  ring.service();
  handlers.onMessage(event('device'));
  await turn();
  expect([sent.length, guest.read().length]).toEqual([0, 0]);
  ring.release();
  expect([sent.length, guest.read().length]).toEqual([1, 1]);
  guest.write(request(2).subarray(0, 5));
  ring.service();
  expect(ring.isBetweenMessages).toBe(false);
});
