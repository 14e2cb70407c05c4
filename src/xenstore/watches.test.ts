import { beforeEach, expect, test } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import type { Connection } from './connection.ts';
import { createStore, type Store } from './store.ts';
import { ask, eventText, takeEvents } from './test-client.ts';
import { textToBytes } from './wire.ts';

let store: Store;
let tool: Connection;
let guest: Connection;

beforeEach(() => {
  store = createStore();
  store.write('/local/domain/5', '');
  store.setPermissions('/local/domain/5', ['n0', 'r5']);
  tool = store.connect(0);
  guest = store.connect(5);
});

test('a watch fires once at once, even for a node that is missing or may not be read', () => {
  for (const path of ['/tool', '/nosuch', 'device', '@releaseDomain']) {
    expect(ask(guest, XS.WATCH, `${path}\0tok\0`)).toBe('OK\0');
    expect(takeEvents(guest)).toEqual([`${path} tok`]);
  }
});

test('the reply to WATCH comes before its event', () => {
  guest.submit({ type: XS.WATCH, reqId: 9, txId: 0, payload: textToBytes('device\0tok\0') });
  expect(guest.takeOutput()?.type).toBe(XS.WATCH);
  expect(eventText(guest.takeOutput()!)).toBe('device tok');
  expect(guest.takeOutput()).toBeNull();
});

test('write, mkdir, permissions and rm of the node and below fire; parents made on the way and siblings do not', () => {
  ask(tool, XS.WATCH, '/w\0t\0');
  takeEvents(tool);
  store.write('/w/a/b', '1');
  store.mkdir('/w/c');
  store.mkdir('/w/c');
  store.setPermissions('/w/c', ['r0']);
  store.write('/ww', '1');
  store.write('/', '1');
  store.remove('/w/a');
  store.remove('/w/a');
  expect(takeEvents(tool)).toEqual(['/w/a/b t', '/w/c t', '/w/c t', '/w/a t']);
});

test('rm of an ancestor fires each watch below with its own path', () => {
  store.write('/x/y/z', '1');
  ask(tool, XS.WATCH, '/x/y/z\0deep\0');
  ask(tool, XS.WATCH, '/x/y/none\0missing\0');
  ask(tool, XS.WATCH, '/x\0top\0');
  ask(tool, XS.WATCH, '/xx\0other\0');
  takeEvents(tool);
  store.remove('/x');
  expect(takeEvents(tool).sort()).toEqual(['/x top', '/x/y/none missing', '/x/y/z deep']);
});

test('a relative watch gets relative paths, an absolute one absolute', () => {
  ask(guest, XS.WATCH, 'device\0rel\0');
  ask(guest, XS.WATCH, '/local/domain/5/device\0abs\0');
  takeEvents(guest);
  store.write('/local/domain/5/device/vbd/51712/state', '1');
  expect(takeEvents(guest)).toEqual(['device/vbd/51712/state rel', '/local/domain/5/device/vbd/51712/state abs']);
  store.remove('/local/domain/5');
  expect(takeEvents(guest).sort()).toEqual(['/local/domain/5/device abs', 'device rel']);
});

test('a relative and an absolute watch of one node count as the same path', () => {
  expect(ask(guest, XS.WATCH, 'device\0t\0')).toBe('OK\0');
  expect(ask(guest, XS.WATCH, '/local/domain/5/device\0t\0')).toBe('!EEXIST');
  expect(ask(guest, XS.UNWATCH, 'device\0other\0')).toBe('!ENOENT');
  expect(ask(guest, XS.UNWATCH, 'device\0t\0')).toBe('OK\0');
  expect(ask(guest, XS.UNWATCH, 'device\0t\0')).toBe('!ENOENT');
});

test('a guest hears only of what it may read', () => {
  ask(guest, XS.WATCH, '/\0all\0');
  takeEvents(guest);
  store.write('/secret/a', '1');
  expect(takeEvents(guest)).toEqual([]);
  store.write('/local/domain/5/open', '1');
  expect(takeEvents(guest)).toEqual(['/local/domain/5/open all']);
  store.setPermissions('/local/domain/5/open', ['n0']);
  store.write('/local/domain/5/open', '2');
  // The parent can be read, so the name is no secret.
  expect(takeEvents(guest)).toEqual(['/local/domain/5/open all', '/local/domain/5/open all']);
  store.remove('/local/domain/5');
  expect(takeEvents(guest)).toEqual(['/local/domain/5 all']);
});

test('@introduceDomain and @releaseDomain reach domain 0, and a guest that was allowed to', () => {
  for (const client of [tool, guest]) {
    ask(client, XS.WATCH, '@introduceDomain\0t\0');
    takeEvents(client);
  }
  store.introduceDomain(7, { gfn: 1, port: 1 });
  expect(takeEvents(tool)).toEqual(['@introduceDomain t']);
  expect(takeEvents(guest)).toEqual([]);
  expect(ask(tool, XS.SET_PERMS, '@introduceDomain\0n0\0r5\0')).toBe('OK\0');
  store.introduceDomain(8, { gfn: 1, port: 1 });
  expect(takeEvents(guest)).toEqual(['@introduceDomain t']);
});

test('a token is any bytes', () => {
  const token = '\x01\x7f\x80\xff ffff88800abcd000';
  ask(guest, XS.WATCH, `device\0${token}\0`);
  expect(takeEvents(guest)).toEqual([`device ${token}`]);
});

test('events that a guest never reads are bounded', () => {
  ask(guest, XS.WATCH, 'device\0t\0');
  for (let i = 0; i < 3000; i++) store.write('/local/domain/5/device/x', String(i));
  expect(takeEvents(guest).length).toBe(1024);
  expect(guest.eventsLost).toBe(3001 - 1024);
});

test('malformed WATCH and UNWATCH are EINVAL', () => {
  for (const payload of ['', 'a', 'a\0', 'a\0t', 'a\0t\0x', 'a\0t\0d\0', '\0t\0', 'a b\0t\0']) {
    expect(ask(guest, XS.WATCH, payload), payload).toBe('!EINVAL');
    expect(ask(guest, XS.UNWATCH, payload), payload).toBe('!EINVAL');
  }
});

test('a watch held to some levels below its path does not hear of deeper ones', () => {
  for (const [token, depth] of [
    ['own', '0'],
    ['children', '1'],
    ['grandchildren', '2'],
  ])
    expect(ask(tool, XS.WATCH, `/w\0${token}\0${depth}\0`)).toBe('OK\0');
  takeEvents(tool);
  store.write('/w', '1');
  expect(takeEvents(tool)).toEqual(['/w own', '/w children', '/w grandchildren']);
  store.write('/w/a', '1');
  expect(takeEvents(tool)).toEqual(['/w/a children', '/w/a grandchildren']);
  store.write('/w/a/b', '1');
  expect(takeEvents(tool)).toEqual(['/w/a/b grandchildren']);
  store.write('/w/a/b/c', '1');
  expect(takeEvents(tool)).toEqual([]);
  store.remove('/w');
  expect(takeEvents(tool)).toEqual(['/w own', '/w children', '/w grandchildren']);
  for (const depth of ['-1', 'x', '', '1\0' + '2'])
    expect(ask(tool, XS.WATCH, `/w\0other\0${depth}\0`), depth).toBe('!EINVAL');
  expect(ask(tool, XS.UNWATCH, '/w\0own\0')).toBe('OK\0');
});

test('special events name the domain to a watch of depth 1, and one domain can be waited for', () => {
  ask(tool, XS.WATCH, '@releaseDomain\0any\0');
  ask(tool, XS.WATCH, '@releaseDomain\0named\x001\0');
  ask(tool, XS.WATCH, '@introduceDomain\0named\x001\0');
  expect(ask(tool, XS.WATCH, '@releaseDomain/7\0seven\0')).toBe('OK\0');
  expect(takeEvents(tool)).toContain('@releaseDomain/7 seven');
  store.introduceDomain(6, { gfn: 1, port: 1 });
  store.introduceDomain(7, { gfn: 1, port: 1 });
  expect(takeEvents(tool)).toEqual(['@introduceDomain/6 named', '@introduceDomain/7 named']);
  store.releaseDomain(6);
  expect(takeEvents(tool)).toEqual(['@releaseDomain any', '@releaseDomain/6 named']);
  store.releaseDomain(7);
  expect(takeEvents(tool)).toEqual(['@releaseDomain any', '@releaseDomain/7 named', '@releaseDomain/7 seven']);
  expect(ask(tool, XS.UNWATCH, '@releaseDomain/7\0seven\0')).toBe('OK\0');
  expect(ask(tool, XS.WATCH, '@releaseDomain\0far\x002\0')).toBe('!EINVAL');
  expect(ask(tool, XS.WATCH, '@introduceDomain/7\0x\0')).toBe('!EINVAL');
});
