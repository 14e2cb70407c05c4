import { beforeEach, expect, test } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import type { Connection } from './connection.ts';
import { createStore } from './store.ts';
import { ask, randomSource, takeEvents } from './test-client.ts';

let a: Connection;
let b: Connection;

beforeEach(() => {
  const store = createStore();
  a = store.connect(0);
  b = store.connect(0);
});

const start = (connection: Connection) => Number.parseInt(ask(connection, XS.TRANSACTION_START, '\0'), 10);
const end = (connection: Connection, txId: number, verdict = 'T') =>
  ask(connection, XS.TRANSACTION_END, `${verdict}\0`, txId);

test('changes are unseen until the commit and gone after an abort', () => {
  const txId = start(a);
  ask(a, XS.WRITE, '/x/y\x001', txId);
  expect(ask(a, XS.READ, '/x/y\0', txId)).toBe('1');
  expect(ask(b, XS.READ, '/x/y\0')).toBe('!ENOENT');
  expect(end(a, txId)).toBe('OK\0');
  expect(ask(b, XS.READ, '/x/y\0')).toBe('1');
  const other = start(a);
  ask(a, XS.RM, '/x\0', other);
  expect(end(a, other, 'F')).toBe('OK\0');
  expect(ask(b, XS.READ, '/x/y\0')).toBe('1');
});

test('a snapshot does not see later changes', () => {
  ask(a, XS.WRITE, '/x\x001');
  const txId = start(a);
  ask(b, XS.WRITE, '/x\x002');
  ask(b, XS.WRITE, '/y\x002');
  expect(ask(a, XS.READ, '/x\0', txId)).toBe('1');
  expect(ask(a, XS.READ, '/y\0', txId)).toBe('!ENOENT');
});

test('unrelated changes by others do not disturb a commit, and are kept', () => {
  const txId = start(a);
  ask(a, XS.WRITE, '/a/one\x001', txId);
  ask(b, XS.WRITE, '/b/two\x002');
  expect(end(a, txId)).toBe('OK\0');
  expect(ask(a, XS.READ, '/a/one\0')).toBe('1');
  expect(ask(a, XS.READ, '/b/two\0')).toBe('2');
});

test.each([
  ['a value it read', XS.READ, '/x\0', XS.WRITE, '/x\0new'],
  ['a node it found missing', XS.READ, '/y\0', XS.WRITE, '/y\0new'],
  ['a directory it listed', XS.DIRECTORY, '/x\0', XS.MKDIR, '/x/child\0'],
  ['permissions it read', XS.GET_PERMS, '/x\0', XS.SET_PERMS, '/x\0r0\0'],
  ['a node it removed below', XS.RM, '/x/y/z\0', XS.RM, '/x\0'],
])('EAGAIN if another client changed %s', (_what, type, request, otherType, otherRequest) => {
  ask(a, XS.WRITE, '/x\0old');
  ask(a, XS.MKDIR, '/x/y\0');
  const txId = start(a);
  ask(a, type, request, txId);
  ask(a, XS.WRITE, '/result\x001', txId);
  expect(ask(b, otherType, otherRequest)).toBe('OK\0');
  expect(end(a, txId)).toBe('!EAGAIN');
  expect(ask(a, XS.READ, '/result\0')).toBe('!ENOENT');
  expect(end(a, txId)).toBe('!EIO');
});

test('a transaction that only read commits whatever happened', () => {
  ask(a, XS.WRITE, '/x\0old');
  const txId = start(a);
  ask(a, XS.READ, '/x\0', txId);
  ask(b, XS.WRITE, '/x\0new');
  expect(end(a, txId)).toBe('OK\0');
});

test('a client alone never gets EAGAIN', () => {
  for (let round = 0; round < 1000; round++) {
    const txId = start(a);
    ask(a, XS.READ, '/n\0', txId);
    ask(a, XS.WRITE, `/n\0${round}`, txId);
    expect(end(a, txId)).toBe('OK\0');
  }
});

test('watch events come at the commit, in the order of the changes, and not at all after EAGAIN', () => {
  ask(b, XS.WATCH, '/w\0t\0');
  takeEvents(b);
  const txId = start(a);
  ask(a, XS.WRITE, '/w/1\0x', txId);
  ask(a, XS.WRITE, '/w/2\0x', txId);
  ask(a, XS.RM, '/w/1\0', txId);
  expect(takeEvents(b)).toEqual([]);
  end(a, txId);
  expect(takeEvents(b)).toEqual(['/w/1 t', '/w/2 t', '/w/1 t']);

  const refused = start(a);
  ask(a, XS.READ, '/w/2\0', refused);
  ask(a, XS.WRITE, '/w/3\0x', refused);
  ask(b, XS.WRITE, '/w/2\0y');
  takeEvents(b);
  expect(end(a, refused)).toBe('!EAGAIN');
  expect(takeEvents(b)).toEqual([]);
});

test('counters raised in interleaved transactions lose no update', () => {
  const random = randomSource(7);
  const clients = [a, b];
  const counts = { '/n': 0, '/m': 0 };
  const open = new Map<Connection, { txId: number; key: '/n' | '/m'; step: number; seen: number }>();
  let conflicts = 0;
  for (let round = 0; round < 5000; round++) {
    const client = clients[random(2)];
    const work = open.get(client);
    if (work === undefined) {
      open.set(client, { txId: start(client), key: random(2) ? '/n' : '/m', step: 0, seen: 0 });
    } else if (work.step++ === 0) {
      const value = ask(client, XS.READ, `${work.key}\0`, work.txId);
      work.seen = value.startsWith('!') ? 0 : Number(value);
    } else if (work.step === 2) {
      ask(client, XS.WRITE, `${work.key}\0${work.seen + 1}`, work.txId);
    } else {
      open.delete(client);
      if (end(client, work.txId) === 'OK\0') counts[work.key]++;
      else conflicts++;
    }
  }
  expect(conflicts).toBeGreaterThan(0);
  expect(Number(ask(a, XS.READ, '/n\0'))).toBe(counts['/n']);
  expect(Number(ask(a, XS.READ, '/m\0'))).toBe(counts['/m']);
});
