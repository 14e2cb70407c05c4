/** What any program that may open the socket can do to the others: nothing. */
import { expect, test } from 'vitest';
import { XENSTORE_PAYLOAD_MAX, XS } from '../abi/io/xs-wire.ts';
import { XenstoreClient } from './client.ts';
import { linkOverBytes } from './link.ts';
import { createStore } from './store.ts';
import { StreamServer } from './stream-server.ts';
import { randomSource } from './test-client.ts';
import { createPipe, type Pipe } from './test-pipe.ts';
import { encodeMessage, textToBytes } from './wire.ts';

function setUp() {
  const store = createStore();
  const lines: string[] = [];
  const server = new StreamServer({ store, later: setImmediate, log: (line) => lines.push(line) });
  const open = (pieceBytes?: number): Pipe => {
    const pipe = createPipe(pieceBytes);
    server.serve(pipe.server);
    return pipe;
  };
  const client = (pieceBytes?: number): XenstoreClient => new XenstoreClient(linkOverBytes(open(pieceBytes).client));
  return { store, server, lines, open, client };
}

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));
const request = (type: number, text: string, reqId = 1): Uint8Array =>
  encodeMessage({ type, reqId, txId: 0, payload: textToBytes(text) });

test('requests cut anywhere are answered in their order', async () => {
  const { client } = setUp();
  for (const pieceBytes of [1, 15, 16, 17, 1000]) {
    const one = client(pieceBytes);
    await Promise.all(Array.from({ length: 20 }, (_, i) => one.write(`/cut/${pieceBytes}/${i}`, 'x'.repeat(i * 100))));
    expect(await one.directory(`/cut/${pieceBytes}`)).toEqual(Array.from({ length: 20 }, (_, i) => String(i)).sort());
    expect(await one.read(`/cut/${pieceBytes}/19`)).toBe('x'.repeat(1900));
  }
});

test('a length over the limit, and random bytes, end that connection and no other', async () => {
  const { server, open, client } = setUp();
  const other = client();
  await other.write('/a', '1');
  const random = randomSource(5);
  const hostile: Uint8Array[] = [
    Uint8Array.from({ length: 16 }, (_, i) => (i >= 12 ? 0xff : 0)),
    new Uint8Array(Uint32Array.of(XS.READ, 1, 0, XENSTORE_PAYLOAD_MAX + 1).buffer),
    ...Array.from({ length: 20 }, () => Uint8Array.from({ length: 5000 }, () => random(256))),
  ];
  for (const bytes of hostile) {
    const pipe = open();
    let ended = false;
    pipe.client.receive(
      () => {},
      () => (ended = true),
    );
    pipe.client.write(bytes);
    for (let i = 0; i < 5 && !ended; i++) await turn();
    expect(ended).toBe(true);
    expect(await other.read('/a')).toBe('1');
  }
  expect(server.clientCount).toBe(1);
});

test('a client that goes in the middle of a message, a transaction or a watch leaves nothing behind', async () => {
  const { store, server, open, client } = setUp();
  const pipe = open();
  pipe.client.write(request(XS.WATCH, '/\0t\0'));
  pipe.client.write(request(XS.TRANSACTION_START, '\0'));
  pipe.client.write(request(XS.WRITE, '/a\0long').subarray(0, 18));
  await turn();
  expect(server.clientCount).toBe(1);
  pipe.cut();
  await turn();
  expect(server.clientCount).toBe(0);
  const other = client();
  await other.write('/b', '1');
  expect(store.read('/a')).toBe(null);
});

/** A client that takes nothing of what it is sent. */
function serveStuckClient(server: StreamServer) {
  const state = { backlogBytes: 0, paused: false, closed: false, send: (_bytes: Uint8Array): void => {} };
  server.serve({
    write: (bytes) => {
      state.backlogBytes += bytes.length;
    },
    get backlogBytes() {
      return state.backlogBytes;
    },
    setPaused: (value) => {
      state.paused = value;
    },
    receive: ({ onBytes }) => {
      state.send = onBytes;
    },
    close: () => {
      state.closed = true;
    },
  });
  return state;
}

test('a client that sends without end and reads nothing holds up nobody, and little is kept for it', async () => {
  const { store, server, client } = setUp();
  store.write('/big', 'x'.repeat(2000));
  const stuck = serveStuckClient(server);
  const one = request(XS.READ, '/big\0');
  const flood = new Uint8Array(one.length * 2000);
  for (let i = 0; i < 2000; i++) flood.set(one, i * one.length);
  stuck.send(flood);
  for (let i = 0; i < 40; i++) await turn();
  expect(stuck.paused).toBe(true);
  expect(stuck.backlogBytes).toBeGreaterThan(60_000);
  expect(stuck.backlogBytes).toBeLessThan(70_000);
  expect(await client().read('/big')).toBe('x'.repeat(2000));
});

test('beside clients that never stop, one that asks is answered at once, and turns are short and go round', () => {
  const store = createStore();
  const turns: (() => void)[] = [];
  const server = new StreamServer({ store, later: (work) => void turns.push(work), log: () => {} });
  const reply = request(XS.MKDIR, 'OK\0');
  const floods = Array.from({ length: 10 }, () => serveStuckClient(server));
  const made = (): number[] => floods.map(({ backlogBytes }) => backlogBytes / reply.length);
  const sum = (): number => made().reduce((all, one) => all + one, 0);
  for (const [i, flood] of floods.entries())
    flood.send(Buffer.concat(Array.from({ length: 500 }, (_, n) => request(XS.MKDIR, `/flood/${i}/${n}\0`))));
  expect(floods.every(({ paused }) => paused)).toBe(true);
  const atFirst = sum();
  expect(atFirst).toBeLessThanOrEqual(10 * 4);

  const other = serveStuckClient(server);
  other.send(request(XS.MKDIR, '/other\0'));
  expect(other.backlogBytes).toBeGreaterThan(0);
  expect(store.read('/other')).not.toBeNull();

  for (let before = atFirst; turns.length > 0; before = sum()) {
    turns.shift()?.();
    expect(sum() - before).toBeLessThanOrEqual(16);
    // Nobody is ahead of anybody by more than a turn of each.
    expect(Math.max(...made()) - Math.min(...made())).toBeLessThanOrEqual(4);
    expect(turns.length).toBeLessThanOrEqual(1);
  }
  expect(made()).toEqual(new Array(10).fill(500));
  expect(floods.some(({ paused }) => paused)).toBe(false);
});

test('one that leaves its events unread is disconnected, and it is said', async () => {
  const { store, server, lines, client } = setUp();
  const stuck = serveStuckClient(server);
  stuck.send(request(XS.WATCH, '/a\0t\0'));
  for (let i = 0; i < 30_000 && !stuck.closed; i++) {
    store.write('/a', String(i));
    if (i % 1000 === 0) await turn();
  }
  expect(stuck.closed).toBe(true);
  expect(lines).toEqual(['xenstored: a client has left 16384 watch events unread: disconnected']);
  expect(server.clientCount).toBe(0);
  expect(await client().read('/tool/xenstored')).toBe('domus');
});

test('a request that our own code cannot cope with is an error for its client, a line in the log, and no more', async () => {
  const { store, lines, client } = setUp();
  const [victim, other] = [client(), client()];
  await other.write('/a', '1');
  const { tree } = store;
  const broken = tree.snapshot;
  tree.snapshot = () => {
    throw new Error('bug: on purpose');
  };
  await expect(victim.write('/a', '2')).rejects.toMatchObject({ code: 'EIO' });
  tree.snapshot = broken;
  expect(await other.read('/a')).toBe('1');
  await victim.write('/a', '3');
  expect(await other.read('/a')).toBe('3');
  expect(lines.length).toBe(1);
  expect(lines[0]).toMatch('xenstored: defect: Error: bug: on purpose');
});
