/** What a store keeps: read back, its records make an equal store, whatever was done to it and wherever it is cut. */
import { expect, test } from 'vitest';
import { XS, type XsErrorName } from '../abi/io/xs-wire.ts';
import { decodeRecord, encodeRecord, type StoreRecord } from './records.ts';
import { createStore, type Store } from './store.ts';
import { ask, randomSource } from './test-client.ts';

/** All that outlives a store's process, as text. */
function stateOf(store: Store): string[] {
  return [...store.records()]
    .map(decodeRecord)
    .filter(({ kind }) => kind !== 'opened')
    .map((record) => JSON.stringify(record));
}

/** A store that keeps its records, with what it held when journalling began. */
function keepingStore(options: { refuse?: () => XsErrorName | null } = {}): { store: Store; records: Uint8Array[] } {
  const store = createStore();
  const records = [...store.records()];
  store.journal = {
    append: (record) => {
      const error = options.refuse?.() ?? null;
      if (error === null) records.push(record.slice());
      return error;
    },
  };
  return { store, records };
}

test('a record of each kind is the same when it is read back', () => {
  const records: StoreRecord[] = [
    { kind: 'node', path: '/a/b', value: Uint8Array.of(0, 255, 10), permissions: 'n0 b5' },
    { kind: 'domain', domid: 7, gfn: 2 ** 40 + 1, port: 3, isShutDown: true, target: null },
    { kind: 'domain', domid: 7, gfn: 1, port: 3, isShutDown: false, target: 0 },
    { kind: 'requests', domid: 7, key: null, requests: [] },
    {
      kind: 'requests',
      domid: 0,
      key: { session: 'abc', sequence: 0xffffffff },
      requests: [
        { type: XS.WRITE, payload: new Uint8Array(4096).fill(7) },
        { type: XS.RM, payload: Uint8Array.of(47, 0) },
      ],
    },
    { kind: 'shutdown', domid: 1 },
    { kind: 'domids', next: 32751 },
    { kind: 'session', session: 'abc', sequence: 0 },
    { kind: 'session', session: 'abc', sequence: null },
    { kind: 'opened', count: 9 },
  ];
  for (const record of records) expect(decodeRecord(encodeRecord(record))).toEqual(record);
});

test('a record cut short, with bytes behind it or of an unknown kind is an error', () => {
  const bytes = encodeRecord({ kind: 'node', path: '/a', value: Uint8Array.of(1), permissions: 'n0' });
  for (let length = 0; length < bytes.length; length++)
    expect(() => decodeRecord(bytes.slice(0, length)), `${length}`).toThrow(/record/);
  expect(() => decodeRecord(Uint8Array.of(...bytes, 0))).toThrow(/behind/);
  expect(() => decodeRecord(Uint8Array.of(200))).toThrow(/unknown/);
});

test('after each of many random changes, the records make an equal store', () => {
  const random = randomSource(4711);
  const { store, records } = keepingStore();
  const clients = [0, 0, 1, 2, 3].map((domid) => {
    if (domid !== 0) store.introduceDomain(domid, { gfn: 100 + domid, port: domid });
    return { connection: store.connect(domid), open: [] as number[] };
  });
  for (const domid of [1, 2, 3]) {
    store.mkdir(`/local/domain/${domid}`);
    store.setPermissions(`/local/domain/${domid}`, [`n${domid}`, 'r0']);
  }
  const types = [XS.WRITE, XS.WRITE, XS.WRITE, XS.MKDIR, XS.RM, XS.READ, XS.SET_PERMS];
  let checked = 0;
  for (let step = 0; step < 1500; step++) {
    const { connection, open } = clients[random(clients.length)];
    const path = `/local/domain/${1 + random(3)}/${'abc'[random(3)]}/${'de'[random(2)]}`;
    const chance = random(40);
    if (chance < 4) {
      const id = Number(ask(connection, XS.TRANSACTION_START, '\0').replace('\0', ''));
      if (id > 0) open.push(id);
    } else if (chance < 8 && open.length > 0) {
      ask(connection, XS.TRANSACTION_END, random(3) === 0 ? 'F\0' : 'T\0', open.pop());
    } else if (chance === 8) {
      const domid = 10 + random(3);
      ask(connection, random(2) === 0 ? XS.INTRODUCE : XS.RELEASE, `${domid}\0${domid}\x001\0`);
      ask(connection, XS.SET_TARGET, `${domid}\x00${1 + random(3)}\0`);
    } else if (chance === 9) {
      store.domainShutDown(1 + random(3));
    } else if (chance === 10) {
      ask(connection, XS.RESUME, `${1 + random(3)}\0`);
    } else if (chance === 11) {
      store.allocateDomid();
    } else {
      const type = types[random(types.length)];
      const rest = type === XS.WRITE ? `value ${step}` : type === XS.SET_PERMS ? `n${random(4)}\0b${random(4)}\0` : '';
      ask(connection, type, `${path}\0${rest}`, open.length > 0 && random(2) === 0 ? open[0] : 0);
    }
    if (step % 50 !== 0) continue;
    expect(stateOf(createStore({ records })), `step ${step}`).toEqual(stateOf(store));
    checked++;
  }
  expect(checked).toBe(30);
  expect(records.length).toBeGreaterThan(300);
  const again = createStore({ records });
  for (const domid of [0, 1, 2, 3]) expect(again.tree.nodesOwnedBy(domid)).toBe(store.tree.nodesOwnedBy(domid));
  // And the whole state as records makes an equal one, too.
  expect(stateOf(createStore({ records: again.records() }))).toEqual(stateOf(store));
});

test('a change that the journal does not take has not happened, and nobody hears of it', () => {
  let error: XsErrorName | null = null;
  const { store } = keepingStore({ refuse: () => error });
  const connection = store.connect(0);
  const watcher = store.connect(0);
  ask(connection, XS.WRITE, '/a\0one');
  ask(watcher, XS.WATCH, '/\0t\0');
  ask(watcher, XS.WATCH, '@introduceDomain\0t\0');
  while (watcher.takeOutput() !== null);
  const before = stateOf(store);
  error = 'ENOSPC';
  expect(ask(connection, XS.WRITE, '/a\0two')).toBe('!ENOSPC');
  expect(ask(connection, XS.RM, '/a\0')).toBe('!ENOSPC');
  expect(ask(connection, XS.INTRODUCE, '5\x001\x001\0')).toBe('!ENOSPC');
  expect(store.allocateDomid()).toBe('ENOSPC');
  const id = Number(ask(connection, XS.TRANSACTION_START, '\0').replace('\0', ''));
  ask(connection, XS.WRITE, '/a\0three', id);
  expect(ask(connection, XS.TRANSACTION_END, 'T\0', id)).toBe('!ENOSPC');
  // Nothing is written for what changes nothing.
  expect(ask(connection, XS.READ, '/a\0')).toBe('one');
  expect(ask(connection, XS.MKDIR, '/a\0')).toBe('OK\0');
  expect(watcher.takeOutput()).toBe(null);
  error = null;
  expect(stateOf(store).filter((text) => !text.includes('domids'))).toEqual(
    before.filter((text) => !text.includes('domids')),
  );
});

test('a transaction is one record, and holds only what it changed', () => {
  const { store, records } = keepingStore();
  const connection = store.connect(0);
  const count = records.length;
  const id = Number(ask(connection, XS.TRANSACTION_START, '\0').replace('\0', ''));
  ask(connection, XS.WRITE, '/x\x001', id);
  ask(connection, XS.READ, '/x\0', id);
  ask(connection, XS.RM, '/no/such\0', id);
  ask(connection, XS.WRITE, '/y\x002', id);
  ask(connection, XS.TRANSACTION_END, 'T\0', id);
  expect(records.length).toBe(count + 1);
  const record = decodeRecord(records[count]);
  expect(record.kind === 'requests' && record.requests.map(({ type }) => type)).toEqual([XS.WRITE, XS.WRITE]);
});

test('a session sends its last request again, also to the next store, and it is done once', () => {
  const { store, records } = keepingStore();
  const write = (to: Store, sequence: number, value: string): string => {
    const connection = to.connect(0, 'some client');
    const payload = new TextEncoder().encode(`/n\0${value}`);
    return new TextDecoder().decode(connection.handle({ type: XS.WRITE, reqId: sequence, txId: 0, payload }).payload);
  };
  expect(write(store, 1, 'mine')).toBe('OK\0');
  store.write('/n', 'of somebody else');
  expect(write(store, 1, 'mine')).toBe('OK\0');
  const next = createStore({ records });
  expect(write(next, 1, 'mine')).toBe('OK\0');
  expect(new TextDecoder().decode(next.read('/n') ?? undefined)).toBe('of somebody else');
  expect(write(next, 2, 'mine again')).toBe('OK\0');
  expect(new TextDecoder().decode(next.read('/n') ?? undefined)).toBe('mine again');
});

test('no generation of one life comes back in the next', () => {
  const store = createStore();
  const generationOf = (from: Store): number =>
    Number(ask(from.connect(0), XS.DIRECTORY_PART, '/\x000\0').split('\0')[0]);
  for (let i = 0; i < 100; i++) store.write(`/a${i}`, '');
  const next = createStore({ records: store.records() });
  const third = createStore({ records: next.records() });
  expect(generationOf(next)).toBeGreaterThan(generationOf(store) + 2 ** 31);
  expect(generationOf(third)).toBeGreaterThan(generationOf(next) + 2 ** 31);
});

test('domids go up, come around, and are never those of a domain', () => {
  const store = createStore();
  store.introduceDomain(2, { gfn: 1, port: 1 });
  expect([store.allocateDomid(), store.allocateDomid()]).toEqual([1, 3]);
  let last = 0;
  for (let i = 0; i < 0x7ff0; i++) last = Number(store.allocateDomid());
  expect(last).toBeLessThan(0x7ff0);
  expect(last).toBeGreaterThan(0);
});
