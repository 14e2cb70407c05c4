import { expect, test } from 'vitest';
import { XENSTORE_PAYLOAD_MAX, XS } from '../abi/io/xs-wire.ts';
import { createStore, type Store } from './store.ts';
import { ask, randomSource, takeEvents } from './test-client.ts';
import { bytesToText } from './wire.ts';

/** A store with domain 5, whose /local/domain/5/data it owns. */
function storeWithGuest(): Store {
  const store = createStore();
  store.write('/local/domain/5', '');
  store.setPermissions('/local/domain/5', ['n0', 'r5']);
  store.write('/local/domain/5/name', 'web');
  store.write('/local/domain/5/data', '');
  store.setPermissions('/local/domain/5/data', ['n5']);
  store.introduceDomain(5, { gfn: 0x100001, port: 1 });
  return store;
}

function text(value: Uint8Array | null): string | null {
  return value === null ? null : bytesToText(value);
}

test('a new store has what xenstored makes', () => {
  const store = createStore();
  expect(store.list('/')).toEqual(['@introduceDomain', '@releaseDomain', 'tool']);
  expect(ask(store.connect(0), XS.GET_PERMS, '@releaseDomain\0')).toBe('n0\0');
});

test('a guest reads what it may, relative or absolute, and writes only its own', () => {
  const guest = storeWithGuest().connect(5);
  expect(ask(guest, XS.READ, 'name\0')).toBe('web');
  expect(ask(guest, XS.READ, '/local/domain/5/name\0')).toBe('web');
  expect(ask(guest, XS.WRITE, 'name\0x')).toBe('!EACCES');
  expect(ask(guest, XS.WRITE, 'new\0x')).toBe('!EACCES');
  expect(ask(guest, XS.WRITE, 'data/a/b\0x')).toBe('OK\0');
  expect(ask(guest, XS.GET_PERMS, 'data/a\0')).toBe('n5\0');
  expect(ask(guest, XS.READ, '/tool/xenstored\0')).toBe('!EACCES');
  expect(ask(guest, XS.RM, 'name\0')).toBe('!EACCES');
  expect(ask(guest, XS.RM, 'data/a\0')).toBe('OK\0');
});

test('access letters: n, r, w, b for the others and for single domains', () => {
  const store = createStore();
  const access = (permissions: string[], domid: number) => {
    store.write('/p', 'v');
    store.setPermissions('/p', permissions);
    const guest = store.connect(domid);
    return (ask(guest, XS.READ, '/p\0') === 'v' ? 'r' : '') + (ask(guest, XS.WRITE, '/p\0v') === 'OK\0' ? 'w' : '');
  };
  expect(access(['n0'], 5)).toBe('');
  expect(access(['r0'], 5)).toBe('r');
  expect(access(['w0'], 5)).toBe('w');
  expect(access(['b0'], 5)).toBe('rw');
  expect(access(['b0', 'n5'], 5)).toBe('');
  expect(access(['n0', 'r4', 'w5'], 5)).toBe('w');
  expect(access(['n5'], 5)).toBe('rw');
  expect(access(['n5', 'r6'], 6)).toBe('r');
});

test('only the owner and domain 0 change permissions, and only domain 0 the owner', () => {
  const store = storeWithGuest();
  const guest = store.connect(5);
  expect(ask(guest, XS.SET_PERMS, 'name\0b5\0')).toBe('!EACCES');
  expect(ask(guest, XS.SET_PERMS, 'data\0n5\0r0\0')).toBe('OK\0');
  expect(ask(guest, XS.SET_PERMS, 'data\0n6\0')).toBe('!EACCES');
  expect(ask(guest, XS.SET_PERMS, 'data\0n5\0r1\0r2\0r3\0r4\0r6\0')).toBe('!ENOSPC');
  expect(ask(store.connect(0), XS.SET_PERMS, '/local/domain/5/data\0n6\0')).toBe('OK\0');
});

test('a node that a guest makes below another domain is its own and counts for it', () => {
  const store = storeWithGuest();
  store.write('/shared', '');
  store.setPermissions('/shared', ['n0', 'b5']);
  expect(ask(store.connect(5), XS.WRITE, '/shared/a\0x')).toBe('OK\0');
  expect(ask(store.connect(5), XS.GET_PERMS, '/shared/a\0')).toBe('n5\0b5\0');
  expect(store.tree.nodesOwnedBy(5)).toBe(2);
});

test('privileged requests are EACCES for a guest', () => {
  const guest = storeWithGuest().connect(5);
  for (const type of [XS.CONTROL, XS.INTRODUCE, XS.RELEASE, XS.RESUME, XS.SET_TARGET]) {
    expect(ask(guest, type, '6\x001\x001\0')).toBe('!EACCES');
  }
});

test('quotas hold a guest, not domain 0', () => {
  const store = storeWithGuest();
  const guest = store.connect(5);
  let made = 0;
  while (ask(guest, XS.MKDIR, `data/${made}\0`) === 'OK\0') made++;
  expect(made).toBe(999);
  expect(ask(guest, XS.MKDIR, 'data/x\0')).toBe('!ENOSPC');
  expect(ask(guest, XS.RM, 'data/0\0')).toBe('OK\0');
  expect(ask(guest, XS.MKDIR, 'data/x\0')).toBe('OK\0');
  store.write('/local/domain/5/data/more', '');

  let watches = 0;
  while (ask(guest, XS.WATCH, `data\0${watches}\0`) === 'OK\0') watches++;
  expect(watches).toBe(128);
  let transactions = 0;
  while (!ask(guest, XS.TRANSACTION_START, '\0').startsWith('!')) transactions++;
  expect(transactions).toBe(10);
  expect(ask(guest, XS.RESET_WATCHES, '\0')).toBe('OK\0');
  expect(ask(guest, XS.WATCH, 'data\0t\0')).toBe('OK\0');
  expect(ask(guest, XS.TRANSACTION_START, '\0')).not.toMatch('!');
});

test('a transaction cannot grow without bound', () => {
  const guest = storeWithGuest().connect(5);
  const txId = Number.parseInt(ask(guest, XS.TRANSACTION_START, '\0'), 10);
  let requests = 0;
  while (ask(guest, XS.WRITE, `data/a\0${'v'.repeat(2000)}`, txId) === 'OK\0') requests++;
  expect(requests).toBeGreaterThan(100);
  expect(requests).toBeLessThan(140);
  const other = Number.parseInt(ask(guest, XS.TRANSACTION_START, '\0'), 10);
  for (let i = 0; i < 1024; i++) expect(ask(guest, XS.READ, 'name\0', other)).toBe('web');
  expect(ask(guest, XS.READ, 'name\0', other)).toBe('!ENOSPC');
});

test('a directory over 4096 bytes is E2BIG, and whole through DIRECTORY_PART', () => {
  const store = createStore();
  const names = Array.from({ length: 500 }, (_, i) => `${'n'.repeat(i % 30)}-${i}`);
  for (const name of names) store.mkdir(`/dir/${name}`);
  const client = store.connect(0);
  expect(ask(client, XS.DIRECTORY, '/dir\0')).toBe('!E2BIG');
  // As libxenstore does: until an answer ends in an empty string.
  let list = '';
  const generations = new Set<string>();
  while (list.length < 2 || !list.endsWith('\0\0')) {
    const part = ask(client, XS.DIRECTORY_PART, `/dir\0${list.length}\0`);
    expect(part.length).toBeLessThanOrEqual(XENSTORE_PAYLOAD_MAX);
    generations.add(part.slice(0, part.indexOf('\0')));
    list += part.slice(part.indexOf('\0') + 1);
  }
  expect(list.split('\0').slice(0, -2)).toEqual(names.sort());
  expect(generations.size).toBe(1);
  expect(ask(client, XS.DIRECTORY_PART, '/dir/-0\x000\0')).toMatch(/^\d+\0\0$/);
  expect(ask(client, XS.DIRECTORY_PART, '/dir\0x\0')).toBe('!EINVAL');
});

test('releaseDomain() removes the nodes, permissions, watches and connections of the domain', () => {
  const store = storeWithGuest();
  const guest = store.connect(5);
  const tool = store.connect(0);
  ask(guest, XS.WRITE, 'data/x\x001');
  ask(guest, XS.WATCH, 'data\0t\0');
  ask(tool, XS.WATCH, '@releaseDomain\0gone\0');
  takeEvents(tool);
  expect(ask(tool, XS.RELEASE, '5\0')).toBe('OK\0');
  expect(takeEvents(tool)).toEqual(['@releaseDomain gone']);
  expect(guest.isClosed).toBe(true);
  expect(store.read('/local/domain/5/data')).toBeNull();
  expect(text(store.read('/local/domain/5/name'))).toBe('web');
  expect(ask(tool, XS.GET_PERMS, '/local/domain/5\0')).toBe('n0\0');
  expect(store.tree.nodesOwnedBy(5)).toBe(0);
  expect(store.watches.countOf(guest)).toBe(0);
  expect(ask(tool, XS.IS_DOMAIN_INTRODUCED, '5\0')).toBe('F\0');
});

test('INTRODUCE again is OK for the same ring and EINVAL for another; RESUME rearms @releaseDomain', () => {
  const store = storeWithGuest();
  const tool = store.connect(0);
  ask(tool, XS.WATCH, '@introduceDomain\0in\0');
  ask(tool, XS.WATCH, '@releaseDomain\0out\0');
  takeEvents(tool);
  expect(ask(tool, XS.INTRODUCE, '5\x001048577\x001\0')).toBe('OK\0');
  expect(ask(tool, XS.INTRODUCE, '5\x001048578\x001\0')).toBe('!EINVAL');
  expect(ask(tool, XS.INTRODUCE, '0\x001\x001\0')).toBe('!EINVAL');
  expect(takeEvents(tool)).toEqual([]);
  expect(ask(tool, XS.INTRODUCE, '6\x001\x001\0')).toBe('OK\0');
  store.domainShutDown(5);
  store.domainShutDown(5);
  expect(takeEvents(tool)).toEqual(['@introduceDomain in', '@releaseDomain out']);
  expect(ask(tool, XS.RESUME, '5\0')).toBe('OK\0');
  store.domainShutDown(5);
  expect(takeEvents(tool)).toEqual(['@releaseDomain out']);
});

test('SET_TARGET lets a domain do what its target may', () => {
  const store = storeWithGuest();
  store.introduceDomain(9, { gfn: 1, port: 1 });
  const stub = store.connect(9);
  expect(ask(stub, XS.WRITE, '/local/domain/5/data\0x')).toBe('!EACCES');
  expect(ask(store.connect(0), XS.SET_TARGET, '9\x005\0')).toBe('OK\0');
  expect(ask(stub, XS.WRITE, '/local/domain/5/data\0x')).toBe('OK\0');
  expect(ask(stub, XS.READ, '/tool/xenstored\0')).toBe('!EACCES');
});

test('malformed paths are EINVAL', () => {
  const guest = storeWithGuest().connect(5);
  for (const path of ['', '//', '/a/', '/a//b', 'data/', '/a b', '/ä', '/a\xff', '@', '@/x', `/${'a'.repeat(2048)}`]) {
    expect(ask(guest, XS.READ, `${path}\0`), path).toBe('!EINVAL');
  }
  expect(ask(guest, XS.READ, `${'a'.repeat(2048)}\0`)).toBe('!ENOENT');
  expect(ask(guest, XS.READ, `${'a'.repeat(2049)}\0`)).toBe('!EINVAL');
});

test('no request of a guest throws or changes what is not its own', () => {
  const store = storeWithGuest();
  const guest = store.connect(5);
  const random = randomSource(20260601);
  const pieces = ['/', 'data', '/local/domain/5/data', '@releaseDomain', 'a', '..', '\0', '\0\0', 'T', 'F', '1', 'n5'];
  const before = dump(store);
  for (let round = 0; round < 50_000; round++) {
    const payload = new Uint8Array(random(64));
    if (random(2) === 0) {
      for (let i = 0; i < payload.length; i++) payload[i] = random(256);
    } else {
      const made = Array.from({ length: random(6) }, () => pieces[random(pieces.length)]).join(
        ['', '/', '\0'][random(3)],
      );
      for (let i = 0; i < payload.length; i++) payload[i] = i < made.length ? made.charCodeAt(i) : 0;
    }
    const reply = guest.handle({ type: random(30), reqId: random(100), txId: random(3), payload });
    expect(reply.payload.length).toBeLessThanOrEqual(XENSTORE_PAYLOAD_MAX);
    if (random(50) === 0) takeEvents(guest);
  }
  guest.reset();
  store.remove('/local/domain/5/data');
  expect(dump(store)).toEqual(before.filter((line) => !line.startsWith('/local/domain/5/data')));
  expect(store.tree.nodesOwnedBy(5)).toBe(0);
});

function dump(store: Store, path = ''): string[] {
  const perms = ask(store.connect(0), XS.GET_PERMS, `${path || '/'}\0`);
  const lines = [`${path} ${text(store.read(path || '/'))} ${perms}`];
  for (const name of store.list(path || '/') ?? []) lines.push(...dump(store, `${path}/${name}`));
  return lines;
}
