import { beforeEach, expect, test } from 'vitest';
import {
  XENSTORE_ERROR_PROTO,
  XENSTORE_ERROR_RINGIDX,
  XENSTORE_RECONNECT,
  XS,
  XENSTORE_DOMAIN_INTERFACE as XSDI,
} from '../abi/io/xs-wire.ts';
import type { Connection } from './connection.ts';
import { createRingServer, type RingServer } from './ring-server.ts';
import { createStore, type Store } from './store.ts';
import { eventText, randomSource } from './test-client.ts';
import { TestGuest } from './test-guest.ts';
import { bytesToText, encodeMessage, type Message, textToBytes } from './wire.ts';

let store: Store;
let guest: TestGuest;
let connection: Connection;
let ring: RingServer;

function attach(): void {
  connection = store.connect(5);
  ring = createRingServer({ page: guest.page, connection, notify: () => guest.notified++ });
}

beforeEach(() => {
  store = createStore();
  store.write('/local/domain/5', '');
  store.setPermissions('/local/domain/5', ['b5']);
  guest = new TestGuest();
  attach();
});

const request = (type: number, text: string, reqId = 1, txId = 0) =>
  encodeMessage({ type, reqId, txId, payload: textToBytes(text) });

test('a request is answered, and the guest notified once', () => {
  guest.write(request(XS.WRITE, 'x\0hello', 7));
  guest.write(request(XS.READ, 'x\0', 8));
  expect(ring.service()).toBe(false);
  expect(guest.notified).toBe(1);
  expect(guest.word(XSDI.req_cons)).toBe(guest.word(XSDI.req_prod));
  const [ok, value, ...rest] = guest.read();
  expect([ok.reqId, bytesToText(ok.payload)]).toEqual([7, 'OK\0']);
  expect([value.reqId, bytesToText(value.payload)]).toEqual([8, 'hello']);
  expect(rest).toEqual([]);
  ring.service();
  expect(guest.notified).toBe(1);
});

test('the page says what the server can do, and leaves `connection` 0', () => {
  expect(guest.word(XSDI.server_features)).toBe(7);
  expect(guest.word(XSDI.connection)).toBe(0);
});

test('a page that comes when its server has been made is taken up as it is then', () => {
  guest.write(request(XS.WATCH, 'device\0tok\0'));
  ring.service();
  guest.read();
  const come = guest.page.slice();
  guest = new TestGuest();
  attach();
  guest.page.set(come);
  ring.takeUp();
  connection.submit({ type: XS.WATCH, reqId: 0, txId: 0, payload: textToBytes('device\0tok\0') });
  ring.service();
  expect(guest.word(XSDI.error)).toBe(0);
  guest.read();
  store.write('/local/domain/5/device/vbd', '');
  expect(guest.read().map(eventText)).toEqual(['device/vbd tok']);
});

test('a part of a message is consumed, and the guest notified of the space', () => {
  const bytes = request(XS.WRITE, 'x\0hello');
  guest.write(bytes.subarray(0, 3));
  ring.service();
  expect([guest.word(XSDI.req_cons), guest.notified]).toEqual([3, 1]);
  guest.write(bytes.subarray(3));
  ring.service();
  expect(guest.read().map((message) => message.type)).toEqual([XS.WRITE]);
});

test('a payload of no bytes is answered at once', () => {
  guest.write(request(XS.READ, ''));
  ring.service();
  expect(guest.read().map((message) => bytesToText(message.payload))).toEqual(['EINVAL\0']);
});

test('events made by another client arrive without a request, and notify', () => {
  guest.write(request(XS.WATCH, 'device\0tok\0'));
  ring.service();
  const [reply, first] = guest.read();
  expect(reply.type).toBe(XS.WATCH);
  expect(eventText(first)).toBe('device tok');
  guest.notified = 0;
  store.write('/local/domain/5/device/vbd', '');
  expect(guest.notified).toBe(1);
  expect(guest.read().map(eventText)).toEqual(['device/vbd tok']);
});

test('any cut of requests and responses, with indices that wrap, gives the same replies', () => {
  for (let seed = 1; seed <= 20; seed++) {
    const random = randomSource(seed);
    guest = new TestGuest();
    const start = (0x1_0000_0000 - 3000 + random(2000)) >>> 0;
    for (const offset of [XSDI.req_cons, XSDI.req_prod, XSDI.rsp_cons, XSDI.rsp_prod]) guest.setWord(offset, start);
    attach();
    const expected: string[] = [];
    const requests: Uint8Array[] = [];
    for (let i = 0; i < 200; i++) {
      const value = String.fromCharCode(65 + random(26)).repeat(random(2049));
      requests.push(request(XS.WRITE, `n${i % 7}\0${value}`, 2 * i), request(XS.READ, `n${i % 7}\0`, 2 * i + 1));
      expected.push('OK\0', value);
    }
    const replies: Message[] = [];
    let left = requests.reduce((bytes, message) => {
      const joined = new Uint8Array(bytes.length + message.length);
      joined.set(bytes);
      joined.set(message, bytes.length);
      return joined;
    }, new Uint8Array());
    for (let idle = 0; idle < 100; ) {
      const before = replies.length + left.length;
      left = left.subarray(guest.write(left.subarray(0, random(700))));
      if (random(3) > 0) ring.service();
      replies.push(...guest.read(random(900)));
      idle = replies.length + left.length === before ? idle + 1 : 0;
    }
    expect(left.length).toBe(0);
    expect(replies.map((message) => message.reqId)).toEqual(requests.map((_, i) => i));
    expect(replies.map((message) => bytesToText(message.payload))).toEqual(expected);
    connection.close();
  }
});

test('a guest that does not read its responses is held up, then served when it reads', () => {
  store.write('/local/domain/5/big', 'v'.repeat(2000));
  const bytes = request(XS.READ, 'big\0');
  let sent = 0;
  for (let i = 0; i < 500; i++) {
    if (guest.write(bytes) < bytes.length) break;
    sent++;
    ring.service();
  }
  // One being written, 20 waiting, 51 in the ring.
  expect(sent).toBe(72);
  expect(connection.repliesWaiting).toBe(20);
  const replies: Message[] = [];
  for (let i = 0; i < 500; i++) {
    replies.push(...guest.read());
    ring.service();
  }
  expect(replies.length).toBeGreaterThanOrEqual(sent);
});

test.each([
  ['req_prod', XSDI.req_prod, 1025],
  ['req_prod behind req_cons', XSDI.req_prod, 0xffffffff],
])('%s out of bounds ends the service with an error; a reconnect starts over', (_name, offset, value) => {
  guest.write(request(XS.WATCH, 'device\0tok\0'));
  ring.service();
  guest.read();
  guest.notified = 0;
  guest.setWord(offset, (guest.word(XSDI.req_cons) + value) >>> 0);
  ring.service();
  expect([ring.hasFailed, guest.word(XSDI.error), guest.notified]).toEqual([true, XENSTORE_ERROR_RINGIDX, 1]);
  ring.service();
  store.write('/local/domain/5/device/x', '');
  expect(guest.notified).toBe(1);

  guest.setWord(XSDI.connection, XENSTORE_RECONNECT);
  ring.service();
  expect(Array.from(guest.words)).toEqual([0, 0, 0, 0, 7, 0, 0, 0]);
  expect(guest.notified).toBe(2);
  store.write('/local/domain/5/device/x', '');
  guest.write(request(XS.WRITE, 'x\x001'));
  ring.service();
  expect(guest.read().map((message) => message.type)).toEqual([XS.WRITE]);
});

test('rsp_cons out of bounds ends the service with an error', () => {
  guest.setWord(XSDI.rsp_cons, 77);
  guest.write(request(XS.READ, 'x\0'));
  ring.service();
  expect(guest.word(XSDI.error)).toBe(XENSTORE_ERROR_RINGIDX);
});

test('a payload over 4096 bytes ends the service with an error', () => {
  const bytes = request(XS.WRITE, 'x\0');
  new DataView(bytes.buffer).setUint32(12, 4097, true);
  guest.write(bytes);
  ring.service();
  expect([ring.hasFailed, guest.word(XSDI.error)]).toEqual([true, XENSTORE_ERROR_PROTO]);
});

test('what the guest does to the server words of the page does not matter', () => {
  guest.write(request(XS.READ, 'x\0'));
  guest.setWord(XSDI.req_cons, 12345);
  guest.setWord(XSDI.rsp_prod, 54321);
  ring.service();
  expect(ring.hasFailed).toBe(false);
  expect(guest.read().length).toBe(1);
});

test('a released domain is no longer served', () => {
  store.introduceDomain(5, { gfn: 1, port: 1 });
  store.releaseDomain(5);
  guest.write(request(XS.READ, 'x\0'));
  expect(ring.service()).toBe(false);
  expect([guest.word(XSDI.req_cons), guest.notified]).toEqual([0, 0]);
});

test('no page contents make the server throw', () => {
  const random = randomSource(99);
  for (let round = 0; round < 3000; round++) {
    for (let i = 0; i < 2048; i += 1 + random(64)) guest.page[i] = random(4) === 0 ? random(256) : 0;
    if (random(20) === 0) {
      guest.setWord(XSDI.req_cons + 4 * random(8), random(0x1_0000_0000));
    } else {
      guest.setWord(XSDI.req_prod, (guest.word(XSDI.req_cons) + random(1025)) >>> 0);
      guest.setWord(XSDI.rsp_cons, guest.word(XSDI.rsp_prod));
    }
    if (ring.hasFailed) guest.setWord(XSDI.connection, XENSTORE_RECONNECT);
    ring.service();
  }
});
