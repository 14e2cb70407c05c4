/** Replies of Xen 4.17's oxenstored to domain 0, against ours: in this process, and byte for byte over a stream. */
import { expect, test } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import { createStore } from './store.ts';
import { StreamServer } from './stream-server.ts';
import { createPipe } from './test-pipe.ts';
import { DEVIATIONS, RECORDED } from './test-recorded.ts';
import { bytesToText, encodeMessage, textToBytes } from './wire.ts';

test('replies to domain 0 are those recorded from Xen', () => {
  const connection = createStore().connect(0);
  RECORDED.forEach(([name, type, payload, txId, ...recorded], reqId) => {
    connection.submit({ type, reqId, txId, payload: textToBytes(payload) });
    const replies: string[] = [];
    for (;;) {
      const message = connection.takeOutput();
      if (message === null) throw new Error(`${name}: no reply`);
      replies.push(`${message.type} ${bytesToText(message.payload)}`);
      if (message.type === XS.WATCH_EVENT) {
        expect([message.reqId, message.txId], name).toEqual([0, 0]);
        continue;
      }
      expect([message.reqId, message.txId], name).toEqual([reqId, txId]);
      break;
    }
    expect(replies, name).toEqual(name in DEVIATIONS ? [DEVIATIONS[name]] : recorded);
  });
});

test('a value of 2048 bytes is stored, one of 2049 is not', () => {
  const connection = createStore().connect(0);
  const write = (bytes: number) =>
    connection.handle({ type: XS.WRITE, reqId: 0, txId: 0, payload: textToBytes(`/t\0${'v'.repeat(bytes)}`) }).type;
  expect(write(2048)).toBe(XS.WRITE);
  expect(write(2049)).toBe(XS.ERROR);
});

test.each([1, 7, 4096])('over a stream in pieces of %d bytes they are the same bytes', async (pieceBytes) => {
  const server = new StreamServer({ store: createStore(), later: setImmediate, log: () => {} });
  const pipe = createPipe(pieceBytes);
  server.serve(pipe.server);
  const received: number[] = [];
  let ended = false;
  pipe.client.receive(
    (bytes) => void received.push(...bytes),
    () => (ended = true),
  );
  const expected: number[] = [];
  for (const [reqId, [name, type, payload, txId, ...recorded]] of RECORDED.entries()) {
    for (const reply of name in DEVIATIONS ? [DEVIATIONS[name]] : recorded) {
      const replyType = Number.parseInt(reply, 10);
      const isEvent = replyType === XS.WATCH_EVENT;
      const bytes = textToBytes(reply.slice(reply.indexOf(' ') + 1));
      const ids = isEvent ? { reqId: 0, txId: 0 } : { reqId, txId };
      expected.push(...encodeMessage({ type: replyType, ...ids, payload: bytes }));
    }
    pipe.client.write(encodeMessage({ type, reqId, txId, payload: textToBytes(payload) }));
  }
  while (received.length < expected.length && !ended) await new Promise(setImmediate);
  expect(bytesToText(Uint8Array.from(received))).toBe(bytesToText(Uint8Array.from(expected)));
  // The row that is left out: what cannot be a message ends the connection.
  pipe.client.write(encodeMessage({ type: XS.WRITE, reqId: 1, txId: 0, payload: new Uint8Array(4097) }));
  while (!ended) await new Promise(setImmediate);
  expect(received.length).toBe(expected.length);
});
