/** A client whose xenstored is killed at any moment: nothing it was told is done is lost, and nothing is done twice. */
import { expect, test } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import { XenstoreClient } from './client.ts';
import { type ByteChannel, linkOverBytes, linkToStore } from './link.ts';
import { decodeRecord } from './records.ts';
import { openSession } from './session.ts';
import { createStore, type Store } from './store.ts';
import { StreamServer } from './stream-server.ts';
import { randomSource } from './test-client.ts';
import { createPipe, type Pipe } from './test-pipe.ts';
import { bytesToText, textToBytes } from './wire.ts';

/** A xenstored that keeps its records, and can be killed and started again with them. */
class Xenstored {
  records: Uint8Array[] = [];
  store: Store;
  #server: StreamServer;
  readonly #pipes = new Set<Pipe>();
  /** Called before each piece of bytes that arrives anywhere. */
  onPiece: () => void = () => {};
  readonly gone: number[] = [];

  constructor() {
    this.store = createStore();
    this.records.push(...[...this.store.records()].map((record) => record.slice()));
    this.#server = this.#start();
  }

  #start(): StreamServer {
    this.store.journal = {
      append: (record) => {
        this.records.push(record.slice());
        return null;
      },
    };
    return new StreamServer({
      store: this.store,
      later: setImmediate,
      log: () => {},
      onSessionEnd: (domid) => void this.gone.push(domid),
    });
  }

  kill(): void {
    for (const pipe of [...this.#pipes]) pipe.cut();
    this.#pipes.clear();
    this.#server.close();
    this.store = createStore({ records: this.records });
    this.#server = this.#start();
  }

  connect(pieceBytes = 4096): ByteChannel {
    const pipe = createPipe(pieceBytes, () => this.onPiece());
    this.#pipes.add(pipe);
    this.#server.serve(pipe.server);
    return pipe.client;
  }

  session(domid: number, name: string, pieceBytes = 4096): XenstoreClient {
    const open = (): Promise<ReturnType<typeof linkOverBytes>> =>
      Promise.resolve(linkOverBytes(this.connect(pieceBytes)));
    return new XenstoreClient(openSession({ open, domid, name }));
  }
}

const pause = (ms = 0): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

test('each request is done once, and each that was answered is done, wherever xenstored is killed', async () => {
  const random = randomSource(99);
  const xenstored = new Xenstored();
  let left = 10;
  let kills = 0;
  xenstored.onPiece = () => {
    if (left-- > 0) return;
    left = random(200);
    kills++;
    xenstored.kill();
  };
  const acknowledged: string[] = [];
  const run = async (name: string): Promise<void> => {
    const client = xenstored.session(0, name, 16 + random(60));
    for (let i = 0; i < 40; i++) {
      if (i % 2 === 0) {
        await client.write(`/plain/${name}-${i}`, String(i));
        acknowledged.push(`${name}-${i}`);
      } else {
        await client.transaction(async (t) => {
          const count = Number(await t.read('/count'));
          await t.write('/count', String(count + 1));
          await t.write(`/by/${name}-${i}`, '');
        });
      }
    }
    client.close();
  };
  await Promise.all(['one', 'two', 'three'].map(run));
  xenstored.onPiece = () => {};
  expect(kills).toBeGreaterThan(20);
  const client = new XenstoreClient(linkToStore(xenstored.store));
  expect(await client.read('/count')).toBe('60');
  expect((await client.directory('/by'))?.length).toBe(60);
  expect((await client.directory('/plain'))?.sort()).toEqual(acknowledged.sort());
  const done = xenstored.records
    .map(decodeRecord)
    .filter((record) => record.kind === 'requests' && record.key !== null);
  expect(done.length).toBe(120);
});

test('a request in a transaction that was lost is executed, and the commit is EAGAIN', async () => {
  const xenstored = new Xenstored();
  const client = xenstored.session(0, 'a');
  let runs = 0;
  await client.transaction(async (t) => {
    runs++;
    await t.write('/a', `${runs}`);
    if (runs === 1) xenstored.kill();
    await t.write('/b', `${runs}`);
    expect(await t.read('/b')).toBe(`${runs}`);
  });
  expect(runs).toBe(2);
  expect(await client.read('/a')).toBe('2');
  // What it has made is not there any more.
  runs = 0;
  await client.transaction(async (t) => {
    runs++;
    await t.mkdir('/made');
    if (runs === 1) xenstored.kill();
    await t.setPermissions('/made', ['n0', 'r5']);
  });
  expect(runs).toBe(2);
  expect(await client.getPermissions('/made')).toEqual(['n0', 'r5']);
  // One that is given up anyway needs no second run.
  const failing = client.transaction(async (t) => {
    await t.write('/a', '3');
    xenstored.kill();
    throw new Error('given up');
  });
  await expect(failing).rejects.toThrow('given up');
  expect(await client.read('/a')).toBe('2');
});

test('watches are there again after a reconnect, and fire once for what may have been missed', async () => {
  const xenstored = new Xenstored();
  const client = xenstored.session(0, 'a');
  const heard: string[] = [];
  await client.watch('/a', 'token', (path) => void heard.push(path));
  await client.watch('/gone', 'token', () => void heard.push('of an ended watch'));
  await client.unwatch('/gone', 'token');
  while (!heard.includes('/a')) await pause(5);
  heard.length = 0;
  xenstored.kill();
  while (heard.length === 0) await pause(5);
  expect(heard).toEqual(['/a']);
  xenstored.store.write('/a/b', '1');
  xenstored.store.write('/gone', '1');
  while (heard.length < 2) await pause(5);
  expect(heard).toEqual(['/a', '/a/b']);
});

test('a watch with a depth is there again after a reconnect, with it, and gone when it was ended', async () => {
  const xenstored = new Xenstored();
  const link = openSession({
    open: () => Promise.resolve(linkOverBytes(xenstored.connect())),
    domid: 0,
    name: 'raw',
  });
  const events: string[] = [];
  let replies = 0;
  link.receive({
    onMessage: ({ type, payload }) => {
      if (type === XS.WATCH_EVENT) events.push(bytesToText(payload).replaceAll('\0', ' '));
      else replies++;
    },
    onEnd: () => {},
  });
  const ask = async (type: number, text: string): Promise<void> => {
    const before = replies;
    link.send({ type, reqId: 1, txId: 0, payload: textToBytes(text) });
    while (replies === before) await pause();
  };
  await ask(XS.WATCH, '/w\0kept\x001\0');
  await ask(XS.WATCH, '/w\0ended\x001\0');
  await ask(XS.UNWATCH, '/w\0ended\0');
  while (events.length < 2) await pause(5);
  events.length = 0;
  xenstored.kill();
  await ask(XS.READ, '/\0');
  // A watch that is set again fires once.
  while (events.length === 0) await pause(5);
  events.length = 0;
  xenstored.store.write('/w/a', '');
  xenstored.store.write('/w/a/b', '');
  while (events.length === 0) await pause(5);
  await ask(XS.READ, '/\0');
  expect(events).toEqual(['/w/a kept ']);
  link.close();
});

test('a session has the rights of its domain, and cannot become another one', async () => {
  const xenstored = new Xenstored();
  const { store } = xenstored;
  store.introduceDomain(3, { gfn: 1, port: 1 });
  store.write('/local/domain/3/data', 'x');
  store.setPermissions('/local/domain/3/data', ['n3']);
  store.write('/secret', 'y');
  const guest = xenstored.session(3, 'guest');
  expect(await guest.read('data')).toBe('x');
  await expect(guest.read('/secret')).rejects.toMatchObject({ code: 'EACCES' });
  await expect(guest.control(['domus-session', '0', 'other'])).rejects.toMatchObject({ code: 'EACCES' });
  xenstored.kill();
  await expect(guest.write('/secret', 'z')).rejects.toMatchObject({ code: 'EACCES' });
});

test('a session of a domain ends when the domain is released, which is reported, and there is none for one that is unknown', async () => {
  const xenstored = new Xenstored();
  xenstored.store.introduceDomain(3, { gfn: 1, port: 1 });
  const guest = xenstored.session(3, 'guest');
  await guest.read('data');
  xenstored.store.releaseDomain(3);
  await expect(guest.closed).resolves.toBeUndefined();
  await expect(guest.read('data')).rejects.toMatchObject({ name: 'XenstoreClosed' });
  await expect(xenstored.session(4, 'nobody').read('data')).rejects.toThrow('domain 4 is unknown to xenstored');
  expect(xenstored.gone).toEqual([3]);
});

test('a domain whose session goes while xenstored lives is reported, one that lost xenstored is not', async () => {
  const xenstored = new Xenstored();
  xenstored.store.introduceDomain(3, { gfn: 1, port: 1 });
  const guest = xenstored.session(3, 'guest');
  await guest.read('data');
  xenstored.kill();
  await guest.read('data');
  await pause(5);
  expect(xenstored.gone).toEqual([]);
  guest.close();
  while (xenstored.gone.length === 0) await pause(5);
  expect(xenstored.gone).toEqual([3]);
});
